/*
 * Writing file data: bytes become blocks, blocks go to new space in chunks, several in flight at a time.
 *
 * A chunk is copied once: into what it is stored as, or as it is, just before it is checksummed. As long as one waits
 * for its devices, the next is prepared; they are put in order, so that what is there after a crash grows from the
 * front, and a write that runs out of space ends somewhere in the middle, not with holes.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/mutant.h"
#include "data/copygc.h"
#include "data/repair.h"
#include "data/write_internal.h"
#include "device/device.h"

struct mutex *inode_lock(struct data *data, uint64_t inum)
{
	return &data->writer->inode_locks[inode_lock_place(inum)];
}

int data_start_write(struct data *data, struct allocator *allocator, struct journal *journal)
{
	struct data_writer *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOMEM;
	w->allocator = allocator;
	w->journal = journal;
	crew_init(&w->crew);
	for (unsigned i = 0; i < INODE_LOCK_NR; i++)
		mutex_init_ranked(&w->inode_locks[i], LOCK_INODES);
	bucket_locks_init(&w->in_place.locks);
	mutex_init_ranked(&w->shared_lock, LOCK_SHARED_EXTENTS);
	mutex_init(&w->ops_lock);
	data->writer = w;
	return 0;
}

void data_stop_write(struct data *data)
{
	struct data_writer *w = data->writer;

	if (!w)
		return;
	repair_stop(data);
	copygc_stop(data);
	data->writer = NULL;
	crew_destroy(&w->crew);
	for (unsigned i = 0; i < INODE_LOCK_NR; i++)
		mutex_destroy(&w->inode_locks[i]);
	bucket_locks_destroy(&w->in_place.locks);
	mutex_destroy(&w->shared_lock);
	write_ops_forget(w);
	mutex_destroy(&w->ops_lock);
	free(w);
}

void data_jobs(struct data *data, struct job_list *list)
{
	const struct job *copygc = copygc_job(data);

	if (copygc)
		job_list_add(list, copygc);
	job_list_add(list, repair_job(data));
}

int write_inode_read(struct data *data, const struct data_write_target *file, struct inode *inode)
{
	struct bkey_copy copy;

	int found = btree_lookup(data->trees, BTREE_INODES, BPOS(0, file->inum, file->snapshot), &copy);
	if (found < 0)
		return found;
	if (!found || copy.k.k.type == KEY_INODE_GENERATION)
		return -ENOENT;
	return inode_unpack(copy.k, inode, NULL) ? -EIO : 0;
}

int write_inode_begin(struct data *data, const struct data_write_target *file, uint64_t offset_bytes,
		      struct inode *inode)
{
	int err = write_ops_finish(data, file->inum, file->snapshot);

	if (!err)
		err = write_inode_read(data, file, inode);
	if (err)
		return err;
	bool is_inside = offset_bytes < inode->size;
	return inode->flags & (file->forbidding | (is_inside ? file->forbidding_inside : 0)) ? -EPERM : 0;
}

/* --- options of a write (06 §9.1) --- */

/* The inode's own, else the filesystem's. */
static uint64_t option_of(const struct data *data, const struct inode *inode, enum inode_opt own, enum option_id option)
{
	return inode->opts[own] ? inode->opts[own] - 1 : data->super->options[option];
}

unsigned write_replicas(const struct data *data, const struct inode *inode)
{
	return (unsigned)max(option_of(data, inode, INODE_OPT_DATA_REPLICAS, OPT_DATA_REPLICAS), (uint64_t)1);
}

struct rebalance_aim rebalance_aim_of(const struct data *data, const struct inode *inode)
{
	uint64_t compression = option_of(data, inode, INODE_OPT_BACKGROUND_COMPRESSION, OPT_BACKGROUND_COMPRESSION);
	struct rebalance_aim aim = {
		.wanted.target = (uint16_t)option_of(data, inode, INODE_OPT_BACKGROUND_TARGET, OPT_BACKGROUND_TARGET),
		.wanted.compression = option_of(data, inode, INODE_OPT_NOCOW, OPT_NOCOW) ? 0 : (uint8_t)compression,
	};

