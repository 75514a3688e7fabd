/*
 * The crypt section: the filesystem's key, in clear or wrapped with a passphrase.
 *
 * A passphrase becomes a key by scrypt, and that key's ChaCha20 stream covers the 40 bytes "bch**key" and filesystem
 * key. The magic in front is the only sign that the passphrase was right.
 */
#include <errno.h>
#include <sodium.h>

#include "base/util.h"
#include "format/sb_edit.h"
#include "format/sb_sections.h"

enum { SEALED_BYTES = 40, KEY_MAGIC_BYTES = 8, KDF_SCRYPT = 0 };
static const uint8_t key_magic[KEY_MAGIC_BYTES] = { 'b', 'c', 'h', '*', '*', 'k', 'e', 'y' };
static const uint8_t scrypt_salt[] = { 'b', 'c', 'a', 'c', 'h', 'e', 0 };

/*
 * The parameters are read from the device. scrypt needs 128 * N * r bytes and 128 * r * p, and does work in proportion
 * to N * r * p: at most 1 GiB, and 64 times the work of the usual parameters.
 */
enum { SCRYPT_LOG2_BYTES_MAX = 30, SCRYPT_LOG2_WORK_MAX = 27 };
/* What is written: 16 MiB, and half a second or so. */
enum { SCRYPT_LOG2_N_USUAL = 14, SCRYPT_LOG2_R_USUAL = 3, SCRYPT_LOG2_P_USUAL = 4 };

static bool scrypt_is_sane(const struct sb_crypt *c)
{
	unsigned n = c->scrypt_log2_n, r = c->scrypt_log2_r, p = c->scrypt_log2_p;

	return n >= 1 && n + r + 7 <= SCRYPT_LOG2_BYTES_MAX && r + p + 7 <= SCRYPT_LOG2_BYTES_MAX &&
	       n + r + p <= SCRYPT_LOG2_WORK_MAX;
}

bool sb_crypt(const struct sb_disk *sb, struct sb_crypt *c)
{
	const struct sb_section_disk *s = sb_section(sb, SB_CRYPT);
	const struct sb_crypt_disk *d = (const struct sb_crypt_disk *)s;

	*c = (struct sb_crypt){ 0 };
	if (!s || sb_section_bytes(s) < sizeof(*d))
		return false;

	uint64_t kdf = le64_get(d->kdf_flags);
	c->kdf_type = (unsigned)bits_get(le64_get(d->flags), 0, 4);
	c->scrypt_log2_n = (unsigned)bits_get(kdf, 0, 16);
	c->scrypt_log2_r = (unsigned)bits_get(kdf, 16, 32);
	c->scrypt_log2_p = (unsigned)bits_get(kdf, 32, 48);
	memcpy(c->sealed, d->sealed, SEALED_BYTES);
	c->is_sealed = memcmp(c->sealed, key_magic, KEY_MAGIC_BYTES) != 0;
	return true;
}

int sb_crypt_derive(const struct sb_crypt *c, const void *passphrase, size_t len, struct crypt_key *user_key)
{
	if (c->kdf_type != KDF_SCRYPT)
		return -KILN_E_UNSUPPORTED;
	if (!scrypt_is_sane(c))
		return -EINVAL;
	if (!crypto_pwhash_scryptsalsa208sha256_ll(passphrase, len, scrypt_salt, sizeof(scrypt_salt),
						   1ull << c->scrypt_log2_n, 1u << c->scrypt_log2_r,
						   1u << c->scrypt_log2_p, user_key->bytes, sizeof(user_key->bytes)))
		return 0;
	return errno == ENOMEM ? -ENOMEM : -EINVAL;
}

/* The key stream over the 40 bytes: sealing and opening are the same. */
static void sealed_xor(const struct sb_disk *sb, const struct crypt_key *user_key, uint8_t bytes[SEALED_BYTES])
{
	struct nonce nonce = { { 0, 0, le32_load(sb->uuid), le32_load(sb->uuid + 4) } };

	crypt_xor(user_key, nonce, bytes, SEALED_BYTES);
}

int sb_crypt_open(const struct sb_disk *sb, const struct sb_crypt *c, const struct crypt_key *user_key,
		  struct crypt_key *key)
{
	uint8_t plain[SEALED_BYTES];
	int err = 0;

	memcpy(plain, c->sealed, sizeof(plain));
	if (c->is_sealed)
		sealed_xor(sb, user_key, plain);
	if (sodium_memcmp(plain, key_magic, KEY_MAGIC_BYTES))
		err = -KILN_E_BAD_PASSPHRASE;
	else
		memcpy(key->bytes, plain + KEY_MAGIC_BYTES, sizeof(key->bytes));
	sodium_memzero(plain, sizeof(plain));
	return err;
}

int sb_crypt_unlock(const struct sb_disk *sb, const struct sb_crypt *c, const void *passphrase, size_t len,
		    struct crypt_key *key)
{
	struct crypt_key user_key = { 0 };
	int err = c->is_sealed ? sb_crypt_derive(c, passphrase, len, &user_key) : 0;

	if (!err)
		err = sb_crypt_open(sb, c, &user_key, key);
	sodium_memzero(&user_key, sizeof(user_key));
	return err;
}

void sb_crypt_kdf_choose(struct sb_crypt *c)
{
	if (c->kdf_type == KDF_SCRYPT && c->scrypt_log2_n >= SCRYPT_LOG2_N_USUAL && scrypt_is_sane(c))
		return;
	c->kdf_type = KDF_SCRYPT;
	c->scrypt_log2_n = SCRYPT_LOG2_N_USUAL;
	c->scrypt_log2_r = SCRYPT_LOG2_R_USUAL;
	c->scrypt_log2_p = SCRYPT_LOG2_P_USUAL;
}

void sb_crypt_seal(const struct sb_disk *sb, struct sb_crypt *c, const struct crypt_key *user_key,
		   const struct crypt_key *key)
{
	c->is_sealed = user_key;
	memcpy(c->sealed, key_magic, KEY_MAGIC_BYTES);
	memcpy(c->sealed + KEY_MAGIC_BYTES, key->bytes, sizeof(key->bytes));
	if (user_key)
		sealed_xor(sb, user_key, c->sealed);
}

int sb_crypt_set(struct sb_edit *e, const struct sb_crypt *c)
{
	struct sb_crypt_disk *d =
		(struct sb_crypt_disk *)sb_section_ensure(e, SB_CRYPT, sizeof(struct sb_crypt_disk) / 8);

	if (!d)
		return -ENOSPC;
	d->flags = le64_of(bits_set(le64_get(d->flags), 0, 4, c->kdf_type));
	uint64_t kdf = bits_set(le64_get(d->kdf_flags), 0, 16, c->scrypt_log2_n);
	kdf = bits_set(kdf, 16, 32, c->scrypt_log2_r);
	d->kdf_flags = le64_of(bits_set(kdf, 32, 48, c->scrypt_log2_p));
	memcpy(d->sealed, c->sealed, SEALED_BYTES);
	return 0;
}
