/*
 * Contents of many new files, written at once. See write_batch.h.
 *
 * The batch is a chunk (write_internal.h) of a file that doesn't exist, in which each file has the blocks [begin, end),
 * and where keys end with a file as well as with a region. Putting a key moves it to its inode, and to where it belongs
 * there. Files short enough for inline data have no blocks; their bytes are kept aside.
 *
 * Everything is written as the filesystem's options say. An inode that has inherited others can't use it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "data/write_batch.h"
#include "data/write_internal.h"
#include "device/device.h"

_Static_assert((unsigned)DATA_BATCH_BYTES == (unsigned)CHUNK_BYTES, "a batch is a chunk");

struct batch_file {
	size_t bytes;
	uint32_t begin, end;	 /* sectors of the chunk; equal: inline */
	uint32_t inline_at;	 /* byte of inline_bytes */
	uint32_t key_at, key_nr; /* of the chunk's keys, once it is written */
};

struct data_batch {
	struct write_op op;
	struct data_write_target no_file;
	struct write_chunk chunk;
	struct batch_file files[DATA_BATCH_FILES_MAX];
	unsigned file_nr;
	uint32_t cuts[DATA_BATCH_FILES_MAX]; /* where files end, as the chunk wants to know it */
	unsigned cut_nr;
	void *bytes; /* the chunk's */
	uint8_t *inline_bytes;
	uint32_t inline_used;
	bool has_space; /* the chunk's extents are held */
	bool can_put;	/* all has been written */
};

enum { INLINE_BYTES_ALL = 64 << 10 };

struct data_batch *data_batch_new(struct data *data)
{
	struct data_batch *b = data->writer ? calloc(1, sizeof(*b)) : NULL;

	if (!b)
		return NULL;
	b->op = (struct write_op){ .data = data, .file = &b->no_file };
	b->inline_bytes = malloc(INLINE_BYTES_ALL);
	b->bytes = io_buffer_alloc(DATA_BATCH_BYTES);
	if (write_chunk_init(&b->chunk, &b->op) || !b->bytes || !b->inline_bytes) {
		data_batch_free(b);
		return NULL;
	}
	b->chunk.buf = b->bytes;
	b->chunk.cuts = b->cuts;
	b->chunk.is_alone = true;
	return b;
}

void data_batch_free(struct data_batch *b)
{
	if (!b)
		return;
	data_batch_reset(b);
	write_chunk_destroy(&b->chunk);
	io_buffer_free(b->bytes);
	free(b->inline_bytes);
	free(b);
}

static uint32_t blocks_end(const struct data_batch *b) { return b->file_nr ? b->files[b->file_nr - 1].end : 0; }

int data_batch_add(struct data_batch *b, size_t bytes, void **room, unsigned *file)
{
	struct batch_file f = { .bytes = bytes, .begin = blocks_end(b), .inline_at = b->inline_used };
	size_t block = block_bytes_of(b->op.data);

	f.end = f.begin;
	if (b->file_nr == DATA_BATCH_FILES_MAX || bytes > DATA_BATCH_BYTES)
		return -ENOBUFS;
	if (bytes <= write_inline_bytes_max(b->op.data)) {
		if (bytes > INLINE_BYTES_ALL - b->inline_used)
			return -ENOBUFS;
		b->inline_used += (uint32_t)round_up_u64(bytes, 8);
		*room = b->inline_bytes + f.inline_at;
	} else {
		size_t begin = (size_t)f.begin << SECTOR_SHIFT, stored = (size_t)round_up_u64(bytes, block);

		if (stored > DATA_BATCH_BYTES - begin)
			return -ENOBUFS;
		f.end += (uint32_t)(stored >> SECTOR_SHIFT);
		*room = (uint8_t *)b->chunk.buf + begin;
	}
	*file = b->file_nr;
	b->files[b->file_nr++] = f;
	return 0;
}

void data_batch_drop_last(struct data_batch *b) { b->inline_used = b->files[--b->file_nr].inline_at; }

/* --- writing --- */

static bool is_inline(const struct batch_file *f) { return f->begin == f->end; }

/* What lies behind the contents in their last block, or word, is zeroes. */
static void blocks_complete(struct data_batch *b)
{
	b->cut_nr = 0;
	for (unsigned i = 0; i < b->file_nr; i++) {
		const struct batch_file *f = &b->files[i];
		size_t begin = (size_t)f->begin << SECTOR_SHIFT, end = (size_t)f->end << SECTOR_SHIFT;

		if (is_inline(f)) {
			memset(b->inline_bytes + f->inline_at + f->bytes, 0, round_up_u64(f->bytes, 8) - f->bytes);
			continue;
		}
		memset((uint8_t *)b->chunk.buf + begin + f->bytes, 0, end - begin - f->bytes);
		b->cuts[b->cut_nr++] = f->end;
	}
}

