/*
 * A mount whose device fails as it is told to: a server as `kiln mount -f`, with the wrapper that injects faults below.
 *
 *	faulty-mount OPTIONS IMAGE DIRECTORY [LINE]
 *
 * OPTIONS are those of the filesystem, comma separated, maybe none. With LINE, which is as below, something is changed
 * before it is mounted, for the fault to be met. It says "mounted" on standard output, and then
 * takes lines from standard input, each answered with "ok":
 *
 *	error OP BEGIN END PER_MILLION TIMES	I/O fails with EIO; OP is read, write, or flush, the range in bytes
 *	slow OP MS TIMES			it takes so long
 *	hold OP					it isn't told to be over
 *	clear					no more; what was held is over
 *
 * Unmounted, it ends with 0 if the shutdown was clean, else 1. What is reported goes to standard error.
 */
#include <errno.h>
#include <fuse_log.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/sync.h"
#include "base/util.h"
#include "device/device.h"
#include "device/wrap.h"
#include "engine/fs.h"
#include "mount/mount.h"

struct faulty {
	struct device *dev; /* the wrapper */
	struct mount_server *server;
};

/* --- holding --- */

static atomic_uint held_ops; /* a bit for each op */

struct held_io {
	struct device_io io;
	struct device_io *parent;
};

/* Where it is held it ends again and again. */
static void gate_complete(struct device_io *io)
{
	enum { LOOK_NS = 10000000 };
	struct held_io *child = container_of(io, struct held_io, io);
	struct device_io *parent = child->parent;
	int err = io->err;

	if (atomic_load(&held_ops) >> io->op & 1) {
		io_done_at(io, err, clock_monotonic_ns() + LOOK_NS);
		return;
	}
	parent->done_bytes = io->done_bytes;
	free(child);
	io_done(parent, err);
}

static void gate_submit(struct device *dev, struct device_io *io)
{
	struct held_io *child = malloc(sizeof(*child));

	if (!child)
		abort();
	wrap_io_init(&child->io, io, container_of(dev, struct wrap_device, dev));
	child->parent = io;
	io_submit_below(&child->io, io, gate_complete);
}

static void gate_close(struct device *dev) { device_close(container_of(dev, struct wrap_device, dev)->below); }

static const struct device_ops gate_ops = {
	.kind = "gate", .submit = gate_submit, .poll = wrap_poll, .close = gate_close
};

/* --- what is told --- */

static void on_report(void *ctx, const struct kiln_report *report)
{
	struct faulty *f = ctx;

	fprintf(stderr, "report: %s\n", report->text);
	struct mount_server *server = __atomic_load_n(&f->server, __ATOMIC_ACQUIRE);
	if (report->level == KILN_REPORT_FATAL && server)
		mount_server_failed(server);
}

/* Messages have no newline. */
static void message(enum fuse_log_level level, const char *fmt, va_list args)
{
	(void)level;
	flockfile(stderr);
	vfprintf(stderr, fmt, args);
	fputc('\n', stderr);
	funlockfile(stderr);
}

static int op_parse(const char *name, enum device_op *op)
{
	static const char *const ops[] = { [DEVICE_READ] = "read", [DEVICE_WRITE] = "write", [DEVICE_FLUSH] = "flush" };

	for (size_t i = 0; i < ARRAY_NR(ops); i++)
		if (ops[i] && !strcmp(ops[i], name)) {
			*op = (enum device_op)i;
			return 0;
		}
	return -EINVAL;
}

static int hold(const char *name)
{
	enum device_op op;
	int err = op_parse(name, &op);

	if (!err)
		atomic_fetch_or(&held_ops, 1u << op);
	return err;
}

static int fault_add(const struct faulty *f, const char *line)
{
	struct device_fault fault = { .per_million = 1000000 };
	unsigned long long begin, end, times, ms;
	char op[8];

	if (sscanf(line, "hold %7s", op) == 1)
		return hold(op);
	if (sscanf(line, "slow %7s %llu %llu", op, &ms, &times) == 3) {
		fault.kind = FAULT_LATENCY;
		fault.latency_ns = ms * 1000000;
	} else if (sscanf(line, "error %7s %llu %llu %u %llu", op, &begin, &end, &fault.per_million, &times) == 5) {
		fault.kind = FAULT_ERROR;
		fault.begin_bytes = begin;
		fault.end_bytes = end;
		fault.err = -EIO;
	} else {
		return -EINVAL;
	}
	fault.remaining = times;
	int err = op_parse(op, &fault.op);
	return err ? err : device_fault_add(f->dev, &fault);
}

/* Ends when standard input does. */
static void obey(void *arg)
{
	const struct faulty *f = arg;
	char line[256];

	while (fgets(line, sizeof(line), stdin)) {
		int err = 0;

		if (!strcmp(line, "clear\n")) {
			device_fault_clear(f->dev);
			atomic_store(&held_ops, 0);
		} else {
			err = fault_add(f, line);
		}
		puts(err ? strerror(-err) : "ok");
	}
}

static void on_mounted(void *ctx)
{
	struct faulty *f = ctx;
	struct task *task;

	puts("mounted");
	/* It reads until the process ends. */
	if (task_start(&task, "faults", obey, f))
		abort();
}

static bool change_fails(kiln_fs *fs)
{
	struct kiln_stat st;

	return kiln_create(fs, kiln_root(fs), "d", 1, &(struct kiln_create){ .mode = S_IFDIR | 0755 }, &st) ||
	       kiln_sync(fs);
}

int main(int argc, char **argv)
{
	struct faulty f = { 0 };
	struct kiln_open_options options = { .struct_bytes = sizeof(options),
					     .flags = KILN_OPEN_WRITE,
					     .memory_bytes = KILN_MEMORY_MIN,
					     .ctx = &f,
					     .report = on_report };
	char why[KILN_ERROR_BYTES] = "";
	struct wrap_device gate;
	struct device *dev;
	kiln_fs *fs;

	if (argc != 4 && argc != 5)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	fuse_set_log_func(message);
	options.mount_options = argv[1][0] ? argv[1] : NULL;
	struct mount_options mount = { .mountpoint = argv[3], .source = argv[2] };
	int err = device_open_file(argv[2], DEVICE_OPEN_WRITE, NULL, &dev, why);
	if (!err)
		err = device_wrap_fault(dev, random_u64(), &f.dev);
	if (!err) {
		wrap_init(&gate, &gate_ops, f.dev);
		dev = &gate.dev;
		err = fs_open(NULL, 0, &dev, 1, &options, FS_NAMESPACE, &fs, why);
	}
	if (err) {
		fprintf(stderr, "can't open %s: %s %s\n", argv[2], strerror(-err), why);
		return 2;
	}
	struct mount_server *server = mount_server_new(fs, &mount);
	if (!server)
		return 2;
	__atomic_store_n(&f.server, server, __ATOMIC_RELEASE);
	if (argc == 5 && (fault_add(&f, argv[4]) || !change_fails(fs)))
		return 2;
	err = mount_serve(server, on_mounted, &f);
	__atomic_store_n(&f.server, NULL, __ATOMIC_RELEASE);
	int shut_err = kiln_shutdown(fs);
	if (shut_err)
		fprintf(stderr, "not clean: %s\n", strerror(-shut_err));
	/* Whatever is asked from now on needs no device, which the filesystem closes. */
	mount_server_free(server);
	/* Standard input is being read. */
	fflush(stdout);
	_Exit(err || shut_err ? 1 : 0);
}
