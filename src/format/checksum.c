/*
 * Checksums and encryption.
 *
 * The heavy work is the libraries': ISA-L for the CRCs, libxxhash, libsodium. What is ours is how the types are derived
 * from these primitives (initial value, inversion, truncation), the merging of CRCs, and the nonces.
 *
 * A CRC with initial value 0 and no final inversion is linear: csum(a || b) = csum(a) * x^(8 * len(b)) + csum(b) in the
 * polynomials over GF(2) modulo the CRC's. The power of x is put together from the table of x^(8 * 2^k), so that a
 * merge costs one multiplication per set bit of the length.
 */
#include "format/checksum.h"

#include <isa-l.h>
#include <sodium.h>
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

#include "base/util.h"

/* --- CRCs, as plain registers: no inversion unless the caller does it --- */

enum { CRC32_PIECE_BYTES = 1 << 30 }; /* ISA-L counts bytes of crc32 in an int */

static uint32_t crc32c_update(uint32_t crc, const void *data, size_t len)
{
	const uint8_t *p = data;

	/* ISA-L's prototype lacks a const; it doesn't write. */
	while (__builtin_expect(len > CRC32_PIECE_BYTES, 0)) {
		crc = crc32_iscsi((unsigned char *)p, CRC32_PIECE_BYTES, crc);
		p += CRC32_PIECE_BYTES;
		len -= CRC32_PIECE_BYTES;
	}
	return len ? crc32_iscsi((unsigned char *)p, (int)len, crc) : crc;
}

/* ISA-L inverts the register on entry and exit. */
static uint64_t crc64_update(uint64_t crc, const void *data, size_t len)
{
	return len ? ~crc64_ecma_norm(~crc, data, len) : crc;
}

/* --- ChaCha20 and Poly1305 --- */

/*
 * libsodium picks its implementations for this processor in sodium_init(); without that call it stays with the portable
 * ones, several times slower. It may be called any number of times, by the program too.
 */
__attribute__((constructor)) static void checksum_choose_implementations(void)
{
	int err = sodium_init();

	(void)err; /* the portable implementations then serve */
}

/* How libsodium wants the four state words: a 64-bit block counter, and the rest. */
static uint64_t nonce_counter(struct nonce n) { return n.d[0] | (uint64_t)n.d[1] << 32; }

static void nonce_tail(struct nonce n, uint8_t tail[crypto_stream_chacha20_NONCEBYTES])
{
	le32_store(tail, n.d[2]);
	le32_store(tail + 4, n.d[3]);
}

/*
 * The format's block counter is d[0] alone, libsodium's carries into d[1]. That makes no difference: d[0] starts with
 * its low 22 bits below 2^20 (extents: sectors * 8; btree nodes: an offset in bytes; journal: 0), and nothing that is
 * encrypted in one go is as long as the 2^21 blocks it would take to overflow.
 */
static void stream_xor(const struct crypt_key *key, struct nonce nonce, void *to, const void *from, size_t len)
{
	uint8_t tail[crypto_stream_chacha20_NONCEBYTES];

	nonce_tail(nonce, tail);
	crypto_stream_chacha20_xor_ic(to, from, len, tail, nonce_counter(nonce), key->bytes);
}

void crypt_xor(const struct crypt_key *key, struct nonce nonce, void *data, size_t len)
{
	stream_xor(key, nonce, data, data, len);
}

enum { NONCE_POLY1305 = 1u << 31 }; /* in d[3]: key stream that yields the one-time key */

static struct checksum mac_compute(unsigned type, const struct crypt_key *key, struct nonce nonce, const void *data,
				   size_t len)
{
	struct crypt_key once = { 0 };
	uint8_t tag[crypto_onetimeauth_poly1305_BYTES];

	nonce.d[3] ^= NONCE_POLY1305;
	crypt_xor(key, nonce, once.bytes, sizeof(once.bytes));
	crypto_onetimeauth_poly1305(tag, data, len, once.bytes);
	sodium_memzero(&once, sizeof(once));

	struct checksum c = checksum_load(tag);
	if (type == CHECKSUM_CHACHA20_POLY1305_80)
		c.hi &= 0xffff;
	return c;
}

