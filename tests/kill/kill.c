/*
 * A writer on a real image file is killed at random moments, again and again; what it was promised must be there.
 *
 * The writer replaces files the way careful programs do: write a new one, fsync it, rename it over the old one, fsync
 * again; sometimes it deletes one and syncs. Only after the last call has returned it says so through a pipe. Its
 * contents tell a file's number and generation, and follow from them. After SIGKILL the filesystem is opened again:
 *each file must be whole, and of the last generation that was said to be there or a later one.
 *
 *	kill [--kills N] [--seed N] [--image FILE]
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/util.h"
#include "kiln/kiln.h"

enum { FILES_NR = 24, FILE_BYTES_MAX = 400000, IMAGE_BYTES = 192 << 20, KILLS_DEFAULT = 20, LIFE_US_MAX = 400000 };

struct promise {
	uint32_t file;
	uint32_t is_deleted;
	uint64_t generation;
};

struct state {
	const char *image;
	struct rng rng;
	struct promise promised[FILES_NR]; /* generation 0: nothing was promised */
	uint64_t generation;		   /* the last that was begun */
	uint64_t promises, later;
};

static int failed(const char *what, const char *detail)
{
	printf("FAILED: %s: %s\n", what, detail);
	return 1;
}

static void on_report(void *ctx, const struct kiln_report *report)
{
	(void)ctx;
	if (report->level >= KILN_REPORT_DAMAGE && report->error != -EBUSY)
		printf("report: %s\n", report->text);
}

static kiln_fs *open_image(const char *image, unsigned flags)
{
	struct kiln_open_options options = {
		.struct_bytes = sizeof(options), .flags = flags, .memory_bytes = 64 << 20, .report = on_report
	};
	char why[KILN_ERROR_BYTES];
	kiln_fs *fs;

	/* The kernel takes down the I/O ring of a process that was killed, and with it its lock, in its own time. */
	int err = -EBUSY;
	for (unsigned i = 0; err == -EBUSY && i < 500; i++) {
		if (i)
			usleep(20000);
		err = kiln_open(&image, 1, &options, &fs, why);
	}
	if (err) {
		failed("open", why);
		return NULL;
	}
	if (flags & KILN_OPEN_WRITE && kiln_write_refused(fs)) {
		failed("read-only", kiln_write_refused(fs));
		kiln_close(fs);
		return NULL;
	}
	return fs;
}

/* --- contents --- */

static size_t contents_make(uint32_t file, uint64_t generation, uint8_t *bytes)
{
	struct rng rng;

	rng_init(&rng, generation << 8 | file);
	size_t len = 16 + (rng_below(&rng, 3) ? rng_below(&rng, 20000) : rng_below(&rng, FILE_BYTES_MAX - 16));
	uint64_t head[2] = { file, generation };
	memcpy(bytes, head, sizeof(head));
	for (size_t i = sizeof(head); i < len; i += 8) {
		uint64_t v = rng_u64(&rng);

		memcpy(bytes + i, &v, min((size_t)8, len - i));
	}
	return len;
}

/* --- the writer, a process of its own --- */

static int replace(kiln_fs *fs, uint32_t file, uint64_t generation, uint8_t *bytes)
{
	struct kiln_create create = { .mode = 0644 };
	struct kiln_stat st;
	char name[16], new_name[32];
	size_t len = contents_make(file, generation, bytes);
	size_t half = len / 2 & ~(size_t)7;

	snprintf(name, sizeof(name), "f%u", file);
	snprintf(new_name, sizeof(new_name), "f%u.new", file);
	kiln_unlink(fs, kiln_root(fs), new_name, strlen(new_name), 0); /* left by one that was killed */
	int err = kiln_create(fs, kiln_root(fs), new_name, strlen(new_name), &create, &st);
	if (!err && kiln_write(fs, st.node, 0, bytes, half) != (ssize_t)half)
		err = -EIO;
	if (!err && kiln_write(fs, st.node, half, bytes + half, len - half) != (ssize_t)(len - half))
		err = -EIO;
	if (!err)
		err = kiln_fsync(fs, st.node);
	if (!err)
		err = kiln_rename(fs, kiln_root(fs), new_name, strlen(new_name), kiln_root(fs), name, strlen(name), 0);
	return err ? err : kiln_fsync(fs, st.node);
}

