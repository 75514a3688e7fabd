/* Where space comes from: devices, targets and durability, what is left when there is little, and how it comes back. */
#include "space.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/fiber.h"
#include "base/sanitizer.h"
#include "format/file_data.h"
#include "format/key_edit.h"

static const uint64_t MIB = 1 << 20;

static struct alloc_request request(unsigned replicas)
{
	return (struct alloc_request){ .data_type = DATA_USER,
				       .watermark = WATERMARK_NORMAL,
				       .replicas = replicas,
				       .replicas_required = 1,
				       .writer = 1 };
}

static int put_txn(struct btree_txn *txn, void *ctx)
{
	const struct key_buf *b = ctx;

	return btree_txn_put_extent(txn, BTREE_EXTENTS, &b->k, b->value, NULL);
}

/* The extent as a key at [@start, @start + sectors) of inode 4096. */
static void put_at(struct space *s, const struct alloc_extent *e, uint64_t start)
{
	struct extent_value v = { .ptr_nr = e->ptr_nr };
	struct key_buf b = {
		.k = { .p = BPOS(4096, start + e->sectors, UINT32_MAX), .size = e->sectors, .type = KEY_EXTENT }
	};

	for (unsigned i = 0; i < e->ptr_nr; i++)
		v.ptrs[i] = (struct extent_ptr_decoded){ .ptr = e->ptrs[i], .crc = extent_crc_of_key(&b.k) };
	assert_int_equal(extent_value_store(&v, &b), 0);
	space_run(s, put_txn, &b, NULL);
}

static void remove_at(struct space *s, uint64_t start, uint32_t sectors)
{
	struct key_buf b = {
		.k = { .p = BPOS(4096, start + sectors, UINT32_MAX), .size = sectors, .type = KEY_DELETED }
	};

	space_run(s, put_txn, &b, NULL);
}

/* Data from @at on until there is no space for more: what the last try said, and when it began. */
static int fill(struct space *s, const struct alloc_request *req, uint64_t at, uint64_t *begun_ns)
{
	struct alloc_extent e;
	int err;

	for (;;) {
		*begun_ns = clock_monotonic_ns();
		err = allocator_extent_get(s->allocator, req, 256, &e);
		if (err)
			return err;
		put_at(s, &e, at);
		at += e.sectors;
		allocator_extent_put(s->allocator, &e);
	}
}

/* --- where --- */

static void one_writers_data_lies_together(void **state)
{
	struct space s;
	struct alloc_extent a, b, other;
	struct alloc_request req = request(1);

	space_open(&s, &(struct space_opts){ .dev_nr = 1, .dev_bytes = 24 * MIB });
	assert_int_equal(allocator_extent_get(s.allocator, &req, 64, &a), 0);
	assert_int_equal(allocator_extent_get(s.allocator, &req, 64, &b), 0);
	assert_int_equal(a.sectors, 64);
	assert_true(b.ptrs[0].sector == a.ptrs[0].sector + 64);
	for (req.writer = 2; req.writer < 10; req.writer++) {
		assert_int_equal(allocator_extent_get(s.allocator, &req, 64, &other), 0);
		if (other.ptrs[0].sector / 256 != a.ptrs[0].sector / 256)
			break;
		allocator_extent_put(s.allocator, &other);
	}
	assert_true(req.writer < 10);
	/* No more than what is left of the bucket. */
	req.writer = 1;
	allocator_extent_put(s.allocator, &b);
	assert_int_equal(allocator_extent_get(s.allocator, &req, 1000, &b), 0);
	assert_int_equal(b.sectors, 128);
	allocator_extent_put(s.allocator, &a);
	allocator_extent_put(s.allocator, &b);
	allocator_extent_put(s.allocator, &other);
	space_check(&s);
	space_close(&s);
}

static void copies_are_on_different_devices(void **state)
{
	struct space s;
	struct alloc_extent e;
	struct alloc_request req = request(3);

	space_open(&s, &(struct space_opts){ .dev_nr = 3, .dev_bytes = 24 * MIB });
	assert_int_equal(allocator_extent_get(s.allocator, &req, 8, &e), 0);
	assert_int_equal(e.ptr_nr, 3);
	assert_int_equal(1 << e.ptrs[0].dev | 1 << e.ptrs[1].dev | 1 << e.ptrs[2].dev, 7);
	allocator_extent_put(s.allocator, &e);

	/* Fewer than wanted, when there are no more devices; not fewer than required. */
	req.dev_exclude = 2;
	assert_int_equal(allocator_extent_get(s.allocator, &req, 8, &e), 0);
	assert_int_equal(e.ptr_nr, 2);
	assert_true(e.ptrs[0].dev != 1 && e.ptrs[1].dev != 1);
	allocator_extent_put(s.allocator, &e);
	req.replicas_required = 3;
	assert_int_equal(allocator_extent_get(s.allocator, &req, 8, &e), -EROFS);
	req.dev_exclude = 7;
	req.replicas_required = 1;
	assert_int_equal(allocator_extent_get(s.allocator, &req, 8, &e), -EROFS);
	space_close(&s);
}

static void targets_and_durability_decide(void **state)
{
	struct space s;
	struct alloc_extent e;
	struct alloc_request req = request(2);

	/* Device 0 counts twice, device 1 is a cache. */
	space_open(&s, &(struct space_opts){ .dev_nr = 3,
					     .dev_bytes = 24 * MIB,
					     .durability = { 2, 0, 1 },
					     .is_durability_set = true,
					     .label = { "hdd.a", "ssd.cache", "hdd.b" } });
	assert_true(target_devs(s.allocator, TARGET_DEVICE_FIRST + 2) == 4);
	unsigned hdd = s.super->members[0].m.group, found = 0;
	for (unsigned g = 0; g < s.allocator->group_nr; g++)
		found |= s.allocator->group_devs[g] == 5;
	assert_true(hdd && found);
	assert_true(target_devs(s.allocator, TARGET_GROUP_FIRST + 200) == UINT64_MAX);

	req.target = TARGET_DEVICE_FIRST + 0;
	assert_int_equal(allocator_extent_get(s.allocator, &req, 8, &e), 0);
	assert_int_equal(e.ptr_nr, 1);
	assert_int_equal(e.ptrs[0].dev, 0);
	allocator_extent_put(s.allocator, &e);

	/* A cache is used when it is asked for, holds a copy that doesn't count, and no metadata. */
	req.target = TARGET_DEVICE_FIRST + 1;
	assert_int_equal(allocator_extent_get(s.allocator, &req, 8, &e), 0);
	assert_int_equal(e.ptrs[0].dev, 1);
	assert_true(e.ptrs[0].is_cached && e.ptr_nr >= 2 && !e.ptrs[1].is_cached);
	put_at(&s, &e, 0);
	allocator_extent_put(s.allocator, &e);
	req.target = 0;
	for (unsigned i = 0; i < 20; i++) {
		assert_int_equal(allocator_extent_get(s.allocator, &req, 8, &e), 0);
		for (unsigned p = 0; p < e.ptr_nr; p++)
			assert_int_not_equal(e.ptrs[p].dev, 1);
		allocator_extent_put(s.allocator, &e);
	}
	space_check(&s);
	space_close(&s);
}

