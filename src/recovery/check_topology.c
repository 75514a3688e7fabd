/*
 * Btree nodes: every one is there, in all its replicas, and the ranges of a parent's children make up its own (02
 * §7.2).
 *
 * Nodes are walked top down, left to right, so at each level a node begins where the one before it ended. Each replica
 * is then read from its device as it stands there, which a reader does only with the first good one: all sets up to
 * what the pointer says are verified, keys checked, and nothing may come behind.
 *
 * It runs early: what it finds unreadable other passes know of.
 *
 * Memory: one node; the btrees' cache holds one node of each level besides.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "recovery/check_internal.h"

struct topology {
	struct check *c;
	unsigned btree_id;
	int root_level;
	struct bpos next_min[BTREE_LEVEL_MAX + 2]; /* where the next node of a level begins */
	struct bpos max[BTREE_LEVEL_MAX + 2];	   /* where the one that is open at a level ends */
	bool is_open[BTREE_LEVEL_MAX + 2], has_child[BTREE_LEVEL_MAX + 2];
	void *buf;
	uint64_t magic;
	/* of the set that is looked at */
	const struct btree_node_info *info;
	struct bpos last;
	bool has_last, last_is_live;
	const char *device;
	uint64_t sector; /* of the replica */
};

static bool is_above(const struct topology *t) { return t->c->is_newer; }

/* About all of a node, or, with @device, its replica that is looked at. */
static int report_node(struct topology *t, unsigned id, const struct btree_node_info *n, const char *device,
		       const char *expected, const char *found)
{
	char buf[CHECK_TEXT_BYTES];
	struct strbuf position = strbuf_fixed(buf, sizeof(buf));

	strbuf_printf(&position, "%s level %u ", btree_name(n->btree_id) ? btree_name(n->btree_id) : "unknown btree",
		      n->level);
	bpos_to_text(&position, n->max_key);
	if (device)
		strbuf_printf(&position, ", sector %llu", (unsigned long long)t->sector);
	return check_report(t->c, id, device, "btree node", buf, expected, "%s", found);
}

/* --- ranges --- */

/* What of a node should be @is_where @expected is @found. */
static void report_bound(struct topology *t, unsigned id, const struct btree_node_info *n, const char *is_where,
			 struct bpos expected, struct bpos found)
{
	char expected_buf[CHECK_TEXT_BYTES], found_buf[CHECK_TEXT_BYTES];
	struct strbuf expected_text = strbuf_fixed(expected_buf, sizeof(expected_buf));
	struct strbuf found_text = strbuf_fixed(found_buf, sizeof(found_buf));

	strbuf_printf(&expected_text, "%s ", is_where);
	bpos_to_text(&expected_text, expected);
	bpos_to_text(&found_text, found);
	report_node(t, id, n, NULL, expected_buf, found_buf);
}

/* The node that is open at @level has seen its last child: that must end where it does. */
static void close_level(struct topology *t, unsigned level)
{
	struct btree_node_info n = { .btree_id = t->btree_id, .level = level, .max_key = t->max[level] };

	if (!level || !t->is_open[level] || !t->is_open[level - 1])
		return;
	if (!t->has_child[level])
		report_node(t, ERROR_btree_node_topology_interior_node_empty, &n, NULL, "children", "none");
	else if (!bpos_eq(t->next_min[level - 1], bpos_successor(t->max[level])))
		report_bound(t, ERROR_btree_node_topology_bad_max_key, &n, "a last child that ends at", t->max[level],
			     bpos_predecessor(t->next_min[level - 1]));
}

/*
 * A root begins at POS_MIN and ends at SPOS_MAX: the btrees take no other for one, and what they can't read as a root
 * has been told.
 * No pointer that is read ends before it begins (btree_ptr_validate()).
 */
