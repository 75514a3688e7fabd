/*
 * Reading a node: from bytes on some device to one sorted array of live keys (02 §8, §9).
 *
 * A node on disk is a log of sets, each sorted, each with its own checksum. All sets up to the pointer's
 * sectors_written belong to the node, and for equal positions the later one wins. They are verified, checked key by
 * key, and merged into struct node_keys.
 *
 * What happens to damage:
 *
 * - A replica counts as bad when it can't be read, or when any of its sets up to sectors_written is missing, fails its
 *   checksum or breaks a rule. What the sets before it say is not used: it would be old, and nothing would tell. The
 * next replica is tried; when one is good, the bad ones are reported as recovered. When none is, the node is
 * unreadable, and its whole range gives an I/O error.
 * - A key that breaks a rule in a set whose checksum is good is lost, if its position is known: then it also hides what
 *   earlier sets have at that position, reading it gives an I/O error (in an interior node: what it leads to does), and
 *   the node is reported to have lost a key. If it can't be told what the key stands for (its frame is broken, or it is
 *   out of order), the set is treated as if its checksum were bad. A replica without such keys is preferred.
 * - A set that isn't the first and whose journal sequence number is blacklisted was never committed: it is left out,
 * and reported (02 §11).
 *
 * The merge sorts offsets of keys, not keys: runs are merged pairwise, stable, so that the last of several keys
 * at a position is the winner.
 */
#include <errno.h>
#include <string.h>

#include "base/strbuf.h"
#include "btree/internal.h"
#include "device/device.h"
#include "format/error_ids.h"

/* A node of 512 KiB in blocks of 512 bytes. */
enum { SETS_MAX = (512 << 10) / SECTOR_BYTES };

/* Marks the place of a key in a list of offsets as taken by one that breaks a rule. */
#define OFFSET_IS_BAD NODE_KEY_IS_LOST

struct replica_result {
	int err;
	bool is_partial; /* verified, but keys had to be dropped */
	struct fault fault;
};

struct node_reader {
	struct btrees *trees;
	const struct node_ptr *p;
	uint8_t *buf; /* the node, decrypted as its sets are read */
	struct bkey_format format;
	/* Keys of all sets read so far, as offsets in words from the start of the node, and room to merge them. */
	uint32_t *keys, *merged;
	uint32_t key_nr, key_max;
	uint32_t run_start[SETS_MAX + 1];
	uint32_t run_nr;
	size_t set_end; /* of the set being checked, bytes */
	/* What was found on the way, of the replica read last. */
	uint32_t bad_key_nr;
	struct fault bad_key_fault; /* of the first one */
	struct bpos bad_key_pos;
	bool is_order_lost;  /* a key's place isn't known */
	struct fault notice; /* something that costs nothing; id 0: nothing */

	struct replica_result results[EXTENT_PTRS_MAX];
};

/* --- pointers --- */

int node_ptr_decode(const struct btrees *trees, unsigned btree_id, unsigned level, struct bkey_ref k,
		    struct node_ptr *p, struct fault *fault)
{
	*p = (struct node_ptr){ .btree_id = btree_id, .level = level, .max_key = k.k.p };

	int err = btree_ptr_decode(k, trees->opts.kctx, &p->ptr, fault);
	if (err)
		return err;
	if (!p->ptr.ptr_nr)
		return fault_set(fault, ERROR_extent_ptrs_no_ptrs, "pointers", "at least 1", "0");
	if (!p->ptr.sectors_written || p->ptr.sectors_written > trees->opts.kctx->node_sectors)
		return fault_set(fault, 0, "sectors_written", "from 1 to the size of a node", "%u",
				 p->ptr.sectors_written);
	if (bpos_lt(p->max_key, p->ptr.min_key))
		return fault_set(fault, ERROR_btree_ptr_v2_min_key_bad, "min_key", "at most the key's position",
				 "a later one");
	return 0;
}

