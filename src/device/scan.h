/* Which devices a command line means (01 §14, 11 §1): paths, a:b:c, UUID=; and finding the other members. */
#ifndef KILN_DEVICE_SCAN_H
#define KILN_DEVICE_SCAN_H

#include <stddef.h>
#include <stdint.h>

struct device_paths {
	char **paths;
	size_t nr;
};
void device_paths_free(struct device_paths *p);

/*
 * Split arguments into paths: each is a path, `a:b:c` (a colon in a file that exists as named stays part of it), or
 * `UUID=xxxxxxxx-...`, in any case, which is looked up among the block devices (external UUID).
 * 0, -ENOENT (nothing has that UUID), -EINVAL; @why is a sentence for the user.
 */
int device_paths_parse(char *const *args, size_t nr, struct device_paths *out, char why[256]);

/*
 * Block devices (from /proc/partitions, and below /dev) whose superblock has this external or internal UUID.
 * Devices that can't be opened are passed over, and those that another is built upon (paths of a multipath device).
 */
int device_scan_uuid(const uint8_t uuid[16], struct device_paths *out);

#endif
