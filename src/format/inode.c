/*
 * Inodes (04 §1, 12 §7.1): a fixed part, and behind it a list of variable-length fields in a fixed order, of which the
 * first NR_FIELDS are stored. A field that isn't there is 0, so new fields at the end cost old inodes nothing.
 *
 * Three generations of the fixed part exist. What differs between their fields is in one table, field_table.
 */
#include "format/inode.h"

#include <inttypes.h>
#include <sys/stat.h>

#include "format/error_ids.h"
#include "format/extent.h"
#include "format/str_hash.h"
#include "format/value.h"
#include "format/varint.h"

struct inode_v3_disk {
	le64 journal_seq;
	le64 hash_seed;
	le64 flags; /* [0,20) flags, [20,24) hash, [24,31) fields, [31,36) start of fields, [36,52) mode */
	le64 sectors;
	le64 size;
	le64 version;
};
_Static_assert(sizeof(struct inode_v3_disk) == 48, "fixed part of inode_v3 is 48 bytes");

struct inode_v2_disk {
	le64 journal_seq;
	le64 hash_seed;
	le64 flags;
	le16 mode;
};
_Static_assert(sizeof(struct inode_v2_disk) == 26, "fixed part of inode_v2 is 26 bytes");

struct inode_v1_disk {
	le64 hash_seed;
	le32 flags; /* as above; 31: fields are varints as we know them */
	le16 mode;
};
_Static_assert(sizeof(struct inode_v1_disk) == 14, "fixed part of inode is 14 bytes");

struct inode_generation_disk {
	le32 generation;
	le32 pad;
};

enum { INODE_V3_FIELDS_START_U64S = 6 };

/* Which generations have a field, in this place. */
enum { IN_V3 = 1, IN_OLD = 2, IN_ALL = IN_V3 | IN_OLD };

/* A variable-length field: where it goes in struct inode, and how wide it may be. */
struct inode_field {
	const char *name;
	uint8_t in;
	uint8_t bits;
	bool is_pair;  /* low 64 bits and a high part, which must be 0 */
	bool is_newer; /* not at 1.4 */
	uint8_t member_bytes;
	uint16_t member_offset;
};

/* clang-format off */
#define FIELD_IN(f)	sizeof(((struct inode *)0)->f), offsetof(struct inode, f)
#define FIELD_TIME(f)	{ "bi_" #f, IN_ALL, 64, true, false, FIELD_IN(f) }
#define FIELD(f, in, bits, newer) { "bi_" #f, in, bits, false, newer, FIELD_IN(f) }
#define FIELD_OPT(f, in, bits, opt, newer) { "bi_" #f, in, bits, false, newer, FIELD_IN(opts[opt]) }
/* clang-format on */

static const struct inode_field field_table[] = {
	FIELD_TIME(atime),
	FIELD_TIME(ctime),
	FIELD_TIME(mtime),
	FIELD_TIME(otime),
	FIELD(size, IN_OLD, 64, false),
	FIELD(sectors, IN_OLD, 64, false),
	FIELD(uid, IN_ALL, 32, false),
	FIELD(gid, IN_ALL, 32, false),
	FIELD(nlink, IN_ALL, 32, false),
	FIELD(generation, IN_ALL, 32, false),
	FIELD(dev, IN_ALL, 32, false),
	FIELD_OPT(data_checksum, IN_ALL, 8, INODE_OPT_DATA_CHECKSUM, false),
	FIELD_OPT(compression, IN_ALL, 8, INODE_OPT_COMPRESSION, false),
	FIELD_OPT(project, IN_ALL, 32, INODE_OPT_PROJECT, false),
	FIELD_OPT(background_compression, IN_ALL, 8, INODE_OPT_BACKGROUND_COMPRESSION, false),
	FIELD_OPT(data_replicas, IN_ALL, 8, INODE_OPT_DATA_REPLICAS, false),
	FIELD_OPT(promote_target, IN_ALL, 16, INODE_OPT_PROMOTE_TARGET, false),
	FIELD_OPT(foreground_target, IN_ALL, 16, INODE_OPT_FOREGROUND_TARGET, false),
	FIELD_OPT(background_target, IN_ALL, 16, INODE_OPT_BACKGROUND_TARGET, false),
	FIELD_OPT(erasure_code, IN_ALL, 16, INODE_OPT_ERASURE_CODE, false),
	FIELD(fields_set, IN_ALL, 16, false),
	FIELD(dir, IN_ALL, 64, false),
	FIELD(dir_offset, IN_ALL, 64, false),
	FIELD(subvol, IN_ALL, 32, false),
	FIELD(parent_subvol, IN_ALL, 32, false),
	FIELD_OPT(nocow, IN_V3, 8, INODE_OPT_NOCOW, false),
	FIELD(depth, IN_V3, 32, true),
	FIELD_OPT(inodes_32bit, IN_V3, 8, INODE_OPT_INODES_32BIT, true),
	FIELD_OPT(casefold, IN_V3, 8, INODE_OPT_CASEFOLD, true),
};

