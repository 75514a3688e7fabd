/*
 * Simulated disks that lose power.
 *
 * A set of disks in memory shares one power supply. Until a disk has completed a flush, what was written to it since is
 * at risk: when the power goes, a random subset of those writes has reached the medium, each whole or torn at 512 bytes
 * or 4 KiB, in any order. Writes that were being made count as such; reads that come later fail with -EIO, as does
 * everything else until power_restore(). Then the disks go on with what survived. A flush that a wrapper lets fail
 * (device_wrap_fault()) makes the risk last: no later one covers these writes, and when the disk is opened anew their
 * fate is decided.
 *
 * Everything comes from the seed. In fiber mode I/O takes simulated time, different for each, so that completions come
 * in another order than submissions; in thread mode it is done at once.
 */
#ifndef KILN_DEVICE_POWER_H
#define KILN_DEVICE_POWER_H

#include "device/device.h"

struct power;

/* NULL when memory is short. */
struct power *power_new(uint64_t seed);
/* No handle may be open. */
void power_free(struct power *power);

/* One more disk, zeroed, sparse: its number, from 0, or -ENOMEM. Sizes as in device_open_memory(). */
int power_disk_add(struct power *power, uint64_t size_bytes, uint32_t logical_block_bytes);
/* A handle for disk @nr; closing it leaves the disk alone. One at a time. */
int power_disk_open(struct power *power, unsigned nr, struct device **dev);
/* Bytes of disk @nr as they are read now, to look at or to change. */
uint8_t *power_disk_bytes(struct power *power, unsigned nr);

/* The power goes: now, or at the @ios-th write, flush or discard from now on, counted from 1, which takes part. */
void power_cut(struct power *power);
void power_cut_after(struct power *power, uint64_t ios);
bool power_is_off(const struct power *power);
/*
 * Tell @before (NULL: nobody any more) before each write, flush or discard. It may plan a cut with that very one:
 * power_cut_after(power, 1).
 */
void power_watch(struct power *power, void (*before)(void *ctx), void *ctx);
/* What is random from now on comes from this seed. */
void power_reseed(struct power *power, uint64_t seed);
/* What was written to disk @nr is durable now: before its bytes are copied, or changed for good. */
void power_disk_settle(struct power *power, unsigned nr);
/* Power is back: a handle opened from now on sees what survived; older ones stay dead. */
void power_restore(struct power *power);

struct power_stats {
	uint64_t writes, flushes;			   /* so far */
	uint64_t at_risk_writes, lost_writes, torn_writes; /* at the last cut */
};
struct power_stats power_stats_get(const struct power *power);

#endif
