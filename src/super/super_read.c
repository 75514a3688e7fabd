/*
 * Finding the superblock of one device.
 *
 * A device holds several copies: the primary at sector 8, and those its layout lists. An update writes them one after
 * the other, so after a crash they may differ; the one with the highest seq is the truth (12 §4.3). All of them are
 * therefore read, and one is kept at a time: however many copies a layout claims, memory holds two.
 *
 * Where to look is learned step by step: the primary names the others. When it is bad, the layout block at sector 7
 * does. When that is bad too, the places where formatting puts copies are tried, and there a copy only counts if it
 * says itself that it belongs there. Whatever was found first, the layout inside it is followed as well.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/strbuf.h"
#include "super/super_private.h"

enum {
	SB_FIRST_READ_BYTES = 4096,
	SB_DEFAULT_SECTORS = 2048, /* what formatting reserves for a copy */
	SB_PLACES_MAX = 2 + 2 * SB_LAYOUT_COPIES_MAX + 32,
	PROBE_BUCKET_SHIFT_MIN = 14, /* 16 KiB */
	PROBE_BUCKET_SHIFT_MAX = 25, /* 32 MiB */
};

/* What a look at one place brought. */
struct sb_place {
	uint64_t sector;
	uint64_t seq;
	int err;
	struct fault fault;
	bool is_misplaced; /* an intact copy, of another place */
};

struct sb_search {
	struct device *dev;
	struct sb_disk *best;
	uint64_t best_sector;
	bool is_best_in_place;	  /* its offset field names the sector it was read from */
	bool is_best_unsupported; /* intact, but from a version or with features that can't be read */
	struct fault best_fault;
	bool has_disagreement;
	struct sb_place places[SB_PLACES_MAX];
	unsigned place_nr;
};

int super_copy_read(struct device *dev, uint64_t sector, struct sb_disk **copy, struct fault *fault)
{
	*copy = NULL;
	if (dev->size_bytes < sizeof(struct sb_disk) ||
	    sector > (dev->size_bytes - sizeof(struct sb_disk)) >> SECTOR_SHIFT) {
		fault_set(fault, 0, "sector", "inside the device", "%" PRIu64, sector);
		return -KILN_E_INVALID;
	}

	uint64_t offset = sector << SECTOR_SHIFT;
	uint64_t available = dev->size_bytes - offset;
	size_t bytes = min((uint64_t)SB_FIRST_READ_BYTES, available);
	struct sb_disk *sb = malloc(SB_FIRST_READ_BYTES);
	if (!sb)
		return -ENOMEM;

	int header_err = 0;
	int err = device_read(dev, offset, sb, bytes);
	if (err) {
		fault_set(fault, 0, "sector", "readable", "%s", error_name(err));
		goto out;
	}
	err = header_err = sb_check_header(sb, fault);
	if (err && err != -KILN_E_UNSUPPORTED)
		goto out;

	uint64_t total = sb_bytes(sb);
	if (total > available || total > (uint64_t)SECTOR_BYTES << SB_SIZE_BITS_MAX) {
		err = fault_set(fault, 0, "u64s", "a copy that fits its place", "%u", le32_get(sb->u64s));
		goto out;
	}
	if (total > bytes) {
		struct sb_disk *whole = realloc(sb, total);
		if (!whole) {
			err = -ENOMEM;
			goto out;
		}
		sb = whole;
		uint8_t header[sizeof(*sb)];
		memcpy(header, sb, sizeof(header));
		err = device_read(dev, offset, sb, total);
		if (!err && memcmp(header, sb, sizeof(header))) /* sizes were checked on the first reading */
			err = -EIO;
		if (err) {
			fault_set(fault, 0, "sector", "readable", "%s", error_name(err));
			goto out;
		}
	}

	/* On damage the fault must be that of the checksum, not of what the damaged fields seem to say. */
	struct fault csum_fault = { 0 };
	err = sb_verify(sb, &csum_fault);
	if (err) {
		if (fault)
			*fault = csum_fault;
		goto out;
	}
	err = header_err ? header_err : sb_validate(sb, true, fault);
out:
	if (err && err != -KILN_E_UNSUPPORTED) {
		free(sb);
		sb = NULL;
	}
	*copy = sb;
	return err;
}