static void field_set(struct inode *inode, const struct inode_field *f, uint64_t v)
{
	uint8_t *p = (uint8_t *)inode + f->member_offset;

	switch (f->member_bytes) {
	case 2: memcpy(p, &(uint16_t){ (uint16_t)v }, 2); break;
	case 4: memcpy(p, &(uint32_t){ (uint32_t)v }, 4); break;
	case 8: memcpy(p, &v, 8); break;
	}
}

static uint64_t field_get(const struct inode *inode, const struct inode_field *f)
{
	const uint8_t *p = (const uint8_t *)inode + f->member_offset;
	uint16_t v16;
	uint32_t v32;
	uint64_t v64;

	switch (f->member_bytes) {
	case 2: memcpy(&v16, p, 2); return v16;
	case 4: memcpy(&v32, p, 4); return v32;
	}
	memcpy(&v64, p, 8);
	return v64;
}

/* Decode the first @nr fields of generation @in from @p. */
static int fields_unpack(struct inode *inode, unsigned in, unsigned nr, const uint8_t *p, const uint8_t *end,
			 struct fault *fault)
{
	for (size_t i = 0; i < ARRAY_NR(field_table) && nr; i++) {
		const struct inode_field *f = &field_table[i];
		uint64_t v = 0, high = 0;

		if (!(f->in & in))
			continue;
		nr--;

		int len = varint_decode(p, (size_t)(end - p), &v);
		if (len > 0 && f->is_pair) {
			p += len;
			len = varint_decode(p, (size_t)(end - p), &high);
		}
		if (len <= 0)
			return fault_set(fault, ERROR_inode_unpack_error, f->name, "an end inside of the value",
					 "past it");
		p += len;
		if (high || (f->bits < 64 && v >> f->bits))
			return fault_set(fault, ERROR_inode_unpack_error, f->name,
					 f->bits == 64	 ? "at most 64 bits"
					 : f->bits == 32 ? "at most 32 bits"
					 : f->bits == 16 ? "at most 16 bits"
							 : "at most 8 bits",
					 "0x%" PRIx64 "%016" PRIx64, high, v);
		field_set(inode, f, v);
	}
	return 0;
}

static void flags_unpack(struct inode *inode, uint64_t word)
{
	inode->flags = (uint32_t)bits_get(word, 0, 20);
	inode->str_hash = (uint8_t)bits_get(word, 20, 24);
}

static unsigned flags_field_nr(uint64_t word) { return (unsigned)bits_get(word, 24, 31); }

