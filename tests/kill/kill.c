/*
 * A writer on a real image file is killed at random moments, again and again; what it was promised must be there.
 *
 * The writer's tasks and the history of what they did are workload.h's; the history lies in memory that outlives the
 * writer. After SIGKILL the filesystem is opened again, every object must be in a state that is allowed, and the
 * checker finds nothing. After some kills another filesystem is made, with other options.
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
#include "workload.h"

enum {
	TASKS = 3,
	IMAGE_BYTES = 192 << 20,
	KILLS_DEFAULT = 20,
	KILLS_OF_IMAGE = 10,
	LIFE_US_MAX = 400000,
	OPEN_TRIES_MAX = 3000,
};

struct state {
	const char *image;
	struct rng rng;
	struct workload *work;
	uint64_t changes, promises;
	char options[256];
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
	for (unsigned i = 0; err == -EBUSY && i < OPEN_TRIES_MAX; i++) {
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

/* A process of its own. It ends only when it is killed. */
static int writer(const struct state *s, uint64_t seed)
{
	kiln_fs *fs = open_image(s->image, KILN_OPEN_WRITE);

	if (!fs)
		return 2;
	int err = workload_run(s->work, fs, seed, UINT64_MAX);
	failed("writing", strerror(-err));
	fflush(stdout);
	return 2;
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
	struct workload_counts counts = workload_count(s->work);
	struct strbuf why = strbuf_growing();
	int err = fs ? workload_verify(s->work, fs, clock_monotonic_ns(), &why) : -EIO;

	s->changes += counts.changes;
	s->promises += counts.promises;
	if (!err)
		err = workload_find(s->work, fs, &why);
	if (err && fs)
		failed("contents", strbuf_text(&why));
	strbuf_free(&why);
	if (fs && !err && kiln_shutdown(fs))
		err = failed("shutdown", "not clean");
	kiln_close(fs);
	return err ? 1 : check(s->image);
}

static int round_run(struct state *s)
{
	uint64_t seed = rng_u64(&s->rng);
	int status;

	fflush(stdout);
	pid_t pid = fork();
	if (!pid)
		_exit(writer(s, seed));
	usleep((useconds_t)rng_below(&s->rng, LIFE_US_MAX));
	kill(pid, SIGKILL);
	if (pid < 0 || waitpid(pid, &status, 0) < 0 || !WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		return failed("writer", "ended by itself");
	return verify(s);
}

static const char *pick(struct rng *rng, const char *const *from, unsigned nr) { return from[rng_below(rng, nr)]; }

static void draw_options(struct state *s, struct kiln_format_device *device)
{
	static const char *const checksums[] = { "none", "crc32c", "crc64", "xxhash" };
	static const char *const compressions[] = { "none", "lz4", "gzip", "zstd" };
	static const char *const nodes[] = { "32k", "64k", "128k", "256k" };
	static const uint64_t bucket_kib[] = { 256, 512, 1024 };

	device->bucket_bytes = bucket_kib[rng_below(&s->rng, ARRAY_NR(bucket_kib))] << 10;
	snprintf(s->options, sizeof(s->options),
		 "block_size=%s,btree_node_size=%s,metadata_checksum=%s,data_checksum=%s,compression=%s",
		 rng_below(&s->rng, 2) ? "512" : "4k", pick(&s->rng, nodes, ARRAY_NR(nodes)),
		 pick(&s->rng, checksums, ARRAY_NR(checksums)), pick(&s->rng, checksums, ARRAY_NR(checksums)),
		 pick(&s->rng, compressions, ARRAY_NR(compressions)));
}

static int make(struct state *s)
{
	struct kiln_format_device device = { .path = s->image, .file_bytes = IMAGE_BYTES };
	struct kiln_format_options format = { .struct_bytes = sizeof(format),
					      .device_struct_bytes = sizeof(device),
					      .flags = KILN_FORMAT_FORCE,
					      .options = s->options,
					      .memory_bytes = 64 << 20 };
	struct strbuf text = strbuf_growing();
	char why[KILN_ERROR_BYTES];
	kiln_fs *fs;

	draw_options(s, &device);
	s->work = workload_new(TASKS);
	if (kiln_format(&device, 1, &format, &fs, why))
		return failed("format", why);
	int err = workload_prepare(s->work, fs);
	if (!err)
		err = workload_find(s->work, fs, &text);
	if (err)
		failed("preparing", strbuf_text(&text));
	strbuf_free(&text);
	kiln_close(fs);
	return err;
}

static int upstream_judge(const char *image)
{
	const char *upstream = getenv("KILN_UPSTREAM");
	char log[4096 + 8], command[3 * 4096];

	if (!upstream)
		return 0;
	snprintf(log, sizeof(log), "%s.log", image);
	snprintf(command, sizeof(command), "timeout 300 '%s' fsck -n '%s' >'%s' 2>&1", upstream, image, log);
	if (system(command))
		return failed("upstream's fsck", command);
	unlink(log);
	return 0;
}

/* As many kills of a filesystem that is made for them. */
static int image_run(struct state *s, unsigned kills)
{
	int err = make(s);

	for (unsigned i = 0; !err && i < kills; i++)
		err = round_run(s);
	if (!err)
		err = upstream_judge(s->image);
	workload_free(s->work);
	return err;
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
	int c;

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
	int err = 0;
	for (unsigned i = 0; !err && i < kills; i += KILLS_OF_IMAGE) {
		err = image_run(&s, min(kills - i, (unsigned)KILLS_OF_IMAGE));
		if (err)
			printf("after kill %u, of %s, made with %s; repeat: %s --kills %u --seed %llu\n", i, image,
			       s.options, argv[0], kills, (unsigned long long)seed);
	}
	if (!getenv("KILN_UPSTREAM"))
		printf("skipped: upstream's fsck (KILN_UPSTREAM isn't set)\n");
	printf("%u kills, %llu changes, %llu promises\n", kills, (unsigned long long)s.changes,
	       (unsigned long long)s.promises);
	if (!is_kept && !err)
		unlink(image);
	return err;
}
