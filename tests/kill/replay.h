/*
 * What disks hold after a loss of power, from traces of what was written to them (device_wrap_trace()).
 *
 * Of each disk the writes are known with their contents, and of these and the flushes when they were submitted and when
 * they were done. When the power goes at some time, writes that were done when a flush was submitted that was done by
 * then are on the medium. Of the other ones that were submitted any subset is, in any order, each whole or torn.
 *
 * In the order in which they were done, the writes that are surely there are the first ones. So the bytes that are
 * surely there are kept for a time that only goes forward, and a cut is a private copy of them, page by page where it
 * differs.
 */
#ifndef KILN_TESTS_KILL_REPLAY_H
#define KILN_TESTS_KILL_REPLAY_H

#include "base/clock.h"
#include "device/device.h"

struct replay;

/* Disks as the files are now; they are written to only later. NULL with a message when that fails. */
struct replay *replay_new(const char *const *images, unsigned disks_nr, uint32_t logical_block_bytes);
void replay_free(struct replay *r);
/* What was written next: one trace, with data, for each disk. 0 or an error, after a message. */
int replay_add(struct replay *r, const char *const *traces);

/* A random moment in clock_monotonic_ns(), at which something was being written or just had been. */
uint64_t replay_moment(const struct replay *r, struct rng *rng);
/* The time goes forward to @ns. */
void replay_advance(struct replay *r, uint64_t ns);

struct replay_counts {
	uint64_t writes, flushes; /* in the traces */
	uint64_t at_risk;	  /* writes that a cut now may lose */
};
struct replay_counts replay_count(const struct replay *r);

/* The power goes. From here on the disks are what is there then, for this process; the time can't go on in it. */
int replay_cut(struct replay *r, struct rng *rng);
/* A handle for disk @nr after the cut; closing it leaves the disk alone. */
int replay_open(struct replay *r, unsigned nr, struct device **dev);
/* Write the disk to a file, sparse. 0 or a negative errno. */
int replay_export(const struct replay *r, unsigned nr, const char *path);

#endif