void node_ptr_to_text(struct strbuf *out, const struct node_ptr *p)
{
	const char *name = btree_name(p->btree_id);

	if (name)
		strbuf_add(out, name);
	else
		strbuf_printf(out, "btree %u", p->btree_id);
	strbuf_printf(out, " level %u ", p->level);
	bpos_to_text(out, p->max_key);
}

/* --- one replica --- */

static const uint8_t *key_at(const struct node_reader *r, uint32_t offset)
{
	return r->buf + (size_t)(offset & ~OFFSET_IS_BAD) * 8;
}

static struct bpos key_pos_at(const struct node_reader *r, uint32_t offset)
{
	return bkey_unpack_pos(&r->format, key_at(r, offset));
}

static bool is_run_empty(const struct node_reader *r) { return r->key_nr == r->run_start[r->run_nr]; }

static int key_append(struct node_reader *r, uint32_t offset)
{
	if (r->key_nr == r->key_max)
		return -KILN_E_INVALID;
	r->keys[r->key_nr++] = offset;
	return 0;
}

static int key_keep(void *ctx, const void *packed, const struct bkey *k)
{
	struct node_reader *r = ctx;

	/* The place of a dropped key is a guess where the next good one says that it can't have been there. */
	while (!is_run_empty(r) && (r->keys[r->key_nr - 1] & OFFSET_IS_BAD) &&
	       bpos_lt(k->p, key_pos_at(r, r->keys[r->key_nr - 1])))
		r->key_nr--;
	return key_append(r, (uint32_t)(((const uint8_t *)packed - r->buf) / 8));
}

static bool is_pos_of_node(const struct node_reader *r, struct bpos pos)
{
	return bpos_le(r->p->ptr.min_key, pos) && bpos_le(pos, r->p->max_key);
}

/* A key that breaks a rule: let it take its place, as one that hides what earlier sets have there. */
static void key_drop(void *ctx, const struct fault *fault, struct bkey_ref k, size_t offset_bytes)
{
	struct node_reader *r = ctx;
	struct bpos pos = POS_MIN;
	size_t avail_u64s = offset_bytes < r->set_end ? (r->set_end - offset_bytes) / 8 : 0;

	if (!avail_u64s || bkey_check_frame(&r->format, r->buf + offset_bytes, avail_u64s, NULL) < 0) {
		r->is_order_lost = true;
	} else {
		pos = bkey_unpack_pos(&r->format, r->buf + offset_bytes);
		if (!is_pos_of_node(r, pos)) {
			/* Hides nothing. */
		} else if (!is_run_empty(r) && bpos_lt(pos, key_pos_at(r, r->keys[r->key_nr - 1]))) {
			r->is_order_lost = true;
		} else if (key_append(r, (uint32_t)(offset_bytes / 8) | OFFSET_IS_BAD)) {
			r->is_order_lost = true;
		}
	}
	if (!r->bad_key_nr++) {
		r->bad_key_fault = *fault;
		r->bad_key_pos = pos;
	}
}

static bool set_is_blacklisted(const struct btrees *trees, const struct bset_info *set)
{
	return trees->opts.is_blacklisted && trees->opts.is_blacklisted(trees->opts.blacklist_ctx, set->journal_seq);
}

/* Check the keys of a set and add it as a run. */
static int set_add(struct node_reader *r, const struct bset_info *set, const struct btree_node_expect *expect,
		   struct fault *fault)
{
	struct bset_check check = { .bad = key_drop, .keep = key_keep, .ctx = r };

	r->set_end = set->keys_offset + set->keys_u64s * 8;
	r->run_start[r->run_nr] = r->key_nr;
	int n = bset_check_keys(r->buf, set, &r->format, expect, r->trees->opts.kctx, &check);
	if (n < 0)
		return n;
	if (r->is_order_lost) {
		*fault = r->bad_key_fault;
		return -KILN_E_INVALID;
	}
	r->run_start[++r->run_nr] = r->key_nr;
	return 0;
}

