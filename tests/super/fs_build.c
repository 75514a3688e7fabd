/* See fs_build.h. */
#include "fs_build.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/strbuf.h"
#include "format/options.h"

static const uint8_t sb_magic_bytes[16] = { 0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9,
					    0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef };

uint64_t fs_copy_sector(unsigned i)
{
	static const uint64_t sectors[FS_COPIES] = { 8, 2056, FS_BUCKETS * FS_BUCKET_SECTORS - 2048 };

	return sectors[i];
}

void fs_init(struct fs *fs, unsigned dev_nr)
{
	static const char *const names[FS_DEVS_MAX] = { "dev0", "dev1", "dev2", "dev3" };

	*fs = (struct fs){
		.dev_nr = dev_nr,
		.version = 0x404,
		.version_min = 0x404,
		.seq = 7,
		.write_time = 1000,
		.block_sectors = FS_BLOCK_SECTORS,
		.bucket_sectors = FS_BUCKET_SECTORS,
		.csum_type = 1,
		.is_initialized = true,
		.features = 0x7ba80,
	};
	for (unsigned i = 0; i < 16; i++)
		fs->uuid[i] = (uint8_t)(0x35 + i);
	for (unsigned i = 0; i < dev_nr; i++) {
		fs->member[i].uuid_byte = (uint8_t)(0xa0 + i);
		fs->member[i].seq = fs->seq;
		assert_int_equal(
			device_open_memory(names[i], (uint64_t)FS_BUCKETS * FS_BUCKET_SECTORS * 512, 512, &fs->dev[i]),
			0);
	}
}

struct section_writer {
	uint8_t *pos;
};

static void section_add(struct section_writer *w, unsigned type, const void *payload, size_t bytes)
{
	size_t total = round_up_u64(8 + bytes, 8);

	memset(w->pos, 0, total);
	le32_store(w->pos, (uint32_t)(total / 8));
	le32_store(w->pos + 4, type);
	if (bytes)
		memcpy(w->pos + 8, payload, bytes);
	w->pos += total;
}

static void member_make(const struct fs *fs, unsigned i, uint8_t m[128])
{
	memset(m, 0, 128);
	memset(m, fs->member[i].uuid_byte, 16);
	le64_store(m + 16, FS_BUCKETS * FS_BUCKET_SECTORS / fs->bucket_sectors);
	le16_store(m + 26, (uint16_t)fs->bucket_sectors);
	le64_store(m + 40, 0x600e0000 | fs->member[i].state | (uint64_t)fs->member[i].group << 20);
	le64_store(m + 120, fs->member[i].seq);
}

static void sections_add(const struct fs *fs, struct section_writer *w)
{
	uint8_t v1[FS_DEVS_MAX * 56], v2[8 + FS_DEVS_MAX * 128] = { 128 };
	uint8_t journal[16], clean[FS_SECTIONS_BYTES_MAX] = { 0 }, blacklist[sizeof(fs->blacklist)], groups[48] = { 0 };

	for (unsigned i = 0; i < fs->dev_nr; i++) {
		member_make(fs, i, v2 + 8 + i * 128);
		memcpy(v1 + i * 56, v2 + 8 + i * 128, 56);
	}
	section_add(w, SB_MEMBERS_V2, v2, 8 + fs->dev_nr * 128);
	section_add(w, SB_MEMBERS_V1, v1, fs->dev_nr * 56);

	le64_store(journal, FS_JOURNAL_BUCKET);
	le64_store(journal + 8, FS_JOURNAL_BUCKETS);
	section_add(w, SB_JOURNAL_V2, journal, sizeof(journal));

	if (fs->replicas)
		section_add(w, SB_REPLICAS, fs->replicas, fs->replicas_bytes);
	if (fs->clean) {
		le64_store(clean + 8, fs->clean_seq);
		memcpy(clean + 16, fs->clean, fs->clean_bytes);
		section_add(w, SB_CLEAN, clean, 16 + fs->clean_bytes);
	}
	for (unsigned i = 0; i < fs->blacklist_nr; i++) {
		le64_store(blacklist + 16 * i, fs->blacklist[i][0]);
		le64_store(blacklist + 16 * i + 8, fs->blacklist[i][1]);
	}
	if (fs->blacklist_nr)
		section_add(w, SB_JOURNAL_SEQ_BLACKLIST, blacklist, 16 * fs->blacklist_nr);
	if (fs->label) {
		memcpy(groups, fs->label, strlen(fs->label));
		groups[32] = 0x3e;
		section_add(w, SB_DISK_GROUPS, groups, sizeof(groups));
	}
	if (fs->crypt)
		section_add(w, SB_CRYPT, fs->crypt, 56);
}

