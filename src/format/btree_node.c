/*
 * Btree nodes: sets of keys as they stand on disk.
 *
 * A node is a log of sets. The first one has the node's header before it (btree_node_disk), each later one a short one
 * (btree_node_entry_disk); both start with a checksum and end with the bset header, after which the keys follow:
 *
 *	set at 0:	csum  magic | flags bounds format | seq journal_seq flags version u64s | keys ...
 *	set at x:	csum                              | seq journal_seq flags version u64s | keys ...
 *	                                ^ encrypted                                                ^ encrypted
 *
 * The checksum is over everything behind it, up to the last key, as stored (after encryption).
 *
 * Nothing in a set is believed before its checksum was found good, but for three things that checking it needs: the
 * seq, which tells a set from what an earlier user of the space left; the checksum's type; and the length, which is
 * checked against the node. A good checksum means only that somebody wrote these bytes: keys are then checked one by
 * one.
 */
#include "format/btree_node.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/mutant.h"
#include "base/strbuf.h"
#include "base/util.h"
#include "format/error_ids.h"
#include "format/version.h"

/* Below it keys had no snapshot field; from here on the layout of sets is today's. */
enum { BSET_VERSION_MIN = VERSION(0, 12) };

static const uint64_t node_magic = 0x90135c78b99e07f5;

/* The part of the node header that is encrypted. */
enum {
	HEADER_CRYPT_START = offsetof(struct btree_node_disk, flags),
	HEADER_CRYPT_END = offsetof(struct btree_node_disk, keys),
	HEADER_CRYPT_NONCE_BYTES = 128, /* the keys' stream starts that far behind the header's */
};
_Static_assert(HEADER_CRYPT_START == 24 && HEADER_CRYPT_END == 136, "encrypted part of the node header");

uint64_t btree_node_magic(const uint8_t uuid[16]) { return le64_load(uuid) ^ node_magic; }

/* --- sealing and opening --- */

static struct nonce bset_nonce(const struct bset_disk *b, size_t offset)
{
	return nonce_btree((uint32_t)offset, le64_get(b->seq), le64_get(b->journal_seq));
}

static void in_place(const struct crypt_key *key, struct nonce nonce, void *data, size_t len, bool is_sealing)
{
	if (is_sealing)
		crypt_encrypt(key, nonce, data, data, len);
	else
		crypt_xor(key, nonce, data, len);
}

/* Encrypt or decrypt a set whose keys lie within the node. */
static void bset_crypt(void *set, size_t offset, const struct crypt_key *key, bool is_sealing)
{
	struct bset_disk *b = bset_of(set, offset);
	struct nonce nonce = bset_nonce(b, offset);

	if (!offset) {
		in_place(key, nonce, (uint8_t *)set + HEADER_CRYPT_START, HEADER_CRYPT_END - HEADER_CRYPT_START,
			 is_sealing);
		nonce = nonce_add(nonce, HEADER_CRYPT_NONCE_BYTES);
	}
	in_place(key, nonce, b + 1, (size_t)le16_get(b->u64s) * 8, is_sealing);
}

static struct checksum bset_checksum(void *set, size_t offset, const struct crypt_key *key, bool is_sealing)
{
	const struct bset_disk *b = bset_of(set, offset);
	const uint8_t *start = (uint8_t *)set + sizeof(struct checksum);
	const uint8_t *end = (const uint8_t *)(b + 1) + (size_t)le16_get(b->u64s) * 8;

	if (is_sealing && checksum_is_mac(bset_csum_type(b)))
		return crypt_mac(bset_csum_type(b), key, bset_nonce(b, offset), start, (size_t)(end - start));
	return checksum_compute(bset_csum_type(b), key, bset_nonce(b, offset), start, (size_t)(end - start));
}

void bset_seal_at(void *set, size_t offset, unsigned csum_type, const struct crypt_key *key)
{
	struct bset_disk *b = bset_of(set, offset);

	b->flags = le32_of((uint32_t)bits_set(le32_get(b->flags), 0, 4, csum_type));
	if (checksum_is_mac(csum_type))
		bset_crypt(set, offset, key, true);
	checksum_store(set, bset_checksum(set, offset, key, true));
}

