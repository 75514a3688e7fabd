/*
 * Times of access. The kernel leaves them to the server, which sees only reads that the page cache couldn't serve.
 *
 * As relatime has it, a read changes atime only if that is not later than mtime and ctime, or a day old. Whether it is
 * takes a look at the inode, so objects that were looked at within the last second are passed over, as far as a small
 * table remembers them. It is done after the read was answered.
 */
#include <string.h>

#include "base/clock.h"
#include "base/util.h"
#include "mount/server.h"

enum { LOOK_AGAIN_NS = 1000000000, DAY_S = 86400 };

static bool was_looked_at(struct mount_server *s, struct kiln_node node, uint64_t now_ns)
{
	size_t at = (size_t)((node.ino * 0x9e3779b97f4a7c15ull ^ node.subvol) >> 40) % ARRAY_NR(s->looks);
	bool was;

	mutex_lock(&s->looks_lock);
	struct atime_look *look = &s->looks[at];
	was = look->node.ino == node.ino && look->node.subvol == node.subvol &&
	      now_ns - look->at_ns < (uint64_t)LOOK_AGAIN_NS;
	if (!was)
		*look = (struct atime_look){ .node = node, .at_ns = now_ns };
	mutex_unlock(&s->looks_lock);
	return was;
}

static bool is_later(struct kiln_timespec a, struct kiln_timespec b)
{
	return a.sec != b.sec ? a.sec > b.sec : a.nsec > b.nsec;
}

static bool is_due(const struct kiln_stat *st, enum mount_atime kind)
{
	enum { NSEC_PER_SEC = 1000000000 };
	int64_t now_s = (int64_t)(clock_realtime_ns() / NSEC_PER_SEC);
	enum { FS_NOATIME_FL = 0x80 };

	if (st->is_readonly || st->flags & FS_NOATIME_FL)
		return false;
	return kind == MOUNT_STRICTATIME || !is_later(st->atime, st->mtime) || !is_later(st->atime, st->ctime) ||
	       now_s - st->atime.sec >= DAY_S;
}

void atime_touch(struct mount_server *s, struct kiln_node node)
{
	enum mount_atime kind = s->options->atime;
	struct kiln_stat st;

	if (s->options->is_readonly || kind == MOUNT_NOATIME || was_looked_at(s, node, clock_monotonic_ns()))
		return;
	if (!kiln_stat(s->fs, node, &st) && is_due(&st, kind))
		kiln_setattr(s->fs, node, &(struct kiln_setattr){ .fields = KILN_SET_ATIME_NOW | KILN_SET_KEEP_CTIME },
			     NULL);
}
