/*
 * Quota limits (04 §9). A key's position is (type, id); usage isn't stored, it is counted at mount.
 */
#include "format/quota.h"

#include <inttypes.h>

#include "format/error_ids.h"
#include "format/value.h"

struct quota_disk {
	struct {
		le64 hard, soft;
	} limits[QUOTA_COUNTER_NR];
};
_Static_assert(sizeof(struct quota_disk) == QUOTA_BYTES, "quota is 32 bytes");

void quota_decode(struct bkey_ref k, struct quota *q)
{
	struct quota_disk d;

	value_load(&d, sizeof(d), k);
	for (unsigned i = 0; i < QUOTA_COUNTER_NR; i++) {
		q->limits[i].hard = le64_get(d.limits[i].hard);
		q->limits[i].soft = le64_get(d.limits[i].soft);
	}
}

void quota_encode(const struct quota *q, uint8_t value[QUOTA_BYTES])
{
	struct quota_disk d;

	for (unsigned i = 0; i < QUOTA_COUNTER_NR; i++) {
		d.limits[i].hard = le64_of(q->limits[i].hard);
		d.limits[i].soft = le64_of(q->limits[i].soft);
	}
	memcpy(value, &d, sizeof(d));
}

int quota_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	if (k.k.p.inode >= QUOTA_TYPE_NR)
		return fault_set(fault, ERROR_quota_type_invalid, "quota type", "0 to 2", "%" PRIu64, k.k.p.inode);
	return 0;
}

void quota_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	static const char *const names[QUOTA_COUNTER_NR] = { [QUOTA_SPACE] = "space", [QUOTA_INODES] = "inodes" };
	struct quota q;

	quota_decode(k, &q);
	for (unsigned i = 0; i < QUOTA_COUNTER_NR; i++)
		strbuf_printf(out, "%s%s hardlimit %" PRIu64 " softlimit %" PRIu64, i ? " " : "", names[i],
			      q.limits[i].hard, q.limits[i].soft);
}
