/*
 * Positions in a btree: inode:offset:snapshot, ordered by these three, unsigned.
 */
#ifndef KILN_FORMAT_BPOS_H
#define KILN_FORMAT_BPOS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/le.h"

struct strbuf;

/* In memory. Members stand in the order of significance. */
struct bpos {
	uint64_t inode;
	uint64_t offset;
	uint32_t snapshot;
};

/* On disk, 20 bytes, any alignment. */
struct bpos_disk {
	le32 snapshot;
	le64 offset;
	le64 inode;
};
_Static_assert(sizeof(struct bpos_disk) == 20, "bpos is 20 bytes on disk");

#define BPOS(i, o, s) ((struct bpos){ .inode = (i), .offset = (o), .snapshot = (s) })
#define POS_MIN	      BPOS(0, 0, 0)
#define POS_MAX	      BPOS(UINT64_MAX, UINT64_MAX, 0)
#define SPOS_MAX      BPOS(UINT64_MAX, UINT64_MAX, UINT32_MAX)

static inline struct bpos bpos_load(const struct bpos_disk *d)
{
	return BPOS(le64_get(d->inode), le64_get(d->offset), le32_get(d->snapshot));
}

static inline void bpos_store(struct bpos_disk *d, struct bpos p)
{
	d->snapshot = le32_of(p.snapshot);
	d->offset = le64_of(p.offset);
	d->inode = le64_of(p.inode);
}

/* Full comparison: -1, 0, 1. */
static inline int bpos_cmp(struct bpos a, struct bpos b)
{
	if (a.inode != b.inode)
		return a.inode < b.inode ? -1 : 1;
	if (a.offset != b.offset)
		return a.offset < b.offset ? -1 : 1;
	if (a.snapshot != b.snapshot)
		return a.snapshot < b.snapshot ? -1 : 1;
	return 0;
}

static inline bool bpos_eq(struct bpos a, struct bpos b) { return !bpos_cmp(a, b); }
static inline bool bpos_lt(struct bpos a, struct bpos b) { return bpos_cmp(a, b) < 0; }
static inline bool bpos_le(struct bpos a, struct bpos b) { return bpos_cmp(a, b) <= 0; }

/* Comparison of inode and offset only. */
static inline int bpos_key_cmp(struct bpos a, struct bpos b)
{
	a.snapshot = b.snapshot = 0;
	return bpos_cmp(a, b);
}

/* Next and previous position. Not defined at the ends (SPOS_MAX, POS_MIN): there they return their argument. */
struct bpos bpos_successor(struct bpos p);
struct bpos bpos_predecessor(struct bpos p);
/* Next (inode, offset), snapshot 0; SPOS_MAX at the end. */
struct bpos bpos_nosnap_successor(struct bpos p);

/* "4098:8:0"; "POS_MIN", "POS_MAX", "SPOS_MAX", and "U64_MAX"/"U32_MAX" for the extremes of a field. */
void bpos_to_text(struct strbuf *out, struct bpos p);

#endif
