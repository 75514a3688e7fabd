/*
 * build_image OUT [OPTIONS]: a filesystem image with many files, or one that lies.
 *
 *	--files N          files, spread over the directories (0)
 *	--dirs M           directories, each with at most eight below it (0)
 *	--scatter          files of a directory are far from each other in the btrees, as on an old filesystem
 *	--depth D          and a chain of D directories, one in the other
 *	--file-bytes B     size of each file; with --vary from 0 to 2 B (4096)
 *	--seed S           of everything that is random
 *	--block-bytes, --node-bytes, --bucket-bytes, --extent-bytes
 *	--checksum none|crc32c|crc64|xxhash
 *	--sets N           sets of keys per btree node, at most
 *	--hostile KIND     add what no filesystem should hold; may be repeated; "all", and "list" prints the kinds
 *
 * Directory number i is `d<i>`, below directory (i - 1) / 8, number 0 below the root. File i is `f<i>`, in directory
 * i * M / N; with --scatter in i % M. Contents: image_file_word() of builder/image.h.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "builder/image.h"

/* --- hostile: each adds something to the root directory --- */

static void hostile_names(struct image *image, struct image_dir root)
{
	static const struct {
		const char *name;
		size_t len;
	} names[] = {
		{ "/", 1 },  { "a/b", 3 }, { "../escape", 9 },	       { "/etc/escape", 11 }, { ".", 1 },
		{ "..", 2 }, { "\n", 1 },  { "\033[2J\033[1;1H", 10 }, { "\xff\xfe", 2 },     { "-rf", 3 },
		{ " ", 1 },  { "\\", 1 },  { "con.txt\r", 8 },
	};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		struct inode inode = image_inode(image, S_IFREG | 0644);

		image_put_object(image, root, names[i].name, names[i].len, &inode);
	}
	/* ".." once more, as a directory with something in it. */
	struct image_dir dir = image_add_dir(image, root, "names", 0755);
	struct inode up = image_inode(image, S_IFDIR | 0755);
	image_put_object(image, dir, "..", 2, &up);
	image_add_file(image, (struct image_dir){ up.inum, up.hash_seed, root.subvol }, "outside", 0644, 100);
}

static void hostile_long_names(struct image *image, struct image_dir root)
{
	char name[DIRENT_NAME_MAX];

	memset(name, 'x', sizeof(name));
	for (size_t len = 254; len <= DIRENT_NAME_MAX; len += len < 257 ? 1 : 51) {
		struct inode inode = image_inode(image, S_IFREG | 0644);

		image_put_object(image, root, name, len, &inode);
	}
}

static void hostile_duplicates(struct image *image, struct image_dir root)
{
	struct image_dir dir = image_add_dir(image, root, "duplicates", 0755);

	for (unsigned probe = 0; probe < 3; probe++) {
		struct inode inode = image_inode(image, S_IFREG | 0644);

		inode.size = probe;
		inode.dir = dir.inum;
		inode.dir_offset = image_put_dirent(image, dir, "same", 4, DIRENT_TYPE_REG, inode.inum, probe);
		image_put_inode(image, &inode);
	}
}

/* A symbolic link that leads out, and a directory of the same name whose files would be written through it. */
static void hostile_symlink_dir(struct image *image, struct image_dir root)
{
	struct image_dir dir = image_add_dir(image, root, "links", 0755);
	struct inode inode = image_inode(image, S_IFDIR | 0755);

	image_add_symlink(image, dir, "x", "/tmp");
	inode.dir = dir.inum;
	inode.dir_offset = image_put_dirent(image, dir, "x", 1, DIRENT_TYPE_DIR, inode.inum, 1);
	image_put_inode(image, &inode);
	image_add_file(image, (struct image_dir){ inode.inum, inode.hash_seed, root.subvol }, "kiln-was-here", 0644,
		       10);

	image_add_symlink(image, dir, "y", "../../../../../../etc");
	inode = image_inode(image, S_IFREG | 0644);
	inode.dir = dir.inum;
	inode.dir_offset = image_put_dirent(image, dir, "y", 1, DIRENT_TYPE_REG, inode.inum, 1);
	image_put_inode(image, &inode);
	image_add_symlink(image, dir, "self", "self");
	image_add_symlink(image, dir, "empty", "");
}

