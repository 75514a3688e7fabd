/*
 * Buckets and counters: what references say against what alloc keys and counters say (07 §18.1, §18.2).
 *
 * check_allocations recomputes every bucket from what points into it. Pointers come in the order of files, buckets in
 * that of devices; so a table holds a window of buckets, and the pointers are walked once for each window. All counters
 * of the filesystem are summed up on the way.
 *
 * check_alloc_info compares the indexes that are in the order of buckets, or nearly so (free space is sorted by
 * generation bits first: one walk for each of those that occur).
 *
 * Memory: of check_opts.memory_bytes the window (20 bytes per bucket) takes at most three quarters, and the check_table
 * with the sorted blocks of stripes the rest. One row of counters has 32 bytes; there are at most 8192.
 */
#include <errno.h>
#include <string.h>

#include "base/array.h"
#include "format/stripe.h"
#include "recovery/check_internal.h"

enum { GEN_DISTANCE_MAX = 96, ROWS_MAX = 1 << 13 };
enum { BUCKET_HAS_KEY = 1, BUCKET_IS_MIXED = 2 };

/* What is known of a bucket in the window. */
struct bucket {
	uint32_t dirty, cached, stripe;
	uint8_t gen, oldest_gen;
	uint8_t type; /* of what points at it: sb, journal, btree, user, parity; 0 nothing yet */
	uint8_t redundancy;
	uint8_t flags;
};

struct allocations {
	struct check *c;
	struct bucket *window;
	uint64_t window_start, window_end; /* in buckets, counted over all devices */
	uint64_t *dev_base;		   /* first bucket of each device in that count; one more at the end */
	bool is_first;			   /* the first sweep counts what is not of buckets, too */
	struct usage_dev *devs;		   /* counted */
	struct usage_replicas *rows;	   /* counted */
	size_t row_nr, row_capacity;
	uint64_t reserved[4], inode_nr;
	struct check_table stripe_blocks; /* of pointers into stripes: idx, block, sectors */
};

/* The bucket, if it is in the window. */
static struct bucket *bucket_at(const struct allocations *a, unsigned dev, uint64_t nr)
{
	uint64_t i = a->dev_base[dev] + nr;

	return i >= a->window_start && i < a->window_end ? &a->window[i - a->window_start] : NULL;
}

/* --- rows of counters --- */

static int row_add(struct allocations *a, unsigned data_type, unsigned nr_required, const uint8_t *devs, unsigned nr,
		   uint64_t sectors)
{
	struct usage_replicas row = { .data_type = (uint8_t)data_type,
				      .nr_devs = (uint8_t)nr,
				      .nr_required = (uint8_t)nr_required };

	for (unsigned i = 0; i < nr; i++) {
		unsigned j = i;
		for (; j && row.devs[j - 1] > devs[i]; j--)
			row.devs[j] = row.devs[j - 1];
		row.devs[j] = devs[i];
	}
	for (size_t i = a->row_nr; i-- > 0;)
		if (!memcmp(&a->rows[i], &row, USAGE_REPLICAS_NAME_BYTES)) {
			a->rows[i].sectors += sectors;
			/* What was used last is looked at first. */
			struct usage_replicas found = a->rows[i];
			a->rows[i] = a->rows[a->row_nr - 1];
			a->rows[a->row_nr - 1] = found;
			return 0;
		}
	if (a->row_nr == ROWS_MAX)
		return -E2BIG;
	if (array_grow(&a->rows, &a->row_capacity, a->row_nr + 1, sizeof(*a->rows)))
		return -ENOMEM;
	row.sectors = sectors;
	a->rows[a->row_nr++] = row;
	return 0;
}

/* --- a sweep: marking --- */

static int load_alloc_key(void *ctx, struct bkey_ref k)
{
	struct allocations *a = ctx;
	struct alloc key;

	if (k.k.p.inode >= a->c->super->member_nr || !check_member(a->c, (unsigned)k.k.p.inode) ||
	    k.k.p.offset >= check_member(a->c, (unsigned)k.k.p.inode)->bucket_nr || alloc_decode(k, &key, NULL))
		return 0;
	struct bucket *b = bucket_at(a, (unsigned)k.k.p.inode, k.k.p.offset);
	if (b) {
		b->gen = key.gen;
		b->oldest_gen = key.oldest_gen;
		b->flags |= BUCKET_HAS_KEY;
	}
	return 0;
}

