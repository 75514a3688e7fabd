/*
 * Making superblocks. See format.h.
 *
 * All sizes are decided and checked first (the plan); then a superblock is made that holds for all devices, and copied
 * to each with what is that device's own. Nothing is written before all of them have passed validation.
 */
#include "super/format.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/secret.h"
#include "format/alloc.h"
#include "format/btrees.h"
#include "format/jset.h"
#include "super/super_private.h"

enum {
	BUCKET_BYTES_USUAL = 128 << 10, /* where the size doesn't ask for larger or smaller ones */
	BUCKET_BYTES_CHOSEN_MAX = 1 << 20,
	BUCKET_SECTORS_MAX = UINT16_MAX,
	BLOCK_BYTES_USUAL = 4096,
	BLOCK_BYTES_MAX = 4096,
	NODE_BYTES_USUAL = 256 << 10,
	SB_BYTES_MIN = 64 << 10,
	SB_BYTES_USUAL = 1 << 20,
	SB_BYTES_MAX = SECTOR_BYTES << SB_SIZE_BITS_MAX,
	SB_WORK_BYTES = SB_BYTES_MIN, /* what format writes is far smaller */
	DEVICES_MAX = 64,
	COPIES = 3,
	NODE_BLOCKS_MIN = 8, /* with fewer, every second write of a node would replace it */
	FEATURES_FRESH = 0x7ba80,
	DATA_ALLOWED_ALL = 1 << DATA_JOURNAL | 1 << DATA_BTREE | 1 << DATA_USER,
	JOURNAL_BUCKETS_MIN = 8,
	JOURNAL_BUCKETS_MAX = 8192,
	JOURNAL_SECTORS_MIN = 1 << 11, /* where the device has room */
	JOURNAL_SECTORS_OF_BUCKET = 4, /* what replacing a node takes, some 1.7 KiB */
	JOURNAL_NODES = 8,	       /* or replacing so many, whose backpointers are in one */
	JOURNAL_NODES_SECTORS_MAX = 1 << 16,
	JOURNAL_SECTORS_MAX = 1 << 24,
	/* Words of an entry of the journal (03 §5.1) besides those for each device, */
	ENTRY_FIXED_U64S = JSET_HEADER_U64S + BTREE_NR_1_4 * JSET_ROOT_U64S_MAX + JSET_USAGE_U64S,
	ENTRY_SPARE_U64S = 32 * 5, /* for rows that come into use while it is open */
	ENTRY_ROW_U64S = 3,
	ENTRY_ROWS_MAX = 1024, /* as many sets of devices as are expected to be used at most */
	/* and bytes of nodes that are replaced on three levels: some 400 for each pointer, old or new */
	ENTRY_TXN_BYTES = 4 << 10,
	ENTRY_TXN_REPLICA_BYTES = 4 << 10,
	WRITE_BUFFER_BYTES = 256 << 10, /* of what format writes, in whole blocks of the device */
};

struct plan {
	struct super_format_device *devs;
	size_t nr;
	const struct super_format_opts *opts;
	char *why; /* 512 bytes */
	uint64_t options[OPT_NR];
	uint64_t block_bytes, node_bytes, sb_bytes;
	struct sb_edit sb;
};

static int refuse(struct plan *p, int err, const char *fmt, ...) PRINTF_LIKE(3, 4);
static int refuse(struct plan *p, int err, const char *fmt, ...)
{
	struct strbuf text = strbuf_fixed(p->why, 512);
	va_list args;

	va_start(args, fmt);
	strbuf_vprintf(&text, fmt, args);
	va_end(args);
	return err;
}

/* "128 KiB", in a buffer of the caller's expression. */
struct size_text {
	char text[32];
};
static struct size_text size_text(uint64_t bytes)
{
	struct size_text t;
	struct strbuf s = strbuf_fixed(t.text, sizeof(t.text));

	strbuf_add_size(&s, bytes);
	return t;
}

static bool option_is_given(const struct plan *p, enum option_id id)
{
	return p->opts->options_set && p->opts->options_set[id];
}

/* --- the plan: options --- */

