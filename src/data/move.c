/* Moving data in batches: taking keys, reading, writing, putting. See move.h. */
#include "data/move.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "alloc/bucket.h"
#include "alloc/gens.h"
#include "base/array.h"
#include "base/mutant.h"
#include "base/strbuf.h"
#include "data/compress.h"
#include "data/move_internal.h"
#include "data/write_internal.h"
#include "device/device.h"
#include "format/error_ids.h"

enum { MOVE_PUTS_PER_TXN_MAX = 8 };

/* --- memory --- */

enum { MEMORY_IN, MEMORY_FORM };

struct data_mover *data_mover_new(struct data *data, struct pool *pool)
{
	size_t form_bytes = DATA_MOVE_FORM_BYTES_MIN;
	struct data_mover *m = calloc(1, sizeof(*m));

	if (!m)
		return NULL;
	while (form_bytes < POOL_BUFFER_BYTES_MAX && MOVE_BYTES + 2 * form_bytes <= pool->bytes_max)
		form_bytes *= 2;
	m->data = data;
	m->pool = pool;
	if (pool_take(pool, (size_t[]){ MOVE_BYTES, form_bytes }, m->memory, ARRAY_NR(m->memory), true)) {
		free(m);
		return NULL;
	}
	return m;
}

/* Memory that is aligned for devices. What is too large for the mover's is for an item that is alone. */
static void *memory_get(struct data_mover *m, unsigned which, size_t *used, size_t bytes)
{
	void *buf = NULL;

	if (bytes <= m->memory[which].bytes - *used) {
		buf = (uint8_t *)m->memory[which].data + *used;
		*used += bytes;
	} else if (m->large_nr < ARRAY_NR(m->large) && (buf = io_buffer_alloc(bytes))) {
		m->large[m->large_nr++] = buf;
	}
	return buf;
}

static void *form_memory_get(struct data_mover *m, size_t bytes)
{
	return memory_get(m, MEMORY_FORM, &m->form_used, round_up_u64(bytes, POOL_BUFFER_BYTES_MIN));
}

static void section_end(struct data_mover *m)
{
	if (m->has_section)
		allocator_read_end(m->data->writer->allocator, m->section);
	m->has_section = false;
}

static void items_forget(struct data_mover *m)
{
	for (unsigned i = 0; i < m->item_nr; i++)
		free(m->items[i].gaps);
	while (m->large_nr)
		io_buffer_free(m->large[--m->large_nr]);
	m->item_nr = m->io_nr = 0;
	m->part_nr = m->space_nr = 0;
	m->in_used = m->form_used = m->values_used = 0;
}

void data_mover_free(struct data_mover *m)
{
	if (!m)
		return;
	section_end(m);
	items_forget(m);
	pool_give(m->pool, m->memory, ARRAY_NR(m->memory));
	free(m->locks);
	free(m->parts);
	free(m->spaces);
	free(m);
}

void data_mover_begin(struct data_mover *m)
{
	section_end(m);
	items_forget(m);
	m->section = allocator_read_begin(m->data->writer->allocator);
	m->has_section = true;
}

/* --- taking keys --- */

/* What can't be read now counts for nothing, whatever comes back later. */
static bool ptr_is_there(const struct super *s, const struct extent_ptr *p)
{
	return super_member_online(s, p->dev) && super_member_state(s, p->dev) != MEMBER_FAILED;
}

/*
 * 06 §11 step 1: what is wanted, from what is there. One copy is, even where those that remain are enough: they
 * haven't been read.
 */
static void item_plan(const struct data_mover *m, struct move_item *item)
{
	const struct super *s = m->data->super;
	struct data_move *move = &item->move;
	unsigned removed = 0, kept = 0;

	for (unsigned i = 0; i < item->v.ptr_nr; i++) {
		const struct extent_ptr *p = &item->v.ptrs[i].ptr;

		if (p->is_cached && move->rewrite >> i & 1) {
			move->rewrite &= ~(1u << i);
			item->kill |= 1u << i;
		}
		if (p->is_cached)
			continue;
		item->is_unwritten |= p->is_unwritten;
		if (move->rewrite >> i & 1) {
			removed += ptr_durability(s, p);
			continue;
		}
		kept += ptr_is_there(s, p) ? ptr_durability(s, p) : 0;
		if (p->dev < 64)
			item->kept_devs |= 1ull << p->dev;
	}
	item->wanted = min(removed, item->replicas > kept ? item->replicas - kept : 1);
}

