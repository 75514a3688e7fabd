/* See power_disk.h. */
#include "power_disk.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/array.h"

enum { SECTOR = 512, US = 1000, WRITE_US_MAX = 200, FLUSH_US_MAX = 2000 };

struct power_device {
	struct device dev;
	struct power_disk *disk;
};

/* Forget writes that a flush covers which was submitted after they were done, and is done itself. */
static void events_prune(struct power_disk *disk, uint64_t now)
{
	uint64_t safe_ns = 0;
	size_t kept = 0;

	for (size_t i = 0; i < disk->event_nr; i++)
		if (disk->events[i].is_flush && disk->events[i].done_ns <= now)
			safe_ns = max(safe_ns, disk->events[i].submitted_ns);
	for (size_t i = 0; i < disk->event_nr; i++) {
		struct power_event *e = &disk->events[i];

		if (e->is_flush ? e->done_ns > now : e->done_ns > safe_ns) {
			disk->events[kept++] = *e;
			continue;
		}
		free(e->old);
		free(e->new);
	}
	disk->event_nr = kept;
}

static void content_read(struct power_disk *disk, uint64_t offset, void *buf, size_t bytes)
{
	assert_int_equal(device_read(disk->content, offset, buf, bytes), 0);
}

static void content_write(struct power_disk *disk, uint64_t offset, const void *buf, size_t bytes)
{
	assert_int_equal(device_write(disk->content, offset, buf, bytes), 0);
}

static struct power_event *event_add(struct power_disk *disk, const struct device_io *io, uint64_t now, uint64_t done)
{
	assert_int_equal(array_grow(&disk->events, &disk->event_max, disk->event_nr + 1, sizeof(*disk->events)), 0);
	struct power_event *e = &disk->events[disk->event_nr++];

	*e = (struct power_event){
		.is_flush = io->op == DEVICE_FLUSH,
		.submitted_ns = now,
		.done_ns = done,
		.offset = io->offset_bytes,
		.bytes = io->len_bytes,
	};
	if (e->is_flush)
		return e;
	e->old = malloc(e->bytes);
	e->new = malloc(e->bytes);
	assert_true(e->old && e->new);
	content_read(disk, e->offset, e->old, e->bytes);
	return e;
}

static void power_submit(struct device *dev, struct device_io *io)
{
	struct power_disk *disk = ((struct power_device *)dev)->disk;
	uint64_t now = clock_monotonic_ns(), done = now;
	int err = disk->is_off ? -EIO : disk->fault ? disk->fault(disk->fault_ctx, io) : 0;

	if (io->op == DEVICE_WRITE)
		done += (1 + rng_below(&disk->rng, WRITE_US_MAX)) * US;
	if (io->op == DEVICE_FLUSH)
		done += (1 + rng_below(&disk->rng, FLUSH_US_MAX)) * US;
	if (err) {
		io_done_at(io, err, done);
		return;
	}
	events_prune(disk, now);
	if (io->op == DEVICE_READ) {
		uint64_t at = io->offset_bytes;

		for (unsigned i = 0; i < io->iov_nr; at += io->iov[i++].iov_len)
			content_read(disk, at, io->iov[i].iov_base, io->iov[i].iov_len);
	} else {
		struct power_event *e = event_add(disk, io, now, done);
		size_t at = 0;

		for (unsigned i = 0; io->op == DEVICE_WRITE && i < io->iov_nr; at += io->iov[i++].iov_len)
			memcpy(e->new + at, io->iov[i].iov_base, io->iov[i].iov_len);
		if (io->op == DEVICE_DISCARD) {
			memset(e->new, 0x5a, e->bytes);
			disk->discards++;
		}
		if (!e->is_flush)
			content_write(disk, e->offset, e->new, e->bytes);
	}
	io_done_at(io, 0, done);
}

static void power_close(struct device *dev) { free(dev); }

static const struct device_ops power_ops = { .kind = "power", .submit = power_submit, .close = power_close };

void power_disk_init(struct power_disk *disk, uint64_t bytes, uint64_t seed)
{
	*disk = (struct power_disk){ 0 };
	rng_init(&disk->rng, seed);
	assert_int_equal(device_open_memory("power", bytes, SECTOR, &disk->content), 0);
}

void power_disk_free(struct power_disk *disk)
{
	power_disk_on(disk);
	device_close(disk->content);
	free(disk->events);
}

struct device *power_disk_open(struct power_disk *disk)
{
	struct power_device *p = calloc(1, sizeof(*p));

	assert_non_null(p);
	p->disk = disk;
	p->dev = *disk->content;
	p->dev.ops = &power_ops;
	return &p->dev;
}

void power_disk_off(struct power_disk *disk)
{
	if (disk->is_off)
		return;
	events_prune(disk, clock_monotonic_ns());
	disk->is_off = true;
}

static void event_redo(struct power_disk *disk, const struct power_event *e)
{
	uint64_t kind = rng_below(&disk->rng, 3); /* whole, lost, torn */

	for (size_t at = 0; at < e->bytes && kind != 1; at += SECTOR) {
		size_t bytes = kind ? min(e->bytes - at, (size_t)SECTOR) : e->bytes;

		if (!kind || rng_below(&disk->rng, 2))
			content_write(disk, e->offset + at, e->new + at, bytes);
		if (!kind)
			break;
	}
}

void power_disk_on(struct power_disk *disk)
{
	for (size_t i = disk->event_nr; disk->is_off && i--;)
		if (!disk->events[i].is_flush)
			content_write(disk, disk->events[i].offset, disk->events[i].old, disk->events[i].bytes);
	for (size_t i = 0; i < disk->event_nr; i++) {
		struct power_event *e = &disk->events[i];

		if (!e->is_flush && disk->is_off)
			event_redo(disk, e);
		free(e->old);
		free(e->new);
	}
	disk->event_nr = 0;
	disk->is_off = false;
}
