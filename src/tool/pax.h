/*
 * Headers of tar archives in the pax format (POSIX.1-2001): a ustar header, preceded by an extended header with what
 * doesn't fit there. Pure functions over bytes.
 *
 * Extended attributes are SCHILY.xattr.NAME and ACLs SCHILY.acl.access and .default, as star, GNU tar and libarchive
 * read them; files with holes are in GNU's sparse format 1.0.
 */
#ifndef KILN_TOOL_PAX_H
#define KILN_TOOL_PAX_H

#include "base/strbuf.h"
#include "kiln/kiln.h"

enum { PAX_BLOCK_BYTES = 512, PAX_RECORD_BYTES = 20 * PAX_BLOCK_BYTES };

enum pax_type {
	PAX_FILE = '0',
	PAX_HARDLINK = '1',
	PAX_SYMLINK = '2',
	PAX_CHAR_DEVICE = '3',
	PAX_BLOCK_DEVICE = '4',
	PAX_DIRECTORY = '5',
	PAX_FIFO = '6',
};

/* Bytes [offset, offset + len) of a file hold data. */
struct pax_range {
	uint64_t offset, len;
};

struct pax_entry {
	enum pax_type type;
	const char *path;	    /* of a directory: with a slash at the end */
	const char *link;	    /* target of links, else NULL */
	const struct kiln_stat *st; /* mode, owner, mtime, device numbers */
	uint64_t stored_bytes;	    /* contents that follow the header, without padding; a sparse map included */
	bool is_sparse;		    /* contents are a sparse map and data; st->size is the size of the file */
};

/*
 * An ACL in the form of the system calls as text, with numbers for names: "user::rwx,user:1000:r--,...", as setfacl(1)
 * takes it. 0; -EINVAL: it isn't one.
 */
int pax_acl_text(struct strbuf *out, const uint8_t *acl, size_t len);
/* One record of an extended header. Values may hold any bytes. */
void pax_add_record(struct strbuf *records, const char *key, const void *value, size_t len);
/* An extended attribute, ACLs (in the system calls' form) included, as a record. -EINVAL for an ACL that is none. */
int pax_add_xattr(struct strbuf *records, const char *name, const void *value, size_t len);
/* All blocks of the header of @e; @records are further records. */
void pax_add_header(struct strbuf *out, const struct pax_entry *e, const struct strbuf *records);
/* The map that the contents of a sparse file begin with, padded to blocks. */
void pax_add_sparse_map(struct strbuf *out, const struct pax_range *ranges, size_t nr);
/* Zeroes up to the end of a block, after @bytes. */
size_t pax_padding(uint64_t bytes);

#endif