static int sets_read(struct node_reader *r, struct fault *fault)
{
	const struct node_ptr *p = r->p;
	const struct btrees_opts *opts = &r->trees->opts;
	size_t end = (size_t)p->ptr.sectors_written * SECTOR_BYTES, offset = 0;
	struct btree_node_expect expect = {
		.btree_id = p->btree_id,
		.level = p->level,
		.magic = opts->magic,
		.seq = p->ptr.seq,
		.min_key = p->ptr.min_key,
		.max_key = p->max_key,
		.is_range_updated = p->ptr.is_range_updated,
		.sectors_written = p->ptr.sectors_written,
		.node_sectors = opts->kctx->node_sectors,
		.block_sectors = opts->kctx->block_sectors,
		.version_min = opts->version_min,
		.key = opts->key,
	};

	while (offset < end && r->run_nr < SETS_MAX) {
		struct bset_info set;
		int more = bset_read(r->buf, offset, &expect, &r->format, &set, fault);

		if (more < 0)
			return more;
		if (!more)
			break;
		/* A flaw that doesn't keep the set from being used. */
		if (fault->id)
			r->notice = *fault;
		bool is_left_out = false;
		if (set_is_blacklisted(r->trees, &set)) {
			is_left_out = offset > 0;
			fault_set(&r->notice,
				  is_left_out ? ERROR_first_bset_blacklisted_journal_seq
					      : ERROR_bset_blacklisted_journal_seq,
				  "journal sequence number of a set", "not blacklisted", "%llu",
				  (unsigned long long)set.journal_seq);
		}
		int err = is_left_out ? 0 : set_add(r, &set, &expect, fault);
		if (err)
			return err;
		offset = round_up_u64(set.keys_offset + set.keys_u64s * 8, opts->kctx->block_sectors * SECTOR_BYTES);
	}
	if (offset < end)
		return fault_set(fault, ERROR_btree_node_data_missing, "sets", "up to sectors_written",
				 "none at sector %zu of %u", offset / SECTOR_BYTES, p->ptr.sectors_written);
	return 0;
}

static int replica_read(struct node_reader *r, unsigned replica, struct fault *fault)
{
	const struct btree_backend *backend = &r->trees->opts.backend;
	size_t bytes = (size_t)r->p->ptr.sectors_written * SECTOR_BYTES;

	r->key_nr = r->run_nr = r->bad_key_nr = 0;
	r->is_order_lost = false;
	r->notice = (struct fault){ 0 };
	*fault = (struct fault){ 0 };

	int err = backend->read(backend->ctx, &r->p->ptr, replica, r->buf, bytes);
	if (err)
		return err;
	memset(r->buf + bytes, 0, r->trees->node_bytes - bytes);
	return sets_read(r, fault);
}

/* --- merging --- */

/* Merge the neighbouring runs [a, b) and [b, end) of r->keys into r->merged; at equal positions the first one's go
 * first. */
static void runs_merge(struct node_reader *r, uint32_t a, uint32_t b, uint32_t end)
{
	uint32_t i = a, j = b, out = a;
	struct bpos pi, pj;

	if (i < b)
		pi = key_pos_at(r, r->keys[i]);
	if (j < end)
		pj = key_pos_at(r, r->keys[j]);
	while (i < b && j < end) {
		if (bpos_le(pi, pj)) {
			r->merged[out++] = r->keys[i++];
			if (i < b)
				pi = key_pos_at(r, r->keys[i]);
		} else {
			r->merged[out++] = r->keys[j++];
			if (j < end)
				pj = key_pos_at(r, r->keys[j]);
		}
	}
	memcpy(r->merged + out, r->keys + i, (b - i) * sizeof(*r->keys));
	out += b - i;
	memcpy(r->merged + out, r->keys + j, (end - j) * sizeof(*r->keys));
}

