/* See fixtures.h. */
#include "fixtures.h"

#include <glob.h>
#include <libgen.h>
#include <setjmp.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

extern char **environ;

static const char *fixtures_dir(void)
{
	static char dir[4096];

	if (dir[0])
		return dir;
	const char *env = getenv("KILN_FIXTURES");
	char file[] = __FILE__;
	char *super = dirname(file); /* .../tests/super */

	if (env)
		snprintf(dir, sizeof(dir), "%s", env);
	else
		snprintf(dir, sizeof(dir), "%s/../../../shared/fixtures", super);
	return dir;
}

void fixtures_require(void)
{
	if (access(fixtures_dir(), R_OK)) {
		print_message("SKIPPED: no fixtures at %s (set KILN_FIXTURES)\n", fixtures_dir());
		skip();
	}
}

char **fixture_names(size_t *nr)
{
	char pattern[4200];
	glob_t g;

	snprintf(pattern, sizeof(pattern), "%s/*.manifest.json.zst", fixtures_dir());
	assert_int_equal(glob(pattern, 0, NULL, &g), 0);
	char **names = calloc(g.gl_pathc, sizeof(*names));
	assert_non_null(names);
	for (size_t i = 0; i < g.gl_pathc; i++) {
		names[i] = strdup(basename(g.gl_pathv[i]));
		assert_non_null(names[i]);
		*strstr(names[i], ".manifest.json.zst") = 0;
	}
	*nr = g.gl_pathc;
	globfree(&g);
	return names;
}

static void run(const char *const argv[])
{
	pid_t pid;
	int status;

	assert_int_equal(posix_spawnp(&pid, argv[0], NULL, NULL, (char *const *)argv, environ), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		fail_msg("%s %s failed", argv[0], argv[1]);
}

static int name_cmp(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

void fixture_unpack(struct fixture *f, const char *name)
{
	char script[4200], pattern[300], file[] = __FILE__;
	const char *tmp = getenv("TMPDIR"), *memory = access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm";
	glob_t g;

	*f = (struct fixture){ 0 };
	snprintf(f->dir, sizeof(f->dir), "%s/kiln-fixture-XXXXXX", tmp && strlen(tmp) < 200 ? tmp : memory);
	assert_non_null(mkdtemp(f->dir));
	snprintf(script, sizeof(script), "%s/../lib/unpack.py", dirname(file));
	run((const char *[]){ "python3", script, fixtures_dir(), name, f->dir, NULL });

	snprintf(pattern, sizeof(pattern), "%s/*.img", f->dir);
	assert_int_equal(glob(pattern, 0, NULL, &g), 0);
	for (size_t i = 0; i < g.gl_pathc && i < FIXTURE_DEVS_MAX; i++) {
		f->paths[f->nr] = strdup(g.gl_pathv[i]);
		assert_non_null(f->paths[f->nr++]);
	}
	globfree(&g);
	qsort(f->paths, f->nr, sizeof(f->paths[0]), name_cmp);
}

void fixture_remove(struct fixture *f)
{
	for (size_t i = 0; i < f->nr; i++) {
		unlink(f->paths[i]);
		free(f->paths[i]);
	}
	rmdir(f->dir);
}

FILE *fixture_text(const char *name, const char *suffix)
{
	char path[4300];

	snprintf(path, sizeof(path), "%s/%s%s", fixtures_dir(), name, suffix);
	return fopen(path, "r");
}