static int options_plan(struct plan *p)
{
	char why[256];

	for (unsigned id = 0; id < OPT_NR; id++) {
		const struct option_def *o = &option_table[id];

		p->options[id] = o->initial;
		if (!option_is_given(p, id))
			continue;
		p->options[id] = p->opts->options[id];
		if (!option_is_stored(id))
			return refuse(p, -EINVAL, "The option %s isn't stored in a filesystem.", o->name);
		if (!option_is_valid(id, p->options[id]))
			return refuse(p, -EINVAL, "The option %s can't be %" PRIu64 ".", o->name, p->options[id]);
		if (super_option_unsupported(id, p->options[id], why))
			return refuse(p, -EOPNOTSUPP, "%s.", why);
	}
	if (p->options[OPT_METADATA_REPLICAS_REQUIRED] > p->options[OPT_METADATA_REPLICAS] ||
	    p->options[OPT_DATA_REPLICAS_REQUIRED] > p->options[OPT_DATA_REPLICAS])
		return refuse(p, -EINVAL, "More replicas are required than are wanted.");
	if (p->opts->label && strlen(p->opts->label) > SB_LABEL_BYTES)
		return refuse(p, -EINVAL, "The filesystem's label is longer than %u bytes.", SB_LABEL_BYTES);
	p->sb_bytes = p->opts->superblock_bytes ? p->opts->superblock_bytes : SB_BYTES_USUAL;
	if (!is_power_of_2(p->sb_bytes) || p->sb_bytes < SB_BYTES_MIN || p->sb_bytes > SB_BYTES_MAX)
		return refuse(p, -EINVAL, "The superblock size must be a power of two from 64 KiB to 32 MiB.");
	return 0;
}

/* --- the plan: sizes (01 §11) --- */

static int block_size_plan(struct plan *p)
{
	uint64_t logical = 0;

	for (size_t i = 0; i < p->nr; i++)
		logical = max(logical, (uint64_t)p->devs[i].dev->logical_block_bytes);
	p->block_bytes = option_is_given(p, OPT_BLOCK_SIZE) ? p->options[OPT_BLOCK_SIZE]
							    : max(logical, (uint64_t)BLOCK_BYTES_USUAL);
	if (p->block_bytes > BLOCK_BYTES_MAX)
		return refuse(p, -EINVAL, "The block size can be 512 bytes to 4 KiB, not %s.",
			      size_text(p->block_bytes).text);
	for (size_t i = 0; i < p->nr; i++)
		if (p->devs[i].dev->io_align_bytes > p->block_bytes)
			return refuse(p, -EINVAL,
				      "%s can only be written in blocks of %s; the block size can't be smaller.",
				      p->devs[i].dev->name, size_text(p->devs[i].dev->io_align_bytes).text);
	return 0;
}

static int device_size_plan(struct plan *p, struct super_format_device *d)
{
	if (d->size_bytes > d->dev->size_bytes)
		return refuse(p, -EINVAL, "%s has %s: less than the size that was given for it.", d->dev->name,
			      size_text(d->dev->size_bytes).text);
	if (!d->size_bytes)
		d->size_bytes = d->dev->size_bytes;
	d->size_bytes = round_down_u64(d->size_bytes, p->block_bytes);
	if (d->size_bytes < SB_MEMBER_BUCKETS_MIN * p->block_bytes)
		return refuse(p, -ENOSPC, "%s is too small for a filesystem (%s). " SUPER_FORMAT_ENOUGH, d->dev->name,
			      size_text(d->size_bytes).text);
	return 0;
}

/* Larger buckets for larger devices: a quarter as many doublings as there are of the device's size. */
static uint64_t bucket_size_choose(const struct plan *p, uint64_t size_bytes)
{
	uint64_t b = max(p->block_bytes, (uint64_t)BUCKET_BYTES_USUAL);

	if (option_is_given(p, OPT_BTREE_NODE_SIZE))
		b = max(b, p->options[OPT_BTREE_NODE_SIZE]);
	if (size_bytes < SB_MEMBER_BUCKETS_MIN * b) {
		while (size_bytes < SB_MEMBER_BUCKETS_MIN * b)
			b /= 2;
		return b;
	}
	unsigned quarter = (bit_length_u64(size_bytes / (SB_MEMBER_BUCKETS_MIN * b)) - 1) / 4;
	uint64_t scale = quarter ? 1ull << (bit_length_u64(quarter) - 1) : 1;
	return max(b, min(b * scale, (uint64_t)BUCKET_BYTES_CHOSEN_MAX));
}

