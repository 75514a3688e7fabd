/* What is special about files and block devices: opening, locks, geometry, rings. */
#include "device_test.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fiber.h"
#include "base/util.h"

enum { FILE_BYTES = 1 << 20, UNIT = 4096 };

static struct device *must_open(const char *path, unsigned flags)
{
	struct device *dev;
	char why[256] = "";
	int err = device_open_file(path, flags, NULL, &dev, why);

	if (err)
		fail_msg("%s: %d", why, err);
	return dev;
}

static int open_error(const char *path, unsigned flags, char why[256])
{
	struct device *dev = NULL;
	int err = device_open_file(path, flags, NULL, &dev, why);

	device_close(dev);
	return err;
}

/* A group of @nr reads of a unit each, from the start; whether all hold @byte. Usable in children. */
static bool group_reads_byte(struct device *dev, unsigned nr, uint8_t byte)
{
	struct device_io ios[16];
	struct iovec iov[16];
	struct io_group group;
	uint8_t *buf = io_buffer_alloc(16 * UNIT);

	memset(buf, (uint8_t)~byte, 16 * UNIT);
	io_group_init(&group);
	for (unsigned i = 0; i < nr; i++) {
		iov[i] = (struct iovec){ buf + i * UNIT, UNIT };
		ios[i] = (struct device_io){
			.op = DEVICE_READ,
			.dev = dev,
			.offset_bytes = i * UNIT,
			.iov = &iov[i],
			.iov_nr = 1,
			.len_bytes = UNIT,
		};
		io_submit(&group, &ios[i]);
	}
	bool is_good = !io_group_wait(&group);
	for (unsigned i = 0; i < nr * UNIT; i++)
		is_good &= buf[i] == byte;
	io_buffer_free(buf);
	return is_good;
}

static const char *file_of_byte(const char *name, uint64_t bytes, uint8_t byte)
{
	const char *path = temp_path(name);
	uint8_t *buf = io_buffer_alloc(bytes);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	memset(buf, byte, bytes);
	assert_int_equal(pwrite(fd, buf, bytes, 0), bytes);
	close(fd);
	io_buffer_free(buf);
	return path;
}

/* --- who may open what --- */

/* A process that has @path open until it is told to go. */
struct holder {
	pid_t process;
	int stop_fd;
};

static struct holder holder_start(const char *path, unsigned flags)
{
	int ready[2], stop[2];
	char byte;

	assert_int_equal(pipe(ready), 0);
	assert_int_equal(pipe(stop), 0);
	pid_t child = fork();
	if (!child) {
		struct device *dev;

		close(stop[1]);
		byte = device_open_file(path, flags, NULL, &dev, NULL) == 0;
		if (write(ready[1], &byte, 1) != 1 || read(stop[0], &byte, 1) < 0)
			_exit(1);
		_exit(0);
	}
	close(stop[0]);
	close(ready[1]);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	assert_int_equal(byte, 1);
	close(ready[0]);
	return (struct holder){ child, stop[1] };
}

static void holder_stop(struct holder holder)
{
	close(holder.stop_fd);
	assert_int_equal(waitpid(holder.process, NULL, 0), holder.process);
}

static void assert_names(const char *why, const char *path, pid_t process)
{
	char text[64];

	snprintf(text, sizeof(text), "(process %d)", process);
	assert_non_null(strstr(why, path));
	if (!strstr(why, text))
		fail_msg("\"%s\" doesn't name process %d", why, process);
}

static void reader_meeting_a_writer_is_told_who_and_what_to_do(void **state)
{
	const char *path = file_of_byte("locked", FILE_BYTES, 1);
	struct holder writer = holder_start(path, DEVICE_OPEN_WRITE);
	char why[256] = "";

	assert_int_equal(open_error(path, 0, why), -EBUSY);
	assert_names(why, path, writer.process);
	assert_non_null(strstr(why, "Wait until that ends."));
	assert_int_equal(open_error(path, 0, NULL), -EBUSY);
	holder_stop(writer);
	assert_int_equal(open_error(path, 0, why), 0);
}

static void reader_may_force_its_way_past_a_writer(void **state)
{
	const char *path = file_of_byte("locked", FILE_BYTES, 1);
	struct holder writer = holder_start(path, DEVICE_OPEN_WRITE);
	struct device *dev = must_open(path, DEVICE_OPEN_FORCE);

	assert_true(group_reads_byte(dev, 3, 1));
	device_close(dev);
	holder_stop(writer);
}

