/*
 * Options: the table, and the few functions that work from it.
 *
 * A value in memory is in the option's own unit. Superblocks store some of them divided by the sector size, and of
 * these one as a logarithm; the ranges of the table are those of the value in memory. Places where an option may be
 * given are for the callers to check: here every option can be parsed and printed.
 */
#include "format/options.h"

#include <errno.h>
#include <string.h>

#include "base/strbuf.h"
#include "base/util.h"
#include "format/superblock.h"

static const char *const words_errors[] = { "continue", "ro", "panic", NULL };
static const char *const words_checksum[] = { "none", "crc32c", "crc64", "xxhash", NULL };
static const char *const words_str_hash[] = { "crc32c", "crc64", "siphash", NULL };
static const char *const words_version_upgrade[] = { "compatible", "incompatible", "none", NULL };
static const char *const words_fix_errors[] = { "exit", "yes", "no", "ask", NULL };
static const char *const words_compression[] = { "none", "lz4", "gzip", "zstd", NULL };

enum { F = OPTION_FORMAT, M = OPTION_MOUNT, R = OPTION_RUNTIME, I = OPTION_INODE, D = OPTION_DEVICE };

#define NOT_STORED	     .sb = { OPTION_SB_NONE, 0, 0 }, .sb_high = { OPTION_SB_NONE, 0, 0 }
#define STORED(word, lo, hi) .sb = { word, lo, hi }, .sb_high = { OPTION_SB_NONE, 0, 0 }
#define BOOL		     .type = OPTION_BOOL, .max = 1
#define UINT(low, high)	     .type = OPTION_UINT, .min = low, .max = high
#define SIZE(low, high)	     .type = OPTION_UINT, .is_human = true, .min = low, .max = high
#define WORDS(list)	     .type = OPTION_STR, .words = list, .max = ARRAY_NR(list) - 2
#define TARGET		     .type = OPTION_TARGET, .max = (1 << TARGET_BITS) - 1

/* Largest value of upstream's unsigned 32 and 63 bit options. */
#define U32_LIMIT (UINT32_MAX - 1ull)
#define S64_LIMIT (INT64_MAX - 1ull)

