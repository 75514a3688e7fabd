/* Making filesystems. See format.h. */
#include "engine/format.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/secret.h"
#include "base/strbuf.h"

enum { DEVICES_MAX = 64 };

/* One call of kiln_format(). */
struct format {
	struct kiln_format_options opts;
	struct kiln_format_device devices[DEVICES_MAX];
	size_t nr;
	struct device *open[DEVICES_MAX];
	struct device_file_change files[DEVICES_MAX];
	char *why;
	/* Parsed. */
	char *option_text;
	uint64_t values[OPT_NR];
	bool is_set[OPT_NR];
	const char *targets[OPT_NR];
	struct crypt_key *user_key; /* what the passphrase makes */
};

/* --- options --- */

/* One "name" or "name=value"; @item is writable and stays. */
static int option_apply(struct format *f, char *item)
{
	char *value = strchr(item, '=');
	char reason[200] = "";
	struct strbuf text = strbuf_fixed(reason, sizeof(reason));

	if (value)
		*value++ = 0;
	int id = option_id_parse(item);
	if (id < 0 || !(option_table[id].where & OPTION_FORMAT)) {
		snprintf(f->why, KILN_ERROR_BYTES, "'%.100s' is no option that a filesystem can be made with", item);
		return -EINVAL;
	}
	if (option_table[id].type == OPTION_TARGET) {
		f->targets[id] = value ? value : "";
		return 0;
	}
	if (option_parse((enum option_id)id, value, NULL, &f->values[id], &text)) {
		snprintf(f->why, KILN_ERROR_BYTES, "%s=%.100s: %s", item, value ? value : "", reason);
		return -EINVAL;
	}
	f->is_set[id] = true;
	return 0;
}

static int options_parse(struct format *f)
{
	char *save = NULL;
	int err = 0;

	if (!f->opts.options)
		return 0;
	f->option_text = strdup(f->opts.options);
	if (!f->option_text)
		return -ENOMEM;
	for (char *item = strtok_r(f->option_text, ",", &save); item && !err; item = strtok_r(NULL, ",", &save))
		err = option_apply(f, item);
	return err;
}

/* --- superblocks --- */

static int superblocks_write(struct format *f)
{
	struct super_format_device devs[DEVICES_MAX];
	struct super_format_opts opts = {
		.options = f->values,
		.options_set = f->is_set,
		.targets = f->targets,
		.label = f->opts.label,
		.user_uuid = f->opts.uuid,
		.superblock_bytes = f->opts.superblock_bytes,
		.is_encrypted = f->opts.flags & KILN_FORMAT_ENCRYPTED,
		.passphrase = f->opts.passphrase,
		.passphrase_len = f->opts.passphrase_bytes,
		.user_key = f->user_key,
	};

	for (size_t i = 0; i < f->nr; i++) {
		const struct kiln_format_device *d = &f->devices[i];

		if (d->flags & KILN_FORMAT_CACHE && d->durability) {
			snprintf(f->why, KILN_ERROR_BYTES, "%s: a cache has no durability", f->open[i]->name);
			return -EINVAL;
		}
		devs[i] = (struct super_format_device){
			.dev = f->open[i],
			.label = d->label,
			.size_bytes = d->size_bytes,
			.bucket_bytes = d->bucket_bytes,
			.durability = d->flags & KILN_FORMAT_CACHE ? 0
				      : d->durability		   ? d->durability
								   : 1,
			.data_allowed = (uint8_t)d->data_allowed,
			.has_discard = d->flags & KILN_FORMAT_DISCARD,
		};
		if (d->data_allowed > UINT8_MAX)
			return -EINVAL;
	}
	return super_format(devs, f->nr, &opts, f->why);
}

