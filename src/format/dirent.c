/*
 * Directory entries (04 §3, 12 §7.3): target, type and name.
 *
 * A plain name runs to the end of the value without its zero padding. A casefolded entry has both lengths in front,
 * then the name as it was given and the folded one, which is what is hashed and compared.
 */
#include "format/dirent.h"

#include <inttypes.h>

#include "format/error_ids.h"
#include "format/value.h"

enum {
	TYPE_AT = 8, /* byte: [0,5) d_type, 7 casefolded */
	NAME_AT = 9,
	CASEFOLD_NAME_LEN_AT = 11,
	CASEFOLD_FOLDED_LEN_AT = 13,
	CASEFOLD_NAME_AT = 15,
	TYPE_MASK = 0x1f,
	TYPE_CASEFOLDED = 0x80,
	DIRENT_BYTES_MIN = 16,
};

static void plain_name_decode(struct dirent *d, const uint8_t *value, size_t bytes)
{
	size_t len = bytes - NAME_AT;

	/* Padding fills at most the last word. */
	for (unsigned i = 0; i < 8 && len && !value[NAME_AT + len - 1]; i++)
		len--;
	d->name = d->folded = value + NAME_AT;
	d->name_len = d->folded_len = (uint16_t)len;
}

static int casefold_names_decode(struct dirent *d, const uint8_t *value, size_t bytes, struct fault *fault)
{
	uint16_t name_len = le16_load(value + CASEFOLD_NAME_LEN_AT),
		 folded_len = le16_load(value + CASEFOLD_FOLDED_LEN_AT);

	if ((size_t)CASEFOLD_NAME_AT + name_len + folded_len > bytes)
		return fault_set(fault, ERROR_dirent_cf_name_too_big, "names", "an end inside of the value",
				 "lengths %u and %u in %zu bytes", name_len, folded_len, bytes);
	d->is_casefolded = true;
	d->name = value + CASEFOLD_NAME_AT;
	d->name_len = name_len;
	d->folded = d->name + name_len;
	d->folded_len = folded_len;
	return 0;
}

int dirent_decode(struct bkey_ref k, struct dirent *d, struct fault *fault)
{
	const uint8_t *value = k.value;
	size_t bytes = bkey_value_bytes(&k.k);

	if (bytes < DIRENT_BYTES_MIN)
		return fault_set(fault, ERROR_bkey_val_size_too_small, "value", "at least 16 bytes", "%zu", bytes);

	*d = (struct dirent){ .type = value[TYPE_AT] & TYPE_MASK };
	if (d->type == DIRENT_TYPE_SUBVOL) {
		d->child_subvol = le32_load(value);
		d->parent_subvol = le32_load(value + 4);
	} else {
		d->inum = le64_load(value);
	}
	if (value[TYPE_AT] & TYPE_CASEFOLDED)
		return casefold_names_decode(d, value, bytes, fault);
	plain_name_decode(d, value, bytes);
	return 0;
}

size_t dirent_encode(const struct dirent *d, uint8_t *value, size_t size)
{
	size_t bytes = max(round_up_u64((uint64_t)NAME_AT + d->name_len, 8), (uint64_t)DIRENT_BYTES_MIN);

	if (bytes > size || !d->name_len || d->name_len > DIRENT_NAME_MAX)
		return 0;
	memset(value, 0, bytes);
	if (d->type == DIRENT_TYPE_SUBVOL) {
		le32_store(value, d->child_subvol);
		le32_store(value + 4, d->parent_subvol);
	} else {
		le64_store(value, d->inum);
	}
	value[TYPE_AT] = d->type & TYPE_MASK;
	memcpy(value + NAME_AT, d->name, d->name_len);
	return bytes;
}

static int name_validate(const uint8_t *name, size_t len, struct fault *fault)
{
	if (memchr(name, 0, len))
		return fault_set(fault, ERROR_dirent_name_embedded_nul, "name", "no zero byte", "one at %td",
				 (const uint8_t *)memchr(name, 0, len) - name);
	if (name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.')))
		return fault_set(fault, ERROR_dirent_name_dot_or_dotdot, "name", "not . or ..", "%.*s", (int)len,
				 (const char *)name);
	if (memchr(name, '/', len))
		return fault_set(fault, ERROR_dirent_name_has_slash, "name", "no slash", "one at %td",
				 (const uint8_t *)memchr(name, '/', len) - name);
	return 0;
}

static int size_validate(const struct dirent *d, const uint8_t *value, size_t bytes, struct fault *fault)
{
	if (!d->is_casefolded) {
		size_t need = max(round_up_u64((uint64_t)NAME_AT + d->name_len, 8), (uint64_t)DIRENT_BYTES_MIN);

		if (bytes > need)
			return fault_set(fault, ERROR_dirent_val_too_big, "value", "as long as the name needs",
					 "%zu bytes for %u of name", bytes, d->name_len);
		return 0;
	}

	if (d->name_len > DIRENT_NAME_MAX || d->folded_len > DIRENT_NAME_MAX)
		return fault_set(fault, ERROR_dirent_cf_name_too_big, "names", "at most 512 bytes each", "%u and %u",
				 d->name_len, d->folded_len);
	for (size_t i = (size_t)CASEFOLD_NAME_AT + d->name_len + d->folded_len; i < bytes; i++)
		if (value[i])
			return fault_set(fault, ERROR_dirent_stray_data_after_cf_name, "bytes after the names", "0",
					 "0x%02x", value[i]);
	return 0;
}

int dirent_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	struct dirent d;
	int err;

	if ((err = dirent_decode(k, &d, fault)))
		return err;
	if (!d.name_len || !d.folded_len)
		return fault_set(fault, ERROR_dirent_empty_name, "name", "at least 1 byte", "none");
	if ((err = size_validate(&d, k.value, bkey_value_bytes(&k.k), fault)) ||
	    (err = name_validate(d.name, d.name_len, fault)) ||
	    (d.is_casefolded && (err = name_validate(d.folded, d.folded_len, fault))))
		return err;
	if (d.type != DIRENT_TYPE_SUBVOL && d.inum == k.k.p.inode)
		return fault_set(fault, ERROR_dirent_to_itself, "target", "not the directory itself", "%" PRIu64,
				 d.inum);
	return 0;
}

static const char *dirent_type_name(unsigned type)
{
	static const char *const names[] = {
		[DIRENT_TYPE_FIFO] = "fifo", [DIRENT_TYPE_CHR] = "chr",	      [DIRENT_TYPE_DIR] = "dir",
		[DIRENT_TYPE_BLK] = "blk",   [DIRENT_TYPE_REG] = "reg",	      [DIRENT_TYPE_LNK] = "lnk",
		[DIRENT_TYPE_SOCK] = "sock", [DIRENT_TYPE_SUBVOL] = "subvol",
	};

	return type < ARRAY_NR(names) && names[type] ? names[type] : "unknown";
}

void dirent_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	struct dirent d;

	if (dirent_decode(k, &d, NULL)) {
		strbuf_add(out, "(invalid)");
		return;
	}
	value_add_name(out, d.name, d.name_len);
	if (d.is_casefolded) {
		strbuf_add(out, " (casefold ");
		value_add_name(out, d.folded, d.folded_len);
		strbuf_add_char(out, ')');
	}
	strbuf_printf(out, " -> %" PRIu64 " type %s", d.type == DIRENT_TYPE_SUBVOL ? d.child_subvol : d.inum,
		      dirent_type_name(d.type));
}