size_t fs_sb_make(const struct fs *fs, unsigned dev_idx, uint64_t sector, void *buf)
{
	struct sb_disk *sb = buf;
	struct section_writer w = { (uint8_t *)(sb + 1) };
	static const uint64_t flags[7] = { 0x0111110080000100, 0x111c102, 0, 0xfa30000000, 0x100000064, 0x404, 0 };

	memset(sb, 0, sizeof(*sb));
	sb->version = le16_of((uint16_t)fs->version);
	sb->version_min = le16_of((uint16_t)fs->version_min);
	memcpy(sb->magic, sb_magic_bytes, 16);
	memcpy(sb->uuid, fs->uuid, 16);
	memset(sb->user_uuid, 0x11, 16);
	sb->offset = le64_of(sector);
	sb->seq = le64_of(fs->seq);
	sb->block_size = le16_of((uint16_t)fs->block_sectors);
	sb->dev_idx = (uint8_t)dev_idx;
	sb->nr_devices = (uint8_t)fs->dev_nr;
	sb->time_precision = le32_of(1);
	sb->write_time = le64_of(fs->write_time);
	sb->features[0] = le64_of(fs->features);
	sb->compat[0] = le64_of(0xf);
	for (unsigned i = 0; i < 7; i++)
		sb->flags[i] = le64_of(flags[i] ^ fs->flags_xor[i]);
	sb->flags[0] =
		le64_of(le64_get(sb->flags[0]) | FS_BUCKET_SECTORS << 12 | fs->is_initialized | fs->is_clean << 1);
	sb->flags[1] = le64_of(bits_set(le64_get(sb->flags[1]), 10, 14, fs->encryption_type));

	memcpy(sb->layout.magic, sb_magic_bytes, 16);
	sb->layout.sb_max_size_bits = 11;
	sb->layout.nr_superblocks = FS_COPIES;
	for (unsigned i = 0; i < FS_COPIES; i++)
		sb->layout.sb_offset[i] = le64_of(fs_copy_sector(i));

	sections_add(fs, &w);
	size_t bytes = (size_t)(w.pos - (uint8_t *)buf);
	sb->u64s = le32_of((uint32_t)((bytes - sizeof(*sb)) / 8));
	sb_seal(sb, fs->csum_type);
	return bytes;
}

static void write_padded(struct device *dev, uint64_t sector, const void *data, size_t bytes)
{
	size_t padded = round_up_u64(bytes, 4096);
	uint8_t *buf = io_buffer_alloc(padded);

	assert_non_null(buf);
	memset(buf, 0, padded);
	memcpy(buf, data, bytes);
	assert_int_equal(device_write(dev, sector * 512, buf, padded), 0);
	io_buffer_free(buf);
}

void fs_write_copies(const struct fs *fs, unsigned dev_idx, unsigned copies)
{
	uint8_t buf[16384], block[4096] = { 0 };

	for (unsigned i = 0; i < FS_COPIES; i++)
		if (copies & 1u << i)
			write_padded(fs->dev[dev_idx], fs_copy_sector(i), buf,
				     fs_sb_make(fs, dev_idx, fs_copy_sector(i), buf));
	fs_sb_make(fs, dev_idx, 8, buf);
	memcpy(block + 7 * 512, &((struct sb_disk *)buf)->layout, 512);
	write_padded(fs->dev[dev_idx], 0, block, sizeof(block));
}

void fs_write_sb(const struct fs *fs)
{
	for (unsigned i = 0; i < fs->dev_nr; i++)
		if (fs->dev[i])
			fs_write_copies(fs, i, 7);
}

void fs_zero_sectors(struct device *dev, uint64_t sector, uint64_t nr)
{
	uint8_t *buf = io_buffer_alloc(nr * 512);

	assert_non_null(buf);
	memset(buf, 0, nr * 512);
	assert_int_equal(device_write(dev, sector * 512, buf, nr * 512), 0);
	io_buffer_free(buf);
}

void fs_close(struct fs *fs)
{
	for (unsigned i = 0; i < FS_DEVS_MAX; i++)
		device_close(fs->dev[i]);
	memset(fs->dev, 0, sizeof(fs->dev));
}

/* --- sub-entries --- */