/* What is wanted of the item's data: of shared data, and where no inode can be read, what the filesystem says. */
static void item_aim(struct data_mover *m, struct move_item *item)
{
	const struct move_item *before = item == m->items ? NULL : item - 1;
	struct inode inode = { 0 };
	struct btree_iter it;
	struct bkey_ref k;

	if (before && before->btree_id == item->btree_id && before->k.p.inode == item->k.p.inode &&
	    before->k.p.snapshot == item->k.p.snapshot) {
		item->aim = before->aim;
		item->replicas = before->replicas;
		item->csum_type = before->csum_type;
		item->compression = before->compression;
		return;
	}
	if (item->btree_id == BTREE_EXTENTS) {
		btree_iter_open(&it, m->data->trees, BTREE_INODES, BPOS(0, item->k.p.inode, item->k.p.snapshot), 0,
				item->k.p.snapshot);
		it.end = BPOS(0, item->k.p.inode, UINT32_MAX);
		if (btree_iter_peek(&it, &k) > 0 && k.k.type != KEY_INODE_GENERATION && inode_unpack(k, &inode, NULL))
			inode = (struct inode){ 0 };
		btree_iter_close(&it);
	}
	/* What a newer version has set, and can't be made here, is made by nobody. */
	struct write_op op = { .data = m->data };
	if (write_options_take(&op, &inode))
		op.csum_type = CHECKSUM_TYPE_NR;
	item->aim = rebalance_aim_of(m->data, &inode);
	item->replicas = write_replicas(m->data, &inode);
	item->csum_type = op.csum_type;
	item->compression = item->aim.wanted.compression ? item->aim.wanted.compression : op.compression;
}

/* Memory for what is read, whichever copy serves. */
static size_t room_wanted(const struct move_item *item)
{
	uint32_t sectors = 0;

	for (unsigned i = 0; i < item->v.ptr_nr; i++) {
		const struct extent_crc *crc = &item->v.ptrs[i].crc;

		if (crc_is_sane(crc, ((uint64_t)crc->offset_sectors + item->k.size) << SECTOR_SHIFT))
			sectors = max(sectors, move_sectors_to_read(item, i));
	}
	return (size_t)sectors << SECTOR_SHIFT;
}

/* Of what may be read in parts, as much as is read together. */
static bool key_is_cut(const struct data_mover *m, struct bkey_ref k, struct key_buf *front)
{
	const struct key_context *kctx = &m->data->super->kctx;
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	int nr = k.k.size > MOVE_BYTES >> SECTOR_SHIFT ? extent_decode(k, kctx, ptrs, NULL, NULL) : 0;

	for (int i = 0; i < nr; i++)
		if (crc_is_encoded(&ptrs[i].crc) || ptrs[i].ptr.is_unwritten)
			return false;
	if (nr <= 0)
		return false;
	key_buf_load(front, k);
	key_cut_back(front, bkey_start_offset(&k.k) + (MOVE_BYTES >> SECTOR_SHIFT), kctx);
	return true;
}

static int key_add(struct data_mover *m, unsigned btree_id, struct bkey_ref k, const struct data_move *move)
{
	size_t bytes = bkey_value_bytes(&k.k);

	if (m->item_nr == MOVE_ITEMS_MAX || bytes > sizeof(m->values) - m->values_used)
		return -ENOBUFS;
	struct move_item *item = &m->items[m->item_nr];
	*item = (struct move_item){
		.btree_id = btree_id, .k = k.k, .value = m->values + m->values_used, .move = *move
	};
	int err = extent_value_load(&item->v, k, &m->data->super->kctx);
	if (err)
		return err == -KILN_E_UNSUPPORTED ? -EOPNOTSUPP : err;
	for (unsigned i = 0; i < item->v.ptr_nr; i++)
		if (item->v.ptrs[i].has_stripe)
			return -EOPNOTSUPP;
	item_aim(m, item);
	item_plan(m, item);
	if (move->is_to_background)
		item->move.target = item->aim.wanted.target;
	if (!item->wanted && !item->move.rewrite && !item->kill)
		return -EINVAL;
	if (item->wanted && !item->is_unwritten) {
		item->source = move_source_next(m, item, move->avoid);
		item->in_sectors = item->source < EXTENT_PTRS_MAX ? move_sectors_to_read(item, item->source) : 0;
	}
	size_t room = item->in_sectors ? room_wanted(item) : 0;
	if (room > MOVE_BYTES - m->in_used && m->item_nr)
		return -ENOBUFS;
	item->in = memory_get(m, MEMORY_IN, &m->in_used, room);
	if (!item->in)
		return -ENOMEM;
	if (room > MOVE_BYTES)
		m->in_used = MOVE_BYTES; /* alone */
	memcpy(m->values + m->values_used, k.value, bytes);
	m->values_used += round_up_u64(bytes, 8);
	m->item_nr++;
	return 0;
}

int data_mover_add(struct data_mover *m, unsigned btree_id, struct bkey_ref k, const struct data_move *move)
{
	struct key_buf front;
	bool is_front = key_is_cut(m, k, &front);
	int err = key_add(m, btree_id, is_front ? key_buf_ref(&front) : k, move);

	if (!err)
		m->items[m->item_nr - 1].is_front = is_front;
	return err ? err : is_front;
}

/* --- what is to be written --- */

/* How an item's new copies are stored. */
struct item_form {
	const uint8_t *bytes;
	struct extent_crc crc;	/* of the whole; of a part, what part_crc() makes of it */
	bool has_crc, is_whole; /* whole: can't be divided, and the descriptor stays */
	uint32_t sectors_max;	/* in one part */
};

