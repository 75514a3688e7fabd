/* Superblock and journal buckets say so in their alloc keys (07 §11). Verified at every mount. */
#include <errno.h>
#include <stdio.h>

#include "alloc/internal.h"
#include "format/error_ids.h"

struct mark_args {
	struct allocator *a;
	unsigned dev, data_type;
	uint64_t bucket;
	uint32_t sectors;
	unsigned found_type; /* what else the bucket is taken for */
};

static int mark_txn(struct btree_txn *txn, void *ctx)
{
	struct mark_args *args = ctx;
	struct alloc v;
	int err = alloc_key_get(args->a, txn, args->dev, args->bucket, &v);

	args->found_type = DATA_FREE;
	if (err || (v.data_type == args->data_type && v.dirty_sectors == args->sectors))
		return err;
	if (v.data_type != DATA_FREE && v.data_type != args->data_type) {
		args->found_type = v.data_type;
		return -KILN_E_INVALID;
	}
	v.data_type = (uint8_t)args->data_type;
	v.dirty_sectors = args->sectors;
	return alloc_key_put(txn, args->dev, args->bucket, &v, 0);
}

static int mark_bucket(struct allocator *a, unsigned dev, uint64_t bucket, unsigned data_type, uint32_t sectors)
{
	static const struct btree_commit_opts opts = { .name = "mark_device", .watermark = WATERMARK_BTREE };
	struct mark_args args = { .a = a, .dev = dev, .bucket = bucket, .data_type = data_type, .sectors = sectors };
	char position[64];

	if (bucket < a->devs[dev].first_bucket || bucket >= a->devs[dev].bucket_nr)
		return 0;
	int err = btree_txn_run(a->trees, &opts, mark_txn, &args);
	if (args.found_type) {
		snprintf(position, sizeof(position), "device %u bucket %llu", dev, (unsigned long long)bucket);
		report_emit(a->reports, &(struct report){ .level = REPORT_FATAL,
							  .id = ERROR_bucket_metadata_type_mismatch,
							  .err = err,
							  .device = a->super->members[dev].name,
							  .structure = "alloc key",
							  .position = position,
							  .expected = data_type_name(data_type),
							  .found = data_type_name(args.found_type),
							  .advice = "`kiln check` tells more." });
	}
	return err;
}

/* Sectors of the bucket that superblocks take: whole copies, and what lies before the first. */
static uint32_t superblock_sectors(const struct sb_layout_disk *layout, uint32_t bucket_sectors, uint64_t bucket)
{
	uint64_t start = bucket * bucket_sectors, end = start + bucket_sectors;
	uint64_t size = 1ull << min(layout->sb_max_size_bits, (uint8_t)SB_SIZE_BITS_MAX), sum = 0;

	for (unsigned i = 0; i < min((unsigned)layout->nr_superblocks, (unsigned)SB_LAYOUT_COPIES_MAX); i++) {
		uint64_t from = le64_get(layout->sb_offset[i]), to = from + size;

		if (from == SB_SECTOR)
			from = 0;
		if (max(from, start) < min(to, end))
			sum += min(to, end) - max(from, start);
	}
	return (uint32_t)sum;
}

static int mark_superblocks(struct allocator *a, unsigned dev)
{
	const struct alloc_dev *d = &a->devs[dev];
	struct sb_layout_disk layout;
	int err = 0;

	super_lock(a->super);
	layout = a->super->members[dev].sb->layout;
	super_lock_release(a->super);

	for (size_t i = 0; !err && i < d->range_nr; i++)
		for (uint64_t b = d->ranges[i].start; !err && b < d->ranges[i].end; b++) {
			uint32_t sectors = superblock_sectors(&layout, d->bucket_sectors, b);

			if (sectors)
				err = mark_bucket(a, dev, b, DATA_SB, sectors);
		}
	return err;
}

int allocator_mark_device(struct allocator *a, unsigned dev)
{
	const struct alloc_dev *d = alloc_dev_of(a, dev);
	if (!d || !a->super->members[dev].sb)
		return 0;
	int err = mark_superblocks(a, dev);
	bool is_there = true;
	const struct sb_disk *sb = a->super->members[dev].sb;
	for (unsigned i = 0; !err && is_there; i++) {
		uint64_t start = 0, nr = 0;

		/* Marking may update the superblock, in which sections can move. */
		super_lock(a->super);
		is_there = i < sb_journal_range_nr(sb);
		if (is_there)
			sb_journal_range(sb, i, &start, &nr);
		super_lock_release(a->super);
		for (uint64_t b = start; !err && b < start + nr; b++)
			err = mark_bucket(a, dev, b, DATA_JOURNAL, d->bucket_sectors);
	}
	return err;
}
