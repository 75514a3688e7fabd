/* Images in memory, for the fuzz targets (see fuzz.h). */
#include "fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <zstd.h>

#include "base/array.h"
#include "format/btree_node.h"
#include "format/jset.h"
#include "format/superblock.h"

static void *must(void *p)
{
	if (!p)
		abort();
	return p;
}

/* --- bases: compressed lists of the chunks that aren't zero (base_write() in seed.c) --- */

static uint8_t *file_read(const char *path, size_t *len)
{
	FILE *f = fopen(path, "rb");
	uint8_t *bytes = NULL;
	size_t capacity = 0;

	*len = 0;
	if (!f) {
		perror(path);
		exit(1);
	}
	for (size_t n = 1; n; *len += n) {
		if (array_grow(&bytes, &capacity, *len + 65536, 1))
			abort();
		n = fread(bytes + *len, 1, 65536, f);
	}
	fclose(f);
	return bytes;
}

struct image *image_load(const char *name)
{
	enum { RECORD_BYTES = 8 + IMAGE_CHUNK_BYTES };
	struct image *image = must(calloc(1, sizeof(*image)));
	const char *dir = getenv("KILN_FUZZ_BASES");
	char path[4096];
	size_t packed_bytes;

	snprintf(path, sizeof(path), "%s/%s.base.zst", dir ? dir : FUZZ_BASES, name);
	uint8_t *packed = file_read(path, &packed_bytes);
	unsigned long long bytes = ZSTD_getFrameContentSize(packed, packed_bytes);
	if (ZSTD_isError(bytes) || bytes > 1ull << 30 || bytes % RECORD_BYTES != 8) {
		fprintf(stderr, "%s: not a base\n", path);
		exit(1);
	}
	image->memory = must(malloc(bytes));
	if (ZSTD_decompress(image->memory, bytes, packed, packed_bytes) != bytes)
		abort();
	free(packed);

	image->size_bytes = le64_load(image->memory);
	image->chunk_nr = bytes / RECORD_BYTES;
	image->chunks = must(calloc(image->chunk_nr, sizeof(*image->chunks)));
	for (size_t i = 0; i < image->chunk_nr; i++) {
		uint8_t *record = image->memory + 8 + i * RECORD_BYTES;

		image->chunks[i] = (struct image_chunk){ le64_load(record), record + 8 };
	}
	image_find_structures(image);
	return image;
}

void image_free(struct image *image)
{
	free(image->structures);
	free(image->chunks);
	free(image->memory);
	free(image);
}

static const uint8_t *image_chunk(const struct image *image, uint64_t nr)
{
	size_t lo = 0, hi = image ? image->chunk_nr : 0;

	while (lo < hi) {
		size_t mid = (lo + hi) / 2;

		if (image->chunks[mid].nr == nr)
			return image->chunks[mid].bytes;
		if (image->chunks[mid].nr < nr)
			lo = mid + 1;
		else
			hi = mid;
	}
	return NULL;
}

/* --- structures --- */

size_t node_seal(uint8_t *buf, size_t node_bytes, size_t block_bytes, bool is_sealing)
{
	uint64_t seq = 0;
	size_t offset = 0;

	while (offset + bset_header_bytes(offset) <= node_bytes) {
		struct bset_disk *set = bset_at(buf, offset);
		size_t end = offset + bset_header_bytes(offset) + (size_t)le16_get(set->u64s) * 8;
		unsigned type = bset_csum_type(set);

		if (offset && le64_get(set->seq) != seq)
			break;
		if (end > node_bytes)
			break;
		seq = le64_get(set->seq);
		if (is_sealing && type < CHECKSUM_TYPE_NR && !checksum_is_mac(type))
			bset_seal(buf, offset, type, NULL);
		offset = round_up_u64(end, block_bytes);
	}
	return min(offset, node_bytes);
}

