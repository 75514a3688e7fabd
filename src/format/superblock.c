/*
 * Superblock: header, checksum, and the walk over its sections.
 *
 * A copy is looked at in steps, each of which makes the next one safe: sb_check_header() bounds its size, sb_verify()
 * checks that the bytes are the ones written, sb_validate() (sb_validate.c) that they make sense. The accessors
 * (sb_sections.c) and the text form (sb_text.c) are for superblocks that passed all of them; still they look at no byte
 * outside of a section.
 */
#include "format/superblock.h"

#include "base/util.h"
#include "format/sb_sections.h"

const uint8_t sb_magic[16] = { 0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9,
			       0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef };
const uint8_t sb_magic_old[16] = { 0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca,
				   0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81 };

/* --- layout --- */

static bool magic_is_known(const uint8_t magic[16])
{
	return !memcmp(magic, sb_magic, 16) || !memcmp(magic, sb_magic_old, 16);
}

int sb_layout_validate(const struct sb_layout_disk *l, struct fault *fault)
{
	if (!magic_is_known(l->magic))
		return fault_set(fault, 0, "layout magic", "c68573f6-66ce-90a9-d96a-60cf803df7ef",
				 "%02x%02x%02x%02x...", l->magic[0], l->magic[1], l->magic[2], l->magic[3]);
	if (l->layout_type)
		return fault_set(fault, 0, "layout type", "0", "%u", l->layout_type);
	if (l->sb_max_size_bits > SB_SIZE_BITS_MAX)
		return fault_set(fault, 0, "sb_max_size_bits", "at most 16", "%u", l->sb_max_size_bits);
	if (l->nr_superblocks < 1 || l->nr_superblocks > SB_LAYOUT_COPIES_MAX)
		return fault_set(fault, 0, "nr_superblocks", "1 to 61", "%u", l->nr_superblocks);

	uint64_t size_sectors = 1ull << l->sb_max_size_bits;
	for (unsigned i = 0; i < l->nr_superblocks; i++) {
		uint64_t sector = le64_get(l->sb_offset[i]), previous = i ? le64_get(l->sb_offset[i - 1]) : 0;

		/* The end in bytes has to be a file offset. */
		if (sector > (uint64_t)INT64_MAX / SECTOR_BYTES - size_sectors)
			return fault_set(fault, 0, "sb_offset", "a sector that a device can have", "%llu",
					 (unsigned long long)sector);
		if (i && sector < previous + size_sectors)
			return fault_set(fault, 0, "sb_offset", "ascending, copies don't overlap", "%llu after %llu",
					 (unsigned long long)sector, (unsigned long long)previous);
	}
	return 0;
}

/* --- header --- */

static int unsupported(struct fault *fault, const char *field, const char *expected, unsigned long long found)
{
	fault_set(fault, 0, field, expected, "%llu", found);
	return -KILN_E_UNSUPPORTED;
}

static int version_check(unsigned version, const char *field, struct fault *fault)
{
	if (VERSION_MAJOR(version) == 1)
		return 0;

	fault_set(fault, 0, field,
		  VERSION_MAJOR(version) ? "major version 1" : "1.0 or newer: upgrade it with an older tool", "%u.%u",
		  VERSION_MAJOR(version), VERSION_MINOR(version));
	return -KILN_E_UNSUPPORTED;
}

int sb_check_header(const struct sb_disk *sb, struct fault *fault)
{
	unsigned version = le16_get(sb->version), version_min = le16_get(sb->version_min);
	int err;

	if (!magic_is_known(sb->magic))
		return fault_set(fault, 0, "magic", "c68573f6-66ce-90a9-d96a-60cf803df7ef", "%02x%02x%02x%02x...",
				 sb->magic[0], sb->magic[1], sb->magic[2], sb->magic[3]);
	if (SB_BIG_ENDIAN(sb))
		return unsupported(fault, "big endian flag", "0", 1);
	if ((err = version_check(version, "version", fault)) ||
	    (err = version_check(version_min, "version_min", fault)))
		return err;
	if (version_min > version)
		return fault_set(fault, 0, "version_min", "not above version", "%u.%u", VERSION_MAJOR(version_min),
				 VERSION_MINOR(version_min));

	if (sb->layout.sb_max_size_bits > SB_SIZE_BITS_MAX)
		return fault_set(fault, 0, "sb_max_size_bits", "at most 16", "%u", sb->layout.sb_max_size_bits);
	if (sb_bytes(sb) > (uint64_t)SECTOR_BYTES << sb->layout.sb_max_size_bits)
		return fault_set(fault, 0, "u64s", "to fit the reserved size", "%u: %llu bytes of %llu",
				 le32_get(sb->u64s), (unsigned long long)sb_bytes(sb),
				 (unsigned long long)SECTOR_BYTES << sb->layout.sb_max_size_bits);
	return 0;
}