static int buckets_plan(struct plan *p)
{
	uint64_t smallest = UINT64_MAX;
	bool are_buckets_given = false;

	for (size_t i = 0; i < p->nr; i++) {
		struct super_format_device *d = &p->devs[i];

		are_buckets_given |= d->bucket_bytes != 0;
		smallest = min(smallest, d->bucket_bytes ? d->bucket_bytes : bucket_size_choose(p, d->size_bytes));
	}
	for (size_t i = 0; i < p->nr; i++)
		if (!p->devs[i].bucket_bytes)
			p->devs[i].bucket_bytes = smallest;

	p->node_bytes = p->options[OPT_BTREE_NODE_SIZE];
	if (!option_is_given(p, OPT_BTREE_NODE_SIZE))
		p->node_bytes = min((uint64_t)NODE_BYTES_USUAL, 1ull << (bit_length_u64(smallest) - 1));
	bool is_too_small = p->node_bytes < (uint64_t)p->block_bytes * NODE_BLOCKS_MIN;
	if (is_too_small && !option_is_given(p, OPT_BTREE_NODE_SIZE) && p->node_bytes == smallest && !are_buckets_given)
		return refuse(p, -ENOSPC, SUPER_FORMAT_TOO_SMALL);
	if (is_too_small && !option_is_given(p, OPT_BTREE_NODE_SIZE) && are_buckets_given)
		return refuse(p, -EINVAL,
			      "Buckets of %s are too small: they must hold btree nodes, which have at least %u blocks "
			      "of %s.",
			      size_text(smallest).text, NODE_BLOCKS_MIN, size_text(p->block_bytes).text);
	if (is_too_small)
		return refuse(p, -EINVAL, "Btree nodes have at least %u blocks: %s is too small for blocks of %s.",
			      NODE_BLOCKS_MIN, size_text(p->node_bytes).text, size_text(p->block_bytes).text);
	return 0;
}

static int bucket_size_check(struct plan *p, const struct super_format_device *d)
{
	const char *name = d->dev->name;
	uint64_t nbuckets = d->size_bytes / d->bucket_bytes;

	if (d->bucket_bytes % p->block_bytes)
		return refuse(p, -EINVAL, "%s: the bucket size must be a multiple of the block size.", name);
	if (d->bucket_bytes >> SECTOR_SHIFT > BUCKET_SECTORS_MAX)
		return refuse(p, -EINVAL, "%s: buckets can't be as large as 32 MiB.", name);
	if (d->bucket_bytes < p->node_bytes)
		return refuse(p, -EINVAL, "%s: buckets of %s can't hold btree nodes of %s.", name,
			      size_text(d->bucket_bytes).text, size_text(p->node_bytes).text);
	if (nbuckets < SB_MEMBER_BUCKETS_MIN)
		return refuse(p, -ENOSPC, "%s: only %" PRIu64 " buckets of %s fit, and at least %u are needed.", name,
			      nbuckets, size_text(d->bucket_bytes).text, SB_MEMBER_BUCKETS_MIN);
	if (nbuckets > INT64_MAX / SECTOR_BYTES / BUCKET_SECTORS_MAX)
		return refuse(p, -EINVAL, "%s is too large.", name);
	return 0;
}

static uint64_t second_copy_bytes(const struct plan *p)
{
	return round_up_u64((SB_SECTOR << SECTOR_SHIFT) + p->sb_bytes, p->block_bytes);
}

/* Behind the first two copies; not for devices that are too small for three. */
static uint64_t last_copy_bytes(const struct plan *p, const struct super_format_device *d)
{
	return d->size_bytes < p->sb_bytes ? 0 : round_down_u64(d->size_bytes - p->sb_bytes, d->bucket_bytes);
}

