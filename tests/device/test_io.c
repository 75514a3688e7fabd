/* The promises that every kind of device keeps: one suite, run over all of them. */
#include "device_test.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/sync.h"
#include "base/util.h"

enum { DEVICE_BYTES = 1 << 20, UNIT = 4096, UNIT_NR = DEVICE_BYTES / UNIT };

static struct device_io io_make(struct device *dev, enum device_op op, uint64_t offset_bytes, struct iovec *iov)
{
	return (struct device_io){
		.op = op,
		.dev = dev,
		.offset_bytes = offset_bytes,
		.iov = iov,
		.iov_nr = 1,
		.len_bytes = iov->iov_len,
	};
}

/* Opens a device of the kind that is under test, filled with random bytes that *@model gets too. */
static struct device *filled_open(void **state, struct rng *rng, uint8_t **model)
{
	struct device *dev = kind_open(*state, DEVICE_BYTES);

	rng_init(rng, test_seed());
	*model = io_buffer_alloc(DEVICE_BYTES);
	assert_non_null(*model);
	buffer_fill_random(rng, *model, DEVICE_BYTES);
	assert_int_equal(device_write(dev, 0, *model, DEVICE_BYTES), 0);
	return dev;
}

static void fresh_device_reads_as_zeroes(void **state)
{
	struct device *dev = kind_open(*state, DEVICE_BYTES);
	uint8_t *buf = io_buffer_alloc(DEVICE_BYTES);

	memset(buf, 0xff, DEVICE_BYTES);
	assert_int_equal(dev->size_bytes, DEVICE_BYTES);
	assert_int_equal(device_read(dev, 0, buf, DEVICE_BYTES), 0);
	for (size_t i = 0; i < DEVICE_BYTES; i++)
		assert_int_equal(buf[i], 0);
	io_buffer_free(buf);
	device_close(dev);
}

static void reads_return_what_was_written(void **state)
{
	struct rng rng;
	uint8_t *model, *buf = io_buffer_alloc(DEVICE_BYTES);
	struct device *dev = filled_open(state, &rng, &model);

	assert_int_equal(device_flush(dev), 0);
	assert_int_equal(device_read(dev, 0, buf, DEVICE_BYTES), 0);
	assert_memory_equal(buf, model, DEVICE_BYTES);
	assert_int_equal(dev->read_errors, 0);
	assert_int_equal(dev->write_errors, 0);
	assert_true(dev->read_latency_ns > 0);
	io_buffer_free(model);
	io_buffer_free(buf);
	device_close(dev);
}

/* Every alignment of offset, length and memory, alone and in a group. */
static void reads_of_any_alignment_are_served(void **state)
{
	static const uint32_t offsets[] = { 0, 1, 511, 512, 4095, 4096, 4097, 3 * 512, DEVICE_BYTES - 12288 };
	static const uint32_t lens[] = { 1, 7, 511, 512, 513, 4096, 4097, 8192, 12288 };
	static const uint32_t skews[] = { 0, 1, 8, 512 };
	struct rng rng;
	uint8_t *model;
	struct device *dev = filled_open(state, &rng, &model);

	for (unsigned i = 0; i < ARRAY_NR(offsets) * ARRAY_NR(lens) * ARRAY_NR(skews) * 2; i++) {
		uint32_t offset = offsets[i / 2 % ARRAY_NR(offsets)];
		uint32_t len = lens[i / 2 / ARRAY_NR(offsets) % ARRAY_NR(lens)];
		uint32_t skew = skews[i / 2 / ARRAY_NR(offsets) / ARRAY_NR(lens)];
		void *base;
		uint8_t *buf = buffer_skewed(len + 1, skew, &base);

		buf[len] = 0xa5;
		if (i % 2) {
			assert_int_equal(device_read(dev, offset, buf, len), 0);
		} else {
			struct iovec iov[2] = { { buf, len / 3 }, { buf + len / 3, len - len / 3 } };
			struct device_io io = io_make(dev, DEVICE_READ, offset, iov);
			struct io_group group;

			io.iov_nr = 2;
			io.len_bytes = len;
			io_group_init(&group);
			io_submit(&group, &io);
			assert_ptr_equal(io_group_next(&group), &io);
			assert_int_equal(io.err, 0);
			assert_int_equal(io.done_bytes, len);
			assert_null(io_group_next(&group));
		}
		assert_memory_equal(buf, model + offset, len);
		assert_int_equal(buf[len], 0xa5);
		io_buffer_free(base);
	}
	io_buffer_free(model);
	device_close(dev);
}

