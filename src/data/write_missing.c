/* Writing data isn't there yet: what write.h declares and nothing defines. Goes away piece by piece. */
#include <errno.h>

#include "data/write.h"

int data_start_write(struct data *data, struct allocator *allocator) { return -EOPNOTSUPP; }
void data_stop_write(struct data *data) {}

ssize_t data_write(struct data *data, const struct data_write_target *file, uint64_t offset_bytes, const void *buf,
		   size_t len_bytes, const struct data_write_times *times, uint64_t *journal_seq)
{
	return -EOPNOTSUPP;
}

int data_truncate(struct data *data, const struct data_write_target *file, uint64_t size_bytes,
		  const struct data_write_times *times, uint64_t *journal_seq)
{
	return -EOPNOTSUPP;
}

int data_punch(struct data *data, const struct data_write_target *file, uint64_t offset_bytes, uint64_t len_bytes,
	       const struct data_write_times *times, uint64_t *journal_seq)
{
	return -EOPNOTSUPP;
}

int data_resume_truncate(struct data *data, uint64_t op_nr, uint32_t snapshot, uint64_t inum, uint64_t new_size_bytes)
{
	return -EOPNOTSUPP;
}