static void structure_add(struct image *image, size_t *capacity, struct structure s)
{
	if (array_grow(&image->structures, capacity, image->structure_nr + 1, sizeof(s)))
		abort();
	image->structures[image->structure_nr++] = s;
}

void image_find_structures(struct image *image)
{
	struct device *dev = image_device_open(image, image->size_bytes);
	struct sb_disk sb;
	size_t capacity = 0;

	image_device_peek(dev, SB_SECTOR * SECTOR_BYTES, &sb, sizeof(sb));
	image->block_bytes = max(le16_get(sb.block_size), (uint16_t)1) * SECTOR_BYTES;
	image->node_bytes = SB_BTREE_NODE_SECTORS(&sb) * SECTOR_BYTES;
	memcpy(image->uuid, sb.uuid, 16);
	uint8_t *node = must(calloc(1, max(image->node_bytes, (uint32_t)IMAGE_CHUNK_BYTES)));

	for (size_t i = 0; i < image->chunk_nr; i++)
		for (uint32_t at = 0; at < IMAGE_CHUNK_BYTES; at += image->block_bytes) {
			const uint8_t *bytes = image->chunks[i].bytes + at;
			uint64_t offset = image->chunks[i].nr * IMAGE_CHUNK_BYTES + at;

			if (!memcmp(bytes + offsetof(struct sb_disk, magic), sb_magic, 16)) {
				const struct sb_disk *copy = (const struct sb_disk *)bytes;

				structure_add(image, &capacity,
					      (struct structure){ STRUCTURE_SUPERBLOCK, offset,
								  (uint32_t)min(sb_bytes(copy), 1u << 20) });
			} else if (le64_load(bytes + 16) == btree_node_magic(image->uuid)) {
				image_device_peek(dev, offset, node, image->node_bytes);
				size_t used = node_seal(node, image->node_bytes, image->block_bytes, false);
				if (used)
					structure_add(image, &capacity,
						      (struct structure){ STRUCTURE_NODE, offset, (uint32_t)used });
			} else if (le64_load(bytes + 16) == jset_magic(image->uuid)) {
				const struct jset_disk *j = (const struct jset_disk *)bytes;

				structure_add(image, &capacity,
					      (struct structure){ STRUCTURE_JSET, offset,
								  (uint32_t)min(jset_bytes(j), 1u << 20) });
			}
		}
	free(node);
	device_close(dev);
}

void image_reseal(struct device *dev, const struct image *image, const struct structure *s)
{
	/* A length that was changed may say more than the structure had. */
	size_t room = s->kind == STRUCTURE_NODE ? image->node_bytes : s->bytes + 65536;
	uint8_t *buf = must(malloc(room));

	image_device_peek(dev, s->offset, buf, room);
	if (s->kind == STRUCTURE_NODE) {
		room = node_seal(buf, image->node_bytes, image->block_bytes, true);
		image_device_patch(dev, s->offset, buf, room);
	} else if (s->kind == STRUCTURE_SUPERBLOCK) {
		struct sb_disk *sb = (struct sb_disk *)buf;
		unsigned type = SB_CSUM_TYPE(sb);

		if (sb_bytes(sb) <= room && type < CHECKSUM_TYPE_NR && !checksum_is_mac(type))
			sb_seal(sb, type);
		image_device_patch(dev, s->offset, buf, sizeof(sb->csum));
	} else {
		struct jset_disk *j = (struct jset_disk *)buf;
		unsigned type = jset_csum_type(j);

		if (jset_bytes(j) <= room && type < CHECKSUM_TYPE_NR && !checksum_is_mac(type))
			jset_seal(j, type, NULL);
		image_device_patch(dev, s->offset, buf, sizeof(j->csum));
	}
	free(buf);
}

/* --- the device: chunks that were changed are in a small hash table --- */

enum { CHANGED_SLOTS = 1024 };

struct changed_chunk {
	struct changed_chunk *next;
	uint64_t nr;
	uint8_t bytes[IMAGE_CHUNK_BYTES];
};

