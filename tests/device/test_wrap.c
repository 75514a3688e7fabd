/* Wrappers: what the trace says, and that each kind of fault happens as ordered. */
#include "device_test.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fiber.h"
#include "base/util.h"

enum { DEVICE_BYTES = 1 << 20, UNIT = 4096 };

static struct device *memory_open(void)
{
	struct device *dev;

	assert_int_equal(device_open_memory("memory", DEVICE_BYTES, 512, &dev), 0);
	return dev;
}

static struct device *fault_open(uint64_t seed)
{
	struct device *dev;

	assert_int_equal(device_wrap_fault(memory_open(), seed, &dev), 0);
	return dev;
}

static struct device_fault rule_make(enum device_fault_kind kind, enum device_op op)
{
	return (struct device_fault){
		.kind = kind,
		.op = op,
		.per_million = 1000000,
		.err = kind == FAULT_ERROR ? -EIO : 0,
		.remaining = UINT64_MAX,
	};
}

static uint64_t count_of(struct device *dev, enum device_fault_kind kind)
{
	uint64_t counts[FAULT_KIND_NR];

	device_fault_counts(dev, counts);
	return counts[kind];
}

/* --- trace --- */

struct trace_line {
	unsigned long long done_ns, took_ns, offset, len;
	char op, data[32];
	int result;
};

static bool trace_line_read(FILE *trace, struct trace_line *line)
{
	char text[256], end;

	if (!fgets(text, sizeof(text), trace))
		return false;
	assert_int_equal(sscanf(text, "%llu %llu %c %llu %llu %d %31[-0-9]%c", &line->done_ns, &line->took_ns,
				&line->op, &line->offset, &line->len, &line->result, line->data, &end),
			 8);
	assert_int_equal(end, '\n');
	return true;
}

static void assert_line(FILE *trace, char op, uint64_t offset, uint64_t len, int result, const char *data)
{
	struct trace_line line;

	assert_true(trace_line_read(trace, &line));
	assert_int_equal(line.op, op);
	assert_int_equal(line.offset, offset);
	assert_int_equal(line.len, len);
	assert_int_equal(line.result, result);
	assert_string_equal(line.data, data);
}

static void trace_has_a_line_for_each_io(void **state)
{
	const char *path = temp_path("trace");
	struct device *fault = fault_open(1), *dev;
	struct device_fault rule = rule_make(FAULT_ERROR, DEVICE_READ);
	uint8_t *buf = io_buffer_alloc(UNIT);
	uint64_t opened_ns, before_ns = clock_monotonic_ns();
	char head[128];

	rule.begin_bytes = 8 * UNIT;
	rule.end_bytes = 9 * UNIT;
	assert_int_equal(device_fault_add(fault, &rule), 0);
	assert_int_equal(device_wrap_trace(fault, path, false, &dev), 0);
	memset(buf, 1, UNIT);
	assert_int_equal(device_write(dev, 512, buf, 1024), 0);
	assert_int_equal(device_read(dev, 0, buf, UNIT), 0);
	assert_int_equal(device_read(dev, 8 * UNIT, buf, 512), -EIO);
	assert_int_equal(device_flush(dev), 0);
	assert_int_equal(device_discard(dev, 0, UNIT), 0);
	device_close(dev);

	FILE *trace = fopen(path, "r");
	assert_non_null(trace);
	assert_non_null(fgets(head, sizeof(head), trace));
	assert_int_equal(sscanf(head, "# kiln device trace 1 1048576 512 %" SCNu64 "\n", &opened_ns), 1);
	assert_in_range(opened_ns, before_ns, clock_monotonic_ns());
	assert_line(trace, 'W', 512, 1024, 0, "-");
	assert_line(trace, 'R', 0, UNIT, 0, "-");
	assert_line(trace, 'R', 8 * UNIT, 512, -EIO, "-");
	assert_line(trace, 'F', 0, 0, 0, "-");
	assert_line(trace, 'D', 0, UNIT, 0, "-");
	assert_null(fgets(head, sizeof(head), trace));
	fclose(trace);
	io_buffer_free(buf);
}

