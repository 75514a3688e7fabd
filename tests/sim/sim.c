/*
 * A whole filesystem on simulated disks, from one seed.
 *
 * The seed chooses the disks, the options, the operations, the schedule of all tasks (fibers), the times of all I/O and
 * what goes wrong. Operations are run beside models; at any time the state is the models'. After a power cut, or
 * whatever else ends a mount, it must be that after all that was committed up to some journal entry, everything that
 * was promised to be durable included. Then the workload goes on from there.
 *
 *	sim [--seeds FIRST-LAST | --seed N] [--ops N] [--episodes N] [--tasks N] [--only KIND,...] [--hours H]
 *	sim --every [--depth N] ...	the power goes at every single write, and of N recoveries after it
 *
 * A failure prints the command that repeats it (add --trace for everything that happens, -v for what the engine says),
 * and another with as few steps as could be found.
 *
 *	sim.c		arguments, seeds, totals		config.c	disks, options, opening
 *	episode.c	what happens to the disks		workload.c	the tasks and their logs
 *	compare.c	is the state one of those allowed?	model.c		a filesystem as a tree in memory
 *	operation.c	operations on both			acl.c		what ACLs make of modes
 *	shrink.c	fewer steps that fail			disk.c, memory.c	traces; allocations that fail
 *	nonces.c	is one used twice?			cached.c	counts cached copies
 */
#include <errno.h>
#include <getopt.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/fiber.h"
#include "base/mutant.h"
#include "base/util.h"
#include "sim.h"

enum { OPS_DEFAULT = 60, EPISODES_DEFAULT = 8, SEED_SECONDS_MAX = 120 };

/* --- failing --- */

void print_command(const struct arguments *a, uint64_t seed, const uint64_t *cut_path, unsigned depth)
{
	printf("%s --seed %llu --ops %llu --episodes %u --tasks %u", a->program, (unsigned long long)seed,
	       (unsigned long long)a->ops, a->episodes, a->tasks_max);
	if (a->kinds != (1u << EPISODE_KIND_NR) - 1) {
		const char *separator = " --only ";

		for (unsigned i = 0; i < EPISODE_KIND_NR; i++)
			if (a->kinds >> i & 1) {
				printf("%s%s", separator, episode_names[i]);
				separator = ",";
			}
	}
	if (a->mutant)
		printf(" --mutant %s", a->mutant);
	if (a->is_exhaustive && !depth)
		printf(" --every --depth %u", a->depth);
	for (unsigned i = 0; i < depth; i++)
		printf("%s%llu", i ? "," : " --cut-at ", (unsigned long long)cut_path[i]);
}

int failed(struct sim *s, const char *what, const char *detail)
{
	if (s->has_failed)
		return -EPROTO;
	s->has_failed = s->is_stopping = true;
	printf("FAILED seed %llu, episode %u (%s), operation %llu: %s%s%s\n", (unsigned long long)s->seed, s->episode,
	       episode_names[s->kind], (unsigned long long)s->op_nr, what, detail[0] ? ": " : "", detail);
	printf("  %u disks, %s; %s\n  repeat: ", s->disks_nr, s->options, s->mount_options);
	print_command(s->args, s->seed, s->cut_path, s->depth);
	printf("\n");
	fflush(stdout);
	snprintf(s->totals->failure, sizeof(s->totals->failure), "%s", what);
	return -EPROTO;
}

/* Of processor time: what waits for ever without using any is a deadlock, and that the scheduler sees. */
void watchdog(unsigned seconds)
{
	struct itimerval timer = { .it_value = { .tv_sec = seconds } };

	setitimer(ITIMER_PROF, &timer, NULL);
}

static void too_slow(int signal)
{
	static const char text[] = "FAILED: it hangs\n";

	(void)signal;
	if (write(1, text, sizeof(text) - 1) < 0)
		_exit(3);
	abort();
}

/* --- a seed --- */