/* Leaves one sorted run in r->keys, in which of several keys at a position the one of the latest set is the last. */
static void sets_merge(struct node_reader *r)
{
	while (r->run_nr > 1) {
		uint32_t merged_nr = 0;

		for (uint32_t i = 0; i < r->run_nr; i += 2) {
			uint32_t a = r->run_start[i], b = r->run_start[i + 1];
			uint32_t end = i + 1 < r->run_nr ? r->run_start[i + 2] : b;

			runs_merge(r, a, b, end);
			r->run_start[merged_nr++] = a;
		}
		r->run_start[merged_nr] = r->key_nr;
		r->run_nr = merged_nr;

		uint32_t *swap = r->keys;
		r->keys = r->merged;
		r->merged = swap;
	}
}

/* Bytes of a key's header. */
enum { KEY_U64S_BYTE, KEY_FORMAT_BYTE, KEY_TYPE_BYTE };

/* Bad keys stay in leaves, as lost ones; in interior nodes the gap that they leave is enough. */
static bool key_stays(const struct node_reader *r, uint32_t offset)
{
	return offset & OFFSET_IS_BAD ? !r->p->level : key_at(r, offset)[KEY_TYPE_BYTE] != KEY_DELETED;
}

/* Words that a key takes in memory: of a bad one only the header. */
static unsigned key_u64s(const struct node_reader *r, uint32_t offset)
{
	const uint8_t *key = key_at(r, offset);
	bool is_packed = !(key[KEY_FORMAT_BYTE] & 0x7f);

	if (!(offset & OFFSET_IS_BAD))
		return key[KEY_U64S_BYTE];
	return is_packed ? r->format.key_u64s : (unsigned)BKEY_U64S;
}

/* Drop what is overwritten or deleted. Returns the words that are left. */
static uint32_t keys_compact(struct node_reader *r)
{
	uint32_t live_nr = 0, u64s = 0;
	struct bpos pos, next_pos;

	if (r->key_nr)
		next_pos = key_pos_at(r, r->keys[0]);
	for (uint32_t i = 0; i < r->key_nr; i++) {
		pos = next_pos;
		if (i + 1 < r->key_nr) {
			next_pos = key_pos_at(r, r->keys[i + 1]);
			if (bpos_eq(pos, next_pos))
				continue;
		}
		if (!key_stays(r, r->keys[i]))
			continue;
		u64s += key_u64s(r, r->keys[i]);
		r->keys[live_nr++] = r->keys[i];
	}
	r->key_nr = live_nr;
	return u64s;
}

static int node_keys_make(struct node_reader *r, struct node_keys *keys)
{
	uint32_t set_nr = r->run_nr;

	sets_merge(r);
	uint32_t u64s = keys_compact(r);
	*keys = (struct node_keys){
		.format = r->format,
		.key_nr = r->key_nr,
		.key_max = r->key_nr,
		.live_u64s = u64s,
		.set_nr = set_nr,
		.bad_key_nr = r->bad_key_nr,
		.word_max = u64s,
		.offset = malloc(max(r->key_nr, 1u) * sizeof(uint32_t)),
		.words = malloc((size_t)max(u64s, 1u) * 8),
	};
	if (!keys->offset || !keys->words) {
		node_keys_free(keys);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < r->key_nr; i++) {
		unsigned key_words = key_u64s(r, r->keys[i]);
		bool is_lost = r->keys[i] & OFFSET_IS_BAD;

		memcpy(keys->words + keys->word_nr, key_at(r, r->keys[i]), (size_t)key_words * 8);
		((uint8_t *)(keys->words + keys->word_nr))[KEY_U64S_BYTE] = (uint8_t)key_words;
		keys->offset[i] = keys->word_nr | NODE_KEY_IS_WRITTEN | (is_lost ? NODE_KEY_IS_LOST : 0);
		keys->lost_nr += is_lost;
		keys->word_nr += key_words;
	}
	return 0;
}

/* --- reports --- */