static void check_range(struct topology *t, const struct btree_node_info *n, bool is_readable)
{
	unsigned level = n->level;

	close_level(t, level);
	if (t->is_open[level] && !bpos_eq(n->min_key, t->next_min[level]))
		report_bound(t, ERROR_btree_node_topology_bad_min_key, n, "a start at", t->next_min[level], n->min_key);
	t->next_min[level] = bpos_successor(n->max_key);
	t->max[level] = n->max_key;
	t->is_open[level] = true;
	t->has_child[level] = false;
	t->has_child[level + 1] = true;
	/* Its children begin where it does. */
	if (level) {
		t->next_min[level - 1] = n->min_key;
		t->is_open[level - 1] = is_readable;
	}
}

/* --- one replica --- */

static bool type_fits(unsigned btree_id, unsigned type)
{
	static const uint64_t types[BTREE_NR_1_4] = {
#define T(type) (1ull << KEY_##type)
		[BTREE_EXTENTS] =
			T(WHITEOUT) | T(ERROR) | T(COOKIE) | T(EXTENT) | T(RESERVATION) | T(REFLINK_P) | T(INLINE_DATA),
		[BTREE_INODES] = T(WHITEOUT) | T(INODE) | T(INODE_V2) | T(INODE_V3) | T(INODE_GENERATION),
		[BTREE_DIRENTS] = T(WHITEOUT) | T(HASH_WHITEOUT) | T(DIRENT),
		[BTREE_XATTRS] = T(WHITEOUT) | T(COOKIE) | T(HASH_WHITEOUT) | T(XATTR),
		[BTREE_ALLOC] = T(ALLOC) | T(ALLOC_V2) | T(ALLOC_V3) | T(ALLOC_V4),
		[BTREE_QUOTAS] = T(QUOTA),
		[BTREE_STRIPES] = T(STRIPE),
		[BTREE_REFLINK] = T(REFLINK_V) | T(INDIRECT_INLINE_DATA) | T(ERROR),
		[BTREE_SUBVOLUMES] = T(SUBVOLUME),
		[BTREE_SNAPSHOTS] = T(SNAPSHOT),
		[BTREE_LRU] = T(SET),
		[BTREE_FREESPACE] = T(SET),
		[BTREE_NEED_DISCARD] = T(SET),
		[BTREE_BACKPOINTERS] = T(BACKPOINTER),
		[BTREE_BUCKET_GENS] = T(BUCKET_GENS),
		[BTREE_SNAPSHOT_TREES] = T(SNAPSHOT_TREE),
		[BTREE_DELETED_INODES] = T(SET),
		[BTREE_LOGGED_OPS] = T(LOGGED_OP_TRUNCATE) | T(LOGGED_OP_FINSERT),
		[BTREE_REBALANCE_WORK] = T(SET) | T(COOKIE),
#undef T
	};

	return btree_id >= BTREE_NR_1_4 || type == KEY_DELETED || (type < 64 && types[btree_id] >> type & 1);
}

static void set_bad_key(void *ctx, const struct fault *fault, struct bkey_ref k, size_t offset_bytes)
{
	struct topology *t = ctx;
	unsigned id = fault->id ? fault->id : ERROR_btree_node_bad_bkey;
	char expected[CHECK_TEXT_BYTES], found_buf[CHECK_TEXT_BYTES];
	struct strbuf found = strbuf_fixed(found_buf, sizeof(found_buf));

	snprintf(expected, sizeof(expected), "%s %s", fault->field, fault->expected);
	strbuf_printf(&found, "%s in the key at byte %zu", fault->found, offset_bytes);
	if (k.value) {
		strbuf_add(&found, ", ");
		bpos_to_text(&found, k.k.p);
	}
	report_node(t, id, t->info, t->device, fault->expected[0] ? expected : "a good key", found_buf);
}

