/*
 * Read a whole filesystem through the public API alone, and print what is in it as JSON, in the form of the images'
 * manifests (tests/images/README.md). test_images.py runs this and compares.
 *
 *	read_tree [--degraded] [--very-degraded] [--passphrase-file FILE] [--memory BYTES] FS
 *	read_tree [...] --cat PATH FS		the file's bytes, damaged ranges as zeroes
 *
 * Beyond a manifest's keys, an entry has "data" ([offset, length] of what isn't a hole), "damage" ([offset, length,
 * error] of what couldn't be read), "error" (what the walk, or reading a symlink, said) and "xattrs_error". The head
 * has "reports", "counts", "fallback" and "usage"; when the filesystem doesn't open, there is only "error" and "why".
 *
 * Exit status: 0 when it opened, 1 when it did not, 2 for wrong arguments.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <kiln/kiln.h>
#include <limits.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
	CHUNK_BYTES = 1 << 20,
	WHOLE_FILE_BYTES_MAX = 64 << 20, /* larger files are probed, as the manifests do */
	PROBE_BYTES = 65536,
	SEGMENTS_MAX = 4096,
};

struct reader {
	kiln_fs *fs;
	json_t *entries, *reports;
	const char *passphrase_file;
	char *chunk;
};

/* Text where it is text, otherwise every byte outside 0x20..0x7e and every backslash as \xNN. */
static json_t *bytes_to_json(const char *bytes, size_t len)
{
	bool is_plain = true;

	for (size_t i = 0; i < len; i++)
		is_plain &= (unsigned char)bytes[i] >= 0x20 && bytes[i] != 0x7f && bytes[i] != '\\';
	json_t *text = is_plain ? json_stringn(bytes, len) : NULL;
	if (text)
		return text;

	char *escaped = malloc(4 * len + 1), *to = escaped;
	if (!escaped)
		return NULL;
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)bytes[i];
		if (c >= 0x20 && c <= 0x7e && c != '\\')
			*to++ = (char)c;
		else
			to += sprintf(to, "\\x%02x", c);
	}
	text = json_stringn(escaped, (size_t)(to - escaped));
	free(escaped);
	return text;
}

static json_t *error_to_json(int64_t err) { return json_string(strerrorname_np((int)-err)); }

/* --- content --- */

static void note_damage(void *ctx, uint64_t offset, uint64_t len, int error)
{
	json_array_append_new(ctx,
			      json_pack("[I, I, s]", (json_int_t)offset, (json_int_t)len, strerrorname_np(-error)));
}

/* Hash a range. False when it couldn't be read to its end. */
static bool hash_range(struct reader *r, struct kiln_node node, uint64_t offset, uint64_t len, json_t *damage,
		       char hex[2 * crypto_hash_sha256_BYTES + 1])
{
	unsigned char hash[crypto_hash_sha256_BYTES];
	crypto_hash_sha256_state state;

	crypto_hash_sha256_init(&state);
	for (uint64_t end = offset + len; offset < end;) {
		size_t want = end - offset < CHUNK_BYTES ? (size_t)(end - offset) : CHUNK_BYTES;
		ssize_t n = kiln_read_rescue(r->fs, node, offset, r->chunk, want, note_damage, damage);

		if (n <= 0) {
			json_array_append_new(damage,
					      json_pack("[I, I, s]", (json_int_t)offset, (json_int_t)(end - offset),
							n ? strerrorname_np((int)-n) : "short"));
			return false;
		}
		crypto_hash_sha256_update(&state, (unsigned char *)r->chunk, (unsigned long long)n);
		offset += (uint64_t)n;
	}
	crypto_hash_sha256_final(&state, hash);
	sodium_bin2hex(hex, 2 * crypto_hash_sha256_BYTES + 1, hash, sizeof(hash));
	return true;
}