static int inode_v3_unpack(struct bkey_ref k, struct inode *inode, struct fault *fault)
{
	const uint8_t *value = k.value;
	struct inode_v3_disk d;

	value_load(&d, sizeof(d), k);
	uint64_t word = le64_get(d.flags);
	unsigned start = (unsigned)bits_get(word, 31, 36);

	if (start != INODE_V3_FIELDS_START_U64S)
		return fault_set(fault, ERROR_inode_v3_fields_start_bad, "start of fields", "6 words", "%u", start);
	inode->journal_seq = le64_get(d.journal_seq);
	inode->hash_seed = le64_get(d.hash_seed);
	inode->sectors = le64_get(d.sectors);
	inode->size = le64_get(d.size);
	inode->version = le64_get(d.version);
	inode->mode = (uint16_t)bits_get(word, 36, 52);
	flags_unpack(inode, word);
	return fields_unpack(inode, IN_V3, flags_field_nr(word), value + sizeof(d), value + bkey_value_bytes(&k.k),
			     fault);
}

static int inode_v2_unpack(struct bkey_ref k, struct inode *inode, struct fault *fault)
{
	const uint8_t *value = k.value;
	struct inode_v2_disk d;

	value_load(&d, sizeof(d), k);
	uint64_t word = le64_get(d.flags);

	inode->journal_seq = le64_get(d.journal_seq);
	inode->hash_seed = le64_get(d.hash_seed);
	inode->mode = le16_get(d.mode);
	flags_unpack(inode, word);
	return fields_unpack(inode, IN_OLD, flags_field_nr(word), value + sizeof(d), value + bkey_value_bytes(&k.k),
			     fault);
}

static int inode_v1_unpack(struct bkey_ref k, struct inode *inode, struct fault *fault)
{
	const uint8_t *value = k.value;
	struct inode_v1_disk d;

	value_load(&d, sizeof(d), k);
	uint64_t word = le32_get(d.flags);

	if (!bits_get(word, 31, 32))
		return fault_set(fault, ERROR_inode_unpack_error, "number encoding of inode", "varints",
				 "the encoding of before 0.9, which can't be read");
	inode->hash_seed = le64_get(d.hash_seed);
	inode->mode = le16_get(d.mode);
	flags_unpack(inode, word);
	return fields_unpack(inode, IN_OLD, flags_field_nr(word), value + sizeof(d), value + bkey_value_bytes(&k.k),
			     fault);
}

int inode_unpack(struct bkey_ref k, struct inode *inode, struct fault *fault)
{
	static const struct {
		uint8_t type, value_bytes_min;
		int (*unpack)(struct bkey_ref k, struct inode *inode, struct fault *fault);
	} forms[] = {
		{ KEY_INODE_V3, sizeof(struct inode_v3_disk), inode_v3_unpack },
		{ KEY_INODE_V2, sizeof(struct inode_v2_disk), inode_v2_unpack },
		{ KEY_INODE, sizeof(struct inode_v1_disk), inode_v1_unpack },
	};

	memset(inode, 0, sizeof(*inode));
	inode->inum = k.k.p.offset;
	inode->snapshot = k.k.p.snapshot;
	for (size_t i = 0; i < ARRAY_NR(forms); i++)
		if (k.k.type == forms[i].type) {
			if (bkey_value_bytes(&k.k) < forms[i].value_bytes_min)
				return fault_set(fault, ERROR_inode_unpack_error, "value", "room for the fixed part",
						 "%zu bytes", bkey_value_bytes(&k.k));
			return forms[i].unpack(k, inode, fault);
		}
	return fault_set(fault, ERROR_inode_unpack_error, "key type", "an inode", "%u", k.k.type);
}

