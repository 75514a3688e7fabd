/*
 * Writing file data on a whole filesystem in memory: against the bytes that files must have, at all alignments, with
 * and without replicas, and with devices that fail.
 */
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "alloc/internal.h"
#include "base/clock.h"
#include "base/sanitizer.h"
#include "base/util.h"
#include "data/copygc.h"
#include "data/move.h"
#include "data/repair.h"
#include "data/write.h"
#include "data/write_internal.h"
#include "engine/format.h"
#include "engine/fs_write.h"
#include "format/file_data.h"
#include "format/key_edit.h"

enum {
	RANDOM_OPS = KILN_SANITIZED ? 30 : 150,
	DEVS_MAX = 8,
	FILES = 3,
	FILE_BYTES_MAX = 3 << 20,
	INUM_FIRST = 5000,
	SNAPSHOT = UINT32_MAX
};

struct file {
	uint64_t inum, size;
	uint8_t *bytes; /* behind size: zeroes */
};

struct world {
	struct kiln_fs *fs;
	struct device *devices[DEVS_MAX]; /* of the filesystem */
	unsigned dev_nr;
	uint64_t block_bytes;
	struct rng rng;
	uint64_t time;
	struct file files[FILES];
	uint8_t *buf; /* FILE_BYTES_MAX + a block */
};

static uint64_t test_seed(void)
{
	const char *text = getenv("KILN_TEST_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : random_u64();

	print_message("KILN_TEST_SEED=%" PRIu64 "\n", seed);
	return seed;
}

static int inode_make(struct btree_txn *txn, void *ctx)
{
	struct inode inode = { .inum = *(uint64_t *)ctx, .snapshot = SNAPSHOT, .mode = S_IFREG | 06755 };

	return inode_txn_put(txn, &inode);
}

/* @durability: a digit for each device, in the order of the devices. */
static void world_open_with(struct world *w, uint64_t seed, const char *durability, const char *options,
			    uint64_t block_bytes, uint32_t bucket_bytes)
{
	unsigned dev_nr = (unsigned)strlen(durability);
	struct kiln_format_device format_devs[DEVS_MAX] = { 0 };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(format_devs[0]),
					      .options = options,
					      .superblock_bytes = 64 << 10 };
	struct kiln_open_options open = { .struct_bytes = sizeof(open), .flags = KILN_OPEN_WRITE };
	char why[KILN_ERROR_BYTES] = "";

	memset(w, 0, sizeof(*w));
	rng_init(&w->rng, seed);
	w->dev_nr = dev_nr;
	w->block_bytes = block_bytes;
	for (unsigned i = 0; i < dev_nr; i++) {
		struct device *memory;

		assert_int_equal(device_open_memory(i ? "memory-b" : "memory-a", 256 << 20, 512, &memory), 0);
		assert_int_equal(device_wrap_fault(memory, seed + i, &w->devices[i]), 0);
		format_devs[i] = (struct kiln_format_device){ .path = i ? "b" : "a",
							      .label = i > 1 ? "late"
								       : i   ? "early.b"
									     : "early.a",
							      .bucket_bytes = bucket_bytes,
							      .flags = durability[i] == '0' ? KILN_FORMAT_CACHE : 0,
							      .durability = (unsigned)durability[i] - '0' };
	}
	int err = fs_format_devices(w->devices, format_devs, dev_nr, &format, why);
	if (!err)
		err = fs_initialize(w->devices, dev_nr, &open, &w->fs, why);
	if (err)
		fail_msg("format: %d, %s", err, why);
	w->buf = malloc(FILE_BYTES_MAX + 4096);
	for (unsigned i = 0; i < FILES; i++) {
		struct file *f = &w->files[i];
		struct btree_commit_opts opts = { .name = "test", .watermark = WATERMARK_NORMAL };

		f->inum = INUM_FIRST + i;
		f->bytes = calloc(1, FILE_BYTES_MAX + 4096);
		assert_int_equal(btree_txn_run(w->fs->trees, &opts, inode_make, &f->inum), 0);
	}
}

static void world_open_on(struct world *w, uint64_t seed, const char *durability, const char *options,
			  uint64_t block_bytes)
{
	world_open_with(w, seed, durability, options, block_bytes, 256 << 10);
}

static void world_open(struct world *w, uint64_t seed, unsigned dev_nr, const char *options, uint64_t block_bytes)
{
	world_open_on(w, seed, &"11111111"[DEVS_MAX - dev_nr], options, block_bytes);
}

static uint64_t sectors_reserved(struct allocator *a)
{
	mutex_lock(&a->counters.lock);
	uint64_t sectors = a->counters.online_reserved;
	mutex_unlock(&a->counters.lock);
	return sectors;
}

static void world_close(struct world *w, bool is_clean)
{
	/* Whatever ended writes, all that they had reserved was given back. Moves may be going on. */
	for (unsigned i = 0; i < 1000 && sectors_reserved(w->fs->allocator); i++)
		sleep_ns(10000000);
	assert_int_equal(sectors_reserved(w->fs->allocator), 0);
	int err = kiln_shutdown(w->fs);

	if (is_clean)
		assert_int_equal(err, 0);
	kiln_close(w->fs);
	for (unsigned i = 0; i < FILES; i++)
		free(w->files[i].bytes);
	free(w->buf);
}

static struct data_write_target target_of(const struct file *f)
{
	return (struct data_write_target){ .inum = f->inum, .snapshot = SNAPSHOT, .subvol = 1 };
}

static void inode_of(struct world *w, const struct file *f, struct inode *inode)
{
	struct bkey_copy copy;

	assert_int_equal(btree_lookup(w->fs->trees, BTREE_INODES, BPOS(0, f->inum, SNAPSHOT), &copy), 1);
	assert_int_equal(inode_unpack(copy.k, inode, NULL), 0);
}

/* Space that was promised, and is nothing yet. */
static bool key_is_promise(struct world *w, struct bkey_ref k)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];

	return k.k.type == KEY_RESERVATION ||
	       (k.k.type == KEY_EXTENT && extent_decode(k, &w->fs->super->kctx, ptrs, NULL, NULL) > 0 &&
		ptrs[0].ptr.is_unwritten);
}

/*
 * Sectors of the file's keys, and whether any is of @type. No data reaches behind the last block, none overlap.
 */
