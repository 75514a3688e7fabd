/*
 * Nocow files: data is overwritten where it is (06 §9.8).
 *
 * What a key covers qualifies when nobody else sees it (it is of the snapshot that is written to, and not shared), when
 * nothing depends on its bytes (checksum, compression, encryption, a stripe), and when all its copies can be written.
 * From the front of the write on, all that qualifies is done here; what is left from the first key on that doesn't is
 * written like everything else.
 *
 * The buckets are locked against being moved (bucket_locks.h) from before the keys are looked up until the data has
 * been written. Within that a read section keeps them from being used for something else if the keys go away. Neither
 * is held when keys change: those that were promises (unwritten) become data only where they still lead to where it
 * was written; where they don't, the data is written anew, elsewhere. So does what a device didn't take: the other
 * copies would differ from it.
 *
 * No journal entry covers such data, so whoever wants it to be durable flushes the devices. Each one's writes are
 * counted; of each inode (of those that share a place in the table) the number of its last one is known, and of each
 * device how far it has been flushed. And they flush the journal as far as it was when the keys were looked up,
 * although the inode hasn't changed since: if the data had just been moved, it would be in its old place after a crash.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "base/mutant.h"
#include "data/write_internal.h"
#include "device/device.h"

enum { PIECES_MAX = 8, RETRIES_MAX = 8 };

/* What one key covers of the write. */
struct place_piece {
	uint64_t begin, end; /* sectors of the file */
	bool is_unwritten;
	unsigned ptr_nr;
	struct extent_ptr ptrs[EXTENT_PTRS_MAX]; /* sector: of @begin */
};

struct place_write {
	struct write_op *op;
	const struct write_source *source;
	uint8_t *buf;	     /* CHUNK_BYTES: the bytes from @begin on */
	uint64_t begin, end; /* sectors of the file: what is in it */
	struct place_piece pieces[PIECES_MAX];
	unsigned piece_nr;
	uint16_t locks[PIECES_MAX * EXTENT_PTRS_MAX];
	unsigned lock_nr;
	struct device_io ios[PIECES_MAX * EXTENT_PTRS_MAX];
	struct iovec iovs[PIECES_MAX];
	unsigned io_nr;
};

/* --- what qualifies --- */

/* May the pointer be written through? Then its sector becomes that of @piece's begin. */
static bool ptr_qualifies(const struct super *s, const struct place_piece *piece, uint64_t key_begin,
			  const struct extent_ptr_decoded *p, struct extent_ptr *at)
{
	uint64_t sectors = piece->end - piece->begin;

	if (p->ptr.dev >= PLACE_DEVS_MAX || p->has_stripe || p->ptr.is_cached || crc_is_encoded(&p->crc) ||
	    !super_member_online(s, p->ptr.dev))
		return false;
	const struct super_member *m = &s->members[p->ptr.dev];
	if (super_member_state(s, p->ptr.dev) != MEMBER_RW || m->dev->is_readonly || !m->m.bucket_sectors)
		return false;
	*at = p->ptr;
	at->sector += p->crc.offset_sectors + (piece->begin - key_begin);
	/* Not beyond what it owns. */
	return at->sector / m->m.bucket_sectors == (at->sector + sectors - 1) / m->m.bucket_sectors &&
	       ptr_bucket(s, &p->ptr) == ptr_bucket(s, at) &&
	       crc_is_sane(&p->crc, (p->crc.offset_sectors + (piece->end - key_begin)) << SECTOR_SHIFT);
}

/* Fill in what @k, which covers piece->begin to piece->end, says. */
static bool key_qualifies(const struct write_op *op, struct bkey_ref k, struct place_piece *piece)
{
	const struct super *s = op->data->super;
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	unsigned durability = 0;

	if (k.k.type != KEY_EXTENT || k.k.p.snapshot != op->file->snapshot)
		return false;
	int nr = extent_decode(k, &s->kctx, ptrs, NULL, NULL);
	piece->ptr_nr = 0;
	for (int i = 0; i < nr; i++) {
		if (!ptr_qualifies(s, piece, bkey_start_offset(&k.k), &ptrs[i], &piece->ptrs[i]))
			return false;
		durability += ptr_durability(s, &ptrs[i].ptr);
		piece->is_unwritten = ptrs[0].ptr.is_unwritten;
		piece->ptr_nr++;
	}
	return piece->ptr_nr && durability >= op->replicas_possible;
}