size_t inode_pack(const struct inode *inode, uint8_t value[INODE_V3_BYTES_MAX])
{
	unsigned in_v3 = 0, nr = 0, emitted = 0;
	size_t len = sizeof(struct inode_v3_disk);

	for (size_t i = 0; i < ARRAY_NR(field_table); i++)
		if (field_table[i].in & IN_V3) {
			in_v3++;
			if (field_get(inode, &field_table[i]))
				nr = in_v3;
		}
	for (size_t i = 0; i < ARRAY_NR(field_table) && emitted < nr; i++) {
		const struct inode_field *f = &field_table[i];

		if (!(f->in & IN_V3))
			continue;
		emitted++;
		len += varint_encode(value + len, field_get(inode, f));
		if (f->is_pair)
			len += varint_encode(value + len, 0);
	}

	uint64_t word = bits_set(0, 0, 20, inode->flags);
	word = bits_set(word, 20, 24, inode->str_hash);
	word = bits_set(word, 24, 31, nr);
	word = bits_set(word, 31, 36, INODE_V3_FIELDS_START_U64S);
	word = bits_set(word, 36, 52, inode->mode);

	struct inode_v3_disk d = {
		.journal_seq = le64_of(inode->journal_seq),
		.hash_seed = le64_of(inode->hash_seed),
		.flags = le64_of(word),
		.sectors = le64_of(inode->sectors),
		.size = le64_of(inode->size),
		.version = le64_of(inode->version),
	};
	size_t bytes = round_up_u64(len, 8);

	memcpy(value, &d, sizeof(d));
	memset(value + len, 0, bytes - len);
	return bytes;
}

uint32_t inode_nlink(const struct inode *inode)
{
	uint32_t bias = S_ISDIR(inode->mode) ? 2 : 1;

	if (inode->flags & INODE_UNLINKED)
		return 0;
	return inode->nlink > UINT32_MAX - bias ? UINT32_MAX : inode->nlink + bias;
}

void inode_dev(const struct inode *inode, uint32_t *major, uint32_t *minor)
{
	uint32_t dev = inode->dev;

	/*
	 * The kernel's form has the major from bit 20 on: below 2^20 it would be 0, which no device node has. And where
	 * bits 16 to 19 are set it would mean a minor above 65535, the user-space form a major above 255, like the 259
	 * of NVMe partitions: the latter is far likelier.
	 */
	bool is_user_form = dev < 1u << 20 || dev & 0xf0000;

	if (is_user_form) {
		*major = dev >> 8 & 0xfff;
		*minor = (dev & 0xff) | (dev >> 12 & ~0xffu);
	} else {
		*major = dev >> 20;
		*minor = dev & 0xfffff;
	}
}

enum { NSEC_PER_SEC = 1000000000 };

/* The unit of times. Validated with the superblock; kept in range here so that nothing can divide by 0. */
static uint32_t time_unit_ns(const struct key_context *ctx)
{
	return min(max(ctx->time_precision_ns, 1u), (uint32_t)NSEC_PER_SEC);
}

struct inode_time inode_time_decode(const struct key_context *ctx, uint64_t t)
{
	uint32_t unit = time_unit_ns(ctx);
	int64_t per_sec = NSEC_PER_SEC / unit;
	int64_t x = (int64_t)(t + ctx->time_base_ns / unit);
	int64_t sec = x / per_sec, rest = x % per_sec;

	if (rest < 0) {
		sec--;
		rest += per_sec;
	}
	return (struct inode_time){ .sec = sec, .nsec = (uint32_t)(rest * unit) };
}

uint64_t inode_time_encode(const struct key_context *ctx, struct inode_time t)
{
	uint32_t unit = time_unit_ns(ctx);
	int64_t x;

	if (__builtin_mul_overflow(t.sec, (int64_t)(NSEC_PER_SEC / unit), &x) ||
	    __builtin_add_overflow(x, (int64_t)(t.nsec / unit), &x))
		x = t.sec < 0 ? INT64_MIN : INT64_MAX;
	return (uint64_t)x - ctx->time_base_ns / unit;
}

/* Rules of option fields. Above 1.4 they don't apply: an option from the future must not cost the file. */
static int options_validate(const struct inode *inode, struct fault *fault)
{
	static const enum inode_opt compression_opts[] = { INODE_OPT_COMPRESSION, INODE_OPT_BACKGROUND_COMPRESSION };

	if (inode->opts[INODE_OPT_DATA_CHECKSUM] >= 5)
		return fault_set(fault, ERROR_inode_checksum_type_invalid, "bi_data_checksum", "less than 5", "%u",
				 inode->opts[INODE_OPT_DATA_CHECKSUM]);
	for (size_t i = 0; i < ARRAY_NR(compression_opts); i++) {
		uint32_t v = inode->opts[compression_opts[i]];

		if (v && !compression_option_is_valid(v - 1))
			return fault_set(fault, ERROR_inode_compression_type_invalid, "compression option of inode",
					 "algorithm 0 to 3, level only with one", "0x%02x", v - 1);
	}
	return 0;
}

