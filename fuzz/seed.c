/*
 * Makes what fuzzing starts from out of an image.
 *
 * Usage: fuzz-seed base IMAGE OUT.base.zst      the chunks that aren't zero, compressed (image_load() reads it)
 *        fuzz-seed seeds NAME FOLDER            first inputs for every target, from the base NAME
 */
#include "fuzz.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <zstd.h>

#include "base/array.h"
#include "format/btree_node.h"
#include "format/jset.h"
#include "format/superblock.h"

struct bytes {
	uint8_t *v;
	size_t len, capacity;
};

static void bytes_add(struct bytes *b, const void *src, size_t len)
{
	if (array_grow(&b->v, &b->capacity, b->len + len, 1))
		abort();
	memcpy(b->v + b->len, src, len);
	b->len += len;
}

static void bytes_add_u16(struct bytes *b, size_t v)
{
	uint8_t le[2];

	le16_store(le, (uint16_t)v);
	bytes_add(b, le, 2);
}

static void bytes_write(struct bytes *b, const char *path)
{
	FILE *f = fopen(path, "wb");

	if (!f || fwrite(b->v, 1, b->len, f) != b->len || fclose(f)) {
		perror(path);
		exit(1);
	}
	b->len = 0;
}

static int base_write(const char *image_path, const char *out)
{
	static uint8_t chunk[IMAGE_CHUNK_BYTES], zeroes[IMAGE_CHUNK_BYTES];
	struct bytes b = { 0 };
	FILE *f = fopen(image_path, "rb");
	uint8_t word[8];

	if (!f) {
		perror(image_path);
		return 1;
	}
	bytes_add(&b, word, 8);
	uint64_t nr = 0;
	for (; fread(chunk, sizeof(chunk), 1, f) == 1; nr++) {
		if (!memcmp(chunk, zeroes, sizeof(chunk)))
			continue;
		le64_store(word, nr);
		bytes_add(&b, word, 8);
		bytes_add(&b, chunk, sizeof(chunk));
	}
	fclose(f);
	le64_store(b.v, nr * IMAGE_CHUNK_BYTES);

	struct bytes packed = { malloc(ZSTD_compressBound(b.len)), 0, 0 };
	packed.len = ZSTD_compress(packed.v, ZSTD_compressBound(b.len), b.v, b.len, 19);
	printf("%s: %zu bytes of %zu\n", out, packed.len, b.len);
	bytes_write(&packed, out);
	free(packed.v);
	free(b.v);
	return 0;
}

/* --- seeds --- */

static char path[4096];

static const char *seed_path(const char *folder, const char *target, const char *name, uint64_t nr)
{
	snprintf(path, sizeof(path), "%s/%s", folder, target);
	mkdir(path, 0777);
	snprintf(path, sizeof(path), "%s/%s/%s-%llx", folder, target, name, (unsigned long long)nr);
	return path;
}

/* One key of each type, and a few more. */
struct key_seeds {
	const char *folder, *name;
	struct bkey_format format;
	unsigned btree_id, level;
	unsigned seen[KEY_TYPE_NR];
};

static int key_seed(void *ctx, const void *packed, const struct bkey *k)
{
	struct key_seeds *s = ctx;
	struct bytes b = { 0 };
	const void *value;
	struct bkey_disk d = { 0 };
	struct bkey unpacked = bkey_unpack(&s->format, packed, &value);

	if (k->type >= KEY_TYPE_NR || s->seen[k->type]++ > 8)
		return 0;
	bkey_store(&d, &unpacked);
	bytes_add(&b, (uint8_t[]){ 3 << 4, (uint8_t)s->btree_id, (uint8_t)s->level }, 3);
	bytes_add(&b, &d, sizeof(d));
	bytes_add(&b, value, bkey_value_bytes(&unpacked));
	bytes_write(&b, seed_path(s->folder, "key", s->name, (uint64_t)s->seen[k->type] << 8 | k->type));
	free(b.v);
	return 0;
}