	aim.devs = allocator_target_devs(data->writer->allocator, aim.wanted.target);
	return aim;
}

int write_options_take(struct write_op *op, const struct inode *inode)
{
	const struct data *data = op->data;
	uint64_t csum = option_of(data, inode, INODE_OPT_DATA_CHECKSUM, OPT_DATA_CHECKSUM);

	op->csum_type = super_data_csum_type(data->super, csum);
	if (op->csum_type >= CHECKSUM_TYPE_NR)
		return -EOPNOTSUPP;
	op->compression = (unsigned)option_of(data, inode, INODE_OPT_COMPRESSION, OPT_COMPRESSION);
	op->replicas = write_replicas(data, inode);
	op->replicas_possible = min(op->replicas, max(allocator_data_durability(data->writer->allocator), 1u));
	op->target = (uint16_t)option_of(data, inode, INODE_OPT_FOREGROUND_TARGET, OPT_FOREGROUND_TARGET);
	op->rebalance = rebalance_aim_of(data, inode);
	/* What may be overwritten where it is can have nothing that depends on its bytes. */
	op->is_nocow = option_of(data, inode, INODE_OPT_NOCOW, OPT_NOCOW);
	if (op->is_nocow) {
		op->csum_type = CHECKSUM_NONE;
		op->compression = 0;
	}
	return 0;
}

int write_features_mark(const struct write_op *op)
{
	struct super *super = (struct super *)op->data->super;
	int err = super_option_features_set(super, OPT_COMPRESSION, op->compression);

	return err ? err
		   : super_option_features_set(super, OPT_BACKGROUND_COMPRESSION, op->rebalance.wanted.compression);
}

bool write_options_are_same(const struct write_op *a, const struct write_op *b)
{
	return a->is_nocow == b->is_nocow && a->csum_type == b->csum_type && a->compression == b->compression &&
	       a->replicas == b->replicas && a->target == b->target &&
	       a->rebalance.wanted.target == b->rebalance.wanted.target &&
	       a->rebalance.wanted.compression == b->rebalance.wanted.compression;
}

/* --- bytes to blocks --- */

static int old_block_read(struct data *data, const struct data_write_target *file, const struct inode *inode,
			  uint64_t offset, uint8_t **block)
{
	struct data_file f = { .inum = file->inum, .snapshot = file->snapshot, .size_bytes = inode->size };
	uint64_t bytes = block_bytes_of(data);

	*block = io_buffer_alloc(bytes);
	if (!*block)
		return -ENOMEM;
	memset(*block, 0, bytes);
	if (offset >= inode->size)
		return 0;
	bool is_damaged = false;
	ssize_t n = data_read(data, &f, offset, *block, bytes, data_damage_note, &is_damaged);
	return n < 0 ? (int)n : is_damaged ? -EIO : 0;
}

void data_damage_note(void *ctx, uint64_t offset, uint64_t len, int err) { *(bool *)ctx = true; }

static int source_init(struct write_source *s, struct data *data, const struct data_write_target *file,
		       const struct inode *inode, uint64_t offset, const void *buf, size_t len)
{
	uint64_t block = block_bytes_of(data);
	int err = 0;

	*s = (struct write_source){
		.buf = buf,
		.begin = offset,
		.end = offset + len,
		.block_begin = offset / block * block,
		.block_end = round_up_u64(offset + len, block),
	};
	bool is_one = s->block_end - s->block_begin == block;
	if (s->begin != s->block_begin || (is_one && s->end != s->block_end)) {
		err = old_block_read(data, file, inode, s->block_begin, &s->head);
		if (!err)
			memcpy(s->head + (s->begin - s->block_begin), buf,
			       min(len, (size_t)(s->block_begin + block - s->begin)));
	}
	if (!err && s->end != s->block_end && !is_one) {
		uint64_t last = s->block_end - block;

		err = old_block_read(data, file, inode, last, &s->tail);
		if (!err)
			memcpy(s->tail, s->buf + (last - s->begin), s->end - last);
	}
	return err;
}

