/*
 * Decompression of stored regions (06 §7.1, §7.3).
 *
 * A region says nothing about itself: how long it is, and how long what it decodes to, stand in the extent's crc entry,
 * which its checksum does not cover. So every decoder works between fixed bounds, and a result of another length than
 * asked for is an error.
 *
 * inflate and zstd need contexts that are dear to make (tens of kilobytes, zeroed). Finished ones wait in a few slots;
 * taking one out and putting one back is an atomic exchange, so threads never wait for each other here.
 */
#include "data/compress.h"

#include <errno.h>
#include <limits.h>
#include <lz4.h>
#include <stdatomic.h>
#include <zlib.h>
#include <zstd.h>

#include "base/le.h"
#include "base/util.h"
#include "format/extent.h"

enum {
	CONTEXTS_KEPT_MAX = 16,	  /* of each codec */
	DEFLATE_WINDOW_RAW = -15, /* 32 KiB window, no zlib or gzip header */
	ZSTD_LENGTH_BYTES = 4,
	ZSTD_WINDOW_LOG_MAX = 23, /* twice the largest region */
};

static int decompress_lz4(const void *src, size_t src_len, void *dst, size_t dst_len);
static int decompress_gzip(const void *src, size_t src_len, void *dst, size_t dst_len);
static int decompress_zstd(const void *src, size_t src_len, void *dst, size_t dst_len);

static int (*const decoders[COMPRESSION_TYPE_NR])(const void *, size_t, void *, size_t) = {
	[COMPRESSION_LZ4_OLD] = decompress_lz4,
	[COMPRESSION_GZIP] = decompress_gzip,
	[COMPRESSION_LZ4] = decompress_lz4,
	[COMPRESSION_ZSTD] = decompress_zstd,
};

int decompress_region(unsigned type, const void *src, size_t src_len, void *dst, size_t dst_len)
{
	if (type >= ARRAY_NR(decoders) || !decoders[type] || !src_len || !dst_len || src_len > INT_MAX ||
	    dst_len > INT_MAX)
		return -EIO;
	return decoders[type](src, src_len, dst, dst_len);
}

/* --- contexts kept --- */

static _Atomic(void *) inflate_kept[CONTEXTS_KEPT_MAX], zstd_kept[CONTEXTS_KEPT_MAX];

static void *context_take(_Atomic(void *) *kept)
{
	for (unsigned i = 0; i < CONTEXTS_KEPT_MAX; i++) {
		void *context =
			atomic_load_explicit(&kept[i], memory_order_relaxed) ? atomic_exchange(&kept[i], NULL) : NULL;
		if (context)
			return context;
	}
	return NULL;
}

/* False: all slots are taken, the caller frees it. */
static bool context_keep(_Atomic(void *) *kept, void *context)
{
	for (unsigned i = 0; i < CONTEXTS_KEPT_MAX; i++) {
		void *empty = NULL;
		if (atomic_compare_exchange_strong(&kept[i], &empty, context))
			return true;
	}
	return false;
}

static void inflate_free(z_stream *z)
{
	inflateEnd(z);
	free(z);
}

void decompress_contexts_free(void)
{
	void *context;

	while ((context = context_take(inflate_kept)))
		inflate_free(context);
	while ((context = context_take(zstd_kept)))
		ZSTD_freeDCtx(context);
}

/* --- the codecs --- */

/* One raw block and padding: decoding stops when enough came out, as a strict decoder would trip over the padding. */
static int decompress_lz4(const void *src, size_t src_len, void *dst, size_t dst_len)
{
	int len = LZ4_decompress_safe_partial(src, dst, (int)src_len, (int)dst_len, (int)dst_len);

	return len == (int)dst_len ? 0 : -EIO;
}

static z_stream *inflate_new(void)
{
	z_stream *z = calloc(1, sizeof(*z));

	if (z && inflateInit2(z, DEFLATE_WINDOW_RAW) != Z_OK) {
		free(z);
		z = NULL;
	}
	return z;
}

/* A raw deflate stream that must end inside the region. */
static int decompress_gzip(const void *src, size_t src_len, void *dst, size_t dst_len)
{
	z_stream *z = context_take(inflate_kept);

	if (!z)
		z = inflate_new();
	if (!z)
		return -ENOMEM;

	z->next_in = (z_const Bytef *)src;
	z->avail_in = (uInt)src_len;
	z->next_out = dst;
	z->avail_out = (uInt)dst_len;
	int result = inflate(z, Z_FINISH);
	bool is_complete = result == Z_STREAM_END && !z->avail_out;

	if (inflateReset(z) != Z_OK || !context_keep(inflate_kept, z))
		inflate_free(z);
	return is_complete ? 0 : result == Z_MEM_ERROR ? -ENOMEM : -EIO;
}

/* le32 n, a frame of n bytes, padding. */
static int decompress_zstd(const void *src, size_t src_len, void *dst, size_t dst_len)
{
	if (src_len < ZSTD_LENGTH_BYTES || le32_load(src) > src_len - ZSTD_LENGTH_BYTES)
		return -EIO;

	ZSTD_DCtx *context = context_take(zstd_kept);
	if (!context) {
		context = ZSTD_createDCtx();
		if (!context)
			return -ENOMEM;
		ZSTD_DCtx_setParameter(context, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG_MAX);
	}

	size_t len =
		ZSTD_decompressDCtx(context, dst, dst_len, (const uint8_t *)src + ZSTD_LENGTH_BYTES, le32_load(src));

	if (!context_keep(zstd_kept, context))
		ZSTD_freeDCtx(context);
	return len == dst_len ? 0 : -EIO;
}