static uint64_t extents_sum(struct world *w, const struct file *f, unsigned type, unsigned *of_type)
{
	uint64_t sum = 0, end = 0;
	struct btree_iter it;
	struct bkey_ref k;
	int found;

	*of_type = 0;
	btree_iter_open(&it, w->fs->trees, BTREE_EXTENTS, BPOS(f->inum, 1, SNAPSHOT), 0, SNAPSHOT);
	it.end = BPOS(f->inum, UINT64_MAX, UINT32_MAX);
	while ((found = btree_iter_peek(&it, &k)) > 0) {
		assert_true(bkey_start_offset(&k.k) >= end);
		assert_int_equal(k.k.size * SECTOR_BYTES % w->block_bytes, 0);
		end = k.k.p.offset;
		if (!key_is_promise(w, k))
			assert_true(end * SECTOR_BYTES <= round_up_u64(f->size, w->block_bytes));
		sum += k.k.size;
		*of_type += k.k.type == type;
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	assert_int_equal(found, 0);
	return sum;
}

/* What is counted as promised is what the files' keys promise. */
static void promises_check(struct world *w)
{
	uint64_t sum = 0;
	struct usage usage;

	for (unsigned i = 0; i < FILES; i++) {
		struct btree_iter it;
		struct bkey_ref k;

		btree_iter_open(&it, w->fs->trees, BTREE_EXTENTS, BPOS(w->files[i].inum, 1, SNAPSHOT), 0, SNAPSHOT);
		it.end = BPOS(w->files[i].inum, UINT64_MAX, UINT32_MAX);
		while (btree_iter_peek(&it, &k) > 0) {
			struct reservation r;

			if (k.k.type == KEY_RESERVATION) {
				reservation_decode(k, &r);
				sum += (uint64_t)k.k.size * r.nr_replicas;
			}
			btree_iter_advance(&it);
		}
		btree_iter_close(&it);
	}
	assert_int_equal(allocator_usage(w->fs->allocator, &usage), 0);
	assert_int_equal(usage.reserved_sectors, sum);
	usage_free(&usage);
}

static void damage_fails(void *ctx, uint64_t offset, uint64_t len, int err)
{
	(void)ctx;
	fail_msg("damage at %" PRIu64 ", %" PRIu64 " bytes: %d", offset, len, err);
}

/* Everything about a file is as it must be; what lies behind its end is read as well. */
static void file_check(struct world *w, const struct file *f)
{
	uint64_t bytes = round_up_u64(f->size, w->block_bytes);
	struct data_file df = { .inum = f->inum, .snapshot = SNAPSHOT, .size_bytes = bytes };
	struct inode inode;
	unsigned inlined;

	inode_of(w, f, &inode);
	assert_int_equal(inode.size, f->size);
	assert_int_equal(inode.sectors, extents_sum(w, f, KEY_INLINE_DATA, &inlined));
	memset(w->buf, 0xee, bytes);
	assert_int_equal(data_read(w->fs->data, &df, 0, w->buf, bytes, damage_fails, NULL), bytes);
	for (uint64_t i = 0; i < bytes; i++)
		if (w->buf[i] != f->bytes[i])
			fail_msg("inode %" PRIu64 ": byte %" PRIu64 " of %" PRIu64 " is %02x, not %02x", f->inum, i,
				 f->size, w->buf[i], f->bytes[i]);
}

static void check_complains(void *ctx, const struct kiln_report *report)
{
	/* The files have no names. */
	if (!report->error_id_name || strcmp(report->error_id_name, "inode_unreachable") != 0)
		snprintf(ctx, KILN_ERROR_BYTES, "%s", report->text);
}

/* All invariants of the filesystem hold, space and references counted anew. */
static void fs_check(struct world *w)
{
	char complaint[KILN_ERROR_BYTES] = "";
	struct kiln_check_options options = { .struct_bytes = sizeof(options),
					      .report = check_complains,
					      .ctx = complaint };
	struct kiln_check_result *result = calloc(1, sizeof(*result));

	assert_int_equal(kiln_sync(w->fs), 0);
	assert_int_equal(kiln_check(w->fs, &options, result), 0);
	free(result);
	if (complaint[0])
		fail_msg("kiln check: %s", complaint);
}

static unsigned keys_of_btree(struct world *w, unsigned btree_id)
{
	struct btree_iter it;
	struct bkey_ref k;
	unsigned nr = 0;

	btree_iter_open(&it, w->fs->trees, btree_id, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	for (; btree_iter_peek(&it, &k) > 0; btree_iter_advance(&it))
		nr++;
	btree_iter_close(&it);
	return nr;
}

/* --- operations, on the file and on what it must be --- */

static struct data_write_times times_next(struct world *w)
{
	w->time += 1000;
	return (struct data_write_times){ .is_set = true, .mtime = w->time, .ctime = w->time, .clear_setid = true };
}

static void times_check(struct world *w, const struct file *f)
{
	struct inode inode;

	inode_of(w, f, &inode);
	assert_int_equal(inode.mtime, w->time);
	assert_int_equal(inode.ctime, w->time);
	assert_int_equal(inode.mode, S_IFREG | 0755);
}

/* Bytes that compress well, badly, not at all, or now so, now otherwise. */
static void bytes_make(struct world *w, uint8_t *bytes, size_t len)
{
	enum { PIECE_BYTES = 3000 };
	unsigned kind = (unsigned)rng_below(&w->rng, 5);
	uint8_t mask = 0xff;

	for (size_t i = 0; i < len; i++) {
		if (i % PIECE_BYTES == 0)
			mask = kind == 4 ? (uint8_t)(0xff >> rng_below(&w->rng, 9)) : (uint8_t)(0xff >> kind * 2);
		bytes[i] = (uint8_t)rng_u64(&w->rng) & mask;
	}
}

static void op_write(struct world *w, struct file *f, uint64_t offset, size_t len)
{
	struct data_write_target target = target_of(f);
	struct data_write_times times = times_next(w);
	uint64_t seq = 0;

	bytes_make(w, f->bytes + offset, len);
	assert_int_equal(data_write(w->fs->data, &target, offset, f->bytes + offset, len, &times, &seq), len);
	assert_true(seq != 0);
	f->size = max(f->size, offset + len);
	times_check(w, f);
}

static void op_truncate(struct world *w, struct file *f, uint64_t size)
{
	struct data_write_target target = target_of(f);
	struct data_write_times times = times_next(w);
	uint64_t seq = 0;

	assert_int_equal(data_truncate(w->fs->data, &target, size, &times, &seq), 0);
	if (size < f->size)
		memset(f->bytes + size, 0, f->size - size);
	f->size = size;
	times_check(w, f);
}

static void op_punch(struct world *w, struct file *f, uint64_t offset, uint64_t len)
{
	struct data_write_target target = target_of(f);
	struct data_write_times times = times_next(w);
	uint64_t seq = 0;

	assert_int_equal(data_punch(w->fs->data, &target, offset, len, &times, &seq), 0);
	if (offset < f->size)
		memset(f->bytes + offset, 0, min(len, f->size - offset));
	times_check(w, f);
}

static void op_allocate(struct world *w, struct file *f, uint64_t offset, uint64_t len, unsigned flags)
{
	struct data_write_target target = target_of(f);
	struct data_write_times times = times_next(w);
	uint64_t seq = 0;

	assert_int_equal(data_allocate(w->fs->data, &target, offset, len, flags, &times, &seq), 0);
	if (flags & DATA_ALLOCATE_ZERO && offset < f->size)
		memset(f->bytes + offset, 0, min(len, f->size - offset));
	if (!(flags & DATA_ALLOCATE_KEEP_SIZE))
		f->size = max(f->size, offset + len);
	times_check(w, f);
}

static void op_copy(struct world *w, struct file *from, uint64_t from_offset, struct file *to, uint64_t to_offset,
		    uint64_t len)
{
	struct data_write_target source = target_of(from), target = target_of(to);
	struct data_write_times times = times_next(w);
	uint64_t seq = 0, copied = from_offset < from->size ? min(len, from->size - from_offset) : 0;

	bool is_overlap = from == to && from_offset < to_offset + len && to_offset < from_offset + len;
	ssize_t ret = data_copy_range(w->fs->data, &source, from_offset, &target, to_offset, len, 0, &times, &seq);
	if (is_overlap) {
		assert_int_equal(ret, -EINVAL);
		return;
	}
	assert_int_equal(ret, copied);
	if (!copied)
		return;
	memmove(to->bytes + to_offset, from->bytes + from_offset, copied);
	to->size = max(to->size, to_offset + copied);
	times_check(w, to);
	file_check(w, from);
}

/* What is in both: insert @len zeroes at @offset, or take so many bytes out. */
static void op_shift(struct world *w, struct file *f, uint64_t offset, uint64_t len, bool is_insert)
{
	struct data_write_target target = target_of(f);
	struct data_write_times times = times_next(w);
	uint64_t seq = 0;
	bool is_allowed = offset % w->block_bytes == 0 && len && len % w->block_bytes == 0 &&
			  (is_insert ? offset < f->size : offset + len < f->size);

	int err = is_insert ? data_insert_range(w->fs->data, &target, offset, len, &times, &seq)
			    : data_collapse_range(w->fs->data, &target, offset, len, &times, &seq);
	assert_int_equal(err, is_allowed ? 0 : -EINVAL);
	if (err)
		return;
	if (is_insert) {
		memmove(f->bytes + offset + len, f->bytes + offset, f->size - offset);
		memset(f->bytes + offset, 0, len);
		f->size += len;
	} else {
		memmove(f->bytes + offset, f->bytes + offset + len, f->size - offset - len);
		f->size -= len;
		memset(f->bytes + f->size, 0, len);
	}
	times_check(w, f);
}

/* A number below @bound: often small, often at or next to a block boundary. */
static uint64_t number(struct world *w, uint64_t bound)
{
	uint64_t n = rng_below(&w->rng, rng_below(&w->rng, 3) ? min(bound, (uint64_t)64 << 10) : bound);

	switch (rng_below(&w->rng, 4)) {
	case 0: return n / w->block_bytes * w->block_bytes;
	case 1: return min(bound - 1, n / w->block_bytes * w->block_bytes + rng_below(&w->rng, 3));
	default: return n;
	}
}

static void random_shift(struct world *w, struct file *f)
{
	bool is_insert = rng_below(&w->rng, 2);
	uint64_t block = w->block_bytes, offset = f->size ? number(w, f->size) : 0;
	uint64_t room = is_insert ? FILE_BYTES_MAX - f->size : f->size;
	uint64_t len = room ? number(w, room) : 0;

	if (rng_below(&w->rng, 8)) {
		offset = offset / block * block;
		len = len / block * block;
	}
	op_shift(w, f, offset, len, is_insert);
}

static void random_op(struct world *w)
{
	struct file *f = &w->files[rng_below(&w->rng, FILES)];
	uint64_t offset = number(w, FILE_BYTES_MAX), from;

	switch (rng_below(&w->rng, 17)) {
	case 0: op_truncate(w, f, number(w, FILE_BYTES_MAX)); break;
	case 1: op_truncate(w, f, f->size ? number(w, f->size) : 0); break;
	case 2: op_punch(w, f, offset, 1 + number(w, FILE_BYTES_MAX)); break;
	case 3:
	case 4:
		op_allocate(w, f, offset, 1 + number(w, FILE_BYTES_MAX - offset),
			    rng_below(&w->rng, 2) ? 0 : DATA_ALLOCATE_KEEP_SIZE);
		break;
	case 5:
		op_allocate(w, f, offset, 1 + number(w, FILE_BYTES_MAX - offset),
			    DATA_ALLOCATE_ZERO | (rng_below(&w->rng, 2) ? 0 : DATA_ALLOCATE_KEEP_SIZE));
		break;
	case 6:
	case 7:
	case 8:
	case 9:
		from = rng_below(&w->rng, 2) ? number(w, FILE_BYTES_MAX) / w->block_bytes * w->block_bytes
					     : number(w, FILE_BYTES_MAX);
		if (rng_below(&w->rng, 2))
			offset = offset / w->block_bytes * w->block_bytes + from % w->block_bytes;
		if (offset >= FILE_BYTES_MAX)
			break;
		op_copy(w, &w->files[rng_below(&w->rng, FILES)], from, f, offset,
			1 + number(w, FILE_BYTES_MAX - offset));
		break;
	case 10:
	case 11: random_shift(w, f); break;
	case 12: /* append */
		offset = f->size;
		if (offset == FILE_BYTES_MAX)
			break;
		/* fall through */
	default: op_write(w, f, offset, (size_t)(1 + number(w, FILE_BYTES_MAX - offset))); break;
	}
	file_check(w, f);
	promises_check(w);
}

static void against_bytes(unsigned dev_nr, const char *options, uint64_t block_bytes, unsigned ops)
{
	struct world w;

	world_open(&w, test_seed(), dev_nr, options, block_bytes);
	for (unsigned i = 0; i < ops; i++)
		random_op(&w);
	for (unsigned i = 0; i < FILES; i++)
		file_check(&w, &w.files[i]);
	fs_check(&w);
	/* All of it can go. */
	for (unsigned i = 0; i < FILES; i++) {
		struct data_write_target target = target_of(&w.files[i]);
		struct inode inode;
		unsigned nr;
		uint64_t seq = 0;

		assert_int_equal(data_delete_extents(w.fs->data, &target, &seq), 0);
		assert_int_equal(extents_sum(&w, &w.files[i], 0, &nr), 0);
		inode_of(&w, &w.files[i], &inode);
		assert_int_equal(inode.sectors, 0);
	}
	assert_int_equal(keys_of_btree(&w, BTREE_REFLINK), 0);
	world_close(&w, true);
}

static void files_have_the_bytes_written_blocks_of_4096(void **state)
{
	against_bytes(1, "block_size=4k", 4096, RANDOM_OPS);
}
static void files_have_the_bytes_written_blocks_of_512(void **state)
{
	against_bytes(1, "block_size=512,data_checksum=xxhash", 512, RANDOM_OPS);
}
static void files_have_the_bytes_written_two_replicas(void **state)
{
	against_bytes(2, "block_size=4k,data_replicas=2,data_checksum=crc64", 4096, RANDOM_OPS);
}
static void files_have_the_bytes_written_without_checksums(void **state)
{
	against_bytes(1, "block_size=4k,data_checksum=none", 4096, RANDOM_OPS);
}

static void files_have_the_bytes_written_in_place(void **state)
{
	against_bytes(1, "block_size=512,nocow=1", 512, 150);
}
static void files_have_the_bytes_written_in_place_twice(void **state)
{
	against_bytes(2, "block_size=4k,nocow=1,data_replicas=2,compression=zstd", 4096, 150);
}

/* --- compression --- */

/*
 * Each compression, with a checksum, a block and a largest region that the seed chooses; all of them with all of those
 * when $KILN_TEST_ALL is set.
 */
static void files_have_the_bytes_written_compressed(void **state)
{
	static const char *const compressions[] = { "lz4", "lz4:9", "gzip", "gzip:1", "zstd", "zstd:1", "zstd:15" };
	static const char *const csums[] = { "none", "crc32c", "crc64", "xxhash" };
	static const char *const maxima[] = { "4k", "64k", "256k", "1M" };
	enum { ALL_NR = 2 * ARRAY_NR(csums) * ARRAY_NR(maxima) };
	bool is_all = getenv("KILN_TEST_ALL");
	struct rng rng;

	rng_init(&rng, test_seed());
	for (unsigned c = 0; c < ARRAY_NR(compressions); c++)
		for (unsigned i = 0; i < (is_all ? (unsigned)ALL_NR : 1u); i++) {
			unsigned pick = is_all ? i : (unsigned)rng_below(&rng, ALL_NR);
			uint64_t block = pick % 2 ? 4096 : 512;
			char options[200];

			snprintf(options, sizeof(options),
				 "block_size=%" PRIu64 ",compression=%s,data_checksum=%s,encoded_extent_max=%s%s",
				 block, compressions[c], csums[pick / 2 % ARRAY_NR(csums)],
				 maxima[pick / 2 / ARRAY_NR(csums)],
				 rng_below(&rng, 4) ? "" : ",background_compression=gzip");
			print_message("%s\n", options);
			against_bytes(1, options, block, RANDOM_OPS / 6);
		}
}

/*
 * Compressing and encrypting are slow enough that all cores do it; so is the checksum alone of a large write, where
 * there are more than two.
 */
static void large_writes_are_checksummed_by_all_cores(void **state)
{
	static const char *const options[] = { "data_checksum=none", "data_checksum=crc32c", "data_checksum=xxhash" };
	struct world w;

	for (unsigned i = 0; i < ARRAY_NR(options); i++) {
		world_open(&w, 1, 1, options[i], 4096);
		const struct crew *crew = &w.fs->data->writer->crew;

		op_write(&w, &w.files[0], 0, 64 << 10);
		assert_false(crew->is_started);
		op_write(&w, &w.files[0], 0, 2 << 20);
		assert_int_equal(crew->is_started, i > 0 && cpu_nr() > 2);
		file_check(&w, &w.files[0]);
		world_close(&w, true);
	}
}

/* What the keys of a file say: how many are compressed as @type, and what they take on the device. */
static unsigned keys_of_compression(struct world *w, const struct file *f, unsigned type, uint64_t *stored,
				    unsigned *rebalance_nr)
{
	struct btree_iter it;
	struct bkey_ref k;
	struct extent_value v;
	unsigned nr = 0;

	*stored = *rebalance_nr = 0;
	btree_iter_open(&it, w->fs->trees, BTREE_EXTENTS, BPOS(f->inum, 1, SNAPSHOT), 0, SNAPSHOT);
	it.end = BPOS(f->inum, UINT64_MAX, UINT32_MAX);
	for (; btree_iter_peek(&it, &k) > 0; btree_iter_advance(&it)) {
		if (k.k.type != KEY_EXTENT)
			continue;
		assert_int_equal(extent_value_load(&v, k, &w->fs->super->kctx), 0);
		nr += v.ptrs[0].crc.compression == type;
		*stored += v.ptrs[0].crc.compressed_sectors * SECTOR_BYTES;
		*rebalance_nr += v.has_rebalance;
	}
	btree_iter_close(&it);
	return nr;
}

static void write_of_kind(struct world *w, struct file *f, size_t len, uint8_t mask)
{
	struct data_write_target target = target_of(f);
	uint64_t seq = 0;

	for (size_t i = 0; i < len; i++)
		f->bytes[i] = (uint8_t)rng_u64(&w->rng) & mask;
	f->size = max(f->size, (uint64_t)len);
	assert_int_equal(data_write(w->fs->data, &target, 0, f->bytes, len, NULL, &seq), len);
	file_check(w, f);
}

static void what_compresses_takes_less_and_what_does_not_says_so(void **state)
{
	static const struct {
		const char *option;
		unsigned type;
		enum sb_feature feature;
	} kinds[] = { { "lz4", COMPRESSION_LZ4, SB_FEATURE_LZ4 },
		      { "gzip", COMPRESSION_GZIP, SB_FEATURE_GZIP },
		      { "zstd", COMPRESSION_ZSTD, SB_FEATURE_ZSTD } };
	enum { BYTES = 1 << 20, REGIONS = BYTES / (64 << 10) };

	for (unsigned i = 0; i < ARRAY_NR(kinds); i++) {
		struct world w;
		char options[80];
		uint64_t stored;
		unsigned rebalance_nr;

		snprintf(options, sizeof(options), "block_size=4k,compression=%s,background_compression=lz4",
			 kinds[i].option);
		world_open(&w, test_seed(), 1, options, 4096);
		write_of_kind(&w, &w.files[0], BYTES, 1);
		assert_true(super_has_feature(w.fs->super, kinds[i].feature));
		assert_true(super_has_feature(w.fs->super, SB_FEATURE_LZ4));
		/* Where a bucket ends a region more; none stays as it was but for a piece that is too short. */
		unsigned nr = keys_of_compression(&w, &w.files[0], kinds[i].type, &stored, &rebalance_nr);
		assert_in_range(nr, REGIONS, REGIONS + 8);
		assert_true(stored < BYTES / 4 * 3);
		assert_int_equal(rebalance_nr, kinds[i].type == COMPRESSION_LZ4 ? 0 : nr);
		/* On its way to another compression, or done with. */
		assert_int_equal(btrees_flush_all(w.fs->trees), 0);
		assert_int_equal(keys_of_btree(&w, BTREE_REBALANCE_WORK), rebalance_nr);

		write_of_kind(&w, &w.files[0], BYTES, 0xff);
		assert_in_range(
			keys_of_compression(&w, &w.files[0], COMPRESSION_INCOMPRESSIBLE, &stored, &rebalance_nr),
			REGIONS, REGIONS + 8);
		assert_int_equal(stored, BYTES);
		assert_int_equal(rebalance_nr, 0);
		assert_int_equal(btrees_flush_all(w.fs->trees), 0);
		assert_int_equal(keys_of_btree(&w, BTREE_REBALANCE_WORK), 0);

		/* A block can't become less. */
		write_of_kind(&w, &w.files[1], 4096, 0);
		assert_int_equal(
			keys_of_compression(&w, &w.files[1], COMPRESSION_INCOMPRESSIBLE, &stored, &rebalance_nr), 1);
		fs_check(&w);
		world_close(&w, true);
	}
}

/*
 * Where a bucket ends a region would have to be divided, and compressed again: so regions are found that end there.
 * Regions are of @region_bytes, of which @least to @most blocks can't be compressed; of a hundred @divided_max may
 * be divided.
 */
static void regions_are_divided_rarely(const char *options, uint32_t bucket_bytes, unsigned region_bytes,
				       unsigned least, unsigned most, unsigned divided_max)
{
	enum { WRITES = 12, BYTES = 2 << 20, BLOCK_BYTES = 4096 };
	unsigned nr = 0, nr_now;
	uint64_t seq = 0;
	struct world w;

	world_open_with(&w, test_seed(), "1", options, BLOCK_BYTES, bucket_bytes);
	struct file *f = &w.files[0];
	struct data_write_target target = target_of(f);
	f->size = BYTES;
	for (unsigned i = 0; i < WRITES; i++) {
		memset(f->bytes, 0, BYTES);
		for (unsigned at = 0; at < BYTES; at += region_bytes) {
			uint64_t bytes = (least + rng_below(&w.rng, most - least + 1)) * BLOCK_BYTES - 500;

			for (unsigned k = 0; k < bytes; k++)
				f->bytes[at + k] = (uint8_t)rng_u64(&w.rng);
		}
		assert_int_equal(data_write(w.fs->data, &target, 0, f->bytes, BYTES, NULL, &seq), BYTES);
		extents_sum(&w, f, KEY_EXTENT, &nr_now);
		nr += nr_now;
		file_check(&w, f);
	}
	assert_in_range(nr * 100 / (WRITES * BYTES / region_bytes), 100, 100 + divided_max);
	fs_check(&w);
	world_close(&w, true);
}

static void compressed_regions_fill_buckets_to_their_ends(void **state)
{
	regions_are_divided_rarely("block_size=4k,compression=lz4", 256 << 10, 64 << 10, 2, 8, 2);
}

/* A chunk that takes too many pieces of space ends earlier, and with all that is before its end. */
static void compressed_regions_fill_small_buckets(void **state)
{
	regions_are_divided_rarely("block_size=4k,compression=lz4,btree_node_size=32k,encoded_extent_max=16k", 32 << 10,
				   16 << 10, 1, 3, 10);
}

/*
 * The live part of a compressed region is moved; also where it is more than may be compressed together by now: then it
 * is divided.
 */
static void what_is_too_large_by_now_is_moved_in_parts(void **state)
{
	enum { BYTES = 64 << 10, NOW_SECTORS = 16 };
	struct data_move move = { .rewrite = 1, .watermark = WATERMARK_STRIPE };
	struct data_move_stats stats = { 0 };
	struct extent_value v;
	struct bkey_copy key;
	struct world w;

	for (unsigned is_less_now = 0; is_less_now < 2; is_less_now++) {
		world_open(&w, test_seed(), 1, "block_size=4k,compression=lz4", 4096);
		struct file *f = &w.files[0];
		write_of_kind(&w, f, BYTES, 1);
		op_write(&w, f, 0, BYTES / 2);
		uint32_t *max_sectors = &((struct super *)w.fs->super)->kctx.encoded_extent_max_sectors;
		uint32_t usual = *max_sectors;
		*max_sectors = is_less_now ? NOW_SECTORS : usual;
		struct data_mover *m = data_mover_new(w.fs->data, &w.fs->data->writes);
		data_mover_begin(m);
		assert_int_equal(
			btree_lookup(w.fs->trees, BTREE_EXTENTS, BPOS(f->inum, BYTES / SECTOR_BYTES, SNAPSHOT), &key),
			1);
		assert_int_equal(data_mover_add(m, BTREE_EXTENTS, key.k, &move), 0);
		assert_int_equal(data_mover_run(m, &stats), 0);
		data_mover_free(m);
		*max_sectors = usual;
		/* In one piece, compressed anew, or in pieces that aren't compressed. */
		btree_lookup(w.fs->trees, BTREE_EXTENTS, BPOS(f->inum, BYTES / SECTOR_BYTES, SNAPSHOT), &key);
		assert_int_equal(extent_value_load(&v, key.k, &w.fs->super->kctx), 0);
		assert_int_equal(v.ptrs[0].crc.uncompressed_sectors,
				 is_less_now ? NOW_SECTORS : BYTES / 2 / SECTOR_BYTES);
		assert_int_equal(v.ptrs[0].crc.compression, is_less_now ? COMPRESSION_NONE : COMPRESSION_LZ4);
		file_check(&w, f);
		fs_check(&w);
		world_close(&w, true);
	}
}

/* --- inline data --- */

static unsigned keys_of_type(struct world *w, const struct file *f, unsigned type)
{
	unsigned nr;

	extents_sum(w, f, type, &nr);
	return nr;
}

static void short_tails_are_inline_and_grow_out_of_it(void **state)
{
	struct world w;

	world_open(&w, 1, 1, "block_size=4k", 4096);
	struct file *f = &w.files[0];
	op_write(&w, f, 0, 10);
	assert_int_equal(keys_of_type(&w, f, KEY_INLINE_DATA), 1);
	op_write(&w, f, 10, 1014);
	assert_int_equal(keys_of_type(&w, f, KEY_INLINE_DATA), 1);
	file_check(&w, f);
	op_write(&w, f, 1024, 1);
	assert_int_equal(keys_of_type(&w, f, KEY_INLINE_DATA), 0);
	assert_int_equal(keys_of_type(&w, f, KEY_EXTENT), 1);
	file_check(&w, f);
	op_truncate(&w, f, 100);
	file_check(&w, f);
	op_write(&w, f, 4096, 100);
	assert_int_equal(keys_of_type(&w, f, KEY_INLINE_DATA), 1);
	file_check(&w, f);
	op_truncate(&w, f, 4096 + 50);
	op_truncate(&w, f, 8192);
	file_check(&w, f);
	world_close(&w, true);
}

/* --- space promised --- */

static void promised_space_reads_as_zeroes_and_is_a_hole(void **state)
{
	struct world w;
	uint64_t found;

	world_open(&w, 5, 1, "block_size=4k", 4096);
	struct file *f = &w.files[0];
	struct data_file df = { .inum = f->inum, .snapshot = SNAPSHOT };
	op_write(&w, f, 8192, 4096);
	op_allocate(&w, f, 1, 65535, 0);
	assert_int_equal(f->size, 65536);
	assert_int_equal(keys_of_type(&w, f, KEY_RESERVATION), 2);
	file_check(&w, f);
	df.size_bytes = f->size;
	assert_int_equal(data_seek(w.fs->data, &df, 0, true, &found), 0);
	assert_int_equal(found, 8192);
	assert_int_equal(data_seek(w.fs->data, &df, 8192, false, &found), 0);
	assert_int_equal(found, 12288);
	assert_int_equal(data_seek(w.fs->data, &df, 12288, true, &found), -ENXIO);
	/* Behind the end it goes away when the size is set. */
	op_allocate(&w, f, 65536, 65536, DATA_ALLOCATE_KEEP_SIZE);
	assert_int_equal(f->size, 65536);
	promises_check(&w);
	op_truncate(&w, f, 65536);
	struct inode inode;
	inode_of(&w, f, &inode);
	assert_int_equal(inode.sectors, 65536 / SECTOR_BYTES);
	promises_check(&w);
	world_close(&w, true);
}

static void zeroing_keeps_the_space(void **state)
{
	struct world w;
	struct inode inode;

	world_open(&w, 6, 1, "block_size=4k", 4096);
	struct file *f = &w.files[0];
	op_write(&w, f, 0, 1 << 20);
	op_allocate(&w, f, 5000, (1 << 20) - 10000, DATA_ALLOCATE_ZERO);
	file_check(&w, f);
	promises_check(&w);
	inode_of(&w, f, &inode);
	assert_int_equal(inode.sectors, (1 << 20) / SECTOR_BYTES);
	assert_int_equal(keys_of_type(&w, f, KEY_RESERVATION), 1);
	/* Behind the end of the file, the size grows; block by block it is what was promised. */
	op_allocate(&w, f, (1 << 20) + 100, 5000, DATA_ALLOCATE_ZERO);
	file_check(&w, f);
	inode_of(&w, f, &inode);
	assert_int_equal(inode.sectors, ((1 << 20) + 8192) / SECTOR_BYTES);
	world_close(&w, true);
}

/* Fill the filesystem with promises to one file. How many bytes. */
static uint64_t promise_all(struct world *w, struct file *f)
{
	struct data_write_target target = target_of(f);
	uint64_t at = 0, seq = 0;

	for (uint64_t step = 64 << 20; step >= w->block_bytes;) {
		int err = data_allocate(w->fs->data, &target, at, step, 0, NULL, &seq);

		assert_true(!err || err == -ENOSPC);
		if (err)
			step /= 2;
		else
			at += step;
	}
	return at;
}

static void promised_space_is_kept_for_who_has_it(void **state)
{
	struct world w;
	uint64_t seq = 0;

	world_open(&w, 7, 1, "block_size=4k", 4096);
	struct data_write_target full = target_of(&w.files[0]), other = target_of(&w.files[1]);
	uint64_t bytes = promise_all(&w, &w.files[0]);
	assert_true(bytes > 128 << 20);
	memset(w.buf, 0x5a, 1 << 20);
	assert_int_equal(data_write(w.fs->data, &other, 0, w.buf, 1 << 20, NULL, &seq), -ENOSPC);
	/* Nothing was done where there is no space for all of it. */
	struct inode inode;
	assert_int_equal(data_allocate(w.fs->data, &other, 0, 1 << 20, 0, NULL, &seq), -ENOSPC);
	inode_of(&w, &w.files[1], &inode);
	assert_int_equal(inode.size, 0);
	assert_int_equal(inode.sectors, 0);
	/* But zeroing is done. */
	w.files[1].size = 1 << 20;
	op_allocate(&w, &w.files[1], 0, 1 << 20, DATA_ALLOCATE_ZERO);
	file_check(&w, &w.files[1]);

	for (uint64_t at = 0; at < bytes; at += 1 << 20) {
		size_t len = (size_t)min((uint64_t)1 << 20, bytes - at);

		assert_int_equal(data_write(w.fs->data, &full, at, w.buf, len, NULL, &seq), len);
	}
	promises_check(&w);
	/* What was written can be written again. */
	assert_int_equal(data_write(w.fs->data, &full, 12288, w.buf, 8192, NULL, &seq), 8192);
	world_close(&w, true);
}

/* In small pieces, too: what they don't fill of a block they leave promised. */
static void promised_space_can_be_filled_a_little_at_a_time(void **state)
{
	struct world w;

	(void)state;
	world_open(&w, 8, 1, "block_size=4k", 4096);
	struct file *f = &w.files[1];
	op_allocate(&w, f, 0, 64 << 10, DATA_ALLOCATE_KEEP_SIZE);
	op_write(&w, f, 0, 100);
	assert_int_equal(keys_of_type(&w, f, KEY_INLINE_DATA), 0);
	assert_true(promise_all(&w, &w.files[0]) > 128 << 20);
	for (uint64_t at = 100; at + 700 <= 64 << 10; at += 700)
		op_write(&w, f, at, 700);
	file_check(&w, f);
	world_close(&w, true);
}

static void short_files_can_be_written_over_when_nothing_is_left(void **state)
{
	struct disk_reservation all;
	struct world w;
	uint64_t seq = 0;

	(void)state;
	world_open(&w, 10, 1, "block_size=4k", 4096);
	struct file *f = &w.files[1];
	struct data_write_target target = target_of(f);
	op_write(&w, f, 0, 100);
	uint64_t left = counters_sectors_available(w.fs->allocator);
	assert_int_equal(disk_reservation_get(w.fs->allocator, &all, 2 * left, 1, DISK_RESERVATION_NOFAIL), 0);
	assert_int_equal(data_write(w.fs->data, &target, 0, f->bytes, 200, NULL, &seq), -ENOSPC);
	op_write(&w, f, 20, 80);
	file_check(&w, f);
	disk_reservation_put(w.fs->allocator, &all);
	world_close(&w, true);
}

/* No block is free, two of a file are shared, and another has all the rest promised. */
static void world_open_full(struct world *w, struct file **promised, struct file **shared)
{
	world_open(w, 9, 1, "block_size=4k", 4096);
	*promised = &w->files[0];
	*shared = &w->files[1];
	op_write(w, *shared, 0, 8192);
	op_copy(w, *shared, 0, *shared, 1 << 20, 8192);
	assert_true(promise_all(w, *promised) > 128 << 20);
}

/* Zeroing part of a block that is shared takes a new one: where there is none, that a hole was copied isn't claimed. */
static void a_hole_is_not_copied_where_there_is_no_space(void **state)
{
	struct world w;
	uint64_t seq = 0;

	struct file *promised, *shared;
	world_open_full(&w, &promised, &shared);
	struct data_write_target from = target_of(promised), to = target_of(shared);
	assert_int_equal(data_copy_range(w.fs->data, &from, 0, &to, 0, 150, 0, NULL, &seq), -ENOSPC);
	file_check(&w, shared);
	world_close(&w, true);
}

/* Nor that it was zeroed. */
static void what_is_not_zeroed_for_want_of_space_is_an_error(void **state)
{
	struct world w;
	uint64_t seq = 0;

	struct file *promised, *shared;
	world_open_full(&w, &promised, &shared);
	struct data_write_target file = target_of(shared);
	assert_int_equal(
		data_allocate(w.fs->data, &file, 0, 5, DATA_ALLOCATE_ZERO | DATA_ALLOCATE_KEEP_SIZE, NULL, &seq),
		-ENOSPC);
	file_check(&w, shared);
	world_close(&w, true);
}

/* --- what is shared --- */

static void whole_blocks_are_shared_until_they_are_written(void **state)
{
	struct world w;
	struct inode inode;

	world_open(&w, 8, 1, "block_size=4k", 4096);
	struct file *a = &w.files[0], *b = &w.files[1];
	op_write(&w, a, 0, 200000);
	op_copy(&w, a, 0, b, 0, 200000);
	assert_true(keys_of_btree(&w, BTREE_REFLINK) > 0);
	assert_int_equal(keys_of_type(&w, b, KEY_EXTENT), 0);
	assert_int_equal(keys_of_type(&w, a, KEY_EXTENT), 0);
	inode_of(&w, b, &inode);
	assert_int_equal(inode.sectors, round_up_u64(200000, 4096) / SECTOR_BYTES);
	op_write(&w, a, 8192, 5000);
	file_check(&w, a);
	file_check(&w, b);
	fs_check(&w);
	/* Part of a shared file again, at another place of itself. */
	op_copy(&w, b, 4096, b, 1 << 20, 65536);
	file_check(&w, b);
	op_truncate(&w, a, 0);
	op_truncate(&w, b, 0);
	assert_int_equal(keys_of_btree(&w, BTREE_REFLINK), 0);
	fs_check(&w);
	world_close(&w, true);
}

static void sharing_alone_is_refused_where_it_cannot_be(void **state)
{
	struct world w;
	uint64_t seq = 0;

	world_open(&w, 9, 1, "block_size=4k", 4096);
	struct file *a = &w.files[0], *b = &w.files[1];
	struct data_write_target from = target_of(a), to = target_of(b);
	op_write(&w, a, 0, 20000);
	op_write(&w, b, 0, 30000);
	const struct {
		uint64_t from, to, len;
		ssize_t result;
	} cases[] = {
		{ 1, 1, 4096, -EINVAL },  { 0, 1, 4096, -EINVAL },    { 0, 0, 4095, -EINVAL }, { 0, 0, 20001, -EINVAL },
		{ 0, 0, 20000, -EINVAL }, { 0, 12288, 20000, 20000 }, { 4096, 0, 8192, 8192 },
	};
	for (size_t i = 0; i < ARRAY_NR(cases); i++)
		assert_int_equal(data_copy_range(w.fs->data, &from, cases[i].from, &to, cases[i].to, cases[i].len,
						 DATA_COPY_SHARE_ONLY, NULL, &seq),
				 cases[i].result);
	b->size = 32288;
	memcpy(b->bytes + 12288, a->bytes, 20000);
	memcpy(b->bytes, a->bytes + 4096, 8192);
	file_check(&w, b);
	fs_check(&w);
	world_close(&w, true);
}

/* --- in place --- */

/* Where the file's sector @at is on the first device, and with which checksum; 0: nowhere. */
static uint64_t place_of(struct world *w, const struct file *f, uint64_t at, struct extent_ptr_decoded *ptr)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	struct btree_iter it;
	struct bkey_ref k;
	uint64_t sector = 0;

	btree_iter_open(&it, w->fs->trees, BTREE_EXTENTS, BPOS(f->inum, at + 1, SNAPSHOT), 0, SNAPSHOT);
	it.end = BPOS(f->inum, UINT64_MAX, UINT32_MAX);
	if (btree_iter_peek(&it, &k) > 0 && bkey_start_offset(&k.k) <= at &&
	    extent_decode(k, &w->fs->super->kctx, ptrs, NULL, NULL) > 0) {
		*ptr = ptrs[0];
		sector = ptrs[0].ptr.sector + ptrs[0].crc.offset_sectors + (at - bkey_start_offset(&k.k));
	}
	btree_iter_close(&it);
	return sector;
}

static int nocow_set(struct btree_txn *txn, void *ctx)
{
	struct inode inode;
	int err = inode_txn_get(txn, *(uint64_t *)ctx, SNAPSHOT, &inode);

	inode.opts[INODE_OPT_NOCOW] = 2;
	return err ? err : inode_txn_put(txn, &inode);
}

static void what_has_a_checksum_is_written_anew_and_then_in_place(void **state)
{
	struct btree_commit_opts opts = { .name = "test", .watermark = WATERMARK_NORMAL };
	struct extent_ptr_decoded ptr;
	struct world w;

	world_open(&w, 11, 1, "block_size=4k,compression=lz4", 4096);
	struct file *f = &w.files[0], *other = &w.files[1];
	op_write(&w, f, 0, 100000);
	assert_int_equal(btree_txn_run(w.fs->trees, &opts, nocow_set, &f->inum), 0);
	uint64_t first = place_of(&w, f, 16, &ptr);
	assert_true(ptr.crc.csum_type != 0);
	op_write(&w, f, 8192, 4096);
	uint64_t place = place_of(&w, f, 16, &ptr);
	assert_int_not_equal(place, first);
	assert_int_equal(ptr.crc.csum_type, 0);
	assert_int_equal(ptr.crc.compression, COMPRESSION_NONE);
	op_write(&w, f, 8200, 3000);
	assert_int_equal(place_of(&w, f, 16, &ptr), place);
	file_check(&w, f);
	/* Behind the end of the file there must be zeroes, also when the new size gets lost. */
	op_write(&w, f, 98304, 1696);
	place = place_of(&w, f, 192, &ptr);
	op_write(&w, f, 98304, 1696);
	assert_int_equal(place_of(&w, f, 192, &ptr), place);
	op_write(&w, f, 99000, 2000);
	assert_int_not_equal(place_of(&w, f, 192, &ptr), place);
	file_check(&w, f);
	place = place_of(&w, f, 16, &ptr);
	/* What is shared is nobody's to overwrite. */
	op_copy(&w, f, 0, other, 0, 100000);
	op_write(&w, f, 8192, 4096);
	assert_int_not_equal(place_of(&w, f, 16, &ptr), place);
	file_check(&w, f);
	file_check(&w, other);
	fs_check(&w);
	world_close(&w, true);
}

static void promised_space_is_written_in_place(const char *durability, const char *options)
{
	struct extent_ptr_decoded ptr;
	struct world w;

	world_open_on(&w, 12, durability, options, 4096);
	struct file *f = &w.files[0];
	op_allocate(&w, f, 0, 1 << 20, DATA_ALLOCATE_KEEP_SIZE);
	assert_int_equal(keys_of_type(&w, f, KEY_RESERVATION), 0);
	uint64_t place = place_of(&w, f, 64, &ptr);
	assert_true(place && ptr.ptr.is_unwritten);
	op_write(&w, f, 32768, 10000);
	assert_int_equal(place_of(&w, f, 64, &ptr), place);
	assert_false(ptr.ptr.is_unwritten);
	assert_true(place_of(&w, f, 128, &ptr) && ptr.ptr.is_unwritten);
	file_check(&w, f);
	op_truncate(&w, f, 1 << 20);
	file_check(&w, f);
	/* Again and again, in the same place. */
	for (unsigned i = 0; i < 20; i++)
		op_write(&w, f, 1000 * i, 65536);
	assert_int_equal(place_of(&w, f, 64, &ptr), place);
	file_check(&w, f);
	fs_check(&w);
	world_close(&w, true);
}

static void promised_space_is_where_it_is_written(void **state)
{
	promised_space_is_written_in_place("1", "block_size=4k,nocow=1");
}

/* A copy on a cache, which can't be overwritten, would keep the others from being. */
static void nothing_on_a_cache_keeps_data_from_its_place(void **state)
{
	promised_space_is_written_in_place("10", "block_size=4k,nocow=1,foreground_target=early.b");
}

/* On devices that count for two, one place is what two copies are promised. */
static void a_place_that_counts_twice_is_enough(void **state)
{
	struct world w;
	struct extent_ptr_decoded ptr;

	world_open_on(&w, 14, "22", "block_size=4k,data_replicas=2,nocow=1", 4096);
	struct file *f = &w.files[0];
	op_allocate(&w, f, 0, 1 << 20, 0);
	uint64_t place = place_of(&w, f, 64, &ptr);
	assert_true(place && ptr.ptr.is_unwritten);
	op_allocate(&w, f, 0, 1 << 20, 0);
	assert_int_equal(place_of(&w, f, 64, &ptr), place);
	file_check(&w, f);
	fs_check(&w);
	world_close(&w, true);
}

/* --- places of nodes --- */

/* Nothing is left to be written for what was done before. */
static void all_flush(struct world *w)
{
	assert_int_equal(btrees_flush_all(w->fs->trees), 0);
	assert_int_equal(journal_flush(w->fs->journal_writer), 0);
}

static int node_ptr_take(void *ctx, const struct btree_node_info *info, int err)
{
	assert_int_equal(err, 0);
	*(struct btree_ptr *)ctx = info->ptr;
	return 1;
}

/* The place is in the table; *@seq: the entry of the journal behind which it may be written to. */
static bool is_hole(struct allocator *a, const struct extent_ptr *p, uint64_t *seq)
{
	const struct node_holes *t = &a->open.holes;
	bool is_there = false;

	mutex_lock(&a->open.lock);
	for (unsigned i = 0; i < t->nr; i++)
		if (t->v[i].dev == p->dev && t->v[i].sector == p->sector) {
			is_there = true;
			*seq = t->v[i].seq;
		}
	mutex_unlock(&a->open.lock);
	return is_there;
}

/* Is it among the places that are given out now? All that there are are taken, and given back. */
static bool is_given(struct allocator *a, const struct extent_ptr *p)
{
	enum { SLOTS = 64 };
	struct alloc_extent slots[SLOTS];
	uint64_t waiting_seq, nr = 0;
	bool is = false;

	while (!is && nr < SLOTS && node_holes_nr(a, p->dev) &&
	       !node_holes_slot(a, 1ull << p->dev, node_replicas(a), WATERMARK_RECLAIM, &slots[nr], &waiting_seq)) {
		is = slots[nr].ptrs[0].sector == p->sector;
		nr++;
	}
	while (nr)
		node_slot_drop(a, &slots[--nr]);
	return is;
}

/* The place where a node was is what a crash brings back, until its new pointer is durable. */
static void the_place_of_a_replaced_node_waits_for_the_journal(void **state)
{
	struct btree_ptr old, new;
	struct world w;
	uint64_t seq = 0;
	bool was_tried = false;

	world_open(&w, 20, 1, "block_size=4k,btree_node_size=64k", 4096);
	struct allocator *a = w.fs->allocator;
	op_write(&w, &w.files[0], 0, 100000);
	/* Its own clock flushes it, too: perhaps just now. */
	for (unsigned i = 0; i < 100 && !was_tried; i++) {
		all_flush(&w);
		assert_int_equal(btree_nodes_walk(w.fs->trees, BTREE_EXTENTS, node_ptr_take, &old), 1);
		assert_int_equal(btree_node_rewrite(w.fs->trees, BTREE_EXTENTS, 0, SPOS_MAX, NULL), 0);
		do
			assert_int_equal(btree_nodes_walk(w.fs->trees, BTREE_EXTENTS, node_ptr_take, &new), 1);
		while (new.ptrs[0].sector == old.ptrs[0].sector);
		for (unsigned k = 0; k < 1000 && !is_hole(a, &old.ptrs[0], &seq); k++)
			sleep_ns(1000000);
		if (!is_hole(a, &old.ptrs[0], &seq) || journal_seq_flushed(w.fs->journal_writer) >= seq)
			continue;
		bool is = is_given(a, &old.ptrs[0]);
		if (journal_seq_flushed(w.fs->journal_writer) >= seq)
			continue;
		was_tried = true;
		assert_false(is);
	}
	assert_true(was_tried);
	assert_int_equal(journal_flush(w.fs->journal_writer), 0);
	assert_true(is_given(a, &old.ptrs[0]));
	fs_check(&w);
	world_close(&w, true);
}

/* --- cached copies --- */

/* The copies of the file on @dev are cached ones from here on. */
static int copies_cache_txn(struct btree_txn *txn, void *ctx)
{
	const struct world *w = ctx;
	struct btree_iter it;
	struct bkey_ref k;
	int err = 0;

	btree_txn_iter_open(&it, txn, BTREE_EXTENTS, BPOS(w->files[0].inum, 1, SNAPSHOT), 0, SNAPSHOT);
	it.end = BPOS(w->files[0].inum, UINT64_MAX, UINT32_MAX);
	for (; !err && btree_iter_peek(&it, &k) > 0; btree_iter_advance(&it)) {
		struct extent_value v;
		struct key_buf b;

		assert_int_equal(extent_value_load(&v, k, &w->fs->super->kctx), 0);
		for (unsigned i = 0; i < v.ptr_nr; i++)
			v.ptrs[i].ptr.is_cached = v.ptrs[i].ptr.dev == 1;
		key_buf_load(&b, k);
		assert_int_equal(extent_value_store(&v, &b), 0);
		err = btree_txn_put(txn, BTREE_EXTENTS, &b.k, b.value, 0);
	}
	btree_iter_close(&it);
	return err;
}

/* The lowest and the highest time of what is in the read LRU of device 1. */
static void read_times(struct world *w, uint64_t *first, uint64_t *last)
{
	struct btree_iter it;
	struct bkey_ref k;

	*first = *last = 0;
	assert_int_equal(btree_write_buffer_flush(w->fs->trees), 0);
	btree_iter_open(&it, w->fs->trees, BTREE_LRU, bucket_lru_pos(1, 0, 0, 0), BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = bpos_predecessor(bucket_lru_pos(2, 0, 0, 0));
	for (; btree_iter_peek(&it, &k) > 0; btree_iter_advance(&it)) {
		*last = k.k.p.inode & ((1ull << LRU_TIME_BITS) - 1);
		*first = *first ? *first : *last;
	}
	btree_iter_close(&it);
}

static void what_is_read_of_a_cache_is_kept_longer(void **state)
{
	static const struct btree_commit_opts opts = { .name = "test", .watermark = WATERMARK_NORMAL };
	uint64_t first, last, clock, read_first, read_last;
	struct world w;

	world_open(&w, 16, 2, "block_size=4k,data_replicas=2", 4096);
	struct file *f = &w.files[0];
	struct data_file file = { .inum = f->inum, .snapshot = SNAPSHOT, .size_bytes = 1 << 20 };
	op_write(&w, f, 0, 1 << 20);
	assert_int_equal(btree_txn_run(w.fs->trees, &opts, copies_cache_txn, &w), 0);
	write_points_drop(w.fs->allocator, false);
	read_times(&w, &first, &last);
	assert_true(first);
	/* Each is read from both devices, the more often the faster; and much else is. */
	clock = atomic_load(&w.fs->allocator->clock[0]);
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(data_read(w.fs->data, &file, 0, w.buf, 256 << 10, NULL, NULL), 256 << 10);
	assert_true(atomic_load(&w.fs->allocator->clock[0]) >= clock + 100 * (256 << 10) / SECTOR_BYTES);
	assert_int_equal(read_times_put(w.fs->allocator, 0), 0);
	read_times(&w, &read_first, &read_last);
	assert_int_equal(read_first, first);
	assert_true(read_last > clock);
	fs_check(&w);
	world_close(&w, true);
}

/* --- devices that fail --- */

/* The next @times writes of a device: those of data, if all_flush() came before. */
static void writes_fail(struct world *w, unsigned dev, uint64_t times)
{
	struct device_fault fault = {
		.kind = FAULT_ERROR, .op = DEVICE_WRITE, .per_million = 1000000, .err = -EIO, .remaining = times
	};

	assert_int_equal(device_fault_add(w->devices[dev], &fault), 0);
}

/* Extents of the file with only one pointer. */
static unsigned degraded_keys(struct world *w, const struct file *f)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	struct btree_iter it;
	struct bkey_ref k;
	unsigned nr = 0;

	btree_iter_open(&it, w->fs->trees, BTREE_EXTENTS, BPOS(f->inum, 1, SNAPSHOT), 0, SNAPSHOT);
	it.end = BPOS(f->inum, UINT64_MAX, UINT32_MAX);
	while (btree_iter_peek(&it, &k) > 0) {
		nr += k.k.type == KEY_EXTENT && extent_decode(k, &w->fs->super->kctx, ptrs, NULL, NULL) == 1;
		btree_iter_advance(&it);
	}
	btree_iter_close(&it);
	return nr;
}

static void what_one_replica_keeps_is_written(void **state)
{
	struct world w;

	world_open(&w, 2, 2, "block_size=4k,data_replicas=2", 4096);
	struct file *f = &w.files[0];
	op_write(&w, f, 0, 1 << 20);
	all_flush(&w);
	assert_int_equal(degraded_keys(&w, f), 0);
	writes_fail(&w, 1, 1);
	op_write(&w, f, 4096, 256 << 10);
	device_fault_clear(w.devices[1]);
	assert_true(degraded_keys(&w, f) > 0);
	file_check(&w, f);
	world_close(&w, false);
}

/* Copies that were asked for and not written: the write failed, and what was there before is there. */
static void a_write_with_less_copies_than_required_fails(void **state)
{
	struct world w;

	world_open(&w, 4, 2, "block_size=4k,data_replicas=2,data_replicas_required=2", 4096);
	struct file *f = &w.files[0];
	struct data_write_target target = target_of(f);
	uint64_t seq = 0;
	op_write(&w, f, 0, 1 << 20);
	all_flush(&w);
	memset(w.buf, 0x5a, 65536);
	writes_fail(&w, 1, 1);
	assert_int_equal(data_write(w.fs->data, &target, 8192, w.buf, 65536, NULL, &seq), -EIO);
	device_fault_clear(w.devices[1]);
	assert_int_equal(degraded_keys(&w, f), 0);
	file_check(&w, f);
	op_write(&w, f, 8192, 65536);
	file_check(&w, f);
	world_close(&w, true);
}

/* Behind what is used of a node; nothing says that it was written. */
static int node_append(struct world *w, const struct btree_ptr *p, unsigned *failed)
{
	return fs_node_write(w->fs, p, w->buf, (size_t)p->sectors_written << SECTOR_SHIFT, 4096, failed);
}

static void a_node_with_less_copies_than_required_is_not_written(void **state)
{
	static const char *const options[] = { "block_size=4k,metadata_replicas=2",
					       "block_size=4k,metadata_replicas=2,metadata_replicas_required=2" };

	for (unsigned i = 0; i < ARRAY_NR(options); i++) {
		struct btree_ptr p;
		struct world w;
		unsigned failed;

		world_open(&w, 4, 2, options[i], 4096);
		all_flush(&w);
		assert_int_equal(btree_nodes_walk(w.fs->trees, BTREE_INODES, node_ptr_take, &p), 1);
		assert_int_equal(p.ptr_nr, 2);
		assert_int_equal(node_append(&w, &p, &failed), 0);
		assert_int_equal(failed, 0);
		writes_fail(&w, p.ptrs[1].dev, 1);
		assert_int_equal(node_append(&w, &p, &failed), i ? -EIO : 0);
		assert_int_equal(failed, 2);
		p.ptr_nr = 1; /* it had one copy before */
		assert_int_equal(node_append(&w, &p, &failed), 0);
		device_fault_clear(w.devices[p.ptrs[1].dev]);
		world_close(&w, true);
	}
}

/* Whatever ends a write on the way: what was written is a write, with the times and without the privileges. */
static void a_write_that_ends_early_is_a_write(void **state)
{
	struct world w;
	struct inode inode;
	unsigned ended_early = 0;

	for (unsigned good = 1; good < 3; good++) {
		struct device_fault pass = { .kind = FAULT_LATENCY,
					     .op = DEVICE_WRITE,
					     .per_million = 1000000,
					     .latency_ns = 1,
					     .remaining = good };
		struct data_write_times times = { .is_set = true, .mtime = good, .ctime = good, .clear_setid = true };
		uint64_t seq = 0;

		world_open(&w, 14, 1, "block_size=4k", 4096);
		struct data_write_target file = target_of(&w.files[0]);
		/* With the first data the superblock is written: that isn't to be what fails. */
		op_write(&w, &w.files[1], 0, 4096);
		all_flush(&w);
		memset(w.buf, 0x5a, FILE_BYTES_MAX);
		assert_int_equal(device_fault_add(w.devices[0], &pass), 0);
		writes_fail(&w, 0, 1);
		ssize_t n = data_write(w.fs->data, &file, 0, w.buf, FILE_BYTES_MAX, &times, &seq);
		device_fault_clear(w.devices[0]);
		ended_early += n > 0 && n < FILE_BYTES_MAX;
		if (n > 0) {
			inode_of(&w, &w.files[0], &inode);
			assert_int_equal(inode.mtime, good);
			assert_int_equal(inode.mode & 06000, 0);
		}
		world_close(&w, false);
	}
	assert_true(ended_early > 0);
}

static void what_one_replica_takes_in_place_is_written_elsewhere(void **state)
{
	struct world w;

	world_open(&w, 13, 2, "block_size=4k,data_replicas=2,nocow=1", 4096);
	struct file *f = &w.files[0];
	op_write(&w, f, 0, 1 << 20);
	all_flush(&w);
	writes_fail(&w, 1, 1);
	op_write(&w, f, 4096, 65536);
	device_fault_clear(w.devices[1]);
	for (unsigned i = 0; i < 8; i++)
		file_check(&w, f);
	assert_int_equal(degraded_keys(&w, f), 0);
	fs_check(&w);
	world_close(&w, false);
}

static void requests_fail(struct world *w, unsigned dev, enum device_op op)
{
	struct device_fault fault = {
		.kind = FAULT_ERROR, .op = op, .per_million = 1000000, .err = -EIO, .remaining = UINT64_MAX
	};

	assert_int_equal(device_fault_add(w->devices[dev], &fault), 0);
}

/* Enough for btrees to grow, with nodes that are new, and others that are appended to. */
static void write_pieces(struct world *w, struct file *f)
{
	for (unsigned i = 0; i < 400; i++)
		op_write(w, f, (uint64_t)i * 4096, 2048);
	assert_int_equal(journal_flush(w->fs->journal_writer), 0);
}

static void a_device_that_takes_no_writes_is_survived(void **state)
{
	struct world w;

	world_open(&w, 5, 2, "block_size=512,btree_node_size=4k,metadata_replicas=2,data_replicas=2", 512);
	write_pieces(&w, &w.files[0]);
	requests_fail(&w, 1, DEVICE_WRITE);
	write_pieces(&w, &w.files[1]);
	write_pieces(&w, &w.files[0]);
	assert_int_equal(btrees_flush_all(w.fs->trees), 0);
	assert_int_equal(w.fs->shut_down, 0);
	device_fault_clear(w.devices[1]);
	write_pieces(&w, &w.files[2]);
	for (unsigned i = 0; i < FILES; i++)
		file_check(&w, &w.files[i]);
	/* Its superblocks missed updates. */
	assert_int_equal(super_update(w.fs->super), 0);
	fs_check(&w);
	struct member member;
	sb_member(w.fs->super->sb, 1, &member);
	assert_true(member.errors[1] > 0);
	world_close(&w, true);
}

/* The sectors stay bad for all one knows: copies that could be read are made of it elsewhere, and the member's errors
 * counted. */
static void what_cannot_be_read_is_copied_to_another_place(void **state)
{
	enum { TIMES = 5 };
	struct device_fault fault = {
		.kind = FAULT_ERROR, .op = DEVICE_READ, .per_million = 1000000, .err = -EIO, .remaining = TIMES
	};
	struct data_repair_stats stats;
	struct member member;
	struct world w;

	(void)state;
	world_open(&w, 21, 2, "block_size=4k,metadata_replicas=2,data_replicas=2", 4096);
	struct file *f = &w.files[0];
	op_write(&w, f, 0, 900 << 10);
	all_flush(&w);
	assert_int_equal(super_update(w.fs->super), 0);
	sb_member(w.fs->super->sb, 1, &member);
	uint64_t before = member.errors[0];
	assert_int_equal(device_fault_add(w.devices[1], &fault), 0);
	uint64_t faults[FAULT_KIND_NR] = { 0 };
	for (unsigned i = 0; i < 1000 && faults[FAULT_ERROR] < TIMES; i++) {
		file_check(&w, f);
		device_fault_counts(w.devices[1], faults);
	}
	data_repair_wait(w.fs->data);
	data_repair_stats(w.fs->data, &stats);
	assert_int_equal(faults[FAULT_ERROR], TIMES);
	assert_true(stats.extents > 0 && stats.extents <= TIMES);
	assert_int_equal(stats.failed, 0);
	assert_int_equal(degraded_keys(&w, f), 0);
	file_check(&w, f);
	fs_check(&w);
	assert_int_equal(super_update(w.fs->super), 0);
	sb_member(w.fs->super->sb, 1, &member);
	assert_int_equal(member.errors[0], before + TIMES);
	world_close(&w, true);
}

static void a_device_whose_cache_fails_is_left(void **state)
{
	static const enum device_op also[] = { DEVICE_FLUSH, DEVICE_WRITE, DEVICE_READ };

	for (unsigned i = 0; i < ARRAY_NR(also); i++) {
		struct world w;

		world_open(&w, 6, 2, "block_size=512,btree_node_size=4k,metadata_replicas=2,data_replicas=2", 512);
		write_pieces(&w, &w.files[0]);
		requests_fail(&w, 1, DEVICE_FLUSH);
		requests_fail(&w, 1, also[i]);
		write_pieces(&w, &w.files[0]);
		write_pieces(&w, &w.files[1]);
		assert_int_equal(w.fs->super->members[1].m.state, MEMBER_FAILED);
		assert_true(degraded_keys(&w, &w.files[1]) > 0);
		for (unsigned k = 0; k < FILES; k++)
			file_check(&w, &w.files[k]);
		if (also[i] != DEVICE_READ)
			fs_check(&w);
		world_close(&w, true);
	}
}

/* One copy, or more metadata copies required than devices are left: nothing is promised any more. */
static void a_device_that_is_needed_is_not_left(void **state)
{
	static const char *const options[] = {
		"block_size=4k,metadata_replicas=2",
		"block_size=4k,metadata_replicas=2,data_replicas=2,metadata_replicas_required=2"
	};

	for (unsigned i = 0; i < ARRAY_NR(options); i++) {
		struct world w;

		world_open(&w, 7, 2, options[i], 4096);
		write_pieces(&w, &w.files[0]);
		requests_fail(&w, 1, DEVICE_FLUSH);
		op_write(&w, &w.files[0], 0, 4096);
		assert_int_equal(journal_flush(w.fs->journal_writer), -EIO);
		assert_int_equal(w.fs->super->members[1].m.state, MEMBER_RW);
		world_close(&w, false);
	}
}

static void report_keep(void *ctx, const struct kiln_report *report)
{
	if (strstr(report->text, "copies written"))
		snprintf(ctx, KILN_ERROR_BYTES, "%d %s", (int)report->level, report->text);
}

/* Of a node, as what one device doesn't take: which one, and how many copies there are. */
static void copies_of_nodes_that_fail_are_told(void **state)
{
	static const struct {
		const char *options, *copies;
		bool fails;
		enum kiln_report_level level;
	} rows[] = {
		{ "metadata_replicas=2,data_replicas=2",
		  ": expected 2 copies written, found 1: not on memory-b (EIO). Writing goes on with these", false,
		  KILN_REPORT_RECOVERED },
		{ "metadata_replicas=2,data_replicas=2,metadata_replicas_required=2",
		  "found 1: not on memory-b (EIO). That is less", true, KILN_REPORT_DAMAGE },
	};

	for (unsigned i = 0; i < ARRAY_NR(rows); i++) {
		struct world w;
		char text[KILN_ERROR_BYTES] = "";

		world_open(&w, 8, 2, rows[i].options, 4096);
		write_pieces(&w, &w.files[0]);
		assert_int_equal(journal_flush(w.fs->journal_writer), 0);
		w.fs->reporter.ctx = text;
		w.fs->reporter.user_report = report_keep;
		requests_fail(&w, 1, DEVICE_WRITE);
		assert_int_equal(btrees_flush_all(w.fs->trees) != 0, rows[i].fails);
		w.fs->reporter.user_report = NULL;
		device_fault_clear(w.devices[1]);
		if (!strstr(text, rows[i].copies) || text[0] != '0' + (int)rows[i].level)
			fail_msg("%s: told was \"%s\"", rows[i].options, text);
		world_close(&w, false);
	}
}

static void a_failed_write_leaves_what_was_there(void **state)
{
	struct world w;

	world_open(&w, 3, 1, "block_size=4k", 4096);
	struct file *f = &w.files[0];
	struct data_write_target target = target_of(f);
	uint64_t seq = 0;
	op_write(&w, f, 0, 100000);
	memset(w.buf, 0x5a, 65536);
	all_flush(&w);
	writes_fail(&w, 0, 1);
	assert_int_equal(data_write(w.fs->data, &target, 8192, w.buf, 65536, NULL, &seq), -EIO);
	device_fault_clear(w.devices[0]);
	file_check(&w, f);
	op_write(&w, f, 8192, 65536);
	file_check(&w, f);
	world_close(&w, false);
}

/* All that the file has on the devices @devs gets new copies elsewhere. 0 or what the mover says. */
static int file_move_from(struct world *w, const struct file *f, uint32_t devs, bool is_form_kept,
			  struct data_move_stats *stats)
{
	struct data_mover *m = data_mover_new(w->fs->data, &w->fs->data->writes);
	struct data_move move = { .watermark = WATERMARK_COPYGC,
				  .is_to_background = true,
				  .is_form_kept = is_form_kept };
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	struct btree_iter it;
	struct bkey_ref k;

	assert_non_null(m);
	data_mover_begin(m);
	btree_iter_open(&it, w->fs->trees, BTREE_EXTENTS, BPOS(f->inum, 1, SNAPSHOT), 0, SNAPSHOT);
	it.end = BPOS(f->inum, UINT64_MAX, UINT32_MAX);
	for (; btree_iter_peek(&it, &k) > 0; btree_iter_advance(&it)) {
		if (k.k.type != KEY_EXTENT)
			continue;
		move.rewrite = 0;
		for (int i = extent_decode(k, &w->fs->super->kctx, ptrs, NULL, NULL); i-- > 0;)
			move.rewrite |= (devs >> ptrs[i].ptr.dev & 1) << i;
		assert_int_equal(data_mover_add(m, BTREE_EXTENTS, k, &move), 0);
	}
	btree_iter_close(&it);
	int err = data_mover_run(m, stats);
	data_mover_free(m);
	return err;
}

static void file_move(struct world *w, const struct file *f, bool is_form_kept, struct data_move_stats *stats)
{
	assert_int_equal(file_move_from(w, f, UINT32_MAX, is_form_kept, stats), 0);
}

/* Only the journal knows that it was moved: without that the old place would be read after a crash. */
static void what_is_overwritten_where_it_was_moved_to_is_durable(void **state)
{
	struct data_move_stats stats = { 0 };
	struct extent_ptr_decoded ptr;
	struct world w;

	(void)state;
	world_open(&w, 18, 1, "block_size=4k,nocow=1", 4096);
	struct file *f = &w.files[0];
	struct journal *j = w.fs->journal_writer;
	op_write(&w, f, 0, 64 << 10);
	all_flush(&w);
	uint64_t first = place_of(&w, f, 0, &ptr), seq = journal_seq_flushed(j);
	file_move(&w, f, true, &stats);
	uint64_t place = place_of(&w, f, 0, &ptr);
	assert_true(place && place != first);
	/* Without times: the inode doesn't change. */
	struct data_write_target target = target_of(f);
	uint64_t write_seq = 0;

	bytes_make(&w, f->bytes, 4096);
	assert_int_equal(data_write(w.fs->data, &target, 0, f->bytes, 4096, NULL, &write_seq), 4096);
	assert_int_equal(place_of(&w, f, 0, &ptr), place);
	assert_true(data_in_place_seq(w.fs->data, f->inum) > seq);
	assert_int_equal(kiln_fsync(w.fs, (struct kiln_node){ .ino = f->inum, .subvol = 1 }), 0);
	assert_true(journal_seq_flushed(j) > seq);
	file_check(&w, f);
	world_close(&w, true);
}

static void what_one_device_does_not_take_is_moved_to_others(void **state)
{
	struct data_move_stats stats = { 0 };
	uint64_t faults[FAULT_KIND_NR];
	struct world w;

	world_open(&w, 15, 3, "block_size=4k,metadata_replicas=2", 4096);
	struct file *f = &w.files[0];
	op_write(&w, f, 0, 900 << 10);
	all_flush(&w);
	writes_fail(&w, 1, 1);
	file_move(&w, f, true, &stats);
	device_fault_counts(w.devices[1], faults);
	assert_int_equal(faults[FAULT_ERROR], 1);
	device_fault_clear(w.devices[1]);
	assert_true(stats.keys_moved > 0);
	assert_int_equal(stats.keys_failed, 0);
	assert_int_equal(stats.keys_changed, 0);
	assert_int_equal(stats.sectors_written, f->size / SECTOR_BYTES);
	file_check(&w, f);
	fs_check(&w);
	world_close(&w, true);
}

/* What lies behind one another is read together, but only what is bad of it stays. */
static void what_cannot_be_read_does_not_keep_its_neighbours(void **state)
{
	struct device_fault fault = {
		.kind = FAULT_ERROR, .op = DEVICE_READ, .per_million = 1000000, .err = -EIO, .remaining = UINT64_MAX
	};
	struct data_move_stats stats = { 0 };
	struct extent_ptr_decoded ptr;
	struct world w;

	(void)state;
	world_open(&w, 26, 1, "block_size=4k", 4096);
	struct file *f = &w.files[0];
	op_write(&w, f, 0, 256 << 10);
	all_flush(&w);
	fault.begin_bytes = place_of(&w, f, (128 << 10) / SECTOR_BYTES, &ptr) << SECTOR_SHIFT;
	fault.end_bytes = fault.begin_bytes + SECTOR_BYTES;
	assert_int_equal(device_fault_add(w.devices[0], &fault), 0);
	unsigned keys = keys_of_type(&w, f, KEY_EXTENT);
	assert_int_equal(file_move_from(&w, f, 1, true, &stats), -EIO);
	assert_int_equal(stats.keys_failed, 1);
	assert_int_equal(stats.keys_moved, keys - 1);
	device_fault_clear(w.devices[0]);
	file_check(&w, f);
	fs_check(&w);
	world_close(&w, true);
}

/* Copygc takes backpointers by the batch: one of which nothing can be read keeps it from none of the others. */
static void copygc_goes_on_behind_bad_sectors(void **state)
{
	enum { BUCKET_BLOCKS = 512, BAD_BLOCKS = 150, GONE_BLOCKS = 300 };
	struct device_fault fault = {
		.kind = FAULT_ERROR, .op = DEVICE_READ, .per_million = 1000000, .err = -EIO, .remaining = UINT64_MAX
	};
	struct copygc_stats stats = { 0 };
	struct extent_ptr_decoded ptr;
	struct world w;
	unsigned left = 0;

	(void)state;
	world_open(&w, 27, 1, "block_size=512", 512);
	struct file *f = &w.files[0];
	/* Every other block, as then none can be merged. Two buckets that are theirs alone are emptied in part. */
	for (uint64_t i = 0; i < 4 * BUCKET_BLOCKS; i++)
		op_write(&w, f, 2 * i * 512, 512);
	uint64_t first = 0, begin;
	do
		begin = place_of(&w, f, 2 * ++first, &ptr);
	while (begin % BUCKET_BLOCKS);
	for (uint64_t i = 1; i <= GONE_BLOCKS; i++) {
		op_punch(&w, f, 2 * (first + BUCKET_BLOCKS - i) * 512, 512);
		op_punch(&w, f, 2 * (first + 2 * BUCKET_BLOCKS - i) * 512, 512);
	}
	all_flush(&w);
	fault.begin_bytes = begin << SECTOR_SHIFT;
	fault.end_bytes = (begin + BAD_BLOCKS) << SECTOR_SHIFT;
	assert_int_equal(device_fault_add(w.devices[0], &fault), 0);
	copygc_set_eager(w.fs->data);
	for (unsigned i = 0; i < 1000 && !stats.buckets_left_alone; i++) {
		op_write(&w, &w.files[1], 0, 256 << 10);
		usleep(1000);
		copygc_stats(w.fs->data, &stats);
	}
	assert_int_equal(stats.buckets_left_alone, 1);
	for (uint64_t i = 0; i < BUCKET_BLOCKS - GONE_BLOCKS; i++)
		left += place_of(&w, f, 2 * (first + i), &ptr) / BUCKET_BLOCKS == begin / BUCKET_BLOCKS;
	assert_int_equal(left, BAD_BLOCKS);
	device_fault_clear(w.devices[0]);
	file_check(&w, f);
	fs_check(&w);
	world_close(&w, true);
}

/* --- bad sectors of what has no checksum --- */

/* Reading @sectors of the file, from @at on, from the copy that pointer @ptr leads to fails from now on. */
static void copy_fails(struct world *w, const struct file *f, uint64_t at, uint64_t sectors, unsigned ptr)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	struct device_fault fault = {
		.kind = FAULT_ERROR, .op = DEVICE_READ, .per_million = 1000000, .err = -EIO, .remaining = UINT64_MAX
	};
	struct btree_iter it;
	struct bkey_ref k;

	btree_iter_open(&it, w->fs->trees, BTREE_EXTENTS, BPOS(f->inum, at + 1, SNAPSHOT), 0, SNAPSHOT);
	assert_int_equal(btree_iter_peek(&it, &k), 1);
	assert_true(extent_decode(k, &w->fs->super->kctx, ptrs, NULL, NULL) > (int)ptr);
	assert_true(bkey_start_offset(&k.k) <= at && at + sectors <= k.k.p.offset);
	fault.begin_bytes = (ptrs[ptr].ptr.sector + ptrs[ptr].crc.offset_sectors + at - bkey_start_offset(&k.k))
			    << SECTOR_SHIFT;
	fault.end_bytes = fault.begin_bytes + (sectors << SECTOR_SHIFT);
	btree_iter_close(&it);
	assert_int_equal(device_fault_add(w->devices[ptrs[ptr].ptr.dev], &fault), 0);
}

