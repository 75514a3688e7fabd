/*
 * Simulated disks that lose power. See power.h.
 *
 * A disk's bytes are always what a reader sees: the newest. Beside them it keeps a list of *records*, in order of
 * submission: writes that aren't known to be durable, each with what it wrote and what was there before. At a cut
 * records that became durable meanwhile are dropped, all others are undone from the newest to the oldest, which gives
 * what the medium surely holds, and then a random subset of them is done again in random order.
 *
 * A discard spoils only what was written since the last one of the same place: the rest reads as it did, which is as
 * good as anything. So it costs nothing to discard what nothing is on, as recovery does again and again.
 *
 * Times make no events: a record knows when its write completes, and from when on a flush has made it durable, so
 * whether it is durable is a question of the time at which one asks.
 */
#include "device/power.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/array.h"
#include "base/clock.h"
#include "base/fiber.h"
#include "base/sync.h"
#include "base/util.h"

enum { DISKS_MAX = 16, LATENCY_NS_MAX = 200000, PAGE_BYTES = 4096 };

/* What is discarded may read as anything, so whoever still wants it shall notice. */
enum { DISCARDED = 0xdd };

struct record {
	uint64_t offset_bytes, len_bytes;
	uint64_t complete_ns; /* of the write */
	uint64_t durable_ns;  /* when a flush that covers it is complete; UINT64_MAX: none yet */
	bool is_lost;	      /* none will */
	bool is_discard;      /* what is new is DISCARDED all over */
	uint8_t *old, *new;   /* bytes; one piece of memory */
};

struct disk {
	uint64_t size_bytes;
	uint32_t logical_block_bytes;
	uint8_t *bytes;
	bool *is_written; /* a page of PAGE_BYTES, since it was discarded */
	struct record *records;
	size_t records_nr, records_capacity;
};

struct power {
	struct mutex lock; /* thread mode only: in fiber mode nothing here switches */
	struct rng rng;
	uint64_t generation; /* counts cuts: older handles are dead */
	uint64_t cut_in;     /* I/Os until the cut; 0: none planned */
	bool is_off;
	void (*before)(void *ctx); /* NULL: nobody watches */
	void *before_ctx;
	struct power_stats stats;
	struct disk disks[DISKS_MAX];
	unsigned disks_nr;
};

struct power_handle {
	struct device dev;
	struct power *power;
	struct disk *disk;
	uint64_t generation;
};

static void disk_cut(struct power *p, struct disk *d);
static void power_submit(struct device *dev, struct device_io *io);
static void power_cache_lose(struct device *dev);
static void power_close(struct device *dev) { free(container_of(dev, struct power_handle, dev)); }

static const struct device_ops power_ops = {
	.kind = "simulated",
	.submit = power_submit,
	.cache_lose = power_cache_lose,
	.close = power_close,
};

static void power_lock(struct power *p)
{
	if (!fiber_mode())
		mutex_lock(&p->lock);
}

static void power_unlock(struct power *p)
{
	if (!fiber_mode())
		mutex_unlock(&p->lock);
}

/* --- disks --- */

struct power *power_new(uint64_t seed)
{
	struct power *p = calloc(1, sizeof(*p));

	if (p) {
		mutex_init(&p->lock);
		rng_init(&p->rng, seed);
	}
	return p;
}

static void records_clear(struct disk *d)
{
	for (size_t i = 0; i < d->records_nr; i++)
		free(d->records[i].old);
	d->records_nr = 0;
}

void power_free(struct power *p)
{
	for (unsigned i = 0; p && i < p->disks_nr; i++) {
		records_clear(&p->disks[i]);
		free(p->disks[i].records);
		free(p->disks[i].is_written);
		munmap(p->disks[i].bytes, p->disks[i].size_bytes);
	}
	if (p)
		mutex_destroy(&p->lock);
	free(p);
}

int power_disk_add(struct power *p, uint64_t size_bytes, uint32_t logical_block_bytes)
{
	assert(p->disks_nr < DISKS_MAX && !(size_bytes % logical_block_bytes));
	struct disk *d = &p->disks[p->disks_nr];

	d->bytes = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (d->bytes == MAP_FAILED)
		return -ENOMEM;
	d->is_written = calloc(size_bytes / PAGE_BYTES + 1, sizeof(*d->is_written));
	if (!d->is_written) {
		munmap(d->bytes, size_bytes);
		return -ENOMEM;
	}
	d->size_bytes = size_bytes;
	d->logical_block_bytes = logical_block_bytes;
	return (int)p->disks_nr++;
}

static bool has_lost(const struct disk *d)
{
	bool any = false;

	for (size_t i = 0; i < d->records_nr; i++)
		any |= d->records[i].is_lost;
	return any;
}