/*
 * Behind the end of a file its last block holds zeroes. A write that makes the file larger may be there after a crash
 * although the new size isn't: so it doesn't go over that block in place, unless what is there doesn't count yet.
 */
static bool piece_spares_end(const struct write_op *op, struct place_piece *piece)
{
	uint64_t block = block_bytes_of(op->data);

	if (!piece->is_unwritten && !op->is_size_kept && op->end_bytes > op->size_bytes)
		piece->end = min(piece->end, op->size_bytes / block * block >> SECTOR_SHIFT);
	return piece->end > piece->begin;
}

/* The pieces from w->begin on, as far as they qualify, behind one another. 0 or an error. */
static int pieces_find(struct place_write *w)
{
	const struct data_write_target *file = w->op->file;
	const struct super *s = w->op->data->super;
	uint64_t at = w->begin;
	struct btree_iter it;
	struct bkey_ref k;
	int found = 0;

	w->piece_nr = w->lock_nr = 0;
	extents_open(&it, w->op->data->trees, file->inum, file->snapshot, at);
	while (at < w->end && w->piece_nr < PIECES_MAX && (found = btree_iter_peek(&it, &k)) > 0) {
		struct place_piece *piece = &w->pieces[w->piece_nr];

		*piece = (struct place_piece){ .begin = at, .end = min(k.k.p.offset, w->end) };
		if (bkey_start_offset(&k.k) > at || k.k.p.offset <= at || !key_qualifies(w->op, k, piece) ||
		    !piece_spares_end(w->op, piece))
			break;
		for (unsigned i = 0; i < piece->ptr_nr; i++)
			w->locks[w->lock_nr++] = bucket_lock_place(piece->ptrs[i].dev, ptr_bucket(s, &piece->ptrs[i]));
		at = piece->end;
		w->piece_nr++;
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return min(found, 0);
}

/* Is it a bucket of data, and the pointer of its present life? Else damage would be spread. 1, 0 or an error. */
static int bucket_is_right(const struct place_write *w, const struct extent_ptr *p)
{
	const struct super *s = w->op->data->super;
	struct bkey_copy copy;
	struct alloc a;
	int found = btree_lookup(w->op->data->trees, BTREE_ALLOC, BPOS(p->dev, ptr_bucket(s, p), 0), &copy);

	if (found <= 0)
		return found;
	return !alloc_decode(copy.k, &a, NULL) && a.data_type == DATA_USER && a.gen == p->gen && !a.stripe;
}

/* Forget the pieces from the first on that lies where it can't. */
static int buckets_check(struct place_write *w)
{
	for (unsigned i = 0; i < w->piece_nr; i++)
		for (unsigned k = 0; k < w->pieces[i].ptr_nr; k++) {
			int is_right = bucket_is_right(w, &w->pieces[i].ptrs[k]);

			if (is_right <= 0) {
				w->piece_nr = i;
				return is_right;
			}
		}
	return 0;
}

/* --- writing --- */

static void written_note(struct place_write *w, unsigned dev)
{
	struct data_writer *writer = w->op->data->writer;
	uint64_t nr = atomic_fetch_add(&writer->in_place.written[dev], 1) + 1;

	atomic_store(&writer->in_place.last[inode_lock_place(w->op->file->inum)][dev], nr);
}

/* The keys have been looked up: what they say is in an entry up to the one that is open now. */
static void keys_note(struct place_write *w)
{
	struct data_writer *writer = w->op->data->writer;

	atomic_store(&writer->in_place.seq[inode_lock_place(w->op->file->inum)], journal_seq(writer->journal));
}

static void io_failed(const struct place_write *w, const struct device_io *io, uint64_t begin)
{
	const struct data_write_target *file = w->op->file;
	char position[DATA_POSITION_BYTES];

	data_position_text(position, file->inum, file->snapshot, begin << SECTOR_SHIFT);
	report_emit(w->op->data->reports, &(struct report){ .level = REPORT_RECOVERED,
							    .err = io->err,
							    .device = io->dev->name,
							    .structure = "file data",
							    .position = position,
							    .expected = "to be overwritten",
							    .found = error_name(io->err),
							    .advice = "It is written elsewhere.",
							    .is_any_place = true });
}

/* All copies of all pieces. The number of pieces, from the front, that are written wherever they are. */
static unsigned pieces_write(struct place_write *w)
{
	const struct super *s = w->op->data->super;
	unsigned good = w->piece_nr, io_piece[PIECES_MAX * EXTENT_PTRS_MAX], nr = 0;
	struct io_group group;

	for (unsigned i = 0; i < w->piece_nr; i++)
		nr += w->pieces[i].ptr_nr;
	io_group_init_for(&group, nr);
	w->io_nr = 0;
	for (unsigned i = 0; i < w->piece_nr; i++) {
		const struct place_piece *piece = &w->pieces[i];

		w->iovs[i].iov_base = w->buf + ((piece->begin - w->begin) << SECTOR_SHIFT);
		w->iovs[i].iov_len = (piece->end - piece->begin) << SECTOR_SHIFT;
		for (unsigned k = 0; k < piece->ptr_nr; k++) {
			struct device_io *io = &w->ios[w->io_nr];

			*io = (struct device_io){ .op = DEVICE_WRITE,
						  .dev = s->members[piece->ptrs[k].dev].dev,
						  .offset_bytes = piece->ptrs[k].sector << SECTOR_SHIFT,
						  .iov = &w->iovs[i],
						  .iov_nr = 1,
						  .len_bytes = w->iovs[i].iov_len };
			io_piece[w->io_nr++] = i;
			io_submit(&group, io);
		}
	}
	io_group_wait(&group);
	for (unsigned i = 0; i < w->io_nr; i++)
		if (w->ios[i].err) {
			io_failed(w, &w->ios[i], w->pieces[io_piece[i]].begin);
			w->op->has_failed_in_place = true;
			good = min(good, io_piece[i]);
		}
	for (unsigned i = 0; i < w->piece_nr; i++)
		for (unsigned k = 0; k < w->pieces[i].ptr_nr; k++)
			written_note(w, w->pieces[i].ptrs[k].dev);
	return good;
}

/* Write what qualifies, with the buckets locked: w->pieces[0] to w->piece_nr - 1 are written. 0 or an error. */
static int place_write_locked(struct place_write *w)
{
	struct data_writer *writer = w->op->data->writer;
	uint16_t locks[ARRAY_NR(w->locks)];
	int err = pieces_find(w);

	if (!err && w->piece_nr)
		write_source_copy(w->source, block_bytes_of(w->op->data), w->begin << SECTOR_SHIFT, w->buf,
				  (w->end - w->begin) << SECTOR_SHIFT);
	for (unsigned retries = 0; !err && w->piece_nr && retries < RETRIES_MAX; retries++) {
		unsigned lock_nr = w->lock_nr;

		memcpy(locks, w->locks, lock_nr * sizeof(*locks));
		bucket_locks_take(&writer->in_place.locks, BUCKET_LOCK_UPDATE, locks, lock_nr);
		struct read_section section = allocator_read_begin(writer->allocator);
		err = pieces_find(w);
		bool is_same = lock_nr == w->lock_nr && !memcmp(locks, w->locks, lock_nr * sizeof(*locks));
		if (!err && is_same)
			err = buckets_check(w);
		if (!err && is_same && w->piece_nr) {
			keys_note(w);
			w->piece_nr = pieces_write(w);
		}
		allocator_read_end(writer->allocator, section);
		bucket_locks_put(&writer->in_place.locks, BUCKET_LOCK_UPDATE, locks, lock_nr);
		if (err || is_same)
			return err;
	}
	w->piece_nr = 0;
	return err;
}

/* --- keys --- */

struct finish_args {
	struct place_write *w;
	bool is_last; /* of the whole write */
	unsigned at;  /* first piece that isn't finished */
	uint64_t from;
	/* of the last run */
	unsigned next_at;
	uint64_t next_from;
	bool is_gone; /* a promise leads elsewhere by now */
};

/* Is @v, of a key that starts at @key_begin, the promise that @piece was written through? */
static bool value_is_piece(const struct extent_value *v, uint64_t key_begin, const struct place_piece *piece)
{
	bool is_same = v->ptr_nr == piece->ptr_nr;

	for (unsigned i = 0; i < v->ptr_nr && is_same; i++) {
		const struct extent_ptr *p = &v->ptrs[i].ptr, *q = &piece->ptrs[i];

		is_same = p->is_unwritten && p->dev == q->dev && p->gen == q->gen &&
			  p->sector + v->ptrs[i].crc.offset_sectors - key_begin == q->sector - piece->begin;
	}
	return is_same;
}

/* In a transaction: the promise at @from becomes data, up to *@to. 1, 0: it isn't there any more, or an error. */
static int promise_keep(struct btree_txn *txn, const struct place_write *w, const struct place_piece *piece,
			uint64_t from, uint64_t *to)
{
	const struct key_context *kctx = &w->op->data->super->kctx;
	const struct data_write_target *file = w->op->file;
	struct key_buf *key = btree_txn_alloc(txn, sizeof(*key));
	struct btree_extent_change change = { 0 };
	struct extent_value v;
	struct btree_iter it;
	struct bkey_ref k;

	if (!key)
		return -ENOMEM;
	write_extents_open(&it, txn, file, from);
	int found = btree_iter_peek(&it, &k);
	if (found > 0)
		key_buf_load(key, k);
	btree_iter_close(&it);
	if (found <= 0)
		return found;
	uint64_t begin = bkey_start_offset(&key->k);
	if (begin > from || key->k.type != KEY_EXTENT || key->k.p.snapshot != file->snapshot ||
	    extent_value_load(&v, key_buf_ref(key), kctx) || !value_is_piece(&v, begin, piece))
		return 0;
	for (unsigned i = 0; i < v.ptr_nr; i++)
		v.ptrs[i].ptr.is_unwritten = false;
	int err = extent_value_store(&v, key);
	if (err)
		return err;
	key_cut_back(key, min(piece->end, key->k.p.offset), kctx);
	key_cut_front(key, from, kctx);
	err = btree_txn_put_extent(txn, BTREE_EXTENTS, &key->k, key->value, &change);
	*to = change.end_offset;
	return err ? err : 1;
}

static int finish_run(struct btree_txn *txn, void *ctx)
{
	struct finish_args *a = ctx;
	struct place_write *w = a->w;
	const struct write_op *op = w->op;
	unsigned puts_max = btree_txn_batch(txn, PUTS_PER_TXN_MAX);
	struct inode inode;

	a->next_at = a->at;
	a->next_from = a->from;
	a->is_gone = false;
	for (unsigned puts = 0; puts < puts_max && a->next_at < w->piece_nr && !a->is_gone; puts++) {
		const struct place_piece *piece = &w->pieces[a->next_at];
		uint64_t to = piece->end;
		int found = piece->is_unwritten ? promise_keep(txn, w, piece, a->next_from, &to) : 1;

		if (found < 0)
			return found;
		a->is_gone = !found;
		if (!found)
			break;
		a->next_from = to;
		a->next_at += to >= piece->end;
	}
	if (a->next_from == a->from)
		return 0;
	int err = inode_txn_get(txn, op->file->inum, op->file->snapshot, &inode);
	if (err)
		return err;
	if (!op->is_size_kept)
		inode.size = max(inode.size, min(a->next_from << SECTOR_SHIFT, op->end_bytes));
	if (a->is_last && a->next_at == w->piece_nr)
		write_times_set(&inode, op->times);
	return inode_txn_put(txn, &inode);
}

/* What was written becomes part of the file: *@done, as far as it did. 0 or an error. */
static int pieces_finish(struct place_write *w, bool is_last, uint64_t *done)
{
	struct write_op *op = w->op;
	struct btree_commit_opts opts = { .name = "write_in_place",
					  .watermark = WATERMARK_NORMAL,
					  .journal_seq = op->journal_seq,
					  .reservation = &op->reservation };
	struct finish_args a = { .w = w, .is_last = is_last, .from = w->begin };
	uint64_t end = w->pieces[w->piece_nr - 1].end;
	bool has_change = is_last && op->changes_inode;
	int err = 0;

	has_change |= !op->is_size_kept && min(end << SECTOR_SHIFT, op->end_bytes) > op->size_bytes;
	for (unsigned i = 0; i < w->piece_nr; i++)
		has_change |= w->pieces[i].is_unwritten;
	*done = has_change ? w->begin : end;
	while (!err && !a.is_gone && *done < end) {
		err = btree_txn_run(op->data->trees, &opts, finish_run, &a);
		if (err)
			break;
		a.at = a.next_at;
		*done = a.from = a.next_from;
	}
	return err;
}

/* --- the whole --- */

int write_in_place(struct write_op *op, const struct write_source *s, uint64_t *done_to)
{
	uint64_t end = s->block_end >> SECTOR_SHIFT;
	struct place_write *w = malloc(sizeof(*w));
	struct pool_buffer memory = { 0 };
	bool is_going_on = true;
	int err = 0;

	*done_to = s->block_begin >> SECTOR_SHIFT;
	if (!w)
		return -ENOMEM;
	w->op = op;
	w->source = s;
	size_t bytes = min((size_t)(s->block_end - s->block_begin), (size_t)CHUNK_BYTES);
	if (!op->memory)
		err = pool_take(&op->data->writes, &bytes, &memory, 1, true);
	w->buf = op->memory ? op->memory[0].data : memory.data;
	while (!err && is_going_on && *done_to < end) {
		w->begin = *done_to;
		w->end = min(end, w->begin + (CHUNK_BYTES >> SECTOR_SHIFT));
		err = place_write_locked(w);
		is_going_on = !err && w->piece_nr;
		if (!is_going_on)
			break;
		uint64_t written_to = w->pieces[w->piece_nr - 1].end;
		err = pieces_finish(w, written_to == end, done_to);
		is_going_on = *done_to == written_to;
	}
	pool_give(&op->data->writes, &memory, 1);
	free(w);
	return err;
}

/* --- durability --- */

/* Has the device had a cache that may hold what isn't durable, up to write @nr? */
static bool must_be_flushed(struct data_writer *writer, const struct super *s, unsigned dev, uint64_t nr)
{
	return nr > atomic_load(&writer->in_place.flushed[dev]) && super_member_online(s, dev) &&
	       super_member_state(s, dev) != MEMBER_FAILED && !s->members[dev].dev->is_readonly;
}

static int devices_flush(struct data *data, uint64_t devs, uint64_t *failed)
{
	struct data_writer *writer = data->writer;
	struct device_io ios[PLACE_DEVS_MAX];
	uint64_t written[PLACE_DEVS_MAX];
	struct io_group group;

	*failed = 0;
	io_group_init_for(&group, (unsigned)__builtin_popcountll(devs));
	for (unsigned dev = 0; dev < PLACE_DEVS_MAX; dev++) {
		if (!(devs >> dev & 1))
			continue;
		written[dev] = atomic_load(&writer->in_place.written[dev]);
		ios[dev] = (struct device_io){ .op = DEVICE_FLUSH, .dev = data->super->members[dev].dev };
		io_submit(&group, &ios[dev]);
	}
	io_group_wait(&group);
	for (unsigned dev = 0; dev < PLACE_DEVS_MAX; dev++) {
		if (!(devs >> dev & 1))
			continue;
		if (ios[dev].err) {
			*failed |= 1ull << dev;
			continue;
		}
		uint64_t before = atomic_load(&writer->in_place.flushed[dev]);
		while (before < written[dev] &&
		       !atomic_compare_exchange_weak(&writer->in_place.flushed[dev], &before, written[dev]))
			;
	}
	return 1;
}

int data_flush_in_place(struct data *data, const uint64_t *inum, uint64_t *failed)
{
	struct data_writer *writer = data->writer;
	uint64_t devs = 0;

	*failed = 0;
	if (!writer || is_mutant(MUTANT_NOCOW_FLUSH))
		return 0;
	for (unsigned dev = 0; dev < PLACE_DEVS_MAX; dev++) {
		uint64_t nr = inum ? atomic_load(&writer->in_place.last[inode_lock_place(*inum)][dev])
				   : atomic_load(&writer->in_place.written[dev]);

		if (must_be_flushed(writer, data->super, dev, nr))
			devs |= 1ull << dev;
	}
	return devs ? devices_flush(data, devs, failed) : 0;
}

uint64_t data_in_place_seq(const struct data *data, uint64_t inum)
{
	return data->writer ? atomic_load(&data->writer->in_place.seq[inode_lock_place(inum)]) : 0;
}
