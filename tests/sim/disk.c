/* A disk as the filesystem sees it. See sim.h. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/fiber.h"
#include "base/util.h"
#include "device/wrap.h"
#include "sim.h"

struct sim_disk {
	struct wrap_device wrap;
	bool is_traced;
};

struct sim_io {
	struct device_io io;
	struct device_io *parent;
};

static void disk_complete(struct device_io *io)
{
	struct sim_io *child = container_of(io, struct sim_io, io);
	struct device_io *parent = child->parent;
	struct sim_disk *d = container_of(parent->dev, struct sim_disk, wrap.dev);
	int err = io->err;

	if (d->is_traced) {
		printf("    %.6f %s %s %llu +%llu%s%s\n", (double)(fiber_mode() ? clock_monotonic_ns() : 0) / 1e9,
		       parent->dev->name,
		       io->op == DEVICE_READ	? "read"
		       : io->op == DEVICE_WRITE ? "write"
		       : io->op == DEVICE_FLUSH ? "flush"
						: "discard",
		       (unsigned long long)io->offset_bytes, (unsigned long long)io->len_bytes, err ? " " : "",
		       err ? error_name(err) : "");
		fflush(stdout);
	}
	parent->done_bytes = io->done_bytes;
	free(child);
	io_done(parent, err);
}

static void disk_submit(struct device *dev, struct device_io *io)
{
	struct sim_disk *d = container_of(dev, struct sim_disk, wrap.dev);

	memory_exempt_begin();
	struct sim_io *child = malloc(sizeof(*child));
	if (!child)
		abort();
	wrap_io_init(&child->io, io, &d->wrap);
	child->parent = io;
	io_submit_below(&child->io, io, disk_complete);
	memory_exempt_end();
}

static void disk_close(struct device *dev)
{
	struct sim_disk *d = container_of(dev, struct sim_disk, wrap.dev);

	device_close(d->wrap.below);
	free(d);
}

static const struct device_ops disk_ops = {
	.kind = "simulated disk",
	.submit = disk_submit,
	.poll = wrap_poll,
	.close = disk_close,
};

int disk_wrap(struct device *below, bool is_traced, struct device **dev)
{
	struct sim_disk *d = calloc(1, sizeof(*d));

	if (!d)
		return -ENOMEM;
	wrap_init(&d->wrap, &disk_ops, below);
	d->is_traced = is_traced;
	*dev = &d->wrap.dev;
	return 0;
}
