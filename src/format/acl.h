/* POSIX ACLs as xattr values store them (04 §4.1). The conversions are declared in format/xattr.h. */
#ifndef KILN_FORMAT_ACL_H
#define KILN_FORMAT_ACL_H

#include <stddef.h>

struct strbuf;

/* " user_obj 6 user uid 1000 7 ...", with a space before each entry. */
void acl_to_text(struct strbuf *out, const void *stored, size_t len);

#endif
