/*
 * What each bucket holds: alloc keys (07 §2, 12 §10.1), and bucket_gens, the dense copy of their generation numbers (07
 * §3).
 */
#include "format/alloc.h"

#include <inttypes.h>

#include "format/error_ids.h"
#include "format/value.h"
#include "format/varint.h"
#include "format/version.h"

struct alloc_v4_disk {
	le64 journal_seq;
	le32 flags; /* [0,1) need_discard, [1,2) need_inc_gen, [2,8) words here, [8,14) backpointers */
	uint8_t gen, oldest_gen, data_type, stripe_redundancy;
	le32 dirty_sectors, cached_sectors;
	le64 io_time[2];
	le32 stripe;
	le32 external_backpointers;
	le64 fragmentation_lru; /* not in images upgraded from before: 48 bytes there */
	le32 stripe_sectors;	/* 1.8 */
	le32 pad;
};
_Static_assert(sizeof(struct alloc_v4_disk) == 64, "alloc_v4 is 64 bytes");
_Static_assert(offsetof(struct alloc_v4_disk, fragmentation_lru) == 48, "fragmentation_lru of alloc_v4");

enum { ALLOC_V4_U64S_V0 = 6, ALLOC_V4_U64S = ALLOC_V4_BYTES / 8, BACKPOINTER_U64S = 4, GENS_DISTANCE_MAX = 96 };

/* Words of the fixed part, as the flags say; what is behind them belongs to inline backpointers. */
static unsigned alloc_v4_u64s(uint32_t flags)
{
	unsigned u64s = (unsigned)bits_get(flags, 2, 8);

	return u64s ? u64s : ALLOC_V4_U64S_V0;
}

static void alloc_v4_decode(struct bkey_ref k, struct alloc *a)
{
	struct alloc_v4_disk d;

	value_load(&d, sizeof(d), k);
	unsigned u64s = alloc_v4_u64s(le32_get(d.flags));

	*a = (struct alloc){
		.journal_seq = le64_get(d.journal_seq),
		.flags = le32_get(d.flags),
		.gen = d.gen,
		.oldest_gen = d.oldest_gen,
		.data_type = d.data_type,
		.stripe_redundancy = d.stripe_redundancy,
		.dirty_sectors = le32_get(d.dirty_sectors),
		.cached_sectors = le32_get(d.cached_sectors),
		.io_time = { le64_get(d.io_time[0]), le64_get(d.io_time[1]) },
		.stripe = le32_get(d.stripe),
		.external_backpointers = le32_get(d.external_backpointers),
		.fragmentation_lru = u64s > 6 ? le64_get(d.fragmentation_lru) : 0,
		.stripe_sectors = u64s > 7 ? le32_get(d.stripe_sectors) : 0,
	};
}

struct alloc_v3_disk {
	le64 journal_seq;
	le32 flags;
	uint8_t nr_fields, gen, oldest_gen, data_type;
};
_Static_assert(sizeof(struct alloc_v3_disk) == 16, "fixed part of alloc_v3 is 16 bytes");

static int alloc_v3_decode(struct bkey_ref k, struct alloc *a, struct fault *fault)
{
	static const struct {
		const char *name;
		unsigned bits;
	} fields[] = { { "read_time", 64 },	 { "write_time", 64 }, { "dirty_sectors", 32 },
		       { "cached_sectors", 32 }, { "stripe", 32 },     { "stripe_redundancy", 8 } };
	uint64_t v[ARRAY_NR(fields)] = { 0 };
	struct alloc_v3_disk d;

	if (bkey_value_bytes(&k.k) < sizeof(d))
		return fault_set(fault, ERROR_alloc_v3_unpack_error, "value", "at least 16 bytes", "%zu",
				 bkey_value_bytes(&k.k));
	value_load(&d, sizeof(d), k);
	const uint8_t *p = (const uint8_t *)k.value + sizeof(d),
		      *end = (const uint8_t *)k.value + bkey_value_bytes(&k.k);

	for (unsigned i = 0; i < ARRAY_NR(fields) && i < d.nr_fields; i++) {
		int len = varint_decode(p, (size_t)(end - p), &v[i]);

		if (len <= 0)
			return fault_set(fault, ERROR_alloc_v3_unpack_error, fields[i].name,
					 "an end inside of the value", "past it");
		if (fields[i].bits < 64 && v[i] >> fields[i].bits)
			return fault_set(fault, ERROR_alloc_v3_unpack_error, fields[i].name, "a number that fits",
					 "0x%" PRIx64, v[i]);
		p += len;
	}
	*a = (struct alloc){
		.journal_seq = le64_get(d.journal_seq),
		.flags = le32_get(d.flags) & (ALLOC_NEED_DISCARD | ALLOC_NEED_INC_GEN),
		.gen = d.gen,
		.oldest_gen = d.oldest_gen,
		.data_type = d.data_type,
		.io_time = { v[0], v[1] },
		.dirty_sectors = (uint32_t)v[2],
		.cached_sectors = (uint32_t)v[3],
		.stripe = (uint32_t)v[4],
		.stripe_redundancy = (uint8_t)v[5],
	};
	return 0;
}