static int export_disks(struct sim *s)
{
	char path[4096];

	for (unsigned i = 0; i < s->disks_nr; i++) {
		struct device *dev;

		snprintf(path, sizeof(path), "%s/seed%llu.dev%u.img", s->args->export_dir, (unsigned long long)s->seed,
			 i);
		FILE *f = fopen(path, "w");
		if (!f || power_disk_open(s->power, i, &dev))
			return failed(s, path, strerror(errno));
		const uint8_t *bytes = power_disk_bytes(s->power, i);
		static const uint8_t zeroes[65536];
		for (uint64_t at = 0; at < dev->size_bytes; at += sizeof(zeroes))
			if (memcmp(bytes + at, zeroes, sizeof(zeroes))) {
				fseeko(f, (off_t)at, SEEK_SET);
				fwrite(bytes + at, 1, sizeof(zeroes), f);
			}
		int err = fflush(f) || ftruncate(fileno(f), (off_t)dev->size_bytes);
		fclose(f);
		device_close(dev);
		if (err)
			return failed(s, path, strerror(errno));
	}
	return 0;
}

/* Of all that is on the disks. */
static uint64_t disks_hash(struct sim *s)
{
	uint64_t hash = 0;

	for (unsigned i = 0; i < s->disks_nr; i++) {
		struct device *dev;

		if (power_disk_open(s->power, i, &dev))
			abort();
		hash = XXH64(power_disk_bytes(s->power, i), dev->size_bytes, hash);
		device_close(dev);
	}
	return hash;
}

static void sim_main(void *arg)
{
	struct sim *s = arg;

	episodes_run(s);
	if (s->args->export_dir)
		export_disks(s);
}

static int run_seed(const struct arguments *args, uint64_t seed, struct totals *totals)
{
	struct sim *s = calloc(1, sizeof(*s));
	/* On half of them, what one task does in steps is met half-done by the others. */
	struct fiber_sim_opts opts = { .seed = seed, .pause_one_in = seed / 2 % 2 ? 50 : 0 };
	struct fiber_sim_result result = { 0 };

	if (!s)
		abort();
	s->args = args;
	s->totals = totals;
	s->seed = seed;
	totals->steps_nr = 0;
	rng_init(&s->rng, seed);
	cached_watch(s);
	int err = fiber_sim_run(&opts, sim_main, s, &result);
	if (err)
		failed(s, "the simulation", error_name(err));
	bool has_failed = s->has_failed;
	if (args->is_hashed && !has_failed && !s->depth)
		printf("seed %llu: disks %016llx, schedule %016llx\n", (unsigned long long)seed,
		       (unsigned long long)disks_hash(s), (unsigned long long)result.schedule_hash);
	if (!s->depth)
		COUNT(s, seeds, 1);
	nonces_end();
	if (!err) {
		workload_free(s);
		power_free(s->power);
		free(s);
	}
	return has_failed;
}

/* --- seeds --- */

static void crashed(const struct arguments *args, uint64_t seed, int status, struct totals *totals)
{
	snprintf(totals->failure, sizeof(totals->failure), "killed by signal %d", WTERMSIG(status));
	printf("FAILED seed %llu: %s\n  repeat: ", (unsigned long long)seed, totals->failure);
	print_command(args, seed, NULL, 0);
	printf("\n");
}

