/* Which devices a command line means. */
#include "device_test.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/util.h"
#include "device/scan.h"
#include "format/superblock.h"

/* Parse @argument and compare with the NULL-terminated @expected. */
static void assert_parses(const char *argument, const char *const *expected)
{
	char *args[] = { (char *)argument };
	struct device_paths paths;
	char why[256] = "";

	assert_int_equal(device_paths_parse(args, 1, &paths, why), 0);
	for (size_t i = 0; i < paths.nr; i++) {
		assert_non_null(expected[i]);
		assert_string_equal(paths.paths[i], expected[i]);
	}
	assert_null(expected[paths.nr]);
	device_paths_free(&paths);
	assert_int_equal(paths.nr, 0);
}

#define ASSERT_PARSES(argument, ...) assert_parses(argument, (const char *const[]){ __VA_ARGS__, NULL })

static int parse_error(const char *argument, char why[256])
{
	char *args[] = { (char *)argument };
	struct device_paths paths;
	int err = device_paths_parse(args, 1, &paths, why);

	assert_int_equal(paths.nr, 0);
	device_paths_free(&paths);
	return err;
}

static void colons_separate_devices(void **state)
{
	ASSERT_PARSES("/no/a", "/no/a");
	ASSERT_PARSES("/no/a:/no/b:/no/c", "/no/a", "/no/b", "/no/c");
	ASSERT_PARSES(":/no/a::/no/b:", "/no/a", "/no/b"); /* empty parts mean nothing */
}

static void colon_in_the_name_of_a_file_that_exists_belongs_to_it(void **state)
{
	assert_int_equal(chdir(temp_dir()), 0);
	temp_file_create("x:y", 0);
	temp_file_create("x", 0);
	temp_file_create("z", 0);
	ASSERT_PARSES("x:y", "x:y");
	ASSERT_PARSES("x:z", "x", "z");
	ASSERT_PARSES("x:y:z", "x:y", "z");
	ASSERT_PARSES("z:x:y", "z", "x:y");
	ASSERT_PARSES("x:q:z", "x", "q", "z");
}

static void several_arguments_are_taken_in_order(void **state)
{
	char first[] = "/no/b", second[] = "/no/a:/no/c";
	char *args[] = { first, second };
	struct device_paths paths;

	assert_int_equal(device_paths_parse(args, 2, &paths, NULL), 0);
	assert_int_equal(paths.nr, 3);
	assert_string_equal(paths.paths[0], "/no/b");
	assert_string_equal(paths.paths[1], "/no/a");
	assert_string_equal(paths.paths[2], "/no/c");
	device_paths_free(&paths);
}

static void nothing_named_is_an_error(void **state)
{
	char why[256] = "";

	assert_int_equal(parse_error("", why), -EINVAL);
	assert_true(why[0] != 0);
	assert_int_equal(parse_error("::", NULL), -EINVAL);
}

static void malformed_uuid_is_refused(void **state)
{
	static const char *const bad[] = {
		"UUID=",
		"UUID=12345678",
		"UUID=12345678-1234-1234-1234-12345678901",
		"UUID=12345678-1234-1234-1234-1234567890123",
		"UUID=12345678x1234-1234-1234-123456789012",
		"UUID=12345678-1234-1234-1234-12345678901g",
		"UUID=123456781-234-1234-1234-123456789012",
	};

	for (unsigned i = 0; i < ARRAY_NR(bad); i++) {
		char why[256] = "";

		assert_int_equal(parse_error(bad[i], why), -EINVAL);
		assert_non_null(strstr(why, bad[i] + 5));
	}
	char why[256] = "";
	assert_int_equal(parse_error("UUID=\033[2J", why), -EINVAL);
	assert_null(strchr(why, '\033')); /* messages don't drive the terminal */
}

static void unknown_uuid_is_enoent_and_named(void **state)
{
	char why[256] = "";

	assert_int_equal(parse_error("UUID=DEADBEEF-dead-4eef-8ead-00000badcafe", why), -ENOENT);
	assert_non_null(strstr(why, "deadbeef-dead-4eef-8ead-00000badcafe"));
}

/* The head of a superblock; the first bytes of 01 §15.1, with UUIDs of this run. */
static void superblock_put(int fd, bool old_magic, const uint8_t internal[16], const uint8_t external[16])
{
	static const uint8_t magics[2][16] = {
		{ 0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef },
		{ 0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81 },
	};
	uint8_t sector[4096] = { 0 };

	memcpy(sector + 24, magics[old_magic], 16);
	memcpy(sector + 40, internal, 16);
	memcpy(sector + 56, external, 16);
	assert_int_equal(pwrite(fd, sector, sizeof(sector), 8 * 512), sizeof(sector));
}

static void uuid_finds_the_block_device_that_has_it(void **state)
{
	char path[64], why[256] = "", argument[64] = "UUID=";
	int loop = loop_open(1 << 20, 4096, path);
	uint8_t internal[16], external[16];
	struct device_paths paths;
	char *args[] = { argument };

	random_bytes(internal, 16);
	random_bytes(external, 16);
	for (unsigned i = 0, at = 5; i < 16; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			argument[at++] = '-';
		at += (unsigned)snprintf(argument + at, sizeof(argument) - at, i % 2 ? "%02X" : "%02x", external[i]);
	}
	assert_int_equal(parse_error(argument, why), -ENOENT);
	for (unsigned old_magic = 0; old_magic < 2; old_magic++) {
		superblock_put(loop, old_magic, internal, external);
		assert_int_equal(device_paths_parse(args, 1, &paths, why), 0);
		assert_int_equal(paths.nr, 1);
		assert_string_equal(paths.paths[0], path);
		device_paths_free(&paths);

		assert_int_equal(device_scan_uuid(internal, &paths), 0);
		assert_int_equal(paths.nr, 1);
		assert_string_equal(paths.paths[0], path);
		device_paths_free(&paths);
	}
	/* On a command line the internal UUID means nothing. */
	superblock_put(loop, false, external, internal);
	assert_int_equal(parse_error(argument, why), -ENOENT);
	close(loop);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(colons_separate_devices),
		cmocka_unit_test(colon_in_the_name_of_a_file_that_exists_belongs_to_it),
		cmocka_unit_test(several_arguments_are_taken_in_order),
		cmocka_unit_test(nothing_named_is_an_error),
		cmocka_unit_test(malformed_uuid_is_refused),
		cmocka_unit_test(unknown_uuid_is_enoent_and_named),
		cmocka_unit_test(uuid_finds_the_block_device_that_has_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
