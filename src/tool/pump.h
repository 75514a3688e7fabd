/*
 * Reading a file as fast as the devices allow: several tasks read chunks ahead, the caller takes them in order.
 *
 * While one chunk is verified and decompressed, the I/O of the next ones is under way, and more than one processor can
 * work. Memory is bounded: PUMP_CHUNKS_MAX chunks.
 */
#ifndef KILN_TOOL_PUMP_H
#define KILN_TOOL_PUMP_H

#include "kiln/kiln.h"

enum { PUMP_CHUNK_BYTES = 2 << 20, PUMP_CHUNKS_MAX = 6 };

struct pump_damage {
	uint64_t offset, len;
	int error;
};

/* One chunk of the file: bytes, and what of them is damaged (zeroes there). */
struct pump_chunk {
	uint64_t offset;
	int64_t len;  /* bytes, or the negative error that made the read impossible */
	bool is_lost; /* no data: damage[0] covers all of it, which may be far longer than other chunks */
	void *data;   /* 4096-byte aligned */
	struct pump_damage *damage;
	size_t damage_nr;
};

struct pump;

/* Tasks for a whole run of files: start once, use for many. NULL when memory is short. */
struct pump *pump_start(kiln_fs *fs);
void pump_end(struct pump *p);

/*
 * Hand the data ranges of [0, size) of @node to @take in ascending order: what is a hole is left out if @skip_holes,
 * else read as zeroes. @take returns 0 to go on, or a negative value to stop with. Returns that, or the error of a
 * seek.
 */
typedef int (*pump_take_fn)(void *ctx, const struct pump_chunk *chunk);
int pump_file(struct pump *p, struct kiln_node node, uint64_t size, bool skip_holes, pump_take_fn take, void *ctx);

#endif
