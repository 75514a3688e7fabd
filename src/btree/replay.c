/*
 * Journal replay: what lies over the nodes goes into them (03 §8.3, 02 §12.4).
 *
 * Interior levels first, the highest one first, since what leads to nodes must be there before these are changed; then
 * leaves. A key is put as it stands, without triggers, and pins its own journal entry through the node. Keys that got
 * into nodes on the way (a split takes them along) don't count any more, nor do those that a commit has overtaken:
 * replay allocates nodes, and others may be at work already.
 */
#include <errno.h>

#include "btree/internal.h"

enum { REPLAY_BATCH = 256 };

static int range_replay(struct btrees *trees, struct overlay_range range)
{
	struct btree_applied_key keys[REPLAY_BATCH];

	while (overlay_range_skip(&range)) {
		size_t nr = 0;

		for (; nr < REPLAY_BATCH && overlay_range_skip(&range); range.begin++)
			keys[nr++] = (struct btree_applied_key){
				.btree_id = range.begin->btree_id,
				.level = range.begin->level,
				.k = overlay_key_load(range.begin),
				.seq = range.begin->seq,
				.overlay = range.begin,
			};
		int err = btree_apply(trees, keys, nr);
		if (err)
			return err;
	}
	return 0;
}

int btrees_replay(struct btrees *trees)
{
	int err = 0;

	if (!trees->write)
		return -EROFS;
	for (unsigned level = BTREE_LEVEL_MAX + 1; !err && level--;)
		for (unsigned id = 0; !err && id < BTREE_NR_MAX; id++)
			err = range_replay(trees, trees->overlay.by_level[id][level]);
	if (!err)
		key_cache_begin(trees);
	return err;
}
