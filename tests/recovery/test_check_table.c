/*
 * Tables of the checker: records come back in the order they were added and sorted, whatever memory there is for them,
 * and no more of it is taken.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/util.h"
#include "recovery/check_table.h"

enum { RECORD_BYTES = 56 };

/* Record @i begins with a number that none of the others has, in no order. */
static void record_make(uint64_t i, uint8_t record[RECORD_BYTES])
{
	memset(record, (int)(i % 251), RECORD_BYTES);
	check_be64(record, i * 0x9e3779b97f4a7c15ull);
}

static void table_fill(struct check_table *t, uint64_t nr)
{
	uint8_t record[RECORD_BYTES];

	for (uint64_t i = 0; i < nr; i++) {
		record_make(i, record);
		assert_int_equal(check_table_add(t, record), 0);
	}
	for (uint64_t i = 0; i < nr; i += 997) {
		record_make(i, record);
		assert_memory_equal(check_table_at(t, i), record, RECORD_BYTES);
	}
}

/* All there, in order? The number is the inverse of what record_make() multiplies by, times what stands first. */
static void order_check(struct check_table *t, uint64_t nr)
{
	uint64_t found = 0, before = 0;
	const uint8_t *got;

	for (; (got = check_table_peek(t)); check_table_next(t)) {
		uint8_t record[RECORD_BYTES];
		uint64_t now = check_be64_get(got), i = now * 0xf1de83e19937733dull;

		assert_true(!found || now > before);
		assert_true(i < nr);
		record_make(i, record);
		assert_memory_equal(got, record, RECORD_BYTES);
		before = now;
		found++;
	}
	assert_int_equal(found, nr);
}

/* What isn't in a file that the kernel can write out, and the most that is copied when a run is sorted. */
static uint64_t memory_of(const struct check_table *t)
{
	uint64_t bytes = t->heap_nr * sizeof(t->heap[0]), run_max = 0;

	for (size_t i = 0; i < t->piece_nr; i++)
		bytes += t->pieces[i].spill.bytes <= SPILL_MEMORY_MAX ? t->pieces[i].spill.bytes : 0;
	for (size_t i = 0; i < t->heap_nr; i++)
		run_max = max(run_max, (uint64_t)(t->heap[i].end - t->heap[i].next) * t->record_bytes);
	return bytes + run_max;
}

static void tables_keep_to_their_memory(void **state)
{
	static const struct {
		uint64_t memory_bytes, record_nr;
	} rows[] = {
		{ CHECK_TABLE_MEMORY_MIN, 100 },	{ 1 << 20, 0 },	      { 1 << 20, 1 }, { 1 << 20, 300000 },
		{ CHECK_TABLE_MEMORY_MIN + 7, 100000 }, { 64 << 20, 300000 },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_NR(rows); i++) {
		struct check_table t;

		check_table_init(&t, RECORD_BYTES, rows[i].memory_bytes, i & 1);
		table_fill(&t, rows[i].record_nr);
		assert_int_equal(check_table_sort(&t), 0);
		assert_true(memory_of(&t) <= rows[i].memory_bytes);
		order_check(&t, rows[i].record_nr);
		check_table_free(&t);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(tables_keep_to_their_memory) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
