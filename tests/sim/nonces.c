/*
 * No part of a key stream may ever cover two plaintexts, and no one-time key authenticate two messages: not after a
 * crash, not after writes that failed or were lost. This sees every use (crypt_watch(), format/checksum.h), of all
 * mounts of a run, and fails the run at the second.
 *
 * The table has, for each block of 64 bytes of a key stream, a hash of what it covered; for each one-time key, a hash
 * of the message. Hashes of 64 bits stand for themselves.
 */
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "format/checksum.h"
#include "sim.h"

enum { STREAM_BLOCK_BYTES = 64, SLOTS_FIRST = 1 << 12 };

struct use {
	uint64_t place, covered; /* 0: free */
};

static struct {
	atomic_flag is_locked; /* sealing takes several threads */
	struct sim *s;
	struct use *uses;
	size_t nr, slots;
} table = { .is_locked = ATOMIC_FLAG_INIT };

static uint64_t hash_of(const void *bytes, size_t len)
{
	uint64_t hash = checksum_compute(CHECKSUM_XXHASH, NULL, (struct nonce){ 0 }, bytes, len).lo;

	return hash ? hash : 1;
}

static struct use *slot_of(struct use *uses, size_t slots, uint64_t place)
{
	size_t i = place & (slots - 1);

	while (uses[i].place && uses[i].place != place)
		i = (i + 1) & (slots - 1);
	return &uses[i];
}

static void table_grow(void)
{
	size_t slots = table.slots ? table.slots * 2 : SLOTS_FIRST;
	struct use *uses = calloc(slots, sizeof(*uses));

	if (!uses)
		abort();
	for (size_t i = 0; i < table.slots; i++)
		if (table.uses[i].place)
			*slot_of(uses, slots, table.uses[i].place) = table.uses[i];
	free(table.uses);
	table.uses = uses;
	table.slots = slots;
}

/* False: that place has covered something else. */
static bool use_note(uint64_t place, uint64_t covered)
{
	if (table.nr * 2 >= table.slots)
		table_grow();
	struct use *use = slot_of(table.uses, table.slots, place);

	if (use->place)
		return use->covered == covered;
	*use = (struct use){ place, covered };
	table.nr++;
	return true;
}

static bool use_is_good(const struct crypt_key *key, struct nonce nonce, const uint8_t *plain, size_t len, size_t unit)
{
	struct {
		uint8_t key[sizeof(key->bytes)];
		struct nonce nonce;
	} at = { .nonce = nonce };
	bool is_good = true;

	memcpy(at.key, key->bytes, sizeof(at.key));
	for (size_t done = 0; done < len; done += unit, at.nonce.d[0]++)
		is_good &= use_note(hash_of(&at, sizeof(at)), hash_of(plain + done, min(unit, len - done)));
	return is_good;
}

void crypt_watch(const struct crypt_key *key, struct nonce nonce, const void *plain, size_t len)
{
	bool is_mac = nonce.d[3] >> 31;
	char text[80];

	while (atomic_flag_test_and_set(&table.is_locked))
		;
	memory_exempt_begin();
	bool is_good = !table.s || use_is_good(key, nonce, plain, len, is_mac ? len : STREAM_BLOCK_BYTES);
	memory_exempt_end();
	atomic_flag_clear(&table.is_locked);
	if (is_good)
		return;
	snprintf(text, sizeof(text), "%08" PRIx32 " %08" PRIx32 " %08" PRIx32 " %08" PRIx32, nonce.d[0], nonce.d[1],
		 nonce.d[2], nonce.d[3]);
	failed(table.s,
	       is_mac ? "a one-time key has authenticated two messages" : "a key stream has covered two plaintexts",
	       text);
}

void nonces_begin(struct sim *s)
{
	free(table.uses);
	table.uses = NULL;
	table.nr = table.slots = 0;
	table.s = s;
}

void nonces_end(void) { nonces_begin(NULL); }
