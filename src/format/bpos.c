/* Positions: stepping and text. */
#include "format/bpos.h"

#include <inttypes.h>

#include "base/strbuf.h"

/* A position is one 160-bit number, so a step carries from snapshot into offset into inode. */
struct bpos bpos_successor(struct bpos p)
{
	if (bpos_eq(p, SPOS_MAX))
		return p;
	if (!++p.snapshot && !++p.offset)
		++p.inode;
	return p;
}

struct bpos bpos_predecessor(struct bpos p)
{
	if (bpos_eq(p, POS_MIN))
		return p;
	if (!p.snapshot-- && !p.offset--)
		--p.inode;
	return p;
}

struct bpos bpos_nosnap_successor(struct bpos p)
{
	p.snapshot = 0;
	if (bpos_eq(p, POS_MAX))
		return SPOS_MAX;
	if (!++p.offset)
		++p.inode;
	return p;
}

static void u64_to_text(struct strbuf *out, uint64_t v)
{
	if (v == UINT64_MAX)
		strbuf_add(out, "U64_MAX");
	else
		strbuf_printf(out, "%" PRIu64, v);
}

void bpos_to_text(struct strbuf *out, struct bpos p)
{
	if (bpos_eq(p, POS_MIN)) {
		strbuf_add(out, "POS_MIN");
	} else if (bpos_eq(p, POS_MAX)) {
		strbuf_add(out, "POS_MAX");
	} else if (bpos_eq(p, SPOS_MAX)) {
		strbuf_add(out, "SPOS_MAX");
	} else {
		u64_to_text(out, p.inode);
		strbuf_add_char(out, ':');
		u64_to_text(out, p.offset);
		strbuf_add_char(out, ':');
		if (p.snapshot == UINT32_MAX)
			strbuf_add(out, "U32_MAX");
		else
			strbuf_printf(out, "%" PRIu32, p.snapshot);
	}
}
