/* Room that is coming. See room.h. */
#include "mount/room.h"

#include <errno.h>

#include "base/clock.h"

static const uint64_t lately_ns = 1000 * 1000 * 1000, wait_ns = 100 * 1000 * 1000;

void room_init(struct room *r)
{
	mutex_init(&r->lock);
	waitq_init(&r->changed);
}

void room_destroy(struct room *r)
{
	waitq_destroy(&r->changed);
	mutex_destroy(&r->lock);
}

void room_expect(struct room *r, struct kiln_node node)
{
	mutex_lock(&r->lock);
	unsigned at = r->next++ % ROOM_LATELY_NR;
	r->dead[at].node = node;
	r->dead[at].since_ns = clock_monotonic_ns();
	mutex_unlock(&r->lock);
}

void room_released(struct room *r, struct kiln_node node)
{
	mutex_lock(&r->lock);
	for (unsigned i = 0; i < ROOM_LATELY_NR; i++)
		if (r->dead[i].node.ino == node.ino && r->dead[i].node.subvol == node.subvol)
			r->dead[i].since_ns = 0;
	r->released_nr++;
	waitq_wake_all(&r->changed);
	mutex_unlock(&r->lock);
}

struct room_try room_try_begin(struct room *r)
{
	mutex_lock(&r->lock);
	struct room_try t = { .released_nr = r->released_nr };
	mutex_unlock(&r->lock);
	return t;
}

/* Is there one that was added before @now, but not long before? Under the lock. */
static bool has_dead(const struct room *r, uint64_t now)
{
	for (unsigned i = 0; i < ROOM_LATELY_NR; i++)
		if (r->dead[i].since_ns && r->dead[i].since_ns <= now && now - r->dead[i].since_ns < lately_ns)
			return true;
	return false;
}

bool room_try_again(struct room *r, struct room_try *t, int err)
{
	uint64_t now = clock_monotonic_ns(), until = now + wait_ns;

	if ((err != -ENOSPC && err != -EDQUOT) || t->is_second)
		return false;
	t->is_second = true;
	mutex_lock(&r->lock);
	while (has_dead(r, now) && clock_monotonic_ns() < until)
		waitq_wait_until(&r->changed, &r->lock, until);
	bool is_left = false;
	for (unsigned i = 0; i < ROOM_LATELY_NR; i++) {
		bool is_open = r->dead[i].since_ns && r->dead[i].since_ns <= now;

		is_left |= is_open;
		r->dead[i].since_ns = is_open ? 0 : r->dead[i].since_ns;
	}
	if (is_left)
		waitq_wake_all(&r->changed);
	bool has_more = r->released_nr != t->released_nr;
	mutex_unlock(&r->lock);
	return has_more;
}