static void source_free(struct write_source *s)
{
	io_buffer_free(s->head);
	io_buffer_free(s->tail);
}

void write_source_copy(const struct write_source *s, uint64_t block, uint64_t at, uint8_t *to, size_t len)
{
	while (len) {
		const uint8_t *from;
		size_t n;

		if (s->head && at < s->block_begin + block) {
			from = s->head + (at - s->block_begin);
			n = (size_t)(s->block_begin + block - at);
		} else if (s->tail && at >= s->block_end - block) {
			from = s->tail + (at - (s->block_end - block));
			n = (size_t)(s->block_end - at);
		} else {
			from = s->buf + (at - s->begin);
			n = (size_t)((s->tail ? s->block_end - block : s->block_end) - at);
		}
		n = min(n, len);
		memcpy(to, from, n);
		to += n;
		at += n;
		len -= n;
	}
}

const uint8_t *write_source_at(const struct write_source *s, uint64_t at, size_t len)
{
	return at >= s->begin && at + len <= s->end ? s->buf + (at - s->begin) : NULL;
}

/* --- inline data (06 §9.2) --- */

size_t write_inline_bytes_max(const struct data *data)
{
	enum { INLINE_BYTES_MAX = 1024 };

	return data->super->options[OPT_INLINE_DATA] ? min((size_t)block_bytes_of(data) / 2, (size_t)INLINE_BYTES_MAX)
						     : 0;
}

/* Is there inline data at the end of the block that so many bytes can replace without taking more room? */
static bool has_inline_room(const struct write_op *op, uint64_t block_end, uint64_t bytes)
{
	struct bpos pos = BPOS(op->file->inum, block_end >> SECTOR_SHIFT, op->file->snapshot);
	struct bkey_copy copy;

	return btree_lookup(op->data->trees, BTREE_EXTENTS, pos, &copy) > 0 && bpos_eq(copy.k.k.p, pos) &&
	       copy.k.k.type == KEY_INLINE_DATA && bytes <= bkey_value_bytes(&copy.k.k);
}

/*
 * May so many bytes, which is all that the block holds, be inline? A block that has space, or a promise of it, keeps
 * that: what is written behind them next mustn't fail for want of it. 1, 0 or an error.
 */
static int may_be_inline(const struct write_op *op, const struct write_source *s, uint64_t bytes)
{
	uint64_t held;

	if (op->makes_room)
		return 1;
	int err = write_space_held(op->data, op->file, s->block_begin >> SECTOR_SHIFT, s->block_end >> SECTOR_SHIFT,
				   op->replicas_possible, &held);
	if (err || held)
		return err;
	err = allocator_key_room(op->data->writer->allocator);
	return !err || (err == -ENOSPC && has_inline_room(op, s->block_end, bytes)) ? 1 : err;
}

/* The single block that holds the end of the file, when what it holds is short: a key without space. */
static int write_inline(struct write_op *op, const struct write_source *s, uint64_t block, bool *is_done)
{
	struct super *super = (struct super *)op->data->super;
	uint64_t bytes = op->end_bytes > s->block_begin ? op->end_bytes - s->block_begin : 0;
	struct key_buf key;
	size_t done = 0;

	*is_done = false;
	if (s->block_end - s->block_begin != block || !bytes || bytes > write_inline_bytes_max(op->data))
		return 0;
	int ret = may_be_inline(op, s, bytes);
	if (ret <= 0)
		return ret;
	ret = super_feature_set(super, SB_FEATURE_INLINE_DATA);
	if (ret)
		return ret;
	key.k = (struct bkey){
		.p = BPOS(op->file->inum, s->block_end >> SECTOR_SHIFT, op->file->snapshot),
		.size = (uint32_t)(block >> SECTOR_SHIFT),
		.type = KEY_INLINE_DATA,
		.value_u64s = (uint8_t)((bytes + 7) / 8),
	};
	memset(key.value, 0, bkey_value_bytes(&key.k));
	write_source_copy(s, block, s->block_begin, key.value, bytes);
	*is_done = true;
	return write_put_keys(op, &key, 1, true, &done);
}