static void node_seeds(struct key_seeds *s, const struct image *image, struct device *dev, const struct structure *st)
{
	uint8_t *node = malloc(image->node_bytes);
	struct btree_node_disk *n = (struct btree_node_disk *)node;
	struct bytes b = { 0 };
	struct bset_info info;
	struct fault fault;
	struct key_context kctx;

	image_device_peek(dev, st->offset, node, image->node_bytes);
	fuzz_key_context(&kctx, (uint8_t)((unsigned)__builtin_ctz(image->block_bytes / SECTOR_BYTES) << 4));
	s->btree_id = btree_node_id(le64_get(n->flags));
	s->level = btree_node_level(le64_get(n->flags));
	if (st->bytes <= 32 << 10) {
		uint8_t block_log2 = (uint8_t)__builtin_ctz(image->block_bytes / SECTOR_BYTES);

		bytes_add(&b, (uint8_t[]){ 1, (uint8_t)s->btree_id, (uint8_t)s->level, (uint8_t)(block_log2 << 4) }, 4);
		bytes_add_u16(&b, st->bytes);
		bytes_add(&b, node, st->bytes);
		bytes_write(&b, seed_path(s->folder, "node", s->name, st->offset));
	}

	struct btree_node_expect expect = {
		.btree_id = s->btree_id,
		.level = s->level,
		.magic = le64_get(n->magic),
		.seq = le64_get(n->keys.seq),
		.min_key = bpos_load(&n->min_key),
		.max_key = bpos_load(&n->max_key),
		.sectors_written = (uint16_t)(st->bytes / SECTOR_BYTES),
		.node_sectors = (uint16_t)(image->node_bytes / SECTOR_BYTES),
		.block_sectors = (uint8_t)(image->block_bytes / SECTOR_BYTES),
	};
	struct bset_check check = { .keep = key_seed, .ctx = s };
	for (size_t at = 0; at < st->bytes && bset_read(node, at, &expect, &s->format, &info, &fault) > 0;
	     at = round_up_u64(info.keys_offset + info.keys_u64s * 8, image->block_bytes))
		if (bset_check_keys(node, &info, &s->format, &expect, &kctx, &check) < 0)
			break;
	free(b.v);
	free(node);
}

static int seeds_write(const char *name, const char *folder)
{
	struct image *image = image_load(name);
	struct device *dev = image_device_open(image, image->size_bytes);
	struct key_seeds keys = { .folder = folder, .name = name };
	struct bytes b = { 0 }, journal = { 0 };
	unsigned jsets = 0;

	for (size_t i = 0; i < image->structure_nr; i++) {
		const struct structure *s = &image->structures[i];
		uint8_t *bytes = malloc(s->bytes);

		image_device_peek(dev, s->offset, bytes, s->bytes);
		if (s->kind == STRUCTURE_SUPERBLOCK && s->offset == SB_SECTOR * SECTOR_BYTES) {
			bytes_add(&b, (uint8_t[]){ 1 }, 1);
			bytes_add(&b, bytes, s->bytes);
			bytes_write(&b, seed_path(folder, "superblock", name, 0));
		} else if (s->kind == STRUCTURE_JSET && s->bytes < 16384) {
			if (!journal.len)
				bytes_add(&journal, (uint8_t[]){ 0 }, 1);
			bytes_add(&journal, (uint8_t[]){ 0, 0, (uint8_t)(jsets * 2) }, 3);
			bytes_add_u16(&journal, s->bytes);
			bytes_add(&journal, bytes, s->bytes);
			if (++jsets % 4 == 0)
				bytes_write(&journal, seed_path(folder, "journal", name, s->offset));
		} else if (s->kind == STRUCTURE_NODE) {
			node_seeds(&keys, image, dev, s);
		}
		free(bytes);
	}
	if (journal.len)
		bytes_write(&journal, seed_path(folder, "journal", name, jsets));
	free(b.v);
	free(journal.v);
	device_close(dev);
	image_free(image);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "base"))
		return base_write(argv[2], argv[3]);
	if (argc == 4 && !strcmp(argv[1], "seeds"))
		return seeds_write(argv[2], argv[3]);
	fprintf(stderr, "usage: fuzz-seed base IMAGE OUT | fuzz-seed seeds NAME FOLDER\n");
	return 2;
}