/* Check length and checksum of a set, then decrypt it. */
static int bset_open(void *node, size_t offset, const struct btree_node_expect *expect, struct fault *fault)
{
	struct bset_disk *b = bset_at(node, offset);
	unsigned type = bset_csum_type(b);
	size_t avail_u64s = ((size_t)expect->node_sectors * SECTOR_BYTES - offset - bset_header_bytes(offset)) / 8;

	if (type >= CHECKSUM_TYPE_NR || (checksum_is_mac(type) && !expect->key))
		return fault_set(fault, ERROR_bset_unknown_csum, "set, checksum type",
				 expect->key ? "0 to 7" : "one that needs no key", "%u", type);
	if (le16_get(b->u64s) > avail_u64s)
		return fault_set(fault, ERROR_bset_past_end_of_btree_node, "set, u64s", "within the node",
				 "%u words, %zu are left", le16_get(b->u64s), avail_u64s);

	struct checksum stored = checksum_load((uint8_t *)node + offset);
	struct checksum computed = bset_checksum((uint8_t *)node + offset, offset, expect->key, false);
	if (!checksum_eq(stored, computed) && !is_mutant(MUTANT_NODE_CHECKSUM)) {
		char text[64];

		snprintf(text, sizeof(text), "%s %016" PRIx64 "%016" PRIx64, checksum_name(type), computed.hi,
			 computed.lo);
		fault_set(fault, ERROR_bset_bad_csum, "set, checksum", text, "%016" PRIx64 "%016" PRIx64, stored.hi,
			  stored.lo);
		return -KILN_E_CHECKSUM;
	}
	if (checksum_is_mac(type))
		bset_crypt((uint8_t *)node + offset, offset, expect->key, false);
	return 0;
}

/* --- checking headers --- */

/* Is this the node that the pointer means? To be asked before its checksum is looked at. */
static int node_check_identity(const struct btree_node_disk *n, const struct btree_node_expect *expect,
			       struct fault *fault)
{
	char expected[32];

	if (le64_get(n->magic) != expect->magic) {
		snprintf(expected, sizeof(expected), "%016" PRIx64, expect->magic);
		return fault_set(fault, ERROR_btree_node_bad_magic, "node, magic", expected, "%016" PRIx64,
				 le64_get(n->magic));
	}
	if (le64_get(n->keys.seq) != expect->seq) {
		snprintf(expected, sizeof(expected), "%016" PRIx64, expect->seq);
		return fault_set(fault, ERROR_btree_node_bad_seq, "node, seq", expected, "%016" PRIx64,
				 le64_get(n->keys.seq));
	}
	return 0;
}

static int bset_check_supported(const struct bset_disk *b, struct fault *fault)
{
	unsigned version = le16_get(b->version);

	if (bset_is_big_endian(b))
		fault_set(fault, ERROR_btree_node_unsupported_version, "set, byte order", "little-endian",
			  "big-endian");
	else if (VERSION_MAJOR(version) > VERSION_MAJOR(VERSION_NEWEST_KNOWN) || version < BSET_VERSION_MIN)
		fault_set(fault, ERROR_btree_node_unsupported_version, "set, version", "0.12 to 1.x", "%u.%u",
			  VERSION_MAJOR(version), VERSION_MINOR(version));
	else if (bset_has_separate_whiteouts(b))
		fault_set(fault, ERROR_btree_node_unsupported_version, "set, separate whiteouts", "no", "yes");
	else
		return 0;
	return -KILN_E_UNSUPPORTED;
}

static int node_check_bound(struct bpos found, struct bpos expected, uint32_t id, const char *field,
			    struct fault *fault)
{
	if (bpos_eq(found, expected))
		return 0;

	char expected_chars[80], found_chars[80];
	struct strbuf expected_text = strbuf_fixed(expected_chars, sizeof(expected_chars));
	struct strbuf found_text = strbuf_fixed(found_chars, sizeof(found_chars));

