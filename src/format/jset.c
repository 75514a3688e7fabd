/*
 * Journal entries: checksum and encryption, walks over sub-entries and their keys, validation, text.
 *
 * An entry is a header and an area that sub-entries tile. What there is to say about a type of sub-entry is in one row
 * of a table: its name, whether its payload is keys, its rules, its text.
 *
 * Lengths are the danger here, as each is found in the bytes it speaks of. The walks check every length against what
 * is left before they move, and after a length that can't be right they are at their end, so a caller's loop ends
 * whatever the bytes are.
 */
#include "format/jset.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/mutant.h"
#include "base/strbuf.h"
#include "base/util.h"
#include "format/alloc.h"
#include "format/error_ids.h"

static const uint64_t magic = 0x245235c1a3625032;

uint64_t jset_magic(const uint8_t uuid[16]) { return le64_load(uuid) ^ magic; }

/* --- the entry as a whole --- */

static struct nonce jset_nonce(const struct jset_disk *j) { return nonce_journal(le64_get(j->seq)); }

/* What is encrypted, and what the checksum is over; both go to the end. */
enum { CRYPT_START = offsetof(struct jset_disk, read_clock), CHECKSUM_START = offsetof(struct jset_disk, magic) };

static size_t bytes_from(const struct jset_disk *j, size_t start) { return (size_t)jset_bytes(j) - start; }

int jset_verify(struct jset_disk *j, const struct crypt_key *key, struct fault *fault)
{
	unsigned type = jset_csum_type(j);

	if (type >= CHECKSUM_TYPE_NR || (checksum_is_mac(type) && !key)) {
		fault_set(fault, ERROR_jset_unknown_csum, "checksum type", key ? "0 to 7" : "one that needs no key",
			  "%u", type);
		return -KILN_E_CHECKSUM;
	}

	struct checksum stored = checksum_load(j->csum);
	struct checksum computed = checksum_compute(type, key, jset_nonce(j), (const uint8_t *)j + CHECKSUM_START,
						    bytes_from(j, CHECKSUM_START));
	if (!checksum_eq(stored, computed) && !is_mutant(MUTANT_JOURNAL_CHECKSUM)) {
		char text[64];

		snprintf(text, sizeof(text), "%s %016" PRIx64 "%016" PRIx64, checksum_name(type), computed.hi,
			 computed.lo);
		fault_set(fault, 0, "checksum", text, "%016" PRIx64 "%016" PRIx64, stored.hi, stored.lo);
		return -KILN_E_CHECKSUM;
	}
	if (jset_is_big_endian(j)) {
		fault_set(fault, ERROR_jset_unsupported_version, "byte order", "little-endian", "big-endian");
		return -KILN_E_UNSUPPORTED;
	}
	if (checksum_is_mac(type))
		crypt_xor(key, jset_nonce(j), (uint8_t *)j + CRYPT_START, bytes_from(j, CRYPT_START));
	return 0;
}

void jset_seal(struct jset_disk *j, unsigned csum_type, const struct crypt_key *key)
{
	j->flags = le32_of((uint32_t)bits_set(le32_get(j->flags), 0, 4, csum_type));
	const uint8_t *covered = (const uint8_t *)j + CHECKSUM_START;
	struct checksum csum;

	if (checksum_is_mac(csum_type)) {
		uint8_t *text = (uint8_t *)j + CRYPT_START;

		crypt_encrypt(key, jset_nonce(j), text, text, bytes_from(j, CRYPT_START));
		csum = crypt_mac(csum_type, key, jset_nonce(j), covered, bytes_from(j, CHECKSUM_START));
	} else {
		csum = checksum_compute(csum_type, key, jset_nonce(j), covered, bytes_from(j, CHECKSUM_START));
	}
	checksum_store(j->csum, csum);
}

/* --- walks --- */