static void replica_report(const struct node_reader *r, unsigned replica, enum report_level level)
{
	const struct btree_backend *backend = &r->trees->opts.backend;
	const struct extent_ptr *ptr = &r->p->ptr.ptrs[replica];
	const struct replica_result *result = &r->results[replica];
	bool is_fault = result->fault.field[0];
	char position_text[256], expected_text[192];
	struct strbuf position = strbuf_fixed(position_text, sizeof(position_text));
	struct strbuf expected = strbuf_fixed(expected_text, sizeof(expected_text));

	node_ptr_to_text(&position, r->p);
	strbuf_printf(&position, ", sector %llu", (unsigned long long)ptr->sector);
	if (is_fault)
		strbuf_printf(&expected, "%s %s", result->fault.field, result->fault.expected);
	else
		strbuf_add(&expected, "a readable node");
	report_emit(r->trees->opts.reports,
		    &(struct report){
			    .level = level,
			    .id = is_fault && result->fault.id ? result->fault.id : ERROR_btree_node_read_error,
			    .err = result->err,
			    .device = backend->device_name(backend->ctx, ptr->dev),
			    .structure = "btree node",
			    .position = position_text,
			    .expected = expected_text,
			    .found = is_fault ? result->fault.found : error_name(result->err),
			    .advice = level == REPORT_RECOVERED
					      ? "Another replica served. The bad copy should be rewritten."
					      : "Nothing in this range of keys can be read.",
		    });
}

/* @good: the replica that served, or -1. */
static void replicas_report(struct node_reader *r, int good)
{
	const struct btree_backend *backend = &r->trees->opts.backend;
	bool is_new = report_is_new(r->trees, r->p, REPORT_KIND_REPLICAS);

	for (unsigned i = 0; i < r->p->ptr.ptr_nr; i++) {
		int err = r->results[i].err;

		/* That there was no memory to read it says nothing about it. */
		if (!err || (int)i == good || err == -ENOMEM)
			continue;
		/* Replicas are equal bytes: when the one that serves lacks keys, another isn't worse for that. */
		if (r->bad_key_nr && r->results[i].is_partial)
			continue;
		/* A device that isn't there has been reported when the filesystem was opened without it. */
		if (err == -ENODEV && good >= 0)
			continue;
		if (err != -ENODEV && backend->replica_bad)
			backend->replica_bad(backend->ctx, &(struct btree_bad_replica){ .btree_id = r->p->btree_id,
											.level = r->p->level,
											.pos = r->p->max_key,
											.ptr = r->p->ptr.ptrs[i],
											.err = err,
											.has_served = good >= 0 });
		if (is_new)
			replica_report(r, i, good >= 0 ? REPORT_RECOVERED : REPORT_DAMAGE);
	}
}

static void bad_keys_report(const struct node_reader *r, unsigned replica)
{
	const struct btree_backend *backend = &r->trees->opts.backend;
	char position_text[320];
	struct strbuf position = strbuf_fixed(position_text, sizeof(position_text));

	if (!report_is_new(r->trees, r->p, REPORT_KIND_BAD_KEYS))
		return;
	node_ptr_to_text(&position, r->p);
	strbuf_add(&position, ", key ");
	bpos_to_text(&position, r->bad_key_pos);
	if (r->bad_key_nr > 1)
		strbuf_printf(&position, " and %u more", r->bad_key_nr - 1);
	report_fault(r->trees->opts.reports, REPORT_DAMAGE, &r->bad_key_fault,
		     backend->device_name(backend->ctx, r->p->ptr.ptrs[replica].dev), "key in btree node",
		     position_text);
}

static void notice_report(const struct node_reader *r, unsigned replica)
{
	const struct btree_backend *backend = &r->trees->opts.backend;
	char position_text[256];
	struct strbuf position = strbuf_fixed(position_text, sizeof(position_text));

	if (!report_is_new(r->trees, r->p, REPORT_KIND_SET))
		return;
	node_ptr_to_text(&position, r->p);
	report_fault(r->trees->opts.reports, REPORT_INFO, &r->notice,
		     backend->device_name(backend->ctx, r->p->ptr.ptrs[replica].dev), "set of a btree node",
		     position_text);
}