	bpos_to_text(&expected_text, expected);
	bpos_to_text(&found_text, found);
	return fault_set(fault, id, field, strbuf_text(&expected_text), "%s", strbuf_text(&found_text));
}

/* The rules of the node header, which the checksum of set 0 covers. */
static int node_check_header(const struct btree_node_disk *n, const struct btree_node_expect *expect,
			     struct bkey_format *format, struct fault *fault)
{
	uint64_t flags = le64_get(n->flags);
	char expected[16];
	int err = 0;

	if (!expect->level && (btree_flags(expect->btree_id) & BTREE_IS_EXTENTS) &&
	    !btree_node_has_new_extent_overwrite(flags)) {
		fault_set(fault, ERROR_btree_node_unsupported_version, "node, extent overwrites", "new style",
			  "old style");
		return -KILN_E_UNSUPPORTED;
	}
	if (btree_node_id(flags) != expect->btree_id) {
		snprintf(expected, sizeof(expected), "%u", expect->btree_id);
		return fault_set(fault, ERROR_btree_node_bad_btree, "node, btree", expected, "%u",
				 btree_node_id(flags));
	}
	if (btree_node_level(flags) != expect->level) {
		snprintf(expected, sizeof(expected), "%u", expect->level);
		return fault_set(fault, ERROR_btree_node_bad_level, "node, level", expected, "%u",
				 btree_node_level(flags));
	}
	if (!expect->is_range_updated) {
		err = node_check_bound(bpos_load(&n->min_key), expect->min_key, ERROR_btree_node_bad_min_key,
				       "node, min_key", fault);
		if (!err)
			err = node_check_bound(bpos_load(&n->max_key), expect->max_key, ERROR_btree_node_bad_max_key,
					       "node, max_key", fault);
	}
	return err ? err : bkey_format_load(format, &n->format, fault);
}

/* What is wrong with a set, but doesn't keep it from being used. */
static void bset_note_flaws(const struct bset_disk *b, size_t offset, const struct btree_node_expect *expect,
			    struct fault *fault)
{
	unsigned version = le16_get(b->version);
	char expected[32];

	if (bset_offset_sectors(b) && bset_offset_sectors(b) != offset / SECTOR_BYTES) {
		snprintf(expected, sizeof(expected), "0 or %zu", offset / SECTOR_BYTES);
		fault_set(fault, ERROR_bset_wrong_sector_offset, "set, offset", expected, "%u", bset_offset_sectors(b));
	} else if (offset && !le16_get(b->u64s)) {
		fault_set(fault, ERROR_bset_empty, "set, u64s", "not 0", "0");
	} else if (version < expect->version_min) {
		snprintf(expected, sizeof(expected), "at least %u.%u", VERSION_MAJOR(expect->version_min),
			 VERSION_MINOR(expect->version_min));
		fault_set(fault, ERROR_btree_node_bset_older_than_sb_min, "set, version", expected, "%u.%u",
			  VERSION_MAJOR(version), VERSION_MINOR(version));
	}
}

int bset_read(void *node, size_t offset, const struct btree_node_expect *expect, struct bkey_format *format,
	      struct bset_info *info, struct fault *fault)
{
	size_t node_bytes = (size_t)expect->node_sectors * SECTOR_BYTES;
	int err = 0;

	if (fault)
		fault->id = 0;
	if (offset >= node_bytes || bset_header_bytes(offset) > node_bytes - offset)
		return fault_set(fault, ERROR_bset_past_end_of_btree_node, "set, header", "within the node",
				 "byte %zu of %zu", offset, node_bytes);

	const struct bset_disk *b = bset_at(node, offset);
	if (!offset)
		err = node_check_identity(node, expect, fault);
	else if (le64_get(b->seq) != expect->seq)
		return 0;

	if (!err)
		err = bset_open(node, offset, expect, fault);
	if (!err)
		err = bset_check_supported(b, fault);
	if (!err && !offset)
		err = node_check_header(node, expect, format, fault);
	if (err)
		return err;