uint16_t sb_upgrade_complete(const struct sb_disk *sb)
{
	uint16_t stored = (uint16_t)sb_flag(sb, 5, 0, 16);

	return stored ? stored : le16_get(sb->version);
}

/* --- checksum --- */

static struct checksum sb_checksum(const struct sb_disk *sb, unsigned type)
{
	const uint8_t *start = sb->csum + sizeof(sb->csum);

	return checksum_compute(type, NULL, (struct nonce){ 0 }, start, sb_bytes(sb) - sizeof(sb->csum));
}

int sb_verify(const struct sb_disk *sb, struct fault *fault)
{
	unsigned type = SB_CSUM_TYPE(sb);

	if (type >= CHECKSUM_TYPE_NR || checksum_is_mac(type)) {
		fault_set(fault, 0, "checksum type", "0, 1, 2, 5, 6 or 7", "%u", type);
		return -KILN_E_CHECKSUM;
	}

	struct checksum computed = sb_checksum(sb, type), stored = checksum_load(sb->csum);
	if (!checksum_eq(computed, stored)) {
		char expected[64];
		struct strbuf text = strbuf_fixed(expected, sizeof(expected));

		strbuf_printf(&text, "%llx (%s)", (unsigned long long)computed.lo, checksum_name(type));
		fault_set(fault, 0, "checksum", expected, "%llx", (unsigned long long)stored.lo);
		return -KILN_E_CHECKSUM;
	}
	return 0;
}

void sb_seal(struct sb_disk *sb, unsigned type)
{
	sb->flags[0] = le64_of(bits_set(le64_get(sb->flags[0]), 2, 8, type));
	checksum_store(sb->csum, sb_checksum(sb, type));
}

/* --- sections --- */

const struct sb_section_disk *sb_section_next(const struct sb_disk *sb, const struct sb_section_disk *prev)
{
	const uint8_t *end = (const uint8_t *)sb + sb_bytes(sb);
	const uint8_t *next = prev ? (const uint8_t *)prev + sb_section_bytes(prev) : (const uint8_t *)(sb + 1);

	return next < end ? (const struct sb_section_disk *)next : NULL;
}

const struct sb_section_disk *sb_section(const struct sb_disk *sb, unsigned type)
{
	const struct sb_section_disk *s = NULL;

	while ((s = sb_section_next(sb, s)))
		if (le32_get(s->type) == type)
			return s;
	return NULL;
}

/* --- names --- */

static const char *const section_names[SB_SECTION_NR_KNOWN] = {
	[SB_JOURNAL] = "journal",
	[SB_MEMBERS_V1] = "members_v1",
	[SB_CRYPT] = "crypt",
	[SB_REPLICAS_V0] = "replicas_v0",
	[SB_QUOTA] = "quota",
	[SB_DISK_GROUPS] = "disk_groups",
	[SB_CLEAN] = "clean",
	[SB_REPLICAS] = "replicas",
	[SB_JOURNAL_SEQ_BLACKLIST] = "journal_seq_blacklist",
	[SB_JOURNAL_V2] = "journal_v2",
	[SB_COUNTERS] = "counters",
	[SB_MEMBERS_V2] = "members_v2",
	[SB_ERRORS] = "errors",
	[SB_EXT] = "ext",
	[SB_DOWNGRADE] = "downgrade",
	[SB_RECOVERY_PASSES] = "recovery_passes",
	[SB_EXTENT_TYPE_U64S] = "extent_type_u64s",
	[SB_ERRORS_V2] = "errors_v2",
};

const char *sb_section_name(unsigned type) { return type < SB_SECTION_NR_KNOWN ? section_names[type] : NULL; }

