/* How objects are shown. See listing.h. */
#include "tool/listing.h"

#include <string.h>
#include <sys/stat.h>
#include <time.h>

static const struct {
	uint32_t type;
	char letter;
	const char *name;
} types[] = {
	{ S_IFREG, '-', "file" }, { S_IFDIR, 'd', "dir" }, { S_IFLNK, 'l', "symlink" }, { S_IFIFO, 'p', "fifo" },
	{ S_IFCHR, 'c', "chr" },  { S_IFBLK, 'b', "blk" }, { S_IFSOCK, 's', "sock" },
};

const char *listing_type(uint32_t mode)
{
	for (size_t i = 0; i < ARRAY_NR(types); i++)
		if ((mode & S_IFMT) == types[i].type)
			return types[i].name;
	return "unknown";
}

/* The execute letter of one class, with setuid, setgid or sticky shown through it. */
static char execute_letter(bool x, bool special, char both, char alone)
{
	if (special)
		return x ? both : alone;
	return x ? 'x' : '-';
}

void listing_mode(char text[11], uint32_t mode)
{
	strcpy(text, "?rwxrwxrwx");
	for (size_t i = 0; i < ARRAY_NR(types); i++)
		if ((mode & S_IFMT) == types[i].type)
			text[0] = types[i].letter;
	for (unsigned i = 0; i < 9; i++)
		if (!(mode & (0400u >> i)))
			text[1 + i] = '-';
	text[3] = execute_letter(mode & S_IXUSR, mode & S_ISUID, 's', 'S');
	text[6] = execute_letter(mode & S_IXGRP, mode & S_ISGID, 's', 'S');
	text[9] = execute_letter(mode & S_IXOTH, mode & S_ISVTX, 't', 'T');
}

void listing_time(struct strbuf *out, struct kiln_timespec t)
{
	time_t sec = t.sec;
	struct tm tm;
	char date[64], zone[16];

	if (!localtime_r(&sec, &tm)) {
		strbuf_printf(out, "%lld.%09u", (long long)t.sec, t.nsec);
		return;
	}
	strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
	strftime(zone, sizeof(zone), "%z", &tm);
	strbuf_printf(out, "%s.%09u %s", date, t.nsec, zone);
}

/* Nanoseconds since 1970 as a JSON integer would overflow for far times: seconds and nanoseconds apart. */
static json_t *time_json(struct kiln_timespec t)
{
	return json_pack("{s:I, s:i}", "sec", (json_int_t)t.sec, "nsec", (int)t.nsec);
}

json_t *listing_stat_json(const struct kiln_stat *st)
{
	json_t *j =
		json_pack("{s:s, s:I, s:I, s:i, s:I, s:i, s:i, s:I, s:I, s:i, s:o, s:o, s:o, s:o}", "type",
			  listing_type(st->mode), "ino", (json_int_t)st->node.ino, "subvol",
			  (json_int_t)st->node.subvol, "mode", (int)(st->mode & 07777), "nlink", (json_int_t)st->nlink,
			  "uid", (int)st->uid, "gid", (int)st->gid, "size", (json_int_t)st->size, "sectors",
			  (json_int_t)st->sectors, "block_size", (int)st->block_bytes, "atime", time_json(st->atime),
			  "mtime", time_json(st->mtime), "ctime", time_json(st->ctime), "btime", time_json(st->btime));

	if (j && (S_ISCHR(st->mode) || S_ISBLK(st->mode)))
		json_object_set_new(j, "rdev", json_pack("[i, i]", (int)st->rdev_major, (int)st->rdev_minor));
	if (j && st->is_subvol_root)
		json_object_set_new(j, "subvol_root", json_true());
	if (j && st->is_readonly)
		json_object_set_new(j, "readonly", json_true());
	if (j && st->flags)
		json_object_set_new(j, "flags", json_integer(st->flags));
	if (j && st->project)
		json_object_set_new(j, "project", json_integer(st->project));
	return j;
}
