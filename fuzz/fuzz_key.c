/*
 * Key values: validation, text and every decoder, of any type in any btree, on any bytes.
 *
 * Input: context, btree, level; then the key as it stands unpacked, its type byte deciding what it is. A second part
 * treats the same bytes as a key packed with a format that is in the input too.
 */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "format/acl.h"
#include "format/alloc.h"
#include "format/dirent.h"
#include "format/extent.h"
#include "format/file_data.h"
#include "format/inode.h"
#include "format/logged_op.h"
#include "format/quota.h"
#include "format/snapshot.h"
#include "format/stripe.h"
#include "format/xattr.h"

static void check(bool is_true)
{
	if (!is_true)
		abort();
}

static void decode_extents(struct bkey_ref k, const struct key_context *ctx)
{
	struct extent_ptr_decoded ptrs[EXTENT_PTRS_MAX];
	struct reflink_p reflink;
	struct btree_ptr node;
	struct stripe stripe;
	struct fault fault;
	const uint8_t *bytes;
	bool is_poisoned;

	int nr = extent_decode(k, ctx, ptrs, &is_poisoned, &fault);
	check(nr <= EXTENT_PTRS_MAX);
	for (int i = 0; i < nr; i++) {
		uint8_t out[24];

		if (ptrs[i].has_crc)
			extent_crc_store(out, &ptrs[i].crc);
		extent_ptr_store(out, &ptrs[i].ptr);
	}
	if (k.k.type == KEY_BTREE_PTR_V2 && !btree_ptr_decode(k, ctx, &node, &fault))
		check(node.ptr_nr <= EXTENT_PTRS_MAX);
	if (k.k.type == KEY_STRIPE && !stripe_decode(k, &stripe, &fault))
		for (unsigned block = 0; block < stripe.nr_blocks; block++)
			for (unsigned i = 0; i < stripe.csums_per_block; i++)
				stripe_checksum(&stripe, block, i);
	if (k.k.type == KEY_REFLINK_P)
		reflink_p_decode(k, &reflink);
	if (k.k.type == KEY_REFLINK_V)
		reflink_v_decode(k);
	if (k.k.type == KEY_INLINE_DATA || k.k.type == KEY_INDIRECT_INLINE_DATA) {
		size_t len = inline_data_bytes(k, &bytes);
		check(len <= bkey_value_bytes(&k.k));
		for (size_t i = 0; i < len; i++)
			__asm__ volatile("" : : "r"(bytes[i]));
	}
}

/* What was decoded and is encoded again must decode to the same. */
static void decode_inode(struct bkey_ref k, const struct key_context *ctx)
{
	struct inode inode, again;
	uint8_t value[INODE_V3_BYTES_MAX];
	struct fault fault;
	uint32_t major, minor;

	if (inode_unpack(k, &inode, &fault))
		return;
	inode_nlink(&inode);
	inode_dev(&inode, &major, &minor);
	inode_time_encode(ctx, inode_time_decode(ctx, inode.mtime));

	size_t bytes = inode_pack(&inode, value);
	check(bytes <= sizeof(value) && bytes % 8 == 0);
	struct bkey_ref packed = { k.k, value };
	packed.k.type = KEY_INODE_V3;
	packed.k.value_u64s = (uint8_t)(bytes / 8);
	check(!inode_unpack(packed, &again, &fault));
	check(again.size == inode.size && again.mode == inode.mode && again.dir_offset == inode.dir_offset);
}

static void decode_dirent(struct bkey_ref k)
{
	uint8_t value[BKEY_VALUE_U64S_MAX * 8];
	struct dirent d, again;
	struct fault fault;

	if (dirent_decode(k, &d, &fault) || d.is_casefolded)
		return;
	size_t bytes = dirent_encode(&d, value, sizeof(value));
	if (!bytes)
		return;
	struct bkey_ref encoded = { k.k, value };
	encoded.k.value_u64s = (uint8_t)(bytes / 8);
	check(!dirent_decode(encoded, &again, &fault));
	check(again.name_len == d.name_len && !memcmp(again.name, d.name, d.name_len));
}

static void decode_xattr(struct bkey_ref k)
{
	uint8_t out[4096], stored[4096];
	struct xattr x;
	struct fault fault;

	if (xattr_decode(k, &x, &fault))
		return;
	xattr_prefix(x.type);
	int n = acl_to_user(x.value, x.value_len, out, sizeof(out));
	if (n >= 0)
		acl_from_user(out, (size_t)n, stored, sizeof(stored));
	acl_from_user(x.value, x.value_len, stored, sizeof(stored));
}

