/*
 * Random changes of keys that point at space, on several devices, with discards going on beside: after each batch all
 * that the allocator derives is what the keys say (space.c).
 */
#include "space.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "format/file_data.h"
#include "format/inode.h"
#include "format/key_edit.h"

enum { FILE_SECTORS = 3000, FIRST_INUM = 4096 };

/* One user of the filesystem: a task with an inode of its own. */
struct user {
	struct space *s;
	struct rng rng;
	uint64_t inum;
	unsigned ops;
	uint64_t reflink_at, reflink_end; /* positions in the reflink btree that are its own */
	unsigned nodes_from, nodes_to;
};

/* With seeds that are always the same, and with a random one; or only with KILN_TEST_SEED from the environment. */
static void seeds_run(void (*check)(uint64_t seed))
{
	enum { FIXED = 2 };
	const char *env = getenv("KILN_TEST_SEED");
	uint64_t other = env ? strtoull(env, NULL, 0) : random_u64();

	for (uint64_t seed = 1; !env && seed <= FIXED; seed++) {
		printf("KILN_TEST_SEED=%llu\n", (unsigned long long)seed);
		check(seed);
	}
	printf("KILN_TEST_SEED=%llu\n", (unsigned long long)other);
	check(other);
}

static bool chance(struct user *u, unsigned in) { return !rng_below(&u->rng, in); }

/* --- extents --- */

struct extent_put {
	unsigned btree_id;
	struct key_buf key;
	uint64_t end; /* out: how far it got */
};

static int put_extent_txn(struct btree_txn *txn, void *ctx)
{
	struct extent_put *p = ctx;
	struct btree_extent_change change;
	int err = btree_txn_put_extent(txn, p->btree_id, &p->key.k, p->key.value, &change);

	p->end = err ? 0 : change.end_offset;
	return err;
}

/* Put it in as many transactions as it takes. */
static void extent_put_all(struct user *u, struct extent_put *p, struct disk_reservation *r)
{
	for (;;) {
		space_run(u->s, put_extent_txn, p, r);
		if (p->end == p->key.k.p.offset)
			return;
		assert_true(p->end > bkey_start_offset(&p->key.k) && p->end < p->key.k.p.offset);
		if (p->key.k.type == KEY_DELETED)
			p->key.k.size = (uint32_t)(p->key.k.p.offset - p->end);
		else
			key_cut_front(&p->key, p->end, &u->s->super->kctx);
	}
}

static void extent_value(struct user *u, struct key_buf *b, const struct alloc_extent *e, uint32_t size)
{
	struct extent_value v = { .ptr_nr = e->ptr_nr };
	bool has_crc = chance(u, 2), is_compressed = has_crc && chance(u, 2);
	struct extent_crc crc = {
		.compressed_sectors = e->sectors,
		.uncompressed_sectors = size,
		.csum_type = has_crc ? CHECKSUM_CRC32C : CHECKSUM_NONE,
		.compression = is_compressed ? COMPRESSION_LZ4 : COMPRESSION_NONE,
	};

	if (!is_compressed)
		crc.compressed_sectors = size;
	for (unsigned i = 0; i < e->ptr_nr; i++) {
		v.ptrs[i] = (struct extent_ptr_decoded){ .ptr = e->ptrs[i], .has_crc = has_crc };
		v.ptrs[i].crc = has_crc ? crc : extent_crc_of_key(&b->k);
	}
	if (chance(u, 5)) {
		v.has_rebalance = true;
		v.rebalance = (struct extent_rebalance){ .compression = 3 };
	}
	assert_int_equal(extent_value_store(&v, b), 0);
}