/* Reads of all copies of the file's data that fail. That it looked has no bearing on which copies others read. */
static unsigned bad_reads(struct world *w, const struct file *f)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	struct btree_iter it;
	struct bkey_ref k;
	unsigned nr = 0;

	btree_iter_open(&it, w->fs->trees, BTREE_EXTENTS, BPOS(f->inum, 1, SNAPSHOT), 0, SNAPSHOT);
	it.end = BPOS(f->inum, UINT64_MAX, UINT32_MAX);
	for (; btree_iter_peek(&it, &k) > 0; btree_iter_advance(&it))
		for (int i = extent_decode(k, &w->fs->super->kctx, ptrs, NULL, NULL); i-- > 0;)
			nr += device_read(w->devices[ptrs[i].ptr.dev],
					  (ptrs[i].ptr.sector + ptrs[i].crc.offset_sectors) << SECTOR_SHIFT, w->buf,
					  (size_t)k.k.size << SECTOR_SHIFT) != 0;
	btree_iter_close(&it);
	for (unsigned i = 0; i < w->dev_nr; i++)
		device_read_latency_forget(w->devices[i]);
	return nr;
}

/* Each copy lacks another sector: reads take each from the other, and so does whoever replaces them. */
static void copies_that_lack_different_sectors_make_good_ones(void **state)
{
	struct data_repair_stats stats;
	struct world w;
	unsigned reads = 0;

	(void)state;
	world_open(&w, test_seed(), 2, "block_size=4k,data_checksum=none,metadata_replicas=2,data_replicas=2", 4096);
	struct file *f = &w.files[0];
	op_write(&w, f, 0, 900 << 10);
	all_flush(&w);
	for (uint64_t at = 64; at < (900 << 10) / SECTOR_BYTES - 128; at += 512)
		for (unsigned ptr = 0; ptr < 2; ptr++)
			copy_fails(&w, f, at + ptr * 64, 1, ptr);
	assert_true(bad_reads(&w, f) >= 4);
	for (; bad_reads(&w, f) && reads < 100; reads++) {
		file_check(&w, f);
		data_repair_wait(w.fs->data);
	}
	print_message("good after %u reads\n", reads);
	assert_int_equal(bad_reads(&w, f), 0);
	data_repair_stats(w.fs->data, &stats);
	assert_int_equal(stats.failed, 0);
	assert_int_equal(degraded_keys(&w, f), 0);
	file_check(&w, f);
	fs_check(&w);
	world_close(&w, true);
}

