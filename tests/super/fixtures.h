/*
 * Images made by upstream, for tests that read real filesystems. They live outside of the repository: the environment
 * variable KILN_FIXTURES names their folder, else ../shared/fixtures beside the repository is tried. Where they aren't,
 * tests say so and skip.
 */
#ifndef KILN_TESTS_SUPER_FIXTURES_H
#define KILN_TESTS_SUPER_FIXTURES_H

#include <stddef.h>
#include <stdio.h>

enum { FIXTURE_DEVS_MAX = 8 };

struct fixture {
	char dir[256]; /* temporary */
	char *paths[FIXTURE_DEVS_MAX];
	size_t nr;
};

/* Skips the running test, with the reason, when there are no fixtures. */
void fixtures_require(void);
/* Names of all plain images; free each and the array. */
char **fixture_names(size_t *nr);
/*
 * Unpack an image ("v1.4-default") or a damaged variant ("corrupt/..."), to be read: tests share the good ones. Fails
 * the test if that doesn't work.
 */
void fixture_unpack(struct fixture *f, const char *name);
void fixture_remove(struct fixture *f);
/* Open a file that comes with an image ("v1.4-unclean", ".journal.txt"); NULL when there is none. */
FILE *fixture_text(const char *name, const char *suffix);

#endif