/* To be stored as its file's options ask by now, not as it is; what has gaps isn't one piece. */
static bool wants_other_form(const struct move_item *item)
{
	return item->move.is_to_background && !item->move.is_form_kept && !item->gap_nr;
}

/* Shared data goes on wanting what it has wanted. */
static unsigned compression_wanted(const struct move_item *item)
{
	unsigned own = item->k.type == KEY_REFLINK_V && item->v.has_rebalance ? item->v.rebalance.compression : 0;

	return own && compression_option_is_valid(own) ? own : item->compression;
}

static unsigned csum_type_wanted(const struct move_item *item, unsigned old)
{
	bool is_kept = !wants_other_form(item) || item->csum_type >= CHECKSUM_TYPE_NR ||
		       checksum_is_mac(item->csum_type) || checksum_is_mac(old);

	return is_kept ? old : item->csum_type;
}

static const struct crypt_key *key_of(const struct data_mover *m) { return m->data->super->key; }

static int item_decompress(struct data_mover *m, struct move_item *item)
{
	const struct extent_crc *crc = &item->v.ptrs[item->source].crc;
	size_t bytes = (size_t)crc->uncompressed_sectors << SECTOR_SHIFT;

	if (checksum_is_mac(crc->csum_type))
		crypt_xor(key_of(m),
			  nonce_extent(crc->uncompressed_sectors, crc->nonce_sectors, crc->compression,
				       item->k.version.lo, item->k.version.hi),
			  item->in, (size_t)crc->compressed_sectors << SECTOR_SHIFT);
	item->decoded = form_memory_get(m, bytes);
	if (!item->decoded)
		return -ENOMEM;
	int err = decompress_region(crc->compression, item->in, (size_t)crc->compressed_sectors << SECTOR_SHIFT,
				    item->decoded, bytes);
	if (err && err != -ENOMEM)
		move_item_report(m, item, REPORT_DAMAGE, ERROR_data_decompress_err_unknown, err, NULL);
	if (err)
		return err;
	/* As it would have been stored without compression. */
	if (checksum_is_mac(crc->csum_type))
		crypt_encrypt(
			key_of(m),
			nonce_extent(0, crc->nonce_sectors, COMPRESSION_NONE, item->k.version.lo, item->k.version.hi),
			item->decoded, item->decoded, bytes);
	return 0;
}

/*
 * The live bytes, compressed as @option asks to @room sectors at most: they are the item's form then, and 1 is
 * returned. 0: they don't compress to that; or an error.
 */
static int item_compress_to(struct data_mover *m, struct move_item *item, struct item_form *f, unsigned option,
			    const uint8_t *live, uint32_t room)
{
	size_t block = (size_t)m->data->super->kctx.block_sectors << SECTOR_SHIFT, len;
	uint8_t *to = form_memory_get(m, (size_t)room << SECTOR_SHIFT);

	if (!to)
		return -ENOMEM;
	int err = compress_to_blocks(option, live, (size_t)item->k.size << SECTOR_SHIFT, to,
				     (size_t)room << SECTOR_SHIFT, block, &len);
	if (err)
		return err == -ENOBUFS ? 0 : err;
	f->bytes = to;
	f->crc = (struct extent_crc){
		.compressed_sectors = (uint32_t)(len >> SECTOR_SHIFT),
		.uncompressed_sectors = item->k.size,
		.csum_type = (uint8_t)csum_type_wanted(item, f->crc.csum_type),
		.compression = compression_option_type(option),
	};
	if (f->crc.csum_type)
		f->crc.csum = checksum_compute(f->crc.csum_type, NULL, (struct nonce){ 0 }, f->bytes, len);
	f->has_crc = f->is_whole = true;
	return 1;
}

/* As what a compressed region is compressed, if it is anew. */
static unsigned recompression_option(const struct move_item *item, const struct extent_crc *old)
{
	return wants_other_form(item) && compression_wanted(item) ? compression_wanted(item)
								  : compression_type_option(old->compression);
}

/* Memory that item_form() takes, at most; none for what is stored as it is. */
static size_t form_bytes_wanted(const struct data_mover *m, const struct move_item *item)
{
	const struct extent_crc *crc = &item->v.ptrs[item->source].crc;
	size_t live = round_up_u64((size_t)item->k.size << SECTOR_SHIFT, POOL_BUFFER_BYTES_MIN);
	uint32_t size_max = m->data->super->kctx.encoded_extent_max_sectors;

	if (item->err || !item->wanted || item->is_unwritten)
		return 0;
	if (!compression_is_compressed(crc->compression))
		return wants_other_form(item) && compression_wanted(item) && item->k.size <= size_max ? live : 0;
	bool is_kept = crc->uncompressed_sectors == item->k.size && crc->uncompressed_sectors <= size_max &&
		       crc->compressed_sectors <= item->k.size &&
		       compression_option_type(recompression_option(item, crc)) == crc->compression;
	return is_kept ? 0
		       : round_up_u64((size_t)crc->uncompressed_sectors << SECTOR_SHIFT, POOL_BUFFER_BYTES_MIN) + live;
}

