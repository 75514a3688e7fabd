/*
 * A wrapper that makes things go wrong on purpose, by rules and from a seed.
 *
 * What will happen to an I/O is decided when it is submitted, under a lock, so that one thread's run is reproducible
 * from the seed. The decision travels with the I/O and is carried out at completion, which needs no lock.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/sync.h"
#include "base/util.h"
#include "device/wrap.h"

enum { CERTAIN = 1000000, STALE_BYTE = 0x5a };

struct fault_device {
	struct wrap_device wrap;
	struct mutex lock; /* guards what follows */
	struct rng rng;
	struct device_fault rules[FAULT_RULES_MAX];
	unsigned rule_nr;
	uint64_t counts[FAULT_KIND_NR];
};

/* What happens to one I/O. */
struct fault_plan {
	bool is_hit;
	enum device_fault_kind kind;
	int err;
	uint64_t latency_ns;
	uint64_t bit_nr;      /* FAULT_BITFLIP: bit of the data to invert */
	uint64_t short_bytes; /* FAULT_SHORT_READ: how much comes */
	uint64_t elsewhere;   /* FAULT_MISDIRECTED_WRITE: offset */
};

struct fault_io {
	struct device_io io;
	struct device_io *parent;
	struct fault_plan plan;
};

static void fault_submit(struct device *dev, struct device_io *io);
static void fault_complete(struct device_io *child);
static void fault_close(struct device *dev);
static struct fault_plan fault_plan_make(struct fault_device *f, const struct device_io *io);
static bool fault_matches(const struct device_fault *rule, const struct device_io *io);
static uint64_t fault_bit_choose(struct fault_device *f, const struct device_fault *rule, const struct device_io *io);
static void data_flip_bit(const struct device_io *io, uint64_t bit_nr);
static void data_make_stale(const struct device_io *io, uint64_t from_bytes);

static const struct device_ops fault_ops = {
	.kind = "fault",
	.submit = fault_submit,
	.poll = wrap_poll,
	.close = fault_close,
};

int device_wrap_fault(struct device *below, uint64_t seed, struct device **dev)
{
	struct fault_device *f = calloc(1, sizeof(*f));

	if (!f)
		return -ENOMEM;
	wrap_init(&f->wrap, &fault_ops, below);
	mutex_init(&f->lock);
	rng_init(&f->rng, seed);
	*dev = &f->wrap.dev;
	return 0;
}

int device_fault_add(struct device *fault_dev, const struct device_fault *fault)
{
	struct fault_device *f = container_of(fault_dev, struct fault_device, wrap.dev);
	bool is_of_reads = fault->kind == FAULT_BITFLIP || fault->kind == FAULT_SHORT_READ;
	bool is_of_writes = fault->kind == FAULT_LOST_WRITE || fault->kind == FAULT_MISDIRECTED_WRITE;
	int err = 0;

	if ((unsigned)fault->kind >= FAULT_KIND_NR || (is_of_reads && fault->op != DEVICE_READ) ||
	    (is_of_writes && fault->op != DEVICE_WRITE) || (fault->kind == FAULT_ERROR && fault->err >= 0) ||
	    fault->per_million > CERTAIN || (fault->end_bytes && fault->end_bytes <= fault->begin_bytes))
		return -EINVAL;

	mutex_lock(&f->lock);
	if (f->rule_nr < FAULT_RULES_MAX)
		f->rules[f->rule_nr++] = *fault;
	else
		err = -ENOSPC;
	mutex_unlock(&f->lock);
	return err;
}

void device_fault_clear(struct device *fault_dev)
{
	struct fault_device *f = container_of(fault_dev, struct fault_device, wrap.dev);

	mutex_lock(&f->lock);
	f->rule_nr = 0;
	mutex_unlock(&f->lock);
}

void device_fault_counts(struct device *fault_dev, uint64_t counts[FAULT_KIND_NR])
{
	struct fault_device *f = container_of(fault_dev, struct fault_device, wrap.dev);

	mutex_lock(&f->lock);
	memcpy(counts, f->counts, sizeof(f->counts));
	mutex_unlock(&f->lock);
}

static void fault_submit(struct device *dev, struct device_io *io)
{
	struct fault_device *f = container_of(dev, struct fault_device, wrap.dev);
	struct fault_plan plan = fault_plan_make(f, io);

	if (plan.is_hit && plan.kind == FAULT_ERROR) {
		if (io->op == DEVICE_FLUSH && f->wrap.below->ops->cache_lose)
			f->wrap.below->ops->cache_lose(f->wrap.below);
		io_done(io, plan.err);
		return;
	}
	if (plan.is_hit && plan.kind == FAULT_LOST_WRITE) {
		io_done(io, 0);
		return;
	}
	struct fault_io *child = malloc(sizeof(*child));
	if (!child) {
		io_done(io, -ENOMEM);
		return;
	}
	wrap_io_init(&child->io, io, &f->wrap);
	if (plan.is_hit && plan.kind == FAULT_MISDIRECTED_WRITE)
		child->io.offset_bytes = plan.elsewhere;
	child->parent = io;
	child->plan = plan;
	io_submit_below(&child->io, io, fault_complete);
}