/* --- chunks --- */

/* Sectors that a chunk of [begin, ...) takes. */
static uint64_t chunk_end(uint64_t begin, uint64_t end) { return min(end, begin + (CHUNK_BYTES >> SECTOR_SHIFT)); }

/* Wait for the oldest chunk and put its keys. *@put_to: how far everything is there. */
static int chunk_complete(struct write_chunk *c, bool is_last, uint64_t *put_to)
{
	size_t done = 0;
	int err = is_mutant(MUTANT_DATA_BEFORE_KEY) ? 0 : write_chunk_finish(c);

	if (!err)
		err = write_put_keys(c->op, c->keys, c->key_nr, is_last, &done);
	if (done)
		*put_to = c->keys[done - 1].k.p.offset;
	if (is_mutant(MUTANT_DATA_BEFORE_KEY))
		write_chunk_finish(c);
	write_chunk_release(c);
	return err;
}

/* A chunk from @begin on, up to @end if that isn't too far. -EAGAIN: there is no memory now, and it @may_wait not. */
static int chunk_take(struct write_chunk *c, const struct write_source *s, uint64_t begin, uint64_t end, bool may_wait)
{
	c->begin = begin;
	c->end = chunk_end(begin, end);
	c->given = write_source_at(s, begin << SECTOR_SHIFT, (c->end - c->begin) << SECTOR_SHIFT);
	return write_chunk_memory_take(c, may_wait);
}

static int chunk_start(struct write_chunk *c, const struct write_source *s)
{
	if (!c->given)
		write_source_copy(s, block_bytes_of(c->op->data), c->begin << SECTOR_SHIFT, c->buf,
				  (c->end - c->begin) << SECTOR_SHIFT);
	return write_chunk_start(c);
}

/*
 * From *@put_to up to @end; *@put_to moves on to where everything is there. What is written at once, on a memory
 * device, is completed at once: then its buffers serve for the next chunk, while they are in the processor's cache.
 * Only the first chunk waits for memory; others are under way besides as far as there is some.
 */
static int chunks_write(struct write_op *op, const struct write_source *s, uint64_t *put_to, uint64_t end)
{
	uint64_t next = *put_to;
	struct write_chunk chunks[CHUNKS_IN_FLIGHT];
	unsigned first = 0, nr = 0, made = 0;
	int err = 0;

	/* More than one only if there will be more; a chunk may come out smaller, then it is used again. */
	unsigned wanted = op->memory || end - next <= CHUNK_BYTES >> SECTOR_SHIFT ? 1 : CHUNKS_IN_FLIGHT;

	while (made < wanted && !err)
		err = write_chunk_init(&chunks[made++], op);
	while (!err && (next < end || nr)) {
		if (next < end && nr < wanted && !(nr && write_chunk_is_written(&chunks[first]))) {
			struct write_chunk *c = &chunks[(first + nr) % wanted];

			c->is_alone = wanted == 1;
			int start_err = chunk_take(c, s, next, end, !nr);
			bool has_memory = start_err != -EAGAIN;
			if (!start_err)
				start_err = chunk_start(c, s);
			if (!start_err) {
				next = c->end;
				nr++;
				continue;
			}
			if (has_memory) {
				/* What is under way is finished; then the write ends here. */
				end = next;
				if (!nr || start_err != -ENOSPC)
					err = start_err;
				continue;
			}
		}
		err = chunk_complete(&chunks[first], nr == 1 && next >= end, put_to);
		nr--;
		first = nr ? (first + 1) % wanted : 0;
	}
	/* After an error: let go of what is in flight. */
	while (nr--) {
		write_chunk_finish(&chunks[first]);
		write_chunk_release(&chunks[first]);
		first = (first + 1) % wanted;
	}
	while (made)
		write_chunk_destroy(&chunks[--made]);
	return err;
}