static void unaligned_writes_and_discards_are_refused(void **state)
{
	struct rng rng;
	uint8_t *model, *buf = io_buffer_alloc(DEVICE_BYTES);
	struct device *dev = filled_open(state, &rng, &model);

	if (dev->io_align_bytes > 1) {
		assert_int_equal(device_write(dev, 1, buf, 4096), -EINVAL);
		assert_int_equal(device_write(dev, dev->io_align_bytes / 2, buf, 4096), -EINVAL);
		assert_int_equal(device_write(dev, 0, buf, dev->io_align_bytes + 1), -EINVAL);
	}
	if (dev->mem_align_bytes > 1)
		assert_int_equal(device_write(dev, 0, buf + 1, 4096), -EINVAL);
	assert_int_equal(device_discard(dev, dev->logical_block_bytes / 2, 4096), -EINVAL);
	assert_int_equal(device_discard(dev, 0, 4095), -EINVAL);

	struct iovec iov = { buf, 4096 };
	struct device_io io = io_make(dev, DEVICE_WRITE, 0, &iov);
	struct io_group group;
	io.len_bytes = 8192; /* not what the pieces add up to */
	io_group_init(&group);
	io_submit(&group, &io);
	assert_int_equal(io_group_wait(&group), -EINVAL);

	assert_int_equal(device_read(dev, 0, buf, DEVICE_BYTES), 0);
	assert_memory_equal(buf, model, DEVICE_BYTES);
	io_buffer_free(model);
	io_buffer_free(buf);
	device_close(dev);
}

static void io_beyond_the_end_is_eio(void **state)
{
	static const uint64_t offsets[] = { DEVICE_BYTES - UNIT, DEVICE_BYTES, 1ull << 40, 0 - 2ull * UNIT,
					    1ull << 63 };
	uint8_t *buf = io_buffer_alloc(2 * UNIT);
	struct device *dev = kind_open(*state, DEVICE_BYTES);

	memset(buf, 1, 2 * UNIT);
	for (unsigned i = 0; i < ARRAY_NR(offsets); i++) {
		assert_int_equal(device_read(dev, offsets[i], buf, 2 * UNIT), -EIO);
		assert_int_equal(device_read(dev, offsets[i] + 1, buf, 2 * UNIT), -EIO);
		assert_int_equal(device_write(dev, offsets[i], buf, 2 * UNIT), -EIO);
		assert_int_equal(device_discard(dev, offsets[i], 2 * UNIT), -EIO);
	}
	/* Nothing was written in part. */
	assert_int_equal(device_read(dev, DEVICE_BYTES - UNIT, buf, UNIT), 0);
	assert_int_equal(buf[0], 0);
	assert_int_equal(buf[UNIT - 1], 0);

	struct stat st;
	if (!stat(dev->name, &st))
		assert_int_equal(st.st_size, DEVICE_BYTES);
	io_buffer_free(buf);
	device_close(dev);
}

static void io_of_nothing_succeeds(void **state)
{
	struct device *dev = kind_open(*state, DEVICE_BYTES);

	assert_int_equal(device_read(dev, 17, NULL, 0), 0);
	assert_int_equal(device_write(dev, DEVICE_BYTES, NULL, 0), 0);
	assert_int_equal(device_discard(dev, 0, 0), 0);
	device_close(dev);
}

