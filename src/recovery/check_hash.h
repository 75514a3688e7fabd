/* Hash tables of names, walked in order: what check_dirents and check_xattrs share. See check_hash.c. */
#ifndef KILN_RECOVERY_CHECK_HASH_H
#define KILN_RECOVERY_CHECK_HASH_H

#include "recovery/check_internal.h"

struct check_hash_key {
	uint64_t offset, slot; /* where it is, and where its name's hash is */
	uint64_t name;	       /* identity of the name */
	uint32_t snapshot;
	uint8_t type, dirent_type;
	bool is_entry, is_occupied; /* not a hole */
};

struct check_hash {
	struct check *c;
	unsigned btree_id;
	/* Called for each version of the owner and each key that it sees; may be NULL. */
	void (*seen)(void *ctx, struct check_version *v, const struct check_hash_key *k);
	void *seen_ctx;
	/* private */
	struct check_hash_key *keys; /* of one slot */
	size_t nr, capacity;
	struct check_hash_key *run; /* of the slots before it */
	size_t run_nr, run_capacity;
	bool is_told;
};

/* For each inode: begin, its keys in order, end. */
void check_hash_begin(struct check_hash *h, struct check_owner *o);
int check_hash_key(struct check_hash *h, struct check_owner *o, struct bkey_ref k);
/* Does anything see the key that was added last? */
bool check_hash_is_seen(const struct check_hash *h);
void check_hash_end(struct check_hash *h, struct check_owner *o);
void check_hash_free(struct check_hash *h);

#endif