/* Which of the chunk's keys are whose. A file that isn't there as a whole has none. */
static void keys_find(struct data_batch *b)
{
	const struct write_chunk *c = &b->chunk;
	uint32_t at = 0;

	for (unsigned i = 0; i < b->file_nr; i++) {
		struct batch_file *f = &b->files[i];

		f->key_at = at;
		while (!is_inline(f) && at < c->key_nr && c->keys[at].k.p.offset <= f->end)
			at++;
		f->key_nr = f->end <= c->end ? at - f->key_at : 0;
	}
}

static int blocks_write(struct data_batch *b)
{
	struct write_op *op = &b->op;
	struct allocator *allocator = op->data->writer->allocator;
	uint32_t end = blocks_end(b);

	b->chunk.begin = 0;
	b->chunk.end = end;
	int err = disk_reservation_get(allocator, &op->reservation, (uint64_t)end * op->replicas_possible,
				       op->replicas_possible, 0);
	if (!err)
		err = write_chunk_memory_take(&b->chunk, true);
	if (err)
		return err;
	err = write_chunk_start(&b->chunk);
	if (!err) {
		b->has_space = true;
		err = write_chunk_finish(&b->chunk);
	}
	if (!err)
		allocator_clock_add(allocator, true, end);
	return err;
}

int data_batch_write(struct data_batch *b)
{
	static const struct inode no_options;
	struct super *super = (struct super *)b->op.data->super;

	int err = write_options_take(&b->op, &no_options);
	if (!err)
		err = write_features_mark(&b->op);
	blocks_complete(b);
	b->chunk.cut_nr = b->cut_nr;
	b->chunk.key_nr = 0;
	b->chunk.end = 0;
	if (!err && b->inline_used)
		err = super_feature_set(super, SB_FEATURE_INLINE_DATA);
	if (!err && b->cut_nr)
		err = blocks_write(b);
	b->can_put = !err;
	if (!err)
		keys_find(b);
	return err;
}

const void *data_batch_contents(const struct data_batch *b, unsigned file, size_t *bytes)
{
	const struct batch_file *f = &b->files[file];

	*bytes = f->bytes;
	return is_inline(f) ? b->inline_bytes + f->inline_at
			    : (uint8_t *)b->chunk.buf + ((size_t)f->begin << SECTOR_SHIFT);
}

/* --- putting --- */

unsigned data_batch_key_nr(const struct data_batch *b, unsigned file) { return max(b->files[file].key_nr, 1u); }

static int key_put(struct btree_txn *txn, const struct key_buf *key, struct inode *inode)
{
	struct btree_extent_change change = { 0 };
	int err = btree_txn_put_extent(txn, BTREE_EXTENTS, &key->k, key->value, &change);

	/* Nothing was there, so it can't have stopped early; but what isn't there now must not be said to be. */
	if (!err && change.end_offset != key->k.p.offset)
		err = -EIO;
	inode_sectors_add(inode, change.sectors);
	return err;
}

static int inline_put(struct btree_txn *txn, const struct data_batch *b, const struct batch_file *f,
		      struct inode *inode)
{
	uint32_t block_sectors = b->op.data->super->kctx.block_sectors;
	struct key_buf key;

	key.k = (struct bkey){
		.p = BPOS(inode->inum, block_sectors, inode->snapshot),
		.size = block_sectors,
		.type = KEY_INLINE_DATA,
		.value_u64s = (uint8_t)div_round_up_u64(f->bytes, 8),
	};
	memcpy(key.value, b->inline_bytes + f->inline_at, bkey_value_bytes(&key.k));
	return key_put(txn, &key, inode);
}

/* Would the inode have what is here written in the same way? */
static bool options_are_same(const struct data_batch *b, const struct inode *inode)
{
	struct write_op op = { .data = b->op.data };

	return !write_options_take(&op, inode) && write_options_are_same(&op, &b->op);
}

int data_batch_put(struct btree_txn *txn, const struct data_batch *b, unsigned file, struct inode *inode)
{
	const struct batch_file *f = &b->files[file];
	int err = 0;

	if (!b->can_put || !options_are_same(b, inode) || (!is_inline(f) && !f->key_nr))
		return -KILN_E_NOT_FOUND_HERE;
	inode->size = f->bytes;
	inode->sectors = 0;
	if (is_inline(f))
		return inline_put(txn, b, f, inode);
	for (uint32_t i = 0; i < f->key_nr && !err; i++) {
		struct key_buf key = b->chunk.keys[f->key_at + i];

		key.k.p = BPOS(inode->inum, key.k.p.offset - f->begin, inode->snapshot);
		err = key_put(txn, &key, inode);
	}
	return err;
}

struct disk_reservation *data_batch_reservation(struct data_batch *b) { return &b->op.reservation; }

void data_batch_reset(struct data_batch *b)
{
	if (b->has_space)
		write_chunk_release(&b->chunk);
	b->has_space = b->can_put = false;
	if (b->op.reservation.sectors)
		disk_reservation_put(b->op.data->writer->allocator, &b->op.reservation);
	b->file_nr = 0;
	b->inline_used = 0;
}