/* In a process of its own: one that crashes doesn't keep the others from running. */
static bool seed_fails(const struct arguments *args, uint64_t seed, struct totals *totals)
{
	int status = 0;

	fflush(stdout);
	pid_t pid = fork();
	if (!pid) {
		signal(SIGINT, SIG_IGN); /* all in a group may get it */
		signal(SIGTERM, SIG_IGN);
		watchdog(SEED_SECONDS_MAX);
		exit(run_seed(args, seed, totals));
	}
	while (pid >= 0 && waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			abort();
	if (pid < 0)
		abort();
	if (WIFSIGNALED(status))
		crashed(args, seed, status, totals);
	if (status && args->may_shrink && !args->cut_at_nr)
		shrink(args, seed, totals, run_seed);
	return status != 0;
}

/* Kinds of episodes that may have been drawn, in which nothing went wrong: so much fewer promises were put to the test.
 */
static void print_never(const struct totals *t, const struct arguments *args)
{
	const char *before = "\nnever went wrong: ";

	for (unsigned i = EPISODE_CLEAN + 1; i < EPISODE_KIND_NR; i++)
		if (args->kinds >> i & 1 && !t->faults[i]) {
			printf("%s%s", before, episode_names[i]);
			before = " ";
		}
}

static void print_totals(const struct totals *t, const struct arguments *args, uint64_t first, uint64_t last,
			 int failed_nr)
{
	printf("seeds %llu to %llu: %llu run, %d failed; %llu operations (%llu failed, %llu without space), %llu "
	       "reopens, "
	       "%llu checks\n",
	       (unsigned long long)first, (unsigned long long)last, (unsigned long long)t->seeds, failed_nr,
	       (unsigned long long)t->ops, (unsigned long long)t->failed_ops, (unsigned long long)t->no_space,
	       (unsigned long long)t->reopens, (unsigned long long)t->checks);
	printf("power cuts: %llu, %llu with writes at risk; of recovery %llu, %llu; %llu writes lost, %llu torn\n",
	       (unsigned long long)t->cuts, (unsigned long long)t->cuts_at_risk, (unsigned long long)t->recovery_cuts,
	       (unsigned long long)t->recovery_cuts_at_risk, (unsigned long long)t->lost_writes,
	       (unsigned long long)t->torn_writes);
	printf("episodes (times something went wrong):");
	for (unsigned i = 0; i < EPISODE_KIND_NR; i++)
		if (t->episodes[i])
			printf(" %s %llu (%llu)", episode_names[i], (unsigned long long)t->episodes[i],
			       (unsigned long long)t->faults[i]);
	print_never(t, args);
	printf("\nwent read-only %llu times; of damaged filesystems %llu objects were right, %llu pieces unreadable\n",
	       (unsigned long long)t->went_readonly, (unsigned long long)t->objects_beside,
	       (unsigned long long)t->unreadable_objects);
	printf("cached copies: %llu written, %llu buckets taken back; %llu read, %llu after a crash\n",
	       (unsigned long long)t->cached_made, (unsigned long long)t->cached_taken_back,
	       (unsigned long long)t->cached_read, (unsigned long long)t->cached_read_after_crash);
	if (!args->is_verbose)
		return;
	printf("options:");
	for (unsigned i = 0; i < OPTIONS_MAX && t->options[i].nr; i++)
		printf(" %s ×%llu", t->options[i].text, (unsigned long long)t->options[i].nr);
	printf("\n");
}

/* What was done until then counts: the seed that runs ends, and the totals are printed. */
static volatile sig_atomic_t is_told_to_end;
static void told_to_end(int signal)
{
	(void)signal;
	is_told_to_end = 1;
}

static int run_seeds(const struct arguments *args, double hours, struct totals *totals)
{
	time_t end = time(NULL) + (time_t)(hours * 3600);
	struct sigaction action = { .sa_handler = told_to_end };
	uint64_t seed = args->seed;
	int failed_nr = 0;

	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	for (; (hours ? time(NULL) < end : seed <= args->seed_last) && !is_told_to_end &&
	       !(failed_nr && args->stops_at_failure);
	     seed++)
		failed_nr += seed_fails(args, seed, totals);
	print_totals(totals, args, args->seed, seed - 1, failed_nr);
	return failed_nr != 0;
}

/* --- arguments --- */

static void parse_seeds(struct arguments *args, const char *text)
{
	char *end;

	args->seed = args->seed_last = strtoull(text, &end, 0);
	if (*end == '-')
		args->seed_last = strtoull(end + 1, NULL, 0);
}

static bool parse_kinds(struct arguments *args, char *text)
{
	args->kinds = 0;
	for (char *one; (one = strsep(&text, ",")) != NULL;) {
		unsigned i = 0;

		while (i < EPISODE_KIND_NR && strcmp(one, episode_names[i]))
			i++;
		if (i == EPISODE_KIND_NR)
			return false;
		args->kinds |= 1u << i;
	}
	return true;
}

static void parse_cuts(struct arguments *args, char *text)
{
	for (char *one; (one = strsep(&text, ",")) != NULL && args->cut_at_nr < DEPTH_MAX;)
		args->cut_at[args->cut_at_nr++] = strtoull(one, NULL, 0);
	args->is_exhaustive = true;
	args->depth = args->cut_at_nr;
}

static void parse_keep(struct arguments *args, char *text)
{
	args->keep = calloc(KEEP_MAX, sizeof(*args->keep));
	for (char *one; args->keep && (one = strsep(&text, ",")) != NULL && args->keep_nr < KEEP_MAX;) {
		struct step_id *k = &args->keep[args->keep_nr++];

		if (sscanf(one, "%u/%u/%u", &k->episode, &k->task, &k->nr) != 3)
			k->nr = UINT32_MAX;
	}
}

/* One safety less; only in builds with -Dmutants=true. */
static bool mutant_set(const char *name)
{
#ifdef KILN_MUTANTS
	static const char *const names[MUTANT_NR] = { [MUTANT_NONE] = "none",
#define MUTANT_NAME(id, text) [MUTANT_##id] = #id,
						      MUTANTS(MUTANT_NAME)
#undef MUTANT_NAME
	};

	for (unsigned i = 0; i < MUTANT_NR; i++)
		if (!strcasecmp(name, names[i])) {
			mutant_active = i;
			return true;
		}
#endif
	fprintf(stderr, "no mutant %s in this build\n", name);
	return false;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "seed", required_argument, NULL, 's' },
		{ "seeds", required_argument, NULL, 's' },
		{ "ops", required_argument, NULL, 'o' },
		{ "episodes", required_argument, NULL, 'n' },
		{ "tasks", required_argument, NULL, 'j' },
		{ "only", required_argument, NULL, 'y' },
		{ "hours", required_argument, NULL, 'H' },
		{ "every", no_argument, NULL, 'E' },
		{ "depth", required_argument, NULL, 'd' },
		{ "cut-at", required_argument, NULL, 'C' },
		{ "keep", required_argument, NULL, 'k' },
		{ "export", required_argument, NULL, 'e' },
		{ "hash", no_argument, NULL, 'x' },
		{ "mutant", required_argument, NULL, 'm' },
		{ "stop", no_argument, NULL, 'X' },
		{ "no-shrink", no_argument, NULL, 'S' },
		{ "verbose", no_argument, NULL, 'v' },
		{ "trace", no_argument, NULL, 'T' },
		{ NULL, 0, NULL, 0 },
	};
	struct arguments args = { .program = argv[0],
				  .seed = 1,
				  .seed_last = 1,
				  .ops = OPS_DEFAULT,
				  .episodes = EPISODES_DEFAULT,
				  .tasks_max = TASKS_MAX,
				  .kinds = (1u << EPISODE_KIND_NR) - 1,
				  .may_shrink = true,
				  .is_single = true };
	double hours = 0;
	bool is_valid = true;
	int c;

	while ((c = getopt_long(argc, argv, "v", options, NULL)) != -1)
		switch (c) {
		case 's': parse_seeds(&args, optarg); break;
		case 'o': args.ops = strtoull(optarg, NULL, 0); break;
		case 'n': args.episodes = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'j': args.tasks_max = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'y': is_valid &= parse_kinds(&args, optarg); break;
		case 'H': hours = strtod(optarg, NULL); break;
		case 'E': args.is_exhaustive = true; break;
		case 'd': args.depth = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'C': parse_cuts(&args, optarg); break;
		case 'k': parse_keep(&args, optarg); break;
		case 'e': args.export_dir = optarg; break;
		case 'x': args.is_hashed = true; break;
		case 'm':
			args.mutant = optarg;
			is_valid &= mutant_set(optarg);
			break;
		case 'X': args.stops_at_failure = true; break;
		case 'S': args.may_shrink = false; break;
		case 'v': args.is_verbose = true; break;
		case 'T': args.is_traced = true; break;
		default: is_valid = false;
		}
	if (args.is_exhaustive) {
		args.kinds = 1u << EPISODE_CUT;
		args.episodes = 1;
	}
	if (!is_valid || optind != argc || !args.ops || !args.tasks_max || args.tasks_max > TASKS_MAX ||
	    args.depth >= DEPTH_MAX) {
		fprintf(stderr, "usage: see the head of sim.c\n");
		return 2;
	}
	struct totals *totals = mmap(NULL, sizeof(*totals), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (totals == MAP_FAILED)
		return 2;
	signal(SIGPROF, too_slow);
	/*
	 * Getting pages is half of what a short run costs. So small pieces stay in the process, and large ones, most of
	 * which nobody ever touches, needn't be zeroed.
	 */
	mallopt(M_MMAP_THRESHOLD, 128 << 10);
	mallopt(M_TRIM_THRESHOLD, 1 << 30);
	/* A traced run stays in this process, for debuggers. */
	return args.is_traced ? run_seed(&args, args.seed, totals) : run_seeds(&args, hours, totals);
}
