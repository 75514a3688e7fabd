/*
 * Bucket generations, read side (07 §3): does a cached pointer still mean what it did?
 *
 * The bucket_gens btree has them by 256; images whose allocation btrees were stripped have none, then every pointer is
 * accepted (12 §1.3).
 */
#ifndef KILN_ALLOC_GENS_H
#define KILN_ALLOC_GENS_H

#include "btree/btree.h"

/* Generation of a bucket: 1 known, 0 unknown, or an error of the btree (already reported). */
int bucket_gen_lookup(struct btrees *trees, unsigned dev, uint64_t bucket, uint8_t *gen);

#endif