static void trace_with_data_can_be_replayed(void **state)
{
	const char *path = temp_path("trace");
	struct device *dev, *again = memory_open();
	uint8_t *buf = io_buffer_alloc(8 * UNIT), *model = io_buffer_alloc(DEVICE_BYTES);
	struct rng rng;
	struct trace_line line;
	char head[128], data_path[600];

	rng_init(&rng, test_seed());
	memset(model, 0, DEVICE_BYTES);
	assert_int_equal(device_wrap_trace(memory_open(), path, true, &dev), 0);
	for (unsigned i = 0; i < 50; i++) {
		uint64_t len = (1 + rng_below(&rng, 8)) * 512, at = rng_below(&rng, DEVICE_BYTES / 512 - 16) * 512;
		struct iovec iov[2] = { { buf, 512 }, { buf + 512, len } };
		struct device_io io = { DEVICE_WRITE, dev, at, iov, 2, len + 512 };
		struct io_group group;

		buffer_fill_random(&rng, buf, len + 512);
		memcpy(model + at, buf, len + 512);
		io_group_init(&group);
		io_submit(&group, &io);
		assert_int_equal(io_group_wait(&group), 0);
	}
	device_close(dev);

	FILE *trace = fopen(path, "r");
	snprintf(data_path, sizeof(data_path), "%s.data", path);
	int data = open(data_path, O_RDONLY);
	assert_true(data >= 0);
	assert_non_null(fgets(head, sizeof(head), trace));
	while (trace_line_read(trace, &line)) {
		assert_int_equal(line.op, 'W');
		assert_int_equal(pread(data, buf, line.len, strtoll(line.data, NULL, 10)), line.len);
		assert_int_equal(device_write(again, line.offset, buf, line.len), 0);
	}
	fclose(trace);
	close(data);
	uint8_t *all = io_buffer_alloc(DEVICE_BYTES);
	assert_int_equal(device_read(again, 0, all, DEVICE_BYTES), 0);
	assert_memory_equal(all, model, DEVICE_BYTES);
	device_close(again);
	io_buffer_free(all);
	io_buffer_free(buf);
	io_buffer_free(model);
}

static void trace_that_cannot_be_written_is_refused(void **state)
{
	struct device *below = memory_open(), *dev = NULL;

	assert_int_equal(device_wrap_trace(below, "/nonexistent/trace", false, &dev), -ENOENT);
	assert_null(dev);
	assert_int_equal(device_flush(below), 0); /* still open, still ours */
	device_close(below);
}

/* --- faults --- */

static void error_hits_its_range_and_operation_only(void **state)
{
	static const enum device_op ops[] = { DEVICE_READ, DEVICE_WRITE, DEVICE_DISCARD };
	uint8_t *buf = io_buffer_alloc(UNIT);

	for (unsigned i = 0; i < ARRAY_NR(ops); i++) {
		struct device *dev = fault_open(1);
		struct device_fault rule = rule_make(FAULT_ERROR, ops[i]);

		rule.begin_bytes = 2 * UNIT + 512;
		rule.end_bytes = 3 * UNIT;
		rule.err = -ENODATA;
		assert_int_equal(device_fault_add(dev, &rule), 0);
		for (unsigned unit = 0; unit < 5; unit++) {
			uint64_t at = unit * UNIT;

			assert_int_equal(device_read(dev, at, buf, UNIT), i == 0 && unit == 2 ? -ENODATA : 0);
			assert_int_equal(device_write(dev, at, buf, UNIT), i == 1 && unit == 2 ? -ENODATA : 0);
			assert_int_equal(device_discard(dev, at, UNIT), i == 2 && unit == 2 ? -ENODATA : 0);
		}
		assert_int_equal(device_read(dev, 2 * UNIT, buf, 512), 0); /* touches the range's begin from below */
		assert_int_equal(device_flush(dev), 0);
		assert_int_equal(count_of(dev, FAULT_ERROR), 1);
		assert_int_equal(dev->read_errors, i == 0);
		assert_int_equal(dev->write_errors, i != 0);
		device_close(dev);
	}
	io_buffer_free(buf);
}

static void failed_write_does_not_reach_the_device_below(void **state)
{
	struct device *dev = fault_open(1);
	struct device_fault rule = rule_make(FAULT_ERROR, DEVICE_WRITE);
	uint8_t *buf = io_buffer_alloc(UNIT);

	assert_int_equal(device_fault_add(dev, &rule), 0);
	memset(buf, 1, UNIT);
	assert_int_equal(device_write(dev, 0, buf, UNIT), -EIO);
	assert_int_equal(device_read(dev, 0, buf, UNIT), 0);
	assert_int_equal(buf[0], 0);
	device_fault_clear(dev);
	memset(buf, 1, UNIT);
	assert_int_equal(device_write(dev, 0, buf, UNIT), 0);
	device_close(dev);
	io_buffer_free(buf);
}

