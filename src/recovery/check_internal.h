/* What the files of the checker share. See check.h. */
#ifndef KILN_RECOVERY_CHECK_INTERNAL_H
#define KILN_RECOVERY_CHECK_INTERNAL_H

#include "format/alloc.h"
#include "format/dirent.h"
#include "format/extent.h"
#include "format/file_data.h"
#include "format/inode.h"
#include "format/snapshot.h"
#include "namespace/snapshots.h"
#include "recovery/check.h"
#include "recovery/check_table.h"

enum { CHECK_TEXT_BYTES = 192 };

struct check {
	const struct check_target *t;
	const struct check_opts *opts;
	struct check_result *result;
	const struct super *super;
	struct btrees *trees;
	const struct key_context *kctx;
	uint64_t memory_bytes;
	uint64_t seq_next;
	bool is_secret; /* keys must not be written to disk in the clear */
	bool is_newer;
	bool has_usage;
	struct usage usage;
	struct snapshot_table snapshots;
	uint32_t *views;		       /* of each of its entries: check_snapshot_view() */
	uint64_t damaged;		       /* bit per btree with unreadable nodes */
	uint32_t features_used, features_told; /* bits, of extents */
	uint64_t keys[BTREE_NR_MAX];	       /* of each btree, about: for progress */
	/* the pass that runs */
	const struct check_pass *pass;
	struct check_pass_result *pass_result;
	uint64_t done, total;
	uint64_t done_told;
};

/* --- reports --- */

/*
 * Something is wrong. @device may be NULL. @structure, @position, @expected: as in struct report. Returns 0, so that
 * callbacks can end with it.
 */
int check_report(struct check *c, unsigned id, const char *device, const char *structure, const char *position,
		 const char *expected, const char *found_fmt, ...) PRINTF_LIKE(7, 8);
/* The same about a key: "dirents 4096:1234:U32_MAX". */
int check_report_pos(struct check *c, unsigned id, unsigned btree_id, struct bpos p, const char *expected,
		     const char *found_fmt, ...) PRINTF_LIKE(6, 7);
/* About a bucket: "bucket 36", on its device. */
int check_report_bucket(struct check *c, unsigned id, unsigned dev, uint64_t bucket, const char *expected,
			const char *found_fmt, ...) PRINTF_LIKE(6, 7);

/* Another item is done (@nr keys). Non-zero: stop. */
int check_step(struct check *c, uint64_t nr, unsigned btree_id, struct bpos p);

/* Are these btrees (bits) readable as a whole? If not, the pass is noted as partial. */
bool check_is_whole(struct check *c, uint64_t btrees);
#define CHECK_BTREE(id) (1ull << (id))

/* --- walking --- */

typedef int (*check_key_fn)(void *ctx, struct bkey_ref k);
/* Every key at a level in [start, end]; damage is passed over, and noted. Non-zero from @fn stops and is returned. */
int check_keys(struct check *c, unsigned btree_id, unsigned level, struct bpos start, struct bpos end, check_key_fn fn,
	       void *ctx);

/* A btree's leaf keys one by one, for merging with something else. */
struct check_stream {
	struct check *c;
	struct btree_iter it;
	struct bkey_ref k; /* when has_key; valid until the next call */
	bool has_key, is_open;
	int err;
};
void check_stream_open(struct check *c, struct check_stream *s, unsigned btree_id, struct bpos start, struct bpos end);
void check_stream_close(struct check_stream *s);
/* Is there a key? It is s->k. False at the end, and after an error, which is s->err. */
bool check_stream_peek(struct check_stream *s);
void check_stream_next(struct check_stream *s);