static int copies_check(struct plan *p, const struct super_format_device *d)
{
	if (last_copy_bytes(p, d) >= second_copy_bytes(p) + p->sb_bytes)
		return 0;
	return refuse(p, -ENOSPC,
		      "%s (%s) is too small for three superblocks of %s; smaller ones may fit. " SUPER_FORMAT_ENOUGH,
		      d->dev->name, size_text(d->size_bytes).text, size_text(p->sb_bytes).text);
}

/* --- the plan: what the devices are for --- */

/* How many replicas of @data_type the devices can hold, as their durability counts. */
static unsigned durability_of(const struct plan *p, unsigned data_type)
{
	unsigned sum = 0;

	for (size_t i = 0; i < p->nr; i++)
		if (p->devs[i].data_allowed & 1u << data_type)
			sum += p->devs[i].durability;
	return sum;
}

static int purposes_check(struct plan *p)
{
	static const struct {
		unsigned data_type;
		enum option_id replicas;
		const char *what;
	} needs[] = {
		{ DATA_JOURNAL, OPT_METADATA_REPLICAS, "journal" },
		{ DATA_BTREE, OPT_METADATA_REPLICAS, "btree nodes" },
		{ DATA_USER, OPT_DATA_REPLICAS, "data" },
	};

	for (size_t i = 0; i < p->nr; i++) {
		struct super_format_device *d = &p->devs[i];

		if (!d->data_allowed)
			d->data_allowed = DATA_ALLOWED_ALL;
		if (d->data_allowed & ~DATA_ALLOWED_ALL)
			return refuse(p, -EINVAL, "%s: data allowed can be journal, btree and user only.",
				      d->dev->name);
		if (d->durability > 2)
			return refuse(p, -EINVAL, "%s: the durability can be 0, 1 or 2.", d->dev->name);
	}
	for (size_t i = 0; i < ARRAY_NR(needs); i++) {
		unsigned have = durability_of(p, needs[i].data_type);

		if (!have)
			return refuse(p, -EINVAL, "No device may hold the %s (of durability above 0).", needs[i].what);
		if (have < p->options[needs[i].replicas])
			return refuse(p, -EINVAL,
				      "%" PRIu64 " replicas of the %s are wanted, but the devices can hold only %u.",
				      p->options[needs[i].replicas], needs[i].what, have);
	}
	return 0;
}

/* How many sets of up to @replicas devices there are, or ENTRY_ROWS_MAX. */
static uint64_t device_sets(uint64_t device_nr, unsigned replicas)
{
	uint64_t sets = 0, of_size = 1;

	for (unsigned i = 0; i < replicas && i < device_nr; i++) {
		of_size = of_size * (device_nr - i) / (i + 1);
		sets += of_size;
	}
	return min(sets, (uint64_t)ENTRY_ROWS_MAX);
}

/* Are the buckets large enough for entries of the journal? */
static int entries_check(struct plan *p)
{
	unsigned replicas = (unsigned)max(p->options[OPT_METADATA_REPLICAS], p->options[OPT_DATA_REPLICAS]);
	/* Journal, btree nodes and data; and one for what each device has cached. */
	uint64_t rows = min(3 * device_sets(p->nr, replicas) + p->nr, (uint64_t)ENTRY_ROWS_MAX);
	uint64_t needed = super_journal_entry_bytes((unsigned)p->nr, replicas, rows * ENTRY_ROW_U64S);

	for (size_t i = 0; i < p->nr; i++) {
		const struct super_format_device *d = &p->devs[i];

		if (!(d->data_allowed & 1u << DATA_JOURNAL) || !d->durability || d->bucket_bytes >= needed)
			continue;
		return refuse(
			p, -EINVAL,
			"%s: buckets of %s are too small for the journal: with %zu device%s and %u replica%s they "
			"need at least %s.",
			d->dev->name, size_text(d->bucket_bytes).text, p->nr, p->nr == 1 ? "" : "s", replicas,
			replicas == 1 ? "" : "s", size_text(1ull << bit_length_u64(needed - 1)).text);
	}
	return 0;
}