static void mark_range(struct allocations *a, unsigned dev, uint64_t start, uint64_t end, unsigned type)
{
	const struct member_geometry *m = check_member(a->c, dev);

	while (start < end) {
		uint64_t nr = start / m->bucket_sectors, next = min((nr + 1) * m->bucket_sectors, end);
		struct bucket *b = nr < m->bucket_nr ? bucket_at(a, dev, nr) : NULL;

		if (b) {
			b->type = (uint8_t)type;
			b->dirty += (uint32_t)(next - start);
		}
		start = next;
	}
}

/* Superblocks and journal of a device, as the device itself says, or where it isn't here, as its alloc keys do. */
static void mark_device(struct allocations *a, unsigned dev)
{
	const struct super_member *m = &a->c->super->members[dev];
	const struct sb_layout_disk *layout = &m->sb->layout;
	uint64_t sectors = 1ull << min(layout->sb_max_size_bits, (uint8_t)SB_SIZE_BITS_MAX);

	for (unsigned i = 0; i < min((unsigned)layout->nr_superblocks, (unsigned)SB_LAYOUT_COPIES_MAX); i++) {
		uint64_t at = le64_get(layout->sb_offset[i]);

		if (at == SB_SECTOR)
			mark_range(a, dev, 0, SB_SECTOR, DATA_SB);
		mark_range(a, dev, at, at + sectors, DATA_SB);
	}
	for (unsigned i = 0; i < sb_journal_range_nr(m->sb); i++) {
		uint64_t start, nr, sectors_per = m->m.bucket_sectors;

		sb_journal_range(m->sb, i, &start, &nr);
		if (start < m->m.nbuckets)
			mark_range(a, dev, start * sectors_per, min(start + nr, m->m.nbuckets) * sectors_per,
				   DATA_JOURNAL);
	}
}

static int mark_stripe(void *ctx, struct bkey_ref k)
{
	struct allocations *a = ctx;
	uint8_t devs[STRIPE_BLOCKS_MAX];
	struct stripe s;

	if (k.k.type != KEY_STRIPE || stripe_decode(k, &s, NULL) || s.nr_redundant >= s.nr_blocks ||
	    s.nr_blocks > STRIPE_BLOCKS_MAX)
		return 0;
	if (a->is_first && check_member(a->c, s.ptrs[0].dev) &&
	    s.sectors != check_member(a->c, s.ptrs[0].dev)->bucket_sectors)
		check_report_pos(a->c, CHECK_stripe_sectors_wrong, BTREE_STRIPES, k.k.p, "the size of a bucket", "%u",
				 s.sectors);
	for (unsigned i = 0; i < s.nr_blocks; i++) {
		uint64_t nr;
		struct bucket *b = check_pointer_bucket(a->c, &s.ptrs[i], &nr) ? bucket_at(a, s.ptrs[i].dev, nr) : NULL;

		devs[i] = s.ptrs[i].dev;
		if (!b)
			continue;
		if (s.ptrs[i].sector % check_member(a->c, s.ptrs[i].dev)->bucket_sectors)
			check_report_pos(a->c, CHECK_stripe_sectors_wrong, BTREE_STRIPES, k.k.p,
					 "blocks that begin where buckets do", "block %u at sector %llu", i,
					 (unsigned long long)s.ptrs[i].sector);
		if (b->stripe)
			check_report_pos(a->c, ERROR_alloc_key_stripe_wrong, BTREE_STRIPES, k.k.p,
					 "buckets of no other stripe", "block %u in one of stripe %u", i, b->stripe);
		if (b->flags & BUCKET_HAS_KEY && b->gen != s.ptrs[i].gen)
			check_report_pos(a->c,
					 gen_cmp(s.ptrs[i].gen, b->gen) > 0 ? ERROR_ptr_gen_newer_than_bucket_gen
									    : ERROR_stale_dirty_ptr,
					 BTREE_STRIPES, k.k.p, "the generation of its bucket",
					 "block %u: %u, bucket %u", i, s.ptrs[i].gen, b->gen);
		b->stripe = (uint32_t)k.k.p.offset;
		b->redundancy = s.nr_redundant;
		if (i + s.nr_redundant >= s.nr_blocks) {
			b->type = DATA_PARITY;
			b->dirty += s.sectors;
		}
	}
	return a->is_first ? row_add(a, DATA_PARITY, s.nr_blocks - s.nr_redundant, devs, s.nr_blocks,
				     (uint64_t)s.sectors * s.nr_redundant)
			   : 0;
}