/* What is bad behind the first MiB of a long key is made good like what is bad in it. */
static void all_of_a_long_key_is_repaired(void **state)
{
	struct data_repair_stats stats;
	struct world w;

	(void)state;
	world_open_with(&w, 5, "11", "block_size=4k,data_checksum=none,metadata_replicas=2,data_replicas=2", 4096,
			4 << 20);
	struct file *f = &w.files[0];
	op_write(&w, f, 0, 3 << 20);
	all_flush(&w);
	copy_fails(&w, f, 5008, 8, 0);
	for (unsigned reads = 0; bad_reads(&w, f) && reads < 100; reads++) {
		file_check(&w, f);
		data_repair_wait(w.fs->data);
		data_repair_stats(w.fs->data, &stats);
		/* Whoever meets it mends it. */
		assert_int_equal(stats.found != 0, !bad_reads(&w, f));
	}
	assert_int_equal(bad_reads(&w, f), 0);
	assert_int_equal(stats.extents, 1);
	assert_int_equal(stats.failed, 0);
	world_close(&w, true);
}

/* All copies of what the file has in [@begin, @end) are moved. What the mover said last. */
static int range_move(struct world *w, const struct file *f, uint64_t begin, uint64_t end)
{
	struct data_mover *m = data_mover_new(w->fs->data, &w->fs->data->writes);
	struct data_move move = { .watermark = WATERMARK_COPYGC, .rewrite = 3, .is_to_background = true };
	struct data_move_stats stats = { 0 };
	struct bkey_copy copy;
	int err = 0;

	assert_non_null(m);
	while (begin < end) {
		struct btree_iter it;
		struct bkey_ref k;

		data_mover_begin(m);
		btree_iter_open(&it, w->fs->trees, BTREE_EXTENTS, BPOS(f->inum, begin + 1, SNAPSHOT), 0, SNAPSHOT);
		assert_int_equal(btree_iter_peek(&it, &k), 1);
		struct bpos pos = k.k.p;
		btree_iter_close(&it);
		assert_int_equal(btree_lookup(w->fs->trees, BTREE_EXTENTS, pos, &copy), 1);
		int added = data_mover_add(m, BTREE_EXTENTS, copy.k, &move);
		assert_true(added == 0 || added == 1);
		assert_int_equal(added, copy.k.k.size > 2048);
		int move_err = data_mover_run(m, &stats);
		err = err ? err : move_err;
		begin = added ? bkey_start_offset(&copy.k.k) + 2048 : copy.k.k.p.offset;
	}
	data_mover_free(m);
	return err;
}

