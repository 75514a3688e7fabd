/*
 * Superblocks: every check and accessor on bytes of anybody's choice, and opening a device that holds them.
 *
 * Input: one byte of flags (1: seal, 2: not read-only), then the copy.
 */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "format/jset.h"
#include "format/options.h"
#include "super/super.h"

static void read_sections(const struct sb_disk *sb)
{
	struct fault fault;
	struct strbuf text = strbuf_growing();
	struct replicas_entry e;
	struct sb_downgrade d;
	uint64_t a, b, sum = 0;

	for (unsigned i = 0; i < SB_MEMBERS_MAX; i++) {
		struct member m;

		sb_member(sb, i, &m);
		sum += m.nbuckets;
	}
	for (unsigned i = 0; i < min(sb_disk_group_nr(sb), 1024u); i++) {
		struct disk_group g;

		sb_disk_group(sb, i, &g);
		sb_disk_group_path(&text, sb, i);
	}
	for (unsigned target = 0; target < 1 << TARGET_BITS; target += 7)
		sb_target_to_text(&text, sb, target);
	for (struct replicas_walk w = sb_replicas_walk(sb); sb_replicas_next(&w, &e, &fault) > 0;)
		for (unsigned i = 0; i < e.nr_devs; i++)
			sum += e.devs[i];
	for (unsigned i = 0; i < sb_journal_range_nr(sb); i++)
		sb_journal_range(sb, i, &a, &b);
	for (unsigned i = 0; i < sb_blacklist_nr(sb); i++)
		sb_blacklist_range(sb, i, &a, &b);
	for (unsigned i = 0; i < sb_counter_nr(sb); i++)
		sum += sb_counter(sb, i);
	for (unsigned type = SB_ERRORS; type <= SB_ERRORS_V2; type += SB_ERRORS_V2 - SB_ERRORS)
		for (unsigned i = 0; i < sb_error_nr(sb, type); i++) {
			struct sb_error error;

			sb_error(sb, type, i, &error);
		}
	for (struct sb_downgrade_walk w = sb_downgrade_walk(sb); sb_downgrade_next(&w, &d, &fault) > 0;)
		for (unsigned i = 0; i < d.error_nr; i++)
			sum += le16_load(d.errors + i * 2);
	for (unsigned i = 0; i < sb_recovery_pass_nr(sb); i++) {
		struct sb_recovery_pass p;

		sb_recovery_pass(sb, i, &p);
	}
	struct sb_ext ext;
	struct sb_quota quota;
	struct sb_crypt crypt;
	sb_ext(sb, &ext);
	sb_quota(sb, &quota);
	sb_crypt(sb, &crypt);
	strbuf_printf(&text, "%llu", (unsigned long long)sum);
	strbuf_free(&text);
}

static void read_clean_section(const struct sb_disk *sb, const struct key_context *ctx)
{
	const struct jset_entry_disk *e;
	struct strbuf text = strbuf_growing();
	struct jset_walk w;
	struct fault fault;
	uint64_t seq;

	if (!sb_clean(sb, &seq, &w.pos, &w.end))
		return;
	while (jset_walk_next(&w, &e, &fault) > 0) {
		jset_entry_validate(e, ctx, &fault);
		jset_entry_to_text(&text, e, ctx);
	}
	strbuf_free(&text);
}

static void read_options(const struct sb_disk *sb)
{
	struct strbuf text = strbuf_growing();
	bool in_range;

	for (unsigned id = 0; id < OPT_NR; id++)
		option_to_text(&text, id, option_from_sb(id, sb, &in_range), sb);
	strbuf_free(&text);
}

static void open_device(const struct sb_disk *sb, size_t len)
{
	struct device *dev = image_device_open(NULL, 64 << 20);
	struct super_open_opts opts = { .devices = &dev, .device_nr = 1, .is_very_degraded_ok = true };
	struct super *s;

	image_device_patch(dev, SB_LAYOUT_SECTOR * SECTOR_BYTES, &sb->layout, sizeof(sb->layout));
	image_device_patch(dev, SB_SECTOR * SECTOR_BYTES, sb, len);
	image_device_patch(dev, 2056 * SECTOR_BYTES, sb, len);
	if (!super_open(NULL, 0, &opts, NULL, &fuzz_reports, &s)) {
		/* An unsealed key needs no passphrase, a wrong one takes memory and time that its parameters bound. */
		super_close(s);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	enum { BYTES_MAX = 65536 };
	struct input in = { data, data + size };
	uint8_t flags = (uint8_t)input_take(&in, 1);
	struct fault fault;

	if (input_left(&in) < sizeof(struct sb_disk) || input_left(&in) > BYTES_MAX)
		return 0;
	/* Exactly as large as it says, so that a byte too far is seen. */
	struct sb_disk *sb = malloc(input_left(&in));
	size_t len = input_left(&in);
	memcpy(sb, in.pos, len);
	sb_layout_validate(&sb->layout, &fault);
	if (sb_check_header(sb, &fault) || sb_bytes(sb) > len)
		goto out;
	unsigned type = SB_CSUM_TYPE(sb);
	if (flags & 1 && type < CHECKSUM_TYPE_NR && !checksum_is_mac(type))
		sb_seal(sb, type);
	sb_verify(sb, &fault);
	if (!sb_validate(sb, !(flags & 2), &fault)) {
		struct key_context ctx;
		struct strbuf text = strbuf_growing();

		fuzz_key_context(&ctx, 0);
		sb_key_context(sb, flags & 4, &ctx);
		sb_to_text(&text, sb, true, ~0u);
		strbuf_free(&text);
		read_sections(sb);
		read_clean_section(sb, &ctx);
		read_options(sb);
	}
	open_device(sb, len);
out:
	free(sb);
	return 0;
}
