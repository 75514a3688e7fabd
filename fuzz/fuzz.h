/*
 * What the fuzz targets share: images that live in memory, edits of them, and small helpers.
 *
 * Each target is one file with LLVMFuzzerTestOneInput(). Two programs come out of it: `fuzz-NAME`, with libFuzzer and
 * the mutators of mutate.c, and `replay-NAME`, which runs the target over files and serves as a regression test with
 * any compiler. An input is never trusted and never has to make sense; a target crashes, hangs, leaks, or it is fine.
 *
 * Bytes that a checksum covers are sealed again after they were changed (image_reseal()), because what a fuzzer
 * couldn't get past a checksum an attacker could.
 */
#ifndef KILN_FUZZ_FUZZ_H
#define KILN_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

#include <errno.h>

#include "base/strbuf.h"
#include "device/device.h"
#include "format/key_types.h"
#include "kiln/kiln.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Input, taken from the front. What isn't there any more reads as zero. */
struct input {
	const uint8_t *pos, *end;
};
static inline size_t input_left(const struct input *in) { return (size_t)(in->end - in->pos); }
uint64_t input_take(struct input *in, unsigned bytes);
/* The next @len bytes, or all that are left: *@len says how many. */
const uint8_t *input_take_bytes(struct input *in, size_t *len);

/* A context for keys: 4 members, the last slot free. @what chooses version and block size. */
void fuzz_key_context(struct key_context *ctx, uint8_t what);

/* Takes reports, formats them like the tool would, and forgets them. */
extern const struct report_sink fuzz_reports;

/* --- images --- */

enum { IMAGE_CHUNK_BYTES = 4096 };

enum structure_kind { STRUCTURE_SUPERBLOCK, STRUCTURE_NODE, STRUCTURE_JSET };

/* Something with a checksum, found in an image. */
struct structure {
	enum structure_kind kind;
	uint64_t offset;
	uint32_t bytes; /* of nodes: up to the end of the last set */
};

/* What an image holds that isn't zero, and what was found in it. Doesn't change. */
struct image {
	uint64_t size_bytes;
	uint32_t block_bytes, node_bytes;
	uint8_t uuid[16];
	struct image_chunk {
		uint64_t nr;
		uint8_t *bytes;
	} * chunks; /* ascending */
	size_t chunk_nr;
	uint8_t *memory;
	struct structure *structures;
	size_t structure_nr;
};

/* Load NAME.base.zst from the folder of bases; ends the program when that can't be. */
struct image *image_load(const char *name);
/* Find superblocks, nodes and journal entries. */
void image_find_structures(struct image *image);
void image_free(struct image *image);

/*
 * A read-only device that shows @image (NULL: zeroes) with changes of its own over it. Closing it frees the changes.
 */
struct device *image_device_open(const struct image *image, uint64_t size_bytes);
/* Change bytes; what lies beyond the end is ignored. */
void image_device_patch(struct device *dev, uint64_t offset, const void *bytes, size_t len);
/* Undo all changes. */
void image_device_forget(struct device *dev);
void image_device_peek(struct device *dev, uint64_t offset, void *buf, size_t len);
/* Make the checksums of a structure right, as far as its own fields allow to say what it covers. */
void image_reseal(struct device *dev, const struct image *image, const struct structure *s);
/* Bytes of a node at @buf up to the end of its last set; seals the sets on the way if @is_sealing. */
size_t node_seal(uint8_t *buf, size_t node_bytes, size_t block_bytes, bool is_sealing);

#endif
