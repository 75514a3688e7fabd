/* Directory entries: key type dirent (10). 04 §3, 12 §7.3. */
#ifndef KILN_FORMAT_DIRENT_H
#define KILN_FORMAT_DIRENT_H

#include "format/key_types.h"

/* Types: those of the system's DT_* (mode bits 12..15), and one of our own. */
enum dirent_type {
	DIRENT_TYPE_FIFO = 1,
	DIRENT_TYPE_CHR = 2,
	DIRENT_TYPE_DIR = 4,
	DIRENT_TYPE_BLK = 6,
	DIRENT_TYPE_REG = 8,
	DIRENT_TYPE_LNK = 10,
	DIRENT_TYPE_SOCK = 12,
	DIRENT_TYPE_SUBVOL = 16,
};
enum {
	DIRENT_NAME_MAX = 512,	     /* of names that are written */
	DIRENT_NAME_READ_MAX = 1991, /* of names that are read: what the largest value holds */
};

struct dirent {
	uint8_t type; /* enum dirent_type */
	bool is_casefolded;
	uint64_t inum;			      /* not for subvolumes */
	uint32_t child_subvol, parent_subvol; /* only for subvolumes */
	const uint8_t *name;		      /* points into the value; not terminated */
	uint16_t name_len;
	const uint8_t *folded; /* what was hashed: the folded name, or name itself */
	uint16_t folded_len;
};

int dirent_decode(struct bkey_ref k, struct dirent *d, struct fault *fault);
/* Encode a plain (not casefolded) dirent. Returns value bytes, a multiple of 8; 0 when @size or the name doesn't do. */
size_t dirent_encode(const struct dirent *d, uint8_t *value, size_t size);
int dirent_validate(struct bkey_ref k, const struct key_context *ctx, struct fault *fault);
void dirent_to_text(struct strbuf *out, struct bkey_ref k, const struct key_context *ctx);

#endif
