/*
 * Shared extents: reflink_p (15) in the extents btree refers to a range of the reflink btree, whose keys reflink_v (16)
 * and indirect_inline_data (19) hold a reference count and then what an extent or inline_data holds. 06 §3.3-3.5, 12
 * §8.5.
 */
#include <inttypes.h>

#include "format/error_ids.h"
#include "format/extent.h"
#include "format/value.h"

struct reflink_p_disk {
	le64 idx_flags; /* [0,56) sector in the reflink btree, 56 error, 57 may update options */
	le32 front_pad, back_pad;
};
_Static_assert(sizeof(struct reflink_p_disk) == REFLINK_P_BYTES, "reflink_p is 16 bytes");

int reflink_p_decode(struct bkey_ref k, struct reflink_p *p)
{
	struct reflink_p_disk d;

	if (k.k.type != KEY_REFLINK_P || bkey_value_bytes(&k.k) < sizeof(d))
		return -KILN_E_INVALID;
	value_load(&d, sizeof(d), k);
	*p = (struct reflink_p){
		.idx = bits_get(le64_get(d.idx_flags), 0, 56),
		.front_pad = le32_get(d.front_pad),
		.back_pad = le32_get(d.back_pad),
		.is_error = bits_get(le64_get(d.idx_flags), 56, 57),
	};
	return 0;
}

void reflink_p_encode(const struct reflink_p *p, uint8_t value[REFLINK_P_BYTES])
{
	struct reflink_p_disk d = {
		.idx_flags = le64_of(bits_set(bits_set(0, 0, 56, p->idx), 56, 57, p->is_error)),
		.front_pad = le32_of(p->front_pad),
		.back_pad = le32_of(p->back_pad),
	};

	memcpy(value, &d, sizeof(d));
}

struct reflink_v reflink_v_decode(struct bkey_ref k)
{
	le64 refcount;

	value_load(&refcount, sizeof(refcount), k);
	return (struct reflink_v){ .refcount = le64_get(refcount) };
}

int reflink_p_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	struct reflink_p p;
	int err = reflink_p_decode(k, &p);

	if (err)
		return err;
	if (p.idx < p.front_pad)
		return fault_set(fault, ERROR_reflink_p_front_pad_bad, "front_pad", "at most idx", "%u, idx %" PRIu64,
				 p.front_pad, p.idx);
	return 0;
}

void reflink_p_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	struct reflink_p p;

	if (reflink_p_decode(k, &p))
		return;
	strbuf_printf(out, "idx %" PRIu64 " front_pad %u back_pad %u%s", p.idx, p.front_pad, p.back_pad,
		      p.is_error ? " error" : "");
}

void reflink_v_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	strbuf_printf(out, "refcount: %" PRIu64 " ", reflink_v_decode(k).refcount);
	extent_to_text(out, k, ctx);
}

void indirect_inline_data_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	size_t bytes = bkey_value_bytes(&k.k), header = min(bytes, (size_t)8);

	strbuf_printf(out, "refcount %" PRIu64 " datalen %zu: ", reflink_v_decode(k).refcount, bytes - header);
	if (bytes > header)
		strbuf_add_hex(out, (const uint8_t *)k.value + header, bytes - header);
}