static void no_space_below_is_a_device_that_fails(void **state)
{
	static const int errors[] = { -ENOSPC, -EDQUOT };
	struct device *dev = fault_open(1);
	uint8_t *buf = io_buffer_alloc(UNIT);

	memset(buf, 1, UNIT);
	for (unsigned i = 0; i < ARRAY_NR(errors); i++) {
		struct device_fault rule = rule_make(FAULT_ERROR, DEVICE_WRITE);

		rule.err = errors[i];
		rule.remaining = 1;
		assert_int_equal(device_fault_add(dev, &rule), 0);
		int err = device_write(dev, 0, buf, UNIT);
		assert_int_equal(error_to_errno(err), -EIO);
		assert_string_equal(error_name(err), "no space where the image lies");
	}
	io_buffer_free(buf);
	device_close(dev);
}

static void flush_can_fail(void **state)
{
	struct device *dev = fault_open(1);
	struct device_fault rule = rule_make(FAULT_ERROR, DEVICE_FLUSH);

	rule.begin_bytes = UNIT; /* flushes have no range */
	rule.end_bytes = 2 * UNIT;
	rule.remaining = 1;
	assert_int_equal(device_flush(dev), 0);
	assert_int_equal(device_fault_add(dev, &rule), 0);
	assert_int_equal(device_flush(dev), -EIO);
	/* What was lost then isn't there now, though the device would say so. */
	assert_int_equal(device_flush(dev), -EIO);
	assert_int_equal(count_of(dev, FAULT_ERROR), 1);
	device_close(dev);
}

/* A device that flushes late: the nth ends after so long, so. */
struct late {
	struct device dev;
	unsigned nr;
	uint64_t takes_ns[2];
	int err[2];
};

static void late_submit(struct device *dev, struct device_io *io)
{
	struct late *late = container_of(dev, struct late, dev);
	unsigned n = late->nr++;

	io_done_at(io, late->err[n], clock_monotonic_ns() + late->takes_ns[n]);
}

static const struct device_ops late_ops = { .kind = "late", .submit = late_submit };

struct flusher {
	struct late *late; /* two */
	int err[2];
};

static void flusher_task(void *arg)
{
	struct flusher *f = arg;
	struct device_io ios[2];
	struct io_group group;

	io_group_init(&group);
	for (unsigned i = 0; i < 2; i++) {
		ios[i] = (struct device_io){ .op = DEVICE_FLUSH, .dev = &f->late[i].dev };
		io_submit(&group, &ios[i]);
	}
	for (struct device_io *io; (io = io_group_next(&group));)
		f->err[io - ios] = io->err;
}

/* Two tasks flush two devices at a time; of each device the one flush ends early and well, the other late. */
static void flushes_overlap(void *arg)
{
	struct late late[2];
	struct flusher flushers[2];
	struct task *tasks[2];

	for (unsigned i = 0; i < 2; i++)
		late[i] = (struct late){ .dev = { .ops = &late_ops, .name = "late" },
					 .takes_ns = { i ? 3000000 : 1000000, i ? 1000000 : 3000000 },
					 .err = { 0, 0 } };
	late[0].err[1] = *(const int *)arg;
	for (unsigned i = 0; i < 2; i++) {
		flushers[i] = (struct flusher){ .late = late };
		assert_int_equal(task_start(&tasks[i], "flusher", flusher_task, &flushers[i]), 0);
	}
	for (unsigned i = 0; i < 2; i++)
		task_join(tasks[i]);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(flushers[i].err[0], *(const int *)arg);
		assert_int_equal(flushers[i].err[1], 0);
	}
	assert_int_equal(late[0].dev.flushes_open | late[1].dev.flushes_open, 0);
}

static void a_flush_that_failed_fails_those_it_overlapped(void **state)
{
	(void)state;
	for (uint64_t seed = 1; seed <= 8; seed++) {
		int err = seed % 2 ? -EIO : 0;

		assert_int_equal(fiber_sim_run(&(struct fiber_sim_opts){ .seed = seed }, flushes_overlap, &err, NULL),
				 0);
	}
}