/*
 * A compressed region, of which only a part is live, or that is to be compressed otherwise: that part, compressed anew,
 * if that takes less. Else each fragment would go on having a copy of the whole region, of which the counters know its
 * share alone. What is encrypted stays as it is: other bytes under the same number would share a key stream. 0, and
 * f->is_whole where it is done; or an error.
 */
static int item_recompress(struct data_mover *m, struct move_item *item, struct item_form *f)
{
	const struct extent_crc old = f->crc;
	uint32_t block = m->data->super->kctx.block_sectors, less = min(old.compressed_sectors, item->k.size);
	unsigned option = recompression_option(item, &old);
	bool is_all_live = old.uncompressed_sectors == item->k.size;

	if ((is_all_live && compression_option_type(option) == old.compression) || item->k.size > f->sectors_max ||
	    checksum_is_mac(old.csum_type) || less <= block)
		return 0;
	int err = item_decompress(m, item);
	if (!err)
		err = item_compress_to(m, item, f, option, item->decoded + ((size_t)old.offset_sectors << SECTOR_SHIFT),
				       less - block);
	/* What can't be decompressed can be moved. */
	return is_all_live && err != -ENOMEM ? 0 : min(err, 0);
}

/* A compressed region: its live part compressed anew, else the region as it is, else the live part as it decodes. */
static int compressed_form(struct data_mover *m, struct move_item *item, struct item_form *f)
{
	int err = item_recompress(m, item, f);

	if (err || f->is_whole)
		return err;
	if (f->crc.compressed_sectors <= item->k.size && f->crc.uncompressed_sectors <= f->sectors_max) {
		f->is_whole = true;
		return 0;
	}
	err = item->decoded ? 0 : item_decompress(m, item);
	if (err)
		return err;
	f->bytes = item->decoded + ((size_t)f->crc.offset_sectors << SECTOR_SHIFT);
	f->crc.compression = COMPRESSION_NONE;
	f->has_crc = f->crc.csum_type != 0;
	return 0;
}

/*
 * What isn't compressed: as its file's options ask by now. It never takes more space than before. Where what is to be
 * compressed doesn't become less, that is noted, so that nobody tries again; and only as much of it as is read
 * together.
 */
static int plain_form(struct data_mover *m, struct move_item *item, struct item_form *f)
{
	uint32_t block = m->data->super->kctx.block_sectors, size_max = m->data->super->kctx.encoded_extent_max_sectors;
	unsigned compression = compression_wanted(item);
	int done = 0;

	if (!wants_other_form(item) || checksum_is_mac(f->crc.csum_type))
		return 0;
	f->crc.csum_type = (uint8_t)csum_type_wanted(item, f->crc.csum_type);
	if (compression && f->crc.compression == COMPRESSION_NONE && item->k.size <= size_max) {
		if (item->k.size > block)
			done = item_compress_to(m, item, f, compression, f->bytes, item->k.size - block);
		if (!done)
			f->crc.compression = COMPRESSION_INCOMPRESSIBLE;
	}
	f->has_crc = f->crc.csum_type || f->crc.compression;
	if (f->crc.csum_type)
		f->sectors_max = size_max;
	return min(done, 0);
}

static int item_form(struct data_mover *m, struct move_item *item, struct item_form *f)
{
	const struct extent_ptr_decoded *source = &item->v.ptrs[item->source];

	*f = (struct item_form){ .sectors_max = UINT32_MAX };
	if (item->is_unwritten)
		return 0;
	f->crc = source->crc;
	f->has_crc = source->has_crc;
	f->bytes = item->in;
	if (crc_is_encoded(&f->crc)) {
		f->sectors_max = m->data->super->kctx.encoded_extent_max_sectors;
		if (compression_is_compressed(f->crc.compression))
			return compressed_form(m, item, f);
		f->bytes += (size_t)f->crc.offset_sectors << SECTOR_SHIFT;
	}
	return plain_form(m, item, f);
}

/* The descriptor of sectors [@at, @at + @sectors) of an item, which can be divided. */
static struct extent_crc part_crc(const struct data_mover *m, const struct move_item *item, const struct item_form *f,
				  uint32_t at, uint32_t sectors)
{
	const uint8_t *bytes = f->bytes + ((size_t)at << SECTOR_SHIFT);
	struct extent_crc crc = f->crc;

	if (!at && sectors == item->k.size && !item->decoded && !crc.offset_sectors &&
	    crc.uncompressed_sectors == sectors && crc.csum_type == item->v.ptrs[item->source].crc.csum_type)
		return crc;
	if (checksum_is_mac(crc.csum_type))
		crc.nonce_sectors += crc.offset_sectors + at;
	crc.offset_sectors = 0;
	crc.compressed_sectors = crc.uncompressed_sectors = sectors;
	if (crc.csum_type)
		crc.csum = checksum_compute(crc.csum_type, key_of(m),
					    nonce_extent(sectors, crc.nonce_sectors, crc.compression,
							 item->k.version.lo, item->k.version.hi),
					    bytes, (size_t)sectors << SECTOR_SHIFT);
	return crc;
}