static void equal_devices_get_equal_shares_of_further_copies(void **state)
{
	struct space s;
	struct alloc_extent e;
	struct alloc_request req = request(2);
	unsigned used[3] = { 0 };

	/* One of them is asked for, and has all first copies. */
	space_open(&s, &(struct space_opts){ .dev_nr = 3, .dev_bytes = 24 * MIB });
	req.target = TARGET_DEVICE_FIRST + 0;
	for (unsigned i = 0; i < 60; i++) {
		assert_int_equal(allocator_extent_get(s.allocator, &req, 256, &e), 0);
		assert_int_equal(e.ptr_nr, 2);
		for (unsigned p = 0; p < e.ptr_nr; p++)
			used[e.ptrs[p].dev]++;
		put_at(&s, &e, i * 256);
		allocator_extent_put(s.allocator, &e);
	}
	assert_int_equal(used[0], 60);
	assert_in_range(used[1], 28, 32);
	assert_in_range(used[2], 28, 32);
	space_check(&s);
	space_close(&s);
}

/* --- how much --- */

static void fill_but_the_cache(void *arg)
{
	struct space s;
	struct alloc_request req = request(1);
	uint64_t begun_ns;

	space_open(&s, &(struct space_opts){
			       .dev_nr = 2, .dev_bytes = 24 * MIB, .durability = { 1, 0 }, .is_durability_set = true });
	req.target = TARGET_DEVICE_FIRST + 1;
	req.can_wait = true;
	assert_int_equal(fill(&s, &req, 0, &begun_ns), -ENOSPC);
	*(uint64_t *)arg = clock_monotonic_ns() - begun_ns;
	assert_true(counters_dev_buckets(&s.allocator->counters, 1, DATA_CACHED) > 0);
	write_points_drop(s.allocator, false);
	space_check(&s);
	space_close(&s);
}

/* Copies on a device of durability 0 can be taken back, but that doesn't help who needs one that counts. */
static void nobody_waits_for_a_cache(void **state)
{
	uint64_t waited_ns = UINT64_MAX;

	(void)state;
	assert_int_equal(fiber_sim_run(&(struct fiber_sim_opts){ .seed = 1 }, fill_but_the_cache, &waited_ns, NULL), 0);
	assert_true(waited_ns < 5000000000);
}

struct waiter {
	struct space *s;
	bool is_for_nodes;
	int err;
	uint64_t waited_ns;
};

static void waiter_task(void *arg)
{
	struct waiter *w = arg;
	struct alloc_request req = request(1);
	struct btree_node_reserve *reserve;
	uint64_t begun_ns = clock_monotonic_ns();

	req.can_wait = true;
	/* What the background still finds is used up, too. */
	w->err = w->is_for_nodes ? allocator_node_reserve(w->s->allocator, 60, NULL, WATERMARK_NORMAL, &reserve)
				 : fill(w->s, &req, 1 << 20, &begun_ns);
	w->waited_ns = clock_monotonic_ns() - begun_ns;
}

static void refuse_waiters(void *arg)
{
	struct waiter *waiters = arg;
	struct space s;
	struct task *tasks[2];
	struct alloc_request req = request(1);
	uint64_t begun_ns;

	space_open(&s, &(struct space_opts){ .dev_nr = 1, .dev_bytes = 24 * MIB });
	req.can_wait = true;
	fill(&s, &req, 0, &begun_ns);
	struct discards *d = &s.allocator->discards;
	s.allocator->evacuation.has_mover = true; /* who never comes */
	for (unsigned i = 0; i < ARRAY_NR(tasks); i++) {
		waiters[i] = (struct waiter){ .s = &s, .is_for_nodes = i };
		assert_int_equal(task_start(&tasks[i], "waiter", waiter_task, &waiters[i]), 0);
	}
	for (unsigned waiting_nr = 0; waiting_nr < ARRAY_NR(tasks); sleep_ns(1000000)) {
		mutex_lock(&d->lock);
		waiting_nr = d->waiting_nr;
		mutex_unlock(&d->lock);
	}
	/* They look whether anything is coming, as after every round of discards. */
	mutex_lock(&d->lock);
	waitq_wake_all(&d->freed);
	mutex_unlock(&d->lock);
	allocator_refuse(s.allocator);
	for (unsigned i = 0; i < ARRAY_NR(tasks); i++)
		task_join(tasks[i]);
	space_close(&s);
}

/* Who waits for copygc when a device fails, or is just about to. */
static void nobody_waits_for_space_once_nothing_is_written(void **state)
{
	struct waiter waiters[2];

	(void)state;
	/* With threads, then in fibers. */
	for (uint64_t seed = 0; seed <= (KILN_TSAN ? 3 : 20); seed++) {
		if (!seed)
			refuse_waiters(waiters);
		else
			assert_int_equal(
				fiber_sim_run(&(struct fiber_sim_opts){ .seed = seed }, refuse_waiters, waiters, NULL),
				0);
		for (unsigned i = 0; i < ARRAY_NR(waiters); i++) {
			assert_int_equal(waiters[i].err, -EROFS);
			/* In simulated time: threads may have to wait for a processor. */
			assert_true(!seed || waiters[i].waited_ns < 5000000000);
		}
	}
}

static void nodes_find_room_when_data_doesnt(void **state)
{
	struct space s;
	struct alloc_extent e;
	struct alloc_request req = request(1);
	struct btree_node_reserve *reserve[64];
	uint64_t begun_ns;
	unsigned nr = 0;

	space_open(&s, &(struct space_opts){ .dev_nr = 1, .dev_bytes = 24 * MIB });
	assert_int_equal(fill(&s, &req, 0, &begun_ns), -EAGAIN); /* it can't wait */
	req.can_wait = true;
	assert_int_equal(allocator_extent_get(s.allocator, &req, 256, &e), -ENOSPC);
	space_check(&s);

	/* Two nodes to a bucket: what is kept for nodes is for ordinary updates as much as for reclaim. */
	while (nr < 64 && !allocator_node_reserve(s.allocator, 1, NULL, WATERMARK_NORMAL, &reserve[nr]))
		nr++;
	assert_true(nr >= 14);
	unsigned normal_nr = nr;
	while (nr < 64 && !allocator_node_reserve(s.allocator, 1, NULL, WATERMARK_RECLAIM, &reserve[nr]))
		nr++;
	assert_true(nr >= normal_nr + 14);
	while (nr)
		allocator_node_reserve_put(s.allocator, reserve[--nr]);

	/* Space that is given back is there again, but for what the pool of nodes has kept. */
	remove_at(&s, 0, 8192);
	assert_int_equal(allocator_extent_get(s.allocator, &req, 256, &e), 0);
	put_at(&s, &e, 0);
	allocator_extent_put(s.allocator, &e);
	space_check(&s);
	space_close(&s);
}

