/*
 * Reading entries again, one at a time.
 *
 * The scan has told where each entry stands and that it was good. A reader keeps the entry asked for last, and a few
 * windows: what follows an entry in its bucket is mostly what will be asked for next on that device, so it is read
 * along. Entries that alternate between devices find each device's window as they left it.
 *
 * What is read now must be what the scan saw, byte for byte: its decisions rest on that. A copy that isn't, or that
 * can't be read, loses its rank and goes behind the other copies; so good copies always come first. An entry whose last
 * good copy went this way is a hole from there on.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "journal/journal_private.h"

enum { WINDOW_NR = 4, WINDOW_BYTES = 1 << 20 };

/* A piece of a device: [begin, end) in bytes, empty at first. */
struct window {
	uint8_t *buf;
	unsigned dev;
	uint64_t begin, end;
};

struct journal_reader {
	struct journal_state *state;
	struct window windows[WINDOW_NR]; /* of the devices with dev % WINDOW_NR == index */
	void *entry;
	size_t entry_bytes; /* room at entry */
};

int journal_reader_open(struct journal_state *state, struct journal_reader **reader)
{
	*reader = calloc(1, sizeof(**reader));
	if (!*reader)
		return -ENOMEM;
	(*reader)->state = state;
	return 0;
}

void journal_reader_close(struct journal_reader *reader)
{
	if (!reader)
		return;
	for (unsigned i = 0; i < WINDOW_NR; i++)
		io_buffer_free(reader->windows[i].buf);
	io_buffer_free(reader->entry);
	free(reader);
}

static uint64_t location_bucket_bytes(const struct super *s, const struct journal_location *at)
{
	return (uint64_t)s->members[at->dev].m.bucket_sectors << SECTOR_SHIFT;
}

static uint64_t location_begin(const struct super *s, const struct journal_location *at)
{
	return at->bucket * location_bucket_bytes(s, at) + ((uint64_t)at->offset_sectors << SECTOR_SHIFT);
}

/* The copy's bytes in a window, reading the window if needed; NULL when there is no such window. */
static const uint8_t *window_get(struct journal_reader *r, const struct journal_location *at)
{
	const struct super *s = r->state->super;
	struct window *w = &r->windows[at->dev % WINDOW_NR];
	uint64_t begin = location_begin(s, at), bucket_end = (at->bucket + 1) * location_bucket_bytes(s, at);

	if (at->bytes > WINDOW_BYTES)
		return NULL;
	if (!w->buf && !(w->buf = io_buffer_alloc(WINDOW_BYTES)))
		return NULL;
	if (w->dev != at->dev || begin < w->begin || begin + at->bytes > w->end) {
		uint64_t end = min(bucket_end, begin + WINDOW_BYTES);

		*w = (struct window){ .buf = w->buf, .dev = at->dev };
		if (device_read(s->members[at->dev].dev, begin, w->buf, end - begin))
			return NULL; /* something that stands there is unreadable, perhaps not this copy */
		w->begin = begin;
		w->end = end;
	}
	return w->buf + (begin - w->begin);
}

/* Make room for @bytes at reader->entry. */
static int entry_room(struct journal_reader *r, size_t bytes)
{
	if (bytes <= r->entry_bytes)
		return 0;
	io_buffer_free(r->entry);
	r->entry_bytes = 0;
	r->entry = io_buffer_alloc(bytes);
	if (!r->entry)
		return -ENOMEM;
	r->entry_bytes = bytes;
	return 0;
}

/* Read a copy that was good to reader->entry, verify and decrypt it. */
static int copy_read(struct journal_reader *r, const struct journal_location *at)
{
	const struct super *s = r->state->super;
	const uint8_t *bytes = window_get(r, at);
	struct jset_disk *j = r->entry;
	int err = 0;

	if (bytes)
		memcpy(j, bytes, at->bytes);
	else
		err = device_read(s->members[at->dev].dev, location_begin(s, at), j, at->bytes);
	if (err)
		return err;
	if (checksum_compute(CHECKSUM_XXHASH, NULL, (struct nonce){ 0 }, j, at->bytes).lo != at->hash)
		return -KILN_E_CHECKSUM;
	return jset_verify(j, s->key, NULL);
}

/* A copy that was bad from the start, or is now: its bytes, with a header that can be walked. */
static void copy_read_bad(struct journal_reader *r, const struct journal_location *at)
{
	const struct super *s = r->state->super;
	struct device *dev = s->members[at->dev].dev;
	struct jset_disk *j = r->entry;

	assert(j && r->entry_bytes >= at->bytes);
	if (device_read(dev, location_begin(s, at), j, at->bytes))
		journal_pieces_read(dev, location_begin(s, at), j, at->bytes);
	j->u64s = le32_of((uint32_t)((at->bytes - sizeof(*j)) / 8));
	j->seq = le64_of(at->seq);
}

/* The first copy was good and isn't any more. */
static int first_copy_lost(struct journal_reader *r, struct journal_entry *e, int why)
{
	struct journal_location lost = e->locations[0];
	struct journal_state *state = r->state;
	char position[48];

	lost.is_csum_good = false;
	memmove(e->locations, e->locations + 1, (e->location_nr - 1) * sizeof(lost));
	e->locations[e->location_nr - 1] = lost;
	e->is_csum_good = e->locations[0].is_csum_good;

	snprintf(position, sizeof(position), "entry %" PRIu64, e->seq);
	report_emit(state->super->reports,
		    &(struct report){ .level = e->is_csum_good ? REPORT_RECOVERED : REPORT_DAMAGE,
				      .id = e->is_csum_good ? 0 : ERROR_journal_entries_missing,
				      .err = why,
				      .device = state->super->members[lost.dev].name,
				      .structure = "journal entry",
				      .position = position,
				      .expected = "what stood there when the journal was first read",
				      .found = error_name(why),
				      .advice = e->is_csum_good
							? "Another copy is used."
							: "It is taken as missing: what it changed may be stale "
							  "or inconsistent." });
	if (e->is_csum_good || e->is_ignored)
		return 0;
	e->is_ignored = true;
	return journal_missing_insert(state, e->seq);
}

int journal_entry_load(struct journal_reader *r, struct journal_entry *e, const struct jset_disk **jset)
{
	int err = 0;

	for (unsigned i = 0; i < e->location_nr && !err; i++) {
		err = entry_room(r, e->locations[0].bytes);
		if (err || !e->is_csum_good)
			break;
		int why = copy_read(r, &e->locations[0]);
		if (!why) {
			*jset = r->entry;
			return 0;
		}
		err = why == -ENOMEM ? why : first_copy_lost(r, e, why);
	}
	if (!err)
		err = entry_room(r, e->locations[0].bytes);
	if (err)
		return err;
	copy_read_bad(r, &e->locations[0]);
	*jset = r->entry;
	return 0;
}

int journal_for_each_entry(struct journal_state *state,
			   int (*fn)(void *ctx, const struct journal_entry *e, const struct jset_disk *jset), void *ctx)
{
	struct journal_reader *reader;
	int ret = journal_reader_open(state, &reader);

	for (size_t i = 0; !ret && i < state->entry_nr; i++) {
		struct journal_entry *e = &state->entries[i];
		const struct jset_disk *jset;

		if (e->is_ignored)
			continue;
		ret = journal_entry_load(reader, e, &jset);
		if (!ret && !e->is_ignored)
			ret = fn(ctx, e, jset);
	}
	journal_reader_close(reader);
	return ret;
}
