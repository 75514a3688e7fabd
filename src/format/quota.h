/* Quota limits: key type quota (13). 04 §9. */
#ifndef KILN_FORMAT_QUOTA_H
#define KILN_FORMAT_QUOTA_H

#include "format/key_types.h"

enum quota_type { QUOTA_USER, QUOTA_GROUP, QUOTA_PROJECT, QUOTA_TYPE_NR };
enum quota_counter { QUOTA_SPACE, QUOTA_INODES, QUOTA_COUNTER_NR };

/* Limits of one id. Space in sectors; 0: no limit. */
struct quota {
	struct {
		uint64_t hard, soft;
	} limits[QUOTA_COUNTER_NR];
};
enum { QUOTA_BYTES = 32 };
void quota_decode(struct bkey_ref k, struct quota *q);
void quota_encode(const struct quota *q, uint8_t value[QUOTA_BYTES]);

int quota_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void quota_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);

#endif
