/*
 * Rebuilding part of a data block from the rest of its stripe (08 §4, §11).
 *
 * A stripe is nd data blocks and P, Q; over GF(2^8) each block is a linear combination of the data blocks: a row of
 *
 *	D_0 ... D_{nd-1}	the unit matrix
 *	P			1 1 1 ...
 *	Q			1 g g^2 ...
 *
 * Any nd rows are invertible, so any nd good blocks give the data blocks back, and with them the wanted one: its row
 * times the inverse. That covers every case of 08 §4's table. Further parity blocks have no defined row and aren't
 * used.
 *
 * Checksums are over *granules* of each block, and a granule can be megabytes, so blocks are not held in memory: piece
 * after piece is read, added to the checksums of its granule and combined. When at the end of the granule a block turns
 * out to be bad, it is left out and the granule is done again.
 */
#include <errno.h>
#include <isa-l/erasure_code.h>
#include <stdio.h>
#include <string.h>

#include "alloc/gens.h"
#include "data/internal.h"
#include "format/error_ids.h"
#include "format/stripe.h"

enum { GF_GENERATOR = 2, GF_TABLE_BYTES = 32 };

struct rebuild {
	struct data *data;
	uint64_t idx;
	struct bkey_copy key;
	struct stripe stripe;
	unsigned data_nr, row_nr; /* blocks with data; blocks with a defined row */
	unsigned target;
	uint32_t granule_sectors;

	/* wanted: sectors of the block */
	uint32_t begin, end;
	uint8_t *out;

	uint32_t bad;			     /* mask of blocks not to be used */
	unsigned sources[STRIPE_BLOCKS_MAX]; /* data_nr blocks that are */
	uint8_t tables[GF_TABLE_BYTES * STRIPE_BLOCKS_MAX];
	struct pool_buffer scratch;
	uint8_t *pieces[STRIPE_BLOCKS_MAX]; /* of each block */
	struct checksum_state csums[STRIPE_BLOCKS_MAX];
};

static int stripe_open(struct rebuild *rb, const struct extent_stripe_ptr *sp, const struct extent_ptr *ptr);
static void blocks_check(struct rebuild *rb);
static int granule_rebuild(struct rebuild *rb, uint32_t granule);

int stripe_rebuild(struct data *data, const struct extent_stripe_ptr *stripe_ptr, const struct extent_ptr *ptr,
		   uint64_t sector, uint32_t sectors, void *out)
{
	struct rebuild *rb = malloc(sizeof(*rb));

	if (!rb)
		return -ENOMEM;
	memset(rb, 0, sizeof(*rb));
	rb->data = data;
	rb->idx = stripe_ptr->idx;
	rb->target = stripe_ptr->block;
	rb->out = out;

	int err = stripe_open(rb, stripe_ptr, ptr);
	if (err)
		goto out;

	uint64_t begin = sector - rb->stripe.ptrs[rb->target].sector;
	if (sector < rb->stripe.ptrs[rb->target].sector || begin + sectors > rb->stripe.sectors) {
		err = -EIO;
		goto out;
	}
	rb->begin = (uint32_t)begin;
	rb->end = (uint32_t)begin + sectors;

	err = pool_take(&data->stripes, &(size_t){ STRIPE_SCRATCH_BYTES }, &rb->scratch, 1, true);
	if (err)
		goto out;
	for (unsigned i = 0; i < STRIPE_BLOCKS_MAX; i++)
		rb->pieces[i] = (uint8_t *)rb->scratch.data + i * STRIPE_PIECE_BYTES;

	blocks_check(rb);
	for (uint32_t g = rb->begin / rb->granule_sectors; !err && g * rb->granule_sectors < rb->end; g++)
		err = granule_rebuild(rb, g);
	pool_give(&data->stripes, &rb->scratch, 1);
	if (!err)
		data_count(data, COUNTER_RECONSTRUCTED, 1);
out:
	free(rb);
	return err;
}

static void stripe_report(struct rebuild *rb, unsigned block, unsigned id, int err, uint64_t sector,
			  const char *expected, const char *found)
{
	const struct super *s = rb->data->super;
	unsigned dev = block < STRIPE_BLOCKS_MAX ? rb->stripe.ptrs[block].dev : DEV_NONE;
	char position[96];

	snprintf(position, sizeof(position), "stripe %llu block %u, sector %llu", (unsigned long long)rb->idx, block,
		 (unsigned long long)sector);
	report_emit(rb->data->reports, &(struct report){
					       .level = REPORT_RECOVERED,
					       .id = id,
					       .err = err,
					       .device = dev < s->member_nr ? s->members[dev].name : NULL,
					       .structure = "stripe",
					       .position = position,
					       .expected = expected,
					       .found = found,
				       });
}