int inode_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	struct inode inode;
	int err;

	if (k.k.p.inode)
		return fault_set(fault, ERROR_inode_pos_inode_nonzero, "inode field of position", "0", "%" PRIu64,
				 k.k.p.inode);
	if (k.k.p.offset < INODE_NR_FIRST)
		return fault_set(fault, ERROR_inode_pos_blockdev_range, "inode number", "at least 4096", "%" PRIu64,
				 k.k.p.offset);
	if ((err = inode_unpack(k, &inode, fault)))
		return err;
	if (inode.str_hash >= STR_HASH_NR)
		return fault_set(fault, ERROR_inode_str_hash_invalid, "hash type", "less than 4", "%u", inode.str_hash);
	if (!ctx->is_newer && (err = options_validate(&inode, fault)))
		return err;
	if ((inode.flags & INODE_UNLINKED) && inode.nlink)
		return fault_set(fault, ERROR_inode_unlinked_but_nlink_nonzero, "bi_nlink of unlinked inode", "0", "%u",
				 inode.nlink);
	if (inode.subvol && !S_ISDIR(inode.mode))
		return fault_set(fault, ERROR_inode_subvol_root_but_not_dir, "mode of subvolume root", "a directory",
				 "%o", inode.mode);
	return 0;
}

static void flags_to_text(struct strbuf *out, uint32_t flags)
{
	static const char *const names[] = {
		"sync",
		"immutable",
		"append",
		"nodump",
		"noatime",
		"i_size_dirty",
		"i_sectors_dirty",
		"unlinked",
		"backptr_untrusted",
		"has_child_snapshot",
		"has_case_insensitive",
		"31bit_dirent_offset",
		"has_inode_opts",
		"has_access_acl",
		"has_default_acl",
	};
	const char *separator = "";

	for (unsigned i = 0; i < ARRAY_NR(names); i++)
		if (flags & 1u << i) {
			strbuf_printf(out, "%s%s", separator, names[i]);
			separator = ",";
		}
}

void inode_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	struct fault fault;
	struct inode inode;

	if (inode_unpack(k, &inode, &fault)) {
		strbuf_printf(out, "(invalid %s: %s)", fault.field, fault.found);
		return;
	}

	/* The low half of the flags word as it stands on disk, which older forms have elsewhere. */
	size_t word_at =
		k.k.type == KEY_INODE ? offsetof(struct inode_v1_disk, flags) : offsetof(struct inode_v3_disk, flags);
	uint32_t word = le32_load((const uint8_t *)k.value + word_at);

	strbuf_printf(out, "mode=%o flags=", inode.mode);
	flags_to_text(out, inode.flags);
	strbuf_printf(out,
		      " (%x) journal_seq=%" PRIu64 " bi_size=%" PRIu64 " bi_sectors=%" PRIu64 " bi_version=%" PRIu64,
		      word, inode.journal_seq, inode.size, inode.sectors, inode.version);
	for (size_t i = 0; i < ARRAY_NR(field_table); i++)
		if ((field_table[i].in & IN_V3) && (ctx->is_newer || !field_table[i].is_newer))
			strbuf_printf(out, " %s=%" PRIu64, field_table[i].name, field_get(&inode, &field_table[i]));
}

int inode_generation_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	if (k.k.p.inode)
		return fault_set(fault, ERROR_inode_pos_inode_nonzero, "inode field of position", "0", "%" PRIu64,
				 k.k.p.inode);
	return 0;
}

uint32_t inode_generation_decode(struct bkey_ref k)
{
	struct inode_generation_disk d;

	value_load(&d, sizeof(d), k);
	return le32_get(d.generation);
}

void inode_generation_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	strbuf_printf(out, "generation: %u", inode_generation_decode(k));
}
