/*
 * Compression and decompression of stored regions (06 §7).
 *
 * A region says nothing about itself: how long it is, and how long what it decodes to, stand in the extent's crc entry,
 * which its checksum does not cover. So every decoder works between fixed bounds, and a result of another length than
 * asked for is an error.
 *
 * Most codecs need contexts that are dear to make (tens of kilobytes and more, zeroed). Finished ones wait in a few
 * slots; taking one out and putting one back is an atomic exchange, so threads never wait for each other here.
 */
#include "data/compress.h"

#include <errno.h>
#include <limits.h>
#include <lz4.h>
#include <lz4hc.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

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
static _Atomic(void *) deflate_kept[CONTEXTS_KEPT_MAX], zstd_encoders_kept[CONTEXTS_KEPT_MAX];
static _Atomic(void *) lz4_kept[CONTEXTS_KEPT_MAX], lz4_hc_kept[CONTEXTS_KEPT_MAX];

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

struct deflate {
	z_stream z;
	int level;
};

static void deflate_free(struct deflate *d)
{
	deflateEnd(&d->z);
	free(d);
}

void compress_contexts_free(void)
{
	void *context;

	while ((context = context_take(inflate_kept)))
		inflate_free(context);
	while ((context = context_take(zstd_kept)))
		ZSTD_freeDCtx(context);
	while ((context = context_take(deflate_kept)))
		deflate_free(context);
	while ((context = context_take(zstd_encoders_kept)))
		ZSTD_freeCCtx(context);
	while ((context = context_take(lz4_kept)))
		free(context);
	while ((context = context_take(lz4_hc_kept)))
		free(context);
}

/* --- decoders --- */

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

/* --- encoders --- */

/* Low levels are the fast kind, higher ones the thorough kind with its own levels. */
static int compress_lz4(unsigned level, const void *src, size_t src_len, void *dst, size_t dst_max, size_t *len)
{
	bool is_fast = level < LZ4HC_CLEVEL_MIN;
	_Atomic(void *) *kept = is_fast ? lz4_kept : lz4_hc_kept;
	void *state = context_take(kept);

	if (!state)
		state = malloc((size_t)(is_fast ? LZ4_sizeofState() : LZ4_sizeofStateHC()));
	if (!state)
		return -ENOMEM;
	int n = is_fast ? LZ4_compress_fast_extState(state, src, dst, (int)src_len, (int)dst_max, 1)
			: LZ4_compress_HC_extStateHC(state, src, dst, (int)src_len, (int)dst_max, (int)level);
	if (!context_keep(kept, state))
		free(state);
	*len = (size_t)max(n, 0);
	return n > 0 ? 0 : -ENOBUFS;
}

static struct deflate *deflate_new(int level)
{
	struct deflate *d = calloc(1, sizeof(*d));

	if (!d)
		return NULL;
	d->level = level;
	if (deflateInit2(&d->z, level, Z_DEFLATED, DEFLATE_WINDOW_RAW, MAX_MEM_LEVEL, Z_DEFAULT_STRATEGY) == Z_OK)
		return d;
	free(d);
	return NULL;
}

/* What was used for another level is of use again: nothing has been written since it was reset. */
static struct deflate *deflate_take(int level)
{
	struct deflate *d = context_take(deflate_kept);

	if (!d)
		return deflate_new(level);
	if (d->level != level) {
		if (deflateParams(&d->z, level, Z_DEFAULT_STRATEGY) != Z_OK) {
			deflate_free(d);
			return NULL;
		}
		d->level = level;
	}
	return d;
}

static int compress_gzip(unsigned level, const void *src, size_t src_len, void *dst, size_t dst_max, size_t *len)
{
	struct deflate *d = deflate_take(level ? (int)min(level, (unsigned)Z_BEST_COMPRESSION) : Z_DEFAULT_COMPRESSION);

	if (!d)
		return -ENOMEM;
	d->z.next_in = (z_const Bytef *)src;
	d->z.avail_in = (uInt)src_len;
	d->z.next_out = dst;
	d->z.avail_out = (uInt)dst_max;
	bool is_complete = deflate(&d->z, Z_FINISH) == Z_STREAM_END;
	*len = dst_max - d->z.avail_out;
	if (deflateReset(&d->z) != Z_OK || !context_keep(deflate_kept, d))
		deflate_free(d);
	return is_complete ? 0 : -ENOBUFS;
}

/* The frame says how much it decodes to, and has no checksum. Some readers want a few bytes of room behind it. */
static int compress_zstd(unsigned level, const void *src, size_t src_len, void *dst, size_t dst_max, size_t *len)
{
	enum { ZSTD_SPARE_BYTES = 7, ZSTD_LEVEL_MAX = 22 };

	if (dst_max <= ZSTD_LENGTH_BYTES + ZSTD_SPARE_BYTES)
		return -ENOBUFS;
	ZSTD_CCtx *context = context_take(zstd_encoders_kept);
	if (!context)
		context = ZSTD_createCCtx();
	if (!context)
		return -ENOMEM;
	size_t n = ZSTD_compressCCtx(context, (uint8_t *)dst + ZSTD_LENGTH_BYTES,
				     dst_max - ZSTD_LENGTH_BYTES - ZSTD_SPARE_BYTES, src, src_len,
				     (int)min(level * 3 / 2, (unsigned)ZSTD_LEVEL_MAX));
	if (!context_keep(zstd_encoders_kept, context))
		ZSTD_freeCCtx(context);
	if (ZSTD_isError(n))
		return ZSTD_getErrorCode(n) == ZSTD_error_memory_allocation ? -ENOMEM : -ENOBUFS;
	le32_store(dst, (uint32_t)n);
	*len = ZSTD_LENGTH_BYTES + n;
	return 0;
}

int compress_region(unsigned option, const void *src, size_t src_len, void *dst, size_t dst_max, size_t *len)
{
	unsigned level = option >> 4;

	*len = 0;
	if (src_len > INT_MAX || dst_max > INT_MAX)
		return -ENOBUFS;
	switch (compression_option_type(option)) {
	case COMPRESSION_LZ4: return compress_lz4(level, src, src_len, dst, dst_max, len);
	case COMPRESSION_GZIP: return compress_gzip(level, src, src_len, dst, dst_max, len);
	case COMPRESSION_ZSTD: return compress_zstd(level, src, src_len, dst, dst_max, len);
	default: return -ENOBUFS;
	}
}

int compress_to_blocks(unsigned option, const void *src, size_t src_len, void *dst, size_t dst_max, size_t block_bytes,
		       size_t *len)
{
	size_t used;
	int err = compress_region(option, src, src_len, dst, dst_max, &used);

	*len = (size_t)round_up_u64(used, block_bytes);
	if (!err)
		memset((uint8_t *)dst + used, 0, *len - used);
	return err;
}