static int set_key(void *ctx, const void *packed, const struct bkey *k)
{
	struct topology *t = ctx;
	bool is_live = k->type != KEY_DELETED;

	if (t->has_last && is_live && t->last_is_live && bpos_eq(t->last, k->p) && !is_above(t)) {
		char found_buf[CHECK_TEXT_BYTES];
		struct strbuf found = strbuf_fixed(found_buf, sizeof(found_buf));

		bpos_to_text(&found, k->p);
		strbuf_add(&found, " twice");
		report_node(t, CHECK_node_duplicate_position, t->info, t->device, "a position once in a set",
			    found_buf);
	}
	if (!t->info->level && !is_above(t) && !type_fits(t->btree_id, k->type))
		check_report_pos(t->c, ERROR_bkey_invalid_type_for_btree, t->btree_id, k->p, "a type of this btree",
				 "type %u", k->type);
	t->c->keys[t->btree_id] += !t->info->level;
	t->last = k->p;
	t->has_last = true;
	t->last_is_live = is_live;
	return 0;
}

/* About the set at byte @offset of the node. */
static void report_set(struct topology *t, unsigned id, size_t offset, const char *expected, const char *found)
{
	char text[CHECK_TEXT_BYTES];

	snprintf(text, sizeof(text), "%s at its sector %zu", found, offset / SECTOR_BYTES);
	report_node(t, id, t->info, t->device, expected, text);
}

/*
 * Bytes that are neither written nor known: a set there, by its seq, is one that the pointer doesn't know. A crash
 * leaves such sets (02 §6); they are older than what was blacklisted when the filesystem was opened after it.
 */
static void check_behind(struct topology *t, size_t offset, size_t bytes)
{
	const struct btree_node_disk *node = t->buf;

	if (offset + sizeof(struct btree_node_entry_disk) > bytes || !t->c->t->journal->was_clean ||
	    t->c->t->is_writable)
		return;
	const struct journal_state *journal = t->c->t->journal;
	uint64_t crashed_before = 0;
	for (size_t i = 0; i < journal->blacklist_nr; i++)
		crashed_before = max(crashed_before, journal->blacklist[i].end);

	const struct bset_disk *set = bset_at(t->buf, offset);
	if (le64_get(set->seq) == le64_get(node->keys.seq) && le64_get(set->journal_seq) >= crashed_before)
		report_set(t, CHECK_node_set_beyond_sectors_written, offset, "no more sets than are written",
			   "another");
}

static void check_set(struct topology *t, const struct bset_info *set)
{
	char expected[64], found[64];

	if (set->offset && !set->journal_seq)
		report_set(t, CHECK_node_set_journal_seq_missing, set->offset, "a journal seq", "0");
	if (set->journal_seq < t->c->seq_next)
		return;
	snprintf(expected, sizeof(expected), "a journal seq below %llu", (unsigned long long)t->c->seq_next);
	snprintf(found, sizeof(found), "%llu", (unsigned long long)set->journal_seq);
	report_set(t, CHECK_node_set_journal_seq_in_future, set->offset, expected, found);
}

