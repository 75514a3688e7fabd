/* A filesystem as a tree in memory. See model.h. */
#include "model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/array.h"
#include "base/util.h"

/* --- life --- */

static void *must(void *p)
{
	if (!p)
		abort();
	return p;
}

void model_object_free(struct model *m, unsigned id)
{
	struct model_object *o = &m->objects[id];

	for (size_t i = 0; i < o->entries_nr; i++)
		free(o->entries[i].name);
	for (unsigned i = 0; i < MODEL_XATTRS_MAX; i++)
		free(o->xattrs[i].value);
	free(o->entries);
	free(o->data);
	*o = (struct model_object){ 0 };
}

void model_free(struct model *m)
{
	for (unsigned i = 0; i < m->nr; i++)
		model_object_free(m, i);
	free(m->objects);
	*m = (struct model){ 0 };
}

static void *copy_bytes(const void *from, size_t bytes)
{
	return bytes ? memcpy(must(malloc(bytes)), from, bytes) : NULL;
}

void model_copy(struct model *to, const struct model *from)
{
	to->nr = to->capacity = from->nr;
	to->objects = copy_bytes(from->objects, from->nr * sizeof(*from->objects));
	for (size_t i = 0; i < to->nr; i++) {
		struct model_object *o = &to->objects[i];

		o->data = copy_bytes(o->data, o->data ? o->size : 0);
		o->data_capacity = o->data ? o->size : 0;
		o->entries = copy_bytes(o->entries, o->entries_nr * sizeof(*o->entries));
		o->entries_capacity = o->entries_nr;
		for (size_t k = 0; k < o->entries_nr; k++)
			o->entries[k].name = must(strdup(o->entries[k].name));
		for (size_t k = 0; k < MODEL_XATTRS_MAX; k++)
			o->xattrs[k].value = copy_bytes(o->xattrs[k].value, o->xattrs[k].size);
	}
}

/* --- objects --- */

unsigned model_object_new(struct model *m, uint32_t mode)
{
	unsigned id = 0;

	while (id < m->nr && m->objects[id].exists)
		id++;
	if (id == m->nr) {
		if (array_grow(&m->objects, &m->capacity, m->nr + 1, sizeof(*m->objects)))
			abort();
		m->nr++;
	}
	m->objects[id] = (struct model_object){ .exists = true, .mode = mode, .nlink = S_ISDIR(mode) ? 2 : 1 };
	return id;
}

void model_xattr_name(unsigned xattr, char name[MODEL_XATTR_NAME_BYTES])
{
	static const char *const options[] = { "data_checksum",
					       "compression",
					       "background_compression",
					       "data_replicas",
					       "foreground_target",
					       "background_target",
					       "project",
					       "nocow" };

	if (xattr < MODEL_XATTRS_USER)
		snprintf(name, MODEL_XATTR_NAME_BYTES, "user.attribute%u", xattr);
	else if (xattr >= MODEL_XATTR_OPTIONS)
		snprintf(name, MODEL_XATTR_NAME_BYTES, "bcachefs.%s", options[xattr - MODEL_XATTR_OPTIONS]);
	else
		snprintf(name, MODEL_XATTR_NAME_BYTES, "system.posix_acl_%s",
			 xattr == MODEL_XATTR_ACL_ACCESS ? "access" : "default");
}

struct model_entry *model_entry_find(struct model *m, unsigned dir, const char *name)
{
	struct model_object *d = &m->objects[dir];

	for (size_t i = 0; i < d->entries_nr; i++)
		if (!strcmp(d->entries[i].name, name))
			return &d->entries[i];
	return NULL;
}

void model_entry_add(struct model *m, unsigned dir, const char *name, unsigned id)
{
	struct model_object *d = &m->objects[dir];

	if (array_grow(&d->entries, &d->entries_capacity, d->entries_nr + 1, sizeof(*d->entries)))
		abort();
	d->entries[d->entries_nr++] = (struct model_entry){ must(strdup(name)), id };
	d->has_mtime = false;
	if (S_ISDIR(m->objects[id].mode)) {
		d->nlink++;
		m->objects[id].parent = dir;
	}
}