/*
 * What can be read is moved, in pieces of a MiB at most; what no copy gives stays where it is, and is there again when
 * the device gives it.
 */
static void what_no_copy_gives_stays_alone(void **state)
{
	enum { BYTES = 5 << 19, SECTORS = BYTES / SECTOR_BYTES };
	static const uint64_t bad[] = { 0, 800, 808, 2056, SECTORS - 8 }; /* blocks */
	static const char *const options[] = { "", ",background_compression=lz4" };

	(void)state;
	for (unsigned replicas = 1; replicas <= 2; replicas++)
		for (unsigned o = 0; o < ARRAY_NR(options); o++) {
			struct extent_ptr_decoded ptr;
			char text[160];
			uint64_t was[SECTORS / 8];
			struct world w;

			snprintf(text, sizeof(text), "block_size=4k,data_checksum=none,data_replicas=%u%s", replicas,
				 options[o]);
			world_open_with(&w, 31, &"11"[2 - replicas], text, 4096, 4 << 20);
			struct file *f = &w.files[0];
			op_write(&w, f, 0, BYTES);
			all_flush(&w);
			for (unsigned i = 0; i < SECTORS / 8; i++)
				was[i] = place_of(&w, f, i * 8, &ptr);
			for (unsigned i = 0; i < ARRAY_NR(bad); i++)
				for (unsigned r = 0; r < replicas; r++)
					copy_fails(&w, f, bad[i] + 3, 1, r);
			assert_int_equal(range_move(&w, f, 0, SECTORS), -EIO);
			for (unsigned i = 0; i < SECTORS / 8; i++) {
				bool is_bad = false;

				for (unsigned k = 0; k < ARRAY_NR(bad); k++)
					is_bad |= i * 8 == bad[k];
				assert_int_equal(place_of(&w, f, i * 8, &ptr) == was[i], is_bad);
			}
			for (unsigned i = 0; i < w.dev_nr; i++)
				device_fault_clear(w.devices[i]);
			file_check(&w, f);
			fs_check(&w);
			world_close(&w, true);
		}
}

