/* What the files behind the public calls share. */
#ifndef KILN_ENGINE_API_H
#define KILN_ENGINE_API_H

#include "engine/fs.h"

static inline struct object object_of(struct kiln_node node) { return (struct object){ node.subvol, node.ino }; }
static inline struct kiln_node node_of(struct object o)
{
	return (struct kiln_node){ .ino = o.inum, .subvol = o.subvol };
}

void api_stat_fill(const struct kiln_fs *fs, struct object o, const struct inode *inode, bool is_readonly,
		   struct kiln_stat *st);
/* May an object of this name be made now? 0, -EROFS, -ENOENT, -ENAMETOOLONG, -EINVAL; -EEXIST for "." and "..". */
int api_new_name_check(const struct kiln_fs *fs, const char *name, size_t len);
/* FS_*_FL bits to inode flags; -EOPNOTSUPP for bits that bcachefs doesn't have. */
int api_flags_of_fs(uint32_t fs_flags, uint32_t *flags);

#endif
