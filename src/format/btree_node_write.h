/*
 * Building btree nodes: header, sets, formats (02 §2.4, §5). The counterpart of btree_node.h.
 *
 * A set is built in a buffer of its own, which starts with the set's checksum and is a whole number of blocks: that
 * buffer is what is written, at the set's offset in the node. For a new node it is the node's start.
 *
 *	bset_writer_begin(&w, buf, offset, buf_bytes, &format);
 *	for each live key in order: bset_writer_add(&w, &k, value);
 *	bytes = bset_writer_finish(&w, &opts);
 */
#ifndef KILN_FORMAT_BTREE_NODE_WRITE_H
#define KILN_FORMAT_BTREE_NODE_WRITE_H

#include "format/btree_node.h"

/* What a node's header says. */
struct btree_node_header {
	unsigned btree_id, level;
	uint32_t generation;
	uint64_t magic;
	struct bpos min_key, max_key;
	struct bkey_format format;
};
/* Write it to the start of @node, of which sizeof(struct btree_node_disk) bytes are written; the rest is left alone. */
void btree_node_header_store(void *node, const struct btree_node_header *h);

struct bset_writer {
	uint8_t *set; /* where the set's checksum goes */
	size_t offset;
	size_t u64s, room_u64s;
	struct bkey_format format;
};
/*
 * Start a set at byte @offset of a node. @set is where it is built, with room for @bytes, header included; for offset 0
 * the node's header is stored there before or after. Nothing is written yet.
 */
void bset_writer_begin(struct bset_writer *w, void *set, size_t offset, size_t bytes, const struct bkey_format *format);
/* Append a key, packed if it fits the format. False when there is no room; then nothing has changed. */
bool bset_writer_add(struct bset_writer *w, const struct bkey *k, const void *value);
/* Append the key at @src, packed in @from or unpacked: as bset_writer_add(), but fast where the formats are equal. */
bool bset_writer_copy(struct bset_writer *w, const struct bkey_format *from, const void *src);

struct bset_seal_opts {
	uint64_t seq;	      /* of the node */
	uint64_t journal_seq; /* newest whose updates are in the set; 0 for set 0 of a new node */
	uint32_t version;     /* of the superblock */
	unsigned csum_type;
	const struct crypt_key *key; /* for MAC types */
	uint32_t block_bytes;
};
/*
 * Fill in the header, zero what is left of the last block, encrypt and checksum. Returns the bytes to write, whole
 * blocks. The buffer must have room for them.
 */
size_t bset_writer_finish(struct bset_writer *w, const struct bset_seal_opts *opts);

/* Words of @k in @format: header, packed if it fits, and value. */
unsigned bkey_packed_u64s(const struct bkey_format *format, const struct bkey *k);
bool bkey_format_eq(const struct bkey_format *a, const struct bkey_format *b);

/* Keys in memory: number i starts at word offset_u64s[i] of @words, packed in @format or not. */
struct bkey_array {
	const struct bkey_format *format;
	const void *words;
	const uint32_t *offset_u64s;
	uint32_t nr;
};
/*
 * The format for a node that is to hold the keys of all @nr arrays (02 §2.4): with rule 6, the format of the first
 * array when in the new one they would take more than @u64s_max words. *@u64s (may be NULL) is what they take.
 */
void btree_node_format_choose(const struct bkey_array *arrays, unsigned nr, struct bpos min_key, struct bpos max_key,
			      size_t u64s_max, struct bkey_format *format, size_t *u64s);

#endif
