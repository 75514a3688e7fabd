/*
 * Superblock validation: what 01 §9.3 asks of a copy whose checksum is right, in that order.
 *
 * Formats above 1.4 are read only, by the relaxed rules of 12 §1.4. Some bounds are ours: they are far above what real
 * filesystems have, and keep hostile superblocks from costing more than a moment.
 */
#include "base/util.h"
#include "format/alloc.h"
#include "format/options.h"
#include "format/sb_sections.h"

enum {
	SECTIONS_MAX = 256,
	JOURNAL_RANGES_MAX = 16384, /* compared with each other */
	DISK_GROUPS_MAX = 4096,	    /* also all that the 12 bits of a target can name */
	DISK_GROUP_DEPTH_MAX = 64,
	REPLICAS_COMPARED_MAX = 4096, /* duplicates are looked for up to that many entries; they do a reader no harm */
	EXTENT_ENTRY_TYPES_MAX = 31,
};

static unsigned long long ull(uint64_t v) { return v; }

/* --- header --- */

static int unsupported(struct fault *fault, const char *field, const char *expected, uint64_t found)
{
	fault_set(fault, 0, field, expected, "%#llx", ull(found));
	return -KILN_E_UNSUPPORTED;
}

static int features_validate(const struct sb_disk *sb, struct fault *fault)
{
	unsigned known = sb_is_newer(sb) ? SB_FEATURE_NR_READABLE : SB_FEATURE_NR_1_4;
	uint64_t unknown = le64_get(sb->features[0]) >> known << known;

	if (unknown)
		return unsupported(fault, "features", "none but known bits", unknown);
	if (le64_get(sb->features[1]))
		return unsupported(fault, "features, second word", "0", le64_get(sb->features[1]));

	/* With this feature the superblock says which incompatible changes of newer versions are in use. */
	if (sb_has_feature(sb, SB_FEATURE_INCOMPAT_VERSION_FIELD) && SB_VERSION_INCOMPAT(sb) > VERSION_NEWEST_KNOWN)
		return unsupported(fault, "incompatible features in use", "at most those of version 1.39 (0x427)",
				   SB_VERSION_INCOMPAT(sb));
	return 0;
}

static bool is_all_zero(const uint8_t bytes[16])
{
	for (unsigned i = 0; i < 16; i++)
		if (bytes[i])
			return false;
	return true;
}

static int header_validate(const struct sb_disk *sb, struct fault *fault)
{
	unsigned block_sectors = le16_get(sb->block_size), block_sectors_max = sb_is_newer(sb) ? 64 : 8;
	unsigned members_max = sb_is_newer(sb) ? SB_DEVICE_NONE : 64;
	uint32_t precision = le32_get(sb->time_precision);

	if (!is_power_of_2(block_sectors) || block_sectors > block_sectors_max)
		return fault_set(fault, 0, "block_size",
				 sb_is_newer(sb) ? "1, 2, 4 ... 64 sectors" : "1, 2, 4 or 8 sectors", "%u",
				 block_sectors);
	if (is_all_zero(sb->user_uuid))
		return fault_set(fault, 0, "user_uuid", "not all zero", "all zero");
	if (is_all_zero(sb->uuid))
		return fault_set(fault, 0, "uuid", "not all zero", "all zero");
	if (sb->nr_devices < 1 || sb->nr_devices > members_max)
		return fault_set(fault, 0, "nr_devices", sb_is_newer(sb) ? "1 to 255" : "1 to 64", "%u",
				 sb->nr_devices);
	if (sb->dev_idx >= sb->nr_devices)
		return fault_set(fault, 0, "dev_idx", "less than nr_devices", "%u of %u", sb->dev_idx, sb->nr_devices);
	if (precision < 1 || precision > 1000000000)
		return fault_set(fault, 0, "time_precision", "1 to 1000000000", "%u", precision);
	return 0;
}

/* Sizes that the layout of everything else depends on: no default could replace them. */
static bool option_is_geometry(enum option_id id) { return id == OPT_BLOCK_SIZE || id == OPT_BTREE_NODE_SIZE; }

