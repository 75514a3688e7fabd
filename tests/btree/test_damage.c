/* Damage: another replica serves, or exactly the range that is lost gives errors. Never old or short content in
 * silence. */
#include <errno.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "fixture.h"
#include "format/error_ids.h"

enum { ID = BTREE_ALLOC, ROUNDS = 40 };

/* Pointers of all nodes of a tree, by walking. */
struct node_list {
	struct btree_node_info nodes[512];
	unsigned nr;
};

static int node_note(void *ctx, const struct btree_node_info *info, int err)
{
	struct node_list *list = ctx;

	assert_true(list->nr < ARRAY_NR(list->nodes));
	list->nodes[list->nr++] = *info;
	return 0;
}

struct damaged_tree {
	struct fixture f;
	struct model m;
	struct built_root root;
	struct node_list list;
};

/* A tree of two levels, a list of its nodes, and its model. Nothing of it is in memory. */
static void tree_make(struct damaged_tree *t, uint64_t seed, unsigned replicas)
{
	memset(t, 0, sizeof(*t));
	fixture_init(&t->f, seed, 16 << 10, 512);
	t->f.replicas = replicas;
	for (unsigned i = 0; i < 2000; i++) {
		struct model_key k = random_key(&t->f.b.rng, ID, 10, 1 << 16, 1);

		model_put(&t->m, &k);
	}
	struct bkey_ref *refs = model_refs(&t->m);
	t->root = tree_build(&t->f.b, ID, refs, t->m.nr);
	free(refs);
	assert_true(t->root.level > 0);

	/* Look at it once, to know its nodes. */
	fixture_open(&t->f, 0);
	fixture_set_root(&t->f, ID, &t->root);
	assert_int_equal(btree_nodes_walk(t->f.trees, ID, node_note, &t->list), 0);
	btrees_close(t->f.trees);
	t->f.trees = NULL;
}

static void tree_open(struct damaged_tree *t)
{
	fixture_open(&t->f, 0);
	fixture_set_root(&t->f, ID, &t->root);
}

static void tree_free(struct damaged_tree *t)
{
	model_free(&t->m);
	fixture_free(&t->f);
}

static const struct btree_node_info *random_node(struct damaged_tree *t, unsigned level)
{
	for (;;) {
		const struct btree_node_info *info = &t->list.nodes[rng_below(&t->f.b.rng, t->list.nr)];

		if (info->level == level)
			return info;
	}
}

static struct stored_node *stored(struct damaged_tree *t, const struct btree_node_info *info)
{
	return &t->f.nodes[fixture_node_idx(&info->ptr)];
}

/* Byte offset of the last set of a stored node. */
static size_t last_set(struct damaged_tree *t, const struct btree_node_info *info)
{
	const struct stored_node *node = stored(t, info);
	size_t offset = 0, next = 0;

	while (next < node->bytes) {
		offset = next;
		next += bset_header_bytes(offset) + le16_get(bset_at(node->copy[0], offset)->u64s) * 8u;
		next = round_up_u64(next, t->f.b.block_bytes);
	}
	return offset;
}

static void flip_byte(struct damaged_tree *t, const struct btree_node_info *info, unsigned dev, size_t offset)
{
	stored(t, info)->copy[dev][offset] ^= 0x40;
}