/* Equal but for what differs between copies by design: checksum and place. */
static bool sb_copies_equal(const struct sb_disk *a, const struct sb_disk *b)
{
	size_t skip = sizeof(a->csum);
	size_t place = offsetof(struct sb_disk, offset), behind = place + sizeof(a->offset);

	return sb_bytes(a) == sb_bytes(b) &&
	       !memcmp((const uint8_t *)a + skip, (const uint8_t *)b + skip, place - skip) &&
	       !memcmp((const uint8_t *)a + behind, (const uint8_t *)b + behind, sb_bytes(a) - behind);
}

/* A copy that stands where it says beats one that doesn't; then the highest seq; on a tie the later one. */
static bool sb_copy_is_better(const struct sb_search *s, const struct sb_disk *sb, bool is_in_place)
{
	if (!s->best || is_in_place != s->is_best_in_place)
		return !s->best || is_in_place;
	return le64_get(sb->seq) >= le64_get(s->best->seq);
}

/* Look at @sector unless that was done before. @must_be_in_place: a guess, only its own word makes it a copy. */
static int search_place(struct sb_search *s, uint64_t sector, bool must_be_in_place)
{
	for (unsigned i = 0; i < s->place_nr; i++)
		if (s->places[i].sector == sector)
			return 0;
	if (s->place_nr == SB_PLACES_MAX)
		return 0;

	struct sb_place *p = &s->places[s->place_nr++];
	*p = (struct sb_place){ .sector = sector };

	struct sb_disk *sb;
	p->err = super_copy_read(s->dev, sector, &sb, &p->fault);
	if (!sb)
		return p->err == -ENOMEM ? -ENOMEM : 0;

	bool is_in_place = le64_get(sb->offset) == sector;
	if (must_be_in_place && !is_in_place) {
		p->is_misplaced = true;
		p->err = fault_set(&p->fault, 0, "offset", "the sector it was found at", "%" PRIu64,
				   le64_get(sb->offset));
		free(sb);
		return 0;
	}
	p->seq = le64_get(sb->seq);
	s->has_disagreement |= s->best && !sb_copies_equal(s->best, sb);
	if (!sb_copy_is_better(s, sb, is_in_place)) {
		free(sb);
		return 0;
	}
	free(s->best);
	s->best = sb;
	s->best_sector = sector;
	s->is_best_in_place = is_in_place;
	s->is_best_unsupported = p->err != 0;
	s->best_fault = p->fault;
	return 0;
}

static int search_layout(struct sb_search *s, struct sb_layout_disk layout)
{
	int err = 0;

	for (unsigned i = 0; i < layout.nr_superblocks && !err; i++)
		err = search_place(s, le64_get(layout.sb_offset[i]), false);
	return err;
}

/* The layout block in front of the primary copy, which only formatting writes. */
static int search_layout_block(struct sb_search *s)
{
	struct sb_layout_disk layout;

	if (device_read(s->dev, (uint64_t)SB_LAYOUT_SECTOR << SECTOR_SHIFT, &layout, sizeof(layout)) ||
	    sb_layout_validate(&layout, NULL))
		return 0;
	return search_layout(s, layout);
}

/* The places that formatting uses (01 §11): behind the primary, rounded up to the block, and at the device's end. */
static int search_usual_places(struct sb_search *s)
{
	uint64_t behind = SB_SECTOR + SB_DEFAULT_SECTORS;
	uint64_t size_sectors = s->dev->size_bytes >> SECTOR_SHIFT;
	int err = 0;

	for (unsigned block_sectors = 8; block_sectors <= 64 && !err; block_sectors *= 2)
		err = search_place(s, round_up_u64(behind, block_sectors), true);
	if (size_sectors < 2 * SB_DEFAULT_SECTORS)
		return err;
	for (unsigned shift = PROBE_BUCKET_SHIFT_MIN; shift <= PROBE_BUCKET_SHIFT_MAX && !err; shift++)
		err = search_place(s, round_down_u64(size_sectors - SB_DEFAULT_SECTORS, 1ull << (shift - SECTOR_SHIFT)),
				   true);
	return err;
}

/*
 * Should there be a copy at @sector? Where there is none by design, or by a wrong guess, nothing is damaged. Of a
 * device without any copy the first place looked at says best what is wrong with it.
 */
static bool search_expects(const struct sb_search *s, const struct sb_place *p)
{
	if (!s->best)
		return p == &s->places[0] || p->is_misplaced;
	for (unsigned i = 0; i < SB_LAYOUT_COPIES_MAX && i < s->best->layout.nr_superblocks; i++)
		if (le64_get(s->best->layout.sb_offset[i]) == p->sector)
			return true;
	return false;
}