static int options_validate(const struct sb_disk *sb, bool is_readonly, struct fault *fault)
{
	for (unsigned id = 0; id < OPT_NR; id++) {
		const struct option_def *o = &option_table[id];
		bool in_range;

		if (!option_is_stored(id))
			continue;
		option_from_sb(id, sb, &in_range);
		if (!in_range && (!is_readonly || option_is_geometry(id)))
			return fault_set(fault, 0, o->name, "a value that the option can have", "%#llx as stored",
					 o->sb.word < 0 ? le16_get(sb->block_size)
							: ull(sb_flag(sb, (unsigned)o->sb.word, o->sb.lo, o->sb.hi)));
	}

	/* Sets of a node start at block boundaries. */
	if (SB_BTREE_NODE_SECTORS(sb) < le16_get(sb->block_size))
		return fault_set(fault, 0, "btree_node_size", "at least block_size", "%u sectors",
				 SB_BTREE_NODE_SECTORS(sb));
	return 0;
}

/* --- sections: framing --- */

static int framing_validate(const struct sb_disk *sb, struct fault *fault)
{
	const uint8_t *pos = (const uint8_t *)(sb + 1), *end = (const uint8_t *)sb + sb_bytes(sb);
	unsigned nr = 0;

	while (pos < end) {
		const struct sb_section_disk *s = (const struct sb_section_disk *)pos;
		uint32_t u64s = le32_get(s->u64s);

		if (!u64s || u64s > (size_t)(end - pos) / sizeof(le64))
			return fault_set(fault, 0, "section u64s", "1 to the end of the superblock",
					 "%u (section type %u, %zu left)", u64s, le32_get(s->type),
					 (size_t)(end - pos) / sizeof(le64));
		if (++nr > SECTIONS_MAX)
			return fault_set(fault, 0, "sections", "at most 256", "more");
		pos += sb_section_bytes(s);
	}
	return 0;
}

/* --- members --- */

static int member_validate(const struct sb_disk *sb, unsigned idx, const struct member *m, struct fault *fault)
{
	uint64_t sectors;

	/* Only the uuid is taken from a member that is removed at 1.4; its slot stays valid. */
	if (!m->exists && sb_is_newer(sb))
		return 0;
	if (m->nbuckets > INT64_MAX || m->nbuckets < m->first_bucket ||
	    m->nbuckets - m->first_bucket < SB_MEMBER_BUCKETS_MIN)
		return fault_set(fault, 0, "member nbuckets", "first_bucket + 64 to 2^63 - 1", "%llu, member %u",
				 ull(m->nbuckets), idx);
	if (m->bucket_sectors < le16_get(sb->block_size) || m->bucket_sectors < SB_BTREE_NODE_SECTORS(sb))
		return fault_set(fault, 0, "member bucket_size", "at least block_size and btree_node_size",
				 "%u sectors, member %u", m->bucket_sectors, idx);
	if (__builtin_mul_overflow(m->nbuckets, m->bucket_sectors, &sectors) ||
	    sectors > (uint64_t)INT64_MAX / SECTOR_BYTES)
		return fault_set(fault, 0, "member size", "less than 2^63 bytes",
				 "%llu buckets of %u sectors, member %u", ull(m->nbuckets), m->bucket_sectors, idx);
	return 0;
}

static int members_section_validate(const struct sb_disk *sb, const struct sb_section_disk *s, struct fault *fault)
{
	if (sb_members_section_nr(sb, s) < sb->nr_devices)
		return fault_set(fault, 0, sb_section_name(le32_get(s->type)), "room for nr_devices members",
				 "%u of %u", sb_members_section_nr(sb, s), sb->nr_devices);

	for (unsigned i = 0; i < sb->nr_devices; i++) {
		struct member m;
		int err;

		sb_members_section_get(sb, s, i, &m);
		if ((err = member_validate(sb, i, &m, fault)))
			return err;
	}
	return 0;
}

/* Where newer formats keep members_v1, it is only a copy. */
static int members_v1_validate(const struct sb_disk *sb, const struct sb_section_disk *s, struct fault *fault)
{
	if (sb_is_newer(sb) && sb_section(sb, SB_MEMBERS_V2))
		return 0;
	return members_section_validate(sb, s, fault);
}

static int members_present_validate(const struct sb_disk *sb, struct fault *fault)
{
	if (sb_section(sb, SB_MEMBERS_V1) || (sb_is_newer(sb) && sb_section(sb, SB_MEMBERS_V2)))
		return 0;
	return fault_set(fault, 0, "sections", "members_v1 among them", "none");
}

/* --- journal buckets --- */

static int journal_range_validate(const struct member *m, uint64_t start, uint64_t nr, struct fault *fault)
{
	if (!start || !nr || start < m->first_bucket || start >= m->nbuckets || nr > m->nbuckets - start)
		return fault_set(fault, 0, "journal buckets", "within the device, without bucket 0",
				 "%llu buckets from %llu", ull(nr), ull(start));
	return 0;
}