int jset_walk_next(struct jset_walk *w, const struct jset_entry_disk **entry, struct fault *fault)
{
	size_t left = (size_t)(w->end - w->pos);

	if (!left)
		return 0;

	const struct jset_entry_disk *e = (const struct jset_entry_disk *)w->pos;
	size_t bytes = left < sizeof(*e) ? sizeof(*e) : sizeof(*e) + jset_entry_payload_bytes(e);
	if (bytes > left) {
		w->pos = w->end;
		return fault_set(fault, ERROR_journal_entry_past_jset_end, "sub-entry, u64s", "within the entry",
				 "%zu bytes, %zu are left", bytes, left);
	}
	w->pos += bytes;
	*entry = e;
	return 1;
}

static bool entry_has_keys(unsigned type);

struct jset_key_walk jset_key_walk_of(const struct jset_entry_disk *e)
{
	const uint8_t *p = jset_entry_payload(e);

	return (struct jset_key_walk){ p, entry_has_keys(e->type) ? p + jset_entry_payload_bytes(e) : p };
}

int jset_key_walk_next(struct jset_key_walk *w, struct bkey_ref *k, struct fault *fault)
{
	const struct bkey_disk *d = (const struct bkey_disk *)w->pos;
	size_t left_u64s = (size_t)(w->end - w->pos) / 8;

	if (!left_u64s)
		return 0;
	if (!d->u64s || d->u64s > left_u64s) {
		unsigned id = d->u64s ? ERROR_journal_entry_bkey_past_end : ERROR_journal_entry_bkey_u64s_0;

		w->pos = w->end;
		return fault_set(fault, id, "key, u64s", "within the sub-entry", "%u words, %zu are left", d->u64s,
				 left_u64s);
	}
	w->pos += d->u64s * 8;
	/* Two bytes at least are there, as a word is. */
	if ((d->format & 0x7f) != BKEY_FORMAT_UNPACKED)
		return fault_set(fault, ERROR_journal_entry_bkey_bad_format, "key, format", "1", "%u",
				 d->format & 0x7f);
	if (d->u64s < BKEY_U64S)
		return fault_set(fault, ERROR_bkey_u64s_too_small, "key, u64s", "at least 5", "%u", d->u64s);
	*k = (struct bkey_ref){ .k = bkey_load(d), .value = d + 1 };
	return 1;
}

/* --- counters --- */

struct data_usage_disk {
	le64 sectors;
	uint8_t data_type, nr_devs, nr_required;
};
_Static_assert(sizeof(struct data_usage_disk) == 11, "data usage is 11 bytes, then devices");

struct dev_usage_disk {
	le32 dev;
	le32 pad;
	le64 unused[2];
};
_Static_assert(sizeof(struct dev_usage_disk) == 24, "device usage is 24 bytes, then types");

struct dev_usage_type_disk {
	le64 buckets, sectors, fragmented;
};

int jset_data_usage_decode(const struct jset_entry_disk *e, struct jset_data_usage *u, struct fault *fault)
{
	const struct data_usage_disk *d = (const struct data_usage_disk *)jset_entry_payload(e);
	size_t bytes = jset_entry_payload_bytes(e);

	*u = (struct jset_data_usage){ 0 };
	if (bytes < sizeof(*d) || bytes < sizeof(*d) + d->nr_devs)
		return fault_set(fault, ERROR_journal_entry_data_usage_bad_size, "data_usage, size",
				 "11 bytes and one per device", "%zu bytes", bytes);
	*u = (struct jset_data_usage){
		.sectors = le64_get(d->sectors),
		.data_type = d->data_type,
		.nr_devs = d->nr_devs,
		.nr_required = d->nr_required,
		.devs = (const uint8_t *)(d + 1),
	};
	return 0;
}

