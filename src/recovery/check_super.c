/*
 * Superblocks: every copy of every device, and the layout block (01 §2, §9).
 *
 * Memory: one superblock.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "recovery/check_internal.h"

/* Of the device: up to sector 7, read with its neighbours, as devices with larger sectors need. */
enum { START_BYTES = (SB_LAYOUT_SECTOR + 1) * SECTOR_BYTES };

static const uint32_t features_base = 1u << SB_FEATURE_NEW_SIPHASH | 1u << SB_FEATURE_NEW_EXTENT_OVERWRITE |
				      1u << SB_FEATURE_BTREE_PTR_V2 | 1u << SB_FEATURE_NEW_VARINT |
				      1u << SB_FEATURE_JOURNAL_NO_FLUSH | 1u << SB_FEATURE_ALLOC_V2 |
				      1u << SB_FEATURE_EXTENTS_ACROSS_BTREE_NODES;

static int report_copy(struct check *c, unsigned dev, uint64_t sector, unsigned id, const char *expected,
		       const char *found)
{
	char position[CHECK_TEXT_BYTES];

	snprintf(position, sizeof(position), "sector %llu", (unsigned long long)sector);
	return check_report(c, id, c->super->members[dev].name, id == CHECK_sb_layout_bad ? "layout" : "superblock",
			    position, expected, "%s", found);
}

/* The copy at @sector, into @buf of @bytes, its place: the first part, which says how much more there is. */
static int copy_read(struct device *dev, uint64_t sector, uint8_t *buf, size_t bytes)
{
	uint64_t at = sector << SECTOR_SHIFT;
	size_t first = min(bytes, (size_t)START_BYTES);
	const struct sb_disk *sb = (const struct sb_disk *)buf;
	struct fault fault = { 0 };

	int err = device_read(dev, at, buf, first);
	if (err || sb_check_header(sb, &fault) || sb_bytes(sb) <= first || sb_bytes(sb) > bytes)
		return err;
	return device_read(dev, at + first, buf + first, round_up_u64(sb_bytes(sb), SECTOR_BYTES) - first);
}

static int check_copy(struct check *c, unsigned dev, uint64_t sector, void *buf, size_t bytes)
{
	const struct super_member *m = &c->super->members[dev];
	const struct sb_disk *sb = buf;
	struct fault fault = { 0 };

	int err = copy_read(m->dev, sector, buf, bytes);
	if (err)
		return report_copy(c, dev, sector, CHECK_sb_copy_bad, "to be readable", error_name(err));
	if (sb_check_header(sb, &fault) || sb_bytes(sb) > bytes || sb_verify(sb, &fault))
		return report_copy(c, dev, sector, CHECK_sb_copy_bad, "a good copy",
				   fault.found[0] ? fault.found : "a bad one");
	if (le64_get(sb->seq) != le64_get(m->sb->seq))
		return report_copy(c, dev, sector, CHECK_sb_copy_bad, "the state of the other copies", "an older one");
	if (le64_get(sb->offset) != sector)
		return report_copy(c, dev, sector, CHECK_sb_copy_bad, "its own sector in it", "another");
	return 0;
}

static int report_size(struct check *c, unsigned dev)
{
	const struct super_member *m = &c->super->members[dev];
	char expected[CHECK_TEXT_BYTES];

	snprintf(expected, sizeof(expected), "at least %llu bytes", (unsigned long long)super_member_bytes(m));
	return check_report(c, CHECK_device_too_small, m->name, "device", "size", expected, "%llu bytes",
			    (unsigned long long)m->dev->size_bytes);
}

static int check_device(struct check *c, unsigned dev)
{
	const struct super_member *m = &c->super->members[dev];
	const struct sb_layout_disk *layout = &m->sb->layout;
	size_t bytes = (size_t)SECTOR_BYTES << min(layout->sb_max_size_bits, (uint8_t)SB_SIZE_BITS_MAX);
	void *buf = io_buffer_alloc(max(bytes, (size_t)START_BYTES));
	struct fault fault = { 0 };

	if (!buf)
		return -ENOMEM;
	bool is_too_small = m->dev->size_bytes < super_member_bytes(m);
	if (is_too_small)
		report_size(c, dev);
	for (unsigned i = 0; i < min((unsigned)layout->nr_superblocks, (unsigned)SB_LAYOUT_COPIES_MAX); i++) {
		uint64_t sector = le64_get(layout->sb_offset[i]);

		if (!is_too_small || sector <= (m->dev->size_bytes - min(bytes, m->dev->size_bytes)) >> SECTOR_SHIFT)
			check_copy(c, dev, sector, buf, bytes);
	}
	int err = device_read(m->dev, 0, buf, START_BYTES);
	const struct sb_layout_disk *stored =
		(const struct sb_layout_disk *)((uint8_t *)buf + SB_LAYOUT_SECTOR * SECTOR_BYTES);
	if (err || sb_layout_validate(stored, &fault))
		report_copy(c, dev, SB_LAYOUT_SECTOR, CHECK_sb_layout_bad, "a good layout block",
			    err ? error_name(err) : fault.found);
	else if (memcmp(stored->sb_offset, layout->sb_offset, layout->nr_superblocks * sizeof(le64)) ||
		 stored->nr_superblocks != layout->nr_superblocks)
		report_copy(c, dev, SB_LAYOUT_SECTOR, CHECK_sb_layout_bad, "the layout in the superblock", "another");
	io_buffer_free(buf);
	return check_step(c, 1, BTREE_NR_MAX, POS_MIN);
}

int check_super(struct check *c)
{
	const struct sb_disk *sb = c->super->sb;
	int err = 0;

	for (unsigned dev = 0; !err && dev < c->super->member_nr; dev++)
		if (check_device_counts(c, dev))
			err = check_device(c, dev);
	if (!c->is_newer && SB_CLEAN_FLAG(sb) && !c->t->is_writable && !bits_get(le64_get(sb->compat[0]), 0, 1))
		check_report(c, CHECK_compat_alloc_info_clear, NULL, "superblock", "compat", "alloc_info", "not set");
	/* What every filesystem at 1.4 makes use of. */
	for (unsigned bit = 0; le16_get(sb->version) == VERSION_1_4 && bit < SB_FEATURE_NR_1_4; bit++)
		if (features_base >> bit & 1 && !sb_has_feature(sb, bit))
			check_report(c, CHECK_feature_not_marked, NULL, "superblock", "features",
				     "what is in use to be marked", "not %s", sb_feature_name(bit));
	if (!c->is_newer && !SB_CLEAN_FLAG(sb) &&
	    (!sb_has_feature(sb, SB_FEATURE_EXTENTS_ABOVE_BTREE_UPDATES) ||
	     !sb_has_feature(sb, SB_FEATURE_BTREE_UPDATES_JOURNALLED)))
		check_report(c, CHECK_sb_dirty_without_features, NULL, "superblock", "features",
			     "extents_above_btree_updates and btree_updates_journalled", "not both");
	return err;
}