/* Every pointer of every key: those of nodes, roots included, and of extents. */
struct check_pointers {
	unsigned btree_id;
	unsigned level; /* of the key: 0 leaf keys; a root's pointer is at its level + 1 */
	struct bkey k;
	unsigned nr;
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
};
typedef int (*check_pointers_fn)(void *ctx, const struct check_pointers *p);
int check_each_pointers(struct check *c, check_pointers_fn fn, void *ctx);
/* Sectors that a pointer takes (07 §8.3). */
uint32_t check_pointer_sectors(const struct check *c, const struct check_pointers *p, unsigned i);
static inline const struct member_geometry *check_member(const struct check *c, unsigned dev)
{
	return key_context_member(c->kctx, dev);
}
/* Must what is on the device be right? One that failed isn't written from then on, and may have lost what it had. */
static inline bool check_device_counts(const struct check *c, unsigned dev)
{
	return super_member_online(c->super, dev) && super_member_state(c->super, dev) != MEMBER_FAILED;
}
/* Bucket of a pointer; false when there is none. */
bool check_pointer_bucket(const struct check *c, const struct extent_ptr *p, uint64_t *bucket);

/* --- snapshots --- */

static inline bool check_is_ancestor(struct check *c, uint32_t id, uint32_t ancestor)
{
	return id == ancestor || snapshot_is_ancestor(&c->snapshots, id, ancestor);
}
/*
 * The snapshot that sees what is in this one: itself, or, where deletions have left a chain that will be made one (05
 * §6), the last of it, in which keys have begun to gather. 0: nothing sees it, it is deleted or waits for that.
 */
uint32_t check_snapshot_view(struct check *c, uint32_t id);

/* --- by inode (check_by_inode.c) --- */

/* One key of the inodes btree. */
struct check_version {
	struct inode inode;
	uint32_t snapshot;
	bool is_hole;  /* no inode here: a whiteout, or what is left of a deleted one */
	uint32_t view; /* of its snapshot; 0 also when another version in its chain is nearer */
	/* for the passes */
	uint64_t sum, end;
	uint32_t count;
	bool is_found;
	uint64_t run_start, run_next;
};

struct check_owner {
	uint64_t inum;
	struct check_version *v; /* ascending snapshots */
	size_t nr, capacity;
};
/* The inode that snapshot @s sees, or NULL. */
struct check_version *check_owner_at(struct check *c, struct check_owner *o, uint32_t s);
/* The version in exactly that snapshot, holes included, or NULL. */
struct check_version *check_owner_exact(struct check_owner *o, uint32_t s);

/*
 * Walk the inodes btree and another one (or none: BTREE_NR_MAX) side by side. For each inode number that either has:
 * begin, each of the other's keys, end. Keys in snapshots that don't exist are reported and left out.
 */
struct check_by_inode {
	int (*begin)(void *ctx, struct check_owner *o); /* may be NULL, as the others */
	int (*key)(void *ctx, struct check_owner *o, struct bkey_ref k);
	int (*end)(void *ctx, struct check_owner *o);
	bool is_offset; /* the other btree has inode numbers in the offset, as deleted_inodes */
};
int check_each_inode(struct check *c, unsigned btree_id, const struct check_by_inode *ops, void *ctx);

/* --- lookups --- */

/* The inode that a snapshot sees: 1, 0 none, or an error. */
int check_inode_lookup(struct check *c, uint64_t inum, uint32_t snapshot, struct inode *inode);
/* The same of a subvolume. */
int check_subvol_lookup(struct check *c, uint32_t id, struct subvolume *sv);

/* --- extents --- */

/* What can be said of an extent by itself. */
void check_extent_key(struct check *c, unsigned btree_id, struct bkey_ref k, bool *is_unwritten);
/* Are the features that were seen in use so far marked? */
void check_features(struct check *c);

/* --- the passes --- */

int check_super(struct check *c);
int check_journal(struct check *c);
int check_topology(struct check *c);
int check_allocations(struct check *c);
int check_alloc_info(struct check *c);
int check_lrus(struct check *c);
int check_backpointers(struct check *c);
int check_snapshot_trees(struct check *c);
int check_snapshots(struct check *c);
int check_subvols(struct check *c);
int check_logged_ops(struct check *c);
int check_inodes(struct check *c);
int check_extents(struct check *c);
int check_indirect_extents(struct check *c);
int check_rebalance_work(struct check *c);
int check_dirents(struct check *c);
int check_xattrs(struct check *c);
int check_root(struct check *c);
int check_directory_structure(struct check *c);
int check_quotas(struct check *c);
int check_data(struct check *c);

#endif