	*info = (struct bset_info){
		.offset = offset,
		.keys_offset = offset + bset_header_bytes(offset),
		.keys_u64s = le16_get(b->u64s),
		.journal_seq = le64_get(b->journal_seq),
		.version = le16_get(b->version),
	};
	bset_note_flaws(b, offset, expect, fault);
	return 1;
}

/* --- checking keys --- */

struct key_order {
	bool any;
	struct bpos p;
	uint8_t type;
};

static int key_check_order(struct key_order prev, const struct bkey *k, struct fault *fault)
{
	if (!prev.any)
		return 0;

	int cmp = bpos_cmp(k->p, prev.p);
	if (cmp > 0 || (!cmp && !(k->type == KEY_DELETED && prev.type != KEY_DELETED)))
		return 0;

	char expected_chars[96];
	struct strbuf expected = strbuf_fixed(expected_chars, sizeof(expected_chars));
	char found_chars[80];
	struct strbuf found = strbuf_fixed(found_chars, sizeof(found_chars));

	strbuf_add(&expected, "above ");
	bpos_to_text(&expected, prev.p);
	bpos_to_text(&found, k->p);
	return fault_set(fault, ERROR_btree_node_bkey_out_of_order, "position", strbuf_text(&expected), "%s",
			 strbuf_text(&found));
}

static bool key_is_outside(const struct bkey *k, const struct btree_node_expect *expect)
{
	return bpos_lt(k->p, expect->min_key) || bpos_lt(expect->max_key, k->p);
}

static int key_check_bounds(const struct bkey *k, const struct btree_node_expect *expect, struct fault *fault)
{
	if (!key_is_outside(k, expect))
		return 0;
	return bpos_lt(k->p, expect->min_key)
		       ? node_check_bound(k->p, expect->min_key, ERROR_bkey_before_start_of_btree_node,
					  "position, at least", fault)
		       : node_check_bound(k->p, expect->max_key, ERROR_bkey_after_end_of_btree_node,
					  "position, at most", fault);
}

static int key_check(struct bkey_ref k, struct key_order prev, const struct btree_node_expect *expect,
		     const struct key_context *kctx, struct fault *fault)
{
	int err = bkey_validate(&k.k, expect->btree_id, expect->level, fault);

	if (!err)
		err = key_check_bounds(&k.k, expect, fault);
	if (!err)
		err = key_check_order(prev, &k.k, fault);
	if (!err)
		err = key_validate_value(k, kctx, fault);
	return err;
}

int bset_check_keys(const void *node, const struct bset_info *set, const struct bkey_format *format,
		    const struct btree_node_expect *expect, const struct key_context *kctx,
		    const struct bset_check *check)
{
	const uint8_t *keys = (const uint8_t *)node + set->keys_offset;
	struct key_order prev = { .any = false };
	struct fault fault = { 0 };
	int bad_nr = 0;

	for (size_t at = 0, left = set->keys_u64s; left;) {
		const uint8_t *src = keys + at * 8;
		struct bkey_ref k = { 0 };
		bool is_outside = false;
		int err = bkey_check_frame(format, src, left, &fault);

		if (err > 0) {
			k.k = bkey_unpack(format, src, &k.value);
			is_outside = expect->is_range_updated && key_is_outside(&k.k, expect);
			err = is_outside ? 0 : key_check(k, prev, expect, kctx, &fault);
		}
		if (err) {
			bad_nr++;
			if (check->bad)
				check->bad(check->ctx, &fault, k, set->keys_offset + at * 8);
			if (!src[0] || src[0] > left)
				break; /* nobody knows where the next key starts */
		} else if (!is_outside) {
			prev = (struct key_order){ .any = true, .p = k.k.p, .type = k.k.type };
			err = check->keep(check->ctx, src, &k.k);
			if (err)
				return err;
		}
		at += src[0];
		left -= src[0];
	}
	return bad_nr;
}