static const char *const feature_names[SB_FEATURE_NR_READABLE] = {
	[SB_FEATURE_LZ4] = "lz4",
	[SB_FEATURE_GZIP] = "gzip",
	[SB_FEATURE_ZSTD] = "zstd",
	[SB_FEATURE_ATOMIC_NLINK] = "atomic_nlink",
	[SB_FEATURE_EC] = "ec",
	[SB_FEATURE_JOURNAL_SEQ_BLACKLIST_V3] = "journal_seq_blacklist_v3",
	[SB_FEATURE_REFLINK] = "reflink",
	[SB_FEATURE_NEW_SIPHASH] = "new_siphash",
	[SB_FEATURE_INLINE_DATA] = "inline_data",
	[SB_FEATURE_NEW_EXTENT_OVERWRITE] = "new_extent_overwrite",
	[SB_FEATURE_INCOMPRESSIBLE] = "incompressible",
	[SB_FEATURE_BTREE_PTR_V2] = "btree_ptr_v2",
	[SB_FEATURE_EXTENTS_ABOVE_BTREE_UPDATES] = "extents_above_btree_updates",
	[SB_FEATURE_BTREE_UPDATES_JOURNALLED] = "btree_updates_journalled",
	[SB_FEATURE_REFLINK_INLINE_DATA] = "reflink_inline_data",
	[SB_FEATURE_NEW_VARINT] = "new_varint",
	[SB_FEATURE_JOURNAL_NO_FLUSH] = "journal_no_flush",
	[SB_FEATURE_ALLOC_V2] = "alloc_v2",
	[SB_FEATURE_EXTENTS_ACROSS_BTREE_NODES] = "extents_across_btree_nodes",
	[SB_FEATURE_INCOMPAT_VERSION_FIELD] = "incompat_version_field",
	[SB_FEATURE_CASEFOLDING] = "casefolding",
	[SB_FEATURE_NO_ALLOC_INFO] = "no_alloc_info",
	[SB_FEATURE_SMALL_IMAGE] = "small_image",
	[SB_FEATURE_NO_DEFAULT_SB] = "no_default_sb",
};

const char *sb_feature_name(unsigned bit) { return bit < SB_FEATURE_NR_READABLE ? feature_names[bit] : NULL; }

static const char *const compat_names[SB_COMPAT_NR_KNOWN] = {
	[SB_COMPAT_ALLOC_INFO] = "alloc_info",
	[SB_COMPAT_ALLOC_METADATA] = "alloc_metadata",
	[SB_COMPAT_EXTENTS_ABOVE_BTREE_UPDATES_DONE] = "extents_above_btree_updates_done",
	[SB_COMPAT_BFORMAT_OVERFLOW_DONE] = "bformat_overflow_done",
	[SB_COMPAT_NO_STALE_PTRS] = "no_stale_ptrs",
};

const char *sb_compat_name(unsigned bit) { return bit < SB_COMPAT_NR_KNOWN ? compat_names[bit] : NULL; }

/* --- for the validation of keys --- */

enum { BACKPOINTER_SHIFT_DEFAULT = 10, BACKPOINTER_SHIFT_MAX = 20, ENCODED_EXTENT_BITS_MAX = 13 };

void sb_key_context(const struct sb_disk *sb, bool has_key, struct key_context *ctx)
{
	const struct sb_section_disk *sizes = sb_section(sb, SB_EXTENT_TYPE_U64S);
	unsigned shift = (unsigned)sb_flag(sb, 6, 40, 48);
	unsigned encoded_bits = (unsigned)sb_flag(sb, 1, 14, 20);

	*ctx = (struct key_context){
		.version = le16_get(sb->version),
		.upgrade_complete = sb_upgrade_complete(sb),
		.is_newer = sb_is_newer(sb),
		.has_key = has_key,
		.block_sectors = (uint8_t)le16_get(sb->block_size),
		.node_sectors = SB_BTREE_NODE_SECTORS(sb),
		.encoded_extent_max_sectors = 1u << min(encoded_bits, (unsigned)ENCODED_EXTENT_BITS_MAX),
		/* 44 bits of sector and the shift have to fit a position's 64 bits. */
		.backpointer_shift = shift && shift <= BACKPOINTER_SHIFT_MAX ? shift : BACKPOINTER_SHIFT_DEFAULT,
		.time_base_ns = le64_get(sb->time_base_lo),
		.time_precision_ns = le32_get(sb->time_precision),
	};

	/* The list ends at a zero, or with the section. */
	for (size_t i = 0; sizes && i < min(sb_section_payload_bytes(sizes), sizeof(ctx->entry_type_u64s)); i++) {
		if (!sb_section_payload(sizes)[i])
			break;
		ctx->entry_type_u64s[i] = sb_section_payload(sizes)[i];
	}
}

void sb_member_geometry(const struct sb_disk *sb, struct member_geometry *members)
{
	for (unsigned i = 0; i < sb->nr_devices; i++) {
		struct member m;

		sb_member(sb, i, &m);
		members[i] = (struct member_geometry){ .exists = m.exists,
						       .bucket_sectors = m.bucket_sectors,
						       .first_bucket = m.first_bucket,
						       .bucket_nr = m.nbuckets,
						       .durability_stored = m.durability + 1 };
	}
}