const struct option_def option_table[OPT_NR] = {
	[OPT_BLOCK_SIZE] = { "block_size", SIZE(512, 32768), .where = F, .initial = 4096, .is_power_of_2 = true,
			     .is_sectors = true, STORED(OPTION_SB_BLOCK_SIZE, 0, 16),
			     .help = "unit of allocation of data, the journal and btree writes; above 4k only to be "
				     "read" },
	[OPT_BTREE_NODE_SIZE] = { "btree_node_size", SIZE(512, 512 << 10), .where = F, .initial = 256 << 10,
				  .is_power_of_2 = true, .is_sectors = true, STORED(0, 12, 28),
				  .help = "size of btree nodes, at most that of the smallest buckets" },
	[OPT_ERRORS] = { "errors", WORDS(words_errors), .where = F | M | R, .initial = OPTION_ERRORS_RO,
			 STORED(0, 8, 12), .help = "what to do when the filesystem turns out to be inconsistent" },
	[OPT_METADATA_REPLICAS] = { "metadata_replicas", UINT(1, 3), .where = F | M | R, .initial = 1,
				    STORED(0, 48, 52), .help = "copies of btree nodes and journal entries" },
	[OPT_DATA_REPLICAS] = { "data_replicas", UINT(1, 3), .where = F | M | R | I, .initial = 1, STORED(0, 52, 56),
				.help = "copies of file data" },
	[OPT_METADATA_REPLICAS_REQUIRED] = { "metadata_replicas_required", UINT(1, 3), .where = F | M, .initial = 1,
					     STORED(1, 20, 24),
					     .help = "copies that must have been written for a metadata write to "
						     "succeed" },
	[OPT_DATA_REPLICAS_REQUIRED] = { "data_replicas_required", UINT(1, 3), .where = F | M, .initial = 1,
					 STORED(1, 24, 28),
					 .help = "copies that must have been written for a data write to succeed" },
	[OPT_ENCODED_EXTENT_MAX] = { "encoded_extent_max", SIZE(4096, 1 << 20), .where = F, .initial = 64 << 10,
				     .is_power_of_2 = true, .is_sectors = true, .is_log2 = true, STORED(1, 14, 20),
				     .help = "largest piece of data that is checksummed or compressed as one" },
	[OPT_METADATA_CHECKSUM] = { "metadata_checksum", WORDS(words_checksum), .where = F | M | R, .initial = 1,
				    STORED(0, 40, 44),
				    .help = "checksum of superblocks, journal entries and btree nodes" },
	[OPT_DATA_CHECKSUM] = { "data_checksum", WORDS(words_checksum), .where = F | M | R | I, .initial = 1,
				STORED(0, 44, 48), .help = "checksum of file data" },
	[OPT_COMPRESSION] = { "compression", .type = OPTION_COMPRESSION, .max = 0xff, .where = F | M | R | I,
			      .sb = { 1, 4, 8 }, .sb_high = { 4, 56, 60 }, .help = "compress data when it is written" },
	[OPT_BACKGROUND_COMPRESSION] = { "background_compression", .type = OPTION_COMPRESSION, .max = 0xff,
					 .where = F | M | R | I, .sb = { 2, 0, 4 }, .sb_high = { 4, 60, 64 },
					 .help = "compress data again later, in the background" },
	[OPT_STR_HASH] = { "str_hash", WORDS(words_str_hash), .where = F | M | R, .initial = 2, STORED(1, 0, 4),
			   .help = "hash of names in new directories" },
	[OPT_METADATA_TARGET] = { "metadata_target", TARGET, .where = F | M | R, STORED(3, 16, 28),
				  .help = "device or label that btree nodes and the journal should go to" },
	[OPT_FOREGROUND_TARGET] = { "foreground_target", TARGET, .where = F | M | R | I, STORED(1, 40, 52),
				    .help = "device or label that data is written to first" },
	[OPT_BACKGROUND_TARGET] = { "background_target", TARGET, .where = F | M | R | I, STORED(1, 52, 64),
				    .help = "device or label that data is moved to in the background" },
	[OPT_PROMOTE_TARGET] = { "promote_target", TARGET, .where = F | M | R | I, STORED(1, 28, 40),
				 .help = "device or label that keeps cached copies of data that is read" },
	[OPT_ERASURE_CODE] = { "erasure_code", BOOL, .where = F | M | R | I, STORED(3, 0, 16),
			       .help = "protect file data by erasure coding instead of copies" },
	[OPT_INODES_32BIT] = { "inodes_32bit", BOOL, .where = F | M | R, .initial = 1, STORED(1, 8, 9),
			       .help = "give new inodes numbers below 2^31" },
	[OPT_SHARD_INODE_NUMBERS] = { "shard_inode_numbers", BOOL, .where = F | M | R, .initial = 1, STORED(3, 28, 29),
				      .help = "give each processor its own range of inode numbers" },
	[OPT_INODES_USE_KEY_CACHE] = { "inodes_use_key_cache", BOOL, .where = F | M, .initial = 1, STORED(3, 29, 30),
				       .help = "keep inodes in the key cache" },
	[OPT_BTREE_NODE_MEM_PTR_OPTIMIZATION] = { "btree_node_mem_ptr_optimization", BOOL, .where = M | R, .initial = 1,
						  NOT_STORED,
						  .help = "remember in btree pointers where their nodes are in "
							  "memory" },
	[OPT_GC_RESERVE_PERCENT] = { "gc_reserve_percent", UINT(5, 20), .where = F | M | R, .initial = 8,
				     STORED(0, 28, 33),
				     .help = "share of the space that is kept free for moving data out of fragmented "
					     "buckets" },
	[OPT_GC_RESERVE_BYTES] = { "gc_reserve_bytes", SIZE(0, UINT64_MAX - 511), .where = F | M | R,
				   .is_sectors = true, STORED(2, 4, 64),
				   .help = "the same as a size; 0: use gc_reserve_percent" },
	[OPT_ROOT_RESERVE_PERCENT] = { "root_reserve_percent", UINT(0, 99), .where = F | M, STORED(0, 33, 40),
				       .help = "share of the space that is kept for the superuser" },
	[OPT_WIDE_MACS] = { "wide_macs", BOOL, .where = F | M | R, STORED(1, 9, 10),
			    .help = "authenticate encrypted data with 128 bits instead of 80" },
	[OPT_INLINE_DATA] = { "inline_data", BOOL, .where = M | R, .initial = 1, NOT_STORED,
			      .help = "store small files in the btree" },
	[OPT_ACL] = { "acl", BOOL, .where = F | M, .initial = 1, STORED(0, 56, 57),
		      .help = "POSIX access control lists" },
	[OPT_USRQUOTA] = { "usrquota", BOOL, .where = F | M, STORED(0, 57, 58),
			   .help = "count and limit what users use" },
	[OPT_GRPQUOTA] = { "grpquota", BOOL, .where = F | M, STORED(0, 58, 59),
			   .help = "count and limit what groups use" },
	[OPT_PRJQUOTA] = { "prjquota", BOOL, .where = F | M, STORED(0, 59, 60),
			   .help = "count and limit what projects use" },
	[OPT_DEGRADED] = { "degraded", BOOL, .where = M, NOT_STORED, .help = "start although devices are missing" },
	[OPT_VERY_DEGRADED] = { "very_degraded", BOOL, .where = M, NOT_STORED,
				.help = "start although devices are missing that hold the only copy of something" },
	[OPT_DISCARD] = { "discard", BOOL, .where = M | D, .initial = 1, NOT_STORED,
			  .help = "tell the device which space is free" },
	[OPT_VERBOSE] = { "verbose", BOOL, .where = M | R, NOT_STORED, .help = "more messages" },
	[OPT_JOURNAL_FLUSH_DELAY] = { "journal_flush_delay", UINT(1, U32_LIMIT), .where = M | R, .initial = 1000,
				      STORED(3, 30, 62),
				      .help = "milliseconds after which the journal is flushed at the latest" },
	[OPT_JOURNAL_FLUSH_DISABLED] = { "journal_flush_disabled", BOOL, .where = M | R, STORED(3, 62, 63),
					 .help = "don't flush the journal on fsync and sync" },
	[OPT_JOURNAL_RECLAIM_DELAY] = { "journal_reclaim_delay", UINT(0, U32_LIMIT), .where = M | R, .initial = 100,
					STORED(4, 0, 32),
					.help = "milliseconds between two rounds of journal reclaim" },
	[OPT_MOVE_BYTES_IN_FLIGHT] = { "move_bytes_in_flight", SIZE(1024, U32_LIMIT), .where = M | R,
				       .initial = 1 << 20, NOT_STORED, .help = "how much data is moved at a time" },
	[OPT_MOVE_IOS_IN_FLIGHT] = { "move_ios_in_flight", UINT(1, 1023), .where = M | R, .initial = 32, NOT_STORED,
				     .help = "how many pieces of data are moved at a time" },
	[OPT_FSCK] = { "fsck", BOOL, .where = M, NOT_STORED, .help = "check the filesystem when it is mounted" },
	[OPT_FIX_ERRORS] = { "fix_errors", .type = OPTION_FIX_ERRORS, .words = words_fix_errors, .max = 3, .where = M,
			     NOT_STORED, .help = "whether to repair what the check finds" },
	[OPT_RATELIMIT_ERRORS] = { "ratelimit_errors", BOOL, .where = M, NOT_STORED,
				   .help = "print only the first messages of each kind of error" },
	[OPT_NOCHANGES] = { "nochanges", BOOL, .where = M, NOT_STORED,
			    .help = "never write to the devices; repairs are made in memory; needs read_only" },
	[OPT_NORECOVERY] = { "norecovery", BOOL, .where = M, NOT_STORED, .help = "don't replay the journal" },
	[OPT_KEEP_JOURNAL] = { "keep_journal", BOOL, NOT_STORED, .help = "keep the journal's keys after recovery" },
	[OPT_READ_ENTIRE_JOURNAL] = { "read_entire_journal", BOOL, NOT_STORED,
				      .help = "read journal entries that aren't needed any more too" },
	[OPT_READ_JOURNAL_ONLY] = { "read_journal_only", BOOL, NOT_STORED, .help = "stop after the journal was read" },
	[OPT_JOURNAL_TRANSACTION_NAMES] = { "journal_transaction_names", BOOL, .where = F | M | R, .initial = 1,
					    STORED(4, 32, 33),
					    .help = "note in the journal what each transaction was for" },
	[OPT_NOEXCL] = { "noexcl", BOOL, .where = M, NOT_STORED, .help = "don't open the devices exclusively" },
	[OPT_DIRECT_IO] = { "direct_io", BOOL, .where = M, .initial = 1, NOT_STORED,
			    .help = "go around the page cache when accessing devices" },
	[OPT_SB] = { "sb", UINT(0, S64_LIMIT), .where = M, .initial = SB_SECTOR, NOT_STORED,
		     .help = "sector of the superblock; without this option it is searched for" },
	[OPT_READ_ONLY] = { "read_only", BOOL, .where = M, NOT_STORED, .help = "read only" },
	[OPT_NOSTART] = { "nostart", BOOL, NOT_STORED, .help = "open the devices without starting the filesystem" },
	[OPT_RECONSTRUCT_ALLOC] = { "reconstruct_alloc", BOOL, .where = M, NOT_STORED,
				    .help = "build the allocation information anew" },
	[OPT_VERSION_UPGRADE] = { "version_upgrade", WORDS(words_version_upgrade), .where = M, STORED(4, 54, 56),
				  .help = "which version of the format to upgrade to when mounting" },
	[OPT_BUCKETS_NOUSE] = { "buckets_nouse", BOOL, NOT_STORED, .help = "buckets that must not be used" },
	[OPT_STDIO] = { "stdio", UINT(0, UINT64_MAX), NOT_STORED, .help = "where messages go" },
	[OPT_PROJECT] = { "project", UINT(0, U32_LIMIT), .where = I, NOT_STORED,
			  .help = "project that a file is accounted to" },
	[OPT_NOCOW] = { "nocow", BOOL, .where = F | M | R | I, STORED(4, 33, 34),
			.help = "write in place where possible; implies no checksums, compression, encryption" },
	[OPT_NOCOW_ENABLED] = { "nocow_enabled", BOOL, .where = M, .initial = 1, NOT_STORED,
				.help = "guard data that is moved against writing in place" },
	[OPT_NO_DATA_IO] = { "no_data_io", BOOL, .where = M, NOT_STORED,
			     .help = "don't read and write file data, for benchmarks of metadata" },
	[OPT_FS_SIZE] = { "fs_size", SIZE(0, S64_LIMIT), .where = D, NOT_STORED,
			  .help = "size of the filesystem on the device; 0: the whole device" },
	[OPT_BUCKET] = { "bucket", SIZE(0, S64_LIMIT), .where = D, NOT_STORED,
			 .help = "size of buckets; 0: automatic" },
	[OPT_DURABILITY] = { "durability", UINT(0, 2), .where = D, .initial = 1, NOT_STORED,
			     .help = "how many copies one on this device counts for; 0: it is a cache" },
	[OPT_BTREE_NODE_PREFETCH] = { "btree_node_prefetch", BOOL, .where = M | R, .initial = 1, NOT_STORED,
				      .help = "read btree nodes ahead" },
};