static unsigned places_at_hand(struct space *s)
{
	mutex_lock(&s->allocator->nodes.lock);
	unsigned nr = s->allocator->nodes.nr;
	mutex_unlock(&s->allocator->nodes.lock);
	return nr;
}

enum { PLACES_BACK = NODE_POOL_TARGET - NODE_POOL_RECLAIM };

/* Take all there are on a device that is as small as it may be, and give so many back. How many are taken. */
static unsigned few_places_leave(struct space *s, struct btree_node_reserve *reserves[], unsigned max)
{
	unsigned nr = 0;

	space_open(s, &(struct space_opts){ .dev_nr = 1, .dev_bytes = 8 * MIB });
	while (nr < max && !allocator_node_reserve(s->allocator, 1, NULL, WATERMARK_NORMAL, &reserves[nr]))
		nr++;
	assert_true(nr > PLACES_BACK && nr < max);
	for (unsigned i = 0; i < PLACES_BACK; i++)
		allocator_node_reserve_put(s->allocator, reserves[--nr]);
	return nr;
}

static void sift_task(void *arg)
{
	struct space *s = arg;

	for (unsigned i = 0; i < 10; i++)
		node_pool_sift(s->allocator);
}

static void take_places_while_they_are_sifted(void *arg)
{
	struct btree_node_reserve *reserves[128], *reserve;
	int *err = arg;
	struct task *task;
	struct space s;

	unsigned nr = few_places_leave(&s, reserves, ARRAY_NR(reserves));
	assert_int_equal(task_start(&task, "sift", sift_task, &s), 0);
	*err = 0;
	for (unsigned i = 0; i < 10 && !*err; i++) {
		*err = allocator_node_reserve(s.allocator, 1, NULL, WATERMARK_NORMAL, &reserve);
		if (!*err)
			allocator_node_reserve_put(s.allocator, reserve);
	}
	task_join(task);
	while (nr)
		allocator_node_reserve_put(s.allocator, reserves[--nr]);
	space_close(&s);
}

/* There are no others: a device that is as small as it may be has hardly more. */
static void places_at_hand_are_there_while_they_are_sifted(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 20; seed++) {
		int err = -1;

		assert_int_equal(fiber_sim_run(&(struct fiber_sim_opts){ .seed = seed },
					       take_places_while_they_are_sifted, &err, NULL),
				 0);
		assert_int_equal(err, 0);
	}
}

struct all_places {
	struct space *s;
	struct btree_node_reserve *reserve;
	int err;
};

static void all_places_task(void *arg)
{
	struct all_places *p = arg;

	p->err = allocator_node_reserve(p->s->allocator, PLACES_BACK, NULL, WATERMARK_NORMAL, &p->reserve);
}

static void two_take_all_places(void *arg)
{
	struct btree_node_reserve *reserves[128];
	struct space s;
	struct all_places one = { .s = &s }, other = { .s = &s };
	bool *has_any = arg;
	struct task *task;

	unsigned nr = few_places_leave(&s, reserves, ARRAY_NR(reserves));
	assert_int_equal(task_start(&task, "other", all_places_task, &other), 0);
	all_places_task(&one);
	task_join(task);
	*has_any = !one.err || !other.err;
	if (!one.err)
		allocator_node_reserve_put(s.allocator, one.reserve);
	if (!other.err)
		allocator_node_reserve_put(s.allocator, other.reserve);
	while (nr)
		allocator_node_reserve_put(s.allocator, reserves[--nr]);
	space_close(&s);
}

static void of_two_who_take_all_places_one_gets_them(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 20; seed++) {
		bool has_any = false;

		assert_int_equal(
			fiber_sim_run(&(struct fiber_sim_opts){ .seed = seed }, two_take_all_places, &has_any, NULL),
			0);
		assert_true(has_any);
	}
}

/* What is at hand for nodes beyond what is wanted keeps buckets open. */
static void places_for_nodes_are_given_up_for_data(void **state)
{
	struct space s;
	struct alloc_extent e;
	struct alloc_request req = request(1);
	struct btree_node_reserve *reserve;
	uint64_t begun_ns;

	space_open(&s, &(struct space_opts){ .dev_nr = 1, .dev_bytes = 24 * MIB });
	assert_int_equal(allocator_node_reserve(s.allocator, 20, NULL, WATERMARK_NORMAL, &reserve), 0);
	allocator_node_reserve_put(s.allocator, reserve);
	assert_true(places_at_hand(&s) > NODE_POOL_TARGET);
	fill(&s, &req, 0, &begun_ns);
	/* Write-back may have given some back since. */
	for (unsigned tries = 0; tries < 100 && places_at_hand(&s) > NODE_POOL_TARGET; tries++)
		if (!allocator_extent_get(s.allocator, &req, 256, &e))
			allocator_extent_put(s.allocator, &e);
	assert_true(places_at_hand(&s) <= NODE_POOL_TARGET);
	space_check(&s);
	space_close(&s);
}

static void reservations_bound_what_is_promised(void **state)
{
	struct space s;
	struct disk_reservation a, b;
	struct usage u;

	space_open(&s, &(struct space_opts){ .dev_nr = 1, .dev_bytes = 24 * MIB });
	assert_int_equal(allocator_usage(s.allocator, &u), 0);
	uint64_t free_sectors = u.capacity_sectors - u.hidden_sectors - u.used_sectors;
	usage_free(&u);
	assert_int_equal(disk_reservation_get(s.allocator, &a, free_sectors, 1, 0), -ENOSPC);
	assert_int_equal(disk_reservation_get(s.allocator, &a, free_sectors / 65 * 64, 2, 0), 0);
	assert_int_equal(disk_reservation_get(s.allocator, &b, 1000, 1, 0), -ENOSPC);
	assert_int_equal(disk_reservation_get(s.allocator, &b, 1000, 1, DISK_RESERVATION_NOFAIL), 0);
	disk_reservation_put(s.allocator, &b);
	disk_reservation_put(s.allocator, &a);
	assert_int_equal(s.allocator->counters.online_reserved, 0);
	space_close(&s);
}

static int promise_txn(struct btree_txn *txn, void *ctx)
{
	struct bkey k = { .p = BPOS(4096, 8, UINT32_MAX), .size = 8, .type = KEY_RESERVATION, .value_u64s = 1 };
	struct reservation r = { .nr_replicas = 1 };
	uint8_t value[RESERVATION_BYTES];

	(void)ctx;
	reservation_encode(&r, value);
	return btree_txn_put_extent(txn, BTREE_EXTENTS, &k, value, NULL);
}