/* --- space --- */

static struct move_part *part_new(struct data_mover *m, struct move_item *item)
{
	if (array_grow(&m->parts, &m->part_max, m->part_nr + 1, sizeof(*m->parts)))
		return NULL;
	struct move_part *part = &m->parts[m->part_nr++];
	*part = (struct move_part){ .item = item, .begin = bkey_start_offset(&item->k), .end = item->k.p.offset };
	return part;
}

static bool wants_same_space(const struct move_item *a, const struct move_item *b)
{
	return a->is_unwritten == b->is_unwritten && a->wanted == b->wanted && a->kept_devs == b->kept_devs &&
	       a->move.target == b->move.target && a->move.watermark == b->move.watermark;
}

/* Sectors that the items from @i on can share a space for, at most. */
static uint32_t space_sectors_wanted(const struct data_mover *m, unsigned i, uint32_t first)
{
	const struct move_item *item = &m->items[i];
	uint64_t sectors = first;

	for (i++; i < m->round_end; i++) {
		const struct move_item *next = &m->items[i];

		if (next->err || !next->wanted)
			continue;
		if (!wants_same_space(item, next))
			break;
		const struct extent_crc *crc = &next->v.ptrs[next->source].crc;
		sectors += next->is_unwritten || !compression_is_compressed(crc->compression)
				   ? next->k.size
				   : min(crc->compressed_sectors, next->k.size);
	}
	return (uint32_t)min(sectors, (uint64_t)UINT32_MAX / 2);
}

static struct alloc_request space_request(const struct move_item *item, uint32_t sectors_min)
{
	return (struct alloc_request){
		.data_type = DATA_USER,
		.watermark = item->move.watermark,
		.target = item->move.target,
		.replicas = item->wanted,
		.replicas_required = item->wanted,
		.sectors_min = sectors_min,
		.dev_exclude = item->kept_devs | item->failed_devs,
		.is_without_caches = true,
		.can_wait = true,
	};
}

/* One more, for the parts from @first_part on. */
static int space_new(struct data_mover *m, const struct alloc_request *req, uint32_t sectors, size_t first_part)
{
	if (array_grow(&m->spaces, &m->space_max, m->space_nr + 1, sizeof(*m->spaces)))
		return -ENOMEM;
	struct move_space *space = &m->spaces[m->space_nr];
	*space = (struct move_space){ .first = first_part };
	int err = allocator_extent_get(m->data->writer->allocator, req, sectors, &space->e);
	m->space_nr += !err;
	return err;
}

/* Behind what its space holds already. */
static void part_set_space(struct data_mover *m, struct move_part *part, size_t nr)
{
	struct move_space *space = &m->spaces[nr];

	part->space = (unsigned)nr;
	part->ptr_nr = space->e.ptr_nr;
	for (unsigned k = 0; k < part->ptr_nr; k++) {
		part->ptrs[k] = space->e.ptrs[k];
		part->ptrs[k].sector += space->used;
		part->ptrs[k].is_unwritten = part->item->is_unwritten;
	}
	space->used += part->stored_sectors;
	space->nr++;
}

/* Put a part into the last space, which has room for it. */
static int part_place(struct data_mover *m, struct move_item *item, const struct item_form *f, uint32_t at,
		      uint32_t sectors, uint32_t stored)
{
	struct move_part *part = part_new(m, item);

	if (!part)
		return -ENOMEM;
	part->begin += at;
	part->end = part->begin + sectors;
	part->stored_sectors = stored;
	if (!item->is_unwritten) {
		part->bytes = f->bytes + ((size_t)at << SECTOR_SHIFT);
		part->has_crc = f->has_crc;
		part->crc = f->is_whole ? f->crc : part_crc(m, item, f, at, sectors);
	}
	part_set_space(m, part, m->space_nr - 1);
	return 0;
}

static bool space_fits(const struct data_mover *m, unsigned i, uint32_t sectors_min)
{
	const struct move_space *space = m->space_nr ? &m->spaces[m->space_nr - 1] : NULL;

	/* Its parts must be the last ones. */
	if (!space || space->e.sectors - space->used < sectors_min || space->first + space->nr != m->part_nr ||
	    !space->nr)
		return false;
	return wants_same_space(&m->items[i], m->parts[space->first].item);
}

/* The next sectors of the item, from @at on, that were read: up to *@end. */
static uint32_t next_readable(const struct move_item *item, uint32_t at, uint32_t *end)
{
	*end = item->k.size;
	for (size_t i = 0; i < item->gap_nr; i++) {
		if (item->gaps[i].begin > at) {
			*end = item->gaps[i].begin;
			break;
		}
		at = max(at, item->gaps[i].end);
	}
	return at;
}