static void writer_meets_nobody(void **state)
{
	const char *path = file_of_byte("locked", FILE_BYTES, 1);
	char why[256] = "";

	for (unsigned flags = 0; flags <= DEVICE_OPEN_WRITE; flags += DEVICE_OPEN_WRITE) {
		struct holder holder = holder_start(path, flags);

		assert_int_equal(open_error(path, DEVICE_OPEN_WRITE, why), -EBUSY);
		assert_names(why, path, holder.process);
		assert_int_equal(open_error(path, DEVICE_OPEN_WRITE | DEVICE_OPEN_FORCE, why), -EBUSY);
		holder_stop(holder);
	}
}

static void readers_share(void **state)
{
	const char *path = file_of_byte("locked", FILE_BYTES, 1);
	struct holder reader = holder_start(path, 0);

	assert_int_equal(open_error(path, 0, NULL), 0);
	holder_stop(reader);
}

static void locks_hold_within_one_process_too(void **state)
{
	const char *path = file_of_byte("locked", FILE_BYTES, 1);
	struct device *dev = must_open(path, DEVICE_OPEN_WRITE);
	char why[256] = "";

	assert_int_equal(open_error(path, 0, why), -EBUSY);
	assert_non_null(strstr(why, "this process"));
	device_close(dev);
	assert_int_equal(open_error(path, 0, why), 0);
}

static void what_is_no_device_is_refused_by_name(void **state)
{
	const char *fifo = temp_path("fifo");
	char why[256] = "";

	assert_int_equal(open_error(temp_path("nothing"), 0, why), -ENOENT);
	assert_non_null(strstr(why, "nothing"));
	assert_int_equal(open_error(temp_dir(), 0, why), -ENOTBLK);
	assert_non_null(strstr(why, temp_dir()));
	assert_int_equal(mkfifo(fifo, 0600), 0);
	assert_int_equal(open_error(fifo, 0, why), -ENOTBLK); /* and doesn't wait for a writer */
	assert_int_equal(open_error("/dev/null", 0, why), -ENOTBLK);
}

static void readonly_device_refuses_writes(void **state)
{
	const char *path = file_of_byte("readonly", FILE_BYTES, 3);
	struct device *dev = must_open(path, 0);
	uint8_t *buf = io_buffer_alloc(UNIT);

	assert_true(dev->is_readonly);
	assert_int_equal(device_write(dev, 0, buf, UNIT), -EROFS);
	assert_int_equal(device_discard(dev, 0, UNIT), -EROFS);
	assert_int_equal(device_flush(dev), 0);
	assert_true(group_reads_byte(dev, 16, 3));
	io_buffer_free(buf);
	device_close(dev);
}

/* --- geometry --- */

static void file_ends_at_its_last_whole_sector(void **state)
{
	const char *path = file_of_byte("odd", 10000, 4);
	static const unsigned flags[] = { 0, DEVICE_OPEN_NO_DIRECT, DEVICE_OPEN_NO_URING };

	for (unsigned i = 0; i < ARRAY_NR(flags); i++) {
		struct device *dev = must_open(path, flags[i]);
		uint8_t buf[512] = { 0 };

		assert_int_equal(dev->size_bytes, 19 * 512);
		assert_int_equal(dev->logical_block_bytes, 512);
		assert_int_equal(device_read(dev, 18 * 512, buf, 512), 0);
		assert_int_equal(buf[511], 4);
		assert_int_equal(device_read(dev, 18 * 512 + 1, buf, 512), -EIO);
		device_close(dev);
	}
}

/* As on a filesystem that wants direct I/O in units of 4096 bytes: the bounce buffer reaches beyond the end. */
static void tail_shorter_than_the_alignment_is_readable(void **state)
{
	const char *path = file_of_byte("tail", 3 * 4096 + 512, 5);
	static const unsigned flags[] = { 0, DEVICE_OPEN_NO_DIRECT, DEVICE_OPEN_NO_URING };

	for (unsigned i = 0; i < ARRAY_NR(flags); i++) {
		struct device *dev = must_open(path, flags[i]);
		uint8_t buf[1024] = { 0 };
		struct iovec iov = { buf, 1024 };
		struct device_io io = { DEVICE_READ, dev, 3 * 4096 - 512, &iov, 1, 1024 };
		struct io_group group;

		dev->io_align_bytes = 4096;
		assert_int_equal(device_read(dev, 3 * 4096, buf, 512), 0);
		assert_int_equal(buf[511], 5);
		memset(buf, 0, sizeof(buf));
		io_group_init(&group);
		io_submit(&group, &io);
		assert_int_equal(io_group_wait(&group), 0);
		assert_int_equal(buf[0], 5);
		assert_int_equal(buf[1023], 5);
		device_close(dev);
	}
}

