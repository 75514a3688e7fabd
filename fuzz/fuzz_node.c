/*
 * Btree nodes: sets, their keys, and whole trees made of them, journal keys included.
 *
 * Input: flags, btree id, level of the root, key context; then nodes, each 16 bits of length and the bytes. Pointers
 * lead to the node that their sector selects. With flag 1 a node's header is made to agree with the pointer that led to
 * it; with flag 2 the last "node" is a list of journal keys; sets are sealed unless flag 4.
 */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "btree/btree.h"

enum { NODES_MAX = 16, NODE_BYTES = 32 << 10, KEYS_MAX = 20000 };

struct tree {
	uint8_t flags;
	unsigned btree_id, root_level;
	struct key_context kctx;
	size_t node_nr;
	struct {
		const uint8_t *bytes;
		size_t len;
	} nodes[NODES_MAX];
	unsigned reads;
};

static const uint64_t magic = 0x1122334455667788;

static unsigned tree_block_bytes(const struct tree *t) { return t->kctx.block_sectors * SECTOR_BYTES; }

/* Put node @i into @buf, NODE_BYTES of it. */
static void node_make(const struct tree *t, size_t i, uint64_t seq, struct bpos min_key, uint8_t *buf)
{
	struct btree_node_disk *n = (struct btree_node_disk *)buf;

	memset(buf, 0, NODE_BYTES);
	memcpy(buf, t->nodes[i].bytes, min(t->nodes[i].len, (size_t)NODE_BYTES));
	if (t->flags & 1) {
		uint64_t old_seq = le64_get(n->keys.seq);

		n->magic = le64_of(magic);
		bpos_store(&n->min_key, min_key);
		/* Every set that belonged to the node still does. */
		for (size_t at = 0; at + bset_header_bytes(at) <= NODE_BYTES; at += tree_block_bytes(t)) {
			struct bset_disk *set = bset_at(buf, at);

			if (le64_get(set->seq) == old_seq)
				set->seq = le64_of(seq);
		}
	}
	if (!(t->flags & 4))
		node_seal(buf, NODE_BYTES, tree_block_bytes(t), true);
}

static int node_read(void *ctx, const struct btree_ptr *p, unsigned replica, void *buf, size_t bytes)
{
	struct tree *t = ctx;
	uint8_t node[NODE_BYTES];

	if (!t->node_nr || ++t->reads > 200)
		return -EIO;
	if (p->ptrs[replica].dev == 2)
		return -ENODEV;
	node_make(t, p->ptrs[replica].sector % t->node_nr, p->seq, p->min_key, node);
	memcpy(buf, node, min(bytes, sizeof(node)));
	return 0;
}

static const char *device_name(void *ctx, unsigned dev) { return "device"; }
static bool is_ancestor(void *ctx, uint32_t id, uint32_t ancestor) { return ancestor >= id; }
static bool is_blacklisted(void *ctx, uint64_t seq) { return seq == 13; }

/* --- sets by themselves --- */

static void bad_key(void *ctx, const struct fault *fault, struct bkey_ref k, size_t offset) {}

struct kept {
	struct bkey_format format;
	const struct key_context *kctx;
	unsigned nr;
};

static int keep_key(void *ctx, const void *packed, const struct bkey *k)
{
	struct kept *kept = ctx;
	struct bkey_search search;
	const void *value;
	struct bkey unpacked = bkey_unpack(&kept->format, packed, &value);

	bkey_search_init(&search, &kept->format, k->p);
	if (!bpos_eq(unpacked.p, k->p) || bkey_search_cmp(&search, packed))
		abort();
	if (kept->nr < 20) {
		struct strbuf text = strbuf_growing();

		key_to_text(&text, (struct bkey_ref){ unpacked, value }, kept->kctx);
		strbuf_free(&text);
	}
	return kept->nr++ > KEYS_MAX ? -EIO : 0;
}

static void use_sets(const struct tree *t)
{
	uint8_t *buf = aligned_alloc(4096, NODE_BYTES);
	struct btree_node_disk *n = (struct btree_node_disk *)buf;
	struct kept kept = { .kctx = &t->kctx };
	struct bset_info info;
	struct fault fault;

	node_make(t, 0, 1, POS_MIN, buf);
	struct btree_node_expect expect = {
		.btree_id = t->btree_id,
		.level = t->root_level,
		.magic = magic,
		.seq = le64_get(n->keys.seq),
		.min_key = bpos_load(&n->min_key),
		.max_key = bpos_load(&n->max_key),
		.is_range_updated = t->flags & 8,
		.sectors_written = NODE_BYTES / SECTOR_BYTES,
		.node_sectors = NODE_BYTES / SECTOR_BYTES,
		.block_sectors = t->kctx.block_sectors,
	};
	struct bset_check check = { .bad = bad_key, .keep = keep_key, .ctx = &kept };
	for (size_t at = 0; at < NODE_BYTES && bset_read(buf, at, &expect, &kept.format, &info, &fault) > 0;
	     at = round_up_u64(info.keys_offset + info.keys_u64s * 8, tree_block_bytes(t)))
		if (bset_check_keys(buf, &info, &kept.format, &expect, &t->kctx, &check) < 0)
			break;
	free(buf);
}

/* --- trees --- */