void crypt_encrypt(const struct crypt_key *key, struct nonce nonce, void *to, const void *from, size_t len)
{
	if (crypt_watch)
		crypt_watch(key, nonce, from, len);
	stream_xor(key, nonce, to, from, len);
}

struct checksum crypt_mac(unsigned type, const struct crypt_key *key, struct nonce nonce, const void *data, size_t len)
{
	struct nonce once = nonce;

	once.d[3] ^= NONCE_POLY1305;
	if (crypt_watch)
		crypt_watch(key, once, data, len);
	return mac_compute(type, key, nonce, data, len);
}

/* --- all types --- */

static const struct {
	const char *name;
	unsigned bytes;
} checksum_types[CHECKSUM_TYPE_NR] = {
	[CHECKSUM_NONE] = { "none", 0 },
	[CHECKSUM_CRC32C_NONZERO] = { "crc32c_nonzero", 4 },
	[CHECKSUM_CRC64_NONZERO] = { "crc64_nonzero", 8 },
	[CHECKSUM_CHACHA20_POLY1305_80] = { "chacha20_poly1305_80", 10 },
	[CHECKSUM_CHACHA20_POLY1305_128] = { "chacha20_poly1305_128", 16 },
	[CHECKSUM_CRC32C] = { "crc32c", 4 },
	[CHECKSUM_CRC64] = { "crc64", 8 },
	[CHECKSUM_XXHASH] = { "xxhash", 8 },
};

const char *checksum_name(unsigned type) { return type < CHECKSUM_TYPE_NR ? checksum_types[type].name : "unknown"; }

unsigned checksum_bytes(unsigned type) { return type < CHECKSUM_TYPE_NR ? checksum_types[type].bytes : 0; }

struct checksum checksum_compute(unsigned type, const struct crypt_key *key, struct nonce nonce, const void *data,
				 size_t len)
{
	switch (type) {
	case CHECKSUM_CRC32C_NONZERO: return (struct checksum){ .lo = (uint32_t)~crc32c_update(~0u, data, len) };
	case CHECKSUM_CRC64_NONZERO: return (struct checksum){ .lo = ~crc64_update(~0ull, data, len) };
	case CHECKSUM_CRC32C: return (struct checksum){ .lo = crc32c_update(0, data, len) };
	case CHECKSUM_CRC64: return (struct checksum){ .lo = crc64_update(0, data, len) };
	case CHECKSUM_XXHASH: return (struct checksum){ .lo = XXH64(data, len, 0) };
	case CHECKSUM_CHACHA20_POLY1305_80:
	case CHECKSUM_CHACHA20_POLY1305_128: return mac_compute(type, key, nonce, data, len);
	default: return (struct checksum){ 0 };
	}
}

/* --- incremental --- */

_Static_assert(sizeof(XXH64_state_t) <= sizeof(((struct checksum_state *)0)->hash), "room for libxxhash's state");
_Static_assert(_Alignof(XXH64_state_t) <= 8, "alignment of libxxhash's state");

static XXH64_state_t *xxhash_state(struct checksum_state *s) { return (XXH64_state_t *)s->hash; }

static bool checksum_is_inverted(unsigned type)
{
	return type == CHECKSUM_CRC32C_NONZERO || type == CHECKSUM_CRC64_NONZERO;
}

void checksum_begin(struct checksum_state *s, unsigned type)
{
	s->type = type;
	s->value = checksum_is_inverted(type) ? ~0ull : 0;
	if (type == CHECKSUM_XXHASH)
		XXH64_reset(xxhash_state(s), 0);
}

void checksum_update(struct checksum_state *s, const void *data, size_t len)
{
	switch (s->type) {
	case CHECKSUM_CRC32C_NONZERO:
	case CHECKSUM_CRC32C: s->value = crc32c_update((uint32_t)s->value, data, len); break;
	case CHECKSUM_CRC64_NONZERO:
	case CHECKSUM_CRC64: s->value = crc64_update(s->value, data, len); break;
	case CHECKSUM_XXHASH: XXH64_update(xxhash_state(s), data, len); break;
	default: break;
	}
}

