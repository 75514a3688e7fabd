/* The string builder: what fits, what doesn't, and how sizes, bytes and uuids read. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/strbuf.h"

static void fixed_builder_drops_what_does_not_fit(void **state)
{
	char text[8 + 1];
	struct strbuf s;

	text[8] = 0x55; /* beyond the builder's 8 bytes */
	s = strbuf_fixed(text, 8);
	strbuf_add(&s, "1234567");
	assert_string_equal(strbuf_text(&s), "1234567");
	assert_false(s.truncated);

	strbuf_add(&s, "8");
	assert_string_equal(strbuf_text(&s), "1234567");
	assert_true(s.truncated);

	strbuf_reset(&s);
	assert_string_equal(strbuf_text(&s), "");
	assert_false(s.truncated);
	strbuf_add(&s, "abc");
	strbuf_printf(&s, "%s-%d", "de", 12345);
	assert_string_equal(strbuf_text(&s), "abcde-1");
	assert_int_equal(s.len, 7);
	assert_true(s.truncated);

	strbuf_reset(&s);
	strbuf_add_bytes(&s, "longer than eight bytes", 23);
	assert_string_equal(strbuf_text(&s), "longer ");
	assert_int_equal(text[8], 0x55);
}

static void fixed_builder_without_room_is_empty_text(void **state)
{
	char text[1] = { 'x' };
	struct strbuf s = strbuf_fixed(text, 0);

	strbuf_add(&s, "a");
	strbuf_printf(&s, "%d", 1);
	assert_string_equal(strbuf_text(&s), "");
	assert_true(s.truncated);
	assert_int_equal(text[0], 'x');
}

static void growing_builder_keeps_everything(void **state)
{
	struct strbuf s = strbuf_growing();

	assert_string_equal(strbuf_text(&s), "");
	for (int i = 0; i < 1000; i++)
		strbuf_printf(&s, "%04d,", i);
	assert_int_equal(s.len, 5000);
	assert_false(s.truncated);
	assert_memory_equal(strbuf_text(&s) + 4995, "0999,", 6);

	strbuf_reset(&s);
	assert_string_equal(strbuf_text(&s), "");
	strbuf_add_char(&s, 'x');
	strbuf_add_bytes(&s, "a\0b", 3);
	assert_int_equal(s.len, 4);
	assert_memory_equal(strbuf_text(&s), "xa\0b", 5);

	strbuf_free(&s);
	assert_string_equal(strbuf_text(&s), "");
	strbuf_add(&s, "again");
	assert_string_equal(strbuf_text(&s), "again");
	strbuf_free(&s);
}

static void unprintable_bytes_are_escaped(void **state)
{
	char text[100];
	struct strbuf s = strbuf_fixed(text, sizeof(text));

	strbuf_add_escaped(&s, "a ~\\\n\x1b\x7f\xff\0.", 10);
	assert_string_equal(text, "a ~\\x5c\\x0a\\x1b\\x7f\\xff\\x00.");
}

static void hex_and_uuids(void **state)
{
	static const uint8_t uuid[16] = { 0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca,
					  0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81 };
	char text[100];
	struct strbuf s = strbuf_fixed(text, sizeof(text));

	strbuf_add_uuid(&s, uuid);
	assert_string_equal(text, "c68573f6-4e1a-45ca-8265-f57f48ba6d81");
	strbuf_reset(&s);
	strbuf_add_hex(&s, uuid, 3);
	assert_string_equal(text, "c68573");
}

static void sizes_have_three_significant_digits(void **state)
{
	static const struct {
		uint64_t bytes;
		const char *text;
	} cases[] = {
		{ 0, "0 B" },
		{ 1, "1 B" },
		{ 512, "512 B" },
		{ 1023, "1023 B" },
		{ 1024, "1.00 KiB" },
		{ 1029, "1.00 KiB" },
		{ 1030, "1.01 KiB" },
		{ 4096, "4.00 KiB" },
		{ 10234, "9.99 KiB" },
		{ 10235, "10.0 KiB" },
		{ 12288, "12.0 KiB" },
		{ 102348, "99.9 KiB" },
		{ 102349, "100 KiB" },
		{ 1023ull << 10, "1023 KiB" },
		{ (1023ull << 10) + 511, "1023 KiB" },
		{ (1023ull << 10) + 512, "1.00 MiB" },
		{ 121ull << 20, "121 MiB" },
		{ 1ull << 30, "1.00 GiB" },
		{ 3ull << 39, "1.50 TiB" },
		{ 1ull << 50, "1.00 PiB" },
		{ UINT64_MAX, "16.0 EiB" },
	};
	char text[32];

	for (unsigned i = 0; i < ARRAY_NR(cases); i++) {
		struct strbuf s = strbuf_fixed(text, sizeof(text));

		strbuf_add_size(&s, cases[i].bytes);
		assert_string_equal(text, cases[i].text);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fixed_builder_drops_what_does_not_fit),
		cmocka_unit_test(fixed_builder_without_room_is_empty_text),
		cmocka_unit_test(growing_builder_keeps_everything),
		cmocka_unit_test(unprintable_bytes_are_escaped),
		cmocka_unit_test(hex_and_uuids),
		cmocka_unit_test(sizes_have_three_significant_digits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