static void discard_leaves_its_neighbours_alone(void **state)
{
	struct rng rng;
	uint8_t *model, *buf = io_buffer_alloc(DEVICE_BYTES);
	struct device *dev = filled_open(state, &rng, &model);
	int err = device_discard(dev, 3 * UNIT, 5 * UNIT);

	if (err != -EOPNOTSUPP)
		assert_int_equal(err, 0);
	assert_int_equal(device_read(dev, 0, buf, DEVICE_BYTES), 0);
	assert_memory_equal(buf, model, 3 * UNIT);
	assert_memory_equal(buf + 8 * UNIT, model + 8 * UNIT, DEVICE_BYTES - 8 * UNIT);
	io_buffer_free(model);
	io_buffer_free(buf);
	device_close(dev);
}

/* Far more than a ring holds at once. */
static void group_returns_each_io_once(void **state)
{
	enum { IO_NR = 700 };
	struct rng rng;
	uint8_t *model, *buf = io_buffer_alloc(IO_NR * 512);
	struct device *dev = filled_open(state, &rng, &model);
	struct device_io *ios = calloc(IO_NR, sizeof(*ios));
	struct iovec *iov = calloc(IO_NR, sizeof(*iov));
	bool seen[IO_NR] = { false };
	struct io_group group;
	unsigned seen_nr = 0;

	io_group_init(&group);
	assert_null(io_group_next(&group));
	for (unsigned i = 0; i < IO_NR; i++) {
		iov[i] = (struct iovec){ buf + i * 512, 512 };
		ios[i] = io_make(dev, DEVICE_READ, rng_below(&rng, DEVICE_BYTES / 512) * 512, &iov[i]);
		io_submit(&group, &ios[i]);
		if (i % 100 == 0)
			io_group_push(&group);
	}
	for (struct device_io *io; (io = io_group_next(&group)); seen_nr++) {
		unsigned i = (unsigned)(io - ios);

		assert_true(io->is_done);
		assert_int_equal(io->err, 0);
		assert_false(seen[i]);
		seen[i] = true;
		assert_memory_equal(iov[i].iov_base, model + io->offset_bytes, 512);
	}
	assert_int_equal(seen_nr, IO_NR);
	assert_int_equal(group.in_flight, 0);
	assert_null(group.ring);
	free(ios);
	free(iov);
	io_buffer_free(model);
	io_buffer_free(buf);
	device_close(dev);
}

static void group_wait_returns_the_first_error(void **state)
{
	struct device *dev = kind_open(*state, DEVICE_BYTES);
	uint8_t *buf = io_buffer_alloc(3 * UNIT);
	struct iovec iov[3];
	struct device_io ios[3];
	struct io_group group;

	io_group_init(&group);
	for (unsigned i = 0; i < 3; i++) {
		iov[i] = (struct iovec){ buf + i * UNIT, UNIT };
		ios[i] = io_make(dev, DEVICE_READ, i == 1 ? DEVICE_BYTES : 0, &iov[i]);
		io_submit(&group, &ios[i]);
	}
	assert_int_equal(io_group_wait(&group), -EIO);
	for (unsigned i = 0; i < 3; i++) {
		assert_true(ios[i].is_done);
		assert_int_equal(ios[i].err, i == 1 ? -EIO : 0);
	}
	assert_int_equal(io_group_wait(&group), 0);
	io_buffer_free(buf);
	device_close(dev);
}