/* Space and parts for item @i. */
static int item_place(struct data_mover *m, unsigned i)
{
	struct move_item *item = &m->items[i];
	uint32_t block = m->data->super->kctx.block_sectors, at = 0, end;
	struct item_form f;

	if (!item->wanted)
		return part_new(m, item) ? 0 : -ENOMEM;
	int err = item_form(m, item, &f);
	while (!err && (at = next_readable(item, at, &end)) < item->k.size) {
		uint32_t left = f.is_whole ? f.crc.compressed_sectors : end - at;
		uint32_t sectors_min = f.is_whole ? left : min(block, left);

		if (!space_fits(m, i, sectors_min)) {
			struct alloc_request req = space_request(item, sectors_min);

			err = space_new(m, &req, space_sectors_wanted(m, i, left), m->part_nr);
		}
		if (err)
			break;
		struct move_space *space = &m->spaces[m->space_nr - 1];
		uint32_t stored = min(min(left, f.sectors_max), space->e.sectors - space->used);
		if (f.is_whole)
			stored = left;
		uint32_t sectors = f.is_whole ? item->k.size : stored;

		err = part_place(m, item, &f, at, sectors, stored);
		at += sectors;
	}
	return err;
}

/* Parts that lie behind one another, here and there, may become one key again. */
static void parts_note_merges(struct data_mover *m)
{
	for (size_t i = 1; i < m->part_nr; i++) {
		struct move_part *l = &m->parts[i - 1], *r = &m->parts[i];
		const struct bkey *lk = &l->item->k, *rk = &r->item->k;

		if (!l->ptr_nr || !r->ptr_nr || l->space != r->space || l->end != r->begin ||
		    l->item->btree_id != r->item->btree_id || lk->p.inode != rk->p.inode ||
		    lk->p.snapshot != rk->p.snapshot || l->crc.csum_type != r->crc.csum_type ||
		    compression_is_compressed(l->crc.compression))
			continue;
		/* The right one, put later, takes in the left. */
		r->may_merge = true;
	}
}

/* What the moves will take beyond what they give back. */
static uint64_t space_extra(const struct data_mover *m)
{
	uint64_t taken = 0, given = 0;

	for (unsigned i = 0; i < m->item_nr; i++) {
		const struct move_item *item = &m->items[i];
		unsigned nr = 0;

		if (item->err || item->move.watermark == WATERMARK_COPYGC)
			continue;
		for (unsigned k = 0; k < item->v.ptr_nr; k++) {
			const struct extent_ptr_decoded *p = &item->v.ptrs[k];

			if (!p->ptr.is_cached && item->move.rewrite >> k & 1)
				given += bucket_sectors_of_extent(&p->crc, item->k.size);
			nr += item->move.rewrite >> k & 1;
		}
		taken += (uint64_t)item->k.size * nr;
	}
	return taken > given ? taken - given : 0;
}

/* --- writing --- */

/* The memory of a space's parts, as few pieces as possible. Their number. */
static unsigned space_iovs(const struct data_mover *m, const struct move_space *space, struct iovec *iovs)
{
	unsigned nr = 0;

	for (size_t i = space->first; i < space->first + space->nr; i++) {
		const struct move_part *part = &m->parts[i];

		nr = iovs_append(iovs, nr, part->bytes, (size_t)part->stored_sectors << SECTOR_SHIFT);
	}
	return nr;
}

static void space_failed(struct data_mover *m, struct move_space *space, unsigned k, int err)
{
	const struct move_part *part = &m->parts[space->first];
	const struct bpos *pos = &part->item->k.p;
	unsigned dev = space->e.ptrs[k].dev;
	char position[DATA_POSITION_BYTES];

	space->failed_devs |= 1ull << dev;
	data_position_text(position, pos->inode, pos->snapshot, part->begin << SECTOR_SHIFT);
	report_emit(m->data->reports,
		    &(struct report){ .level = REPORT_RECOVERED,
				      .err = err,
				      .device = m->data->super->members[dev].name,
				      .structure = "a copy of file data",
				      .position = part->item->btree_id == BTREE_EXTENTS ? position : NULL,
				      .expected = "to be written",
				      .found = error_name(err),
				      .is_any_place = true });
}