void subs_add(struct subs *s, unsigned type, unsigned btree_id, unsigned level, const void *payload, size_t bytes)
{
	size_t padded = round_up_u64(bytes, 8);
	struct jset_entry_disk e = { .u64s = le16_of((uint16_t)(padded / 8)),
				     .btree_id = (uint8_t)btree_id,
				     .level = (uint8_t)level,
				     .type = (uint8_t)type };

	assert_true(s->len + sizeof(e) + padded <= sizeof(s->bytes));
	memcpy(s->bytes + s->len, &e, sizeof(e));
	memset(s->bytes + s->len + sizeof(e), 0, padded);
	if (bytes)
		memcpy(s->bytes + s->len + sizeof(e), payload, bytes);
	s->len += sizeof(e) + padded;
}

void subs_add_key(struct subs *s, unsigned type, unsigned btree_id, uint64_t offset)
{
	struct bkey_disk d = { .format = BKEY_FORMAT_UNPACKED };
	struct bkey k = { .p = BPOS(0, offset, 0), .type = KEY_SET };

	bkey_store(&d, &k);
	d.u64s = BKEY_U64S;
	d.format = BKEY_FORMAT_UNPACKED;
	subs_add(s, type, btree_id, 0, &d, sizeof(d));
}

void subs_add_root(struct subs *s, unsigned btree_id, unsigned level, uint64_t node_seq)
{
	struct {
		struct bkey_disk d;
		uint8_t value[48];
	} k = { 0 };
	struct bkey header = { .p = SPOS_MAX, .type = KEY_BTREE_PTR_V2, .value_u64s = 6 };
	struct extent_ptr_word {
		le64 w;
	} ptr;

	bkey_store(&k.d, &header);
	k.d.u64s = BKEY_U64S + 6;
	k.d.format = BKEY_FORMAT_UNPACKED;
	le64_store(k.value + 8, node_seq);
	le16_store(k.value + 16, 16);
	/* pointer: type bit, sector of bucket 64, device 0 */
	ptr.w = le64_of(1 | (uint64_t)64 * FS_BUCKET_SECTORS << 4);
	memcpy(k.value + 40, &ptr, 8);
	subs_add(s, JSET_ENTRY_BTREE_ROOT, btree_id, level, &k, sizeof(k));
}

void subs_add_usage(struct subs *s, unsigned kind, unsigned level, uint64_t v)
{
	uint8_t payload[8];

	le64_store(payload, v);
	subs_add(s, JSET_ENTRY_USAGE, kind, level, payload, sizeof(payload));
}

unsigned fs_write_entry(const struct fs *fs, unsigned dev, unsigned ring_idx, unsigned offset_sectors,
			const struct entry_spec *e, const struct subs *subs)
{
	size_t area = subs ? subs->len : 0;
	struct jset_disk *j = calloc(1, sizeof(*j) + area);

	assert_non_null(j);
	j->magic = le64_of(jset_magic(fs->uuid));
	j->seq = le64_of(e->seq);
	j->last_seq = le64_of(e->is_noflush ? 0 : e->last_seq);
	j->version = le32_of(e->version ? e->version : 0x404);
	j->flags = le32_of((uint32_t)e->is_noflush << 5 | (uint32_t)e->has_overwrites << 6);
	j->u64s = le32_of((uint32_t)(area / 8));
	if (area)
		memcpy(j + 1, subs->bytes, area);
	jset_seal(j, e->key ? CHECKSUM_CHACHA20_POLY1305_128 : CHECKSUM_CRC32C_NONZERO, e->key);
	if (e->is_bad)
		j->csum[0] ^= 0x55;

	uint64_t sector = (uint64_t)(FS_JOURNAL_BUCKET + ring_idx) * FS_BUCKET_SECTORS + offset_sectors;
	write_padded(fs->dev[dev], sector, j, sizeof(*j) + area);
	free(j);
	return offset_sectors + (unsigned)round_up_u64(sizeof(*j) + area, FS_BLOCK_SECTORS * 512) / 512;
}

/* --- reports --- */

static void reports_emit(void *ctx, const struct report *report)
{
	struct reports *r = ctx;
	size_t len = strlen(r->text);

	r->levels[report->level]++;
	r->ids[report->id < ARRAY_NR(r->ids) ? report->id : 0]++;
	snprintf(r->text + len, sizeof(r->text) - len, "[%u] %s %s %s: expected %s, found %s. %s\n", report->level,
		 report->device ? report->device : "", report->structure ? report->structure : "",
		 report->position ? report->position : "", report->expected ? report->expected : "",
		 report->found ? report->found : "", report->advice ? report->advice : "");
}

void reports_clear(struct reports *r) { memset(r, 0, sizeof(*r)); }

struct report_sink reports_sink(struct reports *r)
{
	reports_clear(r);
	return (struct report_sink){ .emit = reports_emit, .ctx = r };
}
