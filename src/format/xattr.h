/* Extended attributes: key type xattr (11), and ACL values. 04 §4. */
#ifndef KILN_FORMAT_XATTR_H
#define KILN_FORMAT_XATTR_H

#include "format/key_types.h"

enum xattr_type {
	XATTR_USER,
	XATTR_ACL_ACCESS,
	XATTR_ACL_DEFAULT,
	XATTR_TRUSTED,
	XATTR_SECURITY,
	XATTR_TYPE_NR,
};

struct xattr {
	uint8_t type;
	const uint8_t *name; /* without prefix, not terminated */
	uint8_t name_len;
	const uint8_t *value;
	uint16_t value_len;
};

int xattr_decode(struct bkey_ref k, struct xattr *x, struct fault *fault);
/* Returns value bytes, a multiple of 8; 0 when @size, or that of a key, doesn't do. */
size_t xattr_encode(const struct xattr *x, uint8_t *value, size_t size);
/* "user.", "trusted.", ...; for ACLs the whole name. NULL for unknown types. */
const char *xattr_prefix(unsigned type);
/* Split a full name ("user.foo") into type and rest. -EOPNOTSUPP for foreign prefixes. */
int xattr_name_parse(const char *full, uint8_t *type, const char **name);

/*
 * Stored ACL to the form of the system calls (system.posix_acl_*, version 2) and back. Returns bytes written,
 * -ERANGE when @size is too small (size 0: return the bytes needed), or -EINVAL.
 */
int acl_to_user(const void *stored, size_t len, void *out, size_t size);
int acl_from_user(const void *user, size_t len, void *out, size_t size);

int xattr_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void xattr_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);

#endif