void model_entry_remove(struct model *m, unsigned dir, const char *name)
{
	struct model_object *d = &m->objects[dir];
	struct model_entry *e = model_entry_find(m, dir, name);

	if (S_ISDIR(m->objects[e->id].mode))
		d->nlink--;
	free(e->name);
	*e = d->entries[--d->entries_nr];
	d->has_mtime = false;
}

void model_object_drop(struct model *m, unsigned id)
{
	struct model_object *o = &m->objects[id];

	if (S_ISDIR(o->mode))
		o->nlink = 0;
	else
		o->nlink--;
	if (!o->nlink && !o->held)
		model_object_free(m, id);
}

void model_resize(struct model_object *o, uint64_t size)
{
	if (size > o->data_capacity) {
		o->data_capacity = max(size, o->data_capacity * 2);
		o->data = must(realloc(o->data, o->data_capacity));
	}
	if (size > o->size)
		memset(o->data + o->size, 0, size - o->size);
	o->size = size;
}

/* --- reading a filesystem --- */

struct reading {
	struct model *m;
	kiln_fs *fs;
	struct strbuf *why;
	unsigned *stack; /* directories whose entries are to be read */
	size_t stack_nr, stack_capacity;
	struct listed {
		struct kiln_node node;
		unsigned type;
		char *name;
	} * listed; /* of one directory */
	size_t listed_nr, listed_capacity;
	unsigned dir;
	int err;
};

static int failed(struct reading *r, int err, const char *what, struct kiln_node node)
{
	strbuf_printf(r->why, "%s of inode %llu: %s", what, (unsigned long long)node.ino, strerror(-err));
	return r->err = err;
}

static int read_contents(struct reading *r, struct model_object *o)
{
	ssize_t n;

	o->data_capacity = o->size;
	o->data = o->size ? must(malloc(o->size)) : NULL;
	if (S_ISLNK(o->mode))
		n = kiln_readlink(r->fs, o->node, (char *)o->data, o->size);
	else
		n = o->size ? kiln_read(r->fs, o->node, 0, o->data, o->size) : 0;
	return n < 0			? failed(r, (int)n, "contents", o->node)
	       : (uint64_t)n != o->size ? failed(r, -EIO, S_ISLNK(o->mode) ? "short target" : "short contents", o->node)
					: 0;
}

static int read_xattr(struct reading *r, struct model_object *o, const char *name, struct model_xattr *x)
{
	ssize_t size = kiln_getxattr(r->fs, o->node, name, NULL, 0);

	if (size < 0)
		return failed(r, (int)size, "size of an attribute", o->node);
	memcpy(x->name, name, strlen(name) + 1);
	x->size = (size_t)size;
	x->value = must(malloc(x->size + 1));
	size = kiln_getxattr(r->fs, o->node, name, x->value, x->size);
	return size != (ssize_t)x->size && x->size ? failed(r, size < 0 ? (int)size : -EIO, "an attribute", o->node)
						   : 0;
}

/* Options of files, which no list has, and then all others: in any slots of what is read. */
static int read_xattrs(struct reading *r, struct model_object *o)
{
	char list[512], option[MODEL_XATTR_NAME_BYTES];
	ssize_t n = kiln_listxattr(r->fs, o->node, list, sizeof(list));
	unsigned nr = 0;
	int err = 0;

	if (n < 0)
		return failed(r, (int)n, "list of attributes", o->node);
	for (unsigned i = MODEL_XATTR_OPTIONS; i < MODEL_XATTRS_MAX && S_ISREG(o->mode) && !err; i++) {
		model_xattr_name(i, option);
		if (kiln_getxattr(r->fs, o->node, option, NULL, 0) != -ENODATA)
			err = read_xattr(r, o, option, &o->xattrs[nr++]);
	}
	for (char *name = list; name < list + n && !err; name += strlen(name) + 1) {
		if (nr == MODEL_XATTRS_MAX || strlen(name) >= sizeof(o->xattrs[0].name))
			return failed(r, -EOVERFLOW, "unknown attribute", o->node);
		err = read_xattr(r, o, name, &o->xattrs[nr++]);
	}
	return err;
}

