/*
 * Extended attributes (04 §4): name space, name without its prefix, value, in one key.
 */
#include "format/xattr.h"

#include <errno.h>

#include "format/acl.h"
#include "format/error_ids.h"
#include "format/value.h"

struct xattr_disk {
	uint8_t type;
	uint8_t name_len;
	le16 value_len;
};
_Static_assert(sizeof(struct xattr_disk) == 4, "header of xattr is 4 bytes");

/* Prefixes; a whole name where the name space has just one attribute. */
static const struct {
	const char *prefix;
	bool is_whole_name;
} name_spaces[XATTR_TYPE_NR] = {
	[XATTR_USER] = { "user.", false },
	[XATTR_ACL_ACCESS] = { "system.posix_acl_access", true },
	[XATTR_ACL_DEFAULT] = { "system.posix_acl_default", true },
	[XATTR_TRUSTED] = { "trusted.", false },
	[XATTR_SECURITY] = { "security.", false },
};

int xattr_decode(struct bkey_ref k, struct xattr *x, struct fault *fault)
{
	struct xattr_disk d;
	size_t bytes = bkey_value_bytes(&k.k);

	value_load(&d, sizeof(d), k);
	size_t need = sizeof(d) + d.name_len + le16_get(d.value_len);
	if (bytes < need)
		return fault_set(fault, ERROR_xattr_val_size_too_small, "value", "room for name and value",
				 "%zu bytes, %zu needed", bytes, need);

	const uint8_t *name = (const uint8_t *)k.value + sizeof(d);
	*x = (struct xattr){
		.type = d.type,
		.name = name,
		.name_len = d.name_len,
		.value = name + d.name_len,
		.value_len = le16_get(d.value_len),
	};
	return 0;
}

size_t xattr_encode(const struct xattr *x, uint8_t *value, size_t size)
{
	size_t used = sizeof(struct xattr_disk) + x->name_len + x->value_len;
	size_t bytes = round_up_u64(used, 8);

	if (bytes > size || bytes > BKEY_VALUE_U64S_MAX * 8)
		return 0;
	struct xattr_disk d = { .type = x->type, .name_len = x->name_len, .value_len = le16_of(x->value_len) };
	uint8_t *p = value;

	memcpy(p, &d, sizeof(d));
	p += sizeof(d);
	if (x->name_len)
		memcpy(p, x->name, x->name_len);
	p += x->name_len;
	if (x->value_len)
		memcpy(p, x->value, x->value_len);
	memset(value + used, 0, bytes - used);
	return bytes;
}

const char *xattr_prefix(unsigned type) { return type < XATTR_TYPE_NR ? name_spaces[type].prefix : NULL; }

int xattr_name_parse(const char *full, uint8_t *type, const char **name)
{
	for (unsigned i = 0; i < XATTR_TYPE_NR; i++) {
		size_t len = strlen(name_spaces[i].prefix);

		if (strncmp(full, name_spaces[i].prefix, len))
			continue;
		if (name_spaces[i].is_whole_name ? full[len] != 0 : full[len] == 0)
			continue;
		*type = (uint8_t)i;
		*name = full + len;
		return 0;
	}
	return -EOPNOTSUPP;
}

int xattr_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault)
{
	struct xattr x = { 0 };
	int err = xattr_decode(k, &x, fault);

	if (err)
		return err;
	/* One more le32 was part of the structure once: values may have room for it. */
	size_t bytes = bkey_value_bytes(&k.k),
	       bytes_max = round_up_u64(sizeof(struct xattr_disk) + x.name_len + x.value_len + 4, 8);
	if (bytes > bytes_max)
		return fault_set(fault, ERROR_xattr_val_size_too_big, "value", "as long as name and value need",
				 "%zu bytes, at most %zu", bytes, bytes_max);
	if (x.type >= XATTR_TYPE_NR)
		return fault_set(fault, ERROR_xattr_invalid_type, "type", "0 to 4", "%u", x.type);
	if (x.name_len && memchr(x.name, 0, x.name_len))
		return fault_set(fault, ERROR_xattr_name_invalid_chars, "name", "no zero byte", "one at %td",
				 (const uint8_t *)memchr(x.name, 0, x.name_len) - x.name);
	return 0;
}

void xattr_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx)
{
	struct xattr x = { 0 };

	if (xattr_decode(k, &x, NULL)) {
		strbuf_add(out, "(invalid)");
		return;
	}
	if (x.type == XATTR_ACL_ACCESS || x.type == XATTR_ACL_DEFAULT || x.type >= XATTR_TYPE_NR)
		strbuf_printf(out, "(type %u)", x.type);
	else
		strbuf_add(out, name_spaces[x.type].prefix);
	value_add_name(out, x.name, x.name_len);
	strbuf_add_char(out, ':');
	if (x.type == XATTR_ACL_ACCESS || x.type == XATTR_ACL_DEFAULT)
		acl_to_text(out, x.value, x.value_len);
	else
		value_add_name(out, x.value, x.value_len);
}
