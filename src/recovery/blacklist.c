/*
 * Which ranges of the blacklist are still needed. See blacklist.h.
 *
 * Nothing that will be written can be in one of them: a new entry's number is above all of them, and that of a set is
 * one of an entry. So what is looked at while nothing is written yet is all that there will ever be. These are the
 * nodes that the roots lead to, with the journal over them; a crash before the next flush entry leads to the same ones.
 *
 * A set counts wherever it lies in the space of a node that has its number (`seq`), also behind what the pointer says
 * is written: a reader that doesn't know sectors_written would take it for one of the node's.
 *
 * An entry below last_seq is never looked at again, so ranges that end there can't be needed for one. The last range
 * stays in any case: it says where the numbers that have been used end. Where one crash soon follows another, last_seq
 * would stay where it is for as long as the ring has room, and the list get longer: then what was replayed is written
 * back at once.
 */
#include "recovery/blacklist.h"

#include <errno.h>
#include <stdlib.h>

#include "device/device.h"

enum {
	RANGES_MAX = 128, /* So many of those that might be dropped are no long list; */
	SHARE = 8,	  /* nor is what takes no more than this part of the smallest superblock. */
};

struct collection {
	struct super *s;
	struct btrees *trees;
	struct seq_range *ranges; /* as the superblock has them */
	bool *is_needed;
	unsigned nr;
	uint8_t *node;
};

static unsigned ranges_max(const struct super *s)
{
	size_t max_nr = RANGES_MAX;

	for (unsigned i = 0; i < s->member_nr; i++)
		if (s->members[i].sb) {
			size_t bytes = (size_t)SECTOR_BYTES << s->members[i].sb->layout.sb_max_size_bits;

			max_nr = min(max_nr, bytes / SHARE / sizeof(struct seq_range));
		}
	return (unsigned)max_nr;
}

static void seq_found(struct collection *c, uint64_t seq)
{
	size_t i = seq_ranges_find(c->ranges, c->nr, seq);

	if (i < c->nr && c->ranges[i].start <= seq)
		c->is_needed[i] = true;
}

/* All copies: what lies behind the written part may differ. */
static int node_look(struct collection *c, struct bkey_ref key)
{
	const struct key_context *kctx = &c->s->kctx;
	size_t bytes = (size_t)kctx->node_sectors << SECTOR_SHIFT, block = (size_t)kctx->block_sectors << SECTOR_SHIFT;
	struct btree_ptr p;
	int err = btree_ptr_decode(key, kctx, &p, NULL);

	for (unsigned i = 0; i < p.ptr_nr && !err; i++) {
		if (!super_member_online(c->s, p.ptrs[i].dev))
			return -ENODEV;
		err = device_read(c->s->members[p.ptrs[i].dev].dev, p.ptrs[i].sector << SECTOR_SHIFT, c->node, bytes);
		for (size_t at = 0; at < bytes && !err; at += block) {
			const struct bset_disk *set = bset_at(c->node, at);

			if (le64_get(set->seq) == p.seq)
				seq_found(c, le64_get(set->journal_seq));
		}
	}
	return err;
}

/* The nodes that those at @level lead to. */
static int children_look(struct collection *c, unsigned btree_id, unsigned level)
{
	struct btree_iter it;
	struct bkey_ref key;
	int ret;

	btree_iter_open_level(&it, c->trees, btree_id, level, POS_MIN);
	while ((ret = btree_iter_peek(&it, &key)) > 0) {
		ret = node_look(c, key);
		if (ret)
			break;
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return ret;
}

static int nodes_look(struct collection *c, const struct journal_state *state)
{
	int err = 0;

	for (unsigned id = 0; id < BTREE_NR_MAX && !err; id++) {
		const struct btree_root *root = &state->roots[id];

		if (!root->exists)
			continue;
		err = root->is_damaged ? -EIO : node_look(c, (struct bkey_ref){ root->key, root->value });
		for (unsigned level = root->level; level && !err; level--)
			err = children_look(c, id, level);
	}
	return err;
}

/* Copies the list. Returns how many ranges might be dropped, or -ENOMEM. */
static int ranges_take(struct collection *c, const struct journal_state *state)
{
	uint64_t journal_start = state->was_clean ? state->seq_next : state->seq_last;
	int nr = 0;

	c->nr = sb_blacklist_nr(c->s->sb);
	c->ranges = calloc(c->nr + 1, sizeof(*c->ranges));
	c->is_needed = calloc(c->nr + 1, sizeof(*c->is_needed));
	if (!c->ranges || !c->is_needed)
		return -ENOMEM;
	for (unsigned i = 0; i < c->nr; i++) {
		sb_blacklist_range(c->s->sb, i, &c->ranges[i].start, &c->ranges[i].end);
		c->is_needed[i] = c->ranges[i].end > journal_start || i + 1 == c->nr;
		nr += !c->is_needed[i];
	}
	return nr;
}

int blacklist_collect(struct super *s, struct btrees *trees, const struct journal_state *state)
{
	struct collection c = { .s = s, .trees = trees };
	unsigned kept = 0;
	int err = 0, nr = ranges_take(&c, state);

	if (nr <= (int)ranges_max(s))
		goto out;
	log_printf(s->log, LOG_LEVEL_INFO, "reading all btree nodes to shorten the list of lost journal entries");
	c.node = io_buffer_alloc((size_t)s->kctx.node_sectors << SECTOR_SHIFT);
	if (!c.node || nodes_look(&c, state))
		goto out;
	for (unsigned i = 0; i < c.nr; i++)
		kept += c.is_needed[i];
	if (kept < c.nr)
		err = super_blacklist_keep(s, c.is_needed);
	log_printf(s->log, LOG_LEVEL_INFO, "%u of %u ranges are still needed", kept, c.nr);
out:
	io_buffer_free(c.node);
	free(c.ranges);
	free(c.is_needed);
	return err;
}

int blacklist_outgrow(struct super *s, struct journal *journal, const struct journal_state *state)
{
	return sb_blacklist_nr(s->sb) > ranges_max(s) ? journal_flush_pins(journal, state->seq_next - 1, NULL) : 0;
}
