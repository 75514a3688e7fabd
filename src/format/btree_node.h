/*
 * Btree nodes on disk: header, sets of keys, their checksums and encryption (02 §5, §6), and validation (02 §9).
 */
#ifndef KILN_FORMAT_BTREE_NODE_H
#define KILN_FORMAT_BTREE_NODE_H

#include "format/checksum.h"
#include "format/key_types.h"

struct bset_disk {
	le64 seq;
	le64 journal_seq;
	le32 flags; /* [0,4) csum type, [4,5) big endian, [5,6) separate whiteouts, [16,32) sector offset */
	le16 version;
	le16 u64s;
};
_Static_assert(sizeof(struct bset_disk) == 24, "bset header is 24 bytes");

struct btree_node_disk {
	uint8_t csum[16];
	le64 magic;
	le64 flags;
	struct bpos_disk min_key, max_key;
	uint8_t unused[8];
	struct bkey_format_disk format;
	struct bset_disk keys;
};
_Static_assert(sizeof(struct btree_node_disk) == 160, "btree node header is 160 bytes");

struct btree_node_entry_disk {
	uint8_t csum[16];
	struct bset_disk keys;
};
_Static_assert(sizeof(struct btree_node_entry_disk) == 40, "set header is 40 bytes");

static inline unsigned bset_csum_type(const struct bset_disk *b)
{
	return (unsigned)bits_get(le32_get(b->flags), 0, 4);
}
static inline bool bset_is_big_endian(const struct bset_disk *b) { return bits_get(le32_get(b->flags), 4, 5); }
static inline bool bset_has_separate_whiteouts(const struct bset_disk *b) { return bits_get(le32_get(b->flags), 5, 6); }
static inline unsigned bset_offset_sectors(const struct bset_disk *b)
{
	return (unsigned)bits_get(le32_get(b->flags), 16, 32);
}

static inline unsigned btree_node_id(uint64_t flags)
{
	return (unsigned)(bits_get(flags, 0, 4) | bits_get(flags, 9, 25) << 4);
}
static inline unsigned btree_node_level(uint64_t flags) { return (unsigned)bits_get(flags, 4, 8); }
static inline bool btree_node_has_new_extent_overwrite(uint64_t flags) { return bits_get(flags, 8, 9); }
static inline uint32_t btree_node_generation(uint64_t flags) { return (uint32_t)bits_get(flags, 32, 64); }

uint64_t btree_node_magic(const uint8_t uuid[16]);

/* Where the keys of the set at byte @offset of a node start, and its header. */
static inline size_t bset_header_bytes(size_t offset)
{
	return offset ? sizeof(struct btree_node_entry_disk) : sizeof(struct btree_node_disk);
}
/* The bset header of the set that starts at @set, and is at byte @offset of its node. */
static inline struct bset_disk *bset_of(void *set, size_t offset)
{
	return (struct bset_disk *)((uint8_t *)set + bset_header_bytes(offset) - sizeof(struct bset_disk));
}
static inline struct bset_disk *bset_at(void *node, size_t offset) { return bset_of((uint8_t *)node + offset, offset); }

/* What a node must agree with: the pointer that led to it, and the filesystem. */
struct btree_node_expect {
	unsigned btree_id;
	unsigned level;
	uint64_t magic;
	uint64_t seq; /* of the pointer */
	struct bpos min_key, max_key;
	bool is_range_updated; /* bounds are the pointer's, keys outside are dropped */
	uint16_t sectors_written;
	uint16_t node_sectors;
	uint8_t block_sectors;
	uint32_t version_min;	     /* of the superblock; 0: not checked */
	const struct crypt_key *key; /* NULL: not encrypted */
};

/* One set found in a node. */
struct bset_info {
	size_t offset; /* of its header in the node, bytes */
	size_t keys_offset, keys_u64s;
	uint64_t journal_seq;
	uint32_t version;
};

/*
 * Verify and decrypt the set at byte @offset of @node (02 §9.1 steps 2, 3a-3g). @node is node_sectors long and is
 * decrypted in place; it must be private memory, and each set be read only once. On success fills in @info and, for
 * offset 0, @format. Looking up the set's journal_seq in the blacklist (step 3i) is left to the caller.
 *
 * Returns 1 for a set; 0 when there is none here (foreign seq: end of the log); -KILN_E_CHECKSUM, -KILN_E_INVALID,
 * -KILN_E_UNSUPPORTED with @fault. A set with a flaw that doesn't keep its keys from being used (errors 35, 44, 45) is
 * returned too; then @fault->id isn't 0, and the caller reports it.
 */
int bset_read(void *node, size_t offset, const struct btree_node_expect *expect, struct bkey_format *format,
	      struct bset_info *info, struct fault *fault);

/*
 * Seal a set for writing: fill in flags' checksum type, encrypt if that is a MAC, checksum. All of its header but the
 * checksum has been filled in. @set is where the set itself lies; @offset its place in the node.
 */
void bset_seal_at(void *set, size_t offset, unsigned csum_type, const struct crypt_key *key);
/* The same for a set within a whole node. */
static inline void bset_seal(void *node, size_t offset, unsigned csum_type, const struct crypt_key *key)
{
	bset_seal_at((uint8_t *)node + offset, offset, csum_type, key);
}

/*
 * Check the keys of one set one after another (02 §9.2): frame, header rules, bounds, order, value rules. Bad ones are
 * reported through @bad (may be NULL) and left out; the walk goes on behind them, or ends where a key's length is
 * nonsense. A fault has the id of the cause; what is to be counted for it is 56 unless it is 54, 55 or 57. The key
 * given to @bad has a NULL value if not even its frame was good.
 *
 * With is_range_updated keys out of bounds are left out silently. Two live keys at one position are both kept.
 *
 * @keep is called for each good key, in order; it returns 0 to go on, or a negative code that ends the walk.
 * Returns the number of bad keys, or what @keep returned.
 */
struct bset_check {
	void (*bad)(void *ctx, const struct fault *fault, struct bkey_ref k, size_t offset_bytes);
	int (*keep)(void *ctx, const void *packed, const struct bkey *k);
	void *ctx;
};
int bset_check_keys(const void *node, const struct bset_info *set, const struct bkey_format *format,
		    const struct btree_node_expect *expect, const struct key_context *kctx,
		    const struct bset_check *check);

#endif
