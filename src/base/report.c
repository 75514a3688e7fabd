/* Error codes, faults and error reports (see base/report.h). */
#include "base/report.h"

#include <errno.h>
#include <string.h>

#include "base/strbuf.h"

/*
 * The private codes: what they are called, and what they mean to somebody outside. Damage is EIO to whoever uses the
 * filesystem; opening one distinguishes more and maps by itself before it comes here.
 */
static const struct private_error {
	const char *name;
	int errno_value;
} private_errors[] = {
#define ROW(code, text, outside) [code - KILN_E_FIRST] = { text, outside }
	ROW(KILN_E_INVALID, "invalid format", EIO),
	ROW(KILN_E_CHECKSUM, "checksum mismatch", EIO),
	ROW(KILN_E_UNSUPPORTED, "unsupported feature", EPROTONOSUPPORT),
	ROW(KILN_E_NO_REPLICA, "no usable replica", EIO),
	ROW(KILN_E_STALE, "stale pointer", EIO),
	ROW(KILN_E_BAD_PASSPHRASE, "wrong passphrase", EKEYREJECTED),
	ROW(KILN_E_NEED_PASSPHRASE, "passphrase needed", ENOKEY),
	ROW(KILN_E_FOREIGN_MEMBER, "device of another filesystem", EINVAL),
	ROW(KILN_E_NOT_FOUND_HERE, "not found", EUCLEAN),
	ROW(KILN_E_RESTART, "transaction restart", EAGAIN),
	ROW(KILN_E_HOST_FULL, "no space where the image lies", EIO),
#undef ROW
};
_Static_assert(ARRAY_NR(private_errors) == KILN_E_LAST - KILN_E_FIRST, "every private code has a row");

/* What to do next, for faults whose finder knows nothing better. */
static const char *const level_advice[] = {
	[REPORT_INFO] = NULL,
	[REPORT_RECOVERED] = "Another copy was used.",
	[REPORT_DAMAGE] = "The rest stays readable.",
	[REPORT_FATAL] = NULL,
};

static const struct private_error *private_error_find(int err)
{
	if (err > -KILN_E_FIRST || err <= -KILN_E_LAST)
		return NULL;
	return &private_errors[-err - KILN_E_FIRST];
}

int error_to_errno(int err)
{
	const struct private_error *private = private_error_find(err);

	return private ? -private->errno_value : err;
}

const char *error_name(int err)
{
	const struct private_error *private = private_error_find(err);
	const char *name;

	if (err >= 0)
		return "success";
	if (private)
		return private->name;
	name = err > -KILN_E_FIRST ? strerrorname_np(-err) : NULL;
	return name ? name : "unknown error";
}

int fault_set(struct fault *fault, uint32_t id, const char *field, const char *expected, const char *found_fmt, ...)
{
	struct strbuf text;
	va_list args;

	if (!fault)
		return -KILN_E_INVALID;

	fault->id = id;
	text = strbuf_fixed(fault->field, sizeof(fault->field));
	strbuf_add(&text, field);
	text = strbuf_fixed(fault->expected, sizeof(fault->expected));
	strbuf_add(&text, expected);
	text = strbuf_fixed(fault->found, sizeof(fault->found));
	va_start(args, found_fmt);
	strbuf_vprintf(&text, found_fmt, args);
	va_end(args);
	return -KILN_E_INVALID;
}

void report_emit(const struct report_sink *sink, const struct report *report)
{
	if (sink && sink->emit)
		sink->emit(sink->ctx, report);
}

void report_fault(const struct report_sink *sink, enum report_level level, const struct fault *fault,
		  const char *device, const char *structure, const char *position)
{
	char expected_text[sizeof(fault->field) + sizeof(fault->expected)];
	struct strbuf expected = strbuf_fixed(expected_text, sizeof(expected_text));

	strbuf_add(&expected, fault->field);
	if (fault->field[0] && fault->expected[0])
		strbuf_add_char(&expected, ' ');
	strbuf_add(&expected, fault->expected);

	report_emit(sink, &(struct report){
				  .level = level,
				  .id = fault->id,
				  .err = -KILN_E_INVALID,
				  .device = device,
				  .structure = structure,
				  .position = position,
				  .expected = expected_text,
				  .found = fault->found,
				  .advice = level_advice[level],
			  });
}
