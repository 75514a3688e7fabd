/* The backend in memory, by itself: slots are different, kept, and reused. */
#include "fixture.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "format/version.h"

enum { NODE_BYTES = 4096, NODES = 600 };

static const struct key_context kctx = { .version = VERSION_1_4, .node_sectors = NODE_BYTES / SECTOR_BYTES };

static void nodes_keep_what_was_written_and_are_reused(void **state)
{
	struct btree_memory *memory;
	struct btree_backend b;
	struct btree_node_reserve *reserve;
	static struct btree_ptr ptrs[NODES];
	uint8_t buf[NODE_BYTES];
	unsigned failed;

	assert_int_equal(btree_memory_open(&kctx, &memory), 0);
	btree_memory_backend(memory, &b);
	assert_int_equal(b.reserve(b.ctx, NODES + 5, NULL, WATERMARK_NORMAL, &reserve), 0);
	for (unsigned i = 0; i < NODES; i++) {
		struct dev_set seen = { 0 };

		b.node_alloc(b.ctx, reserve, &ptrs[i]);
		assert_int_equal(ptrs[i].ptr_nr, 1);
		assert_int_equal(extent_ptr_validate(&ptrs[i].ptrs[0], kctx.node_sectors, btree_memory_context(memory),
						     &seen, NULL),
				 0);
		memset(buf, (int)(i % 251), sizeof(buf));
		assert_int_equal(b.write(b.ctx, &ptrs[i], buf, 0, sizeof(buf), &failed), 0);
		assert_int_equal(failed, 0);
	}
	b.reserve_put(b.ctx, reserve);

	memset(buf, 0xff, 512);
	assert_int_equal(b.write(b.ctx, &ptrs[7], buf, 512, 512, &failed), 0);
	assert_int_equal(b.write(b.ctx, &ptrs[7], buf, NODE_BYTES - 256, 512, &failed), -EIO);
	for (unsigned i = 0; i < NODES; i++) {
		assert_int_equal(b.read(b.ctx, &ptrs[i], 0, buf, sizeof(buf)), 0);
		for (unsigned at = 0; at < sizeof(buf); at++)
			assert_int_equal(buf[at], i == 7 && at / 512 == 1 ? 0xff : i % 251);
	}

	/* What is freed comes again before there is more memory. */
	b.node_free(b.ctx, &ptrs[3]);
	struct btree_ptr again;
	assert_int_equal(b.reserve(b.ctx, 1, NULL, WATERMARK_NORMAL, &reserve), 0);
	b.node_alloc(b.ctx, reserve, &again);
	b.reserve_put(b.ctx, reserve);
	assert_true(again.ptrs[0].sector == ptrs[3].ptrs[0].sector);
	btree_memory_close(memory);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nodes_keep_what_was_written_and_are_reused),
	};

	return cmocka_run_group_tests_name("btree memory", tests, NULL, NULL);
}