int alloc_decode(struct bkey_ref k, struct alloc *a, struct fault *fault)
{
	*a = (struct alloc){ 0 };
	switch (k.k.type) {
	case KEY_ALLOC_V4: alloc_v4_decode(k, a); return 0;
	case KEY_ALLOC_V3: return alloc_v3_decode(k, a, fault);
	}
	fault_set(fault, 0, "key type", "alloc_v3 or alloc_v4", "%u", k.k.type);
	return -KILN_E_UNSUPPORTED;
}

void alloc_encode(const struct alloc *a, uint8_t value[ALLOC_V4_BYTES])
{
	struct alloc_v4_disk d = {
		.journal_seq = le64_of(a->journal_seq),
		.flags = le32_of(
			(uint32_t)bits_set(a->flags & (ALLOC_NEED_DISCARD | ALLOC_NEED_INC_GEN), 2, 8, ALLOC_V4_U64S)),
		.gen = a->gen,
		.oldest_gen = a->oldest_gen,
		.data_type = a->data_type,
		.stripe_redundancy = a->stripe_redundancy,
		.dirty_sectors = le32_of(a->dirty_sectors),
		.cached_sectors = le32_of(a->cached_sectors),
		.io_time = { le64_of(a->io_time[0]), le64_of(a->io_time[1]) },
		.stripe = le32_of(a->stripe),
		.external_backpointers = le32_of(a->external_backpointers),
		.fragmentation_lru = le64_of(a->fragmentation_lru),
	};

	memcpy(value, &d, ALLOC_V4_BYTES);
}

unsigned alloc_data_type(const struct alloc *a, unsigned type)
{
	if (a->stripe)
		return type == DATA_PARITY ? DATA_PARITY : DATA_STRIPE;
	if (a->dirty_sectors)
		return type;
	if (a->cached_sectors)
		return DATA_CACHED;
	if (a->flags & ALLOC_NEED_DISCARD)
		return DATA_NEED_DISCARD;
	if ((uint8_t)(a->gen - a->oldest_gen) >= GENS_DISTANCE_MAX)
		return DATA_NEED_GC_GENS;
	return DATA_FREE;
}

const char *data_type_name(unsigned type)
{
	static const char *const names[DATA_NR] = {
		[DATA_FREE] = "free",
		[DATA_SB] = "sb",
		[DATA_JOURNAL] = "journal",
		[DATA_BTREE] = "btree",
		[DATA_USER] = "user",
		[DATA_CACHED] = "cached",
		[DATA_PARITY] = "parity",
		[DATA_STRIPE] = "stripe",
		[DATA_NEED_GC_GENS] = "need_gc_gens",
		[DATA_NEED_DISCARD] = "need_discard",
		[DATA_UNSTRIPED] = "unstriped",
		[DATA_MULTIPLE] = "multiple",
	};

	return type < DATA_NR ? names[type] : "unknown";
}

static int alloc_v4_size_validate(struct bkey_ref k, uint32_t flags, struct fault *fault)
{
	unsigned start = (unsigned)bits_get(flags, 2, 8), nr = (unsigned)bits_get(flags, 8, 14);

	if (alloc_v4_u64s(flags) + BACKPOINTER_U64S * nr > k.k.value_u64s)
		return fault_set(fault, ERROR_alloc_v4_val_size_bad, "value", "room for what the flags say",
				 "%u words, %u needed", k.k.value_u64s, alloc_v4_u64s(flags) + BACKPOINTER_U64S * nr);
	if (!start && nr)
		return fault_set(fault, ERROR_alloc_v4_backpointers_start_bad, "backpointers_start",
				 "not 0 with inline backpointers", "0 with %u", nr);
	return 0;
}