/* Structs of the caller's header, which may be older. */
static int format_init(struct format *f, const struct kiln_format_device *devices, size_t nr,
		       const struct kiln_format_options *options, char *why)
{
	*f = (struct format){ .nr = nr, .why = why };
	if (options && !options->struct_bytes) {
		snprintf(why, KILN_ERROR_BYTES, "kiln_format_options.struct_bytes isn't set: no option would count");
		return -EINVAL;
	}
	if (options)
		memcpy(&f->opts, options, min(options->struct_bytes, sizeof(f->opts)));
	if (f->opts.passphrase && !(f->opts.flags & KILN_FORMAT_ENCRYPTED)) {
		snprintf(why, KILN_ERROR_BYTES, "a passphrase is for filesystems that are encrypted");
		return -EINVAL;
	}
	int err = f->opts.passphrase ? fs_passphrase_check(f->opts.passphrase_bytes, why) : 0;
	if (err)
		return err;
	f->user_key = f->opts.passphrase ? secret_alloc(sizeof(*f->user_key)) : NULL;
	if (f->opts.passphrase && !f->user_key)
		return -ENOMEM;
	size_t stride = options && options->device_struct_bytes ? options->device_struct_bytes : sizeof(*devices);

	if (!nr || nr > DEVICES_MAX) {
		snprintf(why, KILN_ERROR_BYTES, "a filesystem has 1 to %u devices", DEVICES_MAX);
		return -EINVAL;
	}
	for (size_t i = 0; i < nr; i++)
		memcpy(&f->devices[i], (const uint8_t *)devices + i * stride, min(stride, sizeof(*devices)));
	return options_parse(f);
}

static void format_destroy(struct format *f)
{
	free(f->option_text);
	secret_free(f->user_key);
}

int fs_format_devices(struct device **open, const struct kiln_format_device *devices, size_t nr,
		      const struct kiln_format_options *options, char why[KILN_ERROR_BYTES])
{
	struct format f;

	why[0] = 0;
	int err = format_init(&f, devices, nr, options, why);
	if (!err) {
		memcpy(f.open, open, nr * sizeof(*open));
		err = superblocks_write(&f);
	}
	format_destroy(&f);
	return err;
}

/* --- devices --- */

/* Would something be lost? */
static int device_look(const struct kiln_format_device *devices, size_t i, bool is_forced, char why[KILN_ERROR_BYTES])
{
	const char *path = devices[i].path;
	char what[128] = "";

	for (size_t k = 0; k < i; k++)
		if (!strcmp(path, devices[k].path)) {
			snprintf(why, KILN_ERROR_BYTES, "%s is named twice", path);
			return -EINVAL;
		}
	int found = device_signature_find(path, what);
	if (found == -ENOENT && devices[i].file_bytes)
		return 0;
	if (found == -ENOENT)
		snprintf(why, KILN_ERROR_BYTES, "%s doesn't exist; say how large it shall be (--size), and it is made",
			 path);
	else if (found == -ENOTBLK)
		snprintf(why, KILN_ERROR_BYTES, "%s is neither a file nor a block device", path);
	else if (found < 0)
		snprintf(why, KILN_ERROR_BYTES, "%s: can't find out what is on it: %s", path, strerror(-found));
	if (found < 0)
		return found;
	if (!found || is_forced)
		return 0;
	size_t len = strlen(why);
	snprintf(why + len, KILN_ERROR_BYTES - len, "%s%s holds %s", len ? ", " : "", path, what);
	return -EEXIST;
}

int fs_format_look(const struct kiln_format_device *devices, size_t nr, bool is_forced, char why[KILN_ERROR_BYTES])
{
	int err = 0;

	why[0] = 0;
	/* All that would be lost is named: who looks at the first alone may force away more. */
	for (size_t i = 0; i < nr && (!err || err == -EEXIST); i++) {
		int found = device_look(devices, i, is_forced, why);

		err = found ? found : err;
	}
	return err;
}

static unsigned open_flags(const struct format *f)
{
	return DEVICE_OPEN_WRITE | (f->opts.flags & KILN_FORMAT_BUFFERED ? DEVICE_OPEN_NO_DIRECT : 0) |
	       (f->opts.flags & KILN_FORMAT_NO_URING ? DEVICE_OPEN_NO_URING : 0);
}