static void hostile_loop(struct image *image, struct image_dir root)
{
	struct image_dir dir = image_add_dir(image, root, "loop", 0755);
	struct image_dir below = image_add_dir(image, dir, "below", 0755);

	image_put_dirent(image, below, "to-loop", 7, DIRENT_TYPE_DIR, dir.inum, 0);
	image_put_dirent(image, below, "to-root", 7, DIRENT_TYPE_DIR, root.inum, 0);
	image_put_dirent(image, below, "to-self", 7, DIRENT_TYPE_DIR, below.inum, 0);
	image_put_dirent(image, below, "to-subvolume", 12, DIRENT_TYPE_SUBVOL, root.subvol, 0);
}

/* Two names for each directory, forty levels of them: 2^40 paths. */
static void hostile_exponential(struct image *image, struct image_dir root)
{
	struct image_dir dir = image_add_dir(image, root, "exponential", 0755);

	for (unsigned i = 0; i < 40; i++) {
		struct image_dir below = image_add_dir(image, dir, "a", 0755);

		image_put_dirent(image, dir, "b", 1, DIRENT_TYPE_DIR, below.inum, 0);
		dir = below;
	}
	image_add_file(image, dir, "end", 0644, 10);
}

static void hostile_deep(struct image *image, struct image_dir root)
{
	struct image_dir dir = image_add_dir(image, root, "deep", 0755);

	for (unsigned i = 0; i < 6000; i++)
		dir = image_add_dir(image, dir, "d", 0755);
	image_add_file(image, dir, "bottom", 0644, 10);
}

static void hostile_types(struct image *image, struct image_dir root)
{
	struct image_dir dir = image_add_dir(image, root, "types", 0755);
	uint64_t file = image_add_file(image, dir, "file", 0644, 10);
	struct image_dir sub = image_add_dir(image, dir, "directory", 0755);

	image_put_dirent(image, dir, "file-as-directory", 17, DIRENT_TYPE_DIR, file, 0);
	image_put_dirent(image, dir, "directory-as-file", 17, DIRENT_TYPE_REG, sub.inum, 0);
	image_put_dirent(image, dir, "file-as-link", 12, DIRENT_TYPE_LNK, file, 0);
	image_put_dirent(image, dir, "missing", 7, DIRENT_TYPE_REG, UINT64_MAX / 2, 0);
	image_put_dirent(image, dir, "missing-subvolume", 17, DIRENT_TYPE_SUBVOL, 12345, 0);
	image_add_special(image, dir, "null", S_IFCHR | 0666, 1 << 20 | 3);
	image_add_special(image, dir, "disk", S_IFBLK | 0666, 8 << 20);
	image_add_special(image, dir, "fifo", S_IFIFO | 0666, 0);
	image_add_special(image, dir, "socket", S_IFSOCK | 0666, 0);
	image_add_special(image, dir, "setuid", S_IFREG | 06755, 0);
	image_add_special(image, dir, "no-type", 0644, 0);
}

/* Files that claim to be large. */
static void hostile_sizes(struct image *image, struct image_dir root)
{
	static const struct {
		const char *name;
		uint64_t size;
	} files[] = {
		{ "max", INT64_MAX },
		{ "over", UINT64_MAX },
		{ "tera", 1ull << 42 },
		{ "exa", 1ull << 60 },
	};
	struct image_dir dir = image_add_dir(image, root, "sizes", 0755);

	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
		struct inode inode = image_inode(image, S_IFREG | 0644);

		inode.size = files[i].size;
		inode.sectors = UINT64_MAX;
		image_put_object(image, dir, files[i].name, strlen(files[i].name), &inode);
	}
}

/* Much data from little: 64 KiB that a file of 1 GiB is made of, and ranges that lead nowhere. */
static void hostile_reflink(struct image *image, struct image_dir root)
{
	struct image_dir dir = image_add_dir(image, root, "reflink", 0755);
	uint32_t sectors = image->options.extent_bytes / SECTOR_BYTES;
	uint64_t idx = image->reflink_next;
	struct inode inode = image_inode(image, S_IFREG | 0644);

	image_put_data(image, BTREE_REFLINK, 0, idx, sectors);
	image->reflink_next += sectors;
	inode.size = 1 << 30;
	for (uint64_t at = 0; at < inode.size / SECTOR_BYTES; at += sectors)
		image_put_reflink(image, inode.inum, at, sectors, idx);
	image_put_object(image, dir, "bomb", 4, &inode);

	inode = image_inode(image, S_IFREG | 0644);
	inode.size = 64 << 10;
	image_put_reflink(image, inode.inum, 0, 32, idx + 1000000);
	image_put_reflink(image, inode.inum, 32, 32, (1ull << 56) - 8);
	image_put_reflink(image, inode.inum, 64, 64, idx + sectors / 2);
	image_put_object(image, dir, "nowhere", 7, &inode);
}