/* Counters as damage or malice left them: all is taken, and stays so. */
static void counters_may_claim_anything(void **state)
{
	struct space s;
	struct disk_reservation r;

	space_open(&s, &(struct space_opts){ .dev_nr = 1, .dev_bytes = 24 * MIB });
	struct counters *c = &s.allocator->counters;
	int64_t good[COUNTER_ROWS];
	allocator_quiesce(s.allocator); /* its tasks look at them, too */
	memcpy(good, c->now, sizeof(good));
	assert_int_equal(c->row_nr, 0);
	s.state.has_usage = true;
	for (unsigned i = 0; i < ARRAY_NR(s.state.reserved); i++)
		s.state.reserved[i] = UINT64_MAX - i;
	assert_int_equal(counters_read(s.allocator), 0);
	mutex_lock(&c->lock);
	for (unsigned type = 0; type < DATA_NR_1_4; type++)
		for (unsigned what = 0; what < COUNTER_DEV_NR; what++)
			c->now[counter_dev(0, type, what)] = INT64_MAX;
	mutex_unlock(&c->lock);
	assert_int_equal(counters_sectors_available(s.allocator), 0);
	assert_int_equal(disk_reservation_get(s.allocator, &r, 8, 1, 0), -ENOSPC);
	space_run(&s, promise_txn, NULL, NULL);
	assert_true(c->now[COUNTER_RESERVED] == INT64_MAX);
	assert_int_equal(counters_sectors_available(s.allocator), 0);
	remove_at(&s, 0, 8);

	mutex_lock(&c->lock);
	memcpy(c->now, good, sizeof(good));
	memcpy(c->base, good, sizeof(good));
	mutex_unlock(&c->lock);
	space_check(&s);
	space_close(&s);
}

/* What can be promised, in so many copies, of a filesystem with these devices. */
static uint64_t promised(const struct space_opts *opts, unsigned replicas)
{
	struct disk_reservation r = { 0 };
	struct space s;

	space_open(&s, opts);
	uint64_t low = 0, high = 1 << 30;
	while (low < high) {
		uint64_t middle = high - (high - low) / 2;
		bool fits = !disk_reservation_get(s.allocator, &r, middle * replicas, replicas, 0);

		disk_reservation_put(s.allocator, &r);
		low = fits ? middle : low;
		high = fits ? high : middle - 1;
	}
	space_close(&s);
	return low;
}

static void what_cannot_be_used_is_not_promised(void **state)
{
	struct space_opts one = { .dev_nr = 1, .dev_bytes = 24 * MIB };
	struct space_opts two = { .dev_nr = 2, .dev_bytes = 24 * MIB };
	struct space_opts cache = {
		.dev_nr = 2, .dev_bytes = 24 * MIB, .durability = { 1, 0 }, .is_durability_set = true
	};
	struct space_opts twice = {
		.dev_nr = 2, .dev_bytes = 24 * MIB, .durability = { 2, 1 }, .is_durability_set = true
	};
	uint64_t of_one = promised(&one, 1), of_two = promised(&two, 1);

	assert_true(of_one > 0);
	assert_in_range(of_two, 2 * of_one - 8, 2 * of_one + 8);
	assert_in_range(promised(&two, 2), of_one - 8, of_one + 8);
	assert_int_equal(promised(&cache, 1), of_one);
	/* There is one device only for two copies: that is less than is wanted, but possible. */
	assert_in_range(promised(&cache, 2), of_one - 8, of_one + 8);
	assert_in_range(promised(&twice, 2), of_one - 8, 2 * of_one + 8);
}

/* --- what comes back --- */

struct edit {
	struct space *s;
	unsigned dev;
	uint64_t bucket;
	unsigned gen_plus;
};

/* As if the bucket had been used and emptied @gen_plus times. */
static int gen_plus_txn(struct btree_txn *txn, void *ctx)
{
	const struct edit *e = ctx;
	struct alloc v;
	int err = alloc_key_get(e->s->allocator, txn, e->dev, e->bucket, &v);

	v.gen = (uint8_t)(v.gen + e->gen_plus);
	return err ? err : alloc_key_put(txn, e->dev, e->bucket, &v, 0);
}

static void gen_plus(struct space *s, unsigned dev, uint64_t bucket, unsigned n)
{
	struct edit e = { s, dev, bucket, n };

	space_run(s, gen_plus_txn, &e, NULL);
}

/* Transition 12 of 07 §9, whether or not space is short. */
static int invalidate_bucket_txn(struct btree_txn *txn, void *ctx)
{
	const struct edit *e = ctx;
	struct alloc v;
	int err = alloc_key_get(e->s->allocator, txn, e->dev, e->bucket, &v);

	v.cached_sectors = 0;
	v.gen++;
	v.flags &= ~(uint32_t)ALLOC_NEED_INC_GEN;
	return err ? err : alloc_key_put(txn, e->dev, e->bucket, &v, BTREE_PUT_HOOK_FLAG);
}

static struct alloc alloc_at(struct space *s, const struct extent_ptr *p)
{
	struct alloc v;

	assert_int_equal(alloc_key_lookup(s->allocator, p->dev, p->sector / 256, &v), 0);
	return v;
}

/* Wait until the discard task has nothing left. */
static void settle(struct space *s)
{
	uint64_t waiting;

	discards_stop(s->allocator);
	assert_int_equal(invalidate_run(s->allocator), 0);
	while (discards_run(s->allocator, &waiting) > 0)
		;
	assert_int_equal(discards_start(s->allocator), 0);
}

static uint64_t commits(const struct space *s)
{
	struct btrees_write_stats stats;

	btrees_write_stats(s->trees, &stats);
	return stats.commits;
}

/* Whole buckets, of which only the last may stay open. */
static void buckets_fill(struct space *s, struct alloc_extent *e, unsigned nr)
{
	struct alloc_request req = request(1);

	for (unsigned i = 0; i < nr; i++) {
		assert_int_equal(allocator_extent_get(s->allocator, &req, 256, &e[i]), 0);
		put_at(s, &e[i], i * 256ull);
		struct alloc_extent put = e[i];
		allocator_extent_put(s->allocator, &put);
	}
}

