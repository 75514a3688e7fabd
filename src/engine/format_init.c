/* What a first mount makes. See format.h. */
#include "engine/format.h"

#include <errno.h>
#include <stdio.h>

#include "super/format.h"

int fs_initialize(struct device **devices, size_t device_nr, const struct kiln_open_options *options,
		  struct kiln_fs **out, char why[KILN_ERROR_BYTES])
{
	struct kiln_fs *fs;

	int err = fs_open(NULL, 0, devices, device_nr, options, FS_NAMESPACE, &fs, why);
	if (err)
		return err;
	if (out) {
		*out = fs;
		return 0;
	}
	err = kiln_shutdown(fs);
	if (err == -ENOSPC)
		snprintf(why, KILN_ERROR_BYTES, "%s", SUPER_FORMAT_TOO_SMALL);
	else if (err)
		snprintf(why, KILN_ERROR_BYTES, "The new filesystem can't be closed cleanly. %s", fs_error_text(err));
	kiln_close(fs);
	return err;
}