/* --- a pointer --- */

static int bad_pointer(struct allocations *a, const struct check_pointers *p, unsigned i, unsigned id,
		       const char *expected, const char *found, unsigned value)
{
	const struct extent_ptr *ptr = &p->ptrs[i].ptr;

	return check_report_pos(a->c, id, p->btree_id, p->k.p, expected, "pointer to device %u sector %llu: %s %u",
				ptr->dev, (unsigned long long)ptr->sector, found, value);
}

/* Is the generation one the pointer may have? False: it doesn't count. */
static bool pointer_gen_ok(struct allocations *a, const struct check_pointers *p, unsigned i, const struct bucket *b)
{
	const struct extent_ptr *ptr = &p->ptrs[i].ptr;

	if (gen_cmp(ptr->gen, b->gen) > 0)
		bad_pointer(a, p, i, ERROR_ptr_gen_newer_than_bucket_gen, "at most the bucket's generation",
			    "generation", ptr->gen);
	else if (gen_cmp(b->gen, ptr->gen) > GEN_DISTANCE_MAX)
		bad_pointer(a, p, i, ERROR_ptr_too_stale, "at most 96 generations behind the bucket", "generation",
			    ptr->gen);
	else if (!ptr->is_cached && ptr->gen != b->gen)
		bad_pointer(a, p, i, ERROR_stale_dirty_ptr, "the bucket's generation", "generation", ptr->gen);
	else if (gen_cmp(b->oldest_gen, ptr->gen) > 0)
		bad_pointer(a, p, i, CHECK_alloc_key_oldest_gen_wrong, "at least the bucket's oldest_gen", "generation",
			    ptr->gen);
	return ptr->gen == b->gen;
}

/* Count the pointer in its bucket. *@counts: it is not stale. */
static int mark_pointer(struct allocations *a, const struct check_pointers *p, unsigned i, struct bucket *b,
			bool *counts)
{
	const struct extent_ptr *ptr = &p->ptrs[i].ptr;
	uint32_t sectors = check_pointer_sectors(a->c, p, i);
	unsigned type = p->level ? DATA_BTREE : DATA_USER;

	*counts = false;
	if (b->flags & BUCKET_HAS_KEY && !pointer_gen_ok(a, p, i, b))
		return 0;
	if (!(b->flags & BUCKET_HAS_KEY) && !(a->c->damaged & CHECK_BTREE(BTREE_ALLOC)))
		bad_pointer(a, p, i, ERROR_ptr_to_missing_alloc_key, "an alloc key of the bucket",
			    "none for generation", ptr->gen);
	*counts = true;
	if (b->type && b->type != type) {
		b->flags |= BUCKET_IS_MIXED;
		return bad_pointer(a, p, i, ERROR_ptr_bucket_data_type_mismatch, "one type of data in a bucket",
				   "another besides type", b->type);
	}
	uint32_t *count = ptr->is_cached ? &b->cached : &b->dirty;
	if (__builtin_add_overflow(*count, sectors, count)) {
		*count = UINT32_MAX;
		bad_pointer(a, p, i, ERROR_bucket_sector_count_overflow, "less than 2^32 sectors", "overflow by",
			    sectors);
	}
	b->type = (uint8_t)type;
	return 0;
}

