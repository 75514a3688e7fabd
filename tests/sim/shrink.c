/*
 * Fewer steps that fail in the same way: delta debugging over what the failing run did.
 *
 * A step is an operation of a task, or an episode as a whole. Leaving some out changes what the later ones meet, and
 * the schedule, so what is left may not fail any more; then others are tried. What fails is the same failure when it is
 * told in the same words, numbers aside.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "sim.h"

enum { SHRINK_SECONDS_MAX = 60, TRY_SECONDS_MAX = 30 };

bool is_kept(const struct arguments *args, struct step_id id)
{
	if (!args->keep)
		return true;
	for (size_t i = 0; i < args->keep_nr; i++) {
		const struct step_id *k = &args->keep[i];

		if (k->episode == id.episode && (id.nr == UINT32_MAX || (k->task == id.task && k->nr == id.nr)))
			return true;
	}
	return false;
}

/* The words of a failure, without numbers. */
static void words_of(const char *text, char words[128])
{
	size_t n = 0;

	for (; *text && n < 127; text++)
		if (!isdigit((unsigned char)*text))
			words[n++] = *text;
	words[n] = 0;
}

typedef int (*run_fn)(const struct arguments *args, uint64_t seed, struct totals *totals);

static bool fails_alike(const struct arguments *args, uint64_t seed, const struct step_id *steps, size_t nr,
			const char *words, struct totals *scratch, run_fn run)
{
	struct arguments fewer = *args;
	char got[128];
	int status = 0;

	fewer.keep = (struct step_id *)steps;
	fewer.keep_nr = nr;
	fewer.is_single = true;
	fewer.is_verbose = fewer.is_traced = false;
	fewer.may_shrink = false;
	scratch->failure[0] = 0;
	fflush(stdout);
	pid_t pid = fork();
	if (!pid) {
		if (!freopen("/dev/null", "w", stdout))
			_exit(0);
		watchdog(TRY_SECONDS_MAX);
		_exit(run(&fewer, seed, scratch) ? 1 : 0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0 || !status)
		return false;
	if (WIFSIGNALED(status))
		snprintf(scratch->failure, sizeof(scratch->failure), "killed by signal %d", WTERMSIG(status));
	words_of(scratch->failure, got);
	return !strcmp(got, words);
}

/* All but [from, from + nr) of @steps. */
static size_t without(const struct step_id *steps, size_t steps_nr, size_t from, size_t nr, struct step_id *rest)
{
	memcpy(rest, steps, from * sizeof(*steps));
	memcpy(rest + from, steps + from + nr, (steps_nr - from - nr) * sizeof(*steps));
	return steps_nr - nr;
}

static void print_keep(const struct step_id *steps, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		if (steps[i].nr == UINT32_MAX)
			printf("%s%u", i ? "," : "", steps[i].episode);
		else
			printf("%s%u/%u/%u", i ? "," : "", steps[i].episode, steps[i].task, steps[i].nr);
}

void shrink(const struct arguments *args, uint64_t seed, struct totals *totals, run_fn run)
{
	struct totals *scratch =
		mmap(NULL, sizeof(*scratch), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	size_t nr = totals->steps_nr;
	struct step_id *steps = malloc((nr + 1) * sizeof(*steps)), *rest = malloc((nr + 1) * sizeof(*steps));
	time_t end = time(NULL) + SHRINK_SECONDS_MAX;
	char words[128];

	if (scratch == MAP_FAILED || !steps || !rest)
		return;
	memcpy(steps, totals->steps, nr * sizeof(*steps));
	words_of(totals->failure, words);
	size_t before = nr;
	for (size_t chunk = (nr + 1) / 2; chunk && time(NULL) < end; chunk = chunk > 1 ? (chunk + 1) / 2 : 0)
		for (size_t from = 0; from < nr && time(NULL) < end;) {
			size_t len = chunk < nr - from ? chunk : nr - from;
			size_t rest_nr = without(steps, nr, from, len, rest);

			if (rest_nr && fails_alike(args, seed, rest, rest_nr, words, scratch, run)) {
				memcpy(steps, rest, rest_nr * sizeof(*steps));
				nr = rest_nr;
			} else {
				from += len;
			}
		}
	printf("  shrunk from %zu steps to %zu: ", before, nr);
	print_command(args, seed, NULL, 0);
	printf(" --keep ");
	print_keep(steps, nr);
	printf("\n");
	fflush(stdout);
	free(steps);
	free(rest);
	munmap(scratch, sizeof(*scratch));
}