static void write_some(struct user *u)
{
	uint32_t size = (uint32_t)(8 * (1 + rng_below(&u->rng, 8)));
	uint64_t start = 8 * rng_below(&u->rng, FILE_SECTORS / 8);
	struct alloc_request req = { .data_type = DATA_USER,
				     .watermark = WATERMARK_NORMAL,
				     .replicas = 1 + (unsigned)rng_below(&u->rng, min(u->s->dev_nr, 3u)),
				     .replicas_required = 1,
				     .writer = u->inum,
				     .can_wait = true };
	struct extent_put p = { .btree_id = BTREE_EXTENTS };
	struct disk_reservation r = { 0 };
	struct alloc_extent e;

	int err = disk_reservation_get(u->s->allocator, &r, size * req.replicas, req.replicas, 0);
	if (err == -ENOSPC)
		return;
	assert_int_equal(err, 0);
	err = allocator_extent_get(u->s->allocator, &req, size, &e);
	if (!err) {
		size = e.sectors;
		p.key.k =
			(struct bkey){ .p = BPOS(u->inum, start + size, UINT32_MAX), .size = size, .type = KEY_EXTENT };
		/* Some are copies only. */
		if (chance(u, 6))
			for (unsigned i = 0; i < e.ptr_nr; i++)
				e.ptrs[i].is_cached = true;
		extent_value(u, &p.key, &e, size);
		extent_put_all(u, &p, &r);
		allocator_extent_put(u->s->allocator, &e);
	} else {
		assert_int_equal(err, -ENOSPC);
	}
	disk_reservation_put(u->s->allocator, &r);
}

static void punch_some(struct user *u)
{
	struct extent_put p = { .btree_id = BTREE_EXTENTS };
	uint32_t size = (uint32_t)(8 * (1 + rng_below(&u->rng, chance(u, 4) ? 100 : 10)));
	uint64_t start = 8 * rng_below(&u->rng, FILE_SECTORS / 8);

	p.key.k = (struct bkey){ .p = BPOS(u->inum, start + size, UINT32_MAX), .size = size, .type = KEY_DELETED };
	extent_put_all(u, &p, NULL);
}

static void reserve_some(struct user *u)
{
	struct extent_put p = { .btree_id = BTREE_EXTENTS };
	struct reservation r = { .nr_replicas = (uint8_t)(1 + rng_below(&u->rng, 4)) };
	uint32_t size = (uint32_t)(8 * (1 + rng_below(&u->rng, 10)));
	uint64_t start = 8 * rng_below(&u->rng, FILE_SECTORS / 8);

	p.key.k = (struct bkey){ .p = BPOS(u->inum, start + size, UINT32_MAX),
				 .size = size,
				 .type = KEY_RESERVATION,
				 .value_u64s = RESERVATION_BYTES / 8 };
	reservation_encode(&r, p.key.value);
	extent_put_all(u, &p, NULL);
}

/* --- shared extents --- */

struct share {
	struct user *u;
	struct alloc_extent e;
	struct bpos to;
	uint64_t idx;
};

/* One reference is the test's, so that the extent stays until it is let go below. */
static int share_put_txn(struct btree_txn *txn, void *ctx)
{
	struct share *s = ctx;
	uint32_t size = s->e.sectors;
	struct key_buf indirect = { .k = { .p = BPOS(0, s->idx + size, 0), .size = size, .type = KEY_REFLINK_V } };
	struct extent_value v = { .ptr_nr = s->e.ptr_nr };

	for (unsigned i = 0; i < s->e.ptr_nr; i++)
		v.ptrs[i] = (struct extent_ptr_decoded){ .ptr = s->e.ptrs[i], .crc = extent_crc_of_key(&indirect.k) };
	indirect.k.value_u64s = 1;
	assert_int_equal(extent_value_store(&v, &indirect), 0);
	le64_store(indirect.value, 1);
	return btree_txn_put(txn, BTREE_REFLINK, &indirect.k, indirect.value, 0);
}

/* The reference that the test held goes. */
static int share_drop_txn(struct btree_txn *txn, void *ctx)
{
	struct share *s = ctx;
	struct bkey_ref k;
	uint64_t value[BKEY_VALUE_U64S_MAX];
	int found = btree_txn_get(txn, BTREE_REFLINK, BPOS(0, s->idx + s->e.sectors, 0), 0, &k);

	assert_true(found >= 0);
	if (!found)
		return -ENOENT;
	memcpy(value, k.value, bkey_value_bytes(&k.k));
	le64_store(value, le64_load(value) - 1);
	return btree_txn_put(txn, BTREE_REFLINK, &k.k, value, 0);
}

