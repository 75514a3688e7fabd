/*
 * What get and tar share about a tree on its way out: safe names, the path of the object the walk is at, and which
 * hardlinked files and directories it has met before.
 */
#ifndef KILN_TOOL_TREE_H
#define KILN_TOOL_TREE_H

#include "base/strbuf.h"
#include "kiln/kiln.h"

/*
 * Append a name from the disk in a form that names an entry of the directory it is used in, and nothing else. What no
 * honest filesystem holds is written with \xNN instead: slashes, the first dot of "." and "..", and an empty name (as
 * \x00). Returns true if the name had to be changed.
 */
bool tree_add_safe_name(struct strbuf *out, const char *name);

/*
 * The path of the object a walk is at, of safe names. Only depths count, not the names in the walk's own path, which
 * may hold slashes.
 */
struct tree_path {
	struct strbuf text;
	size_t *ends;		/* length of the path at each depth of the open directories */
	size_t depth, capacity; /* open directories */
};

/* @top: the path at depth 0, "" for none. 0 or -ENOMEM. */
int tree_path_init(struct tree_path *p, const char *top);
void tree_path_free(struct tree_path *p);
/*
 * Set the path to @name at @depth, which is at most the number of open directories (a walk's depth is). Returns 1 if
 * the name had to be changed, 0, or -ENOMEM.
 */
int tree_path_set(struct tree_path *p, unsigned depth, const char *name);
/* The object the path is at is a directory whose entries follow. 0 or -ENOMEM. */
int tree_path_open(struct tree_path *p);
/* The innermost open directory is done (or has something to be said about it): the path is its path. */
void tree_path_close(struct tree_path *p);
void tree_path_to_open(struct tree_path *p);
/* Is this walk error about the innermost open directory itself, not about one of its entries? */
bool tree_error_is_inside(const struct tree_path *p, const struct kiln_walk_entry *e);
/* Last component of a safe path. */
const char *tree_basename(const char *path);

/*
 * Objects met before. Memory is bounded: names of at most TREE_LINK_BYTES_MAX bytes are remembered (after that, further
 * hardlinks become files of their own), and a fixed table of directories.
 */
enum { TREE_LINK_BYTES_MAX = 64 << 20 };
struct tree_links;
struct tree_links *tree_links_new(size_t bytes_max);
void tree_links_free(struct tree_links *l);
/*
 * Non-directories with several links; the others need not be asked about. _add: @st's object appears at @path for the
 * first time; 0 or -ENOMEM. _known: it is remembered. _take: it appears once more, and @first becomes the path of the
 * first time; false if it is not remembered (any more: it is dropped once it was taken as often as it has other names,
 * or by _forget).
 */
int tree_links_add(struct tree_links *l, const struct kiln_stat *st, const char *path);
bool tree_links_known(struct tree_links *l, struct kiln_node node);
bool tree_links_take(struct tree_links *l, struct kiln_node node, struct strbuf *first);
void tree_links_forget(struct tree_links *l, struct kiln_node node);
/*
 * A directory is entered: was it entered before? A directory has one name; on a damaged or hostile disk a few
 * directories with two names each can stand for a tree without end, though no path in it is a loop.
 */
bool tree_links_dir_again(struct tree_links *l, struct kiln_node dir);
/* Another walk begins. */
void tree_links_dirs_reset(struct tree_links *l);

#endif