/* Everything outside @min..@max is there, and in it -EIO is all there is. */
static void check_lost(struct damaged_tree *t, struct bpos min_key, struct bpos max_key)
{
	struct btree_iter it;
	struct bkey_ref k;
	size_t i = 0;
	unsigned errors = 0;
	int found;

	btree_iter_open(&it, t->f.trees, ID, POS_MIN, 0, 0);
	while ((found = btree_iter_peek(&it, &k))) {
		if (found < 0) {
			assert_int_equal(found, -EIO);
			assert_true(bpos_eq(it.damage_min, min_key) && bpos_eq(it.damage_max, max_key));
			errors++;
			btree_iter_skip_damage(&it);
			continue;
		}
		while (i < t->m.nr && bpos_le(min_key, t->m.keys[i].k.p) && bpos_le(t->m.keys[i].k.p, max_key))
			i++;
		assert_true(i < t->m.nr);
		assert_key_equal(&k, &t->m.keys[i++]);
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	while (i < t->m.nr && bpos_le(min_key, t->m.keys[i].k.p) && bpos_le(t->m.keys[i].k.p, max_key))
		i++;
	assert_int_equal(i, t->m.nr);
	assert_int_equal(errors, 1);

	for (i = 0; i < t->m.nr; i += 7) {
		struct bpos p = t->m.keys[i].k.p;
		bool is_lost = bpos_le(min_key, p) && bpos_le(p, max_key);
		struct bkey_copy copy;

		assert_int_equal(btree_lookup(t->f.trees, ID, p, &copy), is_lost ? -EIO : 1);
	}
}

static void check_complete(struct damaged_tree *t)
{
	struct btree_iter it;
	struct bkey_ref k;
	size_t i = 0;

	btree_iter_open(&it, t->f.trees, ID, POS_MIN, 0, 0);
	for (; btree_iter_peek(&it, &k) == 1; btree_iter_advance(&it))
		assert_key_equal(&k, &t->m.keys[i++]);
	btree_iter_close(&it);
	assert_int_equal(i, t->m.nr);
}

static void check_one_bad_replica(uint64_t seed)
{
	struct damaged_tree t;

	tree_make(&t, seed, 2);
	struct rng *rng = &t.f.b.rng;
	const struct btree_node_info *info = random_node(&t, (unsigned)rng_below(rng, 2));
	size_t offset = rng_below(rng, 2) ? 0 : last_set(&t, info);
	flip_byte(&t, info, 0, offset + rng_below(rng, bset_header_bytes(offset)));
	tree_open(&t);

	check_complete(&t);
	assert_int_equal(t.f.reports[REPORT_RECOVERED], 1);
	assert_int_equal(t.f.reports[REPORT_DAMAGE], 0);
	assert_string_equal(t.f.last_device, "dev-a");
	assert_non_null(strstr(t.f.last_position, info->level ? "alloc level 1 " : "alloc level 0 "));
	assert_int_equal(t.f.bad_replicas, 1);
	struct btrees_usage usage;
	btrees_usage(t.f.trees, &usage);
	assert_int_equal(usage.read_retries, 1);
	tree_free(&t);
}

static void a_good_replica_serves_for_a_bad_one_which_is_reported(void **state)
{
	seeds_run(check_one_bad_replica, ROUNDS);
}

static void check_all_replicas_bad(uint64_t seed)
{
	struct damaged_tree t;

	tree_make(&t, seed, 1 + seed % 2);
	struct rng *rng = &t.f.b.rng;
	const struct btree_node_info *info = random_node(&t, (unsigned)rng_below(rng, 2));
	size_t offset = rng_below(rng, 2) ? 0 : last_set(&t, info);
	for (unsigned dev = 0; dev < t.f.replicas; dev++)
		flip_byte(&t, info, dev, offset + rng_below(rng, bset_header_bytes(offset)));
	tree_open(&t);

	check_lost(&t, info->min_key, info->max_key);
	check_lost(&t, info->min_key, info->max_key);
	assert_int_equal(t.f.reports[REPORT_DAMAGE], t.f.replicas);
	assert_int_equal(t.f.reports[REPORT_RECOVERED], 0);
	tree_free(&t);
}

static void a_node_with_one_bad_set_is_lost_as_a_whole_and_reported_once(void **state)
{
	seeds_run(check_all_replicas_bad, ROUNDS);
}

static void what_is_read_again_is_not_reported_again(void **state)
{
	struct btrees_usage usage;
	struct damaged_tree t;

	tree_make(&t, 8, 2);
	const struct btree_node_info *info = random_node(&t, 0);
	flip_byte(&t, info, 0, 0);
	fixture_open(&t.f, BTREE_CACHE_BYTES_MIN(16 << 10));
	fixture_set_root(&t.f, ID, &t.root);
	check_complete(&t);
	check_complete(&t);
	btrees_usage(t.f.trees, &usage);
	assert_int_equal(usage.read_retries, 2);
	assert_int_equal(t.f.reports[REPORT_RECOVERED], 1);
	tree_free(&t);
}

static void a_missing_device_is_no_damage_while_the_other_serves(void **state)
{
	struct damaged_tree t;

	tree_make(&t, 3, 2);
	t.f.dev_err[0] = -ENODEV;
	tree_open(&t);
	check_complete(&t);
	assert_int_equal(t.f.reports[REPORT_RECOVERED] + t.f.reports[REPORT_DAMAGE], 0);
	assert_int_equal(t.f.bad_replicas, 0);
	tree_free(&t);

	tree_make(&t, 3, 2);
	t.f.dev_err[0] = t.f.dev_err[1] = -ENODEV;
	tree_open(&t);
	check_lost(&t, POS_MIN, SPOS_MAX);
	tree_free(&t);
}

static void a_read_that_lacked_memory_is_tried_again(void **state)
{
	struct damaged_tree t;
	struct bkey_copy copy;

	tree_make(&t, 4, 1);
	tree_open(&t);
	t.f.dev_err[0] = -ENOMEM;
	assert_int_equal(btree_lookup(t.f.trees, ID, t.m.keys[0].k.p, &copy), -ENOMEM);
	t.f.dev_err[0] = 0;
	check_complete(&t);
	assert_int_equal(t.f.reports[REPORT_DAMAGE], 0);
	tree_free(&t);

	/* Or another replica serves, which says nothing against the first. */
	tree_make(&t, 4, 2);
	t.f.dev_err[0] = -ENOMEM;
	tree_open(&t);
	check_complete(&t);
	assert_int_equal(t.f.reports[REPORT_RECOVERED] + t.f.reports[REPORT_DAMAGE], 0);
	assert_int_equal(t.f.bad_replicas, 0);
	tree_free(&t);
}

static void sets_that_are_missing_make_a_node_unreadable(void **state)
{
	struct damaged_tree t;

	tree_make(&t, 9, 1);
	const struct btree_node_info *info = random_node(&t, 0);
	while (!last_set(&t, info))
		info = random_node(&t, 0);
	le64_store(&bset_at(stored(&t, info)->copy[0], last_set(&t, info))->seq, 1);
	tree_open(&t);
	check_lost(&t, info->min_key, info->max_key);
	assert_int_equal(t.f.last_id, ERROR_btree_node_data_missing);
	tree_free(&t);
}

static void a_damaged_root_loses_everything(void **state)
{
	struct damaged_tree t;

	tree_make(&t, 5, 1);
	fixture_open(&t.f, 0);
	assert_int_equal(btrees_set_root(t.f.trees, ID, 1, NULL, true), 0);
	check_lost(&t, POS_MIN, SPOS_MAX);

	struct bkey_ref bad = t.root.key;
	bad.k.p.offset--;
	assert_int_equal(btrees_set_root(t.f.trees, ID, t.root.level, &bad, false), 0);
	check_lost(&t, POS_MIN, SPOS_MAX);
	assert_int_equal(t.f.last_id, ERROR_btree_root_bad_max_key);
	assert_int_equal(btrees_set_root(t.f.trees, BTREE_NR_MAX, 0, &bad, false), -EINVAL);
	tree_free(&t);
}

/* --- damage and snapshots --- */

/* Every snapshot is a child of the next greater one. */
static bool is_greater(void *ctx, uint32_t id, uint32_t ancestor) { return id <= ancestor; }

static bool is_visible_in(const struct model *m, size_t i, uint32_t snapshot)
{
	return m->keys[i].k.p.snapshot >= snapshot &&
	       (!i || bpos_key_cmp(m->keys[i - 1].k.p, m->keys[i].k.p) || m->keys[i - 1].k.p.snapshot < snapshot);
}

/* What is shown is right, and what isn't is said to be lost. */
static void check_filtered_damage(uint64_t seed)
{
	enum { VERSIONS = 12 };
	struct model m = { 0 };
	struct btree_iter it;
	struct bkey_ref k;
	struct fixture f;
	int found;

	fixture_init(&f, seed, 8 << 10, 512);
	f.b.keys_per_node = 6;
	f.b.sets_per_node = 1;
	for (unsigned i = 0; i < 300; i++) {
		struct model_key key = random_key(&f.b.rng, BTREE_XATTRS, 2, 40, VERSIONS);

		model_put(&m, &key);
	}
	struct bkey_ref *refs = model_refs(&m);
	fixture_build(&f, BTREE_XATTRS, refs, m.nr);
	free(refs);
	uint32_t snapshot = UINT32_MAX - (uint32_t)rng_below(&f.b.rng, VERSIONS);
	btrees_set_snapshots(f.trees, (struct btree_snapshots){ .is_ancestor = is_greater });
	for (unsigned i = 0; i < 3; i++)
		f.nodes[rng_below(&f.b.rng, f.node_nr - 1)].copy[0][0] ^= 1;

	size_t i = 0;
	btree_iter_open(&it, f.trees, BTREE_XATTRS, POS_MIN, 0, snapshot);
	while ((found = btree_iter_peek(&it, &k))) {
		while (i < m.nr && !is_visible_in(&m, i, snapshot))
			i++;
		if (found < 0) {
			while (i < m.nr && (!is_visible_in(&m, i, snapshot) || bpos_le(m.keys[i].k.p, it.damage_max)))
				i++;
			btree_iter_skip_damage(&it);
			continue;
		}
		assert_true(i < m.nr);
		assert_key_equal(&k, &m.keys[i++]);
		btree_iter_advance(&it);
	}
	while (i < m.nr && !is_visible_in(&m, i, snapshot))
		i++;
	assert_int_equal(i, m.nr);
	btree_iter_close(&it);
	model_free(&m);
	fixture_free(&f);
}

static void damage_never_lets_an_ancestors_version_through(void **state)
{
	seeds_run(check_filtered_damage, 5 * ROUNDS);
}

static void a_gap_between_children_is_lost(void **state)
{
	struct damaged_tree t;

	tree_make(&t, 6, 1);
	const struct btree_node_info *info = random_node(&t, 0);
	struct bkey_ref deleted = { .k = { .p = info->max_key, .type = KEY_DELETED } };
	/* SPOS_MAX is shared with the root's pointer: at another level, but the gap would be the tail. Both are gaps.
	 */
	tree_overlay_add(&t.f.b, ID, 1, 1, 0, &deleted);
	tree_open(&t);
	check_lost(&t, info->min_key, info->max_key);
	assert_int_equal(t.f.reports[REPORT_DAMAGE], 1);
	tree_free(&t);
}

static void children_that_overlap_are_reported(void **state)
{
	struct damaged_tree t;
	struct btree_iter it;
	struct bkey_ref k;
	struct bpos last = POS_MIN;

	tree_make(&t, 7, 1);
	const struct btree_node_info *info = random_node(&t, 0);
	while (bpos_eq(info->min_key, POS_MIN))
		info = random_node(&t, 0);
	struct btree_ptr ptr = info->ptr;
	ptr.min_key = bpos_predecessor(info->min_key);
	ptr.is_range_updated = true;
	struct bkey_ref wide = btree_ptr_key(&t.f.b, info->max_key, &ptr);
	tree_overlay_add(&t.f.b, ID, 1, 1, 0, &wide);
	tree_open(&t);

	btree_iter_open(&it, t.f.trees, ID, POS_MIN, 0, 0);
	for (; btree_iter_peek(&it, &k) == 1; btree_iter_advance(&it)) {
		assert_true(bpos_lt(last, k.k.p));
		last = k.k.p;
	}
	btree_iter_close(&it);
	assert_int_equal(t.f.reports[REPORT_DAMAGE], 1);
	assert_int_equal(t.f.last_id, ERROR_btree_node_topology_bad_min_key);
	tree_free(&t);
}

/* --- single nodes, made by hand --- */

static struct model_key alloc_key(uint64_t offset, uint64_t value)
{
	return (struct model_key){ .k = { .p = BPOS(0, offset, 0), .type = KEY_COOKIE, .value_u64s = 1 },
				   .value = { value } };
}

struct hand_made {
	struct fixture f;
	struct node_writer w;
	uint8_t *buf;
};

static void hand_made_begin(struct hand_made *h, unsigned replicas)
{
	struct bkey_format_builder fb;
	struct bkey_format format;

	fixture_init(&h->f, 1, 16 << 10, 512);
	h->f.replicas = replicas;
	h->buf = malloc(16 << 10);
	bkey_format_begin(&fb);
	bkey_format_add_pos(&fb, POS_MIN);
	bkey_format_add_pos(&fb, SPOS_MAX);
	bkey_format_finish(&fb, &format);
	node_writer_begin(&h->w, &h->f.b, h->buf, ID, 0, POS_MIN, SPOS_MAX, &format, 77);
}

static void hand_made_set(struct hand_made *h, uint64_t journal_seq, const struct model_key *keys, size_t nr)
{
	struct bkey_ref refs[8];

	for (size_t i = 0; i < nr; i++)
		refs[i] = model_ref(&keys[i]);
	assert_true(node_writer_set(&h->w, journal_seq, refs, nr));
}

static struct built_root hand_made_place(struct hand_made *h, bool is_range_updated)
{
	struct btree_ptr ptr = { .seq = 77, .sectors_written = (uint16_t)(h->w.end / SECTOR_BYTES) };

	ptr.is_range_updated = is_range_updated;
	h->f.b.place(h->f.b.ctx, h->buf, h->w.end, &ptr);
	free(h->buf);
	return (struct built_root){ .key = btree_ptr_key(&h->f.b, SPOS_MAX, &ptr) };
}

static void check_value(struct fixture *f, uint64_t offset, int found, uint64_t value)
{
	struct bkey_copy copy;

	assert_int_equal(btree_lookup(f->trees, ID, BPOS(0, offset, 0), &copy), found);
	if (found == 1)
		assert_int_equal(le64_load(copy.value), value);
}

static void a_bad_key_is_lost_with_its_older_version_and_reported_once(void **state)
{
	struct hand_made h;
	struct btree_iter it;
	struct bkey_ref k;
	struct node_list list = { .nr = 0 };
	struct model_key old[] = { alloc_key(1, 10), alloc_key(2, 20), alloc_key(3, 30) };
	struct model_key new[] = { alloc_key(2, 21), alloc_key(3, 31) };

	new[0].k.value_u64s = 0; /* a cookie has at least one word */
	hand_made_begin(&h, 1);
	hand_made_set(&h, 0, old, 3);
	hand_made_set(&h, 1, new, 2);
	struct built_root root = hand_made_place(&h, false);
	fixture_open(&h.f, 0);
	fixture_set_root(&h.f, ID, &root);

	check_value(&h.f, 1, 1, 10);
	check_value(&h.f, 2, -EIO, 0);
	check_value(&h.f, 3, 1, 31);
	btree_iter_open(&it, h.f.trees, ID, BPOS(0, 2, 0), 0, 0);
	assert_int_equal(btree_iter_peek(&it, &k), -EIO);
	assert_int_equal(btree_iter_peek(&it, &k), -EIO);
	assert_true(bpos_eq(it.damage_min, BPOS(0, 2, 0)) && bpos_eq(it.damage_max, BPOS(0, 2, 0)));
	btree_iter_skip_damage(&it);
	assert_int_equal(btree_iter_peek(&it, &k), 1);
	assert_int_equal(k.k.p.offset, 3);
	btree_iter_close(&it);
	assert_int_equal(h.f.reports[REPORT_DAMAGE], 1);
	assert_int_equal(btree_nodes_walk(h.f.trees, ID, node_note, &list), 0);
	assert_int_equal(list.nodes[0].bad_key_nr, 1);
	assert_int_equal(list.nodes[0].set_nr, 2);
	assert_int_equal(list.nodes[0].key_nr, 2);
	fixture_free(&h.f);
}

/* What the journal says about a position counts, whatever is wrong with the node's key. */
static void a_journal_key_takes_the_place_of_a_bad_one(void **state)
{
	struct hand_made h;
	struct model_key keys[] = { alloc_key(1, 10), alloc_key(2, 20), alloc_key(3, 30) };
	struct model_key newer = alloc_key(1, 11);
	struct bkey_ref deleted = { .k = { .p = BPOS(0, 2, 0), .type = KEY_DELETED } }, put = model_ref(&newer);

	for (unsigned i = 0; i < ARRAY_NR(keys); i++)
		keys[i].k.value_u64s = 0;
	hand_made_begin(&h, 1);
	hand_made_set(&h, 0, keys, 3);
	struct built_root root = hand_made_place(&h, false);
	tree_overlay_add(&h.f.b, ID, 0, 1, 0, &put);
	tree_overlay_add(&h.f.b, ID, 0, 1, 8, &deleted);
	fixture_open(&h.f, 0);
	fixture_set_root(&h.f, ID, &root);

	check_value(&h.f, 1, 1, 11);
	check_value(&h.f, 2, 0, 0);
	check_value(&h.f, 3, -EIO, 0);
	fixture_free(&h.f);
}

/* A bad version hides the ancestors' ones, in the snapshots that would see it. */
static void a_bad_version_is_lost_only_where_it_would_be_seen(void **state)
{
	enum { PARENT = 30, CHILD = 20, GRANDCHILD = 10 };
	struct model_key keys[2];
	struct bkey_ref refs[2], k;
	struct btree_iter it;
	struct fixture f;

	for (unsigned i = 0; i < 2; i++) {
		keys[i] = alloc_key(5, 50);
		keys[i].k.p = BPOS(4098, 5, i ? PARENT : CHILD);
	}
	keys[0].k.value_u64s = 0;
	refs[0] = model_ref(&keys[0]);
	refs[1] = model_ref(&keys[1]);
	fixture_init(&f, 1, 8 << 10, 512);
	fixture_build(&f, BTREE_XATTRS, refs, 2);
	btrees_set_snapshots(f.trees, (struct btree_snapshots){ .is_ancestor = is_greater });

	for (uint32_t snapshot = GRANDCHILD; snapshot <= PARENT; snapshot += 10) {
		btree_iter_open(&it, f.trees, BTREE_XATTRS, BPOS(4098, 0, 0), 0, snapshot);
		assert_int_equal(btree_iter_peek(&it, &k), snapshot == PARENT ? 1 : -EIO);
		if (snapshot != PARENT)
			btree_iter_skip_damage(&it);
		else
			btree_iter_advance(&it);
		assert_int_equal(btree_iter_peek(&it, &k), 0);
		btree_iter_close(&it);
	}
	fixture_free(&f);
}

static void a_replica_without_bad_keys_is_preferred(void **state)
{
	struct hand_made h;
	struct model_key keys[] = { alloc_key(1, 10), alloc_key(2, 20) };

	hand_made_begin(&h, 2);
	h.f.b.csum_type = CHECKSUM_NONE;
	hand_made_set(&h, 0, keys, 2);
	struct built_root root = hand_made_place(&h, false);
	/* Type of the first key, where nothing guards it: an inode_v3 of one word. */
	h.f.nodes[0].copy[0][sizeof(struct btree_node_disk) + 2] = KEY_INODE_V3;
	fixture_open(&h.f, 0);
	fixture_set_root(&h.f, ID, &root);

	check_value(&h.f, 1, 1, 10);
	check_value(&h.f, 2, 1, 20);
	assert_int_equal(h.f.reports[REPORT_DAMAGE], 0);
	assert_int_equal(h.f.reports[REPORT_RECOVERED], 1);
	fixture_free(&h.f);
}

static void keys_whose_place_is_unknown_make_a_node_unreadable(void **state)
{
	struct hand_made h;
	struct model_key old[] = { alloc_key(1, 10), alloc_key(2, 20) }, new[] = { alloc_key(2, 21), alloc_key(1, 11) };

	hand_made_begin(&h, 1);
	hand_made_set(&h, 0, old, 2);
	hand_made_set(&h, 1, new, 2);
	struct built_root root = hand_made_place(&h, false);
	fixture_open(&h.f, 0);
	fixture_set_root(&h.f, ID, &root);
	check_value(&h.f, 1, -EIO, 0);
	assert_int_equal(h.f.last_id, ERROR_btree_node_bkey_out_of_order);
	fixture_free(&h.f);
}

static bool seq_is_5(void *ctx, uint64_t journal_seq) { return journal_seq == 5; }

static void a_blacklisted_set_is_left_out_unless_it_is_the_first(void **state)
{
	struct hand_made h;
	struct model_key old = alloc_key(1, 10), lost = alloc_key(1, 11), other = alloc_key(2, 20);

	hand_made_begin(&h, 1);
	hand_made_set(&h, 5, &old, 1);
	hand_made_set(&h, 5, &lost, 1);
	hand_made_set(&h, 6, &other, 1);
	struct built_root root = hand_made_place(&h, false);
	struct btrees_opts opts = {
		.memory_bytes = 1 << 20,
		.kctx = &h.f.kctx,
		.magic = h.f.b.magic,
		.reports = &h.f.sink,
		.is_blacklisted = seq_is_5,
	};
	/* The fixture's backend, through trees of its own. */
	fixture_open(&h.f, 0);
	opts.backend = fixture_backend(&h.f);
	btrees_close(h.f.trees);
	assert_int_equal(btrees_open(&opts, &h.f.trees), 0);
	fixture_set_root(&h.f, ID, &root);

	check_value(&h.f, 1, 1, 10);
	check_value(&h.f, 2, 1, 20);
	assert_int_equal(h.f.reports[REPORT_DAMAGE], 0);
	assert_int_equal(h.f.reports[REPORT_INFO], 1);
	fixture_free(&h.f);
}

static void a_node_whose_range_was_changed_shows_what_is_in_range(void **state)
{
	struct hand_made h;
	struct model_key keys[] = { alloc_key(1, 10), alloc_key(5, 50), alloc_key(9, 90) };
	struct bpos cut = BPOS(0, 5, 0);

	hand_made_begin(&h, 1);
	hand_made_set(&h, 0, keys, 3);
	/* The same node twice under a root: once up to 0:5:0, once behind that. */
	struct built_root all = hand_made_place(&h, true);
	struct btree_ptr ptr;
	assert_int_equal(btree_ptr_decode(all.key, &h.f.kctx, &ptr, NULL), 0);
	struct btree_ptr left = ptr, right = ptr, top = { .seq = 78 };
	right.min_key = bpos_successor(cut);
	struct bkey_ref children[] = { btree_ptr_key(&h.f.b, cut, &left), btree_ptr_key(&h.f.b, SPOS_MAX, &right) };
	struct node_writer w;
	uint8_t *buf = malloc(16 << 10);
	node_writer_begin(&w, &h.f.b, buf, ID, 1, POS_MIN, SPOS_MAX, &h.w.format, 78);
	assert_true(node_writer_set(&w, 0, children, 2));
	top.sectors_written = (uint16_t)(w.end / SECTOR_BYTES);
	h.f.b.place(h.f.b.ctx, buf, w.end, &top);
	free(buf);
	struct built_root root = { .key = btree_ptr_key(&h.f.b, SPOS_MAX, &top), .level = 1 };
	fixture_open(&h.f, 0);
	fixture_set_root(&h.f, ID, &root);

	struct btree_iter it;
	struct bkey_ref k;
	unsigned i = 0;
	btree_iter_open(&it, h.f.trees, ID, POS_MIN, 0, 0);
	for (; btree_iter_peek(&it, &k) == 1; btree_iter_advance(&it))
		assert_key_equal(&k, &keys[i++]);
	btree_iter_close(&it);
	assert_int_equal(i, 3);
	assert_int_equal(h.f.reports[REPORT_DAMAGE], 0);
	fixture_free(&h.f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(a_good_replica_serves_for_a_bad_one_which_is_reported, seeds_teardown),
		cmocka_unit_test_teardown(a_node_with_one_bad_set_is_lost_as_a_whole_and_reported_once, seeds_teardown),
		cmocka_unit_test(what_is_read_again_is_not_reported_again),
		cmocka_unit_test(a_missing_device_is_no_damage_while_the_other_serves),
		cmocka_unit_test(a_read_that_lacked_memory_is_tried_again),
		cmocka_unit_test(sets_that_are_missing_make_a_node_unreadable),
		cmocka_unit_test(a_damaged_root_loses_everything),
		cmocka_unit_test_teardown(damage_never_lets_an_ancestors_version_through, seeds_teardown),
		cmocka_unit_test(a_gap_between_children_is_lost),
		cmocka_unit_test(children_that_overlap_are_reported),
		cmocka_unit_test(a_bad_key_is_lost_with_its_older_version_and_reported_once),
		cmocka_unit_test(a_journal_key_takes_the_place_of_a_bad_one),
		cmocka_unit_test(a_bad_version_is_lost_only_where_it_would_be_seen),
		cmocka_unit_test(a_replica_without_bad_keys_is_preferred),
		cmocka_unit_test(keys_whose_place_is_unknown_make_a_node_unreadable),
		cmocka_unit_test(a_blacklisted_set_is_left_out_unless_it_is_the_first),
		cmocka_unit_test(a_node_whose_range_was_changed_shows_what_is_in_range),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