static void share_some(struct user *u)
{
	struct alloc_request req = { .data_type = DATA_USER,
				     .watermark = WATERMARK_NORMAL,
				     .replicas = 1,
				     .replicas_required = 1,
				     .writer = u->inum,
				     .can_wait = true };
	struct share s = { .u = u, .idx = u->reflink_at };
	struct extent_put p = { .btree_id = BTREE_EXTENTS };

	if (u->reflink_at + 64 > u->reflink_end || allocator_extent_get(u->s->allocator, &req, 32, &s.e))
		return;
	u->reflink_at += s.e.sectors;
	space_run(u->s, share_put_txn, &s, NULL);
	struct alloc_extent e = s.e;
	allocator_extent_put(u->s->allocator, &e);
	for (unsigned i = 0; i < 1 + rng_below(&u->rng, 3); i++) {
		uint64_t start = 8 * rng_below(&u->rng, FILE_SECTORS / 8);
		/* Of the whole, and of a part, and across two neighbours when there are. */
		uint32_t size = chance(u, 2) ? s.e.sectors : 8;

		p.key.k = (struct bkey){ .p = BPOS(u->inum, start + size, UINT32_MAX),
					 .size = size,
					 .type = KEY_REFLINK_P,
					 .value_u64s = 2 };
		memset(p.key.value, 0, 16);
		le64_store(p.key.value, s.idx);
		extent_put_all(u, &p, NULL);
	}
	space_run(u->s, share_drop_txn, &s, NULL);
}

/* --- nodes --- */

struct node_change {
	struct space *s;
	struct space_node *old, *new; /* either may be NULL */
};

static struct bkey_ref node_key(const struct space_node *n, void *value)
{
	struct bkey_ref k = { .k = { .type = KEY_DELETED }, .value = value };

	if (n) {
		k.k = (struct bkey){ .p = n->pos, .type = KEY_BTREE_PTR_V2 };
		k.k.value_u64s = (uint8_t)btree_ptr_encode(&n->ptr, value);
	}
	return k;
}

static int node_txn(struct btree_txn *txn, void *ctx)
{
	const struct node_change *c = ctx;
	uint64_t old_value[BTREE_PTR_V2_VALUE_U64S_MAX], new_value[BTREE_PTR_V2_VALUE_U64S_MAX];
	struct btree_update u = { .btree_id = BTREE_XATTRS,
				  .level = 1,
				  .old = node_key(c->old, old_value),
				  .new = node_key(c->new, new_value),
				  .new_value = new_value };

	if (!c->old)
		u.old.k.p = u.new.k.p;
	if (!c->new)
		u.new.k.p = u.old.k.p;
	return allocator_trigger(c->s->allocator, txn, &u);
}

static void node_change_some(struct user *u)
{
	unsigned i = u->nodes_from + (unsigned)rng_below(&u->rng, u->nodes_to - u->nodes_from);
	struct space_node new = { .exists = true, .pos = BPOS(4096 + i, 0, UINT32_MAX), .ptr = { .seq = 1 } };
	struct space_node *node = &u->s->nodes[i];
	struct node_change c = { .s = u->s };
	struct btree_node_reserve *reserve = NULL;

	if (node->exists)
		c.old = node;
	if (!node->exists || chance(u, 2)) {
		int err = allocator_node_reserve(u->s->allocator, 2, NULL, WATERMARK_BTREE, &reserve);

		assert_true(!err || err == -ENOSPC);
		if (err)
			return;
		allocator_node_alloc(u->s->allocator, reserve, &new.ptr);
		c.new = &new;
	}
	space_run(u->s, node_txn, &c, NULL);
	if (reserve)
		allocator_node_reserve_put(u->s->allocator, reserve);
	if (c.new)
		*node = new;
	else
		node->exists = false;
}

/* --- inodes --- */

struct inode_put {
	uint64_t inum;
	bool exists, is_unlinked;
};

static int inode_txn(struct btree_txn *txn, void *ctx)
{
	const struct inode_put *p = ctx;
	struct inode inode = { .flags = p->is_unlinked ? INODE_UNLINKED : 0, .mode = 0100644 };
	uint8_t value[INODE_V3_BYTES_MAX];
	struct bkey k = { .p = BPOS(0, p->inum, UINT32_MAX), .type = p->exists ? KEY_INODE_V3 : KEY_DELETED };

	if (p->exists)
		k.value_u64s = (uint8_t)(inode_pack(&inode, value) / 8);
	return btree_txn_put(txn, BTREE_INODES, &k, value, 0);
}

