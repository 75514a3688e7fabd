/*
 * Room that is coming (serve.c, "Files in use").
 *
 * unlink(2), and the close(2) of what has no name, return before the server hears that the kernel has forgotten the
 * object, so whoever asks for its room at once may come before it is deleted. Who is refused then waits for what lost
 * its last name lately, or was closed after that, and tries again. What isn't forgotten for longer is open: it is
 * waited for once, by whoever comes first, and not by others.
 */
#ifndef KILN_MOUNT_ROOM_H
#define KILN_MOUNT_ROOM_H

#include "base/sync.h"
#include "kiln/kiln.h"

enum { ROOM_LATELY_NR = 64 };

struct room {
	struct mutex lock; /* of all below */
	struct waitq changed;
	struct {
		struct kiln_node node;
		uint64_t since_ns; /* 0: none */
	} dead[ROOM_LATELY_NR];	   /* the last ones; not those that are released, or were waited for in vain */
	unsigned next;
	uint64_t released_nr; /* ever */
};

void room_init(struct room *r);
void room_destroy(struct room *r);

/* @node has no name any more, and the kernel may be about to forget it. */
void room_expect(struct room *r, struct kiln_node node);
/* The library has been told to delete it. */
void room_released(struct room *r, struct kiln_node node);

/* One call of the library that may be refused. */
struct room_try {
	uint64_t released_nr;
	bool is_second;
};
struct room_try room_try_begin(struct room *r);
/* It ended with @err. True: that was for want of room, and there is more now, or will be when the library waits for it.
 */
bool room_try_again(struct room *r, struct room_try *t, int err);

#endif
