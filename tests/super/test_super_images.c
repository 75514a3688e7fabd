/* Superblocks of real images: all of them open, and damaged ones do what they can. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fixtures.h"
#include "fs_build.h"
#include "super/super.h"

static struct reports reports;
static struct report_sink sink;

static int open_fixture(const struct fixture *f, struct super_open_opts opts, struct super **s)
{
	sink = reports_sink(&reports);
	return super_open(f->paths, f->nr, &opts, NULL, &sink, s);
}

/* @number must be the one behind @word in what upstream's show-super printed, where that comes with the image. */
static void assert_shown(const char *name, const char *word, uint64_t number)
{
	FILE *text = fixture_text(name, ".show-super.txt");
	char line[1024];
	bool is_found = false;

	if (!text)
		return;
	while (!is_found && fgets(line, sizeof(line), text))
		is_found = !strncmp(line, word, strlen(word));
	fclose(text);
	if (!is_found || strtoull(line + strlen(word), NULL, 10) != number)
		fail_msg("%s: %s is not %llu", name, word, (unsigned long long)number);
}

static void every_image_opens_with_all_members(void **state)
{
	size_t nr;

	fixtures_require();
	char **names = fixture_names(&nr);
	for (size_t i = 0; i < nr; i++) {
		struct fixture f;
		struct super *s;

		fixture_unpack(&f, names[i]);
		int err = open_fixture(&f, (struct super_open_opts){ 0 }, &s);
		if (err || reports.text[0])
			fail_msg("%s: %d, %s", names[i], err, reports.text);
		assert_int_equal(s->member_nr, f.nr);
		for (unsigned m = 0; m < s->member_nr; m++)
			assert_true(super_member_online(s, m));
		assert_shown(names[i], "Sequence number:", le64_get(s->sb->seq));
		assert_shown(names[i], "Devices:", s->sb->nr_devices);
		assert_shown(names[i], "Clean:", SB_CLEAN_FLAG(s->sb));
		super_close(s);
		fixture_remove(&f);
		free(names[i]);
	}
	free(names);
}

/* What becomes of damaged devices: the open's result, and words that the reports must contain. */
static void damaged_images_open_as_far_as_possible(void **state)
{
	static const struct {
		const char *name;
		struct super_open_opts opts;
		int err;
		const char *words;
	} cases[] = {
		{ "corrupt/sb-primary-bitflip", { 0 }, 0, "copy at sector 8" },
		{ "corrupt/sb-primary-zeroed", { 0 }, 0, "copy at sector 8" },
		{ "corrupt/sb-primary-and-layout-zeroed", { 0 }, 0, "copy at sector 8" },
		{ "corrupt/truncated-200m", { 0 }, 0, "too small" },
		{ "corrupt/truncated-16m", { 0 }, 0, "too small" },
		{ "corrupt/missing-device-0", { 0 }, -ENODEV, "device 0 (uuid " },
		{ "corrupt/missing-device-1", { 0 }, -ENODEV, "device 1 (uuid " },
		{ "corrupt/missing-device-0", { .is_degraded_ok = true }, 0, "device 0 (missing)" },
		{ "corrupt/missing-device-1", { .is_degraded_ok = true }, 0, "device 1 (missing)" },
		{ "corrupt/ec-missing-device-2", { 0 }, -ENODEV, "device 2 (uuid " },
		{ "corrupt/ec-missing-device-2", { .is_degraded_ok = true }, 0, "device 2 (missing)" },
	};

	fixtures_require();
	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		struct fixture f;
		struct super *s;

		fixture_unpack(&f, cases[i].name);
		int err = open_fixture(&f, cases[i].opts, &s);
		if (err != cases[i].err || !strstr(reports.text, cases[i].words))
			fail_msg("%s: %d, %s", cases[i].name, err, reports.text);
		super_close(s);
		fixture_remove(&f);
	}
}

static void reads_beyond_a_truncated_device_fail(void **state)
{
	struct fixture f;
	struct super *s;
	uint8_t block[4096];

	fixtures_require();
	fixture_unpack(&f, "corrupt/truncated-200m");
	assert_int_equal(open_fixture(&f, (struct super_open_opts){ 0 }, &s), 0);
	assert_int_equal(device_read(s->members[0].dev, 199ull << 20, block, sizeof(block)), 0);
	assert_int_equal(device_read(s->members[0].dev, 220ull << 20, block, sizeof(block)), -EIO);
	super_close(s);
	fixture_remove(&f);
}

static void passphrases_of_encrypted_images_unlock_them(void **state)
{
	static const struct {
		const char *name, *passphrase;
	} cases[] = {
		{ "v1.4-encrypted", "correct horse battery staple" },
		{ "v1.4-encrypted-wide-lz4", "pass phrase 2" },
		{ "v1.39-encrypted", "correct horse battery staple" },
		{ "v1.4-encrypted-nopass", NULL },
	};

	fixtures_require();
	for (size_t i = 0; i < ARRAY_NR(cases); i++) {
		const char *pass = cases[i].passphrase;
		struct fixture f;
		struct super *s;

		fixture_unpack(&f, cases[i].name);
		assert_int_equal(open_fixture(&f, (struct super_open_opts){ 0 }, &s), 0);
		assert_true(s->has_key);
		assert_int_equal(s->needs_passphrase, pass != NULL);
		if (pass) {
			assert_int_equal(super_unlock(s, "wrong", 5), -KILN_E_BAD_PASSPHRASE);
			assert_int_equal(super_unlock(s, pass, strlen(pass)), 0);
		}
		assert_non_null(s->key);
		super_close(s);
		fixture_remove(&f);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_image_opens_with_all_members),
		cmocka_unit_test(damaged_images_open_as_far_as_possible),
		cmocka_unit_test(reads_beyond_a_truncated_device_fail),
		cmocka_unit_test(passphrases_of_encrypted_images_unlock_them),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
