/*
 * A whole small filesystem, damaged: opened, listed, walked, and read, as `kiln list`, `ls -lR` and `cat` would.
 *
 * Input: which base image, then edits. An edit is: operation, structure (16 bits, an index into those found in the
 * image), offset in it (16 bits), and the new bytes. Bits of the operation: 0-4 length - 1; 5: the bytes are not in the
 * input but copied from another structure (its index and offset follow); 6: the offset is in units of 8 bytes;
 * 7: don't seal the structure again.
 */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/fs.h"

enum { EDITS_MAX = 64, OBJECTS_MAX = 250, READ_BYTES = 64 << 10 };

static const char *const base_names[] = { "formatted", "snapshots", "unclean-snapshots", "built" };
static struct image *bases[ARRAY_NR(base_names)];

static void edit_apply(struct input *in, struct device *dev, const struct image *image)
{
	uint8_t op = (uint8_t)input_take(in, 1), buf[32] = { 0 };
	const struct structure *s = &image->structures[input_take(in, 2) % image->structure_nr];
	uint64_t offset = input_take(in, 2) << (op & 64 ? 3 : 0);
	size_t len = (op & 31) + 1u;

	if (op & 32) {
		const struct structure *from = &image->structures[input_take(in, 2) % image->structure_nr];
		uint64_t from_offset = input_take(in, 2) << (op & 64 ? 3 : 0);

		image_device_peek(dev, from->offset + from_offset % from->bytes, buf, sizeof(buf));
		len = op & 64 ? sizeof(buf) : len;
	} else {
		const uint8_t *bytes = input_take_bytes(in, &len);

		memcpy(buf, bytes, len);
	}
	image_device_patch(dev, s->offset + offset % s->bytes, buf, len);
	if (!(op & 128))
		image_reseal(dev, image, s);
}

/* --- what a user does --- */

struct visitor {
	kiln_fs *fs;
	uint8_t *buf;
	unsigned objects;
};

static void no_damage(void *ctx, uint64_t offset, uint64_t len, int error) {}

static void read_file(struct visitor *v, const struct kiln_stat *st)
{
	struct kiln_node node = st->node;

	kiln_read(v->fs, node, 0, v->buf, READ_BYTES);
	kiln_read_rescue(v->fs, node, 0, v->buf, READ_BYTES, no_damage, NULL);
	if (st->size > READ_BYTES)
		kiln_read_rescue(v->fs, node, st->size - READ_BYTES / 2 - 7, v->buf, READ_BYTES, no_damage, NULL);
	int64_t at = 0;
	for (unsigned i = 0; i < 16 && at >= 0; i++)
		at = i & 1 ? kiln_seek_hole(v->fs, node, (uint64_t)at) : kiln_seek_data(v->fs, node, (uint64_t)at);
}

static void read_xattrs(struct visitor *v, struct kiln_node node)
{
	ssize_t len = kiln_listxattr(v->fs, node, (char *)v->buf, READ_BYTES / 2);
	char *value = (char *)v->buf + READ_BYTES / 2;

	for (ssize_t at = 0; at < len; at += (ssize_t)strlen((char *)v->buf + at) + 1)
		kiln_getxattr(v->fs, node, (char *)v->buf + at, value, READ_BYTES / 2);
	kiln_getxattr(v->fs, node, "user.missing", value, 0);
	kiln_getxattr(v->fs, node, "bcachefs_effective.compression", value, READ_BYTES / 2);
}

static int visit(void *ctx, const struct kiln_walk_entry *entry)
{
	struct visitor *v = ctx;
	struct kiln_stat st;

	if (++v->objects > OBJECTS_MAX)
		return -ECANCELED;
	if (!entry->st || entry->event != KILN_WALK_ENTER)
		return 0;
	if (S_ISREG(entry->st->mode))
		read_file(v, entry->st);
	if (S_ISLNK(entry->st->mode))
		kiln_readlink(v->fs, entry->st->node, (char *)v->buf, READ_BYTES);
	if (S_ISDIR(entry->st->mode))
		kiln_lookup(v->fs, entry->st->node, "..", 2, &st);
	if (v->objects < 50)
		kiln_lookup_path(v->fs, entry->path, KILN_FOLLOW, &st);
	read_xattrs(v, entry->st->node);
	return 0;
}

static int see_node(void *ctx, const struct btree_node_info *info, int err) { return ++*(unsigned *)ctx > 500; }

/* As `kiln list`. */
static void list_keys(struct kiln_fs *fs)
{
	for (unsigned id = 0; id < BTREE_NR_MAX; id++) {
		struct btree_iter it;
		struct bkey_ref k;
		unsigned nodes = 0;

		if (btree_root_level(fs->trees, id) < 0)
			continue;
		btree_nodes_walk(fs->trees, id, see_node, &nodes);
		btree_iter_open(&it, fs->trees, id, POS_MIN, BTREE_ITER_ALL_SNAPSHOTS, 0);
		for (unsigned i = 0; i < 400; i++) {
			int ret = btree_iter_peek(&it, &k);

			if (!ret || ret == -ENOMEM)
				break;
			if (ret < 0) {
				btree_iter_skip_damage(&it);
				continue;
			}
			struct strbuf text = strbuf_growing();
			key_to_text(&text, k, &fs->super->kctx);
			strbuf_free(&text);
			btree_iter_advance(&it);
		}
		btree_iter_close(&it);
	}
}

static void take_report(void *ctx, const struct kiln_report *report) { (void)strlen(report->text); }
static ssize_t no_passphrase(void *ctx, const char *uuid, unsigned attempt, char *buf, size_t size) { return -ENOKEY; }

static void use_filesystem(struct device *dev)
{
	struct kiln_open_options options = {
		.struct_bytes = sizeof(options),
		.flags = KILN_OPEN_VERY_DEGRADED | KILN_OPEN_NO_SCAN,
		.memory_bytes = KILN_MEMORY_MIN,
		.report = take_report,
		.passphrase = no_passphrase,
	};
	char why[KILN_ERROR_BYTES];
	struct kiln_usage usage;
	struct kiln_fs *fs;

	if (fs_open(NULL, 0, &dev, 1, &options, FS_NAMESPACE, &fs, why))
		return;
	struct visitor v = { fs, malloc(READ_BYTES), 0 };
	list_keys(fs);
	kiln_usage(fs, &usage);
	kiln_walk(fs, kiln_root(fs), visit, &v);
	free(v.buf);
	kiln_close(fs);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, data + size };
	unsigned base = (unsigned)input_take(&in, 1) % ARRAY_NR(bases);

	if (!bases[base])
		bases[base] = image_load(base_names[base]);
	struct device *dev = image_device_open(bases[base], bases[base]->size_bytes);
	for (unsigned i = 0; i < EDITS_MAX && input_left(&in); i++)
		edit_apply(&in, dev, bases[base]);
	use_filesystem(dev);
	return 0;
}
