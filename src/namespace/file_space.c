/* Holes in files, and space promised to them: the rules of fallocate() around what `data` does (06 §14). */
#include <errno.h>
#include <sys/stat.h>

#include "namespace/change_internal.h"

int namespace_fallocate(struct namespace *ns, struct object o, enum fallocate_op op, uint64_t offset, uint64_t len,
			uint64_t *journal_seq)
{
	bool adds_only = op == FALLOCATE_EXTEND || op == FALLOCATE_KEEP_SIZE;
	struct data_write_target file;
	struct inode inode;
	int err = change_file_get(ns, o, &inode, &file);

	if (err)
		return err;
	if (inode.flags & INODE_IMMUTABLE || (inode.flags & INODE_APPEND && !adds_only))
		return -EPERM;
	uint64_t now = change_time(ns->super);
	struct data_write_times times = { .is_set = true, .mtime = now, .ctime = now, .clear_setid = true };
	switch (op) {
	case FALLOCATE_EXTEND: return data_allocate(ns->data, &file, offset, len, 0, &times, journal_seq);
	case FALLOCATE_KEEP_SIZE:
		return data_allocate(ns->data, &file, offset, len, DATA_ALLOCATE_KEEP_SIZE, &times, journal_seq);
	case FALLOCATE_ZERO_EXTEND:
		return data_allocate(ns->data, &file, offset, len, DATA_ALLOCATE_ZERO, &times, journal_seq);
	case FALLOCATE_ZERO_KEEP_SIZE:
		return data_allocate(ns->data, &file, offset, len, DATA_ALLOCATE_ZERO | DATA_ALLOCATE_KEEP_SIZE, &times,
				     journal_seq);
	case FALLOCATE_PUNCH: return data_punch(ns->data, &file, offset, len, &times, journal_seq);
	}
	return -EOPNOTSUPP;
}