static unsigned find_node(struct model *m, struct kiln_node node)
{
	unsigned id = 0;

	while (id < m->nr && (m->objects[id].node.ino != node.ino || m->objects[id].node.subvol != node.subvol))
		id++;
	return id;
}

static int read_object(struct reading *r, struct kiln_node node, unsigned *id)
{
	struct kiln_stat st;
	int err = kiln_stat(r->fs, node, &st);

	if (err)
		return failed(r, err, "attributes", node);
	*id = model_object_new(r->m, st.mode);
	struct model_object *o = &r->m->objects[*id];
	o->node = node;
	o->uid = st.uid;
	o->gid = st.gid;
	o->nlink = st.nlink;
	o->rdev_major = st.rdev_major;
	o->rdev_minor = st.rdev_minor;
	o->flags = st.flags;
	o->has_mtime = o->has_atime = o->has_btime = true;
	o->mtime = st.mtime;
	o->atime = st.atime;
	o->btime = st.btime;
	if (S_ISREG(o->mode) || S_ISLNK(o->mode)) {
		o->size = st.size;
		err = read_contents(r, o);
	}
	if (!err)
		err = read_xattrs(r, o);
	if (!err && S_ISDIR(o->mode)) {
		if (array_grow(&r->stack, &r->stack_capacity, r->stack_nr + 1, sizeof(*r->stack)))
			abort();
		r->stack[r->stack_nr++] = *id;
	}
	return err;
}

/* Callbacks can't call the filesystem. */
static int list_entry(void *ctx, const struct kiln_dirent *entry)
{
	struct reading *r = ctx;

	if (!strcmp(entry->name, ".") || !strcmp(entry->name, ".."))
		return 0;
	if (array_grow(&r->listed, &r->listed_capacity, r->listed_nr + 1, sizeof(*r->listed)))
		abort();
	r->listed[r->listed_nr++] = (struct listed){ entry->node, entry->type, must(strdup(entry->name)) };
	return 0;
}

static int read_entry(struct reading *r, const struct listed *entry)
{
	unsigned id = find_node(r->m, entry->node);
	struct kiln_node dir = r->m->objects[r->dir].node;
	struct kiln_stat st;

	if (model_entry_find(r->m, r->dir, entry->name))
		return failed(r, -EEXIST, "entry that is listed twice", entry->node);
	if (id == r->m->nr && read_object(r, entry->node, &id))
		return r->err;
	if (entry->type != (r->m->objects[id].mode & S_IFMT) >> 12)
		return failed(r, -EIO, "wrong type in the entry", entry->node);
	int err = kiln_lookup(r->fs, dir, entry->name, strlen(entry->name), &st);
	if (err || st.node.ino != entry->node.ino)
		return failed(r, err ? err : -EIO, "lookup", entry->node);
	/* What is stored is compared, not what follows from the entries. */
	struct model_object before = r->m->objects[r->dir];
	model_entry_add(r->m, r->dir, entry->name, id);
	r->m->objects[r->dir].nlink = before.nlink;
	r->m->objects[r->dir].has_mtime = before.has_mtime;
	return 0;
}

static int read_entries(struct reading *r)
{
	struct kiln_node node = r->m->objects[r->dir].node;
	int err = kiln_readdir(r->fs, node, 0, list_entry, r, NULL, NULL);

	if (err)
		failed(r, err, "entries", node);
	for (size_t i = 0; i < r->listed_nr; i++) {
		if (!err)
			err = read_entry(r, &r->listed[i]);
		free(r->listed[i].name);
	}
	r->listed_nr = 0;
	return err;
}