static int journal_validate(const struct sb_disk *sb, const struct sb_section_disk *s, struct fault *fault)
{
	bool is_v2 = le32_get(s->type) == SB_JOURNAL_V2;
	const uint8_t *p = sb_section_payload(s);
	size_t size = is_v2 ? sizeof(struct sb_journal_range_disk) : sizeof(le64),
	       nr = sb_section_payload_bytes(s) / size;
	struct member m;

	if (nr > JOURNAL_RANGES_MAX)
		return fault_set(fault, 0, "journal buckets", "at most 16384 ranges", "%zu", nr);

	sb_member(sb, sb->dev_idx, &m);
	for (size_t i = 0; i < nr; i++) {
		uint64_t start = le64_load(p + i * size), len = is_v2 ? le64_load(p + i * size + 8) : 1;
		int err = journal_range_validate(&m, start, len, fault);

		/* The ranges before this one have been found good: no sum below overflows. */
		for (size_t j = 0; !err && j < i; j++) {
			uint64_t other = le64_load(p + j * size), other_len = is_v2 ? le64_load(p + j * size + 8) : 1;

			if (start < other + other_len && other < start + len)
				err = fault_set(fault, 0, "journal buckets", "no bucket twice", "%llu and %llu",
						ull(other), ull(start));
		}
		if (err)
			return err;
	}
	return 0;
}

/* --- replicas --- */

struct device_set {
	uint64_t bits[4];
};

/* False when a device is there twice; "no device" may be. */
static bool device_set_of(const struct replicas_entry *e, struct device_set *set)
{
	bool is_unique = true;

	*set = (struct device_set){ 0 };
	for (unsigned i = 0; i < e->nr_devs; i++) {
		uint64_t bit = 1ull << e->devs[i] % 64, *word = &set->bits[e->devs[i] / 64];

		is_unique = is_unique && (!(*word & bit) || e->devs[i] == SB_DEVICE_NONE);
		*word |= bit;
	}
	return is_unique;
}

static int replicas_entry_validate(const struct sb_disk *sb, const struct replicas_entry *e, struct fault *fault)
{
	struct device_set set;

	if (!sb_is_newer(sb) && e->data_type >= DATA_NR_1_4)
		return fault_set(fault, 0, "replicas data_type", "1 to 9", "%u", e->data_type);
	if (!e->nr_devs)
		return fault_set(fault, 0, "replicas nr_devs", "at least 1", "0");
	if (e->nr_required > 1 && e->nr_required >= e->nr_devs)
		return fault_set(fault, 0, "replicas nr_required", "at most 1, or less than nr_devs", "%u of %u",
				 e->nr_required, e->nr_devs);
	if (!device_set_of(e, &set))
		return fault_set(fault, 0, "replicas devs", "no device twice", "one twice");

	for (unsigned i = 0; i < e->nr_devs && !sb_is_newer(sb); i++) {
		struct member m;

		sb_member(sb, e->devs[i], &m);
		if (!m.exists)
			return fault_set(fault, 0, "replicas devs", "existing members", "%u", e->devs[i]);
	}
	return 0;
}

/* Does one of the entries before @end say the same as @e? */
static bool replicas_entry_is_repeated(const struct sb_section_disk *s, const struct replicas_entry *e,
				       const uint8_t *end)
{
	struct replicas_walk w = sb_replicas_section_walk(s);
	struct replicas_entry other;
	struct device_set devices, other_devices;

	device_set_of(e, &devices);
	for (w.end = end; sb_replicas_next_raw(&w, &other, NULL) > 0;) {
		if (other.data_type != e->data_type || other.nr_devs != e->nr_devs ||
		    other.nr_required != e->nr_required)
			continue;
		device_set_of(&other, &other_devices);
		if (!memcmp(&devices, &other_devices, sizeof(devices)))
			return true;
	}
	return false;
}

static int replicas_validate(const struct sb_disk *sb, const struct sb_section_disk *s, struct fault *fault)
{
	struct replicas_walk w = sb_replicas_section_walk(s);
	const uint8_t *start = w.pos;
	struct replicas_entry e;
	unsigned nr = 0;
	int err;

	while ((err = sb_replicas_next_raw(&w, &e, fault)) > 0) {
		if ((err = replicas_entry_validate(sb, &e, fault)))
			return err;
		if (++nr <= REPLICAS_COMPARED_MAX && replicas_entry_is_repeated(s, &e, start))
			return fault_set(fault, 0, "replicas entries", "no two alike", "two, data type %u",
					 e.data_type);
		start = w.pos;
	}
	return err;
}

