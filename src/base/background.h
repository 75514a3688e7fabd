/*
 * Work in the background, and pausing it: tasks that do what nobody waits for do it a piece at a time, each between
 * background_enter() and background_leave(), so that somebody who wants quiet can have it.
 *
 * Pausing waits for a moment when no piece is being done; until then others are still begun, since one that is being
 * done may wait for them. It is for times when little goes on: under load that moment may be long in coming.
 *
 * Somebody may need what is done there all the same, space for instance. As long as he says so the pause is lifted: who
 * paused it can tell that something was begun meanwhile, and try again.
 */
#ifndef KILN_BASE_BACKGROUND_H
#define KILN_BASE_BACKGROUND_H

#include "base/job.h"
#include "base/sync.h"

struct background {
	struct mutex lock;
	struct waitq changed;
	unsigned inside, paused, needed; /* how many are */
	uint64_t begun_nr;		 /* pieces, ever */
};

void background_init(struct background *b);
void background_destroy(struct background *b);

/*
 * Around a piece of work: waits while it is paused. Then @job, whose work it is, does it @because. To be entered
 * without any lock. Switch points.
 */
void background_enter(struct background *b, struct job *job, const char *because);
void background_leave(struct background *b);

/* Several may pause it; it goes on when each has resumed it. Never from inside. Switch points. */
void background_pause(struct background *b);
void background_resume(struct background *b);
/* Around a wait for what is done there. Not switch points. */
void background_need(struct background *b);
void background_need_end(struct background *b);
/* Pieces that have been begun, ever. */
uint64_t background_begun_nr(struct background *b);

#endif