/* More than the kernel takes in one call (IOV_MAX). */
static void io_in_thousands_of_pieces_is_whole(void **state)
{
	enum { PIECE_NR = 2500, PIECE_BYTES = 4096, BYTES = PIECE_NR * PIECE_BYTES };
	struct device *dev = kind_open(*state, BYTES);
	uint8_t *from = io_buffer_alloc(BYTES), *to = io_buffer_alloc(BYTES);
	struct iovec *iov = calloc(PIECE_NR, sizeof(*iov));
	struct rng rng;

	rng_init(&rng, test_seed());
	buffer_fill_random(&rng, from, BYTES);
	memset(to, 0, BYTES);
	for (int write = 1; write >= 0; write--) {
		struct device_io io = { .op = write ? DEVICE_WRITE : DEVICE_READ, .dev = dev, .iov = iov };
		struct io_group group;

		for (unsigned i = 0; i < PIECE_NR; i++)
			iov[i] = (struct iovec){ (write ? from : to) + i * PIECE_BYTES, PIECE_BYTES };
		io.iov_nr = PIECE_NR;
		io.len_bytes = BYTES;
		io_group_init(&group);
		io_submit(&group, &io);
		assert_int_equal(io_group_wait(&group), 0);
		assert_int_equal(io.done_bytes, BYTES);
	}
	assert_memory_equal(from, to, BYTES);
	free(iov);
	io_buffer_free(from);
	io_buffer_free(to);
	device_close(dev);
}

/* Groups of random operations on separate units, against a copy in memory. */
static void random_groups_match_a_model(void **state)
{
	enum { ROUND_NR = 60, IO_NR = 24 };
	struct rng rng;
	uint8_t *model, *buf = io_buffer_alloc(IO_NR * UNIT);
	struct device *dev = filled_open(state, &rng, &model);

	for (unsigned round = 0; round < ROUND_NR; round++) {
		struct device_io ios[IO_NR];
		struct iovec iov[IO_NR];
		struct io_group group;
		unsigned first = (unsigned)rng_below(&rng, UNIT_NR - IO_NR);

		io_group_init(&group);
		for (unsigned i = 0; i < IO_NR; i++) {
			uint64_t at = (uint64_t)(first + i) * UNIT;
			bool is_write = rng_below(&rng, 2);

			iov[i] = (struct iovec){ buf + i * UNIT, UNIT };
			ios[i] = io_make(dev, is_write ? DEVICE_WRITE : DEVICE_READ, at, &iov[i]);
			if (is_write) {
				buffer_fill_random(&rng, iov[i].iov_base, UNIT);
				memcpy(model + at, iov[i].iov_base, UNIT);
			}
			io_submit(&group, &ios[i]);
		}
		struct device_io flush = { .op = DEVICE_FLUSH, .dev = dev };
		io_submit(&group, &flush);
		assert_int_equal(io_group_wait(&group), 0);
		assert_true(flush.is_done);
		for (unsigned i = 0; i < IO_NR; i++)
			assert_memory_equal(iov[i].iov_base, model + ios[i].offset_bytes, UNIT);
	}
	uint8_t *all = io_buffer_alloc(DEVICE_BYTES);
	assert_int_equal(device_read(dev, 0, all, DEVICE_BYTES), 0);
	assert_memory_equal(all, model, DEVICE_BYTES);
	io_buffer_free(all);
	io_buffer_free(model);
	io_buffer_free(buf);
	device_close(dev);
}

/* cmocka's assertions only work in the main thread, so users report what went wrong. */
struct user {
	struct device *dev;
	uint64_t begin_bytes, len_bytes, seed;
	const char *failure;
};