int power_disk_open(struct power *p, unsigned nr, struct device **dev)
{
	struct power_handle *h = calloc(1, sizeof(*h));

	if (!h)
		return -ENOMEM;
	/* Nobody could ever tell from what is read that it isn't there. */
	if (has_lost(&p->disks[nr]))
		disk_cut(p, &p->disks[nr]);
	h->power = p;
	h->disk = &p->disks[nr];
	h->generation = p->generation;
	h->dev = (struct device){
		.ops = &power_ops,
		.size_bytes = h->disk->size_bytes,
		.logical_block_bytes = h->disk->logical_block_bytes,
		.io_align_bytes = h->disk->logical_block_bytes,
		.mem_align_bytes = 1,
	};
	snprintf(h->dev.name, sizeof(h->dev.name), "disk%u", nr);
	*dev = &h->dev;
	return 0;
}

uint8_t *power_disk_bytes(struct power *p, unsigned nr) { return p->disks[nr].bytes; }
bool power_is_off(const struct power *p) { return p->is_off; }
struct power_stats power_stats_get(const struct power *p) { return p->stats; }

/* --- losing power --- */

/* Drop what is durable at @now. */
static void records_settle(struct disk *d, uint64_t now)
{
	size_t kept = 0;

	for (size_t i = 0; i < d->records_nr; i++)
		if (d->records[i].durable_ns <= now)
			free(d->records[i].old);
		else
			d->records[kept++] = d->records[i];
	d->records_nr = kept;
}

static void pages_written(struct disk *d, const struct record *r)
{
	for (uint64_t page = r->offset_bytes / PAGE_BYTES; page * PAGE_BYTES < r->offset_bytes + r->len_bytes; page++)
		d->is_written[page] = true;
}

static void record_undo(struct disk *d, const struct record *r)
{
	memcpy(d->bytes + r->offset_bytes, r->old, r->len_bytes);
	pages_written(d, r);
}

/* The disk gets @len_bytes of what the record says is new, from @at on. */
static void record_put(struct disk *d, const struct record *r, uint64_t at, uint64_t len_bytes)
{
	uint8_t *to = d->bytes + r->offset_bytes + at;

	if (r->is_discard)
		memset(to, DISCARDED, len_bytes);
	else
		memcpy(to, r->new + at, len_bytes);
}

static void record_redo(struct power *p, struct disk *d, const struct record *r)
{
	static const uint32_t units[] = { 512, 4096 };
	uint64_t fate = rng_below(&p->rng, 4);

	if (fate == 0) {
		p->stats.lost_writes++;
		return;
	}
	if (fate != 1) {
		record_put(d, r, 0, r->len_bytes);
		return;
	}
	/* Torn: a prefix, or any of its pieces. */
	uint32_t unit = max(units[rng_below(&p->rng, 2)], d->logical_block_bytes);
	uint64_t prefix = rng_below(&p->rng, 2) ? rng_below(&p->rng, r->len_bytes / unit + 1) * unit : UINT64_MAX;

	p->stats.torn_writes++;
	for (uint64_t at = 0; at < r->len_bytes; at += unit)
		if (prefix == UINT64_MAX ? rng_below(&p->rng, 2) : at < prefix)
			record_put(d, r, at, min((uint64_t)unit, r->len_bytes - at));
}

static void disk_cut(struct power *p, struct disk *d)
{
	records_settle(d, fiber_mode() ? clock_monotonic_ns() : UINT64_MAX - 1);
	for (size_t i = d->records_nr; i--;)
		record_undo(d, &d->records[i]);
	p->stats.at_risk_writes += d->records_nr;
	/* Sometimes all of it got there, or nothing. */
	uint64_t fate = rng_below(&p->rng, 8);
	for (size_t left = d->records_nr; left; left--) {
		size_t i = fate == 0 ? d->records_nr - left : (size_t)rng_below(&p->rng, left);
		struct record *r = &d->records[i];

		if (fate == 0)
			record_put(d, r, 0, r->len_bytes);
		else if (fate != 1)
			record_redo(p, d, r);
		else
			p->stats.lost_writes++;
		if (fate != 0) {
			struct record last = d->records[left - 1];

			d->records[left - 1] = *r;
			*r = last;
		}
	}
	records_clear(d);
}

static void cut_locked(struct power *p)
{
	if (p->is_off)
		return;
	p->stats.at_risk_writes = p->stats.lost_writes = p->stats.torn_writes = 0;
	p->is_off = true;
	p->cut_in = 0;
	p->generation++;
	for (unsigned i = 0; i < p->disks_nr; i++)
		disk_cut(p, &p->disks[i]);
}

void power_cut(struct power *p)
{
	power_lock(p);
	cut_locked(p);
	power_unlock(p);
}

void power_cut_after(struct power *p, uint64_t ios) { p->cut_in = ios; }
void power_restore(struct power *p) { p->is_off = false; }
void power_reseed(struct power *p, uint64_t seed) { rng_init(&p->rng, seed); }
void power_disk_settle(struct power *p, unsigned nr) { records_clear(&p->disks[nr]); }

void power_watch(struct power *p, void (*before)(void *ctx), void *ctx)
{
	p->before = before;
	p->before_ctx = ctx;
}

/* --- I/O --- */