/* --- disk groups --- */

/* Follows the parents of group @idx up to the top. */
static int disk_group_path_validate(const struct sb_disk *sb, unsigned idx, unsigned nr, struct fault *fault)
{
	struct disk_group g;
	unsigned depth = 0;

	sb_disk_group(sb, idx, &g);
	while (g.parent) {
		unsigned parent = g.parent;

		if (parent > nr)
			return fault_set(fault, 0, "disk group parent", "an existing group", "%u, group %u", parent - 1,
					 idx);
		if (++depth >= DISK_GROUP_DEPTH_MAX)
			return fault_set(fault, 0, "disk group parents", "to end at the top",
					 "a cycle or over 63, group %u", idx);
		sb_disk_group(sb, parent - 1, &g);
		if (g.is_deleted)
			return fault_set(fault, 0, "disk group parent", "not deleted", "%u, group %u", parent - 1, idx);
	}
	return 0;
}

static int disk_group_validate(const struct sb_disk *sb, unsigned idx, unsigned nr, struct fault *fault)
{
	struct disk_group g, other;

	sb_disk_group(sb, idx, &g);
	if (g.is_deleted)
		return 0;
	if (!g.label[0])
		return fault_set(fault, 0, "disk group label", "not empty", "empty, group %u", idx);
	for (unsigned i = 0; i < idx; i++) {
		sb_disk_group(sb, i, &other);
		if (!other.is_deleted && other.parent == g.parent &&
		    !strncmp((const char *)other.label, (const char *)g.label, SB_LABEL_BYTES))
			return fault_set(fault, 0, "disk group labels", "different under one parent",
					 "groups %u and %u", i, idx);
	}
	return disk_group_path_validate(sb, idx, nr, fault);
}

static int disk_groups_validate(const struct sb_disk *sb, const struct sb_section_disk *s, struct fault *fault)
{
	unsigned nr = sb_disk_group_nr(sb);

	if (nr > DISK_GROUPS_MAX)
		return fault_set(fault, 0, "disk groups", "at most 4096", "%u", nr);
	for (unsigned i = 0; i < nr; i++) {
		int err = disk_group_validate(sb, i, nr, fault);

		if (err)
			return err;
	}

	for (unsigned i = 0; i < sb->nr_devices; i++) {
		struct disk_group g = { .is_deleted = true };
		struct member m;

		sb_member(sb, i, &m);
		if (!m.exists || !m.group)
			continue;
		if (m.group <= nr)
			sb_disk_group(sb, m.group - 1u, &g);
		if (g.is_deleted)
			return fault_set(fault, 0, "member group", "an existing disk group", "%u, member %u",
					 m.group - 1, i);
	}
	return 0;
}

/* --- the rest --- */

static int blacklist_validate(const struct sb_disk *sb, const struct sb_section_disk *s, struct fault *fault)
{
	const struct sb_blacklist_disk *d = (const struct sb_blacklist_disk *)s;
	uint64_t previous_end = 0;

	for (size_t i = 0; i < sb_section_payload_bytes(s) / sizeof(d->ranges[0]); i++) {
		uint64_t start = le64_get(d->ranges[i].start), end = le64_get(d->ranges[i].end);

		if (start >= end || start < previous_end)
			return fault_set(fault, 0, "journal_seq_blacklist", "ascending ranges, none empty",
					 "%llu-%llu after an end of %llu", ull(start), ull(end), ull(previous_end));
		previous_end = end;
	}
	return 0;
}

static int errors_validate(const struct sb_disk *sb, const struct sb_section_disk *s, struct fault *fault)
{
	const struct sb_errors_disk *d = (const struct sb_errors_disk *)s;
	int64_t previous = -1;

	for (size_t i = 0; i < sb_section_payload_bytes(s) / sizeof(d->errors[0]); i++) {
		uint64_t word = le64_get(d->errors[i].words[0]);
		unsigned id = (unsigned)bits_get(word, 0, 16);

		if (!bits_get(word, 16, 64))
			return fault_set(fault, 0, "errors count", "not 0", "0, error %u", id);
		if (id <= previous)
			return fault_set(fault, 0, "errors ids", "ascending", "%u after %lld", id, (long long)previous);
		previous = id;
	}
	return 0;
}