static int plan_make(struct plan *p)
{
	int err;

	if (!p->nr || p->nr > DEVICES_MAX)
		return refuse(p, -EINVAL, "A filesystem can have 1 to %u devices.", DEVICES_MAX);
	if ((err = options_plan(p)) || (err = block_size_plan(p)))
		return err;
	for (size_t i = 0; i < p->nr; i++)
		if ((err = device_size_plan(p, &p->devs[i])))
			return err;
	if ((err = buckets_plan(p)))
		return err;
	for (size_t i = 0; i < p->nr; i++)
		if ((err = bucket_size_check(p, &p->devs[i])) || (err = copies_check(p, &p->devs[i])))
			return err;
	err = purposes_check(p);
	return err ? err : entries_check(p);
}

/* --- the superblock --- */

static void uuid_make(uint8_t uuid[16], const uint8_t *given)
{
	if (given) {
		memcpy(uuid, given, 16);
		return;
	}
	random_bytes(uuid, 16);
	uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x40); /* version 4 */
	uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
}

static void header_make(struct plan *p)
{
	const struct super_format_opts *o = p->opts;
	struct sb_disk *sb = p->sb.sb;

	sb->version = sb->version_min = le16_of(VERSION_1_4);
	memcpy(sb->magic, sb_magic, sizeof(sb_magic));
	uuid_make(sb->uuid, o->uuid);
	uuid_make(sb->user_uuid, o->user_uuid);
	if (o->label)
		memcpy(sb->label, o->label, strlen(o->label));
	sb->time_base_lo = le64_of(o->time_ns ? o->time_ns : clock_realtime_ns());
	sb->time_precision = le32_of(1);
	sb->features[0] = le64_of(FEATURES_FRESH);
}

static int member_make(struct plan *p, unsigned i)
{
	const struct super_format_device *d = &p->devs[i];
	uint64_t flags = 0;
	unsigned group = 0;

	int err = sb_member_append(&p->sb);
	if (!err && d->label && *d->label) {
		err = sb_disk_group_make(&p->sb, d->label, &group);
		if (err == -EINVAL)
			return refuse(p, err, "'%s' is no label: names of up to %u bytes, joined by dots, are wanted.",
				      d->label, SB_LABEL_BYTES);
		group++;
	}
	if (err)
		return refuse(p, err, "There are too many labels.");

	flags = bits_set(flags, MEMBER_FLAG_DISCARD, MEMBER_FLAG_DISCARD + 1, d->has_discard);
	flags = bits_set(flags, MEMBER_FLAG_DATA_ALLOWED_LO, MEMBER_FLAG_DATA_ALLOWED_HI, d->data_allowed);
	flags = bits_set(flags, MEMBER_FLAG_GROUP_LO, MEMBER_FLAG_GROUP_HI, group);
	flags = bits_set(flags, MEMBER_FLAG_DURABILITY_LO, MEMBER_FLAG_DURABILITY_HI, d->durability + 1);

	struct sb_member_disk *m = sb_member_record(&p->sb, i);
	uuid_make(m->uuid, p->opts->member_uuids ? p->opts->member_uuids[i] : NULL);
	m->nbuckets = le64_of(d->size_bytes / d->bucket_bytes);
	m->bucket_sectors = le16_of((uint16_t)(d->bucket_bytes >> SECTOR_SHIFT));
	m->flags = le64_of(flags);
	return 0;
}

/* By now devices and labels have their numbers. */
static int targets_make(struct plan *p)
{
	for (unsigned id = 0; id < OPT_NR; id++) {
		const char *name = p->opts->targets ? p->opts->targets[id] : NULL;
		char why[256] = "";
		struct strbuf text = strbuf_fixed(why, sizeof(why));
		uint64_t value = TARGET_NONE;
		size_t i = 0;

		if (!name || option_table[id].type != OPTION_TARGET)
			continue;
		while (i < p->nr && strcmp(p->devs[i].dev->name, name))
			i++;
		if (i < p->nr)
			value = TARGET_DEVICE_FIRST + i;
		else if (option_parse(id, name, p->sb.sb, &value, &text))
			return refuse(p, -EINVAL, "%s: '%s' is neither a device that was named nor a label of one.",
				      option_table[id].name, name);
		option_to_sb(id, p->sb.sb, value);
	}
	return 0;
}