/* The ranges of a file that are too large to read that the manifests give hashes for. */
static json_t *probe(struct reader *r, const struct kiln_stat *st, json_t *damage)
{
	/* In ascending order; the tail may be one of the others, or before them. */
	const uint64_t tail = (st->size - PROBE_BYTES) & ~4095ull, fixed[] = { 0, 1ull << 39, (1ull << 46) + 4096 };
	uint64_t at[4];
	size_t nr = 0;
	json_t *probes = json_array();
	char hex[2 * crypto_hash_sha256_BYTES + 1];

	for (size_t i = 0; i < 3 && fixed[i] < tail; i++)
		at[nr++] = fixed[i];
	at[nr++] = tail;
	for (size_t i = 0; i < 3; i++)
		if (fixed[i] > tail && fixed[i] < st->size)
			at[nr++] = fixed[i];
	for (size_t i = 0; i < nr; i++) {
		uint64_t len = st->size - at[i] < PROBE_BYTES ? st->size - at[i] : PROBE_BYTES;
		if (hash_range(r, st->node, at[i], len, damage, hex))
			json_array_append_new(probes, json_pack("{s:I, s:I, s:s}", "offset", (json_int_t)at[i],
								"length", (json_int_t)len, "sha256", hex));
	}
	return probes;
}

/* Offsets and lengths of what isn't a hole; NULL after too many, or when seeking doesn't advance. */
static json_t *data_segments(struct reader *r, const struct kiln_stat *st)
{
	json_t *segments = json_array();
	int64_t from = 0;

	for (unsigned i = 0; i < SEGMENTS_MAX; i++) {
		from = kiln_seek_data(r->fs, st->node, (uint64_t)from);
		if (from == -ENXIO)
			return segments;
		int64_t to = from < 0 ? from : kiln_seek_hole(r->fs, st->node, (uint64_t)from);
		if (to <= from || (uint64_t)to > st->size)
			break;
		json_array_append_new(segments, json_pack("[I, I]", (json_int_t)from, (json_int_t)(to - from)));
		from = to;
	}
	json_decref(segments);
	return NULL;
}

static void add_file(struct reader *r, const struct kiln_stat *st, json_t *entry)
{
	json_t *damage = json_array();
	char hex[2 * crypto_hash_sha256_BYTES + 1];

	if (st->size > WHOLE_FILE_BYTES_MAX)
		json_object_set_new(entry, "probes", probe(r, st, damage));
	else if (hash_range(r, st->node, 0, st->size, damage, hex))
		json_object_set_new(entry, "sha256", json_string(hex));
	json_t *segments = data_segments(r, st);
	json_object_set_new(entry, "data", segments ? segments : json_string("seeking failed"));
	if (json_array_size(damage))
		json_object_set(entry, "damage", damage);
	json_decref(damage);
}

static void add_symlink(struct reader *r, const struct kiln_stat *st, json_t *entry)
{
	char target[PATH_MAX];
	ssize_t len = kiln_readlink(r->fs, st->node, target, sizeof(target));

	if (len < 0)
		json_object_set_new(entry, "error", error_to_json(len));
	else
		json_object_set_new(entry, "target", bytes_to_json(target, (size_t)len));
}

/* --- attributes --- */

static void add_xattrs(struct reader *r, const struct kiln_stat *st, json_t *entry)
{
	ssize_t len = kiln_listxattr(r->fs, st->node, NULL, 0);
	char *names = malloc((size_t)(len > 0 ? len : 0) + 1);
	json_t *xattrs = json_object();

	if (len > 0)
		len = kiln_listxattr(r->fs, st->node, names, (size_t)len);
	for (ssize_t at = 0; at < len; at += (ssize_t)strlen(names + at) + 1) {
		char value[65536];
		ssize_t n = kiln_getxattr(r->fs, st->node, names + at, value, sizeof(value));

		if (n < 0)
			len = n;
		else
			json_object_set_new(xattrs, names + at, bytes_to_json(value, (size_t)n));
	}
	if (len < 0)
		json_object_set_new(entry, "xattrs_error", error_to_json(len));
	else if (json_object_size(xattrs))
		json_object_set(entry, "xattrs", xattrs);
	json_decref(xattrs);
	free(names);
}