/* Read the stripe's key and see that the pointer belongs to it (08 §3, 12 §9). */
static int stripe_open(struct rebuild *rb, const struct extent_stripe_ptr *sp, const struct extent_ptr *ptr)
{
	struct stripe *s = &rb->stripe;
	struct fault fault = { 0 };
	int n = btree_lookup(rb->data->trees, BTREE_STRIPES, BPOS(0, sp->idx, 0), &rb->key);

	if (n < 0)
		return n == -ENOMEM ? n : -EIO;
	if (!n || rb->key.k.k.type != KEY_STRIPE) {
		stripe_report(rb, sp->block, ERROR_ptr_to_missing_stripe, -EIO, ptr->sector, "a stripe", "none");
		return -EIO;
	}
	if (stripe_decode(rb->key.k, s, &fault)) {
		stripe_report(rb, sp->block, fault.id, -EIO, ptr->sector, fault.expected, fault.found);
		return -EIO;
	}

	bool is_usable = s->nr_blocks <= STRIPE_BLOCKS_MAX && s->nr_redundant < s->nr_blocks && s->sectors;
	unsigned data_nr = is_usable ? s->nr_blocks - s->nr_redundant : 0;
	const struct extent_ptr *block = sp->block < data_nr ? &s->ptrs[sp->block] : NULL;

	if (!block || (ptr->dev != block->dev && ptr->dev != DEV_NONE && block->dev != DEV_NONE) ||
	    ptr->gen != block->gen || ptr->sector < block->sector || ptr->sector - block->sector >= s->sectors) {
		stripe_report(rb, sp->block, ERROR_ptr_to_incorrect_stripe, -EIO, ptr->sector,
			      "a stripe that the pointer matches", "another one");
		return -EIO;
	}
	if (s->csum_type >= CHECKSUM_TYPE_NR || checksum_is_mac(s->csum_type)) {
		stripe_report(rb, sp->block, 0, -EIO, ptr->sector, "checksums without key",
			      checksum_name(s->csum_type));
		return -EIO;
	}

	rb->data_nr = data_nr;
	rb->row_nr = min((unsigned)s->nr_blocks, data_nr + 2);
	rb->granule_sectors =
		s->csum_granularity_bits < 16 ? min(1u << s->csum_granularity_bits, (uint32_t)s->sectors) : s->sectors;
	return 0;
}

/* Rule out the wanted block and those that can't be read or were reused. */
static void blocks_check(struct rebuild *rb)
{
	const struct super *super = rb->data->super;

	rb->bad = 1u << rb->target;
	for (unsigned i = 0; i < rb->row_nr; i++) {
		const struct extent_ptr *p = &rb->stripe.ptrs[i];
		uint8_t gen;

		if (i == rb->target)
			continue;
		if (!super_member_online(super, p->dev) || !super->members[p->dev].m.bucket_sectors) {
			rb->bad |= 1u << i;
			continue;
		}
		int n = bucket_gen_lookup(rb->data->trees, p->dev, p->sector / super->members[p->dev].m.bucket_sectors,
					  &gen);
		if (n == 1 && gen_cmp(gen, p->gen) > 0) {
			stripe_report(rb, i, ERROR_stripe_read_ptr_stale, -KILN_E_STALE, p->sector, NULL, NULL);
			rb->bad |= 1u << i;
		}
	}
}

static uint8_t matrix_entry(const struct rebuild *rb, unsigned row, unsigned column)
{
	uint8_t value = 1;

	if (row < rb->data_nr)
		return row == column;
	for (unsigned i = 0; row > rb->data_nr && i < column; i++)
		value = gf_mul(value, GF_GENERATOR);
	return value;
}

/* Choose nd good blocks, and the coefficients that combine them to the wanted one. */
static int sources_choose(struct rebuild *rb)
{
	uint8_t matrix[STRIPE_BLOCKS_MAX * STRIPE_BLOCKS_MAX], inverse[STRIPE_BLOCKS_MAX * STRIPE_BLOCKS_MAX];
	unsigned nd = rb->data_nr, nr = 0;

	for (unsigned i = 0; i < rb->row_nr && nr < nd; i++)
		if (!(rb->bad & 1u << i))
			rb->sources[nr++] = i;
	if (nr < nd) {
		stripe_report(rb, rb->target, 0, -EIO, rb->stripe.ptrs[rb->target].sector + rb->begin,
			      "as many good blocks as the stripe has data blocks", "fewer");
		return -EIO;
	}

	for (unsigned row = 0; row < nd; row++)
		for (unsigned column = 0; column < nd; column++)
			matrix[row * nd + column] = matrix_entry(rb, rb->sources[row], column);
	if (gf_invert_matrix(matrix, inverse, (int)nd))
		return -EIO;
	ec_init_tables((int)nd, 1, inverse + rb->target * nd, rb->tables);
	return 0;
}