static const char *user_round(struct user *user, struct rng *rng, uint8_t *model, uint8_t *buf)
{
	enum { IO_NR = 8 };
	struct device_io ios[IO_NR];
	struct iovec iov[IO_NR];
	struct io_group group;

	io_group_init(&group);
	for (unsigned i = 0; i < IO_NR; i++) {
		uint64_t at = (rng_below(rng, user->len_bytes / UNIT / IO_NR) * IO_NR + i) * UNIT;
		bool is_write = rng_below(rng, 2);

		iov[i] = (struct iovec){ buf + i * UNIT, UNIT };
		ios[i] = io_make(user->dev, is_write ? DEVICE_WRITE : DEVICE_READ, user->begin_bytes + at, &iov[i]);
		if (is_write) {
			buffer_fill_random(rng, iov[i].iov_base, UNIT);
			memcpy(model + at, iov[i].iov_base, UNIT);
		}
		io_submit(&group, &ios[i]);
	}
	if (io_group_wait(&group))
		return "I/O failed";
	for (unsigned i = 0; i < IO_NR; i++)
		if (memcmp(iov[i].iov_base, model + ios[i].offset_bytes - user->begin_bytes, UNIT))
			return "group read something else";
	uint64_t at = rng_below(rng, user->len_bytes - UNIT);
	if (device_read(user->dev, user->begin_bytes + at, buf, UNIT))
		return "read failed";
	return memcmp(buf, model + at, UNIT) ? "read something else" : NULL;
}

static void user_run(void *arg)
{
	struct user *user = arg;
	struct rng rng;
	uint8_t *model = io_buffer_alloc(user->len_bytes), *buf = io_buffer_alloc(UNIT * 8);

	rng_init(&rng, user->seed);
	memset(model, 0, user->len_bytes);
	for (unsigned round = 0; round < 100 && !user->failure; round++)
		user->failure = user_round(user, &rng, model, buf);
	io_buffer_free(model);
	io_buffer_free(buf);
}

static void threads_with_their_own_groups_do_not_disturb_each_other(void **state)
{
	enum { USER_NR = 6 };
	struct device *dev = kind_open(*state, USER_NR * DEVICE_BYTES / 4);
	struct user users[USER_NR];
	struct task *tasks[USER_NR];

	for (unsigned i = 0; i < USER_NR; i++) {
		users[i] = (struct user){
			.dev = dev,
			.begin_bytes = i * DEVICE_BYTES / 4,
			.len_bytes = DEVICE_BYTES / 4,
			.seed = test_seed() + i,
		};
		assert_int_equal(task_start(&tasks[i], "user", user_run, &users[i]), 0);
	}
	for (unsigned i = 0; i < USER_NR; i++)
		task_join(tasks[i]);
	for (unsigned i = 0; i < USER_NR; i++)
		if (users[i].failure)
			fail_msg("user %u: %s", i, users[i].failure);
	device_close(dev);
}

/* One group over all kinds at once; runs once, not per kind. */
static void one_group_spans_devices_of_different_kinds(void **state)
{
	enum { PER_DEVICE = 5 };
	struct device *devices[16];
	struct device_io ios[16][PER_DEVICE];
	struct iovec iov[16][PER_DEVICE];
	unsigned nr = 0;
	struct io_group group;
	uint8_t *to = io_buffer_alloc(16 * PER_DEVICE * UNIT), *from = io_buffer_alloc(PER_DEVICE * UNIT);

	for (unsigned k = 0; k < device_kind_nr; k++)
		if (!device_kinds[k].needs_uring || uring_is_allowed())
			devices[nr++] = kind_open(&device_kinds[k], DEVICE_BYTES);
	io_group_init(&group);
	for (unsigned d = 0; d < nr; d++) {
		memset(from, (int)d + 1, PER_DEVICE * UNIT);
		assert_int_equal(device_write(devices[d], 0, from, PER_DEVICE * UNIT), 0);
	}
	for (unsigned i = 0; i < PER_DEVICE; i++)
		for (unsigned d = 0; d < nr; d++) {
			iov[d][i] = (struct iovec){ to + (d * PER_DEVICE + i) * UNIT, UNIT };
			ios[d][i] = io_make(devices[d], DEVICE_READ, i * UNIT, &iov[d][i]);
			io_submit(&group, &ios[d][i]);
		}
	unsigned done_nr = 0;
	for (struct device_io *io; (io = io_group_next(&group)); done_nr++)
		assert_int_equal(io->err, 0);
	assert_int_equal(done_nr, nr * PER_DEVICE);
	for (unsigned d = 0; d < nr; d++) {
		assert_int_equal(to[d * PER_DEVICE * UNIT], d + 1);
		assert_int_equal(to[(d + 1) * PER_DEVICE * UNIT - 1], d + 1);
		device_close(devices[d]);
	}
	io_buffer_free(from);
	io_buffer_free(to);
}

