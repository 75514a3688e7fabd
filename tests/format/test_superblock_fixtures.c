/*
 * Superblocks of real images: each must be valid, and its text must say what upstream's show-super said about it.
 *
 * KILN_FIXTURES names the folder of images; without it ../shared/fixtures beside the build folder is tried. No images:
 * the tests are skipped, and say so.
 */
#include <ctype.h>
#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/strbuf.h"
#include "base/util.h"
#include "format/superblock.h"

enum { SB_READ_BYTES = 1 << 20, PATH_BYTES = 1024, LINE_BYTES = 1 << 16 };

static const char *fixtures_folder(void)
{
	const char *folder = getenv("KILN_FIXTURES");

	if (!folder)
		folder = "../shared/fixtures";
	return access(folder, R_OK) ? NULL : folder;
}

/* The first bytes of a packed image, up to the end of the first superblock's area. */
static struct sb_disk *sb_read(const char *packed)
{
	char command[PATH_BYTES + 64];
	uint8_t *bytes = malloc(SB_SECTOR * SECTOR_BYTES + SB_READ_BYTES);

	assert_non_null(bytes);
	/* Meson has malloc() fill what it hands out: room for the whole image, of which next to nothing is used. */
	snprintf(command, sizeof(command), "MALLOC_PERTURB_= zstd -dcq --long=31 '%s' 2>/dev/null", packed);
	FILE *pipe = popen(command, "r");
	assert_non_null(pipe);
	size_t len = fread(bytes, 1, SB_SECTOR * SECTOR_BYTES + SB_READ_BYTES, pipe);
	pclose(pipe);
	assert_int_equal(len, SB_SECTOR * SECTOR_BYTES + SB_READ_BYTES);
	memmove(bytes, bytes + SB_SECTOR * SECTOR_BYTES, SB_READ_BYTES);
	return (struct sb_disk *)bytes;
}

static void sb_assert_valid(const struct sb_disk *sb, const char *name)
{
	struct fault fault = { 0 };
	int err;

	if ((err = sb_check_header(sb, &fault)) || (err = sb_verify(sb, &fault)) ||
	    (err = sb_validate(sb, sb_is_newer(sb), &fault)))
		fail_msg("%s: %s: %s should be %s, is %s", name, error_name(err), fault.field, fault.expected,
			 fault.found);
}

/* Runs of blanks become one; none are left at the ends. */
static void squeeze(char *line)
{
	char *out = line;

	for (const char *in = line; *in; in++)
		if (!isspace((unsigned char)*in))
			*out++ = *in;
		else if (out > line && out[-1] != ' ')
			*out++ = ' ';
	while (out > line && out[-1] == ' ')
		out--;
	*out = 0;
}

/* Where the line after this one starts; the line itself, squeezed, in @line. NULL at the end. */
static const char *line_next(const char *text, char line[LINE_BYTES])
{
	size_t len = strcspn(text, "\n");

	if (!*text)
		return NULL;
	snprintf(line, LINE_BYTES, "%.*s", (int)min(len, (size_t)LINE_BYTES - 1), text);
	squeeze(line);
	return text + len + (text[len] == '\n');
}

static bool starts_with(const char *line, const char *start) { return !strncmp(line, start, strlen(start)); }

/* Of a member's label we show all of the path, upstream 1.4 the last name: "Label: ssd.ssd1 (1)", "Label: ssd1 (1)". */
static void label_shorten(char *line)
{
	static const char start[] = "Label: ";
	char *dot = strrchr(line, '.');

	if (dot && starts_with(line, start) && line[strlen(line) - 1] == ')')
		memmove(line + strlen(start), dot + 1, strlen(dot));
}

/* Is @line one of the lines of @text from *@pos on? Then *@pos moves behind it. */
static bool line_find(const char *text, const char **pos, const char *line)
{
	static char candidate[LINE_BYTES];

	for (const char *p = *pos; (p = line_next(p, candidate));) {
		label_shorten(candidate);
		if (!strcmp(candidate, line)) {
			*pos = p;
			return true;
		}
	}
	return false;
}

/* Entries of the clean section are other structures; what upstream misspells isn't copied. */
static bool is_left_out(const char *line)
{
	static const char *const starts[] = { "btree_root:", "usage:", "data_usage:", "dev_usage:",
					      "clock:",	     "KFD:",   "==== device", "Device: (" };

	for (size_t i = 0; i < ARRAY_NR(starts); i++)
		if (starts_with(line, starts[i]))
			return true;
	return !*line;
}