/* A pointer into a stripe: does the stripe say so too? */
static int mark_stripe_pointer(struct allocations *a, const struct check_pointers *p, unsigned i)
{
	const struct extent_ptr_decoded *d = &p->ptrs[i];
	uint8_t record[16] = { 0 }, devs[STRIPE_BLOCKS_MAX];
	struct bkey_copy found;
	struct stripe s;

	int n = btree_lookup(a->c->trees, BTREE_STRIPES, BPOS(0, d->stripe.idx, 0), &found);
	if (n == -ENOMEM)
		return n;
	if (n < 0)
		return 0;
	if (!n || found.k.k.type != KEY_STRIPE || stripe_decode(found.k, &s, NULL))
		return bad_pointer(a, p, i, ERROR_ptr_to_missing_stripe, "a stripe", "none of number",
				   (unsigned)d->stripe.idx);
	unsigned block = d->stripe.block, data_nr = s.nr_blocks - (unsigned)min(s.nr_redundant, s.nr_blocks);
	if (block >= data_nr || s.ptrs[block].dev != d->ptr.dev || s.ptrs[block].gen != d->ptr.gen ||
	    d->ptr.sector < s.ptrs[block].sector || d->ptr.sector >= s.ptrs[block].sector + s.sectors)
		return bad_pointer(a, p, i, ERROR_ptr_to_incorrect_stripe, "to lie in its stripe's block",
				   "outside of block", block);
	if (d->stripe.redundancy != s.nr_redundant)
		bad_pointer(a, p, i, CHECK_stripe_redundancy_wrong, "the stripe's redundancy", "redundancy",
			    d->stripe.redundancy);
	uint32_t sectors = check_pointer_sectors(a->c, p, i);
	check_be64(record, d->stripe.idx);
	record[8] = (uint8_t)block;
	check_be32(record + 12, sectors);
	for (unsigned j = 0; j < s.nr_blocks; j++)
		devs[j] = s.ptrs[j].dev;
	int err = check_table_add(&a->stripe_blocks, record);
	return err ? err : row_add(a, DATA_USER, data_nr, devs, s.nr_blocks, sectors);
}

static int mark_pointers(void *ctx, const struct check_pointers *p)
{
	struct allocations *a = ctx;
	uint8_t devs[EXTENT_PTRS_MAX];
	unsigned dev_nr = 0;
	uint64_t sum = 0;
	bool has_stripe = false;

	if (a->is_first && p->k.version.lo > a->c->t->journal->key_version && !a->c->t->is_writable)
		check_report_pos(a->c, ERROR_bkey_version_in_future, p->btree_id, p->k.p,
				 "at most the recorded key version", "%llu", (unsigned long long)p->k.version.lo);
	for (unsigned i = 0; i < p->nr; i++) {
		const struct extent_ptr *ptr = &p->ptrs[i].ptr;
		bool counts = false;
		uint64_t nr;
		struct bucket *b = check_pointer_bucket(a->c, ptr, &nr) ? bucket_at(a, ptr->dev, nr) : NULL;
		int err = b ? mark_pointer(a, p, i, b, &counts) : 0;

		/* A stale cached pointer counts nowhere, and that is known in its bucket's sweep only. */
		if (!err && ptr->is_cached && counts)
			err = row_add(a, DATA_CACHED, 1, &ptr->dev, 1, check_pointer_sectors(a->c, p, i));
		if (!err && !ptr->is_cached && a->is_first && p->ptrs[i].has_stripe)
			err = mark_stripe_pointer(a, p, i);
		if (err)
			return err;
		if (ptr->is_cached)
			continue;
		has_stripe |= p->ptrs[i].has_stripe;
		if (!p->ptrs[i].has_stripe) {
			devs[dev_nr++] = ptr->dev;
			sum += check_pointer_sectors(a->c, p, i);
		}
	}
	return a->is_first && dev_nr ? row_add(a, p->level ? DATA_BTREE : DATA_USER, !has_stripe, devs, dev_nr, sum)
				     : 0;
}

static int count_reserved(void *ctx, struct bkey_ref k)
{
	struct allocations *a = ctx;
	struct reservation_value {
		le32 generation;
		uint8_t nr_replicas, pad[3];
	} r = { 0 };

	if (k.k.type != KEY_RESERVATION)
		return 0;
	memcpy(&r, k.value, min(sizeof(r), bkey_value_bytes(&k.k)));
	if (r.nr_replicas)
		a->reserved[min(r.nr_replicas, 4) - 1] += (uint64_t)k.k.size * r.nr_replicas;
	return 0;
}

static int count_inode(void *ctx, struct bkey_ref k)
{
	struct allocations *a = ctx;

	a->inode_nr += k.k.type == KEY_INODE || k.k.type == KEY_INODE_V2 || k.k.type == KEY_INODE_V3;
	return 0;
}

/* --- a sweep: comparing --- */