static const struct hostile_kind {
	const char *name;
	void (*add)(struct image *image, struct image_dir root);
	bool is_endless; /* would make a walk of everything last for ever: not part of "all" */
} hostile_kinds[] = {
	{ "names", hostile_names, false },
	{ "long-names", hostile_long_names, false },
	{ "duplicates", hostile_duplicates, false },
	{ "symlink-dir", hostile_symlink_dir, false },
	{ "loop", hostile_loop, false },
	{ "types", hostile_types, false },
	{ "sizes", hostile_sizes, true },
	{ "reflink", hostile_reflink, false },
	{ "deep", hostile_deep, false },
	{ "exponential", hostile_exponential, true },
};
enum { HOSTILE_KINDS = sizeof(hostile_kinds) / sizeof(hostile_kinds[0]) };

/* --- ordinary contents --- */

struct contents {
	uint64_t files, dirs, depth, file_bytes;
	bool is_varied, is_scattered;
	bool hostile[HOSTILE_KINDS];
};

static void contents_add(struct image *image, struct image_dir root, const struct contents *c)
{
	struct image_dir *dirs = calloc(c->dirs + 1, sizeof(*dirs)), deep = root;
	char name[32];

	dirs[0] = root;
	for (uint64_t i = 0; i < c->dirs; i++) {
		snprintf(name, sizeof(name), "d%llu", (unsigned long long)i);
		dirs[i] = image_add_dir(image, i ? dirs[(i - 1) / 8] : root, name, 0755);
	}
	for (uint64_t i = 0; i < c->files; i++) {
		uint64_t bytes = c->is_varied ? rng_below(&image->rng, 2 * c->file_bytes + 1) : c->file_bytes;

		uint64_t dir = !c->dirs ? 0 : c->is_scattered ? i % c->dirs : i * c->dirs / c->files;

		snprintf(name, sizeof(name), "f%llu", (unsigned long long)i);
		image_add_file(image, dirs[dir], name, 0644, bytes);
	}
	for (uint64_t i = 0; i < c->depth; i++)
		deep = image_add_dir(image, deep, "deeper", 0755);
	if (c->depth)
		image_add_file(image, deep, "bottom", 0644, c->file_bytes);
	for (unsigned i = 0; i < HOSTILE_KINDS; i++)
		if (c->hostile[i])
			hostile_kinds[i].add(image, root);
	free(dirs);
}

/* --- command line --- */

static void usage_exit(const char *why)
{
	fprintf(stderr, "build_image: %s\nusage: build_image OUT [OPTIONS]; they are at the head of its source\n", why);
	exit(2);
}

static uint64_t number(const char *text)
{
	char *end;
	uint64_t v = strtoull(text, &end, 0);

	switch (*end) {
	case 'k': v <<= 10; break;
	case 'M': v <<= 20; break;
	case 'G': v <<= 30; break;
	case 0: end--; break;
	default: usage_exit("a number is needed");
	}
	if (end == text - 1 || end[1])
		usage_exit("a number is needed");
	return v;
}

static void hostile_choose(struct contents *c, const char *kind)
{
	bool is_all = !strcmp(kind, "all"), found = is_all;

	for (unsigned i = 0; i < HOSTILE_KINDS; i++) {
		if (!strcmp(kind, "list"))
			printf("%s\n", hostile_kinds[i].name);
		if (is_all ? !hostile_kinds[i].is_endless : !strcmp(kind, hostile_kinds[i].name))
			c->hostile[i] = found = true;
	}
	if (!strcmp(kind, "list"))
		exit(0);
	if (!found)
		usage_exit("no such kind; --hostile list shows them");
}

