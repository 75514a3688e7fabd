/*
 * Stripes (08 §2, 12 §9): which buckets belong together, checksums of their content, and how much of each is in use.
 *
 * The value has three arrays behind its header: pointers, checksums block by block, live sectors per block. Their
 * places follow from the header, so nothing behind it is read before the header has been found to fit the value.
 */
#include "format/stripe.h"

#include <inttypes.h>

#include "format/error_ids.h"
#include "format/value.h"

struct stripe_disk {
	le16 sectors;
	uint8_t algorithm; /* [0,4) algorithm; higher bits are hints of 1.37 and above */
	uint8_t nr_blocks;
	uint8_t nr_redundant;
	uint8_t csum_granularity_bits;
	uint8_t csum_type;
	uint8_t disk_label; /* 1.13 */
};
_Static_assert(sizeof(struct stripe_disk) == 8, "header of stripe is 8 bytes");

/* Number of checksums for each block; the granularity comes from the device, so it may be anything. */
static unsigned csums_per_block(unsigned sectors, unsigned granularity_bits)
{
	if (granularity_bits >= 16)
		return sectors != 0;
	return (unsigned)div_round_up_u64(sectors, 1ull << granularity_bits);
}

int stripe_decode(struct bkey_ref k, struct stripe *s, struct fault *fault)
{
	const uint8_t *value = k.value;
	size_t bytes = bkey_value_bytes(&k.k);
	struct stripe_disk d;

	if (bytes < sizeof(d))
		return fault_set(fault, ERROR_stripe_val_size_bad, "value", "at least 8 bytes", "%zu", bytes);
	value_load(&d, sizeof(d), k);
	*s = (struct stripe){
		.sectors = le16_get(d.sectors),
		.algorithm = d.algorithm & 15,
		.nr_blocks = d.nr_blocks,
		.nr_redundant = d.nr_redundant,
		.csum_granularity_bits = d.csum_granularity_bits,
		.csum_type = d.csum_type,
		.csums_per_block = csums_per_block(le16_get(d.sectors), d.csum_granularity_bits),
		.csum_bytes = checksum_bytes(d.csum_type),
	};
	if (!s->nr_blocks)
		return fault_set(fault, ERROR_extent_ptrs_no_ptrs, "blocks of stripe", "at least 1", "0");
	if (s->nr_blocks > STRIPE_BLOCKS_MAX)
		return fault_set(fault, ERROR_extent_ptrs_too_many_ptrs, "blocks of stripe", "at most 16", "%u",
				 s->nr_blocks);
	if (s->csum_type >= CHECKSUM_TYPE_NR)
		return fault_set(fault, ERROR_stripe_val_size_bad, "checksum type of stripe", "0 to 7", "%u",
				 s->csum_type);

	size_t csums_at = sizeof(d) + s->nr_blocks * 8u;
	size_t sectors_at = csums_at + (size_t)s->nr_blocks * s->csums_per_block * s->csum_bytes;
	size_t need = sectors_at + s->nr_blocks * 2u;

	if (need > bytes)
		return fault_set(fault, ERROR_stripe_val_size_bad, "value",
				 "room for pointers, checksums, sector counts", "%zu bytes, %zu needed", bytes, need);
	s->csums = value + csums_at;
	for (unsigned i = 0; i < s->nr_blocks; i++) {
		s->ptrs[i] = extent_ptr_load(value + sizeof(d) + i * 8u);
		s->block_sectors[i] = le16_load(value + sectors_at + i * 2u);
	}
	return 0;
}

struct checksum stripe_checksum(const struct stripe *s, unsigned block, unsigned index)
{
	uint8_t bytes[sizeof(struct checksum)] = { 0 };

	if (block < s->nr_blocks && index < s->csums_per_block)
		memcpy(bytes, s->csums + ((size_t)block * s->csums_per_block + index) * s->csum_bytes, s->csum_bytes);
	return checksum_load(bytes);
}

int stripe_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	struct dev_set seen = { 0 };
	struct stripe s;
	int err;

	if (k.k.p.inode || !k.k.p.offset || k.k.p.offset > UINT32_MAX || k.k.p.snapshot)
		return fault_set(fault, ERROR_stripe_pos_bad, "position", "0:1:0 to 0:4294967295:0",
				 "%" PRIu64 ":%" PRIu64 ":%u", k.k.p.inode, k.k.p.offset, k.k.p.snapshot);
	if ((err = stripe_decode(k, &s, fault)))
		return err;
	for (unsigned i = 0; i < s.nr_blocks; i++)
		if ((err = extent_ptr_validate(&s.ptrs[i], 0, ctx, &seen, fault)))
			return err;
	return 0;
}

void stripe_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	struct stripe s;

	if (stripe_decode(k, &s, NULL)) {
		strbuf_add(out, "(invalid)");
		return;
	}

	/* Both counts come from the device: there may be more parity blocks than blocks. */
	unsigned data_nr = s.nr_blocks - min(s.nr_redundant, s.nr_blocks);

	strbuf_printf(out, "algo %u sectors %u blocks %u:%u csum %u gran %llu", s.algorithm, s.sectors, data_nr,
		      s.nr_redundant, s.csum_type,
		      s.csum_granularity_bits < 64 ? 1ull << s.csum_granularity_bits : 0ull);
	for (unsigned i = 0; i < s.nr_blocks; i++) {
		strbuf_add_char(out, ' ');
		extent_ptr_location_to_text(out, &s.ptrs[i], ctx);
		if (i < data_nr)
			strbuf_printf(out, "#%u", s.block_sectors[i]);
		strbuf_printf(out, " gen %u", s.ptrs[i].gen);
	}
}