static int downgrade_validate(const struct sb_disk *sb, const struct sb_section_disk *s, struct fault *fault)
{
	struct sb_downgrade_walk w = { sb_section_payload(s), sb_section_payload(s) + sb_section_payload_bytes(s) };
	unsigned major = VERSION_MAJOR(le16_get(sb->version));
	struct sb_downgrade d;
	int err;

	while ((err = sb_downgrade_next(&w, &d, fault)) > 0)
		if (VERSION_MAJOR(d.version) != major)
			return fault_set(fault, 0, "downgrade version", "of the superblock's major version", "%u.%u",
					 VERSION_MAJOR(d.version), VERSION_MINOR(d.version));
	return err;
}

static int extent_type_u64s_validate(const struct sb_disk *sb, const struct sb_section_disk *s, struct fault *fault)
{
	size_t nr = strnlen((const char *)sb_section_payload(s), sb_section_payload_bytes(s));

	if (nr > EXTENT_ENTRY_TYPES_MAX)
		return fault_set(fault, 0, "extent_type_u64s", "at most 31 types", "%zu", nr);
	return 0;
}

/* What is asked of each section; those without a row, and unknown ones, may hold anything. */
static const struct {
	size_t bytes_min;
	int (*validate)(const struct sb_disk *sb, const struct sb_section_disk *s, struct fault *fault);
} section_rules[SB_SECTION_NR_KNOWN] = {
	[SB_JOURNAL] = { .validate = journal_validate },
	[SB_MEMBERS_V1] = { .validate = members_v1_validate },
	[SB_CRYPT] = { .bytes_min = sizeof(struct sb_crypt_disk) },
	[SB_REPLICAS_V0] = { .validate = replicas_validate },
	[SB_QUOTA] = { .bytes_min = sizeof(struct sb_quota_disk) },
	[SB_DISK_GROUPS] = { .validate = disk_groups_validate },
	[SB_CLEAN] = { .bytes_min = sizeof(struct sb_clean_disk) },
	[SB_REPLICAS] = { .validate = replicas_validate },
	[SB_JOURNAL_SEQ_BLACKLIST] = { .validate = blacklist_validate },
	[SB_JOURNAL_V2] = { .validate = journal_validate },
	[SB_MEMBERS_V2] = { .bytes_min = sizeof(struct sb_members_v2_disk), .validate = members_section_validate },
	[SB_ERRORS] = { .validate = errors_validate },
	[SB_EXT] = { .bytes_min = SB_EXT_BYTES_1_4 },
	[SB_DOWNGRADE] = { .validate = downgrade_validate },
	[SB_EXTENT_TYPE_U64S] = { .validate = extent_type_u64s_validate },
};

static int section_validate(const struct sb_disk *sb, const struct sb_section_disk *s, struct fault *fault)
{
	uint32_t type = le32_get(s->type);

	/* Of several sections of a type the first counts; nobody looks at the others. */
	if (type >= SB_SECTION_NR_KNOWN || s != sb_section(sb, type))
		return 0;
	if (sb_section_bytes(s) < section_rules[type].bytes_min)
		return fault_set(fault, 0, sb_section_name(type), "a larger section", "%zu bytes", sb_section_bytes(s));
	return section_rules[type].validate ? section_rules[type].validate(sb, s, fault) : 0;
}

/* Members first: the rules of other sections refer to them. */
static int sections_validate(const struct sb_disk *sb, struct fault *fault)
{
	for (int pass = 0; pass < 2; pass++)
		for (const struct sb_section_disk *s = NULL; (s = sb_section_next(sb, s));) {
			uint32_t type = le32_get(s->type);
			bool is_members = type == SB_MEMBERS_V1 || type == SB_MEMBERS_V2;
			int err = is_members == (pass == 0) ? section_validate(sb, s, fault) : 0;

			if (err)
				return err;
		}
	return 0;
}

int sb_validate(const struct sb_disk *sb, bool is_readonly, struct fault *fault)
{
	int err;

	if ((err = features_validate(sb, fault)) || (err = header_validate(sb, fault)) ||
	    (err = options_validate(sb, is_readonly, fault)) || (err = sb_layout_validate(&sb->layout, fault)) ||
	    (err = framing_validate(sb, fault)) || (err = members_present_validate(sb, fault)))
		return err;
	return sections_validate(sb, fault);
}