static void bit_flip_hits_one_bit_inside_its_range(void **state)
{
	struct device *dev = fault_open(test_seed());
	struct device_fault rule = rule_make(FAULT_BITFLIP, DEVICE_READ);
	uint8_t *buf = io_buffer_alloc(2 * UNIT);
	unsigned places_nr = 0, last_place = 0;

	rule.begin_bytes = UNIT + 100;
	rule.end_bytes = UNIT + 200;
	assert_int_equal(device_fault_add(dev, &rule), 0);
	for (unsigned round = 0; round < 50; round++) {
		struct iovec iov[3] = { { buf, 512 }, { buf + 512, UNIT }, { buf + 512 + UNIT, UNIT - 512 } };
		struct device_io io = { DEVICE_READ, dev, 0, iov, 3, 2 * UNIT };
		struct io_group group;
		unsigned flipped_nr = 0;

		io_group_init(&group);
		io_submit(&group, &io);
		assert_int_equal(io_group_wait(&group), 0);
		for (unsigned i = 0; i < 2 * UNIT; i++) {
			flipped_nr += (unsigned)__builtin_popcount(buf[i]);
			if (buf[i]) {
				assert_in_range(i, UNIT + 100, UNIT + 199);
				places_nr += i != last_place;
				last_place = i;
			}
		}
		assert_int_equal(flipped_nr, 1);
	}
	assert_true(places_nr > 10);
	assert_int_equal(count_of(dev, FAULT_BITFLIP), 50);
	device_fault_clear(dev);
	assert_int_equal(device_read(dev, 0, buf, 2 * UNIT), 0);
	for (unsigned i = 0; i < 2 * UNIT; i++)
		assert_int_equal(buf[i], 0); /* the medium wasn't touched */
	device_close(dev);
	io_buffer_free(buf);
}

static void short_read_is_eio_and_says_how_much_came(void **state)
{
	struct device *dev = fault_open(test_seed());
	struct device_fault rule = rule_make(FAULT_SHORT_READ, DEVICE_READ);
	uint8_t *buf = io_buffer_alloc(UNIT);
	struct iovec iov[2] = { { buf, 1024 }, { buf + 1024, UNIT - 1024 } };
	struct device_io io = { DEVICE_READ, dev, 0, iov, 2, UNIT };
	struct io_group group;

	assert_int_equal(device_fault_add(dev, &rule), 0);
	for (unsigned round = 0; round < 20; round++) {
		io_group_init(&group);
		io_submit(&group, &io);
		assert_int_equal(io_group_wait(&group), -EIO);
		assert_true(io.done_bytes < UNIT);
		for (unsigned i = 0; i < UNIT; i++)
			assert_int_equal(buf[i], i < io.done_bytes ? 0 : 0x5a);
	}
	assert_int_equal(count_of(dev, FAULT_SHORT_READ), 20);
	device_close(dev);
	io_buffer_free(buf);
}

/* Simulated time makes latency exact. A slow I/O doesn't hold up a quick one, nor add to another slow one. */
struct latency_result {
	uint64_t quick_ns, slow_ns;
	bool order_is_right;
	int err;
};

static void latency_run(void *arg)
{
	enum { MS = 1000000, IO_NR = 4 };
	static const unsigned units[IO_NR] = { 1, 0, 2, 1 };
	struct latency_result *result = arg;
	struct device *inner, *dev;
	struct device_fault rule = rule_make(FAULT_LATENCY, DEVICE_READ);
	uint8_t *buf = io_buffer_alloc(IO_NR * UNIT);
	struct device_io ios[IO_NR];
	struct iovec iov[IO_NR];
	struct io_group group;

	device_open_memory("memory", DEVICE_BYTES, 512, &dev);
	device_wrap_fault(dev, 1, &inner);
	device_wrap_fault(inner, 2, &dev);
	rule.end_bytes = UNIT;
	rule.latency_ns = 30 * MS;
	device_fault_add(inner, &rule);
	rule.begin_bytes = UNIT;
	rule.end_bytes = 2 * UNIT;
	rule.latency_ns = 10 * MS;
	device_fault_add(dev, &rule);

	uint64_t begin = clock_monotonic_ns();
	io_group_init(&group);
	for (unsigned i = 0; i < IO_NR; i++) {
		iov[i] = (struct iovec){ buf + i * UNIT, UNIT };
		ios[i] = (struct device_io){ DEVICE_READ, dev, units[i] * UNIT, &iov[i], 1, UNIT };
		io_submit(&group, &ios[i]);
	}
	result->order_is_right = io_group_next(&group) == &ios[2];
	result->quick_ns = clock_monotonic_ns() - begin;
	result->order_is_right &= io_group_next(&group) == &ios[0];
	result->order_is_right &= io_group_next(&group) == &ios[3];
	result->err = io_group_wait(&group);
	result->order_is_right &= ios[1].is_done;
	result->slow_ns = clock_monotonic_ns() - begin;
	device_close(dev);
	io_buffer_free(buf);
}

