/*
 * A filesystem as a tree in memory: what a simulated one must look like.
 *
 * A model is changed by operations (operation.h), copied, read out of a filesystem, and compared. Objects have numbers
 * of their own; the root is number 0.
 */
#ifndef KILN_TESTS_SIM_MODEL_H
#define KILN_TESTS_SIM_MODEL_H

#include "base/strbuf.h"
#include "kiln/kiln.h"

enum { MODEL_ROOT = 0 };
/* Attributes of the user's, the ACLs, as the system calls have them, and options of files. */
enum {
	MODEL_XATTRS_USER = 6,
	MODEL_XATTR_ACL_ACCESS = MODEL_XATTRS_USER,
	MODEL_XATTR_ACL_DEFAULT,
	MODEL_XATTR_DATA_CHECKSUM,
	MODEL_XATTR_COMPRESSION,
	MODEL_XATTR_BACKGROUND_COMPRESSION,
	MODEL_XATTR_DATA_REPLICAS,
	MODEL_XATTR_FOREGROUND_TARGET,
	MODEL_XATTR_BACKGROUND_TARGET,
	MODEL_XATTR_PROJECT,
	MODEL_XATTR_NOCOW,
	MODEL_XATTRS_MAX,
	MODEL_XATTR_OPTIONS = MODEL_XATTR_DATA_CHECKSUM /* the first of them */
};
enum { MODEL_XATTR_NAME_BYTES = 32 };
void model_xattr_name(unsigned xattr, char name[MODEL_XATTR_NAME_BYTES]);

struct model_entry {
	char *name;
	unsigned id;
};

struct model_xattr {
	char name[MODEL_XATTR_NAME_BYTES]; /* "" : none */
	uint8_t *value;
	size_t size;
};

struct model_object {
	bool exists;
	uint32_t mode, uid, gid, nlink;
	uint32_t rdev_major, rdev_minor;
	uint64_t size;
	uint8_t *data; /* regular files: contents; symlinks: target */
	size_t data_capacity;
	uint32_t flags;			      /* as in kiln_stat */
	bool has_mtime, has_atime, has_btime; /* it was set and nothing has changed it since */
	struct kiln_timespec mtime, atime, btime;
	unsigned parent; /* directories */
	struct model_entry *entries;
	size_t entries_nr, entries_capacity;
	struct model_xattr xattrs[MODEL_XATTRS_MAX];
	unsigned held;
	/* Of the filesystem it runs beside. */
	struct kiln_node node;
	uint64_t last_op;    /* the last operation that fsync of it promises */
	uint64_t content_op; /* ... and that changed its contents */
};

struct model {
	struct model_object *objects;
	size_t nr, capacity;
};

/*
 * What files may hold after a crash whose blocks are overwritten in place: of each byte, what it was in any of these
 * versions. Behind a version's size it was zero.
 */
struct model_version {
	unsigned id;
	uint64_t op_nr; /* the file was this after that operation */
	bool is_any;	/* it may hold anything */
	uint8_t *data;
	uint64_t size;
};
struct model_versions {
	struct model_version *v;
	size_t nr, capacity;
};
void model_version_add(struct model_versions *to, unsigned id, uint64_t op_nr, const struct model_object *o);
/* Forget those that @goes says. */
void model_versions_drop(struct model_versions *of, bool (*goes)(void *ctx, const struct model_version *v), void *ctx);
void model_versions_free(struct model_versions *of);
bool model_versions_allow(const struct model_versions *versions, unsigned id, const struct model_object *got);

void model_free(struct model *m);
/* A copy that shares nothing. */
void model_copy(struct model *to, const struct model *from);

unsigned model_object_new(struct model *m, uint32_t mode);
struct model_entry *model_entry_find(struct model *m, unsigned dir, const char *name);
void model_entry_add(struct model *m, unsigned dir, const char *name, unsigned id);
void model_entry_remove(struct model *m, unsigned dir, const char *name);
/* One name less; it is gone when that was the last and nobody holds it. */
void model_object_drop(struct model *m, unsigned id);
void model_object_free(struct model *m, unsigned id);
void model_resize(struct model_object *o, uint64_t size);

/* Read all of a filesystem. 0, or an error with what couldn't be read. */
int model_read(struct model *m, kiln_fs *fs, struct strbuf *why);
/*
 * The share of one of @mates_nr tasks of what was read: the root directory with the names that begin with its letter,
 * the first task's with all that are no other's. -EPROTO with @why when the root's link count isn't that of all.
 */
int model_share(struct model *to, const struct model *read, char first_letter, unsigned mate, unsigned mates_nr,
		struct strbuf *why);
/*
 * Are the trees equal? Objects without names don't count. Else @why (may be NULL) says where they differ. @partial_id:
 * the contents of this object of @want may differ (UINT32_MAX: of none); its number in @got goes to *@partial_got.
 * @versions (NULL: none): contents of files are one of these, byte by byte, instead.
 */
bool model_equal(const struct model *got, const struct model *want, unsigned partial_id, unsigned *partial_got,
		 const struct model_versions *versions, struct strbuf *why);
/* Objects of @m become the ones of the filesystem that @read was read from; they are equal. Nobody holds any. */
void model_adopt_nodes(struct model *m, const struct model *read);
/* After that: files hold what they were read to hold. */
void model_adopt_contents(struct model *m, const struct model *read);

#endif