/* A key of the filesystem's own, which the passphrase only wraps: so that it can be changed. */
static int crypt_section_make(struct plan *p)
{
	const struct super_format_opts *o = p->opts;
	struct sb_crypt c = { 0 };

	if (!o->is_encrypted)
		return 0;
	struct crypt_key *key = secret_alloc(sizeof(*key));
	int err = key ? 0 : -ENOMEM;

	if (!err && o->passphrase) {
		sb_crypt_kdf_choose(&c);
		err = sb_crypt_derive(&c, o->passphrase, o->passphrase_len, o->user_key);
	}
	if (!err) {
		random_bytes(key->bytes, sizeof(key->bytes));
		sb_crypt_seal(p->sb.sb, &c, o->passphrase ? o->user_key : NULL, key);
		err = sb_crypt_set(&p->sb, &c);
		sb_flag_set(p->sb.sb, 1, 10, 14, 1);
	}
	secret_free(key);
	secret_wipe(&c, sizeof(c));
	return err;
}

static int superblock_make(struct plan *p)
{
	p->sb = (struct sb_edit){ calloc(1, SB_WORK_BYTES), SB_WORK_BYTES };
	if (!p->sb.sb)
		return -ENOMEM;
	header_make(p);

	p->options[OPT_BLOCK_SIZE] = p->block_bytes;
	p->options[OPT_BTREE_NODE_SIZE] = p->node_bytes;
	for (unsigned id = 0; id < OPT_NR; id++)
		if (option_is_stored(id))
			option_to_sb(id, p->sb.sb, p->options[id]);

	for (unsigned i = 0; i < p->nr; i++) {
		int err = member_make(p, i);
		if (err)
			return err;
	}
	int err = targets_make(p);
	if (!err)
		err = crypt_section_make(p);
	return err ? err : sb_members_v1_update(&p->sb);
}

static void layout_make(const struct plan *p, const struct super_format_device *d, struct sb_layout_disk *l)
{
	uint64_t places[COPIES] = { SB_SECTOR << SECTOR_SHIFT, second_copy_bytes(p), last_copy_bytes(p, d) };

	*l = (struct sb_layout_disk){ .nr_superblocks = COPIES,
				      .sb_max_size_bits = (uint8_t)(bit_length_u64(p->sb_bytes >> SECTOR_SHIFT) - 1) };
	memcpy(l->magic, sb_magic, sizeof(sb_magic));
	for (unsigned i = 0; i < COPIES; i++)
		l->sb_offset[i] = le64_of(places[i] >> SECTOR_SHIFT);
}

/* What is the own of device @i, in the one buffer that all devices share. */
static int device_superblock_make(struct plan *p, unsigned i)
{
	struct fault fault = { 0 };

	p->sb.sb->dev_idx = (uint8_t)i;
	layout_make(p, &p->devs[i], &p->sb.sb->layout);
	if (sb_validate(p->sb.sb, false, &fault))
		return refuse(p, -EINVAL, "%s: %s would be %s; it must be %s.", p->devs[i].dev->name, fault.field,
			      fault.found, fault.expected);
	return 0;
}

/* --- writing --- */

static int device_write_superblocks(struct plan *p, unsigned i, uint8_t *buf)
{
	struct device *dev = p->devs[i].dev;
	struct sb_disk *sb = p->sb.sb;
	uint32_t unit = max(dev->io_align_bytes, dev->logical_block_bytes);
	size_t bytes = round_up_u64(sb_bytes(sb), unit);
	uint64_t start = SB_SECTOR << SECTOR_SHIFT;
	int err = device_wipe(dev, 0, second_copy_bytes(p) + p->sb_bytes);

	if (!err)
		err = device_wipe(dev, last_copy_bytes(p, &p->devs[i]), dev->size_bytes);

	/* The primary comes last: whatever is there before isn't found. */
	for (unsigned copy = COPIES; copy-- && !err;) {
		sb->offset = sb->layout.sb_offset[copy];
		sb_seal(sb, super_sb_csum_type(p->options[OPT_METADATA_CHECKSUM]));
		memset(buf, 0, bytes);
		memcpy(buf, sb, sb_bytes(sb));
		err = device_write(dev, le64_get(sb->offset) << SECTOR_SHIFT, buf, bytes);
		if (!err && copy == 1)
			err = device_flush(dev);
	}
	if (!err) {
		memset(buf, 0, start);
		memcpy(buf + (SB_LAYOUT_SECTOR << SECTOR_SHIFT), &sb->layout, sizeof(sb->layout));
		err = device_write(dev, 0, buf, start);
	}
	if (!err)
		err = device_flush(dev);
	return err ? refuse(p, err, "%s can't be written: %s.", dev->name, error_name(err)) : 0;
}

