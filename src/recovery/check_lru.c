/*
 * The queues of buckets in the lru btree against alloc keys, in both directions (07 §6, §18.3): cached buckets by the
 * time they were read, and fragmented ones by how full they are, which upstream doesn't look at.
 *
 * What the alloc keys call for is sorted by position, then merged with the btree.
 *
 * Memory: a check_table, 16 bytes per bucket in a queue.
 */
#include <string.h>

#include "recovery/check_internal.h"

enum { LRU_FRAGMENTATION = 0xffff, LRU_TIME_BITS = 48, DEV_BUCKET_BITS = 48 };
static const uint64_t time_mask = (1ull << LRU_TIME_BITS) - 1;

struct lrus {
	struct check *c;
	struct check_table expected; /* inode, offset */
};

static int expect(struct lrus *l, uint64_t id, uint64_t time, struct bpos bucket)
{
	uint8_t record[16];

	check_be64(record, id << LRU_TIME_BITS | (time & time_mask));
	check_be64(record + 8, bucket.inode << DEV_BUCKET_BITS | bucket.offset);
	return check_table_add(&l->expected, record);
}

static int expect_of_bucket(void *ctx, struct bkey_ref k)
{
	struct lrus *l = ctx;
	struct alloc a;
	int err = 0;

	if (alloc_decode(k, &a, NULL) || k.k.p.inode >= l->c->super->member_nr)
		return 0;
	if (a.data_type == DATA_CACHED && !a.io_time[0])
		check_report_bucket(l->c, ERROR_alloc_key_cached_but_read_time_zero, (unsigned)k.k.p.inode,
				    k.k.p.offset, "a read time of a cached bucket", "0");
	else if (a.data_type == DATA_CACHED)
		err = expect(l, k.k.p.inode, a.io_time[0], k.k.p);
	if (!err && a.fragmentation_lru)
		err = expect(l, LRU_FRAGMENTATION, a.fragmentation_lru, k.k.p);
	return err;
}

static void report_missing(struct lrus *l, const uint8_t *record)
{
	uint64_t id = check_be64_get(record) >> LRU_TIME_BITS, bucket = check_be64_get(record + 8);

	check_report_bucket(l->c, ERROR_alloc_key_to_missing_lru_entry, (unsigned)(bucket >> DEV_BUCKET_BITS),
			    bucket & time_mask, "to be in its queue", "not in that of %s, at %llu",
			    id == LRU_FRAGMENTATION ? "fragmented buckets" : "cached buckets",
			    (unsigned long long)(check_be64_get(record) & time_mask));
}

static void report_stray(struct lrus *l, struct bpos p)
{
	uint64_t dev = p.offset >> DEV_BUCKET_BITS, bucket = p.offset & time_mask;
	const struct member_geometry *m = dev < l->c->super->member_nr ? check_member(l->c, (unsigned)dev) : NULL;

	if (!m || bucket < m->first_bucket || bucket >= m->bucket_nr)
		check_report_pos(l->c, ERROR_lru_entry_to_invalid_bucket, BTREE_LRU, p, "a bucket that exists",
				 "%llu:%llu", (unsigned long long)dev, (unsigned long long)bucket);
	else
		check_report_pos(l->c, ERROR_lru_entry_bad, BTREE_LRU, p, "what the bucket's alloc key says",
				 "bucket %llu:%llu is not in this place", (unsigned long long)dev,
				 (unsigned long long)bucket);
}

static int compare_entry(void *ctx, struct bkey_ref k)
{
	struct lrus *l = ctx;
	const uint8_t *record;
	uint8_t at[16];
	int cmp = 1;

	check_be64(at, k.k.p.inode);
	check_be64(at + 8, k.k.p.offset);
	while ((record = check_table_peek(&l->expected)) && (cmp = memcmp(record, at, sizeof(at))) < 0) {
		report_missing(l, record);
		check_table_next(&l->expected);
	}
	if (!record || cmp || k.k.type != KEY_SET)
		report_stray(l, k.k.p);
	else
		check_table_next(&l->expected);
	return 0;
}

int check_lrus(struct check *c)
{
	struct lrus l = { .c = c };
	const uint8_t *record;

	if (!check_is_whole(c, CHECK_BTREE(BTREE_ALLOC) | CHECK_BTREE(BTREE_LRU)))
		return 0;
	c->total = c->keys[BTREE_ALLOC] + c->keys[BTREE_LRU];
	check_table_init(&l.expected, 16, c->memory_bytes, false);
	int err = check_keys(c, BTREE_ALLOC, 0, POS_MIN, SPOS_MAX, expect_of_bucket, &l);
	if (!err)
		err = check_table_sort(&l.expected);
	if (!err)
		err = check_keys(c, BTREE_LRU, 0, POS_MIN, SPOS_MAX, compare_entry, &l);
	while (!err && (record = check_table_peek(&l.expected))) {
		report_missing(&l, record);
		check_table_next(&l.expected);
	}
	check_table_free(&l.expected);
	return err;
}
