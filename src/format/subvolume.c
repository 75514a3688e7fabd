/*
 * Subvolumes: a root directory, and the snapshot to see it in. 05 §2.3, 12 §7.6.
 */
#include <inttypes.h>

#include "format/error_ids.h"
#include "format/snapshot.h"
#include "format/value.h"

struct subvolume_disk {
	le32 flags;
	le32 snapshot;
	le64 inode;
	le32 creation_parent;
	le32 fs_path_parent; /* 1.5; 0 before */
	le64 otime[2];
	le32 state; /* 1.39 */
	le32 pad;
};
_Static_assert(sizeof(struct subvolume_disk) == 48 && offsetof(struct subvolume_disk, state) == 40,
	       "subvolume is 48 bytes");

enum { FLAG_READONLY = 1, FLAG_SNAPSHOT = 2, FLAG_UNLINKED = 4 };

/* State words; any other value: the flags count. */
static const uint32_t STATE_LIVE = 0x4ad5447e, STATE_UNLINKED = 0x2d358e8f, STATE_DELETED = 0x3c6b2d4c;

void subvolume_decode(struct bkey_ref k, struct subvolume *s)
{
	struct subvolume_disk d;

	value_load(&d, sizeof(d), k);
	uint32_t flags = le32_get(d.flags), state = le32_get(d.state);

	*s = (struct subvolume){
		.is_readonly = flags & FLAG_READONLY,
		.is_snapshot = flags & FLAG_SNAPSHOT,
		.is_unlinked = flags & FLAG_UNLINKED,
		.snapshot = le32_get(d.snapshot),
		.inode = le64_get(d.inode),
		.creation_parent = le32_get(d.creation_parent),
		.fs_path_parent = le32_get(d.fs_path_parent),
		.otime = le64_get(d.otime[0]),
	};
	if (state == STATE_LIVE || state == STATE_UNLINKED || state == STATE_DELETED) {
		s->is_unlinked = state != STATE_LIVE;
		s->is_deleted = state == STATE_DELETED;
	}
}

void subvolume_encode(const struct subvolume *s, uint8_t value[SUBVOLUME_BYTES])
{
	struct subvolume_disk d = {
		.flags = le32_of((s->is_readonly ? FLAG_READONLY : 0u) | (s->is_snapshot ? FLAG_SNAPSHOT : 0u) |
				 (s->is_unlinked ? FLAG_UNLINKED : 0u)),
		.snapshot = le32_of(s->snapshot),
		.inode = le64_of(s->inode),
		.creation_parent = le32_of(s->creation_parent),
		.otime = { le64_of(s->otime) },
	};

	_Static_assert(offsetof(struct subvolume_disk, state) == SUBVOLUME_BYTES, "what 1.4 has ends before state");
	memcpy(value, &d, SUBVOLUME_BYTES);
}

int subvolume_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	if (k.k.p.inode || k.k.p.offset < SUBVOL_ROOT || k.k.p.offset > INT32_MAX)
		return fault_set(fault, ERROR_subvol_pos_bad, "position", "0:1 to 0:2147483647", "%" PRIu64 ":%" PRIu64,
				 k.k.p.inode, k.k.p.offset);
	return 0;
}

void subvolume_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	struct subvolume s;

	subvolume_decode(k, &s);
	strbuf_printf(out, "root %" PRIu64 " snapshot id %u parent %u", s.inode, s.snapshot, s.creation_parent);
	if (!ctx->is_newer)
		return;
	strbuf_printf(out, " fs_parent %u%s%s%s%s", s.fs_path_parent, s.is_readonly ? " ro" : "",
		      s.is_snapshot ? " snapshot" : "", s.is_unlinked ? " unlinked" : "",
		      s.is_deleted ? " deleted" : "");
}
