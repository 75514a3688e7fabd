/*
 * FUSE node ids for objects of the filesystem.
 *
 * An object is a pair (subvolume, inode number), a node id one 64-bit number. Objects of subvolume 1 are their own id
 * (inode numbers have 63 bits); the root directory is FUSE's 1. Objects of other subvolumes get an entry in a table,
 * and the id is its index with bit 63 set. An entry lives as long as the kernel remembers the id (lookup count).
 */
#ifndef KILN_MOUNT_NODES_H
#define KILN_MOUNT_NODES_H

#include <stdbool.h>
#include <stdint.h>

#include "kiln/kiln.h"

struct nodes;

struct nodes *nodes_new(struct kiln_node root);
void nodes_free(struct nodes *n);

/* Id of @node with one more reference of the kernel on it; 0 when memory is short. */
uint64_t nodes_get(struct nodes *n, struct kiln_node node);
/* The kernel forgets @count references. */
void nodes_forget(struct nodes *n, uint64_t id, uint64_t count);
/* Object of an id the kernel holds. False for ids it can't hold. */
bool nodes_find(struct nodes *n, uint64_t id, struct kiln_node *node);

/* What users see as inode number: stable over mounts, and different for the same number in different subvolumes. */
uint64_t nodes_visible_ino(struct kiln_node node);

#endif