/* As a read that meets it. */
static void rot_that_a_move_meets_is_counted(void **state)
{
	struct device_fault fault = {
		.kind = FAULT_BITFLIP, .op = DEVICE_READ, .per_million = 1000000, .remaining = 1
	};
	struct data_move_stats stats = { 0 };
	struct member member;
	struct world w;

	(void)state;
	world_open(&w, 27, 2, "block_size=4k,metadata_replicas=2,data_replicas=2", 4096);
	struct file *f = &w.files[0];
	op_write(&w, f, 0, 256 << 10);
	all_flush(&w);
	sb_member(w.fs->super->sb, 1, &member);
	uint64_t before = member.errors[2];
	assert_int_equal(device_fault_add(w.devices[1], &fault), 0);
	assert_int_equal(file_move_from(&w, f, 2, true, &stats), 0);
	assert_int_equal(stats.keys_failed, 0);
	file_check(&w, f);
	assert_int_equal(super_update(w.fs->super), 0);
	sb_member(w.fs->super->sb, 1, &member);
	assert_int_equal(member.errors[2], before + 1);
	world_close(&w, true);
}

/* Each key of the file has @nr copies, one on each device of @on, and none on those of @not_on. */
static void copies_check(struct world *w, const struct file *f, int nr, uint32_t on, uint32_t not_on)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	struct btree_iter it;
	struct bkey_ref k;

	btree_iter_open(&it, w->fs->trees, BTREE_EXTENTS, BPOS(f->inum, 1, SNAPSHOT), 0, SNAPSHOT);
	it.end = BPOS(f->inum, UINT64_MAX, UINT32_MAX);
	for (; btree_iter_peek(&it, &k) > 0; btree_iter_advance(&it)) {
		uint32_t devs = 0;

		assert_int_equal(extent_decode(k, &w->fs->super->kctx, ptrs, NULL, NULL), nr);
		for (int i = 0; i < nr; i++)
			devs |= 1u << ptrs[i].ptr.dev;
		assert_int_equal(devs & (on | not_on), on);
	}
	btree_iter_close(&it);
}