/* --- quotas --- */

int write_new_sectors(struct data *data, const struct data_write_target *file, uint64_t begin, uint64_t end,
		      uint64_t room, uint64_t *added, uint64_t *to)
{
	struct btree_iter it;
	struct bkey_ref k;
	int ret = 0;

	*added = 0;
	*to = begin;
	extents_open(&it, data->trees, file->inum, file->snapshot, begin);
	while (*to < end) {
		ret = btree_iter_peek(&it, &k);
		if (ret < 0)
			break;
		if (ret && !btree_key_is_allocated(k.k.type)) {
			btree_iter_advance(&it);
			continue;
		}
		uint64_t hole_end = ret ? min(end, max(bkey_start_offset(&k.k), *to)) : end;
		uint64_t hole = min(hole_end - *to, room - *added);

		*added += hole;
		*to += hole;
		if (*to < hole_end || !ret)
			break;
		*to = min(end, k.k.p.offset);
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return min(ret, 0);
}

/*
 * Have the owners' quotas promise what the write of *@len bytes adds to what the file has there, and no more: others
 * may want it. Near a limit the write ends where the limit is. -EDQUOT: not a byte more.
 */
static int quota_take(struct write_op *op, const struct inode *inode, uint64_t offset, size_t *len)
{
	struct allocator *a = op->data->writer->allocator;
	uint64_t block = block_bytes_of(op->data);
	uint64_t begin = offset / block * block >> SECTOR_SHIFT;
	uint64_t end = round_up_u64(offset + *len, block) >> SECTOR_SHIFT, room = UINT64_MAX, added, to = end;
	int err = allocator_quotas(a) ? -EDQUOT : 0;

	/* Others may have taken what there was room for in the meantime. */
	while (err == -EDQUOT) {
		int count_err = write_new_sectors(op->data, op->file, begin, end, room, &added, &to);
		if (count_err)
			return count_err;
		if (to << SECTOR_SHIFT <= offset)
			return -EDQUOT;
		err = allocator_quota_reserve(a, &op->reservation, inode, op->file->snapshot, added);
		room = allocator_quota_room(a, inode);
		room -= room % (block >> SECTOR_SHIFT);
	}
	if (!err)
		*len = min(*len, (size_t)((to << SECTOR_SHIFT) - offset));
	return err;
}

/* --- the whole --- */

/* Space for [begin, end). What the write goes over is looked at only where it matters. */
static int space_reserve(struct write_op *op, uint64_t begin, uint64_t end)
{
	struct allocator *allocator = op->data->writer->allocator;
	unsigned replicas = op->replicas_possible;
	uint64_t wanted = (end - begin) * replicas, held;
	int err = disk_reservation_get(allocator, &op->reservation, wanted, replicas,
				       op->makes_room ? DISK_RESERVATION_NOFAIL : 0);

	if (err != -ENOSPC)
		return err;
	int held_err = write_space_held(op->data, op->file, begin, end, replicas, &held);
	if (held_err || !held)
		return held_err ? held_err : err;
	return disk_reservation_get(allocator, &op->reservation, wanted - min(held, wanted), replicas, 0);
}

/* For as much of [begin, *@end) as there is room for, whole blocks; less is found by halving. */
static int space_reserve_some(struct write_op *op, uint64_t begin, uint64_t *end)
{
	uint32_t block = op->data->super->kctx.block_sectors;
	int err = space_reserve(op, begin, *end);

	while (err == -ENOSPC && *end - begin > block) {
		*end = begin + round_up_u64((*end - begin) / 2, block);
		err = space_reserve(op, begin, *end);
	}
	return err;
}

static ssize_t blocks_write(struct write_op *op, const struct write_source *s)
{
	uint64_t block = block_bytes_of(op->data), begin = s->block_begin >> SECTOR_SHIFT, put_to = begin;
	bool is_inline = false;
	int err = op->is_nocow ? write_in_place(op, s, &put_to) : 0;

	if (!err && put_to == begin)
		err = write_inline(op, s, block, &is_inline);
	if (is_inline)
		return err ? err : (ssize_t)(s->end - s->begin);
	uint64_t last = s->block_end >> SECTOR_SHIFT, to = last;
	if (!err && put_to < last)
		err = space_reserve_some(op, put_to, &to);
	if (!err && put_to < last)
		err = chunks_write(op, s, &put_to, to);
	uint64_t end = min(put_to << SECTOR_SHIFT, s->end);
	if (op->has_failed_in_place && put_to < last)
		return -EIO;
	if (end > s->begin)
		return (ssize_t)(end - s->begin);
	return err ? err : -ENOSPC;
}

static ssize_t inode_write(struct write_op *op, const struct inode *inode, uint64_t offset_bytes, const void *buf,
			   size_t len_bytes)
{
	const struct data_write_times *times = op->times;
	struct data *data = op->data;
	struct write_source source = { 0 };

	int err = write_options_take(op, inode);
	if (!err)
		err = write_features_mark(op);
	if (err)
		return err;
	err = quota_take(op, inode, offset_bytes, &len_bytes);
	if (err)
		return err;
	op->size_bytes = inode->size;
	op->changes_inode = times && (times->is_set || (times->clear_setid && inode->mode & 06000));
	op->end_bytes = max(offset_bytes + len_bytes, inode->size);
	err = source_init(&source, data, op->file, inode, offset_bytes, buf, len_bytes);
	ssize_t ret = err ? err : blocks_write(op, &source);
	source_free(&source);
	if (ret > 0 || !is_mutant(MUTANT_RESERVATIONS))
		disk_reservation_put(data->writer->allocator, &op->reservation);
	/* The times come with the last key, which isn't there when it ended early. */
	if (ret > 0 && (size_t)ret < len_bytes)
		err = write_size_raise(data, op->file, 0, times, op->journal_seq);
	return err ? err : ret;
}

ssize_t write_locked(struct data *data, const struct data_write_target *file, uint64_t offset_bytes, const void *buf,
		     size_t len_bytes, bool makes_room, struct pool_buffer *memory, uint64_t *journal_seq)
{
	struct write_op op = {
		.data = data, .file = file, .makes_room = makes_room, .memory = memory, .journal_seq = journal_seq
	};
	struct inode inode;
	int err = write_inode_read(data, file, &inode);

	return err ? err : inode_write(&op, &inode, offset_bytes, buf, len_bytes);
}

ssize_t data_write(struct data *data, const struct data_write_target *file, uint64_t offset_bytes, const void *buf,
		   size_t len_bytes, const struct data_write_times *times, uint64_t *journal_seq)
{
	struct write_op op = { .data = data, .file = file, .times = times, .journal_seq = journal_seq };
	struct inode inode;

	if (!data->writer)
		return -EROFS;
	if (offset_bytes > INT64_MAX || len_bytes > (uint64_t)INT64_MAX - offset_bytes)
		return -EFBIG;
	if (!len_bytes)
		return 0;
	struct mutex *lock = inode_lock(data, file->inum);
	mutex_lock(lock);
	ssize_t ret = write_inode_begin(data, file, offset_bytes, &inode);
	if (!ret)
		ret = inode_write(&op, &inode, offset_bytes, buf, len_bytes);
	mutex_unlock(lock);
	if (ret > 0)
		allocator_clock_add(data->writer->allocator, true, (uint64_t)ret >> SECTOR_SHIFT);
	return ret;
}