static void many_empty_buckets_become_free_in_few_transactions(void **state)
{
	enum { EXTENTS = 50 };
	static struct alloc_extent e[EXTENTS];
	struct space s;
	uint64_t waiting;

	space_open(&s, &(struct space_opts){ .dev_nr = 2, .dev_bytes = 24 * MIB });
	discards_stop(s.allocator);
	buckets_fill(&s, e, EXTENTS);
	/* Half of them are still open when they become empty, and lack a generation. */
	for (unsigned i = 0; i < EXTENTS; i++) {
		if (i == EXTENTS / 2)
			write_points_drop(s.allocator, false);
		remove_at(&s, i * 256ull, 256);
	}
	write_points_drop(s.allocator, false);
	uint64_t before = commits(&s);
	assert_int_equal(discards_run(s.allocator, &waiting), EXTENTS);
	assert_true(commits(&s) - before <= 2 * (EXTENTS / 16 + 1));
	for (unsigned i = 0; i < EXTENTS; i++)
		assert_int_equal(alloc_at(&s, &e[i].ptrs[0]).data_type, DATA_FREE);
	assert_int_equal(discards_run(s.allocator, &waiting), 0);
	assert_int_equal(discards_start(s.allocator), 0);
	space_check(&s);
	space_close(&s);
}

/* It is on his behalf then. */
/* Somebody goes on with what is left of it: nothing is going to make it free. */
static void an_empty_bucket_that_is_open_may_be_used_again(void **state)
{
	struct alloc_request req = request(1);
	struct alloc_extent e[2];
	struct space s;

	(void)state;
	space_open(&s, &(struct space_opts){ .dev_nr = 1, .dev_bytes = 24 * MIB });
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(allocator_extent_get(s.allocator, &req, 8, &e[i]), 0);
	assert_int_equal(e[0].open_bucket[0], e[1].open_bucket[0]);
	put_at(&s, &e[0], 0);
	remove_at(&s, 0, 8);
	assert_true(open_bucket_was_emptied(s.allocator, e[0].open_bucket[0]));
	assert_int_equal(s.allocator->open.emptied_nr[0], 1);
	put_at(&s, &e[1], 8);
	assert_false(open_bucket_was_emptied(s.allocator, e[0].open_bucket[0]));
	assert_int_equal(s.allocator->open.emptied_nr[0], 0);
	remove_at(&s, 8, 8);
	assert_int_equal(s.allocator->open.emptied_nr[0], 1);
	for (unsigned i = 0; i < 2; i++)
		allocator_extent_put(s.allocator, &e[i]);
	write_points_drop(s.allocator, false);
	assert_int_equal(s.allocator->open.emptied_nr[0], 0);
	space_check(&s);
	space_close(&s);
}

static void partial_buckets_with_too_little_left_are_closed(void **state)
{
	struct space s;
	struct alloc_extent e;
	struct alloc_request req = request(1);

	(void)state;
	space_open(&s, &(struct space_opts){ .dev_nr = 1, .dev_bytes = 24 * MIB });
	assert_int_equal(allocator_extent_get(s.allocator, &req, 200, &e), 0);
	allocator_extent_put(s.allocator, &e);
	write_points_drop(s.allocator, true);
	assert_int_equal(s.allocator->open.partial_nr, 1);
	open_buckets_drop_partial(s.allocator, DATA_USER, 56);
	assert_int_equal(s.allocator->open.partial_nr, 1);
	open_buckets_drop_partial(s.allocator, DATA_USER, 57);
	assert_int_equal(s.allocator->open.partial_nr, 0);
	space_check(&s);
	space_close(&s);
}

/* Else each place for a node that is kept at hand would have a bucket of its own. */
static void partial_buckets_of_nodes_stay(void **state)
{
	struct space s;
	struct alloc_extent e;
	struct alloc_request req = request(1);

	(void)state;
	space_open(&s, &(struct space_opts){ .dev_nr = 1, .dev_bytes = 24 * MIB });
	req.data_type = DATA_BTREE;
	uint32_t node_sectors = s.super->kctx.node_sectors;
	assert_true(node_sectors <= 128);
	assert_int_equal(allocator_extent_get(s.allocator, &req, node_sectors, &e), 0);
	write_points_drop(s.allocator, true);
	unsigned partial_nr = s.allocator->open.partial_nr;
	assert_true(partial_nr > 0);
	open_buckets_drop_partial(s.allocator, DATA_USER, 8);
	assert_int_equal(s.allocator->open.partial_nr, partial_nr);
	allocator_extent_put(s.allocator, &e);
	open_buckets_drop_partial(s.allocator, 0, 0);
	assert_int_equal(s.allocator->open.partial_nr, 0);
	space_close(&s);
}

struct freespace_edit {
	unsigned dev;
	uint64_t offset;
	bool is_set;
};

static int freespace_edit_txn(struct btree_txn *txn, void *ctx)
{
	const struct freespace_edit *e = ctx;

	return freespace_put(txn, e->dev, e->offset, e->is_set);
}

static void a_bad_bucket_keeps_no_other_from_becoming_free(void **state)
{
	enum { EXTENTS = 20, BAD = 3 };
	struct alloc_extent e[EXTENTS];
	struct space s;
	uint64_t waiting;

	(void)state;
	space_open(&s, &(struct space_opts){ .dev_nr = 1, .dev_bytes = 24 * MIB });
	discards_stop(s.allocator);
	buckets_fill(&s, e, EXTENTS);
	write_points_drop(s.allocator, false);
	for (unsigned i = 0; i < EXTENTS; i++)
		remove_at(&s, i * 256ull, 256);
	struct alloc v = alloc_at(&s, &e[BAD].ptrs[0]);
	uint64_t bucket = e[BAD].ptrs[0].sector / 256;
	struct freespace_edit edit = { 0, bucket_freespace_offset(bucket, &v), true };
	space_run(&s, freespace_edit_txn, &edit, NULL);
	assert_int_equal(discards_run(s.allocator, &waiting), EXTENTS - 1);
	for (unsigned i = 0; i < EXTENTS; i++)
		assert_int_equal(alloc_at(&s, &e[i].ptrs[0]).data_type, i == BAD ? DATA_NEED_DISCARD : DATA_FREE);
	assert_true(s.reports > 0);
	s.reports = 0;
	edit.is_set = false;
	space_run(&s, freespace_edit_txn, &edit, NULL);
	assert_int_equal(discards_run(s.allocator, &waiting), 1);
	assert_int_equal(discards_start(s.allocator), 0);
	space_check(&s);
	space_close(&s);
}

static void who_waits_for_a_bucket_lifts_a_pause_of_the_background(void **state)
{
	enum { EXTENTS = 200 };
	static struct alloc_extent e[EXTENTS];
	struct space s;
	struct alloc_request req = request(1);
	unsigned nr = 0;

	space_open(&s, &(struct space_opts){ .dev_nr = 1, .dev_bytes = 24 * MIB });
	background_pause(btrees_background(s.trees));
	for (; nr < EXTENTS && !allocator_extent_get(s.allocator, &req, 256, &e[nr]); nr++) {
		struct alloc_extent put = e[nr];

		put_at(&s, &e[nr], nr * 256ull);
		allocator_extent_put(s.allocator, &put);
	}
	assert_true(nr > 20 && nr < EXTENTS);
	for (unsigned i = 0; i < nr; i++)
		remove_at(&s, i * 256ull, 256);
	uint64_t begun_nr = background_begun_nr(btrees_background(s.trees));
	req.can_wait = true;
	assert_int_equal(allocator_extent_get(s.allocator, &req, 256, &e[0]), 0);
	assert_true(background_begun_nr(btrees_background(s.trees)) > begun_nr);
	allocator_extent_put(s.allocator, &e[0]);
	background_resume(btrees_background(s.trees));
	write_points_drop(s.allocator, false);
	space_check(&s);
	space_close(&s);
}

