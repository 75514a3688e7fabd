/* Tar headers. See pax.h. */
#include "tool/pax.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "tool/tree.h"

/* The ustar header (POSIX.1-2001, pax, "ustar Interchange Format"). All fields are text. */
struct ustar {
	char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type, link[100];
	char magic[6], version[2], user[32], group[32], dev_major[8], dev_minor[8], prefix[155], unused[12];
};
_Static_assert(sizeof(struct ustar) == PAX_BLOCK_BYTES, "a header is one block");

size_t pax_padding(uint64_t bytes) { return (size_t)(round_up_u64(bytes, PAX_BLOCK_BYTES) - bytes); }

static void add_zeroes(struct strbuf *out, size_t len)
{
	static const char zeroes[PAX_BLOCK_BYTES];

	strbuf_add_bytes(out, zeroes, len);
}

/* --- records of extended headers --- */

static unsigned decimal_digits(size_t v)
{
	unsigned n = 1;

	while (v /= 10)
		n++;
	return n;
}

void pax_add_record(struct strbuf *records, const char *key, const void *value, size_t len)
{
	/* "LENGTH KEY=VALUE\n", where the length counts its own digits. */
	size_t rest = strlen(key) + len + 3, total = rest + 1;

	while (rest + decimal_digits(total) != total)
		total = rest + decimal_digits(total);
	strbuf_printf(records, "%zu %s=", total, key);
	strbuf_add_bytes(records, value, len);
	strbuf_add_char(records, '\n');
}

static void add_text_record(struct strbuf *records, const char *key, const char *value)
{
	pax_add_record(records, key, value, strlen(value));
}

static void add_number_record(struct strbuf *records, const char *key, uint64_t value)
{
	char text[24];
	struct strbuf s = strbuf_fixed(text, sizeof(text));

	strbuf_printf(&s, "%llu", (unsigned long long)value);
	add_text_record(records, key, text);
}

/* Seconds with a fraction; the nanoseconds of times before 1970 count upwards too. */
static void add_time_record(struct strbuf *records, const char *key, struct kiln_timespec t)
{
	char text[48];
	struct strbuf s = strbuf_fixed(text, sizeof(text));
	bool is_fraction_negative = t.sec < 0 && t.nsec;
	int64_t sec = is_fraction_negative ? t.sec + 1 : t.sec;
	uint32_t nsec = is_fraction_negative ? 1000000000 - t.nsec : t.nsec;

	strbuf_printf(&s, "%s%lld", is_fraction_negative && !sec ? "-" : "", (long long)sec);
	if (nsec)
		strbuf_printf(&s, ".%09u", nsec);
	add_text_record(records, key, text);
}

/* --- extended attributes --- */

static uint32_t acl_le(const uint8_t *p, unsigned bytes)
{
	uint32_t v = 0;

	while (bytes--)
		v = v << 8 | p[bytes];
	return v;
}

int pax_acl_text(struct strbuf *out, const uint8_t *acl, size_t len)
{
	enum { HEADER_BYTES = 4, ENTRY_BYTES = 8, VERSION = 2 };
	static const struct {
		uint16_t tag;
		const char *word;
		bool has_id;
	} tags[] = {
		{ 1, "user", false }, { 2, "user", true },   { 4, "group", false },
		{ 8, "group", true }, { 16, "mask", false }, { 32, "other", false },
	};

	if (len < HEADER_BYTES || len % ENTRY_BYTES != HEADER_BYTES || acl_le(acl, 4) != VERSION)
		return -EINVAL;
	for (size_t at = HEADER_BYTES; at < len; at += ENTRY_BYTES) {
		uint32_t tag = acl_le(acl + at, 2), perm = acl_le(acl + at + 2, 2), id = acl_le(acl + at + 4, 4);
		size_t i = 0;

		while (i < ARRAY_NR(tags) && tags[i].tag != tag)
			i++;
		if (i == ARRAY_NR(tags))
			return -EINVAL;
		strbuf_printf(out, "%s%s:", at > HEADER_BYTES ? "," : "", tags[i].word);
		if (tags[i].has_id)
			strbuf_printf(out, "%u", id);
		strbuf_printf(out, ":%c%c%c", perm & 4 ? 'r' : '-', perm & 2 ? 'w' : '-', perm & 1 ? 'x' : '-');
	}
	return 0;
}

int pax_add_xattr(struct strbuf *records, const char *name, const void *value, size_t len)
{
	static const char *const acls[][2] = {
		{ "system.posix_acl_access", "SCHILY.acl.access" },
		{ "system.posix_acl_default", "SCHILY.acl.default" },
	};
	struct strbuf text = strbuf_growing();

	for (size_t i = 0; i < ARRAY_NR(acls); i++) {
		if (strcmp(name, acls[i][0]))
			continue;
		int err = pax_acl_text(&text, value, len);
		if (!err)
			add_text_record(records, acls[i][1], strbuf_text(&text));
		strbuf_free(&text);
		return err;
	}
	/* What would end the key early is escaped as GNU tar does. */
	strbuf_add(&text, "SCHILY.xattr.");
	for (; *name; name++) {
		if (*name == '=' || *name == '%')
			strbuf_printf(&text, "%%%02X", *name);
		else
			strbuf_add_char(&text, *name);
	}
	pax_add_record(records, strbuf_text(&text), value, len);
	strbuf_free(&text);
	return 0;
}