struct checksum checksum_end(struct checksum_state *s)
{
	if (s->type == CHECKSUM_XXHASH)
		return (struct checksum){ .lo = XXH64_digest(xxhash_state(s)) };

	uint64_t value = checksum_is_inverted(s->type) ? ~s->value : s->value;
	return (struct checksum){ .lo = s->type == CHECKSUM_CRC32C_NONZERO ? (uint32_t)value : value };
}

/* --- merging --- */

#define CRC32C_POLYNOMIAL 0x82f63b78u		/* reflected: the highest bit is x^0 */
#define CRC64_POLYNOMIAL  0x42f0e1eba9ea3693ull /* the lowest bit is x^0 */

/* x^(8 * 2^k) modulo each polynomial, k = 0..63. */
static const uint32_t crc32c_power[64] = {
	0x00800000, 0x00008000, 0x82f63b78, 0x6ea2d55c, 0x18b8ea18, 0x510ac59a, 0xb82be955, 0xb8fdb1e7,
	0x88e56f72, 0x74c360a4, 0xe4172b16, 0x0d65762a, 0x35d73a62, 0x28461564, 0xbf455269, 0xe2ea32dc,
	0xfe7740e6, 0xf946610b, 0x3c204f8f, 0x538586e3, 0x59726915, 0x734d5309, 0xbc1ac763, 0x7d0722cc,
	0xd289cabe, 0xe94ca9bc, 0x05b74f3f, 0xa51e1f42, 0x40000000, 0x20000000, 0x08000000, 0x00800000,
	0x00008000, 0x82f63b78, 0x6ea2d55c, 0x18b8ea18, 0x510ac59a, 0xb82be955, 0xb8fdb1e7, 0x88e56f72,
	0x74c360a4, 0xe4172b16, 0x0d65762a, 0x35d73a62, 0x28461564, 0xbf455269, 0xe2ea32dc, 0xfe7740e6,
	0xf946610b, 0x3c204f8f, 0x538586e3, 0x59726915, 0x734d5309, 0xbc1ac763, 0x7d0722cc, 0xd289cabe,
	0xe94ca9bc, 0x05b74f3f, 0xa51e1f42, 0x40000000, 0x20000000, 0x08000000, 0x00800000, 0x00008000,
};
static const uint64_t crc64_power[64] = {
	0x0000000000000100, 0x0000000000010000, 0x0000000100000000, 0x42f0e1eba9ea3693, 0x05f5c3c7eb52fab6,
	0x571bee0a227ef92b, 0x5f6843ca540df020, 0x05cf79dea9ac37d6, 0x7f52691a60ddc70d, 0x1c6ffb45e31ea184,
	0x4f3abb24f049ddb6, 0xad7ab2db3f30285e, 0xdea023d37a0ecd82, 0x578353356a6d562b, 0xcedf2c3f65b7d94c,
	0xe9e9d0ac2b3f258a, 0xb975f7ec6a15f28c, 0x48ab18a8597e4f35, 0xe731b2511cc547ff, 0x727433067e969d12,
	0x06246bb1ed3ce5b5, 0xdd83a731b2a2a57c, 0x8f57f0e365c7217a, 0x8b81bd366d92bf09, 0x172a4db8307c2947,
	0x852c11537b565f37, 0x84c77c9a4847c8af, 0x6890208ccea756cf, 0xe8e6de1dcccbdfc6, 0xd1d0af4a871f06bd,
	0xbe6a8399415273a5, 0x77aadbd30fa22bd0, 0xa142c80472416bbf, 0x5e4445bd76d1b573, 0x3adf2baf27e8d227,
	0xa3e5380b581394d9, 0xaa0257f02766c2d8, 0xde687558aa853de4, 0x096a59cd8b3dea55, 0x9db2c485fc173feb,
	0x71ffc57f76192733, 0x8f82ca679b25406c, 0xa2868afb45b8d44e, 0xc15b105cbbbc3f37, 0x67e0ac1533b69df0,
	0x010f0eb1e7f4fa48, 0x68a558a6ed0af421, 0xf6c19b31182c3d90, 0x909b698213666c2f, 0xd336fb030cd7f6ad,
	0x1a90cfe732076655, 0xe2a94f597e188ded, 0x7ba926e21faa4c88, 0x7eeba90c1ef98df1, 0xcc8d413e33552375,
	0xf314218490b6726f, 0x051a435a574e56c0, 0x56555ed748f7ac4a, 0xca1ea6a168deb7f4, 0xadf60662b8a91f71,
	0x28b2c0f090831ab9, 0xde955bf959a36f6c, 0x49a41619be8ab47d, 0x8f94eaf7f1ceb3de,
};

