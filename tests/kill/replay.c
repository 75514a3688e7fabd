/* Disks after a loss of power, from traces. See replay.h. */
#include "replay.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/array.h"
#include "base/util.h"

enum { DISKS_MAX = 4, COPY_BYTES = 65536 };

/* A write, flush or discard. */
struct step {
	uint64_t start_ns, done_ns;
	uint64_t offset_bytes, len_bytes;
	const uint8_t *data; /* writes */
	char op;	     /* as in the trace: W, F, D */
};

struct mapping {
	void *bytes;
	size_t len;
};

struct disk {
	int fd; /* memfd */
	uint8_t *bytes;
	uint64_t size_bytes;
	struct step *steps; /* in the order in which they were done */
	size_t steps_nr, steps_capacity;
	size_t durable_nr;    /* the first steps, which are in bytes */
	struct mapping *data; /* files of the traces */
	size_t data_nr, data_capacity;
};

struct replay {
	uint32_t logical_block_bytes;
	uint64_t now_ns;
	struct replay_counts counts;
	struct disk disks[DISKS_MAX];
	unsigned disks_nr;
};

struct replay_handle {
	struct device dev;
	struct disk *disk;
};

/* --- loading --- */

static int complain(const char *what, int err)
{
	printf("%s: %s\n", what, strerror(-err));
	return err;
}

static int image_copy(struct disk *d, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), err = 0;
	struct stat st;

	if (fd < 0 || fstat(fd, &st)) {
		err = -errno;
		goto out;
	}
	d->size_bytes = (uint64_t)st.st_size;
	d->fd = memfd_create("replay", MFD_CLOEXEC);
	if (d->fd < 0 || ftruncate(d->fd, st.st_size)) {
		err = -errno;
		goto out;
	}
	d->bytes = mmap(NULL, d->size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, d->fd, 0);
	if (d->bytes == MAP_FAILED) {
		err = -errno;
		goto out;
	}
	for (off_t at = lseek(fd, 0, SEEK_DATA); at >= 0 && !err; at = lseek(fd, at, SEEK_DATA)) {
		off_t end = lseek(fd, at, SEEK_HOLE);

		while (at < end && !err) {
			ssize_t n = pread(fd, d->bytes + at, (size_t)min(end - at, (off_t)COPY_BYTES), at);

			err = n > 0 ? 0 : -EIO;
			at += n;
		}
	}
out:
	if (fd >= 0)
		close(fd);
	return err ? complain(path, err) : 0;
}

struct replay *replay_new(const char *const *images, unsigned disks_nr, uint32_t logical_block_bytes)
{
	struct replay *r = calloc(1, sizeof(*r));

	if (!r || disks_nr > DISKS_MAX)
		abort();
	r->logical_block_bytes = logical_block_bytes;
	for (unsigned i = 0; i < disks_nr; i++) {
		r->disks_nr++;
		r->disks[i].fd = -1;
		if (image_copy(&r->disks[i], images[i])) {
			replay_free(r);
			return NULL;
		}
	}
	return r;
}

void replay_free(struct replay *r)
{
	for (unsigned i = 0; i < r->disks_nr; i++) {
		struct disk *d = &r->disks[i];

		for (size_t k = 0; k < d->data_nr; k++)
			munmap(d->data[k].bytes, d->data[k].len);
		if (d->bytes && d->bytes != MAP_FAILED)
			munmap(d->bytes, d->size_bytes);
		if (d->fd >= 0)
			close(d->fd);
		free(d->data);
		free(d->steps);
	}
	free(r);
}

static int data_map(const char *trace, struct mapping *data)
{
	char path[4096];
	struct stat st;

	snprintf(path, sizeof(path), "%s.data", trace);
	int fd = open(path, O_RDONLY | O_CLOEXEC), err = 0;
	if (fd < 0 || fstat(fd, &st)) {
		err = -errno;
	} else {
		data->len = max((size_t)st.st_size, (size_t)1);
		data->bytes = mmap(NULL, data->len, PROT_READ, MAP_PRIVATE, fd, 0);
		if (data->bytes == MAP_FAILED)
			err = -errno;
	}
	if (fd >= 0)
		close(fd);
	return err;
}

/* A line of the trace becomes a step; reads, whose op is R then, needn't. */
static int step_parse(const char *line, uint64_t opened_ns, const struct disk *d, const struct mapping *data,
		      struct step *step)
{
	unsigned long long done, took, offset, len;
	char data_text[32];
	int result;

	if (sscanf(line, "%llu %llu %c %llu %llu %d %31s", &done, &took, &step->op, &offset, &len, &result,
		   data_text) != 7)
		return -EINVAL;
	if (step->op == 'R')
		return 0;
	step->done_ns = opened_ns + done;
	step->start_ns = step->done_ns - took;
	step->offset_bytes = offset;
	step->len_bytes = len;
	uint64_t at = strtoull(data_text, NULL, 10);
	bool is_inside = offset <= d->size_bytes && len <= d->size_bytes - offset;
	bool has_data = step->op != 'W' || (data_text[0] != '-' && at <= data->len && len <= data->len - at);
	step->data = step->op == 'W' ? (const uint8_t *)data->bytes + at : NULL;
	if (step->op == 'D' && result)
		step->op = 'R'; /* nothing happened */
	else if (result || !is_inside || !has_data)
		return -EINVAL;
	return 0;
}