static uint64_t fragmentation(const struct alloc *a, uint32_t bucket_sectors)
{
	bool is_movable = a->data_type == DATA_BTREE || a->data_type == DATA_USER || a->data_type == DATA_STRIPE;

	if (!is_movable || !a->dirty_sectors || a->dirty_sectors >= bucket_sectors)
		return 0;
	return ((uint64_t)a->dirty_sectors << 31) / bucket_sectors;
}

/* Fields that no reference determines. */
static void compare_own_fields(struct check *c, unsigned dev, uint64_t nr, const struct alloc *key)
{
	const struct member_geometry *m = check_member(c, dev);
	uint64_t frag = fragmentation(key, m->bucket_sectors);
	bool is_used = key->dirty_sectors || key->cached_sectors || key->stripe;

	if (key->fragmentation_lru != frag)
		check_report_bucket(c, ERROR_alloc_key_fragmentation_lru_wrong, dev, nr, "that of its sectors",
				    "fragmentation %llx instead of %llx", (unsigned long long)key->fragmentation_lru,
				    (unsigned long long)frag);
	if (gen_cmp(key->oldest_gen, key->gen) > 0)
		check_report_bucket(c, CHECK_alloc_key_oldest_gen_wrong, dev, nr, "oldest_gen at most the generation",
				    "%u > %u", key->oldest_gen, key->gen);
	if (is_used &&
	    (key->flags & (ALLOC_NEED_DISCARD | ALLOC_NEED_INC_GEN)) != (ALLOC_NEED_DISCARD | ALLOC_NEED_INC_GEN))
		check_report_bucket(c, CHECK_alloc_key_flags_wrong, dev, nr, "need_discard and need_inc_gen",
				    "flags %x of a used bucket", key->flags);
	if (key->journal_seq >= c->seq_next)
		check_report_bucket(c, ERROR_alloc_key_journal_seq_in_future, dev, nr, "a journal seq that exists",
				    "%llu", (unsigned long long)key->journal_seq);
	if (key->data_type == DATA_CACHED ? false : is_used && (!key->io_time[0] || key->io_time[0] >> 48))
		check_report_bucket(c, ERROR_alloc_key_io_time_bad, dev, nr, "a read time", "%llu",
				    (unsigned long long)key->io_time[0]);
}

struct bucket_compare {
	struct allocations *a;
	unsigned dev;
	uint64_t next; /* first bucket that wasn't compared yet */
	uint64_t end;  /* of this device in this window */
};

static void compare_number(struct bucket_compare *w, unsigned id, uint64_t nr, const char *what, uint64_t stored,
			   uint64_t counted)
{
	if (stored != counted)
		check_report_bucket(w->a->c, id, w->dev, nr, "what its references say", "%s %llu instead of %llu", what,
				    (unsigned long long)stored, (unsigned long long)counted);
}

/* One bucket: the counted values against the key, and into the device's counters. @key may be all zero: no key. */
static void compare_bucket(struct bucket_compare *w, uint64_t nr, const struct alloc *key, bool is_whole)
{
	const struct member_geometry *m = check_member(w->a->c, w->dev);
	struct bucket *b = bucket_at(w->a, w->dev, nr);
	struct alloc counted = *key;

	counted.dirty_sectors = b->dirty;
	counted.cached_sectors = b->cached;
	counted.stripe = b->stripe;
	counted.stripe_redundancy = b->redundancy;
	counted.data_type = (uint8_t)alloc_data_type(&counted, b->type);
	/* Of a device that isn't here nobody can say where its superblocks are; mixed buckets have been told. */
	bool is_unknown = !super_member_online(w->a->c->super, w->dev) &&
			  (key->data_type == DATA_SB || key->data_type == DATA_JOURNAL);
	if (is_unknown || b->flags & BUCKET_IS_MIXED || !is_whole)
		counted = *key;

	compare_number(w, ERROR_alloc_key_data_type_wrong, nr, "data type", key->data_type, counted.data_type);
	compare_number(w, ERROR_alloc_key_dirty_sectors_wrong, nr, "dirty sectors", key->dirty_sectors,
		       counted.dirty_sectors);
	compare_number(w, ERROR_alloc_key_cached_sectors_wrong, nr, "cached sectors", key->cached_sectors,
		       counted.cached_sectors);
	compare_number(w, ERROR_alloc_key_stripe_wrong, nr, "stripe", key->stripe, counted.stripe);
	compare_number(w, ERROR_alloc_key_stripe_redundancy_wrong, nr, "stripe redundancy", key->stripe_redundancy,
		       counted.stripe_redundancy);

	struct usage_dev *d = &w->a->devs[w->dev];
	d->types[counted.data_type].buckets++;
	d->types[counted.data_type].sectors += counted.data_type == DATA_CACHED ? 0 : counted.dirty_sectors;
	d->types[DATA_CACHED].sectors += counted.cached_sectors;
	if (counted.dirty_sectors && counted.dirty_sectors < m->bucket_sectors)
		d->types[counted.data_type].fragmented += m->bucket_sectors - counted.dirty_sectors;
}

