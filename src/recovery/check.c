/*
 * The checker: table of passes, reports, and what passes walk with. See check.h.
 *
 * Memory: the snapshot table (68 bytes per snapshot), and a btree iterator or a few.
 */
#include "recovery/check.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/strbuf.h"
#include "recovery/check_internal.h"

enum { MEMORY_MIN = 1 << 20, MEMORY_DEFAULT = 64 << 20, STEP_KEYS = 512 };

/* --- the table --- */

static const char *const advice_alloc =
	"What tells how space is used can be rebuilt from the data; don't write to the filesystem before that.";
static const char *const advice_files = "Copy what matters before anything is repaired.";
static const char *const advice_nodes = "If there is another replica it serves; copy what matters.";
static const char *const advice_size =
	"Nothing is written to the filesystem before the device is as large again; copy what matters off it.";
static const char *const advice_copy = "A mount that writes renews it.";
static const char *const advice_layout =
	"It tells where the copies are only when the superblock behind it is bad as well. Formatting alone writes it.";

static const struct {
	struct check_pass pass;
	int (*run)(struct check *c);
} passes[] = {
	/* clang-format off */
	{ { CHECK_PASS_SUPER, "check_super", "superblocks", false, true, NULL }, check_super },
	{ { CHECK_PASS_JOURNAL, "check_journal", "journal against superblocks", false, false, NULL }, check_journal },
	{ { PASS_CHECK_TOPOLOGY, "check_topology", "btree nodes", false, true, NULL }, check_topology },
	{ { PASS_CHECK_ALLOCATIONS, "check_allocations", "buckets and counters", false, false, NULL }, check_allocations },
	{ { PASS_CHECK_ALLOC_INFO, "check_alloc_info", "free space", false, false, NULL }, check_alloc_info },
	{ { PASS_CHECK_LRUS, "check_lrus", "queues of buckets", false, false, NULL }, check_lrus },
	{ { PASS_CHECK_EXTENTS_TO_BACKPOINTERS, "check_backpointers", "backpointers", false, false, NULL }, check_backpointers },
	{ { PASS_CHECK_SNAPSHOT_TREES, "check_snapshot_trees", "snapshot trees", false, false, NULL }, check_snapshot_trees },
	{ { PASS_CHECK_SNAPSHOTS, "check_snapshots", "snapshots", false, false, NULL }, check_snapshots },
	{ { PASS_CHECK_SUBVOLS, "check_subvols", "subvolumes", false, false, NULL }, check_subvols },
	{ { PASS_RESUME_LOGGED_OPS, "check_logged_ops", "unfinished operations", false, false, NULL }, check_logged_ops },
	{ { PASS_CHECK_INODES, "check_inodes", "inodes", false, false, NULL }, check_inodes },
	{ { PASS_CHECK_EXTENTS, "check_extents", "extents", false, false, NULL }, check_extents },
	{ { PASS_CHECK_INDIRECT_EXTENTS, "check_indirect_extents", "shared extents", false, false, NULL }, check_indirect_extents },
	{ { PASS_SET_FS_NEEDS_REBALANCE, "check_rebalance_work", "work of rebalance", false, false, NULL }, check_rebalance_work },
	{ { PASS_CHECK_DIRENTS, "check_dirents", "directories and links", false, false, NULL }, check_dirents },
	{ { PASS_CHECK_XATTRS, "check_xattrs", "attributes", false, false, NULL }, check_xattrs },
	{ { PASS_CHECK_ROOT, "check_root", "root directory", false, false, NULL }, check_root },
	{ { PASS_CHECK_DIRECTORY_STRUCTURE, "check_directory_structure", "paths to the root", false, false, NULL }, check_directory_structure },
	{ { CHECK_PASS_QUOTAS, "check_quotas", "quotas", false, false, NULL }, check_quotas },
	{ { CHECK_PASS_DATA, "check_data", "data of all replicas", true, true, NULL }, check_data },
	/* clang-format on */
};
_Static_assert(ARRAY_NR(passes) <= CHECK_PASSES_MAX, "a bit for each pass");

int check_passes_parse(const char *names, uint32_t *out)
{
	*out = 0;
	for (const char *name = names; name && *name;) {
		size_t len = strcspn(name, ",");
		unsigned i = 0;

		while (i < ARRAY_NR(passes) && (strncmp(passes[i].pass.name, name, len) || passes[i].pass.name[len]))
			i++;
		if (i == ARRAY_NR(passes))
			return -EINVAL;
		*out |= 1u << i;
		name += len + (name[len] == ',');
	}
	return 0;
}

const struct check_pass *check_pass(unsigned i) { return i < ARRAY_NR(passes) ? &passes[i].pass : NULL; }