/*
 * Moved from a disk that counts twice to others: as many copies as are asked for by now, but no more than there were,
 * and one even where others are enough, which nobody has read. What is on a failed disk counts for nothing.
 */
static void what_counts_twice_is_moved_to_as_many_as_are_asked_for(void **state)
{
	enum { A = 1, B = 2 };
	static const struct {
		const char *options;
		uint32_t on;
		unsigned asked;
		int made;
		bool has_b_failed;
	} rows[] = {
		{ "data_replicas=1,foreground_target=early.a,background_target=late", A, 1, 1 },
		{ "data_replicas=1,foreground_target=early.a,background_target=late", A, 2, 2 },
		{ "data_replicas=2,foreground_target=early.a,background_target=late", A, 3, 2 },
		{ "data_replicas=2,foreground_target=early.a,background_target=late", A, 1, 1 },
		{ "data_replicas=3,foreground_target=early,background_target=late", A | B, 3, 2 },
		{ "data_replicas=3,foreground_target=early,background_target=late", A | B, 2, 1 },
		{ "data_replicas=3,foreground_target=early,background_target=late", A | B, 2, 2, true },
		{ "data_replicas=3,foreground_target=early,background_target=late", A | B, 1, 1 },
	};

	for (unsigned i = 0; i < ARRAY_NR(rows); i++) {
		struct data_move_stats stats = { 0 };
		int kept = rows[i].on & B ? 1 : 0;
		struct world w;

		world_open_on(&w, 22, "2111", rows[i].options, 4096);
		struct file *f = &w.files[0];
		op_write(&w, f, 0, 900 << 10);
		all_flush(&w);
		copies_check(&w, f, 1 + kept, rows[i].on, 0);
		assert_int_equal(super_option_set(w.fs->super, OPT_DATA_REPLICAS, rows[i].asked), 0);
		w.fs->super->members[1].m.state = rows[i].has_b_failed ? MEMBER_FAILED : MEMBER_RW;
		assert_int_equal(file_move_from(&w, f, A, true, &stats), 0);
		w.fs->super->members[1].m.state = MEMBER_RW;
		assert_int_equal(stats.keys_failed, 0);
		copies_check(&w, f, rows[i].made + kept, rows[i].on & B, A);
		assert_int_equal(stats.sectors_written, (uint64_t)rows[i].made * f->size / SECTOR_BYTES);
		file_check(&w, f);
		fs_check(&w);
		world_close(&w, true);
	}
}

/* Options changed since it was written: what is moved in a hurry goes where it is to be, and says what it still lacks.
 */
static void what_is_moved_says_what_it_lacks(void **state)
{
	struct data_move_stats stats = { 0 };
	unsigned rebalance_nr, nr;
	uint64_t stored;
	struct world w;

	world_open(&w, 17, 2, "block_size=4k", 4096);
	struct file *f = &w.files[0];
	op_write(&w, f, 0, 900 << 10);
	for (unsigned i = 0; i < 2; i++) {
		uint16_t target = (uint16_t)(TARGET_DEVICE_FIRST + i);

		assert_int_equal(super_option_set(w.fs->super, OPT_BACKGROUND_TARGET, target), 0);
		assert_int_equal(super_option_set(w.fs->super, OPT_BACKGROUND_COMPRESSION, i ? 0 : 1), 0);
		file_move(&w, f, true, &stats);
		nr = keys_of_compression(&w, f, COMPRESSION_NONE, &stored, &rebalance_nr);
		assert_true(nr > 0);
		assert_int_equal(rebalance_nr, i ? 0 : nr);
		assert_int_equal(btrees_flush_all(w.fs->trees), 0);
		assert_int_equal(keys_of_btree(&w, BTREE_REBALANCE_WORK), rebalance_nr);
		for (uint64_t at = 0; at < f->size / SECTOR_BYTES; at += 8) {
			struct extent_ptr_decoded ptr;

			assert_true(place_of(&w, f, at, &ptr));
			assert_int_equal(ptr.ptr.dev, i);
		}
		file_check(&w, f);
		fs_check(&w);
	}
	world_close(&w, true);
}

/* When there is time, it is stored as they ask by now: compressed, compressed otherwise, checksummed otherwise. */
static void what_is_moved_is_stored_as_is_asked_by_now(void **state)
{
	static const struct {
		uint64_t compression, csum;
		unsigned type, csum_type;
	} kinds[] = {
		{ 1, 1, COMPRESSION_LZ4, CHECKSUM_CRC32C },
		{ 0, 0, COMPRESSION_LZ4, CHECKSUM_CRC32C }, /* nothing is asked that isn't so */
		{ 3, 2, COMPRESSION_ZSTD, CHECKSUM_CRC64 },
		{ 1, 1, COMPRESSION_INCOMPRESSIBLE, CHECKSUM_CRC32C },
		{ 0, 2, COMPRESSION_INCOMPRESSIBLE, CHECKSUM_CRC64 },
		{ 0, 0, COMPRESSION_INCOMPRESSIBLE, CHECKSUM_NONE },
	};
	enum { BYTES = 256 << 10 };
	struct data_move_stats stats = { 0 };
	unsigned rebalance_nr;
	uint64_t stored;
	struct world w;

	world_open(&w, 20, 1, "block_size=4k", 4096);
	struct file *f = &w.files[0];
	write_of_kind(&w, f, BYTES, 1);
	for (unsigned i = 0; i < ARRAY_NR(kinds); i++) {
		bool is_compressed = i < 3;
		struct extent_ptr_decoded ptr;

		if (i == 3)
			write_of_kind(&w, f, BYTES, 0xff);
		assert_int_equal(super_option_set(w.fs->super, OPT_BACKGROUND_COMPRESSION, kinds[i].compression), 0);
		assert_int_equal(super_option_set(w.fs->super, OPT_DATA_CHECKSUM, kinds[i].csum), 0);
		file_move(&w, f, false, &stats);
		assert_int_equal(stats.keys_failed, 0);
		/* What can be is put together. */
		assert_int_equal(keys_of_compression(&w, f, kinds[i].type, &stored, &rebalance_nr),
				 kinds[i].csum_type ? 4 : 1);
		assert_true(is_compressed ? stored < BYTES / 4 * 3 : stored == BYTES);
		assert_int_equal(rebalance_nr, 0);
		for (uint64_t at = 0; at < f->size / SECTOR_BYTES; at += 128) {
			assert_true(place_of(&w, f, at, &ptr));
			assert_int_equal(ptr.crc.csum_type, kinds[i].csum_type);
		}
		assert_int_equal(btrees_flush_all(w.fs->trees), 0);
		assert_int_equal(keys_of_btree(&w, BTREE_REBALANCE_WORK), 0);
		file_check(&w, f);
		fs_check(&w);
	}
	world_close(&w, true);
}

/* What a batch becomes on the way takes more memory than there is at a time: it is written, and put, in rounds. */
static void a_batch_that_takes_much_memory_is_moved_in_rounds(void **state)
{
	static const char *const options[] = { "block_size=4k,compression=lz4,background_compression=zstd",
					       "block_size=4k,compression=lz4,background_compression=zstd,"
					       "encoded_extent_max=1M" };

	(void)state;
	for (unsigned i = 0; i < ARRAY_NR(options); i++) {
		struct data_move_stats stats = { 0 };
		unsigned rebalance_nr;
		uint64_t stored;
		struct world w;

		world_open(&w, 34, 1, options[i], 4096);
		struct file *f = &w.files[0];
		struct data_write_target target = target_of(f);
		uint64_t seq = 0;
		for (size_t at = 0; at < FILE_BYTES_MAX; at++)
			f->bytes[at] = at % 4096 < 1024 ? rng_u64(&w.rng) & 3 : 0;
		f->size = FILE_BYTES_MAX;
		assert_int_equal(data_write(w.fs->data, &target, 0, f->bytes, f->size, NULL, &seq), f->size);
		unsigned keys = keys_of_type(&w, f, KEY_EXTENT);
		uint64_t regions_bytes = keys * (uint64_t)(i ? 1 << 20 : 64 << 10);
		/* Decompressed and compressed anew. */
		assert_true(2 * regions_bytes > POOL_BUFFER_BYTES_MAX);
		file_move(&w, f, false, &stats);
		assert_int_equal(stats.keys_moved, keys);
		assert_int_equal(stats.keys_failed, 0);
		/* All but what is left of a region at the end of a bucket, which may be as small as it gets. */
		unsigned anew = keys_of_compression(&w, f, COMPRESSION_ZSTD, &stored, &rebalance_nr);
		assert_true(anew && anew + 2 >= keys);
		file_check(&w, f);
		fs_check(&w);
		world_close(&w, true);
	}
}

