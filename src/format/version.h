/* Metadata versions: major << 10 | minor. One table of names (version.c); what depends on a version is decided from it.
 */
#ifndef KILN_FORMAT_VERSION_H
#define KILN_FORMAT_VERSION_H

#define VERSION(major, minor) ((unsigned)(major) << 10 | (minor))
#define VERSION_MAJOR(v)      ((unsigned)(v) >> 10)
#define VERSION_MINOR(v)      ((unsigned)(v)&0x3ff)

enum {
	VERSION_MIN_READABLE = VERSION(1, 0),
	VERSION_1_4 = VERSION(1, 4), /* what Kiln writes */
	VERSION_NEWEST_KNOWN = VERSION(1, 39),
};

/* "member_seq", or NULL. */
const char *version_name(unsigned version);

#endif