/* One that is done already is no reason to come back before the last one is. */
static void waiting_for_all_waits_for_the_last(void **state)
{
	struct device *dev = must_open(file_of_byte("last", FILE_BYTES, 7), 0), *memory;
	uint8_t *buf = io_buffer_alloc(2 * UNIT);
	struct iovec iov[2] = { { buf, UNIT }, { buf + UNIT, UNIT } };
	struct device_io ios[2] = { { DEVICE_READ, dev, 0, &iov[0], 1, UNIT } };
	struct io_group group;

	assert_int_equal(device_open_memory("memory", FILE_BYTES, 4096, &memory), 0);
	ios[1] = (struct device_io){ DEVICE_READ, memory, 0, &iov[1], 1, UNIT };
	io_group_init(&group);
	io_submit(&group, &ios[0]);
	io_submit(&group, &ios[1]); /* done at once */
	assert_int_equal(io_group_wait(&group), 0);
	assert_int_equal(buf[0], 7);
	assert_true(ios[0].is_done && ios[1].is_done);
	io_buffer_free(buf);
	device_close(memory);
	device_close(dev);
}

static void read_from_a_file_that_shrank_says_how_much_came(void **state)
{
	static const unsigned flags[] = { 0, DEVICE_OPEN_NO_DIRECT, DEVICE_OPEN_NO_URING };

	for (unsigned i = 0; i < ARRAY_NR(flags); i++) {
		const char *path = file_of_byte("shrinking", FILE_BYTES, 6);
		struct device *dev = must_open(path, flags[i]);
		uint8_t *buf = io_buffer_alloc(4 * UNIT);
		struct iovec iov = { buf, 4 * UNIT };
		struct device_io io = { DEVICE_READ, dev, 0, &iov, 1, 4 * UNIT };
		struct io_group group;

		assert_int_equal(truncate(path, 2 * UNIT), 0);
		io_group_init(&group);
		io_submit(&group, &io);
		assert_int_equal(io_group_wait(&group), -EIO);
		assert_int_equal(io.done_bytes, 2 * UNIT);
		assert_int_equal(device_read(dev, UNIT, buf, 2 * UNIT), -EIO);
		assert_int_equal(device_read(dev, 8 * UNIT, buf, UNIT), -EIO);
		assert_int_equal(dev->read_errors, 3);
		assert_int_equal(device_read(dev, UNIT, buf, UNIT), 0);
		io_buffer_free(buf);
		device_close(dev);
	}
}

/* --- rings --- */

static void rings_are_borrowed_only_while_needed(void **state)
{
	const char *path = file_of_byte("ring", FILE_BYTES, 7);
	uint8_t *buf = io_buffer_alloc(UNIT);

	for (unsigned forbid = 0; forbid < 2; forbid++) {
		struct device *dev = must_open(path, forbid ? DEVICE_OPEN_NO_URING : 0);
		struct iovec iov = { buf, UNIT };
		struct device_io io = { DEVICE_READ, dev, 0, &iov, 1, UNIT };
		struct io_group group;

		io_group_init(&group);
		io_submit(&group, &io);
		if (forbid)
			assert_null(group.ring);
		else if (uring_is_allowed())
			assert_non_null(group.ring);
		assert_ptr_equal(io_group_next(&group), &io);
		assert_null(group.ring);
		device_close(dev);
	}
	io_buffer_free(buf);
}

static bool child_reads(void *dev) { return group_reads_byte(dev, 16, 8) && group_reads_byte(dev, 16, 8); }

/* The pool's rings are memory that a child shares with its parent. */
static void parent_and_child_use_rings_of_their_own(void **state)
{
	struct device *dev = must_open(file_of_byte("fork", FILE_BYTES, 8), 0);

	assert_true(group_reads_byte(dev, 16, 8));
	for (unsigned i = 0; i < 4; i++) {
		assert_true(child_succeeds(child_reads, dev));
		assert_true(group_reads_byte(dev, 16, 8));
	}
	device_close(dev);
}