int jset_dev_usage_decode(const struct jset_entry_disk *e, struct jset_dev_usage *u, struct fault *fault)
{
	const struct dev_usage_disk *d = (const struct dev_usage_disk *)jset_entry_payload(e);
	const struct dev_usage_type_disk *types = (const struct dev_usage_type_disk *)(d + 1);
	size_t bytes = jset_entry_payload_bytes(e);

	*u = (struct jset_dev_usage){ 0 };
	if (bytes < sizeof(*d))
		return fault_set(fault, ERROR_journal_entry_dev_usage_bad_size, "dev_usage, size", "at least 24 bytes",
				 "%zu bytes", bytes);
	u->dev = le32_get(d->dev);
	u->type_nr = (unsigned)min((bytes - sizeof(*d)) / sizeof(*types), ARRAY_NR(u->types));
	for (unsigned i = 0; i < u->type_nr; i++) {
		u->types[i].buckets = le64_get(types[i].buckets);
		u->types[i].sectors = le64_get(types[i].sectors);
		u->types[i].fragmented = le64_get(types[i].fragmented);
	}
	return 0;
}

/* --- rules --- */

static bool device_exists(const struct key_context *ctx, uint32_t dev)
{
	return dev < ctx->member_nr && ctx->members[dev].exists;
}

static int check_u64s(const struct jset_entry_disk *e, bool is_good, uint32_t id, const char *expected,
		      struct fault *fault)
{
	if (is_good)
		return 0;
	return fault_set(fault, id, "sub-entry, u64s", expected, "%u", le16_get(e->u64s));
}

static int keys_validate(const struct jset_entry_disk *e, const struct key_context *ctx, struct fault *fault)
{
	if (le16_get(e->u64s) && e->level > BTREE_LEVEL_MAX)
		return fault_set(fault, ERROR_journal_entry_bkey_invalid, "sub-entry, level", "0 to 3", "%u", e->level);
	return 0;
}

static int btree_root_validate(const struct jset_entry_disk *e, const struct key_context *ctx, struct fault *fault)
{
	uint32_t id = ERROR_journal_entry_btree_root_bad_size;

	if (e->btree_id >= BTREE_NR_MAX)
		return 0;
	if (!le16_get(e->u64s) || jset_entry_payload(e)[0] != le16_get(e->u64s))
		return fault_set(fault, id, "btree_root, keys", "exactly one", "%u words", le16_get(e->u64s));
	if (e->level > BTREE_LEVEL_MAX)
		return fault_set(fault, id, "btree_root, level", "0 to 3", "%u", e->level);
	return 0;
}

static int blacklist_validate(const struct jset_entry_disk *e, const struct key_context *ctx, struct fault *fault)
{
	return check_u64s(e, le16_get(e->u64s) == 1, ERROR_journal_entry_blacklist_bad_size, "1", fault);
}

static int blacklist_v2_validate(const struct jset_entry_disk *e, const struct key_context *ctx, struct fault *fault)
{
	const uint8_t *p = jset_entry_payload(e);

	if (le16_get(e->u64s) != 2)
		return check_u64s(e, false, ERROR_journal_entry_blacklist_v2_bad_size, "2", fault);
	if (le64_load(p) > le64_load(p + 8))
		return fault_set(fault, ERROR_journal_entry_blacklist_v2_start_past_end, "blacklist_v2, start",
				 "at most the end", "%" PRIu64 " to %" PRIu64, le64_load(p), le64_load(p + 8));
	return 0;
}

static int usage_validate(const struct jset_entry_disk *e, const struct key_context *ctx, struct fault *fault)
{
	return check_u64s(e, le16_get(e->u64s) >= 1, ERROR_journal_entry_usage_bad_size, "at least 1", fault);
}

static int data_usage_validate(const struct jset_entry_disk *e, const struct key_context *ctx, struct fault *fault)
{
	uint32_t id = ERROR_journal_entry_data_usage_bad_size;
	struct jset_data_usage u;
	int err = jset_data_usage_decode(e, &u, fault);

	if (err)
		return err;
	if (!u.nr_devs)
		return fault_set(fault, id, "data_usage, devices", "at least 1", "0");
	if (u.nr_required > 1 && u.nr_required >= u.nr_devs)
		return fault_set(fault, id, "data_usage, required", "1, or fewer than there are devices", "%u of %u",
				 u.nr_required, u.nr_devs);
	if (ctx->is_newer)
		return 0; /* devices that have been removed may still be named */
	for (unsigned i = 0; i < u.nr_devs; i++)
		if (!device_exists(ctx, u.devs[i]))
			return fault_set(fault, id, "data_usage, device", "one that exists", "%u", u.devs[i]);
	return 0;
}