static void memory_device_refuses_impossible_sizes(void **state)
{
	struct device *dev;

	assert_int_equal(device_open_memory("m", 0, 512, &dev), -EINVAL);
	assert_int_equal(device_open_memory("m", 4096 + 512, 4096, &dev), -EINVAL);
	assert_int_equal(device_open_memory("m", 1 << 20, 1024, &dev), -EINVAL);
	assert_int_equal(device_open_memory("m", 1ull << 63, 512, &dev), -EINVAL);
}

/* Larger than what ThreadSanitizer leaves of the address space; written where pieces of the mapping meet, too. */
static void huge_memory_device_is_sparse(void **state)
{
	const uint64_t huge_bytes = (1ull << 43) + 512; /* 8 TiB */
	const uint64_t at[] = { 0, (1ull << 30) - 512, (1ull << 42) - 1024, huge_bytes - 2048 };
	struct device *dev;
	uint8_t from[2048], to[2048];
	struct rng rng;

	rng_init(&rng, test_seed());
	assert_int_equal(device_open_memory("m", huge_bytes, 512, &dev), 0);
	assert_int_equal(device_read(dev, huge_bytes / 4, to, sizeof(to)), 0);
	for (size_t i = 0; i < sizeof(to); i++)
		assert_int_equal(to[i], 0);
	for (size_t i = 0; i < ARRAY_NR(at); i++) {
		buffer_fill_random(&rng, from, sizeof(from));
		assert_int_equal(device_write(dev, at[i], from, sizeof(from)), 0);
		assert_int_equal(device_read(dev, at[i], to, sizeof(to)), 0);
		assert_memory_equal(from, to, sizeof(from));
	}
	device_close(dev);
}

static const struct CMUnitTest suite[] = {
	cmocka_unit_test(fresh_device_reads_as_zeroes),
	cmocka_unit_test(reads_return_what_was_written),
	cmocka_unit_test(reads_of_any_alignment_are_served),
	cmocka_unit_test(unaligned_writes_and_discards_are_refused),
	cmocka_unit_test(io_beyond_the_end_is_eio),
	cmocka_unit_test(io_of_nothing_succeeds),
	cmocka_unit_test(discard_leaves_its_neighbours_alone),
	cmocka_unit_test(group_returns_each_io_once),
	cmocka_unit_test(group_wait_returns_the_first_error),
	cmocka_unit_test(io_in_thousands_of_pieces_is_whole),
	cmocka_unit_test(random_groups_match_a_model),
	cmocka_unit_test(threads_with_their_own_groups_do_not_disturb_each_other),
};

static const struct CMUnitTest once[] = {
	cmocka_unit_test(one_group_spans_devices_of_different_kinds),
	cmocka_unit_test(memory_device_refuses_impossible_sizes),
	cmocka_unit_test(huge_memory_device_is_sparse),
};

int main(void)
{
	int failed_nr = 0;

	for (unsigned k = 0; k < device_kind_nr; k++) {
		struct CMUnitTest tests[ARRAY_NR(suite)];

		memcpy(tests, suite, sizeof(suite));
		for (unsigned i = 0; i < ARRAY_NR(suite); i++)
			tests[i].initial_state = (void *)&device_kinds[k];
		failed_nr += cmocka_run_group_tests_name(device_kinds[k].name, tests, NULL, NULL);
	}
	failed_nr += cmocka_run_group_tests_name("any", once, NULL, NULL);
	return failed_nr != 0;
}