/* --- headers --- */

/* A number in octal, filling the field but for a NUL at its end. False, and zero in the field, if it doesn't fit. */
static bool octal_set(char *field, size_t size, uint64_t value)
{
	bool fits = bit_length_u64(value) <= 3 * (size - 1);

	field[size - 1] = 0;
	for (size_t i = size - 1; i--; value >>= 3)
		field[i] = (char)('0' + (fits ? value & 7 : 0));
	return fits;
}

static void checksum_set(struct ustar *u)
{
	const unsigned char *p = (const unsigned char *)u;
	uint32_t sum = 0;

	memset(u->checksum, ' ', sizeof(u->checksum));
	for (size_t i = 0; i < sizeof(*u); i++)
		sum += p[i];
	octal_set(u->checksum, sizeof(u->checksum) - 1, sum);
}

/* Text that isn't in @set as a whole gets as much of it as there is room for. False if it had to be cut. */
static bool text_set(char *field, size_t size, const char *text)
{
	size_t len = strlen(text);

	memcpy(field, text, min(len, size));
	return len <= size;
}

static bool is_ascii(const char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text >= 0x80)
			return false;
	return true;
}

/* A header with everything that fits; what doesn't, to @records. */
static void ustar_fill(struct ustar *u, const struct pax_entry *e, struct strbuf *records)
{
	const struct kiln_stat *st = e->st;

	*u = (struct ustar){ .type = (char)e->type, .magic = "ustar", .version = { '0', '0' } };
	octal_set(u->mode, sizeof(u->mode), st->mode & 07777);
	if (!octal_set(u->uid, sizeof(u->uid), st->uid))
		add_number_record(records, "uid", st->uid);
	if (!octal_set(u->gid, sizeof(u->gid), st->gid))
		add_number_record(records, "gid", st->gid);
	if (!octal_set(u->size, sizeof(u->size), e->stored_bytes))
		add_number_record(records, "size", e->stored_bytes);
	if (!octal_set(u->mtime, sizeof(u->mtime), (uint64_t)st->mtime.sec) || st->mtime.nsec)
		add_time_record(records, "mtime", st->mtime);
	bool is_device = e->type == PAX_CHAR_DEVICE || e->type == PAX_BLOCK_DEVICE;
	octal_set(u->dev_major, sizeof(u->dev_major), is_device ? st->rdev_major : 0);
	octal_set(u->dev_minor, sizeof(u->dev_minor), is_device ? st->rdev_minor : 0);
	if (e->link && (!text_set(u->link, sizeof(u->link), e->link) || !is_ascii(e->link)))
		add_text_record(records, "linkpath", e->link);
}

static void sparse_records(struct strbuf *records, const struct pax_entry *e)
{
	add_text_record(records, "GNU.sparse.major", "1");
	add_text_record(records, "GNU.sparse.minor", "0");
	add_text_record(records, "GNU.sparse.name", e->path);
	add_number_record(records, "GNU.sparse.realsize", e->st->size);
}

/* Names of what a reader without extended headers would see as files. */
static void placeholder_name(char *field, size_t size, const char *dir, const char *path)
{
	text_set(field, size, dir);
	text_set(field + strlen(dir), size - strlen(dir), *tree_basename(path) ? tree_basename(path) : "dir");
}

void pax_add_header(struct strbuf *out, const struct pax_entry *e, const struct strbuf *records)
{
	struct strbuf all = strbuf_growing();
	struct ustar u, x;

	ustar_fill(&u, e, &all);
	if (e->is_sparse) {
		sparse_records(&all, e);
		placeholder_name(u.name, sizeof(u.name), "GNUSparseFile.0/", e->path);
	} else if (!text_set(u.name, sizeof(u.name), e->path) || !is_ascii(e->path)) {
		add_text_record(&all, "path", e->path);
	}
	checksum_set(&u);
	strbuf_add_bytes(&all, strbuf_text(records), records->len);

	if (all.len) {
		x = (struct ustar){ .type = 'x', .magic = "ustar", .version = { '0', '0' } };
		placeholder_name(x.name, sizeof(x.name), "PaxHeaders/", e->path);
		octal_set(x.mode, sizeof(x.mode), 0644);
		octal_set(x.uid, sizeof(x.uid), 0);
		octal_set(x.gid, sizeof(x.gid), 0);
		octal_set(x.size, sizeof(x.size), all.len);
		octal_set(x.mtime, sizeof(x.mtime), 0);
		checksum_set(&x);
		strbuf_add_bytes(out, &x, sizeof(x));
		strbuf_add_bytes(out, strbuf_text(&all), all.len);
		add_zeroes(out, pax_padding(all.len));
	}
	out->truncated |= all.truncated;
	strbuf_add_bytes(out, &u, sizeof(u));
	strbuf_free(&all);
}

void pax_add_sparse_map(struct strbuf *out, const struct pax_range *ranges, size_t nr)
{
	size_t begin = out->len;

	strbuf_printf(out, "%zu\n", nr);
	for (size_t i = 0; i < nr; i++)
		strbuf_printf(out, "%llu\n%llu\n", (unsigned long long)ranges[i].offset,
			      (unsigned long long)ranges[i].len);
	add_zeroes(out, pax_padding(out->len - begin));
}
