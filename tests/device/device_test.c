#include "device_test.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <liburing.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/util.h"

const struct device_kind device_kinds[] = {
	{ "file, io_uring", DEVICE_OPEN_WRITE, .needs_uring = true },
	{ "file, fallback", DEVICE_OPEN_WRITE | DEVICE_OPEN_NO_URING },
	{ "file, io_uring, buffered", DEVICE_OPEN_WRITE | DEVICE_OPEN_NO_DIRECT, .needs_uring = true },
	{ "file, fallback, buffered", DEVICE_OPEN_WRITE | DEVICE_OPEN_NO_DIRECT | DEVICE_OPEN_NO_URING },
	{ "memory 512", .memory_block_bytes = 512 },
	{ "memory 4096", .memory_block_bytes = 4096 },
	{ "trace on file", DEVICE_OPEN_WRITE, .is_traced = true },
	{ "fault on file", DEVICE_OPEN_WRITE, .is_faulty = true },
	{ "trace on fault on memory", .memory_block_bytes = 4096, .is_traced = true, .is_faulty = true },
};
const unsigned device_kind_nr = ARRAY_NR(device_kinds);

struct device *kind_open(const struct device_kind *kind, uint64_t size_bytes)
{
	struct device *dev = NULL;

	if (kind->needs_uring && !uring_is_allowed()) {
		skip_loudly(kind->name, "this process may not use io_uring");
		return NULL;
	}
	if (kind->memory_block_bytes) {
		assert_int_equal(device_open_memory("memory", size_bytes, kind->memory_block_bytes, &dev), 0);
	} else {
		static unsigned file_nr;
		char name[32], why[256] = "";

		snprintf(name, sizeof(name), "device-%u", file_nr++);
		const char *path = temp_path(name);
		temp_file_create(path, size_bytes);
		int err = device_open_file(path, kind->file_flags, NULL, &dev, why);
		if (err)
			fail_msg("%s: %d", why, err);
	}
	if (kind->is_faulty)
		assert_int_equal(device_wrap_fault(dev, 1, &dev), 0);
	if (kind->is_traced)
		assert_int_equal(device_wrap_trace(dev, temp_path("trace"), true, &dev), 0);
	return dev;
}

bool uring_is_allowed(void)
{
	struct io_uring ring;

	if (io_uring_queue_init(1, &ring, 0))
		return false;
	io_uring_queue_exit(&ring);
	return true;
}

void skip_loudly(const char *what, const char *why)
{
	fprintf(stderr, "*** NOT TESTED: %s: %s ***\n", what, why);
	skip();
}

static char temp_dir_path[256];
static pid_t temp_dir_owner;

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw) { return remove(path); }

/* Children that a test forks leave the directory alone. */
static void temp_dir_remove(void)
{
	if (getpid() == temp_dir_owner)
		nftw(temp_dir_path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

const char *temp_dir(void)
{
	if (!temp_dir_path[0]) {
		const char *tmp = getenv("TMPDIR");

		snprintf(temp_dir_path, sizeof(temp_dir_path), "%s/kiln-device-XXXXXX", tmp ? tmp : "/tmp");
		if (!mkdtemp(temp_dir_path))
			fail_msg("%s: %s", temp_dir_path, strerror(errno));
		temp_dir_owner = getpid();
		atexit(temp_dir_remove);
	}
	return temp_dir_path;
}

const char *temp_path(const char *name)
{
	static char paths[8][512];
	static unsigned turn;
	char *path = paths[turn++ % ARRAY_NR(paths)];

	snprintf(path, sizeof(paths[0]), "%s/%s", temp_dir(), name);
	return path;
}

void temp_file_create(const char *path, uint64_t size_bytes)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)size_bytes), 0);
	close(fd);
}

/* Detaches itself with the last close. Another process may grab the free number first: try again. */
int loop_open(uint64_t size_bytes, uint32_t logical_block_bytes, char path[64])
{
	const char *file_path = temp_path("loop-file");
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), loop = -1;

	temp_file_create(file_path, size_bytes);
	int file = open(file_path, O_RDWR | O_CLOEXEC);
	struct loop_config config = {
		.fd = (uint32_t)file,
		.block_size = logical_block_bytes,
		.info.lo_flags = LO_FLAGS_AUTOCLEAR,
	};
	for (unsigned try_nr = 0; control >= 0 && loop < 0 && try_nr < 20; try_nr++) {
		int number = ioctl(control, LOOP_CTL_GET_FREE);

		snprintf(path, 64, "/dev/loop%d", number);
		loop = number < 0 ? -1 : open(path, O_RDWR | O_CLOEXEC);
		if (loop >= 0 && ioctl(loop, LOOP_CONFIGURE, &config)) {
			close(loop);
			loop = -1;
		}
	}
	close(file);
	if (control >= 0)
		close(control);
	if (loop < 0)
		skip_loudly("block devices", "no loop device can be made here (that takes root)");
	return loop;
}

bool child_succeeds(bool (*fn)(void *arg), void *arg)
{
	pid_t child = fork();
	int status = 0;

	if (!child)
		_exit(fn(arg) ? 0 : 1);
	while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	return child > 0 && WIFEXITED(status) && !WEXITSTATUS(status);
}

static uint64_t seed;

static void seed_print(void) { fprintf(stderr, "repeat with KILN_TEST_SEED=%llu\n", (unsigned long long)seed); }

/* Printed at every exit: cmocka leaves no better place, and the output of passing tests isn't shown. */
uint64_t test_seed(void)
{
	if (!seed) {
		const char *text = getenv("KILN_TEST_SEED");

		seed = text ? strtoull(text, NULL, 0) : clock_realtime_ns();
		atexit(seed_print);
	}
	return seed;
}

void buffer_fill_random(struct rng *rng, void *buf, size_t bytes)
{
	uint8_t *at = buf;

	for (size_t i = 0; i < bytes; i += 8) {
		uint64_t value = rng_u64(rng);

		memcpy(at + i, &value, min(bytes - i, sizeof(value)));
	}
}

uint8_t *buffer_skewed(size_t bytes, size_t skew_bytes, void **base)
{
	*base = io_buffer_alloc(bytes + skew_bytes);
	assert_non_null(*base);
	return (uint8_t *)*base + skew_bytes;
}