/* The last "node" as journal keys: unpacked ones, one behind the other. */
static void overlay_set(struct tree *t, struct btrees *trees)
{
	static const struct bkey_format unpackable = { .key_u64s = BKEY_U64S };
	struct overlay_builder *builder = overlay_builder_new(false);
	struct fault fault;

	t->node_nr--;
	size_t len = t->nodes[t->node_nr].len, at = 0;
	uint8_t *memory = malloc(max(len, (size_t)1));
	if (!builder || !memory)
		abort();
	memcpy(memory, t->nodes[t->node_nr].bytes, len);
	while (at + sizeof(struct bkey_disk) <= len) {
		struct bkey_disk *d = (struct bkey_disk *)(memory + at);

		d->format = 1;
		if (d->u64s < BKEY_U64S)
			d->u64s = BKEY_U64S;
		int u64s = bkey_check_frame(&unpackable, d, (len - at) / 8, &fault);
		if (u64s <= 0)
			break;
		struct bkey_ref k = { bkey_load(d), d + 1 };
		unsigned level = d->pad % 4;
		d->pad = 0;
		if (!key_validate(k, t->btree_id, level, &t->kctx, &fault) &&
		    overlay_builder_add(builder, t->btree_id, level, 5, (uint32_t)(at % 97), d))
			abort();
		at += (size_t)u64s * 8;
	}
	free(memory);
	if (btrees_set_overlay(trees, builder))
		abort();
}

static void iterate(struct btrees *trees, struct btree_iter *it)
{
	struct bpos last = POS_MIN;
	struct bkey_ref k;
	bool has_last = false;

	for (unsigned i = 0; i < KEYS_MAX; i++) {
		int ret = btree_iter_peek(it, &k);

		if (!ret || ret == -ENOMEM || ret == -EINVAL)
			break;
		if (ret < 0) {
			btree_iter_skip_damage(it);
			continue;
		}
		/* The promise of an iterator: ascending. */
		if (has_last && bpos_cmp(k.k.p, last) <= 0)
			abort();
		last = k.k.p;
		has_last = true;
		btree_iter_advance(it);
	}
	btree_iter_close(it);
}

static int see_node(void *ctx, const struct btree_node_info *info, int err) { return ++*(unsigned *)ctx > 1000; }

static void use_tree(struct tree *t)
{
	struct btrees_opts opts = {
		.memory_bytes = BTREE_CACHE_BYTES_MIN(NODE_BYTES) + (t->flags & 16 ? 1 << 20 : 0),
		.kctx = &t->kctx,
		.magic = magic,
		.backend = { .read = node_read, .device_name = device_name, .ctx = t },
		.reports = &fuzz_reports,
		.is_blacklisted = is_blacklisted,
	};
	uint8_t value[BTREE_PTR_V2_HEADER_BYTES + 8] = { 0 };
	struct bkey_ref root = { { .p = SPOS_MAX, .type = KEY_BTREE_PTR_V2, .value_u64s = sizeof(value) / 8 }, value };
	struct extent_ptr ptr = { .sector = (uint64_t)256 * NODES_MAX };
	const struct btree_node_disk *n = (const struct btree_node_disk *)t->nodes[0].bytes;
	struct btree_iter it;
	struct bkey_copy copy;
	struct btrees *trees;
	unsigned nr = 0;

	if (t->nodes[0].len < sizeof(*n) || btrees_open(&opts, &trees))
		return;
	ptr.sector -= ptr.sector % t->node_nr;
	le64_store(value + 8, le64_get(n->keys.seq));
	le16_store(value + 16, NODE_BYTES / SECTOR_BYTES);
	extent_ptr_store(value + BTREE_PTR_V2_HEADER_BYTES, &ptr);
	btrees_set_root(trees, t->btree_id, t->root_level, &root, false);
	if (t->flags & 2 && t->node_nr > 1)
		overlay_set(t, trees);
	btrees_set_snapshots(trees, (struct btree_snapshots){ .is_ancestor = is_ancestor });

	for (unsigned level = 0; level <= t->root_level; level++) {
		btree_iter_open_level(&it, trees, t->btree_id, level, POS_MIN);
		iterate(trees, &it);
	}
	btree_iter_open(&it, trees, t->btree_id, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	iterate(trees, &it);
	btree_iter_open(&it, trees, t->btree_id, BPOS(1, 0, 0), 0, UINT32_MAX - 1);
	iterate(trees, &it);
	btree_nodes_walk(trees, t->btree_id, see_node, &nr);
	btree_lookup(trees, t->btree_id, BPOS(4096, 8, UINT32_MAX), &copy);
	btrees_close(trees);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, data + size };
	struct tree t = { .flags = (uint8_t)input_take(&in, 1) };

	t.btree_id = (unsigned)input_take(&in, 1) % BTREE_NR_MAX;
	t.root_level = (unsigned)input_take(&in, 1) % (BTREE_LEVEL_MAX + 1);
	fuzz_key_context(&t.kctx, (uint8_t)input_take(&in, 1));
	while (t.node_nr < NODES_MAX && input_left(&in) > 2) {
		t.nodes[t.node_nr].len = (size_t)input_take(&in, 2);
		t.nodes[t.node_nr].bytes = input_take_bytes(&in, &t.nodes[t.node_nr].len);
		t.node_nr++;
	}
	if (!t.node_nr)
		return 0;
	use_sets(&t);
	use_tree(&t);
	return 0;
}