static int device_prepare(struct format *f, size_t i, const struct log_sink *log)
{
	const struct kiln_format_device *d = &f->devices[i];
	unsigned flags = open_flags(f);
	char why[256] = "";

	int err = d->file_bytes ? device_file_make(d->path, d->file_bytes, &f->files[i], why) : 0;
	if (!err)
		err = device_open_file(d->path, flags, log, &f->open[i], why);
	/* Direct I/O in larger pieces than the blocks that were asked for isn't possible. */
	if (!err && f->is_set[OPT_BLOCK_SIZE] && f->open[i]->io_align_bytes > f->values[OPT_BLOCK_SIZE]) {
		device_close(f->open[i]);
		f->open[i] = NULL;
		err = device_open_file(d->path, flags | DEVICE_OPEN_NO_DIRECT, log, &f->open[i], why);
	}
	if (err)
		snprintf(f->why, KILN_ERROR_BYTES, "%s", why[0] ? why : fs_error_text(err));
	return err;
}

static int devices_prepare(struct format *f, const struct log_sink *log)
{
	int err = fs_format_look(f->devices, f->nr, f->opts.flags & KILN_FORMAT_FORCE, f->why);

	for (size_t i = 0; i < f->nr && !err; i++)
		err = device_prepare(f, i, log);
	return err;
}

static void devices_close(struct format *f, bool is_undone)
{
	for (size_t i = 0; i < f->nr; i++) {
		device_close(f->open[i]);
		f->open[i] = NULL;
		if (is_undone)
			device_file_restore(f->devices[i].path, &f->files[i]);
	}
}

/* --- the whole --- */

/* Superblocks of a filesystem that isn't one must not be found. The devices have been handed on, and closed. */
static void superblocks_undo(struct format *f, const struct log_sink *log)
{
	for (size_t i = 0; i < f->nr; i++) {
		struct device *dev;

		if (f->files[i].was_made || device_open_file(f->devices[i].path, open_flags(f), log, &dev, NULL))
			continue;
		super_format_undo(dev);
		device_close(dev);
	}
}

/* Hands the devices on. */
static int initialize(struct format *f, kiln_fs **fs)
{
	struct kiln_open_options options = {
		.struct_bytes = sizeof(options),
		.flags = KILN_OPEN_WRITE,
		.memory_bytes = f->opts.memory_bytes,
		.ctx = f->opts.ctx,
		.log = f->opts.log,
		.log_level = f->opts.log_level,
		.report = f->opts.report,
		.key = f->user_key ? f->user_key->bytes : NULL,
	};
	struct device *devices[DEVICES_MAX];

	memcpy(devices, f->open, sizeof(devices));
	memset(f->open, 0, sizeof(f->open));
	return fs_initialize(devices, f->nr, &options, fs, f->why);
}

static int format_run(struct format *f, kiln_fs **fs)
{
	struct reporter reporter;
	struct kiln_open_options sinks = {
		.struct_bytes = sizeof(sinks),
		.ctx = f->opts.ctx,
		.log = f->opts.log,
		.log_level = f->opts.log_level,
		.report = f->opts.report,
	};

	reporter_init(&reporter, &sinks);
	int err = devices_prepare(f, &reporter.log);
	if (!err)
		err = superblocks_write(f);
	if (!err && !(f->opts.flags & KILN_FORMAT_NO_INITIALIZE)) {
		err = initialize(f, fs);
		if (err)
			superblocks_undo(f, &reporter.log);
	}
	devices_close(f, err != 0);
	reporter_destroy(&reporter);
	return err;
}

int kiln_format(const struct kiln_format_device *devices, size_t nr, const struct kiln_format_options *options,
		kiln_fs **fs, char why[KILN_ERROR_BYTES])
{
	char why_unused[KILN_ERROR_BYTES];
	struct format *f = calloc(1, sizeof(*f));

	if (!why)
		why = why_unused;
	why[0] = 0;
	if (fs)
		*fs = NULL;
	if (!f)
		return -ENOMEM;
	int err = format_init(f, devices, nr, options, why);
	if (!err && fs && f->opts.flags & KILN_FORMAT_NO_INITIALIZE) {
		snprintf(why, KILN_ERROR_BYTES, "a filesystem that isn't initialised can't be opened");
		err = -EINVAL;
	}
	if (!err)
		err = format_run(f, fs);
	if (err && !why[0])
		snprintf(why, KILN_ERROR_BYTES, "%s", fs_error_text(err));
	format_destroy(f);
	free(f);
	return error_to_errno(err);
}
