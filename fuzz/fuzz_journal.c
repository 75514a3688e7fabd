/*
 * The journal: single entries, and reading a whole ring of them.
 *
 * Input: a byte of flags (1: the filesystem is clean, 2: read everything, 4: bound memory), then entries: flags (1: not
 * sealed, 2: magic as it is, 4: length as it is, 8: no header fixed), bucket and block where it goes, length (16 bits),
 * header and sub-entries.
 */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "format/jset.h"
#include "journal/journal_read.h"

static struct image *image;
static struct super *super[2]; /* dirty, clean */
static struct device *device[2];

/* The filesystem that the journal is in: freshly formatted, with its journal emptied. */
static void filesystem_open(bool is_clean)
{
	struct device *dev = image_device_open(image, image->size_bytes);
	struct super_open_opts opts = { .devices = &dev, .device_nr = 1 };

	for (size_t i = 0; i < image->structure_nr; i++) {
		const struct structure *s = &image->structures[i];
		struct sb_disk sb;

		if (s->kind != STRUCTURE_SUPERBLOCK)
			continue;
		image_device_peek(dev, s->offset, &sb, sizeof(sb));
		sb.flags[0] = le64_of(bits_set(le64_get(sb.flags[0]), 1, 2, is_clean));
		sb.flags[0] = le64_of(le64_get(sb.flags[0]) | 1);
		sb.features[0] = le64_of(le64_get(sb.features[0]) | 3 << 12);
		image_device_patch(dev, s->offset, &sb, sizeof(sb));
		image_reseal(dev, image, s);
	}
	device[is_clean] = dev;
	if (super_open(NULL, 0, &opts, NULL, &fuzz_reports, &super[is_clean]))
		abort();
}

static void journal_empty(struct device *dev, const struct super *s)
{
	static const uint8_t zeroes[IMAGE_CHUNK_BYTES];
	uint64_t start, nr;

	for (unsigned i = 0; i < sb_journal_range_nr(s->members[0].sb); i++) {
		sb_journal_range(s->members[0].sb, i, &start, &nr);
		uint64_t bucket_bytes = (uint64_t)s->geometry[0].bucket_sectors * SECTOR_BYTES;

		for (size_t c = 0; c < image->chunk_nr; c++) {
			uint64_t offset = image->chunks[c].nr * IMAGE_CHUNK_BYTES;

			if (offset >= start * bucket_bytes && offset < (start + nr) * bucket_bytes)
				image_device_patch(dev, offset, zeroes, sizeof(zeroes));
		}
	}
}

static void use_entry(struct jset_disk *j, const struct key_context *ctx)
{
	struct strbuf text = strbuf_growing();
	struct jset_walk w = jset_walk_of(j);
	const struct jset_entry_disk *e;
	struct fault fault;
	int ret;

	while ((ret = jset_walk_next(&w, &e, &fault)) > 0) {
		struct jset_key_walk kw = jset_key_walk_of(e);
		struct jset_data_usage data_usage;
		struct jset_dev_usage dev_usage;
		struct bkey_ref k;

		jset_entry_validate(e, ctx, &fault);
		jset_entry_to_text(&text, e, ctx);
		for (unsigned i = 0; i < 65536 && (ret = jset_key_walk_next(&kw, &k, &fault)); i++)
			if (ret > 0)
				key_validate(k, e->btree_id, e->level, ctx, &fault);
		if (e->type == JSET_ENTRY_DATA_USAGE && !jset_data_usage_decode(e, &data_usage, &fault))
			for (unsigned i = 0; i < data_usage.nr_devs; i++)
				__asm__ volatile("" : : "r"(data_usage.devs[i]));
		if (e->type == JSET_ENTRY_DEV_USAGE)
			jset_dev_usage_decode(e, &dev_usage, &fault);
	}
	strbuf_free(&text);
}

/* Take an entry from the input, put it where it says. */
static void entry_place(struct input *in, struct device *dev, const struct super *s)
{
	uint8_t flags = (uint8_t)input_take(in, 1), bucket = (uint8_t)input_take(in, 1),
		block = (uint8_t)input_take(in, 1);
	size_t len = (size_t)input_take(in, 2);
	const uint8_t *bytes = input_take_bytes(in, &len);
	size_t room = max(round_up_u64(len, 8), sizeof(struct jset_disk));
	struct jset_disk *j = calloc(1, room);

	memcpy(j, bytes, len);
	if (!(flags & 8)) {
		if (!(flags & 2))
			j->magic = le64_of(jset_magic(image->uuid));
		if (!(flags & 4) || jset_bytes(j) > room)
			j->u64s = le32_of((uint32_t)((room - sizeof(*j)) / 8));
		unsigned type = jset_csum_type(j);
		if (!(flags & 1))
			jset_seal(j, type < CHECKSUM_TYPE_NR && !checksum_is_mac(type) ? type : CHECKSUM_CRC32C_NONZERO,
				  NULL);
	}

	uint64_t start = 0, nr = 0, bucket_bytes = (uint64_t)s->geometry[0].bucket_sectors * SECTOR_BYTES;
	if (sb_journal_range_nr(s->members[0].sb))
		sb_journal_range(s->members[0].sb, 0, &start, &nr);
	uint64_t offset = (start + bucket % max(nr, (uint64_t)1)) * bucket_bytes +
			  (uint64_t)block * image->block_bytes % bucket_bytes;
	image_device_patch(dev, offset, j, room);
	if (jset_bytes(j) <= room)
		use_entry(j, &s->kctx);
	free(j);
}

static int count_key(void *ctx, const struct journal_entry *e, uint32_t offset_words, unsigned btree_id, unsigned level,
		     const struct bkey_disk *key)
{
	unsigned *nr = ctx;

	return ++*nr > 1000000;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, data + size };
	uint8_t flags = (uint8_t)input_take(&in, 1);
	struct journal_state *state;

	if (!image) {
		image = image_load("formatted");
		filesystem_open(false);
		filesystem_open(true);
	}
	struct super *s = super[flags & 1];
	struct device *dev = device[flags & 1];
	struct journal_read_opts opts = {
		.read_all = flags & 2,
		.memory_max_bytes = flags & 4 ? 1 << 16 : 0,
	};

	image_device_forget(dev);
	journal_empty(dev, s);
	for (unsigned i = 0; input_left(&in) && i < 64; i++)
		entry_place(&in, dev, s);
	if (journal_read(s, &opts, &state))
		return 0;
	unsigned nr = 0;
	journal_for_each_key(state, count_key, &nr);
	journal_seq_is_blacklisted(state, 5);
	journal_state_free(state);
	return 0;
}