int option_id_parse(const char *name)
{
	for (unsigned id = 0; id < OPT_NR; id++)
		if (!strcmp(option_table[id].name, name))
			return (int)id;
	return -ENOENT;
}

/* Level 0 is the default of the algorithm; "none" has no levels. */
static bool compression_is_valid(uint64_t value)
{
	unsigned type = option_compression_type(value);

	return value <= 0xff && type <= OPTION_COMPRESSION_ZSTD &&
	       (type != OPTION_COMPRESSION_NONE || !option_compression_level(value));
}

static bool value_fits(const struct option_def *o, uint64_t value, uint64_t limit)
{
	if (o->type == OPTION_COMPRESSION)
		return compression_is_valid(value);
	return value >= o->min && value <= limit && (!o->is_power_of_2 || is_power_of_2(value)) &&
	       (!o->is_sectors || value % SECTOR_BYTES == 0);
}

bool option_is_valid(enum option_id id, uint64_t value)
{
	return value_fits(&option_table[id], value, option_table[id].max);
}

/* --- parsing --- */

static int parse_failed(struct strbuf *why, const char *text)
{
	if (why)
		strbuf_add(why, text);
	return -EINVAL;
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* Decimal digits at *@text, at least one; *@text moves behind them. False on overflow too. */
static bool digits_parse(const char **text, uint64_t *value)
{
	const char *p = *text;

	*value = 0;
	for (; is_digit(*p); p++)
		if (__builtin_mul_overflow(*value, 10, value) || __builtin_add_overflow(*value, *p - '0', value))
			return false;
	if (p == *text)
		return false;
	*text = p;
	return true;
}

/* A unit, or nothing; *@shift is its logarithm. Letters are powers of 1024, with or without "iB"; "B" is one byte. */
static bool unit_parse(const char **text, unsigned *shift)
{
	static const char letters[] = "kMGTPEZY";
	const char *p = *text;

	*shift = 0;
	if (*p && *p != '\n') {
		const char *letter = strchr(letters, *p == 'K' ? 'k' : *p);

		if (letter) {
			*shift = 10 * (unsigned)(letter - letters + 1);
			p++;
			if (!strncmp(p, "iB", 2))
				p += 2;
		} else if (*p == 'B') {
			p++;
		}
	}
	*text = p;
	return !*p || !strcmp(p, "\n");
}

/* "4k", "4.5 KiB", "4096B" (10 §3.2). */
static bool size_parse(const char *text, uint64_t *value)
{
	enum { FRACTION_DIGITS_MAX = 18 }; /* more than a byte of the largest unit needs, and 64 bits hold them */
	const char *p = text + (*text == '+');
	uint64_t whole, fraction = 0, scale = 1;
	unsigned shift;

	if (!digits_parse(&p, &whole))
		return false;
	if (*p == '.') {
		const char *start = ++p;

		if (!digits_parse(&p, &fraction) || p - start > FRACTION_DIGITS_MAX)
			return false;
		while (start++ < p)
			scale *= 10;
	}
	p += *p == ' ';
	if (p[-1] == ' ' && (!*p || *p == '\n'))
		return false;
	if (!unit_parse(&p, &shift))
		return false;

	if (shift >= 64) {
		*value = 0;
		return !whole && !fraction;
	}

	unsigned __int128 sum = ((unsigned __int128)whole << shift) + ((unsigned __int128)fraction << shift) / scale;
	*value = (uint64_t)sum;
	return sum <= UINT64_MAX;
}

static int uint_parse(const struct option_def *o, const char *text, uint64_t *value, struct strbuf *why)
{
	const char *p = text;

	if (o->is_human) {
		if (!size_parse(text, value))
			return parse_failed(why, "not a size");
	} else if (!digits_parse(&p, value) || (*p && strcmp(p, "\n"))) {
		return parse_failed(why, "not a number");
	}
	return 0;
}

static int word_parse(const char *const *words, const char *text, size_t len, uint64_t *value)
{
	for (unsigned i = 0; words[i]; i++)
		if (strlen(words[i]) == len && !memcmp(words[i], text, len)) {
			*value = i;
			return 0;
		}
	return -ENOENT;
}

static int words_parse(const struct option_def *o, const char *text, uint64_t *value, struct strbuf *why)
{
	if (!word_parse(o->words, text, strlen(text), value))
		return 0;
	if (why) {
		strbuf_add(why, "not one of:");
		for (unsigned i = 0; o->words[i]; i++)
			strbuf_printf(why, " %s", o->words[i]);
	}
	return -EINVAL;
}

static int compression_parse(const char *text, uint64_t *value, struct strbuf *why)
{
	const char *colon = strchr(text, ':');
	size_t type_len = colon ? (size_t)(colon - text) : strlen(text);
	uint64_t level = 0;

	if (word_parse(words_compression, text, type_len, value))
		return parse_failed(why, "not one of: none lz4 gzip zstd");
	if (colon) {
		const char *p = colon + 1;

		if (!digits_parse(&p, &level) || *p || level > 15)
			return parse_failed(why, "the level is not a number from 0 to 15");
	}
	*value |= level << 4;
	if (!compression_is_valid(*value))
		return parse_failed(why, "compression none has no levels");
	return 0;
}

/* Group index for a label path "a.b.c", or -1. */
static int label_path_find(const struct sb_disk *sb, const char *path)
{
	unsigned nr = sb_disk_group_nr(sb), parent = 0;

	for (;;) {
		size_t len = strcspn(path, ".");
		unsigned i;

		if (!len || len > SB_LABEL_BYTES)
			return -1;
		for (i = 0; i < nr; i++) {
			struct disk_group g;

			sb_disk_group(sb, i, &g);
			if (!g.is_deleted && g.parent == parent && strnlen((char *)g.label, SB_LABEL_BYTES) == len &&
			    !memcmp(g.label, path, len))
				break;
		}
		if (i == nr)
			return -1;
		if (!path[len])
			return (int)i;
		parent = i + 1;
		path += len + 1;
	}
}

/* Names of devices are known to callers only; here a device is "dev 2", as it is printed. */
static int target_parse(const char *text, const struct sb_disk *sb, uint64_t *value, struct strbuf *why)
{
	*value = TARGET_NONE;
	if (!*text || !strcmp(text, "none"))
		return 0;
	if (!sb)
		return parse_failed(why, "targets can't be looked up before the superblock is known");

	if (!strncmp(text, "dev ", 4)) {
		const char *p = text + 4;
		uint64_t index;
		struct member m = { 0 };

		if (digits_parse(&p, &index) && !*p && index < sb->nr_devices)
			sb_member(sb, (unsigned)index, &m);
		if (!m.exists)
			return parse_failed(why, "no such device");
		*value = TARGET_DEVICE_FIRST + index;
		return 0;
	}

	int group = label_path_find(sb, text);
	if (group < 0 || !value_fits(&option_table[OPT_FOREGROUND_TARGET], TARGET_GROUP_FIRST + (uint64_t)group,
				     option_table[OPT_FOREGROUND_TARGET].max))
		return parse_failed(why, "no such device or label");
	*value = TARGET_GROUP_FIRST + (uint64_t)group;
	return 0;
}

static int bool_parse(const char *text, uint64_t *value, struct strbuf *why)
{
	const char *p = text;

	if (!digits_parse(&p, value) || (*p && strcmp(p, "\n")) || *value > 1)
		return parse_failed(why, "neither 0 nor 1");
	return 0;
}

static int range_check(const struct option_def *o, uint64_t value, struct strbuf *why)
{
	if (value_fits(o, value, o->max))
		return 0;
	if (!why)
		return -EINVAL;

	if (value < o->min || value > o->max)
		strbuf_printf(why, "not from %llu to %llu", (unsigned long long)o->min, (unsigned long long)o->max);
	else if (o->is_power_of_2)
		strbuf_add(why, "not a power of two");
	else
		strbuf_printf(why, "not a multiple of %u", SECTOR_BYTES);
	return -EINVAL;
}

int option_parse(enum option_id id, const char *text, const struct sb_disk *sb, uint64_t *value, struct strbuf *why)
{
	const struct option_def *o = &option_table[id];
	int err;

	if (!text) {
		if (o->type != OPTION_BOOL && o->type != OPTION_FIX_ERRORS)
			return parse_failed(why, "a value is needed");
		*value = o->type == OPTION_BOOL ? 1 : OPTION_FIX_ERRORS_YES;
		return 0;
	}

	switch (o->type) {
	case OPTION_BOOL: err = bool_parse(text, value, why); break;
	case OPTION_UINT: err = uint_parse(o, text, value, why); break;
	case OPTION_COMPRESSION: err = compression_parse(text, value, why); break;
	case OPTION_TARGET: err = target_parse(text, sb, value, why); break;
	default: err = words_parse(o, text, value, why); break;
	}
	return err ? err : range_check(o, *value, why);
}

/* --- printing --- */

static void compression_to_text(struct strbuf *out, uint64_t value)
{
	unsigned type = option_compression_type(value), level = option_compression_level(value);

	if (type > OPTION_COMPRESSION_ZSTD)
		strbuf_printf(out, "unknown type %u", type);
	else
		strbuf_add(out, words_compression[type]);
	if (level)
		strbuf_printf(out, ":%u", level);
}

void option_to_text(struct strbuf *out, enum option_id id, uint64_t value, const struct sb_disk *sb)
{
	const struct option_def *o = &option_table[id];

	switch (o->type) {
	case OPTION_COMPRESSION: compression_to_text(out, value); break;
	case OPTION_TARGET: sb_target_to_text(out, sb, (unsigned)value); break;
	case OPTION_STR:
	case OPTION_FIX_ERRORS:
		if (value <= o->max) {
			strbuf_add(out, o->words[value]);
			break;
		}
		/* fall through */
	default:
		if (o->is_human)
			strbuf_add_size(out, value);
		else
			strbuf_printf(out, "%llu", (unsigned long long)value);
	}
}

/* "64k": in the largest unit that leaves no rest. */
static void size_to_text(struct strbuf *out, uint64_t bytes)
{
	static const char letters[] = "kMG";
	unsigned unit = 0;

	for (; bytes && bytes % 1024 == 0 && letters[unit]; unit++)
		bytes /= 1024;
	strbuf_printf(out, "%llu", (unsigned long long)bytes);
	if (unit)
		strbuf_add_char(out, letters[unit - 1]);
}

static void number_to_text(struct strbuf *out, const struct option_def *o, uint64_t value)
{
	if (o->is_human)
		size_to_text(out, value);
	else
		strbuf_printf(out, "%llu", (unsigned long long)value);
}

void option_values_to_text(struct strbuf *out, enum option_id id)
{
	const struct option_def *o = &option_table[id];

	switch (o->type) {
	case OPTION_BOOL: strbuf_add(out, "0|1"); return;
	case OPTION_TARGET: strbuf_add(out, "TARGET"); return;
	case OPTION_UINT:
		if (o->max >= U32_LIMIT) {
			strbuf_add(out, o->is_human ? "SIZE" : "N");
			return;
		}
		number_to_text(out, o, o->min);
		strbuf_add_char(out, '-');
		number_to_text(out, o, o->max);
		return;
	default: break;
	}
	const char *const *words = o->type == OPTION_COMPRESSION ? words_compression : o->words;
	for (unsigned i = 0; words[i]; i++)
		strbuf_printf(out, "%s%s", i ? "|" : "", words[i]);
	if (o->type == OPTION_COMPRESSION)
		strbuf_add(out, "[:LEVEL]");
}

void option_default_to_text(struct strbuf *out, enum option_id id)
{
	const struct option_def *o = &option_table[id];

	if (o->type == OPTION_UINT)
		number_to_text(out, o, o->initial);
	else
		option_to_text(out, id, o->initial, NULL);
}

/* --- superblocks --- */

/* Formats after 1.4 allow larger pieces; a reader must take the superblock's word for it. */
static uint64_t stored_limit(enum option_id id, const struct sb_disk *sb)
{
	if (id == OPT_ENCODED_EXTENT_MAX && sb_is_newer(sb))
		return 2 << 20;
	return option_table[id].max;
}

uint64_t option_from_sb(enum option_id id, const struct sb_disk *sb, bool *in_range)
{
	const struct option_def *o = &option_table[id];
	uint64_t value;

	*in_range = true;
	if (!option_is_stored(id))
		return o->initial;

	value = o->sb.word == OPTION_SB_BLOCK_SIZE ? le16_get(sb->block_size)
						   : sb_flag(sb, (unsigned)o->sb.word, o->sb.lo, o->sb.hi);
	if (o->sb_high.word != OPTION_SB_NONE)
		value |= sb_flag(sb, (unsigned)o->sb_high.word, o->sb_high.lo, o->sb_high.hi) << (o->sb.hi - o->sb.lo);
	/* Zero is "never set" in old images. */
	if (!value && (id == OPT_JOURNAL_FLUSH_DELAY || id == OPT_JOURNAL_RECLAIM_DELAY))
		return 1000;

	bool fits = true;
	if (o->is_log2) {
		fits = value < 64;
		value = fits ? 1ull << value : 0;
	}
	if (o->is_sectors)
		fits = !__builtin_mul_overflow(value, (uint64_t)SECTOR_BYTES, &value) && fits;

	*in_range = fits && value_fits(o, value, stored_limit(id, sb));
	return *in_range ? value : o->initial;
}

static void flag_store(struct sb_disk *sb, unsigned word, unsigned lo, unsigned hi, uint64_t value)
{
	sb->flags[word] = le64_of(bits_set(le64_get(sb->flags[word]), lo, hi, value));
}

int option_to_sb(enum option_id id, struct sb_disk *sb, uint64_t value)
{
	const struct option_def *o = &option_table[id];

	if (!option_is_stored(id) || !option_is_valid(id, value))
		return -EINVAL;

	if (o->is_sectors)
		value /= SECTOR_BYTES;
	if (o->is_log2)
		value = bit_length_u64(value) - 1;

	if (o->sb.word == OPTION_SB_BLOCK_SIZE) {
		sb->block_size = le16_of((uint16_t)value);
		return 0;
	}
	flag_store(sb, (unsigned)o->sb.word, o->sb.lo, o->sb.hi, value);
	if (o->sb_high.word != OPTION_SB_NONE)
		flag_store(sb, (unsigned)o->sb_high.word, o->sb_high.lo, o->sb_high.hi, value >> (o->sb.hi - o->sb.lo));
	return 0;
}