/* What is behind a range that is inserted, or taken out, says what it lacks by now. */
static void what_is_shifted_says_what_it_lacks(void **state)
{
	unsigned rebalance_nr, nr;
	uint64_t stored;
	struct world w;

	world_open(&w, 19, 1, "block_size=4k", 4096);
	struct file *f = &w.files[0];
	op_write(&w, f, 0, 200 << 10);
	for (unsigned i = 0; i < 4; i++) {
		bool is_insert = i % 2 == 0, is_asked = i < 2;

		assert_int_equal(super_option_set(w.fs->super, OPT_BACKGROUND_COMPRESSION, is_asked), 0);
		op_shift(&w, f, 64 << 10, 8192, is_insert);
		assert_true(super_has_feature(w.fs->super, SB_FEATURE_LZ4));
		nr = keys_of_compression(&w, f, COMPRESSION_NONE, &stored, &rebalance_nr);
		/* A key for each 64 KiB; the first isn't touched. */
		assert_int_equal(nr, 4);
		assert_int_equal(rebalance_nr, is_asked ? 3 : 0);
		assert_int_equal(btrees_flush_all(w.fs->trees), 0);
		assert_int_equal(keys_of_btree(&w, BTREE_REBALANCE_WORK), rebalance_nr);
		file_check(&w, f);
		fs_check(&w);
	}
	world_close(&w, true);
}

/* Buckets that wait for being discarded; and of those, the ones that wait for no entry behind @flushed. */
static unsigned emptied_buckets(struct world *w, uint64_t flushed, unsigned *unguarded)
{
	struct btree_iter it;
	struct bkey_ref k;
	unsigned nr = 0;

	*unguarded = 0;
	btree_iter_open(&it, w->fs->trees, BTREE_ALLOC, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
	for (; btree_iter_peek(&it, &k) > 0; btree_iter_advance(&it)) {
		struct alloc a;

		assert_int_equal(alloc_decode(k, &a, NULL), 0);
		nr += a.data_type == DATA_NEED_DISCARD;
		*unguarded += a.data_type == DATA_NEED_DISCARD && a.journal_seq <= flushed;
	}
	btree_iter_close(&it);
	return nr;
}

/*
 * A bucket is emptied, goes on being used since it is open, and is emptied again, all before the next flush: what is
 * durable still leads to what was there first.
 */
static void a_bucket_that_is_emptied_twice_waits_for_the_flush(void **state)
{
	struct world w;
	unsigned unguarded;

	world_open(&w, 8, 1, "block_size=4k", 4096);
	struct file *f = &w.files[0];
	op_write(&w, f, 0, 100000);
	assert_int_equal(journal_flush(w.fs->journal_writer), 0);
	uint64_t flushed = journal_seq_flushed(w.fs->journal_writer);
	op_truncate(&w, f, 0);
	op_write(&w, f, 0, 100000);
	op_truncate(&w, f, 0);
	assert_true(emptied_buckets(&w, flushed, &unguarded) > 0);
	assert_int_equal(unguarded, 0);
	world_close(&w, true);
}

/* Where the file's first extent is. */
static struct extent_ptr first_place(struct world *w, const struct file *f)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	struct btree_iter it;
	struct bkey_ref k;

	btree_iter_open(&it, w->fs->trees, BTREE_EXTENTS, BPOS(f->inum, 1, 0), 0, SNAPSHOT);
	assert_int_equal(btree_iter_peek(&it, &k), 1);
	assert_true(extent_decode(k, &w->fs->super->kctx, ptrs, NULL, NULL) > 0);
	btree_iter_close(&it);
	return ptrs[0].ptr;
}

static unsigned data_type_of(struct allocator *a, const struct extent_ptr *place)
{
	struct alloc v;

	assert_int_equal(alloc_key_lookup(a, place->dev, place->sector / a->devs[place->dev].bucket_sectors, &v), 0);
	assert_true(v.gen == place->gen || v.data_type == DATA_FREE || v.data_type == DATA_NEED_DISCARD);
	return v.data_type;
}

static atomic_bool are_discards_done;

static void discards_once(void *arg)
{
	uint64_t waiting_seq;

	if (discards_run(arg, &waiting_seq) < 0)
		abort();
	atomic_store(&are_discards_done, true);
}

/*
 * A bucket is emptied, and while those who read what was in it are waited for it gets new data, as it is open, is
 * closed and emptied again, all of that durably. Who reads the new data hasn't been waited for: it isn't made free yet.
 */
static void a_bucket_that_lived_again_waits_for_its_new_readers(void **state)
{
	struct world w;
	struct task *task;

	world_open(&w, 8, 1, "block_size=4k", 4096);
	struct file *f = &w.files[0];
	struct allocator *a = w.fs->allocator;
	discards_stop(a);
	op_write(&w, f, 0, 100000);
	struct extent_ptr place = first_place(&w, f);
	op_truncate(&w, f, 0);
	assert_int_equal(journal_flush(w.fs->journal_writer), 0);
	assert_int_equal(data_type_of(a, &place), DATA_NEED_DISCARD);

	struct read_section old_reader = allocator_read_begin(a);
	unsigned epoch = atomic_load(&a->readers.epoch);
	task_rank_set(TASK_USER); /* the readers are others */
	atomic_store(&are_discards_done, false);
	assert_int_equal(task_start(&task, "discards", discards_once, a), 0);
	while (atomic_load(&a->readers.epoch) == epoch)
		sleep_ns(1000000);
	op_write(&w, f, 0, FILE_BYTES_MAX); /* more than is left of it */
	struct extent_ptr again = first_place(&w, f);
	uint64_t bucket = again.sector / a->devs[again.dev].bucket_sectors;
	assert_true(again.dev == place.dev && again.gen == place.gen &&
		    bucket == place.sector / a->devs[place.dev].bucket_sectors);
	struct read_section new_reader = allocator_read_begin(a);
	new_reader.rank = old_reader.rank;
	task_rank_set(TASK_USER);
	assert_false(open_bucket_is_open(a, again.dev, bucket));
	op_truncate(&w, f, 0);
	assert_int_equal(journal_flush(w.fs->journal_writer), 0);
	allocator_read_end(a, old_reader);
	/* Until it has been through the buckets that it had found; for those behind them it waits for the new readers.
	 */
	while (atomic_load(&a->readers.epoch) == epoch + 1 && !atomic_load(&are_discards_done))
		sleep_ns(1000000);
	assert_int_equal(data_type_of(a, &again), DATA_NEED_DISCARD);

	allocator_read_end(a, new_reader);
	task_join(task);
	discards_once(a);
	assert_int_equal(data_type_of(a, &again), DATA_FREE);
	assert_int_equal(discards_start(a), 0);
	world_close(&w, true);
}

struct set_count {
	uint8_t devs[DEVS_MAX];
	unsigned nr;
};

static int set_count_txn(struct btree_txn *txn, void *ctx)
{
	const struct set_count *set = ctx;

	uint64_t inum = INUM_FIRST;
	int err = inode_make(txn, &inum); /* what changes nothing isn't committed */

	return err ? err : alloc_txn_count_replicas(txn, DATA_USER, 1, set->devs, set->nr, 8);
}

/* As many as come in use in one journal entry: after a crash each is counted. */
static void every_new_set_of_devices_is_counted(void **state)
{
	static const struct btree_commit_opts opts = { .name = "test", .watermark = WATERMARK_NORMAL };
	struct journal_state *journal;
	struct usage usage;
	unsigned made = 0, counted = 0;
	struct world w;

	world_open(&w, 9, 8, "block_size=4k", 4096);
	assert_int_equal(journal_flush(w.fs->journal_writer), 0);
	for (unsigned mask = 1; mask < 1u << w.dev_nr; mask++) {
		struct set_count set = { .nr = 0 };

		for (unsigned dev = 0; dev < w.dev_nr; dev++)
			if (mask >> dev & 1)
				set.devs[set.nr++] = (uint8_t)dev;
		if (set.nr < 2 || set.nr > 4)
			continue;
		assert_int_equal(btree_txn_run(w.fs->trees, &opts, set_count_txn, &set), 0);
		made++;
	}
	assert_int_equal(journal_flush(w.fs->journal_writer), 0);
	assert_int_equal(journal_read(w.fs->super, &(struct journal_read_opts){ 0 }, &journal), 0);
	assert_int_equal(usage_read(w.fs->super, journal, w.fs->trees, &usage), 0);
	for (size_t i = 0; i < usage.replicas_nr; i++)
		counted += usage.replicas[i].nr_devs > 1 && usage.replicas[i].data_type == DATA_USER &&
			   usage.replicas[i].sectors == 8;
	assert_int_equal(counted, made);
	usage_free(&usage);
	journal_state_free(journal);
	world_close(&w, true);
}

static void what_is_wrong_is_refused(void **state)
{
	struct world w;
	uint64_t seq = 0;
	char byte = 0;

	world_open(&w, 4, 1, "block_size=4k", 4096);
	struct data_write_target none = { .inum = 999999, .snapshot = SNAPSHOT };
	struct data_write_target target = target_of(&w.files[0]);
	assert_int_equal(data_write(w.fs->data, &none, 0, &byte, 1, NULL, &seq), -ENOENT);
	assert_int_equal(data_truncate(w.fs->data, &none, 1, NULL, &seq), -ENOENT);
	assert_int_equal(data_write(w.fs->data, &target, INT64_MAX, &byte, 1, NULL, &seq), -EFBIG);
	assert_int_equal(data_write(w.fs->data, &target, 0, &byte, 0, NULL, &seq), 0);
	file_check(&w, &w.files[0]);
	world_close(&w, true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(short_tails_are_inline_and_grow_out_of_it),
		cmocka_unit_test(what_is_wrong_is_refused),
		cmocka_unit_test(every_new_set_of_devices_is_counted),
		cmocka_unit_test(promised_space_reads_as_zeroes_and_is_a_hole),
		cmocka_unit_test(zeroing_keeps_the_space),
		cmocka_unit_test(promised_space_is_kept_for_who_has_it),
		cmocka_unit_test(promised_space_can_be_filled_a_little_at_a_time),
		cmocka_unit_test(short_files_can_be_written_over_when_nothing_is_left),
		cmocka_unit_test(a_hole_is_not_copied_where_there_is_no_space),
		cmocka_unit_test(what_is_not_zeroed_for_want_of_space_is_an_error),
		cmocka_unit_test(whole_blocks_are_shared_until_they_are_written),
		cmocka_unit_test(sharing_alone_is_refused_where_it_cannot_be),
		cmocka_unit_test(files_have_the_bytes_written_blocks_of_4096),
		cmocka_unit_test(files_have_the_bytes_written_blocks_of_512),
		cmocka_unit_test(files_have_the_bytes_written_two_replicas),
		cmocka_unit_test(files_have_the_bytes_written_without_checksums),
		cmocka_unit_test(what_has_a_checksum_is_written_anew_and_then_in_place),
		cmocka_unit_test(promised_space_is_where_it_is_written),
		cmocka_unit_test(nothing_on_a_cache_keeps_data_from_its_place),
		cmocka_unit_test(a_place_that_counts_twice_is_enough),
		cmocka_unit_test(what_one_replica_takes_in_place_is_written_elsewhere),
		cmocka_unit_test(files_have_the_bytes_written_in_place),
		cmocka_unit_test(files_have_the_bytes_written_in_place_twice),
		cmocka_unit_test(files_have_the_bytes_written_compressed),
		cmocka_unit_test(large_writes_are_checksummed_by_all_cores),
		cmocka_unit_test(what_compresses_takes_less_and_what_does_not_says_so),
		cmocka_unit_test(compressed_regions_fill_buckets_to_their_ends),
		cmocka_unit_test(compressed_regions_fill_small_buckets),
		cmocka_unit_test(the_place_of_a_replaced_node_waits_for_the_journal),
		cmocka_unit_test(what_is_read_of_a_cache_is_kept_longer),
		cmocka_unit_test(what_is_too_large_by_now_is_moved_in_parts),
		cmocka_unit_test(all_of_a_long_key_is_repaired),
		cmocka_unit_test(what_one_replica_keeps_is_written),
		cmocka_unit_test(a_write_with_less_copies_than_required_fails),
		cmocka_unit_test(a_node_with_less_copies_than_required_is_not_written),
		cmocka_unit_test(a_write_that_ends_early_is_a_write),
		cmocka_unit_test(a_device_that_takes_no_writes_is_survived),
		cmocka_unit_test(copies_of_nodes_that_fail_are_told),
		cmocka_unit_test(what_cannot_be_read_is_copied_to_another_place),
		cmocka_unit_test(a_device_whose_cache_fails_is_left),
		cmocka_unit_test(a_device_that_is_needed_is_not_left),
		cmocka_unit_test(a_failed_write_leaves_what_was_there),
		cmocka_unit_test(what_is_overwritten_where_it_was_moved_to_is_durable),
		cmocka_unit_test(what_one_device_does_not_take_is_moved_to_others),
		cmocka_unit_test(what_cannot_be_read_does_not_keep_its_neighbours),
		cmocka_unit_test(copygc_goes_on_behind_bad_sectors),
		cmocka_unit_test(copies_that_lack_different_sectors_make_good_ones),
		cmocka_unit_test(what_no_copy_gives_stays_alone),
		cmocka_unit_test(rot_that_a_move_meets_is_counted),
		cmocka_unit_test(what_counts_twice_is_moved_to_as_many_as_are_asked_for),
		cmocka_unit_test(what_is_moved_says_what_it_lacks),
		cmocka_unit_test(what_is_moved_is_stored_as_is_asked_by_now),
		cmocka_unit_test(a_batch_that_takes_much_memory_is_moved_in_rounds),
		cmocka_unit_test(what_is_shifted_says_what_it_lacks),
		cmocka_unit_test(a_bucket_that_is_emptied_twice_waits_for_the_flush),
		cmocka_unit_test(a_bucket_that_lived_again_waits_for_its_new_readers),
	};

	cmocka_set_test_filter(getenv("KILN_TEST_FILTER"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