static void latency_delays_one_io_and_no_other(void **state)
{
	struct fiber_sim_opts opts = { .seed = test_seed() };
	struct fiber_sim_result sim;
	struct latency_result result = { 0 };

	assert_int_equal(fiber_sim_run(&opts, latency_run, &result, &sim), 0);
	assert_int_equal(result.err, 0);
	assert_true(result.order_is_right);
	assert_true(result.quick_ns < 10000000);
	assert_true(result.slow_ns >= 30000000 && result.slow_ns < 40000000);
}

static void first_rule_applies_and_is_used_up(void **state)
{
	struct device *dev = fault_open(1);
	struct device_fault first = rule_make(FAULT_ERROR, DEVICE_READ), second = first;
	uint8_t *buf = io_buffer_alloc(UNIT);

	first.err = -EIO;
	first.remaining = 2;
	second.err = -ETIMEDOUT;
	second.remaining = 1;
	assert_int_equal(device_fault_add(dev, &first), 0);
	assert_int_equal(device_fault_add(dev, &second), 0);
	assert_int_equal(device_read(dev, 0, buf, UNIT), -EIO);
	assert_int_equal(device_read(dev, 0, buf, UNIT), -EIO);
	assert_int_equal(device_read(dev, 0, buf, UNIT), -ETIMEDOUT);
	assert_int_equal(device_read(dev, 0, buf, UNIT), 0);
	assert_int_equal(count_of(dev, FAULT_ERROR), 3);
	device_close(dev);
	io_buffer_free(buf);
}

static void equal_seeds_make_equal_faults(void **state)
{
	enum { READ_NR = 400 };
	int results[2][READ_NR];
	unsigned failed_nr = 0;
	uint8_t *buf = io_buffer_alloc(UNIT);

	for (unsigned run = 0; run < 2; run++) {
		struct device *dev = fault_open(test_seed());
		struct device_fault rule = rule_make(FAULT_ERROR, DEVICE_READ);

		rule.per_million = 250000;
		assert_int_equal(device_fault_add(dev, &rule), 0);
		for (unsigned i = 0; i < READ_NR; i++)
			results[run][i] = device_read(dev, 0, buf, UNIT);
		device_close(dev);
	}
	assert_memory_equal(results[0], results[1], sizeof(results[0]));
	for (unsigned i = 0; i < READ_NR; i++)
		failed_nr += results[0][i] != 0;
	assert_in_range(failed_nr, 40, 160); /* 100 expected; 60 off is 7 standard deviations */
	io_buffer_free(buf);
}

static void senseless_rules_are_refused(void **state)
{
	struct device *dev = fault_open(1);
	struct device_fault good = rule_make(FAULT_ERROR, DEVICE_READ), bad;

	bad = good;
	bad.err = 5;
	assert_int_equal(device_fault_add(dev, &bad), -EINVAL);
	bad = good;
	bad.kind = FAULT_KIND_NR;
	assert_int_equal(device_fault_add(dev, &bad), -EINVAL);
	bad = rule_make(FAULT_BITFLIP, DEVICE_WRITE);
	assert_int_equal(device_fault_add(dev, &bad), -EINVAL);
	bad = rule_make(FAULT_SHORT_READ, DEVICE_FLUSH);
	assert_int_equal(device_fault_add(dev, &bad), -EINVAL);
	bad = good;
	bad.per_million = 1000001;
	assert_int_equal(device_fault_add(dev, &bad), -EINVAL);
	bad = good;
	bad.begin_bytes = bad.end_bytes = UNIT;
	assert_int_equal(device_fault_add(dev, &bad), -EINVAL);
	for (unsigned i = 0; i < FAULT_RULES_MAX; i++)
		assert_int_equal(device_fault_add(dev, &good), 0);
	assert_int_equal(device_fault_add(dev, &good), -ENOSPC);
	device_close(dev);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(trace_has_a_line_for_each_io),
		cmocka_unit_test(trace_with_data_can_be_replayed),
		cmocka_unit_test(trace_that_cannot_be_written_is_refused),
		cmocka_unit_test(error_hits_its_range_and_operation_only),
		cmocka_unit_test(failed_write_does_not_reach_the_device_below),
		cmocka_unit_test(no_space_below_is_a_device_that_fails),
		cmocka_unit_test(flush_can_fail),
		cmocka_unit_test(a_flush_that_failed_fails_those_it_overlapped),
		cmocka_unit_test(bit_flip_hits_one_bit_inside_its_range),
		cmocka_unit_test(short_read_is_eio_and_says_how_much_came),
		cmocka_unit_test(latency_delays_one_io_and_no_other),
		cmocka_unit_test(first_rule_applies_and_is_used_up),
		cmocka_unit_test(equal_seeds_make_equal_faults),
		cmocka_unit_test(senseless_rules_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