static const uint64_t sources =
	CHECK_BTREE(BTREE_EXTENTS) | CHECK_BTREE(BTREE_REFLINK) | CHECK_BTREE(BTREE_STRIPES) | CHECK_BTREE(BTREE_ALLOC);

static void compare_until(struct bucket_compare *w, uint64_t nr)
{
	static const struct alloc none;
	const struct member_geometry *m = check_member(w->a->c, w->dev);

	for (; w->next < nr; w->next++)
		if (w->next >= m->first_bucket)
			compare_bucket(w, w->next, &none, !(w->a->c->damaged & sources));
}

static int compare_key(void *ctx, struct bkey_ref k)
{
	struct bucket_compare *w = ctx;
	struct alloc key;

	compare_until(w, k.k.p.offset);
	w->next = k.k.p.offset + 1;
	if (alloc_decode(k, &key, NULL) || key.data_type >= DATA_NR_1_4)
		return 0;
	compare_own_fields(w->a->c, w->dev, k.k.p.offset, &key);
	/* Every interior node lost hides nodes; which ones nobody knows. */
	compare_bucket(w, k.k.p.offset, &key, !w->a->c->damaged);
	return 0;
}

static int compare_window(struct allocations *a)
{
	int err = 0;

	for (unsigned dev = 0; !err && dev < a->c->super->member_nr; dev++) {
		uint64_t start = max(a->window_start, a->dev_base[dev]);
		uint64_t end = min(a->window_end, a->dev_base[dev + 1]);

		if (start >= end)
			continue;
		struct bucket_compare w = { a, dev, start - a->dev_base[dev], end - a->dev_base[dev] };
		err = check_keys(a->c, BTREE_ALLOC, 0, BPOS(dev, w.next, 0), BPOS(dev, w.end - 1, UINT32_MAX),
				 compare_key, &w);
		if (!err)
			compare_until(&w, w.end);
	}
	return err;
}

static int sweep(struct allocations *a)
{
	struct check *c = a->c;

	memset(a->window, 0, (a->window_end - a->window_start) * sizeof(*a->window));
	int err = check_keys(c, BTREE_ALLOC, 0, POS_MIN, SPOS_MAX, load_alloc_key, a);
	for (unsigned dev = 0; !err && dev < c->super->member_nr; dev++)
		if (super_member_online(c->super, dev) && check_member(c, dev))
			mark_device(a, dev);
	if (!err)
		err = check_keys(c, BTREE_STRIPES, 0, POS_MIN, SPOS_MAX, mark_stripe, a);
	if (!err)
		err = check_each_pointers(c, mark_pointers, a);
	if (!err)
		err = compare_window(a);
	a->is_first = false;
	return err;
}

/* --- counters --- */

static void compare_devs(struct allocations *a, const struct usage *u)
{
	struct check *c = a->c;

	for (unsigned dev = 0; dev < c->super->member_nr; dev++) {
		if (!check_member(c, dev))
			continue;
		for (unsigned t = 0; t < DATA_NR_1_4; t++) {
			const uint64_t counted[] = { a->devs[dev].types[t].buckets, a->devs[dev].types[t].sectors,
						     a->devs[dev].types[t].fragmented };
			const uint64_t stored[] = { u->devs[dev].types[t].buckets, u->devs[dev].types[t].sectors,
						    u->devs[dev].types[t].fragmented };
			static const struct {
				unsigned id;
				const char *what;
			} counters[] = { { ERROR_dev_usage_buckets_wrong, "buckets" },
					 { ERROR_dev_usage_sectors_wrong, "sectors" },
					 { ERROR_dev_usage_fragmented_wrong, "fragmented sectors" } };

			for (unsigned i = 0; i < ARRAY_NR(counters); i++)
				if (counted[i] != stored[i])
					check_report(c, counters[i].id, c->super->members[dev].name, "counter",
						     data_type_name(t), "what was counted", "%s %llu instead of %llu",
						     counters[i].what, (unsigned long long)stored[i],
						     (unsigned long long)counted[i]);
		}
	}
}