/* Read [@begin, @end) of all sources at once. -EAGAIN: some couldn't be read, and are ruled out. */
static int pieces_read(struct rebuild *rb, uint32_t begin, uint32_t end)
{
	struct device_io ios[STRIPE_BLOCKS_MAX];
	struct iovec iovs[STRIPE_BLOCKS_MAX];
	struct io_group group;
	uint64_t bytes = (uint64_t)(end - begin) * SECTOR_BYTES;
	int result = 0;

	io_group_init(&group);
	for (unsigned i = 0; i < rb->data_nr; i++) {
		const struct extent_ptr *p = &rb->stripe.ptrs[rb->sources[i]];

		iovs[i] = (struct iovec){ rb->pieces[rb->sources[i]], bytes };
		ios[i] = (struct device_io){
			.op = DEVICE_READ,
			.dev = rb->data->super->members[p->dev].dev,
			.offset_bytes = (p->sector + begin) * SECTOR_BYTES,
			.iov = &iovs[i],
			.iov_nr = 1,
			.len_bytes = bytes,
		};
		io_submit(&group, &ios[i]);
	}
	io_group_wait(&group);
	data_count(rb->data, COUNTER_IOS, rb->data_nr);

	for (unsigned i = 0; i < rb->data_nr; i++) {
		unsigned block = rb->sources[i];

		if (!ios[i].err) {
			data_count(rb->data, COUNTER_BYTES_READ, bytes);
			continue;
		}
		stripe_report(rb, block, ERROR_data_read_io_err_recovered, ios[i].err,
			      rb->stripe.ptrs[block].sector + begin, NULL, NULL);
		rb->bad |= 1u << block;
		result = -EAGAIN;
	}
	return result;
}

/* Take the wanted part of the target's piece [@begin, @end). */
static void piece_copy_out(struct rebuild *rb, uint32_t begin, uint32_t end)
{
	uint32_t from = max(begin, rb->begin), to = min(end, rb->end);

	if (from < to)
		memcpy(rb->out + (size_t)(from - rb->begin) * SECTOR_BYTES,
		       rb->pieces[rb->target] + (size_t)(from - begin) * SECTOR_BYTES,
		       (size_t)(to - from) * SECTOR_BYTES);
}

/* Does the checksum of @block over granule @granule agree? Reports if not. */
static bool granule_verify(struct rebuild *rb, unsigned block, uint32_t granule)
{
	struct checksum expected = stripe_checksum(&rb->stripe, block, granule);
	struct checksum found = checksum_end(&rb->csums[block]);
	char texts[2][40];

	if (!rb->stripe.csum_type || checksum_eq(expected, found))
		return true;
	snprintf(texts[0], sizeof(texts[0]), "%llx", (unsigned long long)expected.lo);
	snprintf(texts[1], sizeof(texts[1]), "%llx", (unsigned long long)found.lo);
	stripe_report(rb, block, ERROR_data_read_csum_err_recovered, -KILN_E_CHECKSUM,
		      rb->stripe.ptrs[block].sector + (uint64_t)granule * rb->granule_sectors, texts[0], texts[1]);
	return false;
}

/* One pass over sectors [@begin, @end) of the blocks, which make up @granule. -EAGAIN: a source was ruled out. */
static int granule_try(struct rebuild *rb, uint32_t granule, uint32_t begin, uint32_t end)
{
	uint32_t piece_sectors = STRIPE_PIECE_BYTES / SECTOR_BYTES;
	int err;

	for (unsigned i = 0; i < rb->data_nr; i++)
		checksum_begin(&rb->csums[rb->sources[i]], rb->stripe.csum_type);
	checksum_begin(&rb->csums[rb->target], rb->stripe.csum_type);

	for (uint32_t pos = begin; pos < end; pos += piece_sectors) {
		uint32_t pos_end = min(pos + piece_sectors, end);
		size_t bytes = (size_t)(pos_end - pos) * SECTOR_BYTES;
		uint8_t *sources[STRIPE_BLOCKS_MAX];

		err = pieces_read(rb, pos, pos_end);
		if (err)
			return err;
		for (unsigned i = 0; i < rb->data_nr; i++) {
			sources[i] = rb->pieces[rb->sources[i]];
			checksum_update(&rb->csums[rb->sources[i]], sources[i], bytes);
		}
		ec_encode_data((int)bytes, (int)rb->data_nr, 1, rb->tables, sources, &rb->pieces[rb->target]);
		checksum_update(&rb->csums[rb->target], rb->pieces[rb->target], bytes);
		piece_copy_out(rb, pos, pos_end);
	}

	err = 0;
	for (unsigned i = 0; i < rb->data_nr; i++)
		if (!granule_verify(rb, rb->sources[i], granule)) {
			rb->bad |= 1u << rb->sources[i];
			err = -EAGAIN;
		}
	if (!err && !granule_verify(rb, rb->target, granule))
		err = -EIO;
	return err;
}

static int granule_rebuild(struct rebuild *rb, uint32_t granule)
{
	uint32_t begin = granule * rb->granule_sectors;
	uint32_t end = min(begin + rb->granule_sectors, (uint32_t)rb->stripe.sectors);
	int err;

	/* Nothing to verify: no need to read more than what is wanted. */
	if (!rb->stripe.csum_type) {
		begin = max(begin, rb->begin);
		end = min(end, rb->end);
	}
	do {
		err = sources_choose(rb);
		if (!err)
			err = granule_try(rb, granule, begin, end);
	} while (err == -EAGAIN);
	return err;
}