/* All replicas of the spaces from @from on at once. */
static int spaces_write(struct data_mover *m, size_t from, struct data_move_stats *stats)
{
	size_t io_max = (m->space_nr - from) * ALLOC_PTRS_MAX;
	struct device_io *ios = calloc(io_max + 1, sizeof(*ios));
	struct iovec *iovs = calloc(m->part_nr + 1, sizeof(*iovs));
	struct io_group group;
	size_t iov_nr = 0;

	if (!ios || !iovs) {
		free(ios);
		free(iovs);
		return -ENOMEM;
	}
	io_group_init(&group);
	for (size_t s = from; s < m->space_nr; s++) {
		struct move_space *space = &m->spaces[s];

		if (!space->nr || m->parts[space->first].item->is_unwritten)
			continue;
		unsigned nr = space_iovs(m, space, &iovs[iov_nr]);
		for (unsigned k = 0; k < space->e.ptr_nr; k++) {
			struct device_io *io = &ios[(s - from) * ALLOC_PTRS_MAX + k];

			*io = (struct device_io){ .op = DEVICE_WRITE,
						  .dev = m->data->super->members[space->e.ptrs[k].dev].dev,
						  .offset_bytes = space->e.ptrs[k].sector << SECTOR_SHIFT,
						  .iov = &iovs[iov_nr],
						  .iov_nr = nr,
						  .len_bytes = (uint64_t)space->used << SECTOR_SHIFT };
			if (io->dev)
				io_submit(&group, io);
			else
				io->err = -ENODEV;
		}
		iov_nr += nr;
	}
	io_group_wait(&group);
	for (size_t s = from; s < m->space_nr; s++)
		for (unsigned k = 0; k < m->spaces[s].e.ptr_nr; k++) {
			const struct device_io *io = &ios[(s - from) * ALLOC_PTRS_MAX + k];

			stats->sectors_written += io->err ? 0 : io->len_bytes >> SECTOR_SHIFT;
			if (io->err)
				space_failed(m, &m->spaces[s], k, io->err);
		}
	free(ios);
	free(iovs);
	return 0;
}

/*
 * A part that some device didn't take: another space on other devices, for all its copies. It isn't waited for.
 * -EIO: there are no other devices.
 */
static int part_place_again(struct data_mover *m, size_t nr)
{
	const struct super *s = m->data->super;
	struct move_part *part = &m->parts[nr];

	part->item->failed_devs |= m->spaces[part->space].failed_devs;
	struct alloc_request req = space_request(part->item, part->stored_sectors);
	req.can_wait = false;
	for (unsigned dev = 0; dev < s->member_nr && dev < 64; dev++)
		if (s->members[dev].m.bucket_sectors < part->stored_sectors)
			req.dev_exclude |= 1ull << dev;
	int err = space_new(m, &req, part->stored_sectors, nr);
	if (!err)
		part_set_space(m, part, m->space_nr - 1);
	return err == -EROFS ? -EIO : err == -EAGAIN ? -ENOSPC : err;
}

/* What a device doesn't take is written to others, as long as there are some. Each time there is one less. */
static int parts_write(struct data_mover *m, struct data_move_stats *stats)
{
	size_t from = 0, to = 0;
	int err = 0;

	while (!err && from < m->space_nr) {
		err = spaces_write(m, from, stats);
		to = m->space_nr;
		for (size_t i = 0; !err && i < m->part_nr; i++) {
			const struct move_part *part = &m->parts[i];
			bool has_failed = part->ptr_nr && part->space >= from && part->space < to &&
					  m->spaces[part->space].failed_devs;

			if (has_failed && !part->item->err)
				part->item->err = part_place_again(m, i);
		}
		from = to;
	}
	return err;
}

/* --- putting --- */

struct put_args {
	struct data_mover *m;
	size_t at; /* first part that isn't put */
	uint64_t from;
	unsigned puts_max;
	/* of the last run */
	size_t next_at;
	uint64_t next_from, keys_moved, keys_changed;
};

static int put_run(struct btree_txn *txn, void *ctx)
{
	struct put_args *a = ctx;
	struct data_mover *m = a->m;

	unsigned puts_max = btree_txn_batch(txn, a->puts_max);

	a->next_at = a->at;
	a->next_from = a->from;
	a->keys_moved = a->keys_changed = 0;
	for (unsigned puts = 0; puts < puts_max && a->next_at < m->part_nr; puts++) {
		struct move_part *part = &m->parts[a->next_at];
		uint64_t from = max(a->next_from, part->begin), done_to = part->end, sectors = 0;

		if (!puts || !a->next_from)
			part->put_sectors = 0;
		if (!part->item->err) {
			int err = move_part_put(m->data, txn, part, from, &done_to, &sectors);

			if (err)
				return err;
			part->put_sectors += sectors;
			if (sectors == part->end - part->begin)
				a->keys_moved++;
			else
				a->keys_changed++;
		}
		a->next_from = done_to;
		if (done_to >= part->end) {
			a->next_at++;
			a->next_from = 0;
		}
	}
	return 0;
}

/* What the last run has put is there. */
static void puts_count(const struct put_args *a)
{
	for (size_t i = a->at; i < a->next_at + (a->next_from != 0); i++)
		a->m->parts[i].item->put_sectors += a->m->parts[i].put_sectors;
}

static void parts_put(struct data_mover *m, struct data_move_stats *stats)
{
	struct btree_commit_opts opts = { .name = "data_move", .reservation = &m->reservation };
	struct put_args a = { .m = m, .puts_max = MOVE_PUTS_PER_TXN_MAX };

	while (a.at < m->part_nr) {
		struct move_item *item = m->parts[a.at].item;

		opts.watermark = item->move.watermark;
		opts.reservation = item->move.watermark == WATERMARK_COPYGC ? NULL : &m->reservation;
		int err = btree_txn_run(m->data->trees, &opts, put_run, &a);
		if (!err) {
			stats->keys_moved += a.keys_moved;
			stats->keys_changed += a.keys_changed;
			puts_count(&a);
			a.at = a.next_at;
			a.from = a.next_from;
		} else if (a.puts_max > 1) {
			a.puts_max = 1; /* find out which one it is */
		} else {
			item->err = err;
			a.at++;
			a.from = 0;
			a.puts_max = MOVE_PUTS_PER_TXN_MAX;
		}
	}
}