static const char *type_name(uint32_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFREG: return "file";
	case S_IFDIR: return "dir";
	case S_IFLNK: return "symlink";
	case S_IFIFO: return "fifo";
	case S_IFCHR: return "chr";
	case S_IFBLK: return "blk";
	case S_IFSOCK: return "sock";
	default: return "unknown";
	}
}

static void add_stat(struct reader *r, const struct kiln_stat *st, json_t *entry)
{
	json_object_set_new(entry, "type", json_string(type_name(st->mode)));
	json_object_set_new(entry, "mode", json_integer(st->mode & 07777));
	json_object_set_new(entry, "uid", json_integer(st->uid));
	json_object_set_new(entry, "gid", json_integer(st->gid));
	json_object_set_new(entry, "nlink", json_integer(st->nlink));
	json_object_set_new(entry, "ino", json_integer((json_int_t)st->node.ino));
	json_object_set_new(entry, "subvol", json_integer(st->node.subvol));
	json_object_set_new(entry, "mtime_ns", json_integer((json_int_t)(st->mtime.sec * 1000000000 + st->mtime.nsec)));
	if (!S_ISDIR(st->mode))
		json_object_set_new(entry, "size", json_integer((json_int_t)st->size));
	if (S_ISREG(st->mode))
		add_file(r, st, entry);
	else if (S_ISLNK(st->mode))
		add_symlink(r, st, entry);
	else if (S_ISCHR(st->mode) || S_ISBLK(st->mode))
		json_object_set_new(entry, "rdev", json_pack("[i, i]", (int)st->rdev_major, (int)st->rdev_minor));
	add_xattrs(r, st, entry);
}

static int visit(void *ctx, const struct kiln_walk_entry *e)
{
	struct reader *r = ctx;

	if (e->event == KILN_WALK_LEAVE)
		return 0;
	json_t *entry = json_object();
	json_object_set_new(entry, "path", *e->path ? bytes_to_json(e->path, strlen(e->path)) : json_string("."));
	if (e->event == KILN_WALK_ERROR)
		json_object_set_new(entry, "error", error_to_json(e->error));
	else
		add_stat(r, e->st, entry);
	json_array_append_new(r->entries, entry);
	return 0;
}

/* --- the filesystem --- */

static void note_report(void *ctx, const struct kiln_report *report)
{
	static const char *const levels[] = { "info", "recovered", "damage", "fatal" };
	struct reader *r = ctx;

	json_array_append_new(r->reports,
			      json_pack("{s:s, s:s, s:s?, s:s?, s:s?, s:s?, s:s?, s:s?, s:s?}", "level",
					levels[report->level], "error",
					report->error ? strerrorname_np(-report->error) : "none", "id",
					report->error_id_name, "device", report->device, "structure", report->structure,
					"position", report->position, "expected", report->expected, "found",
					report->found, "advice", report->advice));
}

static ssize_t read_passphrase(void *ctx, const char *uuid, unsigned attempt, char *buf, size_t size)
{
	struct reader *r = ctx;
	FILE *file = r->passphrase_file && !attempt ? fopen(r->passphrase_file, "r") : NULL;

	(void)uuid;
	if (!file)
		return attempt ? -EKEYREJECTED : -ENOKEY;
	ssize_t len = fgets(buf, (int)size, file) ? (ssize_t)strcspn(buf, "\n") : -ENODATA;
	fclose(file);
	return len;
}