static void cached_buckets_are_taken_back(void **state)
{
	enum { EXTENTS = 200 };
	static struct alloc_extent e[EXTENTS];
	struct space s;
	struct alloc_request req = request(2);

	space_open(&s, &(struct space_opts){ .dev_nr = 2, .dev_bytes = 24 * MIB });
	/* Until there is hardly a bucket left: one copy of each is a cached one. */
	unsigned nr = 0;
	for (; nr < EXTENTS && !allocator_extent_get(s.allocator, &req, 256, &e[nr]); nr++) {
		unsigned cached = e[nr].ptrs[0].dev == 1 ? 0 : 1;

		allocator_clock_add(s.allocator, false, 10);
		e[nr].ptrs[cached].is_cached = true;
		put_at(&s, &e[nr], (uint64_t)nr * 256);
		struct alloc_extent put = e[nr];
		allocator_extent_put(s.allocator, &put);
	}
	assert_true(nr > 20 && nr < EXTENTS);
	write_points_drop(s.allocator, false);
	settle(&s);
	space_check(&s);
	uint64_t before = (uint64_t)counters_dev_buckets(&s.allocator->counters, 1, DATA_CACHED);
	assert_true(before > 0);

	/* Who needs a bucket gets one that held cached data, the longest unread first: no more the one that came first.
	 */
	struct extent_ptr old[2] = { 0 };
	/* The very first may be taken while they are looked at. */
	for (unsigned i = 0, there = 0, found = 0; i < nr && found < 2; i++) {
		old[found] = e[i].ptrs[e[i].ptrs[0].dev == 1 ? 0 : 1];
		there += alloc_at(&s, &old[found]).gen == old[found].gen;
		found += there > 8 && alloc_at(&s, &old[found]).gen == old[found].gen;
	}
	allocator_clock_add(s.allocator, false, 24 * MIB / 512);
	uint64_t now = alloc_clock(s.allocator, 0);
	allocator_cached_read(s.allocator, &old[0]);
	allocator_clock_add(s.allocator, false, 10);
	allocator_cached_read(s.allocator, &old[0]);
	req.replicas = 1;
	req.can_wait = true;
	req.dev_exclude = 1;
	for (unsigned i = 0; i < 40; i++) {
		struct alloc_extent more;

		assert_int_equal(allocator_extent_get(s.allocator, &req, 256, &more), 0);
		put_at(&s, &more, (uint64_t)(nr + i) * 256);
		allocator_extent_put(s.allocator, &more);
	}
	settle(&s);
	assert_true((uint64_t)counters_dev_buckets(&s.allocator->counters, 1, DATA_CACHED) < before);
	assert_int_equal(alloc_at(&s, &old[0]).gen, old[0].gen);
	assert_int_equal(alloc_at(&s, &old[0]).io_time[0], now);
	assert_int_not_equal(alloc_at(&s, &old[1]).gen, old[1].gen);
	space_check(&s);
	space_close(&s);
}

/* However many of the longest unread ones somebody has open. */
static void open_buckets_dont_hide_cached_ones(void **state)
{
	enum { EXTENTS = 180, OPEN = 100 };
	static struct alloc_extent e[EXTENTS];
	struct space s;
	struct alloc_request req = request(1);
	unsigned nr = 0, taken = 0;

	space_open(&s, &(struct space_opts){ .dev_nr = 1, .dev_bytes = 24 * MIB });
	discards_stop(s.allocator);
	for (; nr < EXTENTS && !allocator_extent_get(s.allocator, &req, 256, &e[nr]); nr++) {
		struct alloc_extent put = e[nr];

		allocator_clock_add(s.allocator, false, 10);
		put.ptrs[0].is_cached = true;
		put_at(&s, &put, (uint64_t)nr * 256);
		if (nr >= OPEN)
			allocator_extent_put(s.allocator, &put);
	}
	assert_true(nr > OPEN + 20 && nr < EXTENTS);
	write_points_drop(s.allocator, false);
	assert_int_equal(invalidate_run(s.allocator), 0);
	for (unsigned i = 0; i < nr; i++) {
		bool is_taken = alloc_at(&s, &e[i].ptrs[0]).gen != e[i].ptrs[0].gen;

		assert_false(is_taken && i < OPEN);
		taken += is_taken;
	}
	assert_true(taken > 0);
	for (unsigned i = 0; i < OPEN; i++)
		allocator_extent_put(s.allocator, &e[i]);
	assert_int_equal(discards_start(s.allocator), 0);
	space_check(&s);
	space_close(&s);
}

static void old_generations_are_forgotten(void **state)
{
	struct space s;
	struct alloc_extent e[3];
	struct alloc_request req = request(2);

	space_open(&s, &(struct space_opts){ .dev_nr = 2, .dev_bytes = 24 * MIB });
	gc_gens_stop(s.allocator);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(allocator_extent_get(s.allocator, &req, 256, &e[i]), 0);
		e[i].ptrs[0].is_cached = true;
		put_at(&s, &e[i], i * 256);
		struct alloc_extent put = e[i];
		allocator_extent_put(s.allocator, &put);
	}
	write_points_drop(s.allocator, false);
	/* Invalidated, and then used again a few times, many times, too often. */
	static const unsigned uses[] = { 10, 40, 95 };
	discards_stop(s.allocator);
	for (unsigned i = 0; i < 3; i++) {
		struct edit edit = { &s, e[i].ptrs[0].dev, e[i].ptrs[0].sector / 256, 0 };

		assert_int_equal(alloc_at(&s, &e[i].ptrs[0]).data_type, DATA_CACHED);
		space_run(&s, invalidate_bucket_txn, &edit, NULL);
	}
	assert_int_equal(discards_start(s.allocator), 0);
	settle(&s);
	for (unsigned i = 0; i < 3; i++)
		gen_plus(&s, e[i].ptrs[0].dev, e[i].ptrs[0].sector / 256, uses[i]);
	assert_int_equal(alloc_at(&s, &e[0].ptrs[0]).data_type, DATA_FREE);
	assert_int_equal(alloc_at(&s, &e[2].ptrs[0]).data_type, DATA_NEED_GC_GENS);
	space_check(&s);

	s.allocator->gc.is_stopping = false;
	assert_int_equal(gc_gens_run(s.allocator), 0);
	struct bkey_copy found;
	for (unsigned i = 0; i < 3; i++) {
		struct alloc v = alloc_at(&s, &e[i].ptrs[0]);
		struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];

		assert_int_equal(v.data_type, DATA_FREE);
		assert_int_equal(btree_lookup(s.trees, BTREE_EXTENTS, BPOS(4096, (i + 1) * 256, UINT32_MAX), &found),
				 1);
		int nr = extent_decode(found.k, &s.super->kctx, ptrs, NULL, NULL);
		/* One that is a little behind stays, and is what oldest_gen says. */
		assert_int_equal(nr, i ? 1 : 2);
		assert_int_equal(v.oldest_gen, i ? v.gen : e[i].ptrs[0].gen);
	}
	space_check(&s);
	space_close(&s);
}