static int delete (kiln_fs *fs, uint32_t file)
{
	char name[16];

	snprintf(name, sizeof(name), "f%u", file);
	int err = kiln_unlink(fs, kiln_root(fs), name, strlen(name), 0);
	return err && err != -ENOENT ? err : kiln_sync(fs);
}

static int writer(const struct state *s, struct rng rng, int pipe_fd)
{
	kiln_fs *fs = open_image(s->image, KILN_OPEN_WRITE);
	uint8_t *bytes = malloc(FILE_BYTES_MAX + 8);
	uint64_t generation = s->generation;

	if (!fs || !bytes)
		return 2;
	for (;;) {
		struct promise p = { .file = (uint32_t)rng_below(&rng, FILES_NR), .generation = ++generation };

		p.is_deleted = !rng_below(&rng, 8);
		int err = p.is_deleted ? delete (fs, p.file) : replace(fs, p.file, p.generation, bytes);
		if (err) {
			failed("writing", strerror(-err));
			fflush(stdout);
			return 2;
		}
		if (write(pipe_fd, &p, sizeof(p)) != sizeof(p))
			return 2;
	}
}

/* --- after the kill --- */

static int verify_file(struct state *s, kiln_fs *fs, uint32_t file, uint8_t *bytes, uint8_t *want)
{
	struct promise *p = &s->promised[file];
	struct kiln_stat st;
	char name[16];
	uint64_t head[2];

	snprintf(name, sizeof(name), "f%u", file);
	int err = kiln_lookup(fs, kiln_root(fs), name, strlen(name), &st);
	if (err == -ENOENT) {
		/* Deleted, as promised, or by what came last and couldn't be promised any more. */
		if (p->generation && !p->is_deleted)
			s->later++;
		return 0;
	}
	if (err)
		return failed(name, strerror(-err));
	ssize_t n = kiln_read(fs, st.node, 0, bytes, FILE_BYTES_MAX);
	if (n < (ssize_t)sizeof(head) || (uint64_t)n != st.size)
		return failed(name, n < 0 ? strerror((int)-n) : "is short");
	memcpy(head, bytes, sizeof(head));
	if (head[0] != file || head[1] < p->generation || head[1] > p->generation + 1000000)
		return failed(name, "is of an older generation than promised");
	if (contents_make(file, head[1], want) != (size_t)n || memcmp(bytes, want, (size_t)n))
		return failed(name, "has wrong contents");
	s->later += head[1] > p->generation;
	s->generation = max(s->generation, head[1]);
	return 0;
}

static int count_missing(const struct state *s, kiln_fs *fs)
{
	int missing = 0;

	for (uint32_t i = 0; i < FILES_NR; i++) {
		struct kiln_stat st;
		char name[16];

		snprintf(name, sizeof(name), "f%u", i);
		missing += s->promised[i].generation && !s->promised[i].is_deleted &&
			   kiln_lookup(fs, kiln_root(fs), name, strlen(name), &st) == -ENOENT;
	}
	return missing;
}

static int check(const char *image)
{
	kiln_fs *fs = open_image(image, 0);
	struct kiln_check_options options = { .struct_bytes = sizeof(options),
					      .flags = KILN_CHECK_DATA,
					      .report = on_report };
	struct kiln_check_result *result = calloc(1, sizeof(*result));

	if (!fs || !result)
		return 1;
	int err = kiln_check(fs, &options, result);
	bool is_bad = err || result->errors;
	free(result);
	kiln_close(fs);
	return is_bad ? failed("check", err ? strerror(-err) : "errors") : 0;
}

