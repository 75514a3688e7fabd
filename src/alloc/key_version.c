/*
 * Key versions (06 §8.5): every region of encrypted data gets a number of its own, which is its nonce. None may be
 * handed out twice, not even when a crash takes the keys of what was written with them.
 *
 * Every journal entry says which is the highest one used. After a crash the next mount leaves out KEY_VERSIONS_AHEAD of
 * them; so no more than that may be in use that no durable entry covers. Mostly a flush comes long before; where it
 * doesn't, whoever wants the next one makes it come.
 */
#include <errno.h>

#include "alloc/internal.h"

void key_versions_init(struct key_versions *v, const struct journal_state *state, bool is_encrypted)
{
	bool may_be_used = is_encrypted && !state->was_clean;

	mutex_init(&v->lock);
	waitq_init(&v->changed);
	v->durable = state->key_version;
	atomic_init(&v->used, state->key_version + (may_be_used ? KEY_VERSIONS_AHEAD : 0));
	atomic_init(&v->in_entry, 0);
	v->is_flushing = false;
}

void key_versions_destroy(struct key_versions *v)
{
	mutex_destroy(&v->lock);
	waitq_destroy(&v->changed);
}

uint64_t key_versions_in_entry(struct key_versions *v)
{
	uint64_t used = atomic_load(&v->used);

	atomic_store(&v->in_entry, used);
	return used;
}

/* The writer makes one entry after the other: the last one that asked is the one that is durable now. */
void key_versions_flushed(struct key_versions *v)
{
	mutex_lock(&v->lock);
	v->durable = max(v->durable, (uint64_t)atomic_load(&v->in_entry));
	waitq_wake_all(&v->changed);
	mutex_unlock(&v->lock);
}

/* An entry that is made from here on, and is durable. */
static int entry_flush(struct journal *j)
{
	struct journal_res res;

	if (!j)
		return -EROFS;
	int err = journal_res_get(j, &res, 1, WATERMARK_NORMAL, 0);
	if (err)
		return err;
	uint64_t seq = res.seq;

	journal_res_put(j, &res);
	return journal_flush_seq(j, seq);
}

int allocator_key_versions_get(struct allocator *a, unsigned nr, uint64_t *first)
{
	struct key_versions *v = &a->versions;
	int err = 0;

	mutex_lock(&v->lock);
	while (!err && atomic_load(&v->used) + nr - v->durable > KEY_VERSIONS_AHEAD) {
		if (v->is_flushing) {
			waitq_wait(&v->changed, &v->lock);
			continue;
		}
		uint64_t covered = atomic_load(&v->used);

		v->is_flushing = true;
		mutex_unlock(&v->lock);
		err = entry_flush(a->journal);
		mutex_lock(&v->lock);
		v->is_flushing = false;
		if (!err)
			v->durable = max(v->durable, covered);
		waitq_wake_all(&v->changed);
	}
	if (!err)
		*first = atomic_fetch_add(&v->used, nr) + 1;
	mutex_unlock(&v->lock);
	return err;
}
