/* Key types snapshot (22), snapshot_tree (31), subvolume (21). 05 §2, 12 §7.5-7.6. */
#ifndef KILN_FORMAT_SNAPSHOT_H
#define KILN_FORMAT_SNAPSHOT_H

#include "format/key_types.h"

enum { SUBVOL_ROOT = 1 };

struct snapshot {
	bool will_delete; /* dead: no subvolume leads here */
	bool is_subvol;	  /* a subvolume points here */
	bool is_deleted;  /* tombstone of newer versions: keep it out of the tree */
	bool has_no_keys;
	uint32_t parent;
	uint32_t children[2];
	uint32_t subvol;
	uint32_t tree;
	uint32_t depth;
	uint32_t skip[3]; /* some ancestors, ascending; 0: none */
};
void snapshot_decode(struct bkey_ref k, struct snapshot *s);
/* As format 1.4 has it. */
enum { SNAPSHOT_BYTES = 40 };
void snapshot_encode(const struct snapshot *s, uint8_t value[SNAPSHOT_BYTES]);

struct subvolume {
	bool is_readonly, is_snapshot, is_unlinked;
	bool is_deleted; /* tombstone of newer versions: treat as absent */
	uint32_t snapshot;
	uint64_t inode;
	uint32_t creation_parent; /* snapshotted from */
	uint32_t fs_path_parent;  /* 1.5 and above; else 0 */
	uint64_t otime;
};
void subvolume_decode(struct bkey_ref k, struct subvolume *s);
enum { SUBVOLUME_BYTES = 40 };
void subvolume_encode(const struct subvolume *s, uint8_t value[SUBVOLUME_BYTES]);

struct snapshot_tree {
	uint32_t master_subvol;
	uint32_t root_snapshot;
};
void snapshot_tree_decode(struct bkey_ref k, struct snapshot_tree *t);
enum { SNAPSHOT_TREE_BYTES = 8 };
void snapshot_tree_encode(const struct snapshot_tree *t, uint8_t value[SNAPSHOT_TREE_BYTES]);

int snapshot_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void snapshot_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
int snapshot_tree_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void snapshot_tree_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);
int subvolume_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void subvolume_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);

#endif
