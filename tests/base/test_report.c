/* Error codes, faults, reports and log lines. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "base/log.h"
#include "base/report.h"
#include "base/strbuf.h"

static void private_codes_become_errno_values_at_the_doors(void **state)
{
	assert_int_equal(error_to_errno(0), 0);
	assert_int_equal(error_to_errno(17), 17);
	assert_int_equal(error_to_errno(-ENOSPC), -ENOSPC);
	assert_int_equal(error_to_errno(-KILN_E_CHECKSUM), -EIO);
	assert_int_equal(error_to_errno(-KILN_E_BAD_PASSPHRASE), -EKEYREJECTED);
	assert_int_equal(error_to_errno(-KILN_E_NEED_PASSPHRASE), -ENOKEY);
	assert_int_equal(error_to_errno(-KILN_E_UNSUPPORTED), -EPROTONOSUPPORT);
	for (int code = KILN_E_FIRST; code < KILN_E_LAST; code++)
		assert_in_range(-error_to_errno(-code), 1, KILN_E_FIRST - 1);
}

static void every_code_has_a_name_of_its_own(void **state)
{
	assert_string_equal(error_name(0), "success");
	assert_string_equal(error_name(-EIO), "EIO");
	assert_string_equal(error_name(-KILN_E_CHECKSUM), "checksum mismatch");
	assert_string_equal(error_name(-KILN_E_LAST), "unknown error");
	assert_string_equal(error_name(-4000), "unknown error");
	assert_string_equal(error_name(INT32_MIN), "unknown error");
	for (int a = KILN_E_FIRST; a < KILN_E_LAST; a++)
		for (int b = KILN_E_FIRST; b < a; b++)
			assert_string_not_equal(error_name(-a), error_name(-b));
}

static void a_fault_says_field_expected_and_found(void **state)
{
	struct fault f;

	assert_int_equal(fault_set(&f, 15, "u64s", "at least 5", "%u", 3u), -KILN_E_INVALID);
	assert_int_equal(f.id, 15);
	assert_string_equal(f.field, "u64s");
	assert_string_equal(f.expected, "at least 5");
	assert_string_equal(f.found, "3");
	assert_int_equal(fault_set(NULL, 15, "u64s", "at least 5", "%u", 3u), -KILN_E_INVALID);
}

static void long_faults_are_cut(void **state)
{
	char text[200];
	struct fault f;

	memset(text, 'x', sizeof(text));
	text[sizeof(text) - 1] = 0;
	fault_set(&f, 1, text, text, "%s", text);
	assert_int_equal(strlen(f.field), sizeof(f.field) - 1);
	assert_int_equal(strlen(f.expected), sizeof(f.expected) - 1);
	assert_int_equal(strlen(f.found), sizeof(f.found) - 1);
}

static void emit_to_text(void *ctx, const struct report *r)
{
	strbuf_printf(ctx, "%d %u %s|%s|%s|%s|%s|%s|%s", (int)r->level, r->id, error_name(r->err), r->device,
		      r->structure, r->position, r->expected, r->found, r->advice ? "advice" : "no advice");
}

static void a_reported_fault_names_its_place(void **state)
{
	char text[300];
	struct strbuf out = strbuf_fixed(text, sizeof(text));
	struct report_sink sink = { .emit = emit_to_text, .ctx = &out };
	struct fault f;

	fault_set(&f, 15, "u64s", "at least 5", "%u", 3u);
	report_fault(&sink, REPORT_DAMAGE, &f, "a.img", "btree node", "extents level 0");
	assert_string_equal(text, "2 15 invalid format|a.img|btree node|extents level 0|u64s at least 5|3|advice");

	/* Nobody listens: nothing happens. */
	report_fault(NULL, REPORT_DAMAGE, &f, "a.img", "btree node", "");
	report_emit(&(struct report_sink){ 0 }, &(struct report){ 0 });
}

static void log_to_text(void *ctx, enum log_level level, const char *line)
{
	strbuf_printf(ctx, "%d:%s;", (int)level, line);
}

static void log_messages_are_single_lines_of_the_levels_asked_for(void **state)
{
	char text[3000], name[2000];
	struct strbuf out = strbuf_fixed(text, sizeof(text));
	struct log_sink sink = { .write = log_to_text, .ctx = &out, .level_max = LOG_LEVEL_WARNING };

	log_printf(&sink, LOG_LEVEL_ERROR, "a%d", 1);
	log_printf(&sink, LOG_LEVEL_WARNING, "b\nc\x1b[m");
	log_printf(&sink, LOG_LEVEL_INFO, "unasked");
	log_printf(NULL, LOG_LEVEL_ERROR, "unheard");
	log_printf(&(struct log_sink){ 0 }, LOG_LEVEL_ERROR, "unheard");
	assert_string_equal(text, "0:a1;1:b c [m;");

	memset(name, 'x', sizeof(name));
	name[sizeof(name) - 1] = 0;
	strbuf_reset(&out);
	log_printf(&sink, LOG_LEVEL_ERROR, "%s", name);
	assert_false(out.truncated);
	assert_in_range(out.len, 1000, 1100);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(private_codes_become_errno_values_at_the_doors),
		cmocka_unit_test(every_code_has_a_name_of_its_own),
		cmocka_unit_test(a_fault_says_field_expected_and_found),
		cmocka_unit_test(long_faults_are_cut),
		cmocka_unit_test(a_reported_fault_names_its_place),
		cmocka_unit_test(log_messages_are_single_lines_of_the_levels_asked_for),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
