/*
 * Operations on a filesystem: drawn at random from what a model holds, run on the filesystem and on the model.
 *
 * An operation is complete in itself: applied to equal models it gives equal models, so the operations since some
 * moment can be run again on a copy of the model of that moment.
 */
#ifndef KILN_TESTS_SIM_OPERATION_H
#define KILN_TESTS_SIM_OPERATION_H

#include "base/clock.h"
#include "model.h"

enum operation_kind {
	OP_CREATE, /* any type */
	OP_SYMLINK,
	OP_UNNAMED, /* and hold it */
	OP_BATCH,   /* @count objects at once, with their contents; the result has a bit for each that was made */
	OP_LINK,
	OP_UNLINK,
	OP_RMDIR,
	OP_RENAME,
	OP_WRITE,
	OP_PUNCH,
	OP_TRUNCATE,
	OP_FALLOCATE, /* @flags: the mode; all but holes, which are OP_PUNCH */
	OP_COPY,      /* from @id2 at @offset2; @flags: KILN_COPY_SHARE */
	OP_SETATTR,
	OP_SETXATTR, /* @flags: enum kiln_xattr_flags */
	OP_SETOPTION,
	OP_SETACL,
	OP_REMOVEXATTR,
	OP_HOLD,
	OP_RELEASE,
	OP_FSYNC,
	OP_SYNC,
	OP_WAIT, /* for deletions */
	OP_READ,
	OP_LIST,
	OP_KIND_NR,
};

struct operation {
	enum operation_kind kind;
	unsigned id;	    /* what it is about; the new object of a creation is given the number the model has free */
	unsigned dir, dir2; /* where the name is; renames: where it goes */
	char name[256], name2[256];
	unsigned flags;
	unsigned count;
	uint32_t mode, umask, uid, gid, rdev_major, rdev_minor;
	unsigned fields, attr_flags;
	struct kiln_timespec mtime, atime, btime;
	uint64_t offset, len;
	unsigned id2;
	uint64_t offset2;
	uint64_t data_seed;
	unsigned xattr;
	/* Perhaps it changes nothing but data, in place: the journal then knows nothing of it. */
	bool may_be_unknown;
	/* What running it gave. */
	ssize_t result;
	unsigned new_id;
};

struct operation_limits {
	uint64_t files_max, file_bytes_max, total_bytes_max;
	unsigned weights[OP_KIND_NR];
	/*
	 * Of @mates_nr tasks whose models share the root directory and nothing else, this is number @mate: names in it
	 * begin with a letter of its own, and only the first changes the attributes of the directory itself.
	 */
	unsigned mate, mates_nr;
	bool is_nocow;
	/* What options of files may be: so that no file is worse off than the filesystem says. */
	bool has_data_checksums, has_targets;
	unsigned data_replicas_min, data_replicas_max;
	/* Up to here a file of a batch appears with its contents: they fit into one transaction. */
	uint64_t batch_bytes_max;
};
enum { OPERATION_MATE_LETTER = 'A', OPERATION_BATCH_MAX = 4 };
extern const struct operation_limits operation_limits_default;

/* Draw one that makes sense (most of the time) for @m. */
void operation_draw(struct operation *op, struct rng *rng, const struct model *m,
		    const struct operation_limits *limits);
/*
 * Run it on the filesystem, then, as far as it succeeded, on the model. 0, or -EPROTO with @why when the filesystem
 * answered something else than the model. -EIO, -EROFS and -ENOMEM go up as they are: then it is in doubt. -ENOSPC is
 * no failure, the operation just did nothing.
 */
int operation_run(struct operation *op, struct model *m, kiln_fs *fs, uint64_t op_nr, struct strbuf *why);
/* The same, but by @run, which does it somehow and gives the result. Of what it makes nothing is learned. */
typedef ssize_t (*operation_fn)(void *ctx, struct operation *op, struct model *m);
int operation_run_by(struct operation *op, struct model *m, operation_fn run, void *ctx, uint64_t op_nr,
		     struct strbuf *why);
/* For such: what is written (the caller's to free), the target of a symlink, an ACL, the value of an option. */
void *operation_bytes(const struct operation *op);
void operation_target(const struct operation *op, char target[1024]);
size_t operation_acl(const struct operation *op, uint8_t *value); /* of ACL_BYTES_MAX */
const char *operation_option(const struct operation *op);
/* Does it change what an existing file holds? */
bool operation_is_of_content(const struct operation *op);
/* Run it on a model, with the result that it had. */
void operation_apply(const struct operation *op, struct model *m, uint64_t op_nr);
/* An operation that is in doubt did happen: what is its result, on the model before it? */
ssize_t operation_expected(const struct operation *op, struct model *m);
/*
 * Is @got what the file's contents are when only a part of the operation was done? From the front, but partial blocks
 * are zeroed in steps of their own: both of a hole before what lies between, and that of a new size before it is set.
 */
bool operation_is_partial(const struct operation *op, uint32_t block_bytes, const struct model_object *got,
			  const struct model_object *before, const struct model_object *after);
/* What else may be there of a batch that was interrupted: some of its objects, numbered from 0. False: no more. */
bool operation_batch_part(const struct operation *op, struct model *m, unsigned nr, ssize_t *result);
void operation_to_text(const struct operation *op, struct strbuf *out);

#endif