static int trace_load(struct replay *r, struct disk *d, const char *path)
{
	unsigned long long size, block, opened;
	struct mapping data;
	char line[256];
	int err = data_map(path, &data);

	if (err)
		return complain(path, err);
	if (array_grow(&d->data, &d->data_capacity, d->data_nr + 1, sizeof(*d->data)))
		abort();
	d->data[d->data_nr++] = data;
	FILE *f = fopen(path, "re");
	if (!f)
		return complain(path, -errno);
	if (!fgets(line, sizeof(line), f) ||
	    sscanf(line, "# kiln device trace 1 %llu %llu %llu", &size, &block, &opened) != 3 || size != d->size_bytes)
		err = -EINVAL;
	while (!err && fgets(line, sizeof(line), f)) {
		struct step step;

		err = step_parse(line, opened, d, &data, &step);
		if (err || step.op == 'R')
			continue;
		if (array_grow(&d->steps, &d->steps_capacity, d->steps_nr + 1, sizeof(*d->steps)))
			abort();
		d->steps[d->steps_nr++] = step;
		if (step.op == 'F')
			r->counts.flushes++;
		else
			r->counts.writes++;
	}
	fclose(f);
	return err ? complain(path, err) : 0;
}

static int step_compare(const void *a, const void *b)
{
	const struct step *x = a, *y = b;

	return (x->done_ns > y->done_ns) - (x->done_ns < y->done_ns);
}

int replay_add(struct replay *r, const char *const *traces)
{
	int err = 0;

	for (unsigned i = 0; i < r->disks_nr && !err; i++) {
		struct disk *d = &r->disks[i];

		err = trace_load(r, d, traces[i]);
		/* Lines of several threads may have changed places. */
		qsort(d->steps, d->steps_nr, sizeof(*d->steps), step_compare);
	}
	return err;
}

static bool is_at_risk(const struct replay *r, const struct step *s) { return s->start_ns < r->now_ns && s->op != 'F'; }

struct replay_counts replay_count(const struct replay *r)
{
	struct replay_counts counts = r->counts;

	for (unsigned i = 0; i < r->disks_nr; i++)
		for (size_t k = r->disks[i].durable_nr; k < r->disks[i].steps_nr; k++)
			counts.at_risk += is_at_risk(r, &r->disks[i].steps[k]);
	return counts;
}

/* --- time --- */

uint64_t replay_moment(const struct replay *r, struct rng *rng)
{
	size_t steps_nr = 0;

	for (unsigned i = 0; i < r->disks_nr; i++)
		steps_nr += r->disks[i].steps_nr;
	size_t nr = (size_t)rng_below(rng, steps_nr);
	unsigned i = 0;
	while (nr >= r->disks[i].steps_nr)
		nr -= r->disks[i++].steps_nr;
	const struct step *s = &r->disks[i].steps[nr];
	return rng_below(rng, 2) ? s->start_ns + 1 + rng_below(rng, s->done_ns - s->start_ns + 1)
				 : s->done_ns + rng_below(rng, 20000);
}

/*
 * What is discarded may read as anything, so whoever still wants it shall notice: at the start of each piece, since
 * more would copy all of its pages in every cut.
 */
static void discard(uint8_t *bytes, uint64_t len)
{
	enum { PIECE_BYTES = 65536, LOST_BYTES = 4096 };

	for (uint64_t at = 0; at < len; at += PIECE_BYTES)
		memset(bytes + at, 0xdd, min((uint64_t)LOST_BYTES, len - at));
}

static void step_apply(uint8_t *bytes, const struct step *s, uint64_t from, uint64_t len)
{
	if (s->op == 'D')
		discard(bytes + s->offset_bytes + from, len);
	else if (s->op == 'W')
		memcpy(bytes + s->offset_bytes + from, s->data + from, len);
}

/* How many of the first steps were done when the last flush was submitted that is done at @ns. */
static size_t durable_count(const struct disk *d, uint64_t ns)
{
	uint64_t flushed_ns = 0;
	size_t nr = d->durable_nr;

	for (size_t i = d->durable_nr; i < d->steps_nr && d->steps[i].done_ns <= ns; i++)
		if (d->steps[i].op == 'F')
			flushed_ns = max(flushed_ns, d->steps[i].start_ns);
	while (nr < d->steps_nr && d->steps[nr].done_ns <= flushed_ns)
		nr++;
	return nr;
}

void replay_advance(struct replay *r, uint64_t ns)
{
	for (unsigned i = 0; i < r->disks_nr; i++) {
		struct disk *d = &r->disks[i];

		for (size_t end = durable_count(d, ns); d->durable_nr < end; d->durable_nr++)
			step_apply(d->bytes, &d->steps[d->durable_nr], 0, d->steps[d->durable_nr].len_bytes);
	}
	r->now_ns = ns;
}