/* Room of the copies that a layout names, as far as it can be believed. */
static void layout_wipe(struct device *dev, const struct sb_layout_disk *layout)
{
	if (sb_layout_validate(layout, NULL))
		return;
	for (unsigned i = 0; i < layout->nr_superblocks; i++) {
		uint64_t from = le64_get(layout->sb_offset[i]) << SECTOR_SHIFT;

		if (from < dev->size_bytes)
			device_wipe(dev, from, from + (SECTOR_BYTES << layout->sb_max_size_bits));
	}
}

void super_format_undo(struct device *dev)
{
	uint64_t start = SB_SECTOR << SECTOR_SHIFT;
	struct sb_layout_disk layout;

	if (!device_read(dev, SB_LAYOUT_SECTOR << SECTOR_SHIFT, &layout, sizeof(layout)))
		layout_wipe(dev, &layout);
	device_wipe(dev, 0, 2 * start);
	device_flush(dev);
}

int super_format(struct super_format_device *devs, size_t nr, const struct super_format_opts *opts, char why[512])
{
	struct plan p = { .devs = devs, .nr = nr, .opts = opts, .why = why };
	uint8_t *buf = io_buffer_alloc(WRITE_BUFFER_BYTES);
	unsigned written_nr = 0;
	int err = -ENOMEM;

	why[0] = 0;
	if (buf)
		err = plan_make(&p);
	if (!err)
		err = superblock_make(&p);
	for (unsigned i = 0; i < nr && !err; i++)
		err = device_superblock_make(&p, i);
	for (unsigned i = 0; i < nr && !err; i++) {
		err = device_superblock_make(&p, i);
		if (!err) {
			written_nr = i + 1;
			err = device_write_superblocks(&p, i, buf);
		}
	}
	for (unsigned i = 0; i < written_nr && err; i++) {
		layout_make(&p, &devs[i], &p.sb.sb->layout);
		layout_wipe(devs[i].dev, &p.sb.sb->layout);
		super_format_undo(devs[i].dev);
	}
	if (err && !why[0])
		refuse(&p, err, "%s.", error_name(err));
	free(p.sb.sb);
	io_buffer_free(buf);
	return err;
}

/* --- journals --- */

/*
 * Reclaim lets pins go by writing nodes, which is journalled, too. A node whose log is full is replaced, which changes
 * keys of the buckets that it leaves and goes to, in nodes of their own. Where nodes have many blocks that is seldom,
 * and what it takes is a fraction of what it gives. Those of few blocks are full again after some two writes: then each
 * write makes more than one other necessary, until all nodes that speak of buckets of nodes wait for being written, and
 * only then is it less. So the journal must have space for that: for each bucket once, or for every
 * JOURNAL_NODES nodes that it holds, which have as many backpointers, whose nodes are to be written, too;
 * and as often as there are copies.
 */
uint64_t super_journal_bucket_nr(uint64_t nbuckets, unsigned bucket_sectors, unsigned node_sectors,
				 unsigned block_sectors, unsigned replicas)
{
	uint64_t most = min((uint64_t)JOURNAL_BUCKETS_MAX, (uint64_t)JOURNAL_SECTORS_MAX / bucket_sectors);
	/* Small buckets: what freeing one of the ring takes must fit into the others. */
	uint64_t least = min((uint64_t)JOURNAL_SECTORS_MIN / bucket_sectors, nbuckets >> 5);
	uint64_t of_buckets = nbuckets * JOURNAL_SECTORS_OF_BUCKET, of_nodes = of_buckets / JOURNAL_NODES;

	of_nodes = min(of_nodes * (bucket_sectors / node_sectors), (uint64_t)JOURNAL_NODES_SECTORS_MAX);
	if (node_sectors / block_sectors < NODE_BLOCKS_MANY)
		least = max(least, max(of_buckets, of_nodes) * max(replicas, 1u) / bucket_sectors);
	return max(min(max(nbuckets >> 7, least), most), (uint64_t)JOURNAL_BUCKETS_MIN);
}