static void checksum_choose(struct image_options *o, const char *name)
{
	static const struct {
		const char *name;
		unsigned metadata, data;
	} checksums[] = {
		{ "none", CHECKSUM_NONE, CHECKSUM_NONE },
		{ "crc32c", CHECKSUM_CRC32C_NONZERO, CHECKSUM_CRC32C },
		{ "crc64", CHECKSUM_CRC64_NONZERO, CHECKSUM_CRC64 },
		{ "xxhash", CHECKSUM_XXHASH, CHECKSUM_XXHASH },
	};

	for (size_t i = 0; i < sizeof(checksums) / sizeof(checksums[0]); i++)
		if (!strcmp(name, checksums[i].name)) {
			o->metadata_csum = checksums[i].metadata;
			o->data_csum = checksums[i].data;
			return;
		}
	usage_exit("no such checksum");
}

enum {
	ARG_FILES = 1,
	ARG_DIRS,
	ARG_DEPTH,
	ARG_FILE_BYTES,
	ARG_VARY,
	ARG_SCATTER,
	ARG_SEED,
	ARG_BLOCK,
	ARG_NODE,
	ARG_BUCKET,
	ARG_EXTENT,
	ARG_CHECKSUM,
	ARG_SETS,
	ARG_HOSTILE,
};

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "files", required_argument, NULL, ARG_FILES },
		{ "dirs", required_argument, NULL, ARG_DIRS },
		{ "depth", required_argument, NULL, ARG_DEPTH },
		{ "file-bytes", required_argument, NULL, ARG_FILE_BYTES },
		{ "vary", no_argument, NULL, ARG_VARY },
		{ "scatter", no_argument, NULL, ARG_SCATTER },
		{ "seed", required_argument, NULL, ARG_SEED },
		{ "block-bytes", required_argument, NULL, ARG_BLOCK },
		{ "node-bytes", required_argument, NULL, ARG_NODE },
		{ "bucket-bytes", required_argument, NULL, ARG_BUCKET },
		{ "extent-bytes", required_argument, NULL, ARG_EXTENT },
		{ "checksum", required_argument, NULL, ARG_CHECKSUM },
		{ "sets", required_argument, NULL, ARG_SETS },
		{ "hostile", required_argument, NULL, ARG_HOSTILE },
		{ 0 },
	};
	struct image_options o = image_options_default;
	struct contents c = { .file_bytes = 4096 };
	struct image image;
	struct image_dir root;
	int arg;

	while ((arg = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (arg) {
		case ARG_FILES: c.files = number(optarg); break;
		case ARG_DIRS: c.dirs = number(optarg); break;
		case ARG_DEPTH: c.depth = number(optarg); break;
		case ARG_FILE_BYTES: c.file_bytes = number(optarg); break;
		case ARG_VARY: c.is_varied = true; break;
		case ARG_SCATTER: c.is_scattered = true; break;
		case ARG_SEED: o.seed = number(optarg); break;
		case ARG_BLOCK: o.block_bytes = (uint32_t)number(optarg); break;
		case ARG_NODE: o.node_bytes = (uint32_t)number(optarg); break;
		case ARG_BUCKET: o.bucket_bytes = (uint32_t)number(optarg); break;
		case ARG_EXTENT: o.extent_bytes = (uint32_t)number(optarg); break;
		case ARG_CHECKSUM: checksum_choose(&o, optarg); break;
		case ARG_SETS: o.sets_per_node = (unsigned)number(optarg); break;
		case ARG_HOSTILE: hostile_choose(&c, optarg); break;
		default: usage_exit("bad option");
		}
	if (optind + 1 != argc)
		usage_exit("needs the name of the image");
	if (!is_power_of_2(o.block_bytes) || o.block_bytes < 512 || o.block_bytes > 4096 ||
	    !is_power_of_2(o.node_bytes) || o.node_bytes < o.block_bytes || o.node_bytes > o.bucket_bytes ||
	    o.bucket_bytes % o.node_bytes || o.bucket_bytes > 32767 * SECTOR_BYTES || !is_power_of_2(o.extent_bytes) ||
	    o.extent_bytes < o.block_bytes || o.extent_bytes > 128 << 10 || o.extent_bytes > o.bucket_bytes ||
	    !o.sets_per_node)
		usage_exit("sizes that don't go together");

	image_begin(&image, argv[optind], &o, &root);
	contents_add(&image, root, &c);
	image_finish(&image);
	return 0;
}