/* --- cuts --- */

static void step_maybe(const struct replay *r, struct rng *rng, uint8_t *bytes, const struct step *s)
{
	static const uint32_t units[] = { 512, 4096 };
	uint64_t fate = rng_below(rng, 4);

	if (fate == 0)
		return;
	if (fate != 1) {
		step_apply(bytes, s, 0, s->len_bytes);
		return;
	}
	/* Torn: a prefix, or any of its pieces. */
	uint32_t unit = max(units[rng_below(rng, 2)], r->logical_block_bytes);
	uint64_t prefix = rng_below(rng, 2) ? rng_below(rng, s->len_bytes / unit + 1) * unit : UINT64_MAX;

	for (uint64_t at = 0; at < s->len_bytes; at += unit)
		if (prefix == UINT64_MAX ? rng_below(rng, 2) : at < prefix)
			step_apply(bytes, s, at, min((uint64_t)unit, s->len_bytes - at));
}

static void disk_cut(const struct replay *r, struct disk *d, struct rng *rng)
{
	const struct step **at_risk = NULL;
	size_t nr = 0, capacity = 0;

	for (size_t i = d->durable_nr; i < d->steps_nr; i++)
		if (is_at_risk(r, &d->steps[i])) {
			if (array_grow(&at_risk, &capacity, nr + 1, sizeof(*at_risk)))
				abort();
			at_risk[nr++] = &d->steps[i];
		}
	/* Sometimes all of it got there, or nothing. */
	uint64_t fate = rng_below(rng, 8);
	for (size_t i = 0; i < nr && fate == 0; i++)
		step_apply(d->bytes, at_risk[i], 0, at_risk[i]->len_bytes);
	for (size_t left = nr; left && fate > 1; left--) {
		size_t i = (size_t)rng_below(rng, left);

		step_maybe(r, rng, d->bytes, at_risk[i]);
		at_risk[i] = at_risk[left - 1];
	}
	free(at_risk);
}

int replay_cut(struct replay *r, struct rng *rng)
{
	for (unsigned i = 0; i < r->disks_nr; i++) {
		struct disk *d = &r->disks[i];

		munmap(d->bytes, d->size_bytes);
		d->bytes = mmap(NULL, d->size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, d->fd, 0);
		if (d->bytes == MAP_FAILED)
			return complain("mapping", -errno);
	}
	for (unsigned i = 0; i < r->disks_nr; i++)
		disk_cut(r, &r->disks[i], rng);

	return 0;
}

/* --- disks after the cut --- */

static void replay_submit(struct device *dev, struct device_io *io)
{
	uint8_t *at = container_of(dev, struct replay_handle, dev)->disk->bytes + io->offset_bytes;
	uint64_t left = io->len_bytes;

	if (io->op == DEVICE_DISCARD)
		discard(at, io->len_bytes);
	for (unsigned i = 0; i < io->iov_nr && left; i++) {
		size_t bytes = min(left, io->iov[i].iov_len);

		if (io->op == DEVICE_READ)
			memcpy(io->iov[i].iov_base, at, bytes);
		else
			memcpy(at, io->iov[i].iov_base, bytes);
		at += bytes;
		left -= bytes;
	}
	io_done(io, 0);
}

static void replay_close(struct device *dev) { free(container_of(dev, struct replay_handle, dev)); }

static const struct device_ops replay_ops = { .kind = "replay", .submit = replay_submit, .close = replay_close };

int replay_open(struct replay *r, unsigned nr, struct device **dev)
{
	struct replay_handle *h = calloc(1, sizeof(*h));

	if (!h)
		return -ENOMEM;
	h->disk = &r->disks[nr];
	h->dev = (struct device){
		.ops = &replay_ops,
		.size_bytes = h->disk->size_bytes,
		.logical_block_bytes = r->logical_block_bytes,
		.io_align_bytes = r->logical_block_bytes,
		.mem_align_bytes = 1,
	};
	snprintf(h->dev.name, sizeof(h->dev.name), "disk%u", nr);
	*dev = &h->dev;
	return 0;
}

int replay_export(const struct replay *r, unsigned nr, const char *path)
{
	static const uint8_t zeroes[COPY_BYTES];
	const struct disk *d = &r->disks[nr];
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	int err = fd < 0 || ftruncate(fd, (off_t)d->size_bytes) ? -errno : 0;

	for (uint64_t at = 0; at < d->size_bytes && !err; at += COPY_BYTES) {
		size_t len = (size_t)min((uint64_t)COPY_BYTES, d->size_bytes - at);

		if (memcmp(d->bytes + at, zeroes, len) && pwrite(fd, d->bytes + at, len, (off_t)at) != (ssize_t)len)
			err = -EIO;
	}
	if (fd >= 0)
		close(fd);
	return err;
}