static void decode_others(struct bkey_ref k, const struct key_context *ctx)
{
	struct fault fault;
	union {
		struct alloc alloc;
		struct backpointer backpointer;
		uint8_t gens[BUCKET_GENS_PER_KEY];
		struct accounting accounting;
		struct snapshot snapshot;
		struct subvolume subvolume;
		struct snapshot_tree tree;
		struct quota quota;
		struct logged_op_truncate truncate;
		struct logged_op_finsert finsert;
		struct logged_op_stripe_update stripe;
		struct inode_alloc_cursor cursor;
		struct reservation reservation;
		struct damage_entry damage;
	} v;

	switch (k.k.type) {
	case KEY_ALLOC:
	case KEY_ALLOC_V2:
	case KEY_ALLOC_V3:
	case KEY_ALLOC_V4: alloc_decode(k, &v.alloc, &fault); break;
	case KEY_BACKPOINTER: backpointer_decode(k, ctx, &v.backpointer); break;
	case KEY_BUCKET_GENS: bucket_gens_decode(k, v.gens); break;
	case KEY_ACCOUNTING: accounting_decode(k, ctx, &v.accounting); break;
	case KEY_SNAPSHOT: snapshot_decode(k, &v.snapshot); break;
	case KEY_SUBVOLUME: subvolume_decode(k, &v.subvolume); break;
	case KEY_SNAPSHOT_TREE: snapshot_tree_decode(k, &v.tree); break;
	case KEY_QUOTA: quota_decode(k, &v.quota); break;
	case KEY_LOGGED_OP_TRUNCATE: logged_op_truncate_decode(k, &v.truncate); break;
	case KEY_LOGGED_OP_FINSERT: logged_op_finsert_decode(k, &v.finsert); break;
	case KEY_LOGGED_OP_STRIPE_UPDATE: logged_op_stripe_update_decode(k, &v.stripe); break;
	case KEY_INODE_ALLOC_CURSOR: inode_alloc_cursor_decode(k, &v.cursor); break;
	case KEY_RESERVATION: reservation_decode(k, &v.reservation); break;
	case KEY_ERROR: error_key_reason(k); break;
	case KEY_COOKIE: cookie_decode(k); break;
	case KEY_INODE_GENERATION: inode_generation_decode(k); break;
	case KEY_DAMAGE:
		for (unsigned i = 0; damage_entry_decode(k, i, &v.damage); i++)
			;
		break;
	}
}

static void use_key(struct bkey_ref k, unsigned btree_id, unsigned level, const struct key_context *ctx)
{
	struct strbuf text = strbuf_growing();
	struct fault fault;

	key_validate(k, btree_id, level, ctx, &fault);
	key_to_text(&text, k, ctx);
	strbuf_free(&text);

	/* Decoders are called on values that have passed the row's and the type's rules. */
	if (key_validate_value(k, ctx, &fault))
		return;
	decode_extents(k, ctx);
	if (k.k.type == KEY_INODE || k.k.type == KEY_INODE_V2 || k.k.type == KEY_INODE_V3)
		decode_inode(k, ctx);
	if (k.k.type == KEY_DIRENT)
		decode_dirent(k);
	if (k.k.type == KEY_XATTR)
		decode_xattr(k);
	decode_others(k, ctx);
}

/* A key packed in a format from the input. */
static void use_packed(struct input *in, unsigned btree_id, unsigned level, const struct key_context *ctx)
{
	struct bkey_format_disk disk;
	struct bkey_format format;
	struct fault fault;

	if (input_left(in) <= sizeof(disk))
		return;
	memcpy(&disk, in->pos, sizeof(disk));
	in->pos += sizeof(disk);
	if (bkey_format_load(&format, &disk, &fault))
		return;

	size_t u64s = input_left(in) / 8;
	if (!u64s)
		return;
	uint8_t *words = malloc(u64s * 8);
	memcpy(words, in->pos, u64s * 8);
	if (bkey_check_frame(&format, words, u64s, &fault) > 0) {
		uint8_t packed[BKEY_U64S_MAX * 8] = { 0 };
		const void *value;
		struct bkey k = bkey_unpack(&format, words, &value);

		check(bpos_eq(k.p, bkey_unpack_pos(&format, words)));
		check(!bkey_cmp_pos(&format, words, k.p));
		if (bkey_pack(&format, packed, &k)) {
			packed[0] = words[0];
			check(!bkey_cmp_pos(&format, packed, k.p));
		}
		use_key((struct bkey_ref){ k, value }, btree_id, level, ctx);
	}
	free(words);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, data + size };
	struct key_context ctx;

	fuzz_key_context(&ctx, (uint8_t)input_take(&in, 1));
	unsigned btree_id = (unsigned)input_take(&in, 1) % (BTREE_NR_KNOWN + 2);
	unsigned level = (unsigned)input_take(&in, 1);
	bool is_packed = level & 0x80;
	level &= 3;

	if (is_packed) {
		use_packed(&in, btree_id, level, &ctx);
		return 0;
	}
	if (input_left(&in) < sizeof(struct bkey_disk))
		return 0;
	/* As long as the input, rather than as it says itself. */
	size_t value_u64s = min((input_left(&in) - sizeof(struct bkey_disk)) / 8, (size_t)BKEY_VALUE_U64S_MAX);
	struct bkey_disk header;
	memcpy(&header, in.pos, sizeof(header));
	header.u64s = (uint8_t)(BKEY_U64S + value_u64s);
	uint8_t *value = malloc(max(value_u64s * 8, (size_t)1));
	memcpy(value, in.pos + sizeof(header), value_u64s * 8);
	use_key((struct bkey_ref){ bkey_load(&header), value }, btree_id, level, &ctx);
	free(value);
	return 0;
}
