/*
 * Nodes of snapshot trees, and the keys that name the trees. 05 §2, 12 §7.5.
 *
 * A child's id is always smaller than its parent's, so following parents ends; validation relies on nothing else.
 */
#include "format/snapshot.h"

#include <inttypes.h>

#include "format/error_ids.h"
#include "format/value.h"

struct snapshot_disk {
	le32 flags;
	le32 parent;
	le32 children[2];
	le32 subvol;
	le32 tree;
	le32 depth; /* from here: 1.1 and above */
	le32 skip[3];
	le64 btime[2]; /* 1.6 */
	le32 state;    /* 1.39 */
	le32 pad;
};
_Static_assert(sizeof(struct snapshot_disk) == 64 && offsetof(struct snapshot_disk, state) == 56,
	       "snapshot is 64 bytes");

struct snapshot_tree_disk {
	le32 master_subvol;
	le32 root_snapshot;
};
_Static_assert(sizeof(struct snapshot_tree_disk) == 8, "snapshot_tree is 8 bytes");

enum { FLAG_WILL_DELETE = 1, FLAG_SUBVOL = 2, FLAG_DELETED = 4, FLAG_NO_KEYS = 8 };

/* State words: far from each other in Hamming distance. Any other value: the flags count. */
static const uint32_t STATE_LIVE = 0x757c47a2, STATE_WILL_DELETE = 0x3316a8d2, STATE_NO_KEYS = 0x372b5a01,
		      STATE_DELETED = 0x7cd4a225;

void snapshot_decode(struct bkey_ref k, struct snapshot *s)
{
	struct snapshot_disk d;

	value_load(&d, sizeof(d), k);
	uint32_t flags = le32_get(d.flags), state = le32_get(d.state);

	*s = (struct snapshot){
		.will_delete = flags & FLAG_WILL_DELETE,
		.is_subvol = flags & FLAG_SUBVOL,
		.is_deleted = flags & FLAG_DELETED,
		.has_no_keys = flags & FLAG_NO_KEYS,
		.parent = le32_get(d.parent),
		.children = { le32_get(d.children[0]), le32_get(d.children[1]) },
		.subvol = le32_get(d.subvol),
		.tree = le32_get(d.tree),
		.depth = le32_get(d.depth),
		.skip = { le32_get(d.skip[0]), le32_get(d.skip[1]), le32_get(d.skip[2]) },
	};
	if (state == STATE_LIVE || state == STATE_WILL_DELETE || state == STATE_NO_KEYS || state == STATE_DELETED) {
		s->will_delete = state == STATE_WILL_DELETE;
		s->has_no_keys = state == STATE_NO_KEYS;
		s->is_deleted = state == STATE_DELETED;
	}
}

void snapshot_encode(const struct snapshot *s, uint8_t value[SNAPSHOT_BYTES])
{
	struct snapshot_disk d = {
		.flags = le32_of((s->will_delete ? FLAG_WILL_DELETE : 0u) | (s->is_subvol ? FLAG_SUBVOL : 0u)),
		.parent = le32_of(s->parent),
		.children = { le32_of(s->children[0]), le32_of(s->children[1]) },
		.subvol = le32_of(s->subvol),
		.tree = le32_of(s->tree),
		.depth = le32_of(s->depth),
		.skip = { le32_of(s->skip[0]), le32_of(s->skip[1]), le32_of(s->skip[2]) },
	};

	_Static_assert(offsetof(struct snapshot_disk, btime) == SNAPSHOT_BYTES, "what 1.4 has ends before btime");
	memcpy(value, &d, SNAPSHOT_BYTES);
}

void snapshot_tree_encode(const struct snapshot_tree *t, uint8_t value[SNAPSHOT_TREE_BYTES])
{
	struct snapshot_tree_disk d = { .master_subvol = le32_of(t->master_subvol),
					.root_snapshot = le32_of(t->root_snapshot) };

	memcpy(value, &d, sizeof(d));
}

void snapshot_tree_decode(struct bkey_ref k, struct snapshot_tree *t)
{
	struct snapshot_tree_disk d;

	value_load(&d, sizeof(d), k);
	*t = (struct snapshot_tree){ .master_subvol = le32_get(d.master_subvol),
				     .root_snapshot = le32_get(d.root_snapshot) };
}

static int edges_validate(const struct snapshot *s, uint32_t id, struct fault *fault)
{
	if (s->parent && s->parent <= id)
		return fault_set(fault, ERROR_snapshot_parent_bad, "parent", "0, or more than the node's id", "%u",
				 s->parent);
	if (s->children[0] < s->children[1])
		return fault_set(fault, ERROR_snapshot_children_not_normalized, "children", "the larger one first",
				 "%u %u", s->children[0], s->children[1]);
	if (s->children[0] && s->children[0] == s->children[1])
		return fault_set(fault, ERROR_snapshot_child_duplicate, "children", "different ones", "%u twice",
				 s->children[0]);
	if (s->children[0] >= id)
		return fault_set(fault, ERROR_snapshot_child_bad, "child", "less than the node's id", "%u",
				 s->children[0]);
	return 0;
}

static int skip_validate(const struct snapshot *s, struct fault *fault)
{
	if (s->skip[0] > s->skip[1] || s->skip[1] > s->skip[2])
		return fault_set(fault, ERROR_snapshot_skiplist_not_normalized, "skip list", "ascending", "%u %u %u",
				 s->skip[0], s->skip[1], s->skip[2]);
	for (unsigned i = 0; i < ARRAY_NR(s->skip); i++)
		if (s->skip[i] && s->skip[i] < s->parent)
			return fault_set(fault, ERROR_snapshot_skiplist_bad, "skip list", "0, or at least the parent",
					 "%u", s->skip[i]);
	return 0;
}

int snapshot_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	struct snapshot s;
	int err;

	if (k.k.p.inode || !k.k.p.offset || k.k.p.offset > UINT32_MAX)
		return fault_set(fault, ERROR_snapshot_pos_bad, "position", "0:1 to 0:4294967295",
				 "%" PRIu64 ":%" PRIu64, k.k.p.inode, k.k.p.offset);

	snapshot_decode(k, &s);
	if (ctx->is_newer && s.is_deleted)
		return 0; /* a tombstone: its edges are what they were once */
	if ((err = edges_validate(&s, (uint32_t)k.k.p.offset, fault)))
		return err;
	return skip_validate(&s, fault);
}

void snapshot_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	struct snapshot s;

	snapshot_decode(k, &s);
	strbuf_printf(
		out,
		"is_subvol %u deleted %u parent %10u children %10u %10u subvol %u tree %u depth %u skiplist %u %u %u",
		s.is_subvol, s.will_delete, s.parent, s.children[0], s.children[1], s.subvol, s.tree, s.depth,
		s.skip[0], s.skip[1], s.skip[2]);
	if (s.has_no_keys)
		strbuf_add(out, " no_keys");
	if (s.is_deleted)
		strbuf_add(out, " tombstone");
}

int snapshot_tree_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	if (k.k.p.inode || !k.k.p.offset || k.k.p.offset > UINT32_MAX)
		return fault_set(fault, ERROR_snapshot_tree_pos_bad, "position", "0:1 to 0:4294967295",
				 "%" PRIu64 ":%" PRIu64, k.k.p.inode, k.k.p.offset);
	return 0;
}

void snapshot_tree_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	struct snapshot_tree t;

	snapshot_tree_decode(k, &t);
	strbuf_printf(out, "subvol %u root snapshot %u", t.master_subvol, t.root_snapshot);
}
