/* Safe names, paths, and objects met before. See tree.h. */
#include "tool/tree.h"

#include <errno.h>
#include <string.h>

#include "base/array.h"
#include "base/clock.h"

/* --- names and paths --- */

bool tree_add_safe_name(struct strbuf *out, const char *name)
{
	bool is_dots = !strcmp(name, ".") || !strcmp(name, "..");

	if (!*name) {
		strbuf_add(out, "\\x00");
		return true;
	}
	if (!is_dots && !strchr(name, '/')) {
		strbuf_add(out, name);
		return false;
	}
	for (const char *p = name; *p; p++) {
		if (*p == '/' || (is_dots && p == name))
			strbuf_printf(out, "\\x%02x", *p);
		else
			strbuf_add_char(out, *p);
	}
	return true;
}

int tree_path_init(struct tree_path *p, const char *top)
{
	*p = (struct tree_path){ .text = strbuf_growing() };
	strbuf_add(&p->text, top);
	return p->text.truncated ? -ENOMEM : 0;
}

void tree_path_free(struct tree_path *p)
{
	strbuf_free(&p->text);
	free(p->ends);
	*p = (struct tree_path){ 0 };
}

static void path_cut(struct tree_path *p, size_t len)
{
	p->text.len = len;
	if (p->text.text)
		p->text.text[len] = 0;
}

int tree_path_set(struct tree_path *p, unsigned depth, const char *name)
{
	if (!depth)
		return 0;
	path_cut(p, p->ends[depth - 1]);
	if (p->text.len)
		strbuf_add_char(&p->text, '/');
	bool is_changed = tree_add_safe_name(&p->text, name);
	return p->text.truncated ? -ENOMEM : is_changed;
}

int tree_path_open(struct tree_path *p)
{
	if (array_grow(&p->ends, &p->capacity, p->depth + 1, sizeof(p->ends[0])))
		return -ENOMEM;
	p->ends[p->depth++] = p->text.len;
	return 0;
}

void tree_path_to_open(struct tree_path *p) { path_cut(p, p->ends[p->depth - 1]); }

void tree_path_close(struct tree_path *p)
{
	tree_path_to_open(p);
	p->depth--;
}

bool tree_error_is_inside(const struct tree_path *p, const struct kiln_walk_entry *e) { return e->depth < p->depth; }

const char *tree_basename(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

/* --- objects met before --- */

enum { DIRS_REMEMBERED = 1 << 16, BUCKETS_FIRST = 1 << 8 };

struct link {
	struct link *next;
	struct kiln_node node;
	uint32_t names_left;
	char path[];
};

struct tree_links {
	uint64_t hash_key; /* random: a disk can't choose what collides */
	size_t bytes, bytes_max;
	struct link **buckets;
	size_t bucket_nr, link_nr;
	/* Each directory has one slot and pushes out what was there before: those met over and over stay. */
	struct kiln_node dirs[DIRS_REMEMBERED];
};

static uint64_t node_hash(const struct tree_links *l, struct kiln_node n)
{
	uint64_t h = (n.ino ^ l->hash_key) * 0x9e3779b97f4a7c15;

	h = (h ^ h >> 32 ^ n.subvol) * 0xd6e8feb86659fd93;
	return h ^ h >> 32;
}

static bool node_eq(struct kiln_node a, struct kiln_node b) { return a.ino == b.ino && a.subvol == b.subvol; }

struct tree_links *tree_links_new(size_t bytes_max)
{
	struct tree_links *l = calloc(1, sizeof(*l));

	if (!l)
		return NULL;
	l->buckets = calloc(BUCKETS_FIRST, sizeof(l->buckets[0]));
	if (!l->buckets) {
		free(l);
		return NULL;
	}
	l->bucket_nr = BUCKETS_FIRST;
	l->bytes_max = bytes_max;
	l->hash_key = random_u64() | 1;
	return l;
}

void tree_links_free(struct tree_links *l)
{
	if (!l)
		return;
	for (size_t i = 0; i < l->bucket_nr; i++) {
		for (struct link *e = l->buckets[i], *next; e; e = next) {
			next = e->next;
			free(e);
		}
	}
	free(l->buckets);
	free(l);
}

/* Twice the buckets; where there is no memory for them the chains get longer. */
static void links_rehash(struct tree_links *l)
{
	size_t nr = l->bucket_nr * 2;
	struct link **buckets = calloc(nr, sizeof(buckets[0]));

	if (!buckets)
		return;
	for (size_t i = 0; i < l->bucket_nr; i++) {
		for (struct link *e = l->buckets[i], *next; e; e = next) {
			struct link **to = &buckets[node_hash(l, e->node) & (nr - 1)];

			next = e->next;
			e->next = *to;
			*to = e;
		}
	}
	free(l->buckets);
	l->buckets = buckets;
	l->bucket_nr = nr;
}

static size_t link_bytes(const char *path) { return sizeof(struct link) + strlen(path) + 1; }

int tree_links_add(struct tree_links *l, const struct kiln_stat *st, const char *path)
{
	size_t bytes = link_bytes(path);

	if (l->bytes + bytes > l->bytes_max)
		return 0;
	if (l->link_nr >= l->bucket_nr)
		links_rehash(l);
	struct link *e = malloc(bytes);
	if (!e)
		return -ENOMEM;
	struct link **bucket = &l->buckets[node_hash(l, st->node) & (l->bucket_nr - 1)];
	e->next = *bucket;
	e->node = st->node;
	e->names_left = st->nlink - 1;
	strcpy(e->path, path);
	*bucket = e;
	l->link_nr++;
	l->bytes += bytes;
	return 0;
}

/* Where the object hangs in its chain, or the chain's end. */
static struct link **link_find(struct tree_links *l, struct kiln_node node)
{
	struct link **at = &l->buckets[node_hash(l, node) & (l->bucket_nr - 1)];

	while (*at && !node_eq((*at)->node, node))
		at = &(*at)->next;
	return at;
}

static void link_drop(struct tree_links *l, struct link **at)
{
	struct link *e = *at;

	*at = e->next;
	l->bytes -= link_bytes(e->path);
	l->link_nr--;
	free(e);
}

bool tree_links_known(struct tree_links *l, struct kiln_node node) { return *link_find(l, node); }

bool tree_links_take(struct tree_links *l, struct kiln_node node, struct strbuf *first)
{
	struct link **at = link_find(l, node);

	if (!*at)
		return false;
	strbuf_reset(first);
	strbuf_add(first, (*at)->path);
	if (!--(*at)->names_left)
		link_drop(l, at);
	return !first->truncated;
}

void tree_links_forget(struct tree_links *l, struct kiln_node node)
{
	struct link **at = link_find(l, node);

	if (*at)
		link_drop(l, at);
}

bool tree_links_dir_again(struct tree_links *l, struct kiln_node dir)
{
	struct kiln_node *slot = &l->dirs[node_hash(l, dir) % DIRS_REMEMBERED];

	if (slot->subvol && node_eq(*slot, dir))
		return true;
	*slot = dir;
	return false;
}

void tree_links_dirs_reset(struct tree_links *l) { memset(l->dirs, 0, sizeof(l->dirs)); }