static void fault_complete(struct device_io *io)
{
	struct fault_io *child = container_of(io, struct fault_io, io);
	struct device_io *parent = child->parent;
	struct fault_plan plan = child->plan;
	int err = io->err;

	parent->done_bytes = io->done_bytes;
	if (plan.is_hit && !err && plan.kind == FAULT_BITFLIP) {
		data_flip_bit(io, plan.bit_nr);
	} else if (plan.is_hit && !err && plan.kind == FAULT_SHORT_READ) {
		data_make_stale(io, plan.short_bytes);
		parent->done_bytes = plan.short_bytes;
		err = -EIO;
	}
	free(child);
	if (plan.is_hit && plan.kind == FAULT_LATENCY)
		io_done_at(parent, err, clock_monotonic_ns() + plan.latency_ns);
	else
		io_done(parent, err);
}

static void fault_close(struct device *dev)
{
	struct fault_device *f = container_of(dev, struct fault_device, wrap.dev);

	device_close(f->wrap.below);
	mutex_destroy(&f->lock);
	free(f);
}

static struct fault_plan fault_plan_make(struct fault_device *f, const struct device_io *io)
{
	struct fault_plan plan = { 0 };
	uint64_t unit = f->wrap.dev.logical_block_bytes;

	mutex_lock(&f->lock);
	for (unsigned i = 0; i < f->rule_nr && !plan.is_hit; i++) {
		struct device_fault *rule = &f->rules[i];

		if (!rule->remaining || !fault_matches(rule, io))
			continue;
		if (rule->per_million < CERTAIN && rng_below(&f->rng, CERTAIN) >= rule->per_million)
			continue;
		if (rule->remaining != UINT64_MAX)
			rule->remaining--;
		f->counts[rule->kind]++;
		plan = (struct fault_plan){
			.is_hit = true,
			.kind = rule->kind,
			.err = rule->err,
			.latency_ns = rule->latency_ns,
		};
		if (rule->kind == FAULT_BITFLIP)
			plan.bit_nr = fault_bit_choose(f, rule, io);
		else if (rule->kind == FAULT_SHORT_READ)
			plan.short_bytes = rng_below(&f->rng, io->len_bytes);
		else if (rule->kind == FAULT_MISDIRECTED_WRITE)
			plan.elsewhere = rng_below(&f->rng, (f->wrap.dev.size_bytes - io->len_bytes) / unit + 1) * unit;
	}
	mutex_unlock(&f->lock);
	return plan;
}

static bool fault_matches(const struct device_fault *rule, const struct device_io *io)
{
	if (rule->op != io->op)
		return false;
	if (io->op == DEVICE_FLUSH || !rule->end_bytes)
		return true;
	return io->offset_bytes < rule->end_bytes && rule->begin_bytes < io->offset_bytes + io->len_bytes;
}

/* Somewhere in what the rule's range and the I/O have in common. */
static uint64_t fault_bit_choose(struct fault_device *f, const struct device_fault *rule, const struct device_io *io)
{
	uint64_t begin = 0, end = io->len_bytes;

	if (rule->end_bytes) {
		if (rule->begin_bytes > io->offset_bytes)
			begin = rule->begin_bytes - io->offset_bytes;
		end = min(end, rule->end_bytes - io->offset_bytes);
	}
	return begin * 8 + rng_below(&f->rng, (end - begin) * 8);
}

static void data_flip_bit(const struct device_io *io, uint64_t bit_nr)
{
	uint64_t at = bit_nr / 8;

	for (unsigned i = 0; i < io->iov_nr; i++) {
		if (at < io->iov[i].iov_len) {
			((uint8_t *)io->iov[i].iov_base)[at] ^= (uint8_t)(1u << bit_nr % 8);
			return;
		}
		at -= io->iov[i].iov_len;
	}
}

static void data_make_stale(const struct device_io *io, uint64_t from_bytes)
{
	uint64_t begin = 0;

	for (unsigned i = 0; i < io->iov_nr; i++) {
		uint64_t skip = from_bytes > begin ? min(from_bytes - begin, io->iov[i].iov_len) : 0;

		if (skip < io->iov[i].iov_len)
			memset((uint8_t *)io->iov[i].iov_base + skip, STALE_BYTE, io->iov[i].iov_len - skip);
		begin += io->iov[i].iov_len;
	}
}