/* --- places of nodes that have been replaced --- */

struct node_put {
	struct space *s;
	const struct btree_ptr *old, *new; /* NULL: none */
};

static struct bkey_ref node_key(const struct btree_ptr *p, void *value)
{
	struct bkey k = { .p = BPOS(p ? p->seq : 0, 0, UINT32_MAX), .type = p ? KEY_BTREE_PTR_V2 : KEY_DELETED };

	k.value_u64s = p ? (uint8_t)btree_ptr_encode(p, value) : 0;
	return (struct bkey_ref){ .k = k, .value = value };
}

static int node_put_txn(struct btree_txn *txn, void *ctx)
{
	const struct node_put *n = ctx;
	uint64_t old_value[BTREE_PTR_V2_VALUE_U64S_MAX], new_value[BTREE_PTR_V2_VALUE_U64S_MAX];
	struct btree_update u = { .btree_id = BTREE_XATTRS,
				  .level = 1,
				  .old = node_key(n->old, old_value),
				  .new = node_key(n->new, new_value),
				  .new_value = new_value };

	if (!n->old)
		u.old.k.p = u.new.k.p;
	if (!n->new)
		u.new.k.p = u.old.k.p;
	return allocator_trigger(n->s->allocator, txn, &u);
}

static void node_put_run(struct space *s, const struct btree_ptr *old, const struct btree_ptr *new)
{
	space_run(s, node_put_txn, &(struct node_put){ s, old, new }, NULL);
}

static bool is_hole(struct space *s, const struct extent_ptr *p)
{
	const struct node_holes *t = &s->allocator->open.holes;
	bool is_there = false;

	mutex_lock(&s->allocator->open.lock);
	for (unsigned i = 0; i < t->nr; i++)
		is_there |= t->v[i].dev == p->dev && t->v[i].sector == p->sector;
	mutex_unlock(&s->allocator->open.lock);
	return is_there;
}

/* Two nodes that share a bucket on each of two devices. */
static void two_nodes_make(struct space *s, struct btree_ptr nodes[2])
{
	struct alloc_request req = { .data_type = DATA_BTREE, .replicas = 2, .replicas_required = 2 };
	struct alloc_extent e[2];

	space_open(s, &(struct space_opts){ .dev_nr = 2, .dev_bytes = 24 * MIB, .node_bytes = 32 << 10 });
	uint32_t node_sectors = s->super->kctx.node_sectors;
	assert_true(node_holes_are_kept(s->allocator, 0) && node_holes_are_kept(s->allocator, 1));
	node_pool_stop(s->allocator);
	write_points_drop(s->allocator, false);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(allocator_extent_get(s->allocator, &req, node_sectors, &e[i]), 0);
	for (unsigned i = 0; i < 2; i++)
		assert_true(e[1].ptrs[i].sector == e[0].ptrs[i].sector + node_sectors);
	for (unsigned i = 0; i < 2; i++) {
		nodes[i] = (struct btree_ptr){ .seq = 1 + i, .sectors_written = 8, .ptr_nr = 2 };
		memcpy(nodes[i].ptrs, e[i].ptrs, 2 * sizeof(e[i].ptrs[0]));
		node_put_run(s, NULL, &nodes[i]);
		allocator_extent_put(s->allocator, &e[i]);
	}
	write_points_drop(s->allocator, false);
}

static void where_a_node_stays_is_no_hole(void **state)
{
	struct btree_ptr nodes[2];
	struct space s;

	two_nodes_make(&s, nodes);
	/* One copy is given up; the other is put again, in a key that is otherwise the same. */
	struct btree_ptr one_copy = nodes[0];
	one_copy.ptr_nr = 1;
	node_put_run(&s, &nodes[0], &one_copy);
	assert_false(is_hole(&s, &nodes[0].ptrs[0]));
	assert_true(is_hole(&s, &nodes[0].ptrs[1]));

	node_put_run(&s, &one_copy, NULL);
	assert_true(is_hole(&s, &nodes[0].ptrs[0]));
	/* Where nothing is left there are no holes either. */
	node_put_run(&s, &nodes[1], NULL);
	for (unsigned i = 0; i < 2; i++)
		assert_false(is_hole(&s, &nodes[i].ptrs[0]) || is_hole(&s, &nodes[i].ptrs[1]));
	space_check(&s);
	space_close(&s);
}

static int backpointer_delete_txn(struct btree_txn *txn, void *ctx)
{
	const struct bkey k = { .p = bucket_backpointer_pos(ctx, 0), .type = KEY_DELETED };

	return btree_txn_put(txn, BTREE_BACKPOINTERS, &k, NULL, BTREE_PUT_NO_TRIGGER);
}

static void holes_forget(struct space *s, const struct btree_ptr *node)
{
	mutex_lock(&s->allocator->open.lock);
	for (unsigned i = 0; i < 2; i++)
		node_holes_forget(s->allocator, node->ptrs[i].dev,
				  node->ptrs[i].sector / s->allocator->devs[node->ptrs[i].dev].bucket_sectors);
	mutex_unlock(&s->allocator->open.lock);
}

static void holes_are_found(void **state)
{
	uint64_t value[BTREE_PTR_V2_VALUE_U64S_MAX];
	struct btree_ptr nodes[2];
	struct space s;
	uint16_t idx;

	two_nodes_make(&s, nodes);
	/* What is made while a bucket is looked at is left to the next look: it may be missed, or be found twice. */
	mutex_lock(&s.allocator->open.lock);
	const struct extent_ptr *p = &nodes[0].ptrs[0];
	assert_int_equal(open_bucket_reopen(s.allocator, p->dev, p->sector / s.allocator->devs[p->dev].bucket_sectors,
					    p->gen, true, &idx),
			 0);
	s.allocator->open.buckets[idx].is_scanned = true;
	mutex_unlock(&s.allocator->open.lock);
	node_put_run(&s, &nodes[0], NULL);
	assert_false(is_hole(&s, &nodes[0].ptrs[0]));
	assert_true(is_hole(&s, &nodes[0].ptrs[1]));
	open_bucket_put(s.allocator, idx);

	holes_forget(&s, &nodes[0]);
	assert_int_equal(node_holes_scan(s.allocator), 0);
	for (unsigned i = 0; i < 2; i++) {
		assert_true(is_hole(&s, &nodes[0].ptrs[i]));
		assert_false(is_hole(&s, &nodes[1].ptrs[i]));
	}
	s.nodes[0] = (struct space_node){ .exists = true, .pos = node_key(&nodes[1], value).k.p, .ptr = nodes[1] };
	space_check(&s);

	/* A bucket that lacks a backpointer is left alone. */
	space_run(&s, backpointer_delete_txn, &nodes[1].ptrs[0], NULL);
	holes_forget(&s, &nodes[0]);
	assert_int_equal(node_holes_scan(s.allocator), 0);
	assert_false(is_hole(&s, &nodes[1].ptrs[0]) || is_hole(&s, &nodes[0].ptrs[0]));
	assert_true(is_hole(&s, &nodes[0].ptrs[1]));
	space_close(&s);
}

