/* Promises of format/sb_edit.h: random changes of sections, against a plain model of what they hold. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/clock.h"
#include "format/sb_edit.h"
#include "sb_vector.h"

enum { TYPES = 24, TYPE_FIRST = 40, U64S_MAX = 40, BYTES_MAX = 6000 };

/* Sections of types nobody validates, each filled with bytes of its own. */
struct model {
	struct {
		size_t u64s; /* 0: not there */
		uint8_t bytes[U64S_MAX * 8];
	} sections[TYPES];
};

static uint64_t seed_take(void)
{
	const char *env = getenv("KILN_TEST_SEED");
	uint64_t seed = env ? strtoull(env, NULL, 0) : random_u64();

	print_message("KILN_TEST_SEED=%llu\n", (unsigned long long)seed);
	return seed;
}

static size_t model_bytes(const struct model *m)
{
	size_t bytes = SB_VECTOR_BYTES;

	for (unsigned i = 0; i < TYPES; i++)
		bytes += m->sections[i].u64s * 8;
	return bytes;
}

static void assert_same(const struct model *m, const struct sb_disk *sb)
{
	struct member member;

	assert_int_equal(sb_bytes(sb), model_bytes(m));
	assert_int_equal(sb_validate(sb, false, NULL), 0);
	sb_member(sb, 0, &member);
	assert_int_equal(member.uuid[15], 0xaf);
	for (unsigned i = 0; i < TYPES; i++) {
		const struct sb_section_disk *s = sb_section(sb, TYPE_FIRST + i);

		assert_int_equal(!s, !m->sections[i].u64s);
		if (!s)
			continue;
		assert_int_equal(sb_section_bytes(s), m->sections[i].u64s * 8);
		assert_memory_equal(sb_section_payload(s), m->sections[i].bytes + 8, sb_section_bytes(s) - 8);
	}
}

static void step(struct rng *rng, struct model *m, struct sb_edit *e)
{
	unsigned i = (unsigned)rng_below(rng, TYPES);
	size_t u64s = 1 + rng_below(rng, U64S_MAX), old = m->sections[i].u64s;

	if (!rng_below(rng, 3)) {
		sb_section_delete(e, TYPE_FIRST + i);
		m->sections[i].u64s = 0;
		return;
	}
	bool fits = model_bytes(m) - old * 8 + u64s * 8 <= BYTES_MAX;
	bool is_ensured = rng_below(rng, 2) && old >= u64s;
	struct sb_section_disk *s =
		is_ensured ? sb_section_ensure(e, TYPE_FIRST + i, u64s) : sb_section_resize(e, TYPE_FIRST + i, u64s);
	if (is_ensured) {
		assert_non_null(s);
		return;
	}
	assert_int_equal(!s, !fits);
	if (!s)
		return;
	if (u64s > old) /* what is new is zero */
		memset(m->sections[i].bytes + max(old, (size_t)1) * 8, 0, (u64s - max(old, (size_t)1)) * 8);
	m->sections[i].u64s = u64s;
	assert_memory_equal(s + 1, m->sections[i].bytes + 8, (u64s - 1) * 8);
	for (size_t k = 8; k < u64s * 8; k++)
		m->sections[i].bytes[k] = (uint8_t)rng_u64(rng);
	memcpy(s + 1, m->sections[i].bytes + 8, (u64s - 1) * 8);
}

static void sections_keep_what_they_hold(void **state)
{
	static struct sb_buffer b;
	struct model m = { 0 };
	struct sb_edit e = { &b.sb, BYTES_MAX };
	struct rng rng;

	rng_init(&rng, seed_take());
	sb_vector_init(&b);
	for (unsigned i = 0; i < 3000; i++) {
		step(&rng, &m, &e);
		assert_same(&m, &b.sb);
	}
}

/* Keep some of the ranges, or none. */
static void blacklist_thin_out(struct rng *rng, struct sb_edit *e)
{
	uint64_t kept[32][2], start, end;
	bool is_needed[32];
	unsigned nr = sb_blacklist_nr(e->sb), kept_nr = 0, odds = 1 + (unsigned)rng_below(rng, 3);

	assert_true(nr <= ARRAY_NR(kept));
	for (unsigned i = 0; i < nr; i++) {
		is_needed[i] = odds < 3 && rng_below(rng, odds) == 0;
		if (is_needed[i]) {
			sb_blacklist_range(e->sb, i, &kept[kept_nr][0], &kept[kept_nr][1]);
			kept_nr++;
		}
	}
	sb_blacklist_keep(e, is_needed);
	assert_int_equal(sb_validate(e->sb, false, NULL), 0);
	assert_int_equal(sb_blacklist_nr(e->sb), kept_nr);
	assert_int_equal(sb_has_feature(e->sb, SB_FEATURE_JOURNAL_SEQ_BLACKLIST_V3), kept_nr > 0);
	for (unsigned i = 0; i < kept_nr; i++) {
		sb_blacklist_range(e->sb, i, &start, &end);
		assert_int_equal(start, kept[i][0]);
		assert_int_equal(end, kept[i][1]);
	}
}