uint64_t super_journal_entry_bytes(unsigned device_nr, unsigned replicas, uint64_t row_u64s)
{
	uint64_t u64s = ENTRY_FIXED_U64S + JSET_DEV_USAGE_U64S * (uint64_t)device_nr + ENTRY_SPARE_U64S + row_u64s;

	return u64s * 8 + ENTRY_TXN_BYTES + ENTRY_TXN_REPLICA_BYTES * (uint64_t)replicas;
}

uint64_t super_journal_entry_bytes_now(const struct super *s)
{
	struct replicas_walk w = sb_replicas_walk(s->sb);
	uint64_t row_u64s = 0;
	struct replicas_entry e;
	unsigned device_nr = 0;

	while (sb_replicas_next(&w, &e, NULL) > 0)
		row_u64s += 1 + div_round_up_u64(JSET_DATA_USAGE_BYTES + (uint64_t)e.nr_devs, 8);
	for (unsigned i = 0; i < s->member_nr; i++)
		device_nr += s->members[i].m.exists;
	return super_journal_entry_bytes(
		device_nr, (unsigned)max(s->options[OPT_METADATA_REPLICAS], s->options[OPT_DATA_REPLICAS]), row_u64s);
}

uint64_t super_journal_bucket_min(const struct super *s, unsigned dev)
{
	const struct member *m = &s->members[dev].m;
	const struct key_context *k = &s->kctx;

	/* Journals that others made for nodes of few blocks are made larger. */
	if (super_node_blocks(s) >= NODE_BLOCKS_FEW)
		return 0;
	return super_journal_bucket_nr(m->nbuckets, m->bucket_sectors, k->node_sectors, k->block_sectors,
				       (unsigned)s->options[OPT_METADATA_REPLICAS]);
}

bool super_bucket_has_superblock(const struct sb_layout_disk *layout, unsigned bucket_sectors, uint64_t bucket)
{
	uint64_t start = bucket * bucket_sectors, end = start + bucket_sectors, size = 1ull << layout->sb_max_size_bits;

	if (start < SB_SECTOR)
		return true;
	for (unsigned i = 0; i < layout->nr_superblocks; i++) {
		uint64_t copy = le64_get(layout->sb_offset[i]);

		if (copy < end && start < copy + size)
			return true;
	}
	return false;
}

static int journal_init(struct super *s, unsigned dev)
{
	const struct member *m = &s->members[dev].m;
	const struct sb_layout_disk *layout = &s->members[dev].sb->layout;
	uint64_t left = super_journal_bucket_nr(m->nbuckets, m->bucket_sectors, s->kctx.node_sectors,
						s->kctx.block_sectors, (unsigned)s->options[OPT_METADATA_REPLICAS]);
	uint64_t bucket = m->first_bucket;
	struct sb_journal_range ranges[SB_LAYOUT_COPIES_MAX + 2];
	size_t nr = 0;
	bool goes_on = false;

	for (; left && bucket < m->nbuckets; bucket++) {
		bool is_usable = bucket && !super_bucket_has_superblock(layout, m->bucket_sectors, bucket);

		if (is_usable && !goes_on && nr == ARRAY_NR(ranges))
			break;
		if (is_usable && !goes_on)
			ranges[nr++] = (struct sb_journal_range){ .start = bucket };
		if (is_usable) {
			ranges[nr - 1].nr++;
			left--;
		}
		goes_on = is_usable;
	}
	if (left)
		return -ENOSPC;
	return super_journal_set(s, dev, ranges, nr);
}

int super_journals_init(struct super *s)
{
	int err = 0;

	for (unsigned i = 0; i < s->member_nr && !err; i++)
		if (super_member_online(s, i) && !sb_journal_range_nr(s->members[i].sb))
			err = journal_init(s, i);
	return err;
}