/* Tell what was wrong with single copies, and whether the good ones disagree. */
static void search_report(const struct sb_search *s, const struct report_sink *reports)
{
	char position[80];

	for (unsigned i = 0; i < s->place_nr; i++) {
		const struct sb_place *p = &s->places[i];
		if (!p->err || p->err == -KILN_E_UNSUPPORTED || !search_expects(s, p))
			continue;
		snprintf(position, sizeof(position), "copy at sector %" PRIu64, p->sector);
		report_fault(reports, s->best ? REPORT_RECOVERED : REPORT_INFO, &p->fault, s->dev->name, "superblock",
			     position);
	}

	if (s->best && s->has_disagreement) {
		struct strbuf found = strbuf_growing();
		for (unsigned i = 0; i < s->place_nr; i++)
			if (!s->places[i].err)
				strbuf_printf(&found, "%sseq %" PRIu64 " at sector %" PRIu64, found.len ? ", " : "",
					      s->places[i].seq, s->places[i].sector);
		snprintf(position, sizeof(position), "copy at sector %" PRIu64 " is used", s->best_sector);
		report_emit(reports,
			    &(struct report){ .level = REPORT_RECOVERED,
					      .device = s->dev->name,
					      .structure = "superblock",
					      .position = position,
					      .expected = "equal copies",
					      .found = strbuf_text(&found),
					      .advice = "An update was interrupted; the next one makes them equal." });
		strbuf_free(&found);
	}
}

static void report_none_left(const struct sb_search *s, int err, const struct report_sink *reports)
{
	char found[256], what[128] = "";
	struct stat st;

	/* Of a size that is no multiple of the block, the device leaves out the rest. */
	if (!s->dev->size_bytes && !stat(s->dev->name, &st) && st.st_size)
		snprintf(found, sizeof(found), "a file of only %lld bytes", (long long)st.st_size);
	else if (!s->dev->size_bytes)
		snprintf(found, sizeof(found), "an empty file");
	else if (device_signature_find(s->dev->name, what) == 1)
		snprintf(found, sizeof(found), "none at %u places looked at; the device holds %s", s->place_nr, what);
	else
		snprintf(found, sizeof(found), "none at %u places looked at, nor anything else that is known",
			 s->place_nr);
	report_emit(reports,
		    &(struct report){ .level = REPORT_FATAL,
				      .err = err,
				      .device = s->dev->name,
				      .structure = "superblock",
				      .expected = "an intact copy",
				      .found = found,
				      .advice = "This is no bcachefs filesystem, or all copies of its superblock are "
						"damaged. Where one is at an unusual place, name its sector: --sb." });
}

static void report_unsupported(const struct sb_search *s, const struct report_sink *reports)
{
	report_emit(
		reports,
		&(struct report){ .level = REPORT_FATAL,
				  .err = -KILN_E_UNSUPPORTED,
				  .device = s->dev->name,
				  .structure = "superblock",
				  .position = s->best_fault.field,
				  .expected = s->best_fault.expected,
				  .found = s->best_fault.found,
				  .advice = "It needs the implementation that made it. A filesystem that is too "
					    "old can be read after mounting it once with a kernel that upgrades it." });
}

int super_read_device(struct device *dev, uint64_t sb_sector, const struct report_sink *reports, struct sb_disk **sb)
{
	struct sb_search *s = calloc(1, sizeof(*s));

	*sb = NULL;
	if (!s)
		return -ENOMEM;
	s->dev = dev;

	int err = search_place(s, sb_sector ? sb_sector : SB_SECTOR, false);
	if (!sb_sector) {
		if (!err && !s->best)
			err = search_layout_block(s);
		if (!err && !s->best)
			err = search_usual_places(s);
		if (!err && s->best && !sb_layout_validate(&s->best->layout, NULL))
			err = search_layout(s, s->best->layout);
	}
	if (err)
		goto out;

	search_report(s, reports);
	if (!s->best) {
		err = s->places[0].err;
		report_none_left(s, err, reports);
	} else if (s->is_best_unsupported) {
		err = -KILN_E_UNSUPPORTED;
		report_unsupported(s, reports);
	} else {
		*sb = s->best;
		s->best = NULL;
	}
out:
	free(s->best);
	free(s);
	return err;
}