/* Lines of a newer upstream that have the same form in all versions. */
static bool is_stable(const char *line)
{
	static const char *const starts[] = { "External UUID:",
					      "Internal UUID:",
					      "Magic number:",
					      "Device index:",
					      "Sequence number:",
					      "Created:",
					      "Time of last write:",
					      "Clean:",
					      "Devices:",
					      "Sections:",
					      "Compat features:",
					      "metadata_replicas:",
					      "data_replicas:",
					      "metadata_checksum:",
					      "data_checksum:",
					      "compression:",
					      "background_compression:",
					      "str_hash:",
					      "foreground_target:",
					      "background_target:",
					      "promote_target:",
					      "errors: continue",
					      "erasure_code:",
					      "journal_flush_delay:",
					      "nocow:",
					      "UUID:",
					      "Buckets:",
					      "Last mount:",
					      "Last superblock write:",
					      "State:",
					      "Data allowed:",
					      "Durability:",
					      "Btree allocated bitmap:",
					      "journal_seq:",
					      "[parent" };

	for (size_t i = 0; i < ARRAY_NR(starts); i++)
		if (starts_with(line, starts[i]))
			return true;
	return false;
}

/*
 * Every line that upstream printed for device @dev must be among ours: in the same order for format 1.4, anywhere for
 * newer ones, where only lines that never changed their form are compared. Returns how many were.
 */
static unsigned text_compare(const char *name, const char *upstream, const char *ours, unsigned dev, bool is_newer)
{
	static char line[LINE_BYTES];
	const char *pos = ours;
	char marker[32];
	unsigned compared = 0;

	snprintf(marker, sizeof(marker), "==== device file dev%u", dev);
	const char *p = strstr(upstream, marker);
	if (!p)
		p = upstream;
	for (bool is_first = true; (p = line_next(p, line)); is_first = false) {
		if (!is_first && starts_with(line, "==== device"))
			break;
		if (is_left_out(line) || (is_newer && !is_stable(line)))
			continue;
		if (is_newer)
			pos = ours;
		if (!line_find(ours, &pos, line))
			fail_msg("%s device %u: upstream says \"%s\", not here:\n%s", name, dev, line, ours);
		compared++;
	}
	return compared;
}

static char *file_read(const char *path)
{
	FILE *file = fopen(path, "r");
	char *text = calloc(1, 1 << 20);

	assert_non_null(file);
	assert_non_null(text);
	assert_true(fread(text, 1, (1 << 20) - 1, file) > 0);
	fclose(file);
	return text;
}

static void image_check(const char *packed, const char *name, const char *upstream, unsigned dev)
{
	struct sb_disk *sb = sb_read(packed);
	struct strbuf text = strbuf_growing();

	sb_assert_valid(sb, name);
	assert_int_equal(sb_layout_validate(&sb->layout, NULL), 0);
	sb_to_text(&text, sb, true, ~0u);
	unsigned compared = text_compare(name, upstream, strbuf_text(&text), dev, sb_is_newer(sb));
	assert_true(compared > (sb_is_newer(sb) ? 20u : 150u));
	strbuf_free(&text);
	free(sb);
}

/* All fixtures whose names match @pattern. */
static void fixtures_check(const char *pattern)
{
	const char *folder = fixtures_folder();
	char path[PATH_BYTES];
	glob_t found;

	if (!folder) {
		print_message("SKIPPED: no images; set KILN_FIXTURES to their folder\n");
		skip();
	}
	snprintf(path, sizeof(path), "%s/%s.show-super.txt", folder, pattern);
	assert_int_equal(glob(path, 0, NULL, &found), 0);

	for (size_t i = 0; i < found.gl_pathc; i++) {
		int stem = (int)(strlen(found.gl_pathv[i]) - strlen(".show-super.txt"));
		const char *name = found.gl_pathv[i] + strlen(folder) + 1;
		char *upstream = file_read(found.gl_pathv[i]);

		snprintf(path, sizeof(path), "%.*s.img.zst", stem, found.gl_pathv[i]);
		if (!access(path, R_OK))
			image_check(path, name, upstream, 0);
		for (unsigned dev = 0; dev < 8; dev++) {
			snprintf(path, sizeof(path), "%.*s.dev%u.img.zst", stem, found.gl_pathv[i], dev);
			if (!access(path, R_OK))
				image_check(path, name, upstream, dev);
		}
		free(upstream);
	}
	globfree(&found);
}

static void superblocks_of_1_4_read_as_upstream_shows_them(void **state) { fixtures_check("v1.4-*"); }
static void superblocks_of_newer_versions_are_read(void **state) { fixtures_check("v1.[1-3]*"); }
static void superblocks_of_1_7_are_read(void **state) { fixtures_check("v1.7-*"); }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(superblocks_of_1_4_read_as_upstream_shows_them),
		cmocka_unit_test(superblocks_of_newer_versions_are_read),
		cmocka_unit_test(superblocks_of_1_7_are_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
