/* The public calls that make many objects at once: thin, as api.c. What they do is in namespace/create_many.c. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "engine/api.h"
#include "namespace/create_many.h"

_Static_assert((unsigned)KILN_BATCH_OBJECTS_MAX >= (unsigned)DATA_BATCH_FILES_MAX, "a file is an object");
_Static_assert((unsigned)KILN_BATCH_BYTES == (unsigned)DATA_BATCH_BYTES, "one batch is the other");

struct kiln_batch {
	struct kiln_fs *fs;
	struct data_batch *data;
	size_t nr;
	struct kiln_new asked[KILN_BATCH_OBJECTS_MAX];
	struct new_object objects[KILN_BATCH_OBJECTS_MAX];
};

kiln_batch *kiln_batch_new(kiln_fs *fs)
{
	kiln_batch *batch = fs->is_writable ? calloc(1, sizeof(*batch)) : NULL;

	if (!batch)
		return NULL;
	batch->fs = fs;
	batch->data = data_batch_new(fs->data);
	if (!batch->data) {
		free(batch);
		return NULL;
	}
	return batch;
}

void kiln_batch_free(kiln_batch *batch)
{
	if (!batch)
		return;
	data_batch_free(batch->data);
	free(batch);
}

static struct inode_time time_of(struct kiln_timespec t) { return (struct inode_time){ .sec = t.sec, .nsec = t.nsec }; }

static struct new_object object_asked_for(const struct kiln_new *asked)
{
	return (struct new_object){
		.dir = object_of(asked->dir),
		.name = asked->name,
		.len = asked->len,
		.mode = asked->mode & S_IFMT ? asked->mode : asked->mode | S_IFREG,
		.uid = asked->uid,
		.gid = asked->gid,
		.rdev_major = asked->rdev_major,
		.rdev_minor = asked->rdev_minor,
		.atime = time_of(asked->atime),
		.mtime = time_of(asked->mtime),
	};
}

/* What the object is made of, where that is more than a name and attributes. */
static int material_add(kiln_batch *batch, const struct kiln_new *asked, struct new_object *o, void **contents)
{
	if (S_ISLNK(o->mode)) {
		o->mode = S_IFLNK | 0777;
		o->target = asked->target;
		o->target_len = strlen(asked->target);
		if (!o->target_len)
			return -ENOENT;
		return o->target_len > symlink_inline_bytes_max(batch->fs->super) ? -EFBIG : 0;
	}
	if (!S_ISREG(o->mode) || !asked->size)
		return 0;
	if (asked->size > KILN_BATCH_BYTES)
		return -EFBIG;
	o->has_contents = true;
	return data_batch_add(batch->data, (size_t)asked->size, contents, &o->contents);
}

int kiln_batch_add(kiln_batch *batch, const struct kiln_new *object, void **contents)
{
	struct new_object o = object_asked_for(object);
	int err = api_new_name_check(batch->fs, object->name, object->len);

	if (!err && batch->nr == KILN_BATCH_OBJECTS_MAX)
		err = -ENOBUFS;
	if (!err)
		err = material_add(batch, object, &o, contents);
	if (err)
		return error_to_errno(err);
	batch->asked[batch->nr] = *object;
	batch->objects[batch->nr++] = o;
	return 0;
}

void kiln_batch_drop_last(kiln_batch *batch)
{
	if (batch->objects[--batch->nr].has_contents)
		data_batch_drop_last(batch->data);
}

void kiln_batch_write(kiln_batch *batch, kiln_batch_fn fn, void *ctx)
{
	if (!batch->nr)
		return;
	/* If it fails, it fails for each file again, and then the right ones are told. */
	data_batch_write(batch->data);
	namespace_create_many(batch->fs->ns, batch->objects, batch->nr, batch->data, NULL);
	data_batch_reset(batch->data);
	size_t nr = batch->nr;
	batch->nr = 0;
	for (size_t i = 0; i < nr; i++)
		fn(ctx, &batch->asked[i], error_to_errno(batch->objects[i].err), node_of(batch->objects[i].created));
}
