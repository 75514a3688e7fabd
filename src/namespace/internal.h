/* What the files of this room share. */
#ifndef KILN_NAMESPACE_INTERNAL_H
#define KILN_NAMESPACE_INTERNAL_H

#include "base/sync.h"
#include "namespace/namespace.h"
#include "namespace/snapshots.h"

/* A subvolume whose key couldn't be read, rebuilt from its snapshot node. */
struct rebuilt_subvol {
	uint32_t id;
	struct subvolume sv; /* inode 0: no root was found */
};

struct namespace_write;

struct namespace
{
	struct super *super;
	struct btrees *trees;
	struct data *data;
	const struct report_sink *reports;
	struct snapshot_table snapshots;
	struct subvolume root_subvol; /* subvolume 1: nearly every operation asks for it */
	bool may_have_casefold;	      /* some directory may be casefolded */
	bool has_scrubbed_names;      /* names don't match their hashes: look up by iteration (12 §4.2) */

	bool subvols_incomplete;	/* part of the subvolumes btree can't be read */
	struct rebuilt_subvol *rebuilt; /* ascending ids */
	size_t rebuilt_nr, rebuilt_capacity;
	char fallback[256]; /* why the view is a fallback, or empty */

	struct namespace_write *write; /* NULL: nothing may be changed */
};

/* Read the subvolumes as far as they can be read, and rebuild the others. 0 or -ENOMEM. */
int subvols_open(struct namespace *ns, int snapshots_err);
void subvols_close(struct namespace *ns);
/* Snapshot id of a subvolume. -ENOENT, or an error. */
int subvol_snapshot(struct namespace *ns, uint32_t subvol, uint32_t *snapshot);

/* The inode option (enum inode_opt) of a name, or -EINVAL; and the option behind it. */
int inode_option_find(const char *name);
enum option_id inode_option_id(unsigned inode_opt);

/* Fold a name as casefolded directories do (12 §7.4). Returns a malloc'ed string and its length, or -EINVAL, -ENOMEM.
 */
int name_fold(const char *name, size_t len, char **folded, size_t *folded_len);

#endif
