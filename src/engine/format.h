/*
 * Making filesystems: devices and options as the public call gives them, superblocks (super/format.h), and what a first
 * mount makes in them.
 */
#ifndef KILN_ENGINE_FORMAT_H
#define KILN_ENGINE_FORMAT_H

#include "engine/fs.h"
#include "super/format.h"

/*
 * The second half: @devices, which super_format() has just written and the filesystem owns from here on, become a
 * filesystem that is open for writing, as the first fs_open() makes of them; or, without @fs, clean and closed.
 * @options have KILN_OPEN_WRITE. 0, or a negative errno with @why.
 */
int fs_initialize(struct device **devices, size_t device_nr, const struct kiln_open_options *options,
		  struct kiln_fs **fs, char why[KILN_ERROR_BYTES]);

/*
 * What formatting looks at first, for who has something to ask before: is each device there, and (unless forced) does
 * none hold anything that would be lost? 0, or as kiln_format() with @why.
 */
int fs_format_look(const struct kiln_format_device *devices, size_t nr, bool is_forced, char why[KILN_ERROR_BYTES]);

/*
 * Format open devices, which stay the caller's: for tests with devices in memory. Options as in kiln_format_options;
 * of @devices paths and file sizes aren't looked at.
 */
int fs_format_devices(struct device **open, const struct kiln_format_device *devices, size_t nr,
		      const struct kiln_format_options *options, char why[KILN_ERROR_BYTES]);

#endif