static int clock_validate(const struct jset_entry_disk *e, const struct key_context *ctx, struct fault *fault)
{
	const uint8_t *p = jset_entry_payload(e);

	if (le16_get(e->u64s) != 2)
		return check_u64s(e, false, ERROR_journal_entry_clock_bad_size, "2", fault);
	if (p[0] > 1)
		return fault_set(fault, ERROR_journal_entry_clock_bad_rw, "clock, rw", "0 or 1", "%u", p[0]);
	return 0;
}

static int dev_usage_validate(const struct jset_entry_disk *e, const struct key_context *ctx, struct fault *fault)
{
	const struct dev_usage_disk *d = (const struct dev_usage_disk *)jset_entry_payload(e);
	struct jset_dev_usage u;
	int err = jset_dev_usage_decode(e, &u, fault);

	if (err)
		return err;
	if (!device_exists(ctx, u.dev))
		return fault_set(fault, ERROR_journal_entry_dev_usage_bad_dev, "dev_usage, device", "one that exists",
				 "%" PRIu32, u.dev);
	if (le32_get(d->pad))
		return fault_set(fault, ERROR_journal_entry_dev_usage_bad_pad, "dev_usage, pad", "0", "%" PRIu32,
				 le32_get(d->pad));
	return 0;
}

static int rewind_validate(const struct jset_entry_disk *e, const struct key_context *ctx, struct fault *fault)
{
	return check_u64s(e, le16_get(e->u64s) >= 2, ERROR_journal_entry_rewind_bad_size, "at least 2", fault);
}

/* --- text: each function is given at least the words that its row of the table says, of any content --- */

static void btree_to_text(struct strbuf *out, unsigned id)
{
	if (btree_name(id))
		strbuf_add(out, btree_name(id));
	else
		strbuf_printf(out, "%u", id);
}

static void data_type_to_text(struct strbuf *out, unsigned type)
{
	if (data_type_name(type))
		strbuf_add(out, data_type_name(type));
	else
		strbuf_printf(out, "%u", type);
}

static void key_place_to_text(struct strbuf *out, const struct jset_entry_disk *e)
{
	strbuf_printf(out, "%s: btree=", jset_entry_type_name(e->type));
	btree_to_text(out, e->btree_id);
	strbuf_printf(out, " l=%u ", e->level);
}

static void keys_to_text(struct strbuf *out, const struct jset_entry_disk *e, const struct key_context *ctx)
{
	struct jset_key_walk w = jset_key_walk_of(e);
	struct bkey_ref k;
	struct fault fault;
	const char *separator = "";
	int more;

	while ((more = jset_key_walk_next(&w, &k, &fault))) {
		strbuf_add(out, separator);
		key_place_to_text(out, e);
		separator = "\n";
		if (more > 0 && !key_validate_value(k, ctx, &fault)) {
			key_to_text(out, k, ctx);
			continue;
		}
		if (more > 0) {
			bkey_to_text(out, &k.k);
			strbuf_add_char(out, ' ');
		}
		strbuf_printf(out, "(bad key: %s %s)", fault.field, fault.found);
	}
}

static void btree_root_to_text(struct strbuf *out, const struct jset_entry_disk *e, const struct key_context *ctx)
{
	keys_to_text(out, e, ctx);
	if (!le16_get(e->u64s)) {
		key_place_to_text(out, e);
		strbuf_add(out, "(no key)");
	}
}

static void blacklist_to_text(struct strbuf *out, const struct jset_entry_disk *e, const struct key_context *ctx)
{
	strbuf_printf(out, "blacklist: seq=%" PRIu64, le64_load(jset_entry_payload(e)));
}