static const char *advice(const struct check_pass *pass, unsigned id)
{
	if (id == CHECK_device_too_small)
		return advice_size;
	if (id == CHECK_sb_layout_bad)
		return advice_layout;
	switch (pass->id) {
	case CHECK_PASS_SUPER: return id == CHECK_feature_not_marked ? advice_files : advice_copy;
	case PASS_CHECK_TOPOLOGY:
	case CHECK_PASS_DATA: return advice_nodes;
	case PASS_CHECK_ALLOCATIONS:
	case PASS_CHECK_ALLOC_INFO:
	case PASS_CHECK_LRUS:
	case PASS_CHECK_EXTENTS_TO_BACKPOINTERS: return advice_alloc;
	default: return advice_files;
	}
}

static const char *const own_names[] = {
#define X(name, text) #name,
#include "recovery/check_errors.inc"
#undef X
};
static const char *const own_texts[] = {
#define X(name, text) text,
#include "recovery/check_errors.inc"
#undef X
};

const char *check_error_name(unsigned id)
{
	if (id > CHECK_ERROR_FIRST && id < CHECK_ERROR_END)
		return own_names[id - CHECK_ERROR_FIRST - 1];
	return error_id_name(id) ? error_id_name(id) : "unknown error";
}

/* --- reports --- */

static void report_va(struct check *c, unsigned id, const char *device, const char *structure, const char *position,
		      const char *expected, const char *found_fmt, va_list args)
{
	bool is_own = id > CHECK_ERROR_FIRST;
	char buf[640];
	struct strbuf found = strbuf_fixed(buf, sizeof(buf));

	c->result->errors++;
	c->pass_result->errors++;
	if (++c->result->counts[id] > c->opts->report_max && c->opts->report_max)
		return;
	strbuf_vprintf(&found, found_fmt, args);
	if (is_own)
		strbuf_printf(&found, "; %s [%s]", own_texts[id - CHECK_ERROR_FIRST - 1], check_error_name(id));
	report_emit(c->opts->reports, &(struct report){
					      .level = REPORT_DAMAGE,
					      .id = is_own ? 0 : id,
					      .device = device,
					      .structure = structure,
					      .position = position,
					      .expected = expected,
					      .found = strbuf_text(&found),
					      .advice = advice(c->pass, id),
				      });
}

int check_report(struct check *c, unsigned id, const char *device, const char *structure, const char *position,
		 const char *expected, const char *found_fmt, ...)
{
	va_list args;

	va_start(args, found_fmt);
	report_va(c, id, device, structure, position, expected, found_fmt, args);
	va_end(args);
	return 0;
}

static void pos_text(struct strbuf *out, unsigned btree_id, struct bpos p)
{
	if (btree_name(btree_id))
		strbuf_add(out, btree_name(btree_id));
	else
		strbuf_printf(out, "btree %u", btree_id);
	strbuf_add_char(out, ' ');
	bpos_to_text(out, p);
}

int check_report_pos(struct check *c, unsigned id, unsigned btree_id, struct bpos p, const char *expected,
		     const char *found_fmt, ...)
{
	char buf[CHECK_TEXT_BYTES];
	struct strbuf position = strbuf_fixed(buf, sizeof(buf));
	va_list args;

	pos_text(&position, btree_id, p);
	va_start(args, found_fmt);
	report_va(c, id, NULL, "key", buf, expected, found_fmt, args);
	va_end(args);
	return 0;
}

int check_report_bucket(struct check *c, unsigned id, unsigned dev, uint64_t bucket, const char *expected,
			const char *found_fmt, ...)
{
	char position[CHECK_TEXT_BYTES];
	va_list args;

	snprintf(position, sizeof(position), "%u:%llu", dev, (unsigned long long)bucket);
	va_start(args, found_fmt);
	report_va(c, id, dev < c->super->member_nr ? c->super->members[dev].name : NULL, "bucket", position, expected,
		  found_fmt, args);
	va_end(args);
	return 0;
}

int check_step(struct check *c, uint64_t nr, unsigned btree_id, struct bpos p)
{
	char buf[CHECK_TEXT_BYTES];
	struct strbuf position = strbuf_fixed(buf, sizeof(buf));

	c->done += nr;
	c->pass_result->items += nr;
	if (c->done - c->done_told < STEP_KEYS || !c->opts->progress)
		return 0;
	c->done_told = c->done;
	if (btree_id < BTREE_NR_MAX)
		pos_text(&position, btree_id, p);
	return c->opts->progress(c->opts->progress_ctx, c->pass, c->done, c->total, buf);
}

