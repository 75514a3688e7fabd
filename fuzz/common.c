/* Helpers of the fuzz targets (see fuzz.h). */
#include "fuzz.h"

#include <string.h>

#include "base/strbuf.h"
#include "format/version.h"

uint64_t input_take(struct input *in, unsigned bytes)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < bytes && in->pos < in->end; i++)
		v |= (uint64_t)*in->pos++ << 8 * i;
	return v;
}

const uint8_t *input_take_bytes(struct input *in, size_t *len)
{
	const uint8_t *bytes = in->pos;

	*len = min(*len, input_left(in));
	in->pos += *len;
	return bytes;
}

void fuzz_key_context(struct key_context *ctx, uint8_t what)
{
	static const struct member_geometry members[4] = {
		{ true, 256, 1, 1 << 20, 2 },
		{ true, 1024, 1, 4096, 2 },
		{ true, 8, 64, 1ull << 40, 1 },
	};
	static const unsigned versions[8] = {
		VERSION_1_4,	VERSION_1_4,	VERSION(1, 0),	VERSION(1, 9),
		VERSION(1, 14), VERSION(1, 20), VERSION(1, 31), VERSION_NEWEST_KNOWN,
	};
	unsigned version = versions[what & 7];

	*ctx = (struct key_context){
		.version = version,
		.upgrade_complete = version,
		.is_newer = version > VERSION_1_4,
		.has_key = what & 8,
		.block_sectors = (uint8_t)(1 << (what >> 4 & 3)),
		.node_sectors = 64,
		.member_nr = ARRAY_NR(members),
		.members = members,
		.backpointer_shift = 10,
		.time_base_ns = 1700000000ull * 1000000000,
		.time_precision_ns = 1,
	};
	if (ctx->is_newer)
		memcpy(ctx->entry_type_u64s, (const uint8_t[]){ 1, 1, 2, 3, 1, 1, 1, 3, 1, 2 }, 10);
}

static void report_take(void *ctx, const struct report *report)
{
	/* Read what a user of the report would read. */
	char text[1024];
	struct strbuf s = strbuf_fixed(text, sizeof(text));
	const char *parts[] = { report->device,	  report->structure, report->position,
				report->expected, report->found,     report->advice };

	for (size_t i = 0; i < ARRAY_NR(parts); i++)
		strbuf_add(&s, parts[i] ? parts[i] : "-");
}

const struct report_sink fuzz_reports = { .emit = report_take };