static bool child_without_descriptors_reads(void *dev)
{
	struct rlimit none = { 0, 0 };

	return !setrlimit(RLIMIT_NOFILE, &none) && group_reads_byte(dev, 16, 9);
}

static void io_goes_on_when_no_ring_can_be_made(void **state)
{
	struct device *dev = must_open(file_of_byte("limit", FILE_BYTES, 9), 0);

	assert_true(child_succeeds(child_without_descriptors_reads, dev));
	device_close(dev);
}

/* As containers do: io_uring_setup() is -EPERM. */
static bool uring_forbid(void)
{
	struct sock_filter rules[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { ARRAY_NR(rules), rules };

	return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static void count_line(void *ctx, enum log_level level, const char *line)
{
	if (strstr(line, "io_uring"))
		(*(int *)ctx)++;
}

static bool child_without_uring_reads(void *path)
{
	int line_nr = 0;
	struct log_sink log = { count_line, &line_nr, LOG_LEVEL_INFO };
	struct device *dev;

	if (!uring_forbid() || uring_is_allowed() || device_open_file(path, 0, &log, &dev, NULL))
		return false;
	bool is_good = group_reads_byte(dev, 16, 10) && line_nr == 1;
	device_close(dev);
	return is_good;
}

static void forbidden_uring_is_logged_and_done_without(void **state)
{
	assert_true(child_succeeds(child_without_uring_reads, (void *)file_of_byte("seccomp", FILE_BYTES, 10)));
}

static void fiber_read(void *path)
{
	struct device *dev;

	if (device_open_file(path, 0, NULL, &dev, NULL))
		return;
	if (group_reads_byte(dev, 16, 11))
		*(char *)path = 'X';
	device_close(dev);
}

static void files_work_in_fiber_mode(void **state)
{
	struct fiber_sim_opts opts = { .seed = test_seed() };
	struct fiber_sim_result result;
	char path[512];

	snprintf(path, sizeof(path), "%s", file_of_byte("fiber", FILE_BYTES, 11));
	assert_int_equal(fiber_sim_run(&opts, fiber_read, path, &result), 0);
	assert_int_equal(path[0], 'X');
}

/* --- block devices --- */

static void block_device_keeps_all_promises(uint32_t block_bytes, unsigned flags)
{
	char path[64], why[256] = "";
	int loop = loop_open(FILE_BYTES, block_bytes, path);
	struct device *dev = must_open(path, DEVICE_OPEN_WRITE | flags);
	uint8_t *buf = io_buffer_alloc(4 * UNIT), *model = io_buffer_alloc(4 * UNIT);
	struct rng rng;

	assert_string_equal(dev->ops->kind, "block");
	assert_int_equal(dev->size_bytes, FILE_BYTES);
	assert_int_equal(dev->logical_block_bytes, block_bytes);
	assert_int_equal(dev->io_align_bytes, dev->is_direct ? block_bytes : 1);

	rng_init(&rng, test_seed());
	buffer_fill_random(&rng, model, 4 * UNIT);
	assert_int_equal(device_write(dev, 4 * UNIT, model, 4 * UNIT), 0);
	assert_int_equal(device_flush(dev), 0);
	for (unsigned offset = 0; offset < 3 * UNIT; offset += 509) {
		assert_int_equal(device_read(dev, 4 * UNIT + offset, buf + 1, 1000), 0);
		assert_memory_equal(buf + 1, model + offset, 1000);
	}
	if (dev->is_direct)
		assert_int_equal(device_write(dev, block_bytes / 2, model, block_bytes), -EINVAL);
	else
		assert_int_equal(device_write(dev, block_bytes / 2, model, block_bytes), 0);
	assert_int_equal(device_read(dev, FILE_BYTES, buf, UNIT), -EIO);

	int err = device_discard(dev, 5 * UNIT, UNIT);
	assert_true(!err || err == -EOPNOTSUPP);
	assert_int_equal(device_read(dev, 4 * UNIT, buf, 4 * UNIT), 0);
	assert_memory_equal(buf, model, UNIT);
	assert_memory_equal(buf + 2 * UNIT, model + 2 * UNIT, 2 * UNIT);

	assert_int_equal(open_error(path, 0, why), -EBUSY);
	assert_int_equal(open_error(path, DEVICE_OPEN_WRITE, why), -EBUSY);
	assert_non_null(strstr(why, "this process"));
	device_close(dev);

	/* The kernel has it for itself, as when it is mounted. */
	int exclusive = open(path, O_RDONLY | O_EXCL | O_CLOEXEC);
	assert_true(exclusive >= 0);
	why[0] = 0;
	assert_int_equal(open_error(path, DEVICE_OPEN_WRITE, why), -EBUSY);
	assert_non_null(strstr(why, "mounted"));
	close(exclusive);
	io_buffer_free(buf);
	io_buffer_free(model);
	close(loop);
}

static void block_device_of_512_bytes_keeps_all_promises(void **state)
{
	block_device_keeps_all_promises(512, 0);
	block_device_keeps_all_promises(512, DEVICE_OPEN_NO_URING);
}

static void block_device_of_4096_bytes_keeps_all_promises(void **state)
{
	block_device_keeps_all_promises(4096, 0);
	block_device_keeps_all_promises(4096, DEVICE_OPEN_NO_URING);
}

/* How a filesystem with smaller blocks than the device's is written. */
static void buffered_block_device_takes_any_alignment(void **state)
{
	block_device_keeps_all_promises(4096, DEVICE_OPEN_NO_DIRECT);
}

/* The host's page cache may hold it, ring or not, aligned or not: the bytes are the file's. */
static void reads_that_may_be_cached_give_the_same_bytes(void **state)
{
	const char *path = temp_path("cached");
	uint8_t expected[4 * UNIT], *buf = io_buffer_alloc(sizeof(expected));
	struct rng rng;

	rng_init(&rng, test_seed());
	temp_file_create(path, FILE_BYTES);
	buffer_fill_random(&rng, expected, sizeof(expected));
	struct device *dev = must_open(path, DEVICE_OPEN_WRITE | DEVICE_OPEN_NO_DIRECT);
	assert_int_equal(device_write(dev, FILE_BYTES - sizeof(expected), expected, sizeof(expected)), 0);
	device_close(dev);

	static const unsigned flags[] = { 0, DEVICE_OPEN_NO_URING, DEVICE_OPEN_NO_DIRECT };
	for (unsigned i = 0; i < ARRAY_NR(flags); i++) {
		dev = must_open(path, flags[i]);
		for (uint64_t skip = 0; skip < sizeof(expected); skip += 1 + rng_below(&rng, 700)) {
			size_t len = 1 + rng_below(&rng, sizeof(expected) - skip);
			struct iovec iov = { buf, len };
			struct device_io io = {
				.op = DEVICE_READ,
				.dev = dev,
				.offset_bytes = FILE_BYTES - sizeof(expected) + skip,
				.iov = &iov,
				.iov_nr = 1,
				.len_bytes = len,
				.may_be_cached = true,
			};
			struct io_group group;

			memset(buf, 0xee, sizeof(expected));
			io_group_init(&group);
			io_submit(&group, &io);
			assert_int_equal(io_group_wait(&group), 0);
			assert_memory_equal(buf, expected + skip, len);
		}
		device_close(dev);
	}
	io_buffer_free(buf);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(reader_meeting_a_writer_is_told_who_and_what_to_do),
		cmocka_unit_test(reader_may_force_its_way_past_a_writer),
		cmocka_unit_test(writer_meets_nobody),
		cmocka_unit_test(readers_share),
		cmocka_unit_test(locks_hold_within_one_process_too),
		cmocka_unit_test(what_is_no_device_is_refused_by_name),
		cmocka_unit_test(readonly_device_refuses_writes),
		cmocka_unit_test(file_ends_at_its_last_whole_sector),
		cmocka_unit_test(tail_shorter_than_the_alignment_is_readable),
		cmocka_unit_test(read_from_a_file_that_shrank_says_how_much_came),
		cmocka_unit_test(reads_that_may_be_cached_give_the_same_bytes),
		cmocka_unit_test(rings_are_borrowed_only_while_needed),
		cmocka_unit_test(parent_and_child_use_rings_of_their_own),
		cmocka_unit_test(io_goes_on_when_no_ring_can_be_made),
		cmocka_unit_test(forbidden_uring_is_logged_and_done_without),
		cmocka_unit_test(files_work_in_fiber_mode),
		cmocka_unit_test(waiting_for_all_waits_for_the_last),
		cmocka_unit_test(block_device_of_512_bytes_keeps_all_promises),
		cmocka_unit_test(block_device_of_4096_bytes_keeps_all_promises),
		cmocka_unit_test(buffered_block_device_takes_any_alignment),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
