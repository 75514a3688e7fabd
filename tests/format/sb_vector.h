/*
 * The superblock of 01 §15.1 (64 MiB, one device, format 1.4), and a way to add sections to it.
 */
#ifndef KILN_TESTS_FORMAT_SB_VECTOR_H
#define KILN_TESTS_FORMAT_SB_VECTOR_H

#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "format/superblock.h"
#include "hex.h"

enum { SB_VECTOR_BYTES = 960, SB_BUFFER_BYTES = 16384 };

struct sb_buffer {
	union {
		struct sb_disk sb;
		uint8_t bytes[SB_BUFFER_BYTES];
	};
};

static inline void sb_vector_init(struct sb_buffer *b)
{
	static const struct {
		unsigned offset;
		const char *hex;
	} rows[] = {
		{ 0x000, "c308 e184" },
		{ 0x010, "0404 0404 0000 0000 c685 73f6 66ce 90a9" },
		{ 0x020, "d96a 60cf 803d f7ef 0011 2233 4455 6677" },
		{ 0x030, "8899 aabb ccdd eeff 1111 1111 2222 3333" },
		{ 0x040, "4444 5555 5555 5555 6b69 6c6e 0000 0000" },
		{ 0x060, "0000 0000 0000 0000 0800 0000 0000 0000" },
		{ 0x070, "0000 0000 0000 0000 0800 0001 1a00 0000" },
		{ 0x080, "0000 2a36 fe9c 9717 0000 0000 0100 0000" },
		{ 0x090, "0401 1080 0011 1101 02c1 1101 0000 0000" },
		{ 0x0a0, "0000 0000 0000 0000 0000 0030 fa00 0000" },
		{ 0x0b0, "6400 0000 0100 0000 0000 0000 0000 0000" },
		{ 0x0d0, "80ba 0700 0000 0000 0000 0000 0000 0000" },
		{ 0x0f0, "c685 73f6 66ce 90a9 d96a 60cf 803d f7ef" },
		{ 0x100, "000b 0300 0000 0000 0800 0000 0000 0000" },
		{ 0x110, "0808 0000 0000 0000 00f8 0100 0000 0000" },
		{ 0x2f0, "1200 0000 0b00 0000 8000 0000 0000 0000" },
		{ 0x300, "a0a1 a2a3 a4a5 a6a7 a8a9 aaab acad aeaf" },
		{ 0x310, "0002 0000 0000 0000 0000 0001 0000 0000" },
		{ 0x320, "0000 0000 0000 0000 0000 0e20 0000 0000" },
		{ 0x380, "0800 0000 0100 0000 a0a1 a2a3 a4a5 a6a7" },
		{ 0x390, "a8a9 aaab acad aeaf 0002 0000 0000 0000" },
		{ 0x3a0, "0000 0001 0000 0000 0000 0000 0000 0000" },
		{ 0x3b0, "0000 0e20 0000 0000 0000 0000 0000 0000" },
	};

	memset(b, 0, sizeof(*b));
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		hex_bytes(rows[i].hex, b->bytes + rows[i].offset, 16);
}

/* Append a section given as in the documents, header included, and seal. Returns where it is. */
static inline uint8_t *sb_append(struct sb_buffer *b, const char *hex)
{
	uint8_t *section = b->bytes + sb_bytes(&b->sb);
	size_t room = (size_t)(b->bytes + sizeof(b->bytes) - section);
	size_t len = hex_bytes(hex, section, room);

	assert(len >= 8 && len <= le32_load(section) * 8ull && le32_load(section) * 8ull <= room);
	b->sb.u64s = le32_of(le32_get(b->sb.u64s) + le32_load(section));
	sb_seal(&b->sb, CHECKSUM_CRC32C_NONZERO);
	return section;
}

/* A section of @u64s words, all zero but the header. */
static inline uint8_t *sb_append_empty(struct sb_buffer *b, unsigned type, uint32_t u64s)
{
	uint8_t *section = b->bytes + sb_bytes(&b->sb);

	assert(section + u64s * 8ull <= b->bytes + sizeof(b->bytes));
	memset(section, 0, u64s * 8ull);
	le32_store(section, u64s);
	le32_store(section + 4, type);
	b->sb.u64s = le32_of(le32_get(b->sb.u64s) + u64s);
	sb_seal(&b->sb, CHECKSUM_CRC32C_NONZERO);
	return section;
}

#endif
