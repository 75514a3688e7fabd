/* Little-endian access, bit fields, growing arrays and memory for secrets. */
#include <setjmp.h>
#include <stdalign.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "base/array.h"
#include "base/le.h"
#include "base/secret.h"
#include "base/util.h"

static void little_endian_bytes_stand_lowest_first(void **state)
{
	static const uint8_t bytes[9] = { 0xee, 1, 2, 3, 4, 5, 6, 7, 8 };
	uint8_t out[9] = { 0xee };

	assert_int_equal(le16_load(bytes + 1), 0x0201);
	assert_int_equal(le32_load(bytes + 1), 0x04030201);
	assert_true(le64_load(bytes + 1) == 0x0807060504030201);
	le64_store(out + 1, 0x0807060504030201);
	assert_memory_equal(out, bytes, 9);
	assert_int_equal(alignof(le64), 1);
	assert_int_equal(le16_get(le16_of(0xfedc)), 0xfedc);
	assert_int_equal(le32_get(le32_of(0xfedcba98)), 0xfedcba98);
	assert_true(le64_get(le64_of(UINT64_MAX - 1)) == UINT64_MAX - 1);
}

static void bit_fields_leave_their_neighbours_alone(void **state)
{
	assert_true(bits_get(0xf0, 4, 8) == 0xf);
	assert_true(bits_get(UINT64_MAX, 0, 64) == UINT64_MAX);
	assert_true(bits_get(1ull << 63, 63, 64) == 1);
	assert_true(bits_set(UINT64_MAX, 8, 16, 0) == 0xffffffffffff00ff);
	assert_true(bits_set(0, 60, 64, 0x1f) == 0xf000000000000000); /* too large a value is cut */
	assert_true(bits_set(123, 0, 64, 456) == 456);
}

static void arithmetic_helpers_hold_at_the_ends(void **state)
{
	assert_true(div_round_up_u64(UINT64_MAX, 2) == 1ull << 63);
	assert_true(round_up_u64(4097, 4096) == 8192 && round_up_u64(4096, 4096) == 4096);
	assert_true(round_down_u64(4097, 4096) == 4096);
	assert_true(is_power_of_2(1) && is_power_of_2(1ull << 63) && !is_power_of_2(0) && !is_power_of_2(6));
	assert_int_equal(bit_length_u64(0), 0);
	assert_int_equal(bit_length_u64(1), 1);
	assert_int_equal(bit_length_u64(UINT64_MAX), 64);
}

static void arrays_grow_and_keep_their_elements(void **state)
{
	uint32_t *numbers = NULL;
	size_t capacity = 0, growth_nr = 0;

	for (uint32_t i = 0; i < 10000; i++) {
		size_t before = capacity;

		assert_int_equal(array_grow(&numbers, &capacity, i + 1, sizeof(*numbers)), 0);
		growth_nr += capacity != before;
		numbers[i] = i;
	}
	for (uint32_t i = 0; i < 10000; i++)
		assert_int_equal(numbers[i], i);
	assert_in_range(growth_nr, 1, 20);
	free(numbers);
}

static void arrays_too_large_for_memory_are_refused_unchanged(void **state)
{
	uint64_t *numbers = NULL, *before;
	size_t capacity = 0;

	assert_int_equal(array_grow(&numbers, &capacity, 3, sizeof(*numbers)), 0);
	numbers[2] = 7;
	before = numbers;
	assert_int_equal(array_grow(&numbers, &capacity, SIZE_MAX, sizeof(*numbers)), -ENOMEM);
	assert_int_equal(array_grow(&numbers, &capacity, SIZE_MAX / 8 + 1, sizeof(*numbers)), -ENOMEM);
	assert_int_equal(array_grow(&numbers, &capacity, SIZE_MAX / 8, sizeof(*numbers)), -ENOMEM);
	assert_ptr_equal(numbers, before);
	assert_in_range(capacity, 3, 100);
	assert_int_equal(numbers[2], 7);
	free(numbers);
}

static void secrets_are_zeroed_aligned_and_wiped(void **state)
{
	static const uint8_t zero[100];

	for (size_t len = 0; len <= sizeof(zero); len++) {
		uint8_t *secret = secret_alloc(len);

		assert_non_null(secret);
		assert_int_equal((uintptr_t)secret % alignof(max_align_t), 0);
		assert_memory_equal(secret, zero, len);
		memset(secret, 0xaa, len);
		secret_wipe(secret, len);
		assert_memory_equal(secret, zero, len);
		secret_free(secret);
	}
	assert_null(secret_alloc(SIZE_MAX));
	secret_free(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(little_endian_bytes_stand_lowest_first),
		cmocka_unit_test(bit_fields_leave_their_neighbours_alone),
		cmocka_unit_test(arithmetic_helpers_hold_at_the_ends),
		cmocka_unit_test(arrays_grow_and_keep_their_elements),
		cmocka_unit_test(arrays_too_large_for_memory_are_refused_unchanged),
		cmocka_unit_test(secrets_are_zeroed_aligned_and_wiped),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