/* --- the whole --- */

/* What may be overwritten in place (06 §9.8) has no checksum. 0 or -ENOMEM. */
static int buckets_lock(struct data_mover *m)
{
	const struct super *s = m->data->super;

	m->lock_nr = 0;
	for (unsigned i = 0; i < m->item_nr; i++) {
		const struct extent_value *v = &m->items[i].v;

		for (unsigned k = 0; k < v->ptr_nr; k++) {
			const struct extent_ptr *p = &v->ptrs[k].ptr;

			if (crc_is_encoded(&v->ptrs[k].crc) || p->dev >= s->member_nr ||
			    !s->members[p->dev].m.bucket_sectors)
				continue;
			if (array_grow(&m->locks, &m->lock_max, m->lock_nr + 1, sizeof(*m->locks)))
				return -ENOMEM;
			m->locks[m->lock_nr++] = bucket_lock_place(p->dev, ptr_bucket(s, p));
		}
	}
	if (is_mutant(MUTANT_MOVE_LOCKS))
		m->lock_nr = 0;
	if (m->lock_nr)
		bucket_locks_take(&m->data->writer->in_place.locks, BUCKET_LOCK_COPY, m->locks, m->lock_nr);
	return 0;
}

static void buckets_unlock(struct data_mover *m)
{
	if (m->lock_nr)
		bucket_locks_put(&m->data->writer->in_place.locks, BUCKET_LOCK_COPY, m->locks, m->lock_nr);
	m->lock_nr = 0;
}

/* The items from @from on whose forms there is memory for together: at least one. */
static unsigned round_end(const struct data_mover *m, unsigned from)
{
	size_t bytes = form_bytes_wanted(m, &m->items[from]);
	unsigned i = from + 1;

	while (i < m->item_nr && (bytes += form_bytes_wanted(m, &m->items[i])) <= m->memory[MEMORY_FORM].bytes)
		i++;
	return i;
}

static void items_place(struct data_mover *m, unsigned from, int reservation_err)
{
	for (unsigned i = from; i < m->round_end; i++) {
		struct move_item *item = &m->items[i];

		if (!item->err && reservation_err && item->wanted)
			item->err = reservation_err;
		if (!item->err)
			item->err = super_option_features_set((struct super *)m->data->super,
							      OPT_BACKGROUND_COMPRESSION, compression_wanted(item));
		if (!item->err)
			item->err = item_place(m, i);
	}
}

/* Write and put the items from @from on that there is memory for: up to m->round_end. 0 or -ENOMEM. */
static int round_run(struct data_mover *m, unsigned from, int reservation_err, struct data_move_stats *stats)
{
	m->round_end = round_end(m, from);
	m->form_used = 0;
	/* Forms of the round before: what is read lies there only if it is all that there is. */
	while (from && m->large_nr)
		io_buffer_free(m->large[--m->large_nr]);
	m->part_nr = m->space_nr = 0;
	items_place(m, from, reservation_err);
	parts_note_merges(m);
	if (is_mutant(MUTANT_MOVE_BEFORE_COPY))
		parts_put(m, stats);
	int err = parts_write(m, stats);
	if (!err && !is_mutant(MUTANT_MOVE_BEFORE_COPY))
		parts_put(m, stats);
	for (size_t s = 0; s < m->space_nr; s++)
		allocator_extent_put(m->data->writer->allocator, &m->spaces[s].e);
	return err;
}

int data_mover_run(struct data_mover *m, struct data_move_stats *stats)
{
	struct allocator *allocator = m->data->writer->allocator;
	int err = buckets_lock(m), reservation_err = 0;

	if (err) {
		section_end(m);
		stats->keys_failed += m->item_nr;
		items_forget(m);
		return err;
	}
	move_items_read(m, stats);
	section_end(m);
	uint64_t extra = space_extra(m);
	m->reservation = (struct disk_reservation){ 0 };
	if (extra)
		reservation_err = disk_reservation_get(allocator, &m->reservation, extra, 1, 0);
	for (unsigned i = 0; i < m->item_nr && !err; i = m->round_end)
		err = round_run(m, i, reservation_err, stats);
	buckets_unlock(m);
	if (m->reservation.sectors)
		disk_reservation_put(allocator, &m->reservation);
	for (unsigned i = 0; i < m->item_nr; i++) {
		const struct move_item *item = &m->items[i];
		int item_err = item->err ? item->err : item->gap_nr ? -EIO : 0;

		stats->keys_failed += item_err != 0;
		if (!item_err && !item->is_front && item->put_sectors == item->k.size)
			stats->pointers_replaced += (unsigned)__builtin_popcount(item->move.rewrite);
		err = err ? err : item_err;
	}
	items_forget(m);
	return err;
}
