/* What the parts of extraction share: extract.c (the walk, directories, links) and extract_item.c (single objects). */
#ifndef KILN_TOOL_EXTRACT_PRIVATE_H
#define KILN_TOOL_EXTRACT_PRIVATE_H

#include "base/strbuf.h"
#include "base/sync.h"
#include "tool/extract.h"
#include "tool/inorder.h"
#include "tool/pump.h"
#include "tool/tree.h"

enum {
	ITEMS_MAX = 32,
	ITEM_BUF_BYTES = 256 << 10, /* contents up to this size are read at once, larger ones through the pump */
};

/* What to do with an object. */
enum item_step {
	STEP_MAKE,	 /* make it, in parallel with others */
	STEP_MAKE_LARGE, /* make it when its turn comes: a large file */
	STEP_LINK,	 /* another name of something made before */
	STEP_LEAVE,	 /* a directory that is complete: its metadata */
};

/* One object on its way out. A job of the ring; used again and again. */
struct item {
	enum item_step step;
	struct kiln_stat st;
	struct strbuf path; /* below the destination; the last component is its name */
	int dir_fd;	    /* the directory it is made in; open until this is finished */
	bool dir_is_ours;   /* we made that directory: what exists in it is a duplicate */
	bool dir_gives_acl; /* that directory has a default ACL, which new entries inherit */
	bool is_made;
	int own_fd;	     /* STEP_LEAVE: the directory; closed when finished */
	bool keeps_metadata; /* STEP_LEAVE: existed before, and stays as it is */
	char *buf;	     /* ITEM_BUF_BYTES */
	/* Contents. */
	int fd;
	uint64_t written_end;
	int write_error;
	struct pump_damage *read_damage; /* in what was read last */
	size_t read_damage_nr, read_damage_capacity;
	struct pump_damage damage; /* the last range, which may go on */
	uint64_t damaged_bytes;
};

/* A directory that the walk is in. [0] is the destination. */
struct frame {
	int fd; /* -1: closed, as many are open; reopened from below */
	bool is_ours, gives_acl;
	struct kiln_stat st;
	uint64_t dev, ino; /* of a closed one */
};

struct extract {
	kiln_fs *fs;
	struct extract_options o;
	struct tree_links *links;
	struct inorder *ring;
	struct pump *pump; /* once the first large file comes */
	struct item items[ITEMS_MAX];

	struct tree_path path;
	struct strbuf source; /* what path's first @top_len bytes are in the filesystem; no slash at the end */
	size_t top_len;
	struct frame *frames;
	size_t frame_nr, frame_capacity;

	struct mutex lock; /* over what follows, and around callbacks of reports */
	struct extract_counts counts;
	int fatal; /* nothing more can be written */
};

/* Tell about @path (below the destination). */
void extract_tell(struct extract *x, const char *path, enum extract_trouble trouble, int error, const char *fmt, ...)
	PRINTF_LIKE(5, 6);
void extract_tell_damage(struct extract *x, const char *path, const struct pump_damage *damage);
/* Count metadata that was left behind, and tell the first time. */
void extract_not_kept(struct extract *x, const char *path, enum extract_kept kept, int error);
/* Is there no point in going on: interrupted, or nothing more can be written? */
bool extract_is_stopped(struct extract *x);
/* Did the user ask to stop? */
static inline bool extract_is_interrupted(const struct extract *x)
{
	return __atomic_load_n(x->o.stop, __ATOMIC_RELAXED);
}

/*
 * Is there an entry in the way of @o's? -EEXIST after telling, or 0 when it is removed and another attempt makes sense.
 */
int item_make_room(struct extract *x, struct item *o);
/* Make anything but a directory, with contents and metadata. Tells what goes wrong; o->is_made says how it ended. */
void item_make(struct extract *x, struct item *o);
/* Metadata of the directory @o->own_fd. */
void item_finish_directory(struct extract *x, struct item *o);

#endif