static uint32_t crc32c_multiply(uint32_t a, uint32_t b)
{
	uint32_t product = 0;

	for (int i = 31; i >= 0; i--) {
		product ^= b & -(a >> i & 1);
		b = (b >> 1) ^ (CRC32C_POLYNOMIAL & -(b & 1));
	}
	return product;
}

static uint64_t crc64_multiply(uint64_t a, uint64_t b)
{
	uint64_t product = 0;

	for (int i = 0; i < 64; i++) {
		product ^= b & -(a >> i & 1);
		b = (b << 1) ^ (CRC64_POLYNOMIAL & -(b >> 63));
	}
	return product;
}

struct checksum checksum_merge(unsigned type, struct checksum a, struct checksum b, uint64_t b_len)
{
	if (type == CHECKSUM_CRC32C)
		for (unsigned k = 0; b_len; k++, b_len >>= 1)
			a.lo = b_len & 1 ? crc32c_multiply((uint32_t)a.lo, crc32c_power[k]) : a.lo;
	else if (type == CHECKSUM_CRC64)
		for (unsigned k = 0; b_len; k++, b_len >>= 1)
			a.lo = b_len & 1 ? crc64_multiply(a.lo, crc64_power[k]) : a.lo;

	return (struct checksum){ .lo = a.lo ^ b.lo };
}

/* --- nonces --- */

/* What a nonce is for, in d[3]; so no two structures share a key stream. */
enum { NONCE_EXTENT = 1u << 28, NONCE_BTREE = 2u << 28, NONCE_JOURNAL = 3u << 28 };
enum { CHACHA_BLOCK_BYTES = 64, CHACHA_BLOCKS_PER_SECTOR = SECTOR_BYTES / CHACHA_BLOCK_BYTES };

struct nonce nonce_add(struct nonce nonce, uint64_t bytes)
{
	nonce.d[0] += (uint32_t)(bytes / CHACHA_BLOCK_BYTES);
	return nonce;
}

struct nonce nonce_extent(uint32_t uncompressed_sectors, uint32_t nonce_sectors, unsigned compression,
			  uint64_t version_lo, uint32_t version_hi)
{
	bool is_compressed = compression >= 1 && compression <= 4; /* 5 says "incompressible": stored plain */
	struct nonce n = { { nonce_sectors * CHACHA_BLOCKS_PER_SECTOR, (uint32_t)version_lo,
			     (uint32_t)(version_lo >> 32), version_hi } };

	if (is_compressed) {
		n.d[0] += uncompressed_sectors << 22;
		n.d[3] |= compression << 24;
	}
	n.d[3] ^= NONCE_EXTENT;
	return n;
}

struct nonce nonce_btree(uint32_t offset_bytes, uint64_t seq, uint64_t journal_seq)
{
	return (struct nonce){ { offset_bytes, (uint32_t)seq, (uint32_t)(seq >> 32),
				 (uint32_t)journal_seq ^ NONCE_BTREE } };
}

struct nonce nonce_journal(uint64_t seq)
{
	return (struct nonce){ { 0, (uint32_t)seq, (uint32_t)(seq >> 32), NONCE_JOURNAL } };
}