/* Verify the sets of the node in the buffer. @is_first: and look at the keys. */
static void check_sets(struct topology *t, const struct btree_node_info *n, bool is_first)
{
	const struct key_context *kctx = t->c->kctx;
	struct btree_node_expect expect = {
		.btree_id = n->btree_id,
		.level = n->level,
		.magic = t->magic,
		.seq = n->ptr.seq,
		.min_key = n->min_key,
		.max_key = n->max_key,
		.is_range_updated = n->ptr.is_range_updated,
		.sectors_written = n->ptr.sectors_written,
		.node_sectors = kctx->node_sectors,
		.block_sectors = kctx->block_sectors,
		.version_min = le16_get(t->c->super->sb->version_min),
		.key = t->c->super->key,
	};
	struct bset_check check = { .bad = set_bad_key, .keep = set_key, .ctx = t };
	size_t bytes = (size_t)kctx->node_sectors << SECTOR_SHIFT, offset = 0;
	size_t written = min((size_t)n->ptr.sectors_written << SECTOR_SHIFT, bytes);
	struct bkey_format format;

	/* 0: the pointer doesn't say; then the sets end where another seq begins. */
	while (offset < (written ? written : bytes)) {
		struct bset_info set;
		struct fault fault = { 0 };
		int ret = bset_read(t->buf, offset, &expect, &format, &set, &fault);
		char expected[CHECK_TEXT_BYTES];

		if (!ret && written) {
			snprintf(expected, sizeof(expected), "sets in all of %u sectors", n->ptr.sectors_written);
			report_set(t, ERROR_btree_node_data_missing, offset, expected, "none");
		}
		if (ret < 0 || (ret && fault.id)) {
			snprintf(expected, sizeof(expected), "%s %s", fault.field, fault.expected);
			report_node(t, fault.id ? fault.id : CHECK_node_replica_damaged, n, t->device,
				    fault.expected[0] ? expected : "a good set", fault.found);
		}
		if (ret <= 0)
			return;
		check_set(t, &set);
		t->has_last = false;
		if (is_first && !(set.journal_seq && journal_seq_is_blacklisted(t->c->t->journal, set.journal_seq)))
			bset_check_keys(t->buf, &set, &format, &expect, kctx, &check);
		offset = round_up_u64(set.keys_offset + set.keys_u64s * 8,
				      (uint64_t)kctx->block_sectors << SECTOR_SHIFT);
	}
	if (written)
		check_behind(t, offset, bytes);
}

static void check_replicas(struct topology *t, const struct btree_node_info *n)
{
	const struct super *s = t->c->super;
	bool is_first = true;

	t->info = n;
	for (unsigned i = 0; i < n->ptr.ptr_nr; i++) {
		const struct extent_ptr *p = &n->ptr.ptrs[i];

		if (!check_device_counts(t->c, p->dev))
			continue;
		t->device = s->members[p->dev].name;
		t->sector = p->sector;
		int err = device_read(s->members[p->dev].dev, p->sector << SECTOR_SHIFT, t->buf,
				      (size_t)t->c->kctx->node_sectors << SECTOR_SHIFT);
		if (err)
			report_node(t, CHECK_node_replica_damaged, n, t->device, "to be readable", error_name(err));
		else
			check_sets(t, n, is_first);
		is_first = false;
	}
}

/* --- walking --- */

static int check_node(void *ctx, const struct btree_node_info *n, int err)
{
	struct topology *t = ctx;

	if (err == -ENOMEM)
		return err;
	if (t->root_level < 0)
		t->root_level = (int)n->level;
	if (n->level > BTREE_LEVEL_MAX)
		return 0;
	if (err) {
		bool is_root = (int)n->level == t->root_level;

		t->c->damaged |= CHECK_BTREE(t->btree_id);
		t->c->result->btrees_damaged |= CHECK_BTREE(t->btree_id);
		report_node(t, is_root ? ERROR_btree_root_read_error : ERROR_btree_node_read_error, n, NULL,
			    n->ptr.ptr_nr ? "a good replica" : "a pointer that is valid", error_name(err));
	}
	check_range(t, n, !err);
	if (n->ptr.ptr_nr)
		check_replicas(t, n);
	return check_step(t->c, 1, t->btree_id, n->max_key);
}

int check_topology(struct check *c)
{
	struct topology t = { .c = c, .magic = btree_node_magic(c->super->sb->uuid) };
	int err = 0;

	t.buf = io_buffer_alloc((size_t)c->kctx->node_sectors << SECTOR_SHIFT);
	if (!t.buf)
		return -ENOMEM;
	for (unsigned id = 0; !err && id < BTREE_NR_MAX; id++) {
		t.btree_id = id;
		t.root_level = -1;
		memset(t.is_open, 0, sizeof(t.is_open));
		err = btree_nodes_walk(c->trees, id, check_node, &t);
		for (int level = min(t.root_level, (int)BTREE_LEVEL_MAX); !err && level > 0; level--)
			close_level(&t, (unsigned)level);
	}
	io_buffer_free(t.buf);
	return err;
}
