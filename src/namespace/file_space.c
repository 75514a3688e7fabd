/* Space of files, and ranges copied: the rules of the system calls around what `data` does (06 §13, §14). */
#include <errno.h>
#include <sys/stat.h>

#include "namespace/change_internal.h"

static int range_change(struct namespace *ns, const struct data_write_target *file, enum fallocate_op op,
			uint64_t offset, uint64_t len, const struct data_write_times *times, uint64_t *journal_seq)
{
	switch (op) {
	case FALLOCATE_EXTEND: return data_allocate(ns->data, file, offset, len, 0, times, journal_seq);
	case FALLOCATE_KEEP_SIZE:
		return data_allocate(ns->data, file, offset, len, DATA_ALLOCATE_KEEP_SIZE, times, journal_seq);
	case FALLOCATE_ZERO_EXTEND:
		return data_allocate(ns->data, file, offset, len, DATA_ALLOCATE_ZERO, times, journal_seq);
	case FALLOCATE_ZERO_KEEP_SIZE:
		return data_allocate(ns->data, file, offset, len, DATA_ALLOCATE_ZERO | DATA_ALLOCATE_KEEP_SIZE, times,
				     journal_seq);
	case FALLOCATE_PUNCH: return data_punch(ns->data, file, offset, len, times, journal_seq);
	case FALLOCATE_INSERT: return data_insert_range(ns->data, file, offset, len, times, journal_seq);
	case FALLOCATE_COLLAPSE: return data_collapse_range(ns->data, file, offset, len, times, journal_seq);
	}
	return -EOPNOTSUPP;
}

int namespace_fallocate(struct namespace *ns, struct object o, enum fallocate_op op, uint64_t offset, uint64_t len,
			bool keeps_setid, uint64_t *journal_seq)
{
	bool adds_only = op == FALLOCATE_EXTEND || op == FALLOCATE_KEEP_SIZE;
	struct data_write_target file;
	struct inode inode;
	int err = change_file_get(ns, o, &inode, &file);

	if (err)
		return err;
	if (!adds_only)
		file.forbidding |= INODE_APPEND;
	uint64_t now = change_time(ns->super);
	struct data_write_times times = { .is_set = true, .mtime = now, .ctime = now, .clear_setid = !keeps_setid };
	bool is_shift = op == FALLOCATE_INSERT || op == FALLOCATE_COLLAPSE;
	struct room_wait room = deletions_room_begin(ns);
	do {
		/* What is taken out gives the room that it takes. */
		err = op == FALLOCATE_INSERT ? change_room_check(ns) : 0;
		if (!err && !is_shift)
			err = range_change(ns, &file, op, offset, len, &times, journal_seq);
	} while (deletions_give_room(ns, err, &room));
	/* That may get half way, and isn't begun again. */
	if (!err && is_shift)
		err = range_change(ns, &file, op, offset, len, &times, journal_seq);
	return err;
}

/* A regular file that is read from: it may be in a read-only snapshot. */
static int source_get(struct namespace *ns, struct object o, struct data_write_target *file)
{
	struct subvolume sv;
	struct inode inode;
	int err = namespace_inode(ns, o, &inode);

	if (!err && !S_ISREG(inode.mode))
		err = S_ISDIR(inode.mode) ? -EISDIR : -EINVAL;
	if (!err)
		err = namespace_subvol(ns, o.subvol, &sv);
	if (!err)
		*file = (struct data_write_target){ .inum = o.inum, .snapshot = sv.snapshot, .subvol = o.subvol };
	return err;
}

ssize_t namespace_copy_range(struct namespace *ns, struct object from, uint64_t from_offset, struct object to,
			     uint64_t to_offset, uint64_t len, unsigned flags, bool keeps_setid, uint64_t *journal_seq)
{
	struct data_write_target source, file;
	struct inode inode;
	int err = change_file_get(ns, to, &inode, &file);

	if (!err)
		err = source_get(ns, from, &source);
	if (err)
		return err;
	file.forbidding_inside = INODE_APPEND;
	uint64_t now = change_time(ns->super);
	struct data_write_times times = { .is_set = true, .mtime = now, .ctime = now, .clear_setid = !keeps_setid };
	struct room_wait room = deletions_room_begin(ns);
	ssize_t ret;
	do {
		ret = data_copy_range(ns->data, &source, from_offset, &file, to_offset, len, flags, &times,
				      journal_seq);
	} while (ret < 0 && deletions_give_room(ns, (int)ret, &room));
	return ret;
}