int model_read(struct model *m, kiln_fs *fs, struct strbuf *why)
{
	struct reading r = { .m = m, .fs = fs, .why = why };
	unsigned root;

	*m = (struct model){ 0 };
	int err = read_object(&r, kiln_root(fs), &root);
	while (!err && r.stack_nr) {
		r.dir = r.stack[--r.stack_nr];
		err = read_entries(&r);
	}
	free(r.stack);
	free(r.listed);
	return err;
}

/* --- shares --- */

int model_share(struct model *to, const struct model *read, char first_letter, unsigned mate, unsigned mates_nr,
		struct strbuf *why)
{
	struct model_object *root;
	uint32_t all = 2, own = 2;
	size_t kept = 0;

	model_copy(to, read);
	root = &to->objects[MODEL_ROOT];
	for (size_t i = 0; i < root->entries_nr; i++) {
		struct model_entry *e = &root->entries[i];
		unsigned letter = (unsigned)(e->name[0] - first_letter);
		bool is_own = mate ? letter == mate : letter == 0 || letter >= mates_nr;
		bool is_dir = S_ISDIR(to->objects[e->id].mode);

		all += is_dir;
		own += is_own && is_dir;
		if (is_own)
			root->entries[kept++] = *e;
		else
			free(e->name);
	}
	root->entries_nr = kept;
	if (root->nlink != all) {
		strbuf_printf(why, "/: nlink is %u, should be %u", root->nlink, all);
		return -EPROTO;
	}
	root->nlink = own;
	root->has_mtime = root->has_mtime && mates_nr == 1;
	/* What can't be reached any more is the others'. */
	model_adopt_nodes(to, read);
	if (!mate)
		return 0;
	/* The directory itself is the first one's. */
	root->mode = S_IFDIR;
	root->uid = root->gid = root->flags = 0;
	root->has_atime = root->has_btime = false;
	for (unsigned i = 0; i < MODEL_XATTRS_MAX; i++) {
		free(root->xattrs[i].value);
		root->xattrs[i] = (struct model_xattr){ 0 };
	}
	return 0;
}

/* --- versions --- */

void model_version_add(struct model_versions *to, unsigned id, uint64_t op_nr, const struct model_object *o)
{
	if (array_grow(&to->v, &to->capacity, to->nr + 1, sizeof(*to->v)))
		abort();
	to->v[to->nr++] = (struct model_version){ .id = id,
						  .op_nr = op_nr,
						  .is_any = !o,
						  .data = o ? copy_bytes(o->data, o->size) : NULL,
						  .size = o ? o->size : 0 };
}

void model_versions_drop(struct model_versions *of, bool (*goes)(void *ctx, const struct model_version *v), void *ctx)
{
	size_t kept = 0;

	for (size_t i = 0; i < of->nr; i++) {
		if (goes(ctx, &of->v[i]))
			free(of->v[i].data);
		else
			of->v[kept++] = of->v[i];
	}
	of->nr = kept;
}

void model_versions_free(struct model_versions *of)
{
	for (size_t i = 0; i < of->nr; i++)
		free(of->v[i].data);
	free(of->v);
	*of = (struct model_versions){ 0 };
}

static bool byte_is_allowed(const struct model_versions *versions, unsigned id, uint64_t at, uint8_t byte)
{
	for (size_t i = versions->nr; i--;) {
		const struct model_version *v = &versions->v[i];

		if (v->id == id && (v->is_any || byte == (at < v->size ? v->data[at] : 0)))
			return true;
	}
	return false;
}

bool model_versions_allow(const struct model_versions *versions, unsigned id, const struct model_object *got)
{
	for (uint64_t i = 0; i < got->size; i++)
		if (!byte_is_allowed(versions, id, i, got->data[i]))
			return false;
	return true;
}

/* --- comparing --- */

