/*
 * POSIX ACLs as a model has them, and what they mean for modes (POSIX 1003.1e draft 17, §23.1). Values are as the
 * system calls have them; nothing of the engine's is used.
 */
#ifndef KILN_TESTS_SIM_ACL_H
#define KILN_TESTS_SIM_ACL_H

#include "base/clock.h"
#include "model.h"

enum { ACL_BYTES_MAX = 4 + 24 * 8 };

/* Draw one; one in eight makes no sense, or has no entries. Returns its bytes. */
size_t acl_draw(struct rng *rng, uint8_t value[ACL_BYTES_MAX]);
/* What setting it gives: 0, -EINVAL, or what objects of this type say to any. */
int acl_expect(const struct model_object *o, unsigned xattr, const uint8_t *value, size_t bytes);
void acl_apply(struct model_object *o, unsigned xattr, const uint8_t *value, size_t bytes);
/* The object has a new mode: its ACL says the same. */
void acl_mode_changed(struct model_object *o);
/* A new object's mode and ACLs, from its directory's default ACL or else the umask. */
void acl_inherit_from(struct model_object *o, const struct model_object *dir, uint32_t umask);

#endif
