/*
 * Space and inode counters of a whole filesystem, for statfs and `kiln usage`.
 *
 * Up to 1.8 the counters come from journal entries or the clean section; from 1.9 on from the accounting btree and, on
 * unclean filesystems, its deltas in the journal (12 §11).
 */
#ifndef KILN_ALLOC_USAGE_H
#define KILN_ALLOC_USAGE_H

#include "btree/btree.h"
#include "format/alloc.h"
#include "journal/journal_read.h"
#include "super/super.h"

struct usage_dev {
	bool is_known;
	struct {
		uint64_t buckets, sectors, fragmented;
	} types[DATA_NR];
};

/* One "data of this type lives on exactly these devices" row. */
struct usage_replicas {
	uint8_t data_type, nr_devs, nr_required;
	uint8_t devs[16];
	uint64_t sectors;
};

/* What names a row: bytes without padding, to be compared. */
enum { USAGE_REPLICAS_NAME_BYTES = 3 + 16 };

struct usage {
	bool is_known;		   /* false: the image has no counters that can be read */
	uint64_t capacity_sectors; /* as 07 §13 computes it */
	uint64_t hidden_sectors;   /* superblocks and journal */
	uint64_t used_sectors;	   /* btree, user, parity, and reserved */
	uint64_t cached_sectors, reserved_sectors;
	uint64_t available_sectors; /* what can still be written, all copies counted */
	uint64_t inodes;
	unsigned dev_nr;
	struct usage_dev *devs; /* by slot */
	size_t replicas_nr;
	struct usage_replicas *replicas;
};

/*
 * Read all counters. Free with usage_free(). 0 or an error; damage of the accounting btree makes is_known false.
 *
 * On an unclean filesystem it reads the journal's entries again, so do it once rather than often.
 */
int usage_read(const struct super *super, struct journal_state *journal, struct btrees *trees, struct usage *usage);
void usage_free(struct usage *usage);
/* What data can fill, as 07 §13 has it; and what of it is a member's. */
uint64_t usage_capacity_sectors(const struct super *super);
uint64_t usage_member_capacity_sectors(const struct super *super, unsigned dev);
/* What can still be written if the devices can take it (07 §12.6); the totals are filled in. */
uint64_t usage_available_sectors(const struct usage *u);
/* Fill in hidden, used and cached sectors from the rows and the reserved sectors; the totals are 0. */
void usage_totals_compute(const struct super *super, struct usage *usage);
/* What that is made of, for counters that lie elsewhere. Does such data count as used? */
bool usage_type_is_used(unsigned data_type);
/* What the devices of a row survive, added up as the format counts it. */
unsigned usage_row_durability(const struct super *super, const struct usage_replicas *row);
/* How much is on fewer devices than the filesystem's options ask for: a device was missing, or had failed, say. */
struct usage_fewer_copies {
	uint64_t metadata_sectors, data_sectors;
};
struct usage_fewer_copies usage_fewer_copies(const struct super *super, const struct usage *usage);
/* What a promise of so many sectors takes: with the keys that will describe the data. */
uint64_t usage_of_reserved(uint64_t sectors);

#endif