bool check_is_whole(struct check *c, uint64_t btrees)
{
	if (!(c->damaged & btrees))
		return true;
	c->pass_result->is_partial = true;
	return false;
}

/* --- walking --- */

static void note_damage(struct check *c, unsigned btree_id)
{
	c->damaged |= CHECK_BTREE(btree_id);
	c->result->btrees_damaged |= CHECK_BTREE(btree_id);
	c->pass_result->is_partial = true;
}

int check_keys(struct check *c, unsigned btree_id, unsigned level, struct bpos start, struct bpos end, check_key_fn fn,
	       void *ctx)
{
	struct btree_iter it;
	struct bkey_ref k;
	int n, ret = 0;

	if (level)
		btree_iter_open_level(&it, c->trees, btree_id, level, start);
	else
		btree_iter_open(&it, c->trees, btree_id, start, BTREE_ITER_ALL_SNAPSHOTS, 0);
	it.end = end;
	while (!ret && (n = btree_iter_peek(&it, &k)) != 0) {
		if (n == -ENOMEM) {
			ret = n;
		} else if (n < 0) {
			note_damage(c, btree_id);
			btree_iter_skip_damage(&it);
		} else {
			struct bpos p = k.k.p;

			ret = fn(ctx, k);
			if (!ret)
				ret = check_step(c, 1, btree_id, p);
			btree_iter_advance(&it);
		}
	}
	btree_iter_close(&it);
	return ret;
}

void check_stream_open(struct check *c, struct check_stream *s, unsigned btree_id, struct bpos start, struct bpos end)
{
	*s = (struct check_stream){ .c = c, .is_open = true };
	btree_iter_open(&s->it, c->trees, btree_id, start, BTREE_ITER_ALL_SNAPSHOTS, 0);
	s->it.end = end;
}

void check_stream_close(struct check_stream *s)
{
	if (s->is_open)
		btree_iter_close(&s->it);
	s->is_open = false;
}

bool check_stream_peek(struct check_stream *s)
{
	while (!s->has_key && !s->err && s->is_open) {
		int n = btree_iter_peek(&s->it, &s->k);

		if (!n)
			return false;
		if (n > 0) {
			s->has_key = true;
		} else if (n == -ENOMEM) {
			s->err = n;
		} else {
			note_damage(s->c, s->it.btree_id);
			btree_iter_skip_damage(&s->it);
		}
	}
	return s->has_key;
}

void check_stream_next(struct check_stream *s)
{
	if (!s->has_key)
		return;
	s->err = check_step(s->c, 1, s->it.btree_id, s->k.k.p);
	btree_iter_advance(&s->it);
	s->has_key = false;
}

/* --- pointers --- */

struct pointers_walk {
	struct check *c;
	check_pointers_fn fn;
	void *ctx;
	struct check_pointers p;
};

static int leaf_pointers(void *ctx, struct bkey_ref k)
{
	struct pointers_walk *w = ctx;

	if (k.k.type != KEY_EXTENT && k.k.type != KEY_REFLINK_V)
		return 0;
	int nr = extent_decode(k, w->c->kctx, w->p.ptrs, NULL, NULL);
	if (nr < 0)
		return 0; /* a key that breaks a rule: the node's reader has told */
	w->p.k = k.k;
	w->p.nr = (unsigned)nr;
	return w->fn(w->ctx, &w->p);
}

static int node_pointers(struct pointers_walk *w, struct bpos p, const struct btree_ptr *ptr)
{
	w->p.k = (struct bkey){ .p = p, .type = KEY_BTREE_PTR_V2 };
	w->p.nr = ptr->ptr_nr;
	for (unsigned i = 0; i < ptr->ptr_nr; i++)
		w->p.ptrs[i] = (struct extent_ptr_decoded){ .ptr = ptr->ptrs[i] };
	return w->fn(w->ctx, &w->p);
}

static int interior_pointers(void *ctx, struct bkey_ref k)
{
	struct pointers_walk *w = ctx;
	struct btree_ptr ptr;

	if (btree_ptr_decode(k, w->c->kctx, &ptr, NULL))
		return 0;
	return node_pointers(w, k.k.p, &ptr);
}

/* Takes the root alone: it comes first. */
static int root_pointers(void *ctx, const struct btree_node_info *info, int err)
{
	struct pointers_walk *w = ctx;

	if (err)
		note_damage(w->c, w->p.btree_id);
	w->p.level = info->level + 1;
	int ret = info->ptr.ptr_nr ? node_pointers(w, info->max_key, &info->ptr) : 0;
	return ret ? ret : 1;
}