/* Nobody waits for what is done in the background, so what fails there is told; once. */
static void what_fails_in_the_background_is_told_once(void **state)
{
	static const struct {
		int err;
		unsigned reports; /* after it */
	} results[] = { { 0, 0 },    { -ENOMEM, 0 }, { -ENOSPC, 0 }, { -EROFS, 0 },
			{ -EIO, 1 }, { -EIO, 1 },    { 3, 1 },	     { -EIO, 2 } };
	struct space s;
	int told = 0;

	space_open(&s, &(struct space_opts){ .dev_nr = 1, .dev_bytes = 24 * MIB });
	for (unsigned i = 0; i < ARRAY_NR(results); i++) {
		alloc_task_result(s.allocator, "a test", results[i].err, &told);
		assert_int_equal(s.reports, results[i].reports);
	}
	s.reports = 0; /* they were expected */
	space_close(&s);
}

/* Room for @nr nodes in the place of one whose only copy is on @dev. */
static struct btree_node_reserve *reserve_instead_of(struct space *s, unsigned dev, unsigned nr,
						     enum watermark watermark)
{
	const struct btree_ptr replaced = { .ptr_nr = 1, .ptrs = { { .dev = (uint8_t)dev, .sector = 2048 } } };
	struct btree_node_reserve *reserve = NULL;

	assert_int_equal(allocator_node_reserve(s->allocator, nr, &replaced, watermark, &reserve), 0);
	return reserve;
}

/* What is replaced lacks a copy, and the new one has it again: one device is full, but there are two others. */
static void a_full_device_costs_no_copies(void **state)
{
	struct space s;
	struct alloc_request req = request(1);
	struct btree_ptr p = { 0 };
	uint64_t begun_ns;

	space_open(&s, &(struct space_opts){ .dev_nr = 3, .dev_bytes = 24 * MIB, .metadata_replicas = 2 });
	req.dev_exclude = ~1ull;
	fill(&s, &req, 0, &begun_ns);
	assert_false(open_buckets_available(s.allocator, 0, WATERMARK_NORMAL));
	for (unsigned i = 0; i < 4; i++) {
		struct btree_node_reserve *reserve = reserve_instead_of(&s, 1, 1, WATERMARK_NORMAL);

		allocator_node_alloc(s.allocator, reserve, &p);
		assert_int_equal(p.ptr_nr, 2);
		allocator_node_reserve_put(s.allocator, reserve);
	}
	space_close(&s);
}

static unsigned slots_of_few(struct space *s)
{
	mutex_lock(&s->allocator->nodes.lock);
	unsigned nr = s->allocator->nodes.few_nr;
	mutex_unlock(&s->allocator->nodes.lock);
	return nr;
}

/* Places that who wanted fewer copies has given back are had for nodes with all of them. */
static void places_of_fewer_copies_are_had_for_all(void **state)
{
	struct space s;
	struct alloc_request req = request(1);
	struct btree_node_reserve *full[200];
	uint64_t begun_ns;
	unsigned nr = 0, left;

	space_open(&s, &(struct space_opts){ .dev_nr = 2, .dev_bytes = 24 * MIB, .metadata_replicas = 2 });
	req.dev_exclude = ~1ull;
	fill(&s, &req, 0, &begun_ns);
	allocator_node_reserve_put(s.allocator, reserve_instead_of(&s, 0, NODE_POOL_FEW, WATERMARK_RECLAIM));
	assert_true(slots_of_few(&s) > 0);
	while (nr < ARRAY_NR(full) && !allocator_node_reserve(s.allocator, 1, NULL, WATERMARK_RECLAIM, &full[nr]))
		nr++;
	assert_true(nr < ARRAY_NR(full));
	left = slots_of_few(&s);
	while (nr)
		allocator_node_reserve_put(s.allocator, full[--nr]);
	assert_int_equal(left, 0);
	space_close(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_writers_data_lies_together),
		cmocka_unit_test(copies_are_on_different_devices),
		cmocka_unit_test(targets_and_durability_decide),
		cmocka_unit_test(equal_devices_get_equal_shares_of_further_copies),
		cmocka_unit_test(nobody_waits_for_a_cache),
		cmocka_unit_test(nobody_waits_for_space_once_nothing_is_written),
		cmocka_unit_test(nodes_find_room_when_data_doesnt),
		cmocka_unit_test(places_at_hand_are_there_while_they_are_sifted),
		cmocka_unit_test(of_two_who_take_all_places_one_gets_them),
		cmocka_unit_test(places_for_nodes_are_given_up_for_data),
		cmocka_unit_test(reservations_bound_what_is_promised),
		cmocka_unit_test(counters_may_claim_anything),
		cmocka_unit_test(what_cannot_be_used_is_not_promised),
		cmocka_unit_test(many_empty_buckets_become_free_in_few_transactions),
		cmocka_unit_test(an_empty_bucket_that_is_open_may_be_used_again),
		cmocka_unit_test(partial_buckets_with_too_little_left_are_closed),
		cmocka_unit_test(partial_buckets_of_nodes_stay),
		cmocka_unit_test(a_bad_bucket_keeps_no_other_from_becoming_free),
		cmocka_unit_test(who_waits_for_a_bucket_lifts_a_pause_of_the_background),
		cmocka_unit_test(cached_buckets_are_taken_back),
		cmocka_unit_test(open_buckets_dont_hide_cached_ones),
		cmocka_unit_test(old_generations_are_forgotten),
		cmocka_unit_test(where_a_node_stays_is_no_hole),
		cmocka_unit_test(holes_are_found),
		cmocka_unit_test(what_fails_in_the_background_is_told_once),
		cmocka_unit_test(a_full_device_costs_no_copies),
		cmocka_unit_test(places_of_fewer_copies_are_had_for_all),
	};

	return cmocka_run_group_tests_name("allocate", tests, NULL, NULL);
}