static void row_text(char text[CHECK_TEXT_BYTES], const struct usage_replicas *r)
{
	struct strbuf out = strbuf_fixed(text, CHECK_TEXT_BYTES);

	strbuf_printf(&out, "%s %u/%u [", r->data_type < DATA_NR ? data_type_name(r->data_type) : "?", r->nr_required,
		      r->nr_devs);
	for (unsigned i = 0; i < r->nr_devs; i++)
		strbuf_printf(&out, i ? " %u" : "%u", r->devs[i]);
	strbuf_add_char(&out, ']');
}

static bool row_is_marked(const struct check *c, const struct usage *u, const struct usage_replicas *r)
{
	struct replicas_walk w = sb_replicas_walk(c->super->sb);
	struct replicas_entry e;

	while (sb_replicas_next(&w, &e, NULL) > 0)
		if (e.data_type == r->data_type && e.nr_required == r->nr_required && e.nr_devs == r->nr_devs &&
		    !memcmp(e.devs, r->devs, r->nr_devs))
			return true;
	for (size_t i = 0; i < u->replicas_nr; i++)
		if (!memcmp(&u->replicas[i], r, USAGE_REPLICAS_NAME_BYTES))
			return true;
	return false;
}

static const struct usage_replicas *row_find(const struct usage_replicas *rows, size_t nr,
					     const struct usage_replicas *r)
{
	for (size_t i = 0; i < nr; i++)
		if (!memcmp(&rows[i], r, USAGE_REPLICAS_NAME_BYTES))
			return &rows[i];
	return NULL;
}

static void compare_row(struct check *c, const struct usage_replicas *r, uint64_t stored, uint64_t counted)
{
	char text[CHECK_TEXT_BYTES];

	row_text(text, r);
	if (stored != counted)
		check_report(c, ERROR_fs_usage_replicas_wrong, NULL, "counter", text, "what was counted",
			     "%llu sectors instead of %llu", (unsigned long long)stored, (unsigned long long)counted);
}

static void compare_rows(struct allocations *a, const struct usage *u)
{
	for (size_t i = 0; i < a->row_nr; i++) {
		const struct usage_replicas *stored = row_find(u->replicas, u->replicas_nr, &a->rows[i]);
		char text[CHECK_TEXT_BYTES];

		row_text(text, &a->rows[i]);
		if (!row_is_marked(a->c, u, &a->rows[i]))
			check_report(a->c, ERROR_ptr_to_missing_replicas_entry, NULL, "replicas entry", text,
				     "to be in the superblock", "none");
		else
			compare_row(a->c, &a->rows[i], stored ? stored->sectors : 0, a->rows[i].sectors);
	}
	for (size_t i = 0; i < u->replicas_nr; i++)
		if (!row_find(a->rows, a->row_nr, &u->replicas[i]))
			compare_row(a->c, &u->replicas[i], u->replicas[i].sectors, 0);
}

static void compare_counters(struct allocations *a)
{
	struct check *c = a->c;
	const struct usage *u = c->t->usage ? c->t->usage : &c->usage;
	const struct journal_state *j = c->t->journal;

	/* Of one that is being written only the allocator knows them. */
	if (!check_is_whole(c, UINT64_MAX) || (c->t->is_writable && !c->t->usage))
		return;
	if (!u->is_known) {
		check_report(c, ERROR_fs_usage_nr_inodes_wrong, NULL, "counter", "all", "to be there", "none");
		return;
	}
	if (u->inodes != a->inode_nr)
		check_report(c, ERROR_fs_usage_nr_inodes_wrong, NULL, "counter", "inodes", "what was counted",
			     "%llu instead of %llu", (unsigned long long)u->inodes, (unsigned long long)a->inode_nr);
	for (unsigned i = 0; i < 4 && !c->t->usage; i++)
		if (j->reserved[i] != a->reserved[i])
			check_report(c, ERROR_fs_usage_persistent_reserved_wrong, NULL, "counter", "reserved",
				     "what was counted", "%llu instead of %llu for %u replicas",
				     (unsigned long long)j->reserved[i], (unsigned long long)a->reserved[i], i + 1);
	compare_devs(a, u);
	compare_rows(a, u);
}