/* A bitmap of seqs against the list of ranges. */
static void blacklists_are_unions_of_what_was_added(void **state)
{
	enum { SEQS = 200 };
	struct rng rng;

	rng_init(&rng, seed_take());
	for (unsigned round = 0; round < 200; round++) {
		static struct sb_buffer b;
		struct sb_edit e = { &b.sb, sizeof(b) };
		bool is_listed[SEQS + 2] = { false };

		sb_vector_init(&b);
		for (unsigned i = 0; i < 12; i++) {
			uint64_t start = 1 + rng_below(&rng, SEQS - 20), end = start + 1 + rng_below(&rng, 19);

			assert_int_equal(sb_blacklist_add(&e, start, end), 0);
			memset(is_listed + start, true, end - start);
			assert_int_equal(sb_validate(&b.sb, false, NULL), 0);
		}
		unsigned runs = 0;
		for (unsigned i = 1; i < SEQS + 2; i++)
			runs += is_listed[i] && !is_listed[i - 1];
		assert_int_equal(sb_blacklist_nr(&b.sb), runs);
		for (unsigned i = 0; i < runs; i++) {
			uint64_t start, end;

			sb_blacklist_range(&b.sb, i, &start, &end);
			for (uint64_t seq = start; seq < end; seq++)
				assert_true(is_listed[seq]);
			assert_false(is_listed[end]);
		}
		blacklist_thin_out(&rng, &e);
	}
}

static void old_members_are_widened(void **state)
{
	static struct sb_buffer b;
	struct sb_edit e = { &b.sb, sizeof(b) };
	struct member before, after;

	/* Without members_v2, as before 1.1. */
	sb_vector_init(&b);
	sb_member(&b.sb, 0, &before);
	sb_section_delete(&e, SB_MEMBERS_V2);
	assert_int_equal(sb_members_prepare(&e), 0);
	sb_member(&b.sb, 0, &after);
	assert_memory_equal(&before, &after, sizeof(before));

	/* With shorter records. */
	struct sb_members_v2_disk *d = (struct sb_members_v2_disk *)sb_section_resize(&e, SB_MEMBERS_V2, 2 + 64 / 8);
	d->member_bytes = le16_of(64);
	sb_member_record(&e, 0)->last_mount = le64_of(77);
	assert_int_equal(sb_members_prepare(&e), 0);
	sb_member(&b.sb, 0, &after);
	assert_int_equal(after.last_mount, 77);
	sb_member_record(&e, 0)->seq = le64_of(5);
	assert_int_equal(sb_members_v1_update(&e), 0);
	assert_int_equal(sb_validate(&b.sb, false, NULL), 0);
	sb_members_section_get(&b.sb, sb_section(&b.sb, SB_MEMBERS_V1), 0, &after);
	assert_int_equal(after.last_mount, 77);
}

static void labels_are_paths_of_groups(void **state)
{
	static struct sb_buffer b;
	struct sb_edit e = { &b.sb, sizeof(b) };
	unsigned fast, slow, hdd, again;
	char text[64];
	struct strbuf path = strbuf_fixed(text, sizeof(text));

	sb_vector_init(&b);
	assert_int_equal(sb_disk_group_make(&e, "ssd.fast", &fast), 0);
	assert_int_equal(sb_disk_group_make(&e, "ssd.slow", &slow), 0);
	assert_int_equal(sb_disk_group_make(&e, "hdd", &hdd), 0);
	assert_int_equal(sb_disk_group_make(&e, "ssd.fast", &again), 0);
	assert_true(fast == 1 && slow == 2 && hdd == 3 && again == 1);
	sb_disk_group_path(&path, &b.sb, slow);
	assert_string_equal(text, "ssd.slow");
	assert_int_equal(sb_disk_group_nr(&b.sb), 4);
	for (size_t i = 0; i < 4; i++) {
		static const char *const bad[] = { "", "a.", ".a", "a..b" };

		assert_int_equal(sb_disk_group_make(&e, bad[i], &again), -EINVAL);
	}
	assert_int_equal(sb_disk_group_make(&e, "123456789012345678901234567890123", &again), -EINVAL);
	assert_int_equal(sb_disk_group_nr(&b.sb), 4);
	assert_int_equal(sb_validate(&b.sb, false, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sections_keep_what_they_hold),
		cmocka_unit_test(blacklists_are_unions_of_what_was_added),
		cmocka_unit_test(old_members_are_widened),
		cmocka_unit_test(labels_are_paths_of_groups),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