static void blacklist_v2_to_text(struct strbuf *out, const struct jset_entry_disk *e, const struct key_context *ctx)
{
	const uint8_t *p = jset_entry_payload(e);

	strbuf_printf(out, "blacklist_v2: start=%" PRIu64 " end=%" PRIu64, le64_load(p), le64_load(p + 8));
}

static void usage_to_text(struct strbuf *out, const struct jset_entry_disk *e, const struct key_context *ctx)
{
	static const char *const kinds[] = { "reserved", "inodes", "key_version" };

	strbuf_add(out, "usage: type=");
	if (e->btree_id < ARRAY_NR(kinds))
		strbuf_add(out, kinds[e->btree_id]);
	else
		strbuf_printf(out, "%u", e->btree_id);
	strbuf_printf(out, " v=%" PRIu64, le64_load(jset_entry_payload(e)));
}

static void data_usage_to_text(struct strbuf *out, const struct jset_entry_disk *e, const struct key_context *ctx)
{
	struct jset_data_usage u;

	if (jset_data_usage_decode(e, &u, NULL))
		return;
	strbuf_add(out, "data_usage: ");
	data_type_to_text(out, u.data_type);
	strbuf_printf(out, ": %u/%u [", u.nr_required, u.nr_devs);
	for (unsigned i = 0; i < u.nr_devs; i++)
		strbuf_printf(out, "%s%u", i ? " " : "", u.devs[i]);
	strbuf_printf(out, "]=%" PRIu64, u.sectors);
}

static void clock_to_text(struct strbuf *out, const struct jset_entry_disk *e, const struct key_context *ctx)
{
	const uint8_t *p = jset_entry_payload(e);

	strbuf_printf(out, "clock: %s=%" PRIu64, p[0] ? "write" : "read", le64_load(p + 8));
}

static void dev_usage_to_text(struct strbuf *out, const struct jset_entry_disk *e, const struct key_context *ctx)
{
	struct jset_dev_usage u;

	if (jset_dev_usage_decode(e, &u, NULL))
		return;
	strbuf_printf(out, "dev_usage: dev=%" PRIu32, u.dev);
	for (unsigned i = 0; i < u.type_nr; i++) {
		strbuf_add_char(out, ' ');
		data_type_to_text(out, i);
		strbuf_printf(out, ": buckets=%" PRIu64 " sectors=%" PRIu64 " fragmented=%" PRIu64, u.types[i].buckets,
			      u.types[i].sectors, u.types[i].fragmented);
	}
}

static void log_to_text(struct strbuf *out, const struct jset_entry_disk *e, const struct key_context *ctx)
{
	const char *text = (const char *)jset_entry_payload(e);

	strbuf_add(out, "log: ");
	strbuf_add_escaped(out, text, strnlen(text, jset_entry_payload_bytes(e)));
}

/* As ctime() would print it, of UTC. */
static void datetime_to_text(struct strbuf *out, const struct jset_entry_disk *e, const struct key_context *ctx)
{
	static const char days[] = "SunMonTueWedThuFriSat";
	static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
	time_t seconds = (time_t)le64_load(jset_entry_payload(e));
	struct tm t;

	if (!gmtime_r(&seconds, &t)) /* a year beyond what an int holds */
		strbuf_printf(out, "datetime: %" PRIu64, le64_load(jset_entry_payload(e)));
	else
		strbuf_printf(out, "datetime: %.3s %.3s %2d %02d:%02d:%02d %ld", days + t.tm_wday * 3,
			      months + t.tm_mon * 3, t.tm_mday, t.tm_hour, t.tm_min, t.tm_sec, t.tm_year + 1900L);
}

static void rewind_limit_to_text(struct strbuf *out, const struct jset_entry_disk *e, const struct key_context *ctx)
{
	strbuf_printf(out, "rewind_limit: seq %" PRIu64, le64_load(jset_entry_payload(e)));
}

