/*
 * Small values around file data: reservations, inline data, errors, cookies, damage. 06 §3, 12 §8.5, §13.
 */
#include "format/file_data.h"

#include <inttypes.h>

#include "format/error_ids.h"
#include "format/value.h"

struct reservation_disk {
	le32 generation;
	uint8_t nr_replicas;
	uint8_t pad[3];
};
_Static_assert(sizeof(struct reservation_disk) == RESERVATION_BYTES, "reservation is 8 bytes");

enum { REPLICAS_MAX = 4 };

void reservation_decode(struct bkey_ref k, struct reservation *r)
{
	struct reservation_disk d;

	value_load(&d, sizeof(d), k);
	*r = (struct reservation){ .generation = le32_get(d.generation), .nr_replicas = d.nr_replicas };
}

void reservation_encode(const struct reservation *r, uint8_t value[RESERVATION_BYTES])
{
	struct reservation_disk d = { .generation = le32_of(r->generation), .nr_replicas = r->nr_replicas };

	memcpy(value, &d, sizeof(d));
}

int reservation_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	struct reservation r;

	reservation_decode(k, &r);
	if (!r.nr_replicas || r.nr_replicas > REPLICAS_MAX)
		return fault_set(fault, ERROR_reservation_key_nr_replicas_invalid, "nr_replicas", "1 to 4", "%u",
				 r.nr_replicas);
	return 0;
}

void reservation_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	struct reservation r;

	reservation_decode(k, &r);
	strbuf_printf(out, "generation %u replicas %u", r.generation, r.nr_replicas);
}

size_t inline_data_bytes(struct bkey_ref k, const uint8_t **bytes)
{
	size_t header = k.k.type == KEY_INDIRECT_INLINE_DATA ? 8 : 0, len = bkey_value_bytes(&k.k);

	header = min(header, len);
	*bytes = len ? (const uint8_t *)k.value + header : k.value;
	return len - header;
}

void inline_data_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	const uint8_t *bytes;
	size_t len = inline_data_bytes(k, &bytes);

	strbuf_printf(out, "datalen %zu: ", len);
	if (len)
		strbuf_add_hex(out, bytes, len);
}

uint8_t error_key_reason(struct bkey_ref k)
{
	uint8_t reason;

	value_load(&reason, sizeof(reason), k);
	return reason;
}

int error_key_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	if (k.k.value_u64s && !ctx->is_newer)
		return fault_set(fault, ERROR_bkey_val_size_nonzero, "value", "none", "%zu bytes",
				 bkey_value_bytes(&k.k));
	return 0;
}

void error_key_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	static const char *const reasons[] = { "unknown", "device_removed", "double_allocation",
					       "no_valid_pointers_repair" };
	uint8_t reason = error_key_reason(k);

	if (!k.k.value_u64s)
		return;
	if (reason < ARRAY_NR(reasons))
		strbuf_printf(out, "reason %s", reasons[reason]);
	else
		strbuf_printf(out, "reason %u", reason);
}

uint64_t cookie_decode(struct bkey_ref k)
{
	le64 cookie;

	value_load(&cookie, sizeof(cookie), k);
	return le64_get(cookie);
}

void cookie_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	strbuf_printf(out, "%" PRIu64, cookie_decode(k));
}

bool damage_entry_decode(struct bkey_ref k, unsigned index, struct damage_entry *e)
{
	if (index >= bkey_value_bytes(&k.k) / DAMAGE_ENTRY_BYTES)
		return false;

	const uint8_t *p = (const uint8_t *)k.value + (size_t)index * DAMAGE_ENTRY_BYTES;
	uint64_t lo = le64_load(p), hi = le64_load(p + 8);
	*e = (struct damage_entry){
		.error_id = (uint16_t)bits_get(lo, 0, 16),
		.count = (uint32_t)bits_get(lo, 16, 48),
		.last_sec = bits_get(lo, 48, 64) | bits_get(hi, 0, 24) << 16,
		.first_sec = bits_get(hi, 24, 64),
	};
	return true;
}

int damage_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	if (bkey_value_bytes(&k.k) % DAMAGE_ENTRY_BYTES)
		return fault_set(fault, ERROR_damage_entries_bad, "value", "whole entries of 16 bytes", "%zu bytes",
				 bkey_value_bytes(&k.k));
	return 0;
}

void damage_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	struct damage_entry e;

	for (unsigned i = 0; damage_entry_decode(k, i, &e); i++) {
		if (i)
			strbuf_add_char(out, ' ');
		if (error_id_name(e.error_id))
			strbuf_printf(out, "%s=%u", error_id_name(e.error_id), e.count);
		else
			strbuf_printf(out, "%u=%u", e.error_id, e.count);
	}
}
