/*
 * FUSE node ids for objects of the filesystem, and what the kernel remembers.
 *
 * An object is a pair (subvolume, inode number), a node id one 64-bit number. Objects of subvolume 1 are their own id
 * (inode numbers have 63 bits); the root directory is FUSE's 1. The id of an object of another subvolume is the place
 * of its entry in a table, with bit 63 set.
 *
 * Every object that the kernel remembers has an entry, which counts the kernel's references (lookup count). An object
 * that loses its last name while the kernel refers to it is *dead*: files may be open, and nobody tells us of opening
 * and closing, so it must stay until the kernel forgets it. An entry costs at most 32 bytes, index included.
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
/* The kernel forgets @count references. True when they were the last of *@node and it is dead. */
bool nodes_forget(struct nodes *n, uint64_t id, uint64_t count, struct kiln_node *node);
/* Object of an id the kernel holds. False for ids it can't hold. */
bool nodes_find(struct nodes *n, uint64_t id, struct kiln_node *node);
/* Id of @node if the kernel refers to it, else 0. */
uint64_t nodes_id(struct nodes *n, struct kiln_node node);
/* How many objects there are, at a glance. */
uint64_t nodes_nr(const struct nodes *n);
/* Ids of up to @max objects, each call those behind the last one's, around and around; not of dead ones. For one task.
 */
uint32_t nodes_next(struct nodes *n, uint64_t *ids, uint32_t max);
/*
 * @node has lost its last name. True when the kernel refers to it: nodes_forget() will say when it doesn't any more.
 * False also when it is marked already, as one that was given a name again and lost that.
 */
bool nodes_mark_dead(struct nodes *n, struct kiln_node node);
/* The same for @node, which the kernel refers to, and which never had a name: it can be given one. */
void nodes_mark_unnamed(struct nodes *n, struct kiln_node node);
bool nodes_is_dead(struct nodes *n, struct kiln_node node);
/* It has lost its last name, and can't be given another. */
bool nodes_is_gone(struct nodes *n, struct kiln_node node);

struct nodes_usage {
	uint64_t objects, dead, bytes;
};
struct nodes_usage nodes_usage(struct nodes *n);

/* What users see as inode number: stable over mounts, and different for the same number in different subvolumes. */
uint64_t nodes_visible_ino(struct kiln_node node);

#endif
