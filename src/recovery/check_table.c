/* Records outside of memory. See check_table.h. */
#include "recovery/check_table.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/array.h"
#include "base/util.h"

/* Pieces in memory first; then such as base/spill.h puts into files. */
enum { PIECES_IN_MEMORY = 8, PIECE_SPILLED_BYTES = 64 << 20 };
/* No more for one table: what comes behind is in memory anyway as long as the kernel has some. */
enum { MEMORY_MAX = 128 << 20 };
/* So that a piece "in memory" is, and one behind isn't. */
static_assert(MEMORY_MAX / (2 * PIECES_IN_MEMORY) <= SPILL_MEMORY_MAX, "pieces in memory");
static_assert((int)PIECE_SPILLED_BYTES > (int)SPILL_MEMORY_MAX, "pieces in files");

void check_table_init(struct check_table *t, size_t record_bytes, uint64_t memory_bytes, bool is_secret)
{
	assert(memory_bytes >= CHECK_TABLE_MEMORY_MIN);
	*t = (struct check_table){ .record_bytes = record_bytes,
				   .memory_bytes = (size_t)min(memory_bytes, (uint64_t)MEMORY_MAX),
				   .is_secret = is_secret };
}

void check_table_free(struct check_table *t)
{
	for (size_t i = 0; i < t->piece_nr; i++)
		spill_free(&t->pieces[i].spill);
	free(t->pieces);
	free(t->heap);
	check_table_init(t, t->record_bytes, t->memory_bytes, t->is_secret);
}

static size_t piece_records(const struct check_table *t, size_t piece)
{
	return (piece < PIECES_IN_MEMORY ? t->memory_bytes / (2 * PIECES_IN_MEMORY) : PIECE_SPILLED_BYTES) /
	       t->record_bytes;
}

int check_table_add(struct check_table *t, const void *record)
{
	struct check_piece *p = t->piece_nr ? &t->pieces[t->piece_nr - 1] : NULL;

	if (!p || p->nr == piece_records(t, t->piece_nr - 1)) {
		if (array_grow(&t->pieces, &t->piece_capacity, t->piece_nr + 1, sizeof(*t->pieces)))
			return -ENOMEM;
		assert(t->pieces);
		p = &t->pieces[t->piece_nr];
		*p = (struct check_piece){ 0 };
		int err = spill_alloc(&p->spill, piece_records(t, t->piece_nr) * t->record_bytes, t->is_secret);
		if (err)
			return err;
		t->piece_nr++;
	}
	memcpy((uint8_t *)p->spill.mem + p->nr++ * t->record_bytes, record, t->record_bytes);
	t->nr++;
	return 0;
}

static void *record_at(const struct check_table *t, size_t piece, size_t i)
{
	return (uint8_t *)t->pieces[piece].spill.mem + i * t->record_bytes;
}

void *check_table_at(const struct check_table *t, uint64_t i)
{
	size_t small = piece_records(t, 0), large = piece_records(t, PIECES_IN_MEMORY);

	if (i < (uint64_t)small * PIECES_IN_MEMORY)
		return record_at(t, i / small, i % small);
	i -= (uint64_t)small * PIECES_IN_MEMORY;
	return record_at(t, PIECES_IN_MEMORY + i / large, i % large);
}

static int record_cmp(const void *a, const void *b, void *bytes) { return memcmp(a, b, *(const size_t *)bytes); }

/* --- a heap of runs, the one with the smallest next record on top --- */

static const void *run_next(const struct check_table *t, const struct check_run *r)
{
	return record_at(t, r->piece, r->next);
}

static bool run_before(const struct check_table *t, size_t a, size_t b)
{
	return memcmp(run_next(t, &t->heap[a]), run_next(t, &t->heap[b]), t->record_bytes) < 0;
}

static void heap_sink(struct check_table *t, size_t at)
{
	for (size_t child; (child = 2 * at + 1) < t->heap_nr; at = child) {
		if (child + 1 < t->heap_nr && run_before(t, child + 1, child))
			child++;
		if (!run_before(t, child, at))
			return;
		struct check_run run = t->heap[at];
		t->heap[at] = t->heap[child];
		t->heap[child] = run;
	}
}

int check_table_sort(struct check_table *t)
{
	size_t run_records = t->memory_bytes / 4 / t->record_bytes, run_nr = 0;

	for (size_t i = 0; i < t->piece_nr; i++)
		run_nr += div_round_up_u64(t->pieces[i].nr, run_records);
	t->heap = malloc((run_nr + 1) * sizeof(*t->heap));
	if (!t->heap)
		return -ENOMEM;
	for (size_t i = 0; i < t->piece_nr; i++)
		for (size_t at = 0; at < t->pieces[i].nr; at += run_records) {
			struct check_run run = { i, at, min(at + run_records, t->pieces[i].nr) };

			qsort_r(record_at(t, i, at), run.end - at, t->record_bytes, record_cmp, &t->record_bytes);
			t->heap[t->heap_nr++] = run;
		}
	for (size_t i = t->heap_nr / 2; i-- > 0;)
		heap_sink(t, i);
	return 0;
}

const void *check_table_peek(const struct check_table *t) { return t->heap_nr ? run_next(t, &t->heap[0]) : NULL; }

void check_table_next(struct check_table *t)
{
	struct check_run *r = &t->heap[0];

	if (++r->next == r->end)
		*r = t->heap[--t->heap_nr];
	heap_sink(t, 0);
}