/* A record of it, and the disk gets what is new: of @io, or what a discard makes of it. */
static int record_new(struct disk *d, struct record r, const struct device_io *io)
{
	uint64_t at = 0;

	r.durable_ns = UINT64_MAX;
	r.is_discard = io->op == DEVICE_DISCARD;
	r.old = malloc(r.is_discard ? r.len_bytes : 2 * r.len_bytes);
	if (!r.old || array_grow(&d->records, &d->records_capacity, d->records_nr + 1, sizeof(*d->records))) {
		free(r.old);
		return -ENOMEM;
	}
	memcpy(r.old, d->bytes + r.offset_bytes, r.len_bytes);
	r.new = r.is_discard ? NULL : r.old + r.len_bytes;
	for (unsigned i = 0; i < io->iov_nr && r.new; i++) {
		memcpy(r.new + at, io->iov[i].iov_base, io->iov[i].iov_len);
		at += io->iov[i].iov_len;
	}
	record_put(d, &r, 0, r.len_bytes);
	d->records[d->records_nr++] = r;
	return 0;
}

static int write_record(struct disk *d, const struct device_io *io, uint64_t complete_ns)
{
	struct record r = { .offset_bytes = io->offset_bytes, .len_bytes = io->len_bytes, .complete_ns = complete_ns };

	pages_written(d, &r);
	return record_new(d, r, io);
}

/* A record for each run of pages that were written; pages at the ends that are others' too stay so. */
static int discard_records(struct disk *d, const struct device_io *io, uint64_t complete_ns)
{
	uint64_t end = io->offset_bytes + io->len_bytes;
	int err = 0;

	for (uint64_t at = io->offset_bytes, next; at < end && !err; at = next) {
		bool is_written = d->is_written[at / PAGE_BYTES];
		struct record r = { .offset_bytes = at, .complete_ns = complete_ns };

		for (next = at; next < end && d->is_written[next / PAGE_BYTES] == is_written;) {
			uint64_t page_end = (next / PAGE_BYTES + 1) * PAGE_BYTES;

			if (!(next % PAGE_BYTES) && page_end <= end)
				d->is_written[next / PAGE_BYTES] = false;
			next = min(page_end, end);
		}
		r.len_bytes = next - at;
		if (is_written)
			err = record_new(d, r, io);
	}
	return err;
}

/* Covers the writes that are complete now, from @done_ns on. */
static void flush_records(struct disk *d, uint64_t now, uint64_t done_ns)
{
	records_settle(d, now);
	for (size_t i = 0; i < d->records_nr; i++)
		if (d->records[i].complete_ns <= now && !d->records[i].is_lost)
			d->records[i].durable_ns = min(d->records[i].durable_ns, done_ns);
}

static void read_bytes(const struct disk *d, const struct device_io *io)
{
	const uint8_t *from = d->bytes + io->offset_bytes;
	uint64_t left = io->len_bytes;

	for (unsigned i = 0; i < io->iov_nr && left; i++) {
		size_t bytes = min(left, io->iov[i].iov_len);

		memcpy(io->iov[i].iov_base, from, bytes);
		from += bytes;
		left -= bytes;
	}
}

static int serve(struct power_handle *h, struct device_io *io, uint64_t now, uint64_t done_ns)
{
	struct power *p = h->power;
	int err = 0;

	if (p->is_off || h->generation != p->generation)
		return -EIO;
	if (p->before && io->op != DEVICE_READ)
		p->before(p->before_ctx);
	switch (io->op) {
	case DEVICE_READ: read_bytes(h->disk, io); return 0;
	case DEVICE_WRITE:
		p->stats.writes++;
		err = write_record(h->disk, io, done_ns);
		break;
	case DEVICE_DISCARD:
		p->stats.writes++;
		err = discard_records(h->disk, io, done_ns);
		break;
	case DEVICE_FLUSH: p->stats.flushes++; break;
	}
	if (p->cut_in && !--p->cut_in) {
		cut_locked(p);
		return -EIO;
	}
	if (io->op == DEVICE_FLUSH)
		flush_records(h->disk, now, done_ns);
	return err;
}

static void power_submit(struct device *dev, struct device_io *io)
{
	struct power_handle *h = container_of(dev, struct power_handle, dev);
	uint64_t now = fiber_mode() ? clock_monotonic_ns() : 0;

	power_lock(h->power);
	uint64_t done_ns = fiber_mode() ? now + 1000 + rng_below(&h->power->rng, LATENCY_NS_MAX) : 0;
	int err = serve(h, io, now, done_ns);
	power_unlock(h->power);
	if (fiber_mode())
		io_done_at(io, err, done_ns);
	else
		io_done(io, err);
}

/* It reads as if it were there, until the disk is opened anew or the power goes. */
static void power_cache_lose(struct device *dev)
{
	struct power_handle *h = container_of(dev, struct power_handle, dev);

	power_lock(h->power);
	for (size_t i = 0; i < h->disk->records_nr; i++)
		h->disk->records[i].is_lost |= h->disk->records[i].durable_ns == UINT64_MAX;
	power_unlock(h->power);
}