/* --- the whole --- */

static unsigned replica_next(const struct node_reader *r, uint32_t tried)
{
	const struct btree_backend *backend = &r->trees->opts.backend;

	if (backend->replica_choose && r->p->ptr.ptr_nr > 1)
		return backend->replica_choose(backend->ctx, &r->p->ptr, tried);
	return (unsigned)__builtin_ctz(~tried);
}

/*
 * Read the replicas in turn into r->keys, until one is good. Two rounds: only when no replica is without bad keys is
 * one with bad keys good enough. Returns the replica or -1.
 */
static int replicas_try(struct node_reader *r)
{
	bool any_partial = false;
	uint32_t tried = 0;

	for (unsigned nr = 0; nr < r->p->ptr.ptr_nr; nr++) {
		unsigned i = replica_next(r, tried);
		struct replica_result *result = &r->results[i];

		if (nr)
			atomic_fetch_add_explicit(&r->trees->cache.read_retries, 1, memory_order_relaxed);
		tried |= 1u << i;
		result->err = replica_read(r, i, &result->fault);
		if (!result->err && !r->bad_key_nr)
			return (int)i;
		if (!result->err) {
			result->err = -KILN_E_INVALID;
			result->fault = r->bad_key_fault;
			result->is_partial = any_partial = true;
		}
	}
	for (unsigned i = 0; any_partial && i < r->p->ptr.ptr_nr; i++) {
		struct fault fault;

		if (r->results[i].is_partial && !replica_read(r, i, &fault))
			return (int)i;
	}
	return -1;
}

static int node_error(const struct node_reader *r)
{
	for (unsigned i = 0; i < r->p->ptr.ptr_nr; i++)
		if (r->results[i].err == -ENOMEM)
			return -ENOMEM;
	for (unsigned i = 0; i < r->p->ptr.ptr_nr; i++)
		if (r->results[i].err != -KILN_E_UNSUPPORTED && r->results[i].err != -ENODEV)
			return -EIO;
	for (unsigned i = 0; i < r->p->ptr.ptr_nr; i++)
		if (r->results[i].err == -KILN_E_UNSUPPORTED)
			return -KILN_E_UNSUPPORTED;
	return -EIO;
}

static int node_read_with(struct node_reader *r, struct node_keys *keys, uint32_t *generation)
{
	int good = replicas_try(r);

	if (good < 0) {
		int err = node_error(r);

		if (err != -ENOMEM)
			replicas_report(r, -1);
		return err;
	}
	int err = node_keys_make(r, keys);
	if (err)
		return err;
	*generation = btree_node_generation(le64_get(((const struct btree_node_disk *)(const void *)r->buf)->flags));
	if (r->bad_key_nr)
		bad_keys_report(r, (unsigned)good);
	replicas_report(r, good);
	if (r->notice.field[0])
		notice_report(r, (unsigned)good);
	if (r->p->level)
		tree_children_check(r->trees, r->p, keys);
	return 0;
}

int node_read(struct btrees *trees, const struct node_ptr *p, struct node_keys *keys, uint32_t *generation)
{
	struct node_reader *r = malloc(sizeof(*r));
	uint32_t key_max = (uint32_t)(trees->node_bytes / 8);
	int err = -ENOMEM;

	if (!r)
		return -ENOMEM;
	*r = (struct node_reader){ .trees = trees, .p = p, .key_max = key_max };
	r->buf = io_buffer_alloc(trees->node_bytes);
	r->keys = malloc(key_max * sizeof(*r->keys));
	r->merged = malloc(key_max * sizeof(*r->merged));
	if (r->buf && r->keys && r->merged)
		err = node_read_with(r, keys, generation);

	free(r->merged);
	free(r->keys);
	io_buffer_free(r->buf);
	free(r);
	return err;
}
