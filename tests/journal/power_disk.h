/*
 * Disks that lose power, for simulations (fiber mode).
 *
 * A disk holds its content over any number of openings. Writes and flushes take random time. power_disk_off() stops it:
 * everything fails from then on. power_disk_on() decides what of the writes that no completed flush covers is there:
 * each is whole, lost or torn at sectors. What is discarded reads as rubbish.
 */
#ifndef TESTS_JOURNAL_POWER_DISK_H
#define TESTS_JOURNAL_POWER_DISK_H

#include "base/clock.h"
#include "device/device.h"

struct power_event {
	bool is_flush;
	uint64_t submitted_ns, done_ns;
	uint64_t offset;
	size_t bytes;
	uint8_t *old, *new;
};

struct power_disk {
	struct device *content;
	struct rng rng;
	struct power_event *events; /* since the last flush that counts, in order of submission */
	size_t event_nr, event_max;
	bool is_off;
	uint64_t discards;
	/* Asked before each I/O; an error: the disk doesn't do it. May be NULL. */
	int (*fault)(void *ctx, const struct device_io *io);
	void *fault_ctx;
};

void power_disk_init(struct power_disk *disk, uint64_t bytes, uint64_t seed);
void power_disk_free(struct power_disk *disk);
/* A device whose closing leaves the disk as it is. */
struct device *power_disk_open(struct power_disk *disk);
void power_disk_off(struct power_disk *disk);
/* With no device open. Without power_disk_off() before it, everything is there. */
void power_disk_on(struct power_disk *disk);

#endif