static int verify(struct state *s)
{
	kiln_fs *fs = open_image(s->image, KILN_OPEN_WRITE);
	uint8_t *bytes = malloc(FILE_BYTES_MAX + 8), *want = malloc(FILE_BYTES_MAX + 8);
	int err = !fs || !bytes || !want;

	for (uint32_t i = 0; !err && i < FILES_NR; i++)
		err = verify_file(s, fs, i, bytes, want);
	/* Of the deletions only the last can have been without its promise. */
	if (!err && count_missing(s, fs) > 1)
		err = failed("files", "more than one is gone that wasn't deleted");
	for (uint32_t i = 0; !err && i < FILES_NR; i++) {
		struct kiln_stat st;
		char name[16];

		snprintf(name, sizeof(name), "f%u", i);
		if (kiln_lookup(fs, kiln_root(fs), name, strlen(name), &st) == -ENOENT)
			s->promised[i].is_deleted = 1;
	}
	if (fs && !err && kiln_shutdown(fs))
		err = failed("shutdown", "not clean");
	kiln_close(fs);
	free(bytes);
	free(want);
	return err ? 1 : check(s->image);
}

static int round_run(struct state *s)
{
	struct promise p;
	int fds[2], status;

	if (pipe(fds))
		return 1;
	fflush(stdout);
	struct rng rng = s->rng;
	rng_u64(&s->rng);
	pid_t pid = fork();
	if (!pid)
		_exit(writer(s, rng, fds[1]));
	close(fds[1]);
	usleep((useconds_t)rng_below(&s->rng, LIFE_US_MAX));
	kill(pid, SIGKILL);
	while (read(fds[0], &p, sizeof(p)) == sizeof(p)) {
		s->promised[p.file] = p;
		s->generation = p.generation;
		s->promises++;
	}
	close(fds[0]);
	waitpid(pid, &status, 0);
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		return failed("writer", "ended by itself");
	s->generation++; /* it may have been at the next */
	return verify(s);
}

static int upstream_judge(const char *image)
{
	const char *upstream = getenv("KILN_UPSTREAM");
	char command[4096];

	if (!upstream) {
		printf("skipped: upstream's fsck (KILN_UPSTREAM isn't set)\n");
		return 0;
	}
	snprintf(command, sizeof(command), "'%s' fsck -n '%s' >'%s.log' 2>&1", upstream, image, image);
	return system(command) ? failed("upstream's fsck", command) : 0;
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "kills", required_argument, NULL, 'k' },
						 { "seed", required_argument, NULL, 's' },
						 { "image", required_argument, NULL, 'i' },
						 { NULL, 0, NULL, 0 } };
	unsigned kills = KILLS_DEFAULT;
	uint64_t seed = random_u64();
	char image[4096] = "";
	struct state s = { .image = image };
	int c, err = 0;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
		switch (c) {
		case 'k': kills = (unsigned)strtoul(optarg, NULL, 0); break;
		case 's': seed = strtoull(optarg, NULL, 0); break;
		case 'i': snprintf(image, sizeof(image), "%s", optarg); break;
		default: return 2;
		}
	bool is_kept = image[0];
	if (!is_kept)
		snprintf(image, sizeof(image), "%s/kiln-kill-%d.img", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp",
			 getpid());
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("seed %llu\n", (unsigned long long)seed);
	rng_init(&s.rng, seed);
	struct kiln_format_device device = { .path = image, .file_bytes = IMAGE_BYTES };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(device),
					      .flags = KILN_FORMAT_FORCE,
					      .memory_bytes = 64 << 20 };
	char why[KILN_ERROR_BYTES];
	if (kiln_format(&device, 1, &format, NULL, why))
		return failed("format", why);
	for (unsigned i = 0; !err && i < kills; i++) {
		err = round_run(&s);
		if (err)
			printf("at kill %u; repeat: %s --kills %u --seed %llu\n", i + 1, argv[0], kills,
			       (unsigned long long)seed);
	}
	if (!err)
		err = upstream_judge(image);
	printf("%u kills, %llu promises, %llu times more was there than promised\n", kills,
	       (unsigned long long)s.promises, (unsigned long long)s.later);
	if (!is_kept && !err)
		unlink(image);
	return err;
}
