/* Readers always see a complete, living object while a writer replaces and frees it. */
#include "both_modes.h"

#include "base/rcu.h"

enum { READER_NR = 3, VERSION_NR = 30 };

struct table {
	uint64_t version;
	uint64_t check; /* ~version while the table lives */
};

struct shared {
	struct table *table;
	bool is_over;
};

static struct table *table_new(uint64_t version)
{
	struct table *t = malloc(sizeof(*t));

	CHECK(t);
	*t = (struct table){ version, ~version };
	return t;
}

static void table_retire(struct table *t)
{
	*t = (struct table){ 0 };
	free(t);
}

static void read_tables(void *arg)
{
	struct shared *s = arg;
	uint64_t version_last = 0;

	while (!__atomic_load_n(&s->is_over, __ATOMIC_ACQUIRE)) {
		const struct table *t;

		rcu_section_begin();
		t = rcu_read(s->table);
		rcu_section_begin(); /* sections nest */
		CHECK(t->check == ~t->version);
		CHECK(t->version >= version_last);
		version_last = t->version;
		rcu_section_end();
		CHECK(t->check == ~t->version);
		rcu_section_end();
		task_yield();
	}
}

static void publish_body(void *arg)
{
	struct shared s = { .table = table_new(1) };
	struct task *readers[READER_NR];

	for (int i = 0; i < READER_NR; i++)
		readers[i] = start("reader", read_tables, &s);
	for (uint64_t version = 2; version <= VERSION_NR; version++) {
		struct table *old = s.table;

		rcu_publish(s.table, table_new(version));
		rcu_wait();
		table_retire(old);
	}
	__atomic_store_n(&s.is_over, true, __ATOMIC_RELEASE);
	for (int i = 0; i < READER_NR; i++)
		task_join(readers[i]);
	table_retire(s.table);
}

static void readers_never_see_a_retired_table(void **state) { run_in_both_modes(publish_body); }

static void wait_inside(void *arg)
{
	rcu_section_begin();
	rcu_wait();
}

static void end_twice(void *arg)
{
	rcu_section_begin();
	rcu_section_end();
	rcu_section_end();
}

static void misuse_is_caught(void **state)
{
	assert_true(process_dies_in(wait_inside));
	assert_true(process_dies_in(end_twice));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(readers_never_see_a_retired_table),
		cmocka_unit_test(misuse_is_caught),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
