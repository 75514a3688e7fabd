/*
 * Journal entries (jset) and their sub-entries (03 §2, §3); sub-entries also make up the superblock's clean section.
 */
#ifndef KILN_FORMAT_JSET_H
#define KILN_FORMAT_JSET_H

#include "format/alloc.h"
#include "format/checksum.h"
#include "format/key_types.h"

struct jset_disk {
	uint8_t csum[16];
	le64 magic;
	le64 seq;
	le32 version;
	le32 flags; /* [0,4) csum type, 4 big endian, 5 no_flush, 6 has_overwrites (1.37) */
	le32 u64s;
	le16 read_clock, write_clock;
	le64 last_seq;
};
_Static_assert(sizeof(struct jset_disk) == 56, "jset header is 56 bytes");

struct jset_entry_disk {
	le16 u64s;
	uint8_t btree_id;
	uint8_t level;
	uint8_t type;
	uint8_t pad[3];
};
_Static_assert(sizeof(struct jset_entry_disk) == 8, "sub-entry header is 8 bytes");

enum jset_entry_type {
	JSET_ENTRY_BTREE_KEYS,
	JSET_ENTRY_BTREE_ROOT,
	JSET_ENTRY_PRIO_PTRS,
	JSET_ENTRY_BLACKLIST,
	JSET_ENTRY_BLACKLIST_V2,
	JSET_ENTRY_USAGE,
	JSET_ENTRY_DATA_USAGE,
	JSET_ENTRY_CLOCK,
	JSET_ENTRY_DEV_USAGE,
	JSET_ENTRY_LOG,
	JSET_ENTRY_OVERWRITE,
	JSET_ENTRY_WRITE_BUFFER_KEYS,
	JSET_ENTRY_DATETIME,
	JSET_ENTRY_LOG_BKEY,
	JSET_ENTRY_REWIND_LIMIT,
	JSET_ENTRY_REWIND,
	JSET_ENTRY_NR_KNOWN,
};
/* What comes with every entry of format 1.4 (03 §5.1), in words, with the headers of the sub-entries. */
enum {
	JSET_HEADER_U64S = sizeof(struct jset_disk) / 8,
	JSET_ROOT_U64S_MAX = 15,	 /* of each btree that has one */
	JSET_USAGE_U64S = 6 * 2 + 2 * 3, /* usage, and the two clocks */
	JSET_DEV_USAGE_BYTES = 24 + DATA_NR_1_4 * 3 * 8,
	JSET_DEV_USAGE_U64S = 1 + JSET_DEV_USAGE_BYTES / 8, /* of each device */
	JSET_DATA_USAGE_BYTES = 8 + 3, /* and a byte for each device, of each row that isn't empty */
};
/* "btree_keys", or NULL for types that aren't known. */
const char *jset_entry_type_name(unsigned type);

static inline unsigned jset_csum_type(const struct jset_disk *j)
{
	return (unsigned)bits_get(le32_get(j->flags), 0, 4);
}
static inline bool jset_is_big_endian(const struct jset_disk *j) { return bits_get(le32_get(j->flags), 4, 5); }
static inline bool jset_is_noflush(const struct jset_disk *j) { return bits_get(le32_get(j->flags), 5, 6); }
static inline bool jset_has_overwrites(const struct jset_disk *j) { return bits_get(le32_get(j->flags), 6, 7); }
static inline uint64_t jset_bytes(const struct jset_disk *j) { return sizeof(*j) + (uint64_t)le32_get(j->u64s) * 8; }

uint64_t jset_magic(const uint8_t uuid[16]);

/*
 * Verify the checksum of the entry at @j (whose jset_bytes() lie in memory) and decrypt it in place: once only.
 * 0, or -KILN_E_CHECKSUM (also for unknown checksum types and MACs without a key), or -KILN_E_UNSUPPORTED for an intact
 * big-endian one. What failed is left as it was, encrypted.
 */
int jset_verify(struct jset_disk *j, const struct crypt_key *key, struct fault *fault);
/* Encrypt and checksum, for writers and tests; flags' checksum type is set to @csum_type. */
void jset_seal(struct jset_disk *j, unsigned csum_type, const struct crypt_key *key);

/* Walk over sub-entries. */
struct jset_walk {
	const uint8_t *pos, *end;
};
static inline struct jset_walk jset_walk_of(const struct jset_disk *j)
{
	const uint8_t *p = (const uint8_t *)(j + 1);
	return (struct jset_walk){ p, p + (size_t)le32_get(j->u64s) * 8 };
}
/* 1 with *@entry, 0 at the end; an entry that crosses the end: -KILN_E_INVALID (error 13), and the walk is at its end.
 */
int jset_walk_next(struct jset_walk *w, const struct jset_entry_disk **entry, struct fault *fault);
static inline const uint8_t *jset_entry_payload(const struct jset_entry_disk *e) { return (const uint8_t *)(e + 1); }
static inline size_t jset_entry_payload_bytes(const struct jset_entry_disk *e) { return (size_t)le16_get(e->u64s) * 8; }

/* Keys of a btree_keys, btree_root, overwrite, log_bkey or write_buffer_keys sub-entry, in order. Others have none. */
struct jset_key_walk {
	const uint8_t *pos, *end;
};
struct jset_key_walk jset_key_walk_of(const struct jset_entry_disk *e);
/*
 * 1 with the next key, 0 at the end, or -KILN_E_INVALID for one that isn't usable: errors 15 and 16, after which
 * nothing more comes, and 17 and 81, after which the next call goes on behind the key. Only its frame is checked.
 */
int jset_key_walk_next(struct jset_key_walk *w, struct bkey_ref *k, struct fault *fault);

/*
 * Rules of one sub-entry besides its keys' own (03 §3): sizes, and that devices and levels exist. Roots of btrees that
 * aren't known are fine. 0 or -KILN_E_INVALID.
 */
int jset_entry_validate(const struct jset_entry_disk *e, const struct key_context *ctx, struct fault *fault);
/*
 * As 11 §8 prints it, without indentation; keys one a line, each with the sub-entry's type before it. No newline at the
 * end; nothing at all for sub-entries of keys that hold none (unused room), roots excepted. Needs no validation before.
 */
void jset_entry_to_text(struct strbuf *out, const struct jset_entry_disk *e, const struct key_context *ctx);

/* Decoded counters. @e is of that type, and is not checked against the filesystem's devices. -KILN_E_INVALID: too
 * short. */
struct jset_data_usage {
	uint64_t sectors;
	uint8_t data_type, nr_devs, nr_required;
	const uint8_t *devs; /* in the sub-entry */
};
int jset_data_usage_decode(const struct jset_entry_disk *e, struct jset_data_usage *u, struct fault *fault);
/* Types that aren't there read as 0. */
struct jset_dev_usage {
	uint32_t dev;
	struct {
		uint64_t buckets, sectors, fragmented;
	} types[16];
	unsigned type_nr;
};
int jset_dev_usage_decode(const struct jset_entry_disk *e, struct jset_dev_usage *u, struct fault *fault);

#endif