struct comparing {
	const struct model *got, *want;
	const struct model_versions *versions;
	unsigned partial, *partial_got;
	unsigned *got_of; /* by number in @want; UINT32_MAX: not met yet */
	struct strbuf *why;
};

static bool differ(struct comparing *c, const char *path, const char *what, uint64_t got, uint64_t want)
{
	if (c->why)
		strbuf_printf(c->why, "%s: %s is %llu, should be %llu", path[0] ? path : "/", what,
			      (unsigned long long)got, (unsigned long long)want);
	return false;
}

static bool contents_equal(struct comparing *c, const char *path, const struct model_object *got,
			   const struct model_object *want)
{
	bool has_versions = c->versions && S_ISREG(want->mode);
	unsigned id = (unsigned)(want - c->want->objects);

	if (got->size != want->size)
		return differ(c, path, "size", got->size, want->size);
	for (uint64_t i = 0; i < got->size; i++)
		if (has_versions ? !byte_is_allowed(c->versions, id, i, got->data[i]) : got->data[i] != want->data[i]) {
			char what[64];

			snprintf(what, sizeof(what), "byte %llu of %llu", (unsigned long long)i,
				 (unsigned long long)got->size);
			return differ(c, path, what, got->data[i], want->data[i]);
		}
	return true;
}

static const struct model_xattr *xattr_find(const struct model_object *o, const char *name)
{
	for (unsigned i = 0; i < MODEL_XATTRS_MAX; i++)
		if (!strcmp(o->xattrs[i].name, name))
			return &o->xattrs[i];
	return NULL;
}

static bool xattrs_equal(struct comparing *c, const char *path, const struct model_object *a,
			 const struct model_object *b)
{
	for (unsigned i = 0; i < MODEL_XATTRS_MAX; i++) {
		const struct model_xattr *x = &a->xattrs[i];
		const struct model_xattr *y = x->name[0] ? xattr_find(b, x->name) : NULL;

		if (x->name[0] && (!y || x->size != y->size || (x->size && memcmp(x->value, y->value, x->size))))
			return differ(c, path, x->name, x->size, y ? y->size : 0);
	}
	return true;
}

static bool times_equal(struct kiln_timespec a, struct kiln_timespec b) { return a.sec == b.sec && a.nsec == b.nsec; }

static bool attributes_equal(struct comparing *c, const char *path, const struct model_object *got,
			     const struct model_object *want, bool is_partial)
{
	if (got->mode != want->mode)
		return differ(c, path, "mode", got->mode, want->mode);
	if (got->uid != want->uid || got->gid != want->gid)
		return differ(c, path, "owner", got->uid, want->uid);
	if (got->nlink != want->nlink)
		return differ(c, path, "nlink", got->nlink, want->nlink);
	if (got->rdev_major != want->rdev_major || got->rdev_minor != want->rdev_minor)
		return differ(c, path, "device number", got->rdev_minor, want->rdev_minor);
	if (got->flags != want->flags)
		return differ(c, path, "flags", got->flags, want->flags);
	if (!is_partial && want->has_mtime && !times_equal(got->mtime, want->mtime))
		return differ(c, path, "mtime", (uint64_t)got->mtime.sec, (uint64_t)want->mtime.sec);
	if (want->has_atime && !times_equal(got->atime, want->atime))
		return differ(c, path, "atime", (uint64_t)got->atime.sec, (uint64_t)want->atime.sec);
	if (want->has_btime && !times_equal(got->btime, want->btime))
		return differ(c, path, "btime", (uint64_t)got->btime.sec, (uint64_t)want->btime.sec);
	if (!is_partial && got->data != want->data && !contents_equal(c, path, got, want))
		return false;
	return xattrs_equal(c, path, got, want) && xattrs_equal(c, path, want, got);
}

static bool objects_equal(struct comparing *c, const char *path, unsigned got, unsigned want);