/* The counts that a data type goes with. */
static int alloc_counts_validate(const struct alloc *a, struct fault *fault)
{
	unsigned type = alloc_data_type(a, a->data_type);

	if (type != a->data_type || type >= DATA_NR_1_4)
		return fault_set(fault, ERROR_alloc_key_data_type_bad, "data type of bucket", data_type_name(type),
				 "%s (%u)", data_type_name(a->data_type), a->data_type);
	switch (a->data_type) {
	case DATA_FREE:
	case DATA_NEED_GC_GENS:
	case DATA_NEED_DISCARD:
		if (a->dirty_sectors || a->cached_sectors || a->stripe)
			return fault_set(fault, ERROR_alloc_key_empty_but_have_data, "empty bucket", "no data",
					 "dirty %u, cached %u, stripe %u", a->dirty_sectors, a->cached_sectors,
					 a->stripe);
		break;
	case DATA_SB:
	case DATA_JOURNAL:
	case DATA_BTREE:
	case DATA_USER:
	case DATA_PARITY:
		if (!a->dirty_sectors)
			return fault_set(fault, ERROR_alloc_key_dirty_sectors_0, "dirty sectors of bucket in use",
					 "not 0", "0");
		break;
	case DATA_CACHED:
		if (!a->cached_sectors || a->dirty_sectors || a->stripe)
			return fault_set(fault, ERROR_alloc_key_cached_inconsistency, "cached bucket",
					 "cached sectors only", "dirty %u, cached %u, stripe %u", a->dirty_sectors,
					 a->cached_sectors, a->stripe);
		break;
	}
	return 0;
}

int alloc_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	struct alloc a;
	int err;

	if (k.k.type == KEY_ALLOC || k.k.type == KEY_ALLOC_V2)
		return 0;
	if ((err = alloc_decode(k, &a, fault)))
		return err;
	if (k.k.type == KEY_ALLOC_V4 && (err = alloc_v4_size_validate(k, a.flags, fault)))
		return err;
	/* Newer versions count differently, and a reader needs nothing but `gen`. */
	return ctx->is_newer || k.k.type != KEY_ALLOC_V4 ? 0 : alloc_counts_validate(&a, fault);
}

void alloc_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	bool has_empty_seq = key_context_layout_version(ctx) >= VERSION(1, 14);
	struct alloc a;

	if (alloc_decode(k, &a, NULL)) {
		strbuf_add(out, "(obsolete or invalid)");
		return;
	}
	strbuf_printf(out, "\n  gen %u oldest_gen %u data_type %s\n", a.gen, a.oldest_gen, data_type_name(a.data_type));
	strbuf_printf(out, "  journal_seq       %" PRIu64 "\n", a.journal_seq);
	if (has_empty_seq)
		strbuf_printf(out, "  journal_seq_empty %" PRIu64 "\n", a.fragmentation_lru);
	strbuf_printf(out, "  need_discard      %u\n", (a.flags & ALLOC_NEED_DISCARD) != 0);
	strbuf_printf(out, "  need_inc_gen      %u\n", (a.flags & ALLOC_NEED_INC_GEN) != 0);
	strbuf_printf(out, "  dirty_sectors     %u\n", a.dirty_sectors);
	if (ctx->is_newer)
		strbuf_printf(out, "  stripe_sectors    %u\n", a.stripe_sectors);
	strbuf_printf(out, "  cached_sectors    %u\n", a.cached_sectors);
	strbuf_printf(out, "  stripe            %u\n", a.stripe);
	strbuf_printf(out, "  stripe_redundancy %u\n", a.stripe_redundancy);
	strbuf_printf(out, "  io_time[READ]     %" PRIu64 "\n", a.io_time[0]);
	strbuf_printf(out, "  io_time[WRITE]    %" PRIu64 "\n", a.io_time[1]);
	if (!has_empty_seq)
		strbuf_printf(out, "  fragmentation     %" PRIu64 "\n", a.fragmentation_lru);
	strbuf_printf(out, "  bp_start          %u\n", (unsigned)bits_get(a.flags, 2, 8));
}

void bucket_gens_decode(struct bkey_ref k, uint8_t gens[BUCKET_GENS_PER_KEY])
{
	value_load(gens, BUCKET_GENS_PER_KEY, k);
}

int bucket_gens_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	if (bkey_value_bytes(&k.k) != BUCKET_GENS_PER_KEY)
		return fault_set(fault, ERROR_bucket_gens_val_size_bad, "value", "256 bytes", "%zu",
				 bkey_value_bytes(&k.k));
	return 0;
}

void bucket_gens_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	uint8_t gens[BUCKET_GENS_PER_KEY];

	bucket_gens_decode(k, gens);
	for (unsigned i = 0; i < BUCKET_GENS_PER_KEY; i++)
		strbuf_printf(out, "%s%u", i ? " " : "", gens[i]);
}