static void rewind_to_text(struct strbuf *out, const struct jset_entry_disk *e, const struct key_context *ctx)
{
	const uint8_t *p = jset_entry_payload(e);

	strbuf_printf(out, "rewind: from %" PRIu64 " to %" PRIu64, le64_load(p), le64_load(p + 8));
}

/* --- the table --- */

/* clang-format off */
static const struct entry_type {
	const char *name;
	bool has_keys;
	uint8_t text_u64s_min;	/* words that to_text needs, where there are no rules */
	int (*validate)(const struct jset_entry_disk *e, const struct key_context *ctx, struct fault *fault);
	void (*to_text)(struct strbuf *out, const struct jset_entry_disk *e, const struct key_context *ctx);
} entry_types[JSET_ENTRY_NR_KNOWN] = {
	[JSET_ENTRY_BTREE_KEYS]		= { "btree_keys",	true,	0, keys_validate,		keys_to_text },
	[JSET_ENTRY_BTREE_ROOT]		= { "btree_root",	true,	0, btree_root_validate,		btree_root_to_text },
	[JSET_ENTRY_PRIO_PTRS]		= { "prio_ptrs",	false,	0, NULL,			NULL },
	[JSET_ENTRY_BLACKLIST]		= { "blacklist",	false,	1, blacklist_validate,		blacklist_to_text },
	[JSET_ENTRY_BLACKLIST_V2]	= { "blacklist_v2",	false,	2, blacklist_v2_validate,	blacklist_v2_to_text },
	[JSET_ENTRY_USAGE]		= { "usage",		false,	1, usage_validate,		usage_to_text },
	[JSET_ENTRY_DATA_USAGE]		= { "data_usage",	false,	2, data_usage_validate,		data_usage_to_text },
	[JSET_ENTRY_CLOCK]		= { "clock",		false,	2, clock_validate,		clock_to_text },
	[JSET_ENTRY_DEV_USAGE]		= { "dev_usage",	false,	3, dev_usage_validate,		dev_usage_to_text },
	[JSET_ENTRY_LOG]		= { "log",		false,	0, NULL,			log_to_text },
	[JSET_ENTRY_OVERWRITE]		= { "overwrite",	true,	0, keys_validate,		keys_to_text },
	[JSET_ENTRY_WRITE_BUFFER_KEYS]	= { "write_buffer_keys", true,	0, NULL,			keys_to_text },
	[JSET_ENTRY_DATETIME]		= { "datetime",		false,	1, NULL,			datetime_to_text },
	[JSET_ENTRY_LOG_BKEY]		= { "log_bkey",		true,	0, NULL,			keys_to_text },
	[JSET_ENTRY_REWIND_LIMIT]	= { "rewind_limit",	false,	1, NULL,			rewind_limit_to_text },
	[JSET_ENTRY_REWIND]		= { "rewind",		false,	2, rewind_validate,		rewind_to_text },
};
/* clang-format on */

static bool entry_has_keys(unsigned type) { return type < JSET_ENTRY_NR_KNOWN && entry_types[type].has_keys; }

const char *jset_entry_type_name(unsigned type) { return type < JSET_ENTRY_NR_KNOWN ? entry_types[type].name : NULL; }

int jset_entry_validate(const struct jset_entry_disk *e, const struct key_context *ctx, struct fault *fault)
{
	if (e->type >= JSET_ENTRY_NR_KNOWN || !entry_types[e->type].validate)
		return 0;
	return entry_types[e->type].validate(e, ctx, fault);
}

void jset_entry_to_text(struct strbuf *out, const struct jset_entry_disk *e, const struct key_context *ctx)
{
	const struct entry_type *type = e->type < JSET_ENTRY_NR_KNOWN ? &entry_types[e->type] : NULL;

	if (type && type->to_text && le16_get(e->u64s) >= type->text_u64s_min)
		type->to_text(out, e, ctx);
	else if (type)
		strbuf_printf(out, "%s: u64s=%u", type->name, le16_get(e->u64s));
	else
		strbuf_printf(out, "unknown type %u: u64s=%u", e->type, le16_get(e->u64s));
}