static json_t *usage_to_json(kiln_fs *fs)
{
	struct kiln_usage u;
	int err = kiln_usage(fs, &u);

	if (err)
		return error_to_json(err);
	return json_pack("{s:b, s:I, s:I, s:I, s:s, s:b, s:b, s:b, s:i}", "is_known", u.is_known, "capacity",
			 (json_int_t)u.capacity, "used", (json_int_t)u.used, "inodes", (json_int_t)u.inodes, "version",
			 u.version, "is_clean", u.is_clean, "is_encrypted", u.is_encrypted, "is_degraded",
			 u.is_degraded, "devices", (int)u.device_nr);
}

static int print(json_t *head)
{
	int err = head ? json_dumpf(head, stdout, JSON_COMPACT) : -1;

	json_decref(head);
	return err || fflush(stdout) ? 1 : 0;
}

static int print_tree(struct reader *r)
{
	uint64_t counts[4];

	r->entries = json_array();
	int err = kiln_walk(r->fs, kiln_root(r->fs), visit, r);
	kiln_report_counts(r->fs, counts);
	json_t *head =
		json_pack("{s:o, s:s?, s:[I, I, I, I], s:o, s:o}", "usage", usage_to_json(r->fs), "fallback",
			  kiln_fallback(r->fs), "counts", (json_int_t)counts[0], (json_int_t)counts[1],
			  (json_int_t)counts[2], (json_int_t)counts[3], "reports", r->reports, "entries", r->entries);
	if (err)
		json_object_set_new(head, "walk_error", error_to_json(err));
	return print(head);
}

static int print_content(struct reader *r, const char *path)
{
	json_t *damage = json_array();
	struct kiln_stat st;
	int64_t n = kiln_lookup_path(r->fs, path, 0, &st);

	for (uint64_t offset = 0; n >= 0 && offset < st.size; offset += (uint64_t)n) {
		n = kiln_read_rescue(r->fs, st.node, offset, r->chunk, CHUNK_BYTES, note_damage, damage);
		if (!n || (n > 0 && fwrite(r->chunk, 1, (size_t)n, stdout) != (size_t)n))
			n = -EIO;
	}
	json_decref(damage);
	json_decref(r->reports);
	return n < 0 || fflush(stdout) ? 1 : 0;
}

int main(int argc, char **argv)
{
	static const struct option long_options[] = {
		{ "degraded", no_argument, NULL, 'd' },
		{ "very-degraded", no_argument, NULL, 'D' },
		{ "passphrase-file", required_argument, NULL, 'p' },
		{ "memory", required_argument, NULL, 'm' },
		{ "cat", required_argument, NULL, 'c' },
		{ 0 },
	};
	struct reader r = { .reports = json_array(), .chunk = malloc(CHUNK_BYTES) };
	struct kiln_open_options options = {
		.struct_bytes = sizeof(options),
		.flags = KILN_OPEN_NO_SCAN,
		.ctx = &r,
		.report = note_report,
		.passphrase = read_passphrase,
	};
	const char *content_path = NULL;
	char why[KILN_ERROR_BYTES];

	for (int c; (c = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
		switch (c) {
		case 'd': options.flags |= KILN_OPEN_DEGRADED; break;
		case 'D': options.flags |= KILN_OPEN_DEGRADED | KILN_OPEN_VERY_DEGRADED; break;
		case 'p': r.passphrase_file = optarg; break;
		case 'm': options.memory_bytes = strtoull(optarg, NULL, 0); break;
		case 'c': content_path = optarg; break;
		default: return 2;
		}
	}
	if (optind + 1 != argc || !r.chunk || sodium_init() < 0)
		return 2;

	int status = 1;
	const char *device = argv[optind];
	int err = kiln_open(&device, 1, &options, &r.fs, why);
	if (err)
		print(json_pack("{s:o, s:s, s:o}", "error", error_to_json(err), "why", why, "reports", r.reports));
	else
		status = content_path ? print_content(&r, content_path) : print_tree(&r);
	kiln_close(err ? NULL : r.fs);
	free(r.chunk);
	return status;
}