static bool entries_equal(struct comparing *c, const char *path, const struct model_object *got,
			  const struct model_object *want)
{
	char below[4096];

	for (size_t i = 0; i < want->entries_nr; i++) {
		const struct model_entry *e = NULL;

		snprintf(below, sizeof(below), "%s/%s", path, want->entries[i].name);
		for (size_t k = 0; k < got->entries_nr && !e; k++)
			if (!strcmp(got->entries[k].name, want->entries[i].name))
				e = &got->entries[k];
		if (!e)
			return differ(c, below, "existence", 0, 1);
		if (!objects_equal(c, below, e->id, want->entries[i].id))
			return false;
	}
	if (got->entries_nr == want->entries_nr)
		return true;
	for (size_t k = 0; k < got->entries_nr; k++) {
		size_t i = 0;

		while (i < want->entries_nr && strcmp(got->entries[k].name, want->entries[i].name))
			i++;
		snprintf(below, sizeof(below), "%s/%s", path, got->entries[k].name);
		if (i == want->entries_nr)
			return differ(c, below, "existence", 1, 0);
	}
	return differ(c, path, "number of entries", got->entries_nr, want->entries_nr);
}

static bool objects_equal(struct comparing *c, const char *path, unsigned got, unsigned want)
{
	const struct model_object *g = &c->got->objects[got], *w = &c->want->objects[want];

	if (c->got_of[want] != UINT32_MAX)
		return c->got_of[want] == got || differ(c, path, "identity", got, c->got_of[want]);
	c->got_of[want] = got;
	if (want == c->partial)
		*c->partial_got = got;
	if (!attributes_equal(c, path, g, w, want == c->partial))
		return false;
	return !S_ISDIR(w->mode) || entries_equal(c, path, g, w);
}

bool model_equal(const struct model *got, const struct model *want, unsigned partial, unsigned *partial_got,
		 const struct model_versions *versions, struct strbuf *why)
{
	struct comparing c = { .got = got,
			       .want = want,
			       .versions = versions,
			       .partial = partial,
			       .partial_got = partial_got,
			       .why = why };

	c.got_of = must(malloc(want->nr * sizeof(*c.got_of)));
	memset(c.got_of, 0xff, want->nr * sizeof(*c.got_of));
	bool is_equal = objects_equal(&c, "", MODEL_ROOT, MODEL_ROOT);
	free(c.got_of);
	return is_equal;
}

/* --- after a reopen --- */

static void adopt(struct model *m, const struct model *read, unsigned to, unsigned from, bool *is_met)
{
	struct model_object *o = &m->objects[to];
	const struct model_object *r = &read->objects[from];

	is_met[to] = true;
	o->node = r->node;
	for (size_t i = 0; i < o->entries_nr; i++)
		for (size_t k = 0; k < r->entries_nr; k++)
			if (!strcmp(o->entries[i].name, r->entries[k].name))
				adopt(m, read, o->entries[i].id, r->entries[k].id, is_met);
}

void model_adopt_nodes(struct model *m, const struct model *read)
{
	bool *is_met = must(calloc(m->nr, sizeof(*is_met)));

	adopt(m, read, MODEL_ROOT, MODEL_ROOT, is_met);
	for (unsigned i = 0; i < m->nr; i++) {
		m->objects[i].held = 0;
		if (m->objects[i].exists && !is_met[i])
			model_object_free(m, i);
	}
	free(is_met);
}

void model_adopt_contents(struct model *m, const struct model *read)
{
	for (unsigned i = 0; i < m->nr; i++) {
		struct model_object *o = &m->objects[i];
		const struct model_object *r = NULL;

		for (unsigned k = 0; o->exists && S_ISREG(o->mode) && k < read->nr && !r; k++)
			if (read->objects[k].exists && read->objects[k].node.ino == o->node.ino &&
			    read->objects[k].node.subvol == o->node.subvol)
				r = &read->objects[k];
		if (!r)
			continue;
		model_resize(o, r->size);
		if (r->size)
			memcpy(o->data, r->data, r->size);
	}
}