static void inode_some(struct user *u)
{
	struct inode_put p = { .inum = u->inum * 100 + rng_below(&u->rng, 20), .exists = !chance(u, 3) };

	p.is_unlinked = chance(u, 2);
	space_run(u->s, inode_txn, &p, NULL);
}

/* --- all of it --- */

static void user_step(struct user *u)
{
	uint64_t what = rng_below(&u->rng, 100);

	allocator_clock_add(u->s->allocator, chance(u, 2), rng_below(&u->rng, 50));
	if (what < 60)
		write_some(u);
	else if (what < 72)
		punch_some(u);
	else if (what < 77)
		reserve_some(u);
	else if (what < 85)
		share_some(u);
	else if (what < 95)
		node_change_some(u);
	else
		inode_some(u);
}

static void user_run(void *arg)
{
	struct user *u = arg;

	for (unsigned i = 0; i < u->ops; i++)
		user_step(u);
}

static void user_init(struct user *u, struct space *s, uint64_t seed, unsigned nr, unsigned of)
{
	*u = (struct user){ .s = s, .inum = FIRST_INUM + nr };
	rng_init(&u->rng, seed + nr);
	u->reflink_at = nr << 20;
	u->reflink_end = u->reflink_at + (1 << 20);
	u->nodes_from = SPACE_NODES_MAX / of * nr;
	u->nodes_to = SPACE_NODES_MAX / of * (nr + 1);
}

static void check_alone(uint64_t seed)
{
	for (unsigned dev_nr = 1; dev_nr <= 3; dev_nr++) {
		struct space s;
		struct user u;

		space_open(&s, &(struct space_opts){ .dev_nr = dev_nr, .dev_bytes = 24 << 20 });
		space_check(&s);
		user_init(&u, &s, seed, 0, 1);
		u.ops = 200;
		for (unsigned batch = 0; batch < 8; batch++) {
			user_run(&u);
			space_check(&s);
		}
		struct allocator_stats stats;
		allocator_stats(s.allocator, &stats);
		assert_true(stats.buckets_freed > 0 && stats.discards > 0);
		space_close(&s);
	}
}

static void what_follows_from_keys_is_what_they_say(void **state) { seeds_run(check_alone); }

static void check_beside_each_other(uint64_t seed)
{
	enum { USERS = 3 };
	struct user users[USERS];
	struct space s;

	space_open(&s, &(struct space_opts){ .dev_nr = 2, .dev_bytes = 32 << 20 });
	for (unsigned i = 0; i < USERS; i++)
		user_init(&users[i], &s, seed, i, USERS);
	for (unsigned batch = 0; batch < 2; batch++) {
		struct task *tasks[USERS];

		for (unsigned i = 0; i < USERS; i++) {
			users[i].ops = 80;
			assert_int_equal(task_start(&tasks[i], "user", user_run, &users[i]), 0);
		}
		for (unsigned i = 0; i < USERS; i++)
			task_join(tasks[i]);
		space_check(&s);
	}
	space_close(&s);
}

static void what_follows_holds_beside_each_other(void **state) { seeds_run(check_beside_each_other); }

/* Freespace is filled while others allocate, and free. */
static void check_freespace_late(uint64_t seed)
{
	struct space s;
	struct user u;
	struct task *task;

	space_open(&s, &(struct space_opts){ .dev_nr = 2, .dev_bytes = 24 << 20, .is_freespace_late = true });
	user_init(&u, &s, seed, 0, 1);
	u.ops = 100;
	user_run(&u);
	space_check(&s);
	assert_int_equal(task_start(&task, "user", user_run, &u), 0);
	assert_int_equal(allocator_freespace_init(s.allocator), 0);
	task_join(task);
	space_check(&s);
	user_run(&u);
	space_check(&s);
	space_close(&s);
}

static void freespace_can_be_filled_late(void **state) { seeds_run(check_freespace_late); }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_follows_from_keys_is_what_they_say),
		cmocka_unit_test(what_follows_holds_beside_each_other),
		cmocka_unit_test(freespace_can_be_filled_late),
	};

	return cmocka_run_group_tests_name("alloc model", tests, NULL, NULL);
}