/* --- stripes: sectors of each block --- */

static int compare_stripe(void *ctx, struct bkey_ref k)
{
	struct allocations *a = ctx;
	uint64_t sums[STRIPE_BLOCKS_MAX] = { 0 };
	const uint8_t *r;
	struct stripe s;

	while ((r = check_table_peek(&a->stripe_blocks)) && check_be64_get(r) <= k.k.p.offset) {
		if (check_be64_get(r) == k.k.p.offset && r[8] < STRIPE_BLOCKS_MAX)
			sums[r[8]] += check_be32_get(r + 12);
		check_table_next(&a->stripe_blocks);
	}
	if (k.k.type != KEY_STRIPE || stripe_decode(k, &s, NULL))
		return 0;
	for (unsigned i = 0; i < min((unsigned)s.nr_blocks, (unsigned)STRIPE_BLOCKS_MAX); i++)
		if (s.block_sectors[i] != sums[i])
			check_report_pos(a->c, ERROR_stripe_sector_count_wrong, BTREE_STRIPES, k.k.p,
					 "the sectors that extents have there", "block %u: %u instead of %llu", i,
					 s.block_sectors[i], (unsigned long long)sums[i]);
	return 0;
}

static int compare_stripes(struct allocations *a)
{
	if (!check_is_whole(a->c, CHECK_BTREE(BTREE_EXTENTS) | CHECK_BTREE(BTREE_REFLINK)))
		return 0;
	int err = check_table_sort(&a->stripe_blocks);
	return err ? err : check_keys(a->c, BTREE_STRIPES, 0, POS_MIN, SPOS_MAX, compare_stripe, a);
}

/* --- the pass --- */

int check_allocations(struct check *c)
{
	unsigned dev_nr = c->super->member_nr;
	struct allocations a = { .c = c, .is_first = true };
	uint64_t table_bytes = c->memory_bytes / 4;
	uint64_t bucket_nr = 0, window_max = (c->memory_bytes - table_bytes) / sizeof(*a.window);
	int err = -ENOMEM;

	check_table_init(&a.stripe_blocks, 16, table_bytes, c->is_secret);
	a.dev_base = calloc(dev_nr + 1, sizeof(*a.dev_base));
	a.devs = calloc(dev_nr + 1, sizeof(*a.devs));
	if (!a.dev_base || !a.devs)
		goto out;
	for (unsigned dev = 0; dev < dev_nr; dev++) {
		a.dev_base[dev] = bucket_nr;
		bucket_nr += check_member(c, dev) ? check_member(c, dev)->bucket_nr : 0;
	}
	a.dev_base[dev_nr] = bucket_nr;
	a.window = calloc(min(bucket_nr, window_max) + 1, sizeof(*a.window));
	if (!a.window)
		goto out;
	uint64_t sweeps = max(div_round_up_u64(bucket_nr, window_max), 1ull);
	c->total = sweeps * (c->keys[BTREE_EXTENTS] + c->keys[BTREE_REFLINK] + c->keys[BTREE_ALLOC]) +
		   c->keys[BTREE_EXTENTS] + c->keys[BTREE_INODES];
	err = check_keys(c, BTREE_EXTENTS, 0, POS_MIN, SPOS_MAX, count_reserved, &a);
	if (!err)
		err = check_keys(c, BTREE_INODES, 0, POS_MIN, SPOS_MAX, count_inode, &a);
	for (a.window_start = 0; !err && (a.window_start < bucket_nr || a.is_first); a.window_start = a.window_end) {
		a.window_end = min(a.window_start + window_max, bucket_nr);
		err = sweep(&a);
	}
	if (!err)
		err = compare_stripes(&a);
	if (!err)
		compare_counters(&a);
out:
	free(a.window);
	free(a.devs);
	free(a.dev_base);
	free(a.rows);
	check_table_free(&a.stripe_blocks);
	return err;
}
