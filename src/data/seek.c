/* SEEK_DATA and SEEK_HOLE: the keys decide, no data is read. */
#include <errno.h>

#include "data/internal.h"

/* What is next at or behind sector @pos: data or hole, [*begin, *end). */
struct stretch {
	bool is_data;
	bool is_lost; /* the keys can't be read */
	uint64_t begin, end;
};

/* Next key, or range that can't be read, that covers something behind @pos. 1, 0 none, -ENOMEM. */
static int stretch_next(const struct data *data, struct btree_iter *it, uint64_t inum, uint64_t pos, struct stretch *s)
{
	struct bkey_ref k;
	int n = btree_iter_peek(it, &k);

	if (n == -ENOMEM || !n)
		return n;
	if (n < 0) {
		struct bpos was = it->pos, end = it->damage_max;

		btree_iter_skip_damage(it);
		*s = (struct stretch){ true, true, pos, end.inode == inum ? end.offset : UINT64_MAX };
		if (end.inode < inum || bpos_le(it->pos, was))
			s->end = UINT64_MAX;
		return 1;
	}
	*s = (struct stretch){
		.is_data = !key_is_hole(data, k),
		.begin = k.k.p.offset > k.k.size ? bkey_start_offset(&k.k) : 0,
		.end = k.k.p.offset,
	};
	btree_iter_advance(it);
	return 1;
}

int data_seek_lost(struct data *data, const struct data_file *file, uint64_t offset_bytes, uint64_t *begin,
		   uint64_t *end)
{
	uint64_t pos = offset_bytes / SECTOR_BYTES, file_end = div_round_up_u64(file->size_bytes, SECTOR_BYTES);
	struct btree_iter it;
	struct stretch s;
	int n = 0;

	if (offset_bytes >= file->size_bytes)
		return -ENXIO;

	extents_open(&it, data->trees, file->inum, file->snapshot, pos);
	while (pos < file_end && (n = stretch_next(data, &it, file->inum, pos, &s)) > 0) {
		if (s.is_lost && s.end > pos)
			break;
		pos = max(pos, s.end);
	}
	btree_iter_close(&it);
	if (n < 0)
		return n;
	if (!n || pos >= file_end)
		return -ENXIO;
	*begin = max(pos * SECTOR_BYTES, offset_bytes);
	*end = s.end >= file_end ? file->size_bytes : s.end * SECTOR_BYTES;
	return 0;
}

int data_seek(struct data *data, const struct data_file *file, uint64_t offset_bytes, bool want_data, uint64_t *found)
{
	uint64_t pos = offset_bytes / SECTOR_BYTES, end = div_round_up_u64(file->size_bytes, SECTOR_BYTES);
	struct btree_iter it;
	struct stretch s;
	int n = 0;

	if (offset_bytes >= file->size_bytes)
		return -ENXIO;

	/* All before pos is known not to be what is looked for. */
	extents_open(&it, data->trees, file->inum, file->snapshot, pos);
	while (pos < end && (n = stretch_next(data, &it, file->inum, pos, &s)) > 0) {
		if (s.end <= pos)
			continue;
		if (want_data && s.is_data) {
			pos = max(pos, s.begin);
			break;
		}
		if (!want_data && (s.begin > pos || !s.is_data))
			break;
		pos = s.end;
	}
	btree_iter_close(&it);
	if (n < 0)
		return n;

	/* Without a break all keys were passed; then what is left is a hole. */
	if (want_data && (!n || pos >= end))
		return -ENXIO;
	*found = min(pos >= end ? file->size_bytes : max(pos * SECTOR_BYTES, offset_bytes), file->size_bytes);
	return 0;
}