int check_each_pointers(struct check *c, check_pointers_fn fn, void *ctx)
{
	struct pointers_walk w = { c, fn, ctx, { 0 } };
	int err = 0;

	for (unsigned id = 0; !err && id < BTREE_NR_MAX; id++) {
		int level = btree_root_level(c->trees, id);

		w.p.btree_id = id;
		err = btree_nodes_walk(c->trees, id, root_pointers, &w);
		if (err > 0)
			err = 0;
		for (; !err && level > 0; level--) {
			w.p.level = (unsigned)level;
			err = check_keys(c, id, (unsigned)level, POS_MIN, SPOS_MAX, interior_pointers, &w);
		}
		w.p.level = 0;
		if (!err && btree_flags(id) & BTREE_HAS_DATA)
			err = check_keys(c, id, 0, POS_MIN, SPOS_MAX, leaf_pointers, &w);
	}
	return err;
}

uint32_t check_pointer_sectors(const struct check *c, const struct check_pointers *p, unsigned i)
{
	const struct extent_crc *crc = &p->ptrs[i].crc;

	if (p->level)
		return c->kctx->node_sectors;
	if (!compression_is_compressed(crc->compression) || !crc->uncompressed_sectors)
		return p->k.size;
	return (uint32_t)div_round_up_u64((uint64_t)p->k.size * crc->compressed_sectors, crc->uncompressed_sectors);
}

bool check_pointer_bucket(const struct check *c, const struct extent_ptr *p, uint64_t *bucket)
{
	const struct member_geometry *m = check_member(c, p->dev);

	if (!m)
		return false;
	*bucket = p->sector / m->bucket_sectors;
	return *bucket < m->bucket_nr;
}

uint32_t check_snapshot_view(struct check *c, uint32_t id)
{
	const struct snapshot *s = snapshot_table_find(&c->snapshots, id);

	return s ? c->views[container_of(s, struct snapshot_entry, s) - c->snapshots.entries] : 0;
}

/* In ascending order children come before their parents. */
static int find_views(struct check *c)
{
	c->views = calloc(c->snapshots.nr + 1, sizeof(*c->views));
	if (!c->views)
		return -ENOMEM;
	for (size_t i = 0; i < c->snapshots.nr; i++) {
		const struct snapshot_entry *e = &c->snapshots.entries[i];
		uint32_t a = check_snapshot_view(c, e->s.children[0]);
		uint32_t b = check_snapshot_view(c, e->s.children[1]);

		if (!e->s.will_delete)
			c->views[i] = e->s.is_subvol || (a && b) ? e->id : max(a, b);
	}
	return 0;
}

/* --- running --- */

static int run_pass(struct check *c, unsigned i)
{
	c->pass = &passes[i].pass;
	c->pass_result = &c->result->passes[i];
	if (c->is_newer && !c->pass->is_valid_newer) {
		c->pass_result->is_left_out_newer = true;
		return 0;
	}
	uint64_t start = clock_monotonic_ns();
	c->done = c->done_told = 0;
	c->total = 0;
	int err = c->opts->progress ? c->opts->progress(c->opts->progress_ctx, c->pass, 0, 0, "") : 0;
	if (!err)
		err = passes[i].run(c);
	c->pass_result->ns = clock_monotonic_ns() - start;
	c->pass_result->was_run = !err;
	return err;
}

int check_run(const struct check_target *target, const struct check_opts *opts, struct check_result *result)
{
	struct check c = {
		.t = target,
		.opts = opts,
		.result = result,
		.super = target->super,
		.trees = target->trees,
		.kctx = &target->super->kctx,
		.memory_bytes = opts->memory_bytes ? opts->memory_bytes : MEMORY_DEFAULT,
		.seq_next = target->journal_seq_next ? target->journal_seq_next
			    : target->is_writable    ? UINT64_MAX
						     : target->journal->seq_next,
		.is_secret = target->super->has_key,
		.is_newer = target->super->kctx.is_newer,
	};

	*result = (struct check_result){ 0 };
	if (c.memory_bytes < MEMORY_MIN)
		return -EINVAL;
	int err = snapshot_table_read(&c.snapshots, c.trees, NULL);
	if (!err)
		err = find_views(&c);
	if (!err && !target->usage)
		err = usage_read(c.super, target->journal, c.trees, &c.usage);
	c.has_usage = !err && !target->usage;
	for (unsigned i = 0; !err && i < ARRAY_NR(passes); i++)
		if (opts->passes ? opts->passes >> i & 1 : !passes[i].pass.is_optional)
			err = run_pass(&c, i);
	if (c.has_usage)
		usage_free(&c.usage);
	free(c.views);
	snapshot_table_free(&c.snapshots);
	return err;
}
