/*
 * Accounting (12 §11): counters whose name is their position in the btree.
 *
 * A name is a packed struct of 20 bytes: its type, then the type's fields. How these bytes make up a position depends
 * on the version: from 1.15 they are in order of significance, so that counters of one type stand together; from 1.10
 * they are the bytes of the position as stored. The encoding of 1.9 isn't read.
 */
#include <inttypes.h>

#include "format/alloc.h"
#include "format/error_ids.h"
#include "format/extent.h"
#include "format/value.h"
#include "format/version.h"

enum { NAME_BYTES = sizeof(((struct accounting *)0)->name) };
_Static_assert(NAME_BYTES == sizeof(struct bpos_disk), "a name fills a position");

static bool is_big_endian(const struct key_context *ctx) { return key_context_layout_version(ctx) >= VERSION(1, 15); }

static void bytes_reverse(uint8_t *to, const uint8_t *from)
{
	for (unsigned i = 0; i < NAME_BYTES; i++)
		to[i] = from[NAME_BYTES - 1 - i];
}

int accounting_decode(struct bkey_ref k, const struct key_context *ctx, struct accounting *a)
{
	struct bpos_disk pos;
	le64 counters[ARRAY_NR(a->counters)];

	if (key_context_layout_version(ctx) < VERSION(1, 10))
		return -KILN_E_UNSUPPORTED;

	*a = (struct accounting){ .counter_nr = min(k.k.value_u64s, (unsigned)ARRAY_NR(a->counters)) };
	bpos_store(&pos, k.k.p);
	if (is_big_endian(ctx))
		bytes_reverse(a->name, (const uint8_t *)&pos);
	else
		memcpy(a->name, &pos, NAME_BYTES);

	value_load(counters, sizeof(counters), k);
	for (unsigned i = 0; i < ARRAY_NR(counters); i++)
		a->counters[i] = (int64_t)le64_get(counters[i]);
	return 0;
}

struct bpos accounting_pos(const struct key_context *ctx, const uint8_t name[20])
{
	struct bpos_disk pos;

	if (is_big_endian(ctx))
		bytes_reverse((uint8_t *)&pos, name);
	else
		memcpy(&pos, name, NAME_BYTES);
	return bpos_load(&pos);
}

static void btree_to_text(struct strbuf *out, uint32_t id)
{
	if (btree_name(id))
		strbuf_printf(out, " btree=%s", btree_name(id));
	else
		strbuf_printf(out, " btree=%u", id);
}

/* Fields of a name; @f points behind the type, 19 bytes. */
static void replicas_to_text(struct strbuf *out, const uint8_t *f)
{
	unsigned nr = f[1], nr_max = NAME_BYTES - 4;

	strbuf_printf(out, " %s: %u/%u [", data_type_name(f[0]), f[2], nr);
	for (unsigned i = 0; i < min(nr, nr_max); i++)
		strbuf_printf(out, "%s%u", i ? " " : "", f[3 + i]);
	strbuf_add_char(out, ']');
}

static void reconcile_work_to_text(struct strbuf *out, const uint8_t *f)
{
	static const char *const kinds[] = {
		"replicas", "checksum", "erasure_code", "compression", "target", "high_priority", "pending", "stripes",
	};

	if (f[0] < ARRAY_NR(kinds))
		strbuf_printf(out, " %s", kinds[f[0]]);
	else
		strbuf_printf(out, " %u", f[0]);
}

static void name_to_text(struct strbuf *out, const struct accounting *a)
{
	static const char *const types[ACCOUNTING_TYPE_NR] = {
		[ACCOUNTING_NR_INODES] = "nr_inodes",
		[ACCOUNTING_PERSISTENT_RESERVED] = "persistent_reserved",
		[ACCOUNTING_REPLICAS] = "replicas",
		[ACCOUNTING_DEV_DATA_TYPE] = "dev_data_type",
		[ACCOUNTING_COMPRESSION] = "compression",
		[ACCOUNTING_SNAPSHOT] = "snapshot",
		[ACCOUNTING_BTREE] = "btree",
		[ACCOUNTING_REBALANCE_WORK] = "rebalance_work",
		[ACCOUNTING_INUM] = "inum",
		[ACCOUNTING_RECONCILE_WORK] = "reconcile_work",
		[ACCOUNTING_DEV_LEAVING] = "dev_leaving",
	};
	const uint8_t *f = a->name + 1;

	if (a->name[0] >= ACCOUNTING_TYPE_NR) {
		strbuf_printf(out, "type %u ", a->name[0]);
		strbuf_add_hex(out, f, NAME_BYTES - 1);
		return;
	}
	strbuf_add(out, types[a->name[0]]);
	switch (a->name[0]) {
	case ACCOUNTING_NR_INODES:
	case ACCOUNTING_INUM: strbuf_add_char(out, ' '); break;
	case ACCOUNTING_PERSISTENT_RESERVED: strbuf_printf(out, " replicas=%u", f[0]); break;
	case ACCOUNTING_REPLICAS: replicas_to_text(out, f); break;
	case ACCOUNTING_DEV_DATA_TYPE: strbuf_printf(out, " dev=%u data_type=%s", f[0], data_type_name(f[1])); break;
	case ACCOUNTING_COMPRESSION: strbuf_printf(out, " %s", compression_name(f[0])); break;
	case ACCOUNTING_SNAPSHOT:
		strbuf_printf(out, " id=%u", le32_load(f));
		if (a->counter_nr > 1)
			btree_to_text(out, le32_load(f + 4));
		break;
	case ACCOUNTING_BTREE: btree_to_text(out, le32_load(f)); break;
	case ACCOUNTING_RECONCILE_WORK: reconcile_work_to_text(out, f); break;
	case ACCOUNTING_DEV_LEAVING: strbuf_printf(out, " dev%u ", le32_load(f)); break;
	}
}

void accounting_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	struct accounting a;

	if (accounting_decode(k, ctx, &a)) {
		strbuf_add(out, "(encoding of 1.9)");
		return;
	}
	name_to_text(out, &a);
	for (unsigned i = 0; i < a.counter_nr; i++)
		strbuf_printf(out, " %" PRId64, a.counters[i]);
}