struct image_device {
	struct device dev;
	const struct image *image;
	struct changed_chunk *changed[CHANGED_SLOTS];
};

static struct image_device *image_device(struct device *dev) { return container_of(dev, struct image_device, dev); }

/* Bytes of a chunk, NULL for zeroes. */
static const uint8_t *chunk_bytes(const struct image_device *d, uint64_t nr)
{
	for (const struct changed_chunk *c = d->changed[nr % CHANGED_SLOTS]; c; c = c->next)
		if (c->nr == nr)
			return c->bytes;
	return image_chunk(d->image, nr);
}

static uint8_t *chunk_change(struct image_device *d, uint64_t nr)
{
	struct changed_chunk **slot = &d->changed[nr % CHANGED_SLOTS];

	for (struct changed_chunk *c = *slot; c; c = c->next)
		if (c->nr == nr)
			return c->bytes;
	struct changed_chunk *c = must(calloc(1, sizeof(*c)));
	const uint8_t *bytes = image_chunk(d->image, nr);
	c->nr = nr;
	if (bytes)
		memcpy(c->bytes, bytes, IMAGE_CHUNK_BYTES);
	c->next = *slot;
	*slot = c;
	return c->bytes;
}

void image_device_patch(struct device *dev, uint64_t offset, const void *bytes, size_t len)
{
	const uint8_t *src = bytes;

	if (offset >= dev->size_bytes)
		return;
	len = min(len, dev->size_bytes - offset);
	while (len) {
		size_t at = offset % IMAGE_CHUNK_BYTES, n = min(len, IMAGE_CHUNK_BYTES - at);

		memcpy(chunk_change(image_device(dev), offset / IMAGE_CHUNK_BYTES) + at, src, n);
		src += n;
		offset += n;
		len -= n;
	}
}

void image_device_peek(struct device *dev, uint64_t offset, void *buf, size_t len)
{
	uint8_t *dst = buf;

	while (len) {
		size_t at = offset % IMAGE_CHUNK_BYTES, n = min(len, IMAGE_CHUNK_BYTES - at);
		const uint8_t *bytes =
			offset < dev->size_bytes ? chunk_bytes(image_device(dev), offset / IMAGE_CHUNK_BYTES) : NULL;

		if (bytes)
			memcpy(dst, bytes + at, n);
		else
			memset(dst, 0, n);
		dst += n;
		offset += n;
		len -= n;
	}
}

static void image_device_submit(struct device *dev, struct device_io *io)
{
	uint64_t offset = io->offset_bytes;

	for (unsigned i = 0; i < io->iov_nr && io->op == DEVICE_READ; i++) {
		image_device_peek(dev, offset, io->iov[i].iov_base, io->iov[i].iov_len);
		offset += io->iov[i].iov_len;
	}
	io->done_bytes = offset - io->offset_bytes;
	io_done(io, io->op == DEVICE_READ ? 0 : -EROFS);
}

void image_device_forget(struct device *dev)
{
	struct image_device *d = image_device(dev);

	for (unsigned i = 0; i < CHANGED_SLOTS; i++)
		while (d->changed[i]) {
			struct changed_chunk *c = d->changed[i];

			d->changed[i] = c->next;
			free(c);
		}
}

static void image_device_close(struct device *dev)
{
	image_device_forget(dev);
	free(image_device(dev));
}

static const struct device_ops image_device_ops = {
	.kind = "image",
	.submit = image_device_submit,
	.close = image_device_close,
};

struct device *image_device_open(const struct image *image, uint64_t size_bytes)
{
	struct image_device *d = must(calloc(1, sizeof(*d)));

	d->image = image;
	d->dev = (struct device){
		.ops = &image_device_ops,
		.name = "image",
		.size_bytes = size_bytes,
		.logical_block_bytes = SECTOR_BYTES,
		.io_align_bytes = SECTOR_BYTES,
		.mem_align_bytes = SECTOR_BYTES,
		.is_readonly = true,
	};
	return &d->dev;
}
