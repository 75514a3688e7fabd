/*
 * libkiln: bcachefs in userspace.
 *
 * Open a filesystem from its devices or images, look things up, read and change them, close it. No kernel module is
 * needed. A filesystem that is opened without KILN_OPEN_WRITE is never written to, not a byte.
 *
 *	kiln_fs *fs;
 *	const char *devices[] = { "disk.img" };
 *	char why[KILN_ERROR_BYTES];
 *	if (kiln_open(devices, 1, NULL, &fs, why) < 0)
 *		errx(1, "%s", why);
 *	struct kiln_stat st;
 *	if (!kiln_lookup_path(fs, "/etc/fstab", 0, &st))
 *		n = kiln_read(fs, st.node, 0, buf, sizeof(buf));
 *	kiln_close(fs);
 *
 * Rules for all calls:
 *
 * - Errors are negative errno values. -EIO means that something on the devices is damaged or can't be read: a report
 *   with the details has gone to the report callback by then. Reading never gives wrong bytes silently.
 * - All calls on one filesystem may be made from any number of threads at once, kiln_close() excepted. Callbacks come
 *   from the thread that made the call, and must not call back into the same filesystem.
 * - Memory is bounded by kiln_open_options.memory_bytes whatever the filesystem's size, plus what callers ask for.
 * - Names and link targets come from the disk: they may hold any byte but NUL, even '/' if the disk is damaged or
 *   hostile. Don't build paths for writing from them unchecked.
 */
#ifndef KILN_KILN_H
#define KILN_KILN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KILN_API __attribute__((visibility("default")))

typedef struct kiln_fs kiln_fs;

/* An object: the inode number alone is not unique where there are subvolumes and snapshots. */
struct kiln_node {
	uint64_t ino;
	uint32_t subvol;
};

#define KILN_ERROR_BYTES 512

/* Version of the library, "0.1.0". */
KILN_API const char *kiln_version(void);

/* --- opening and closing --- */

enum kiln_open_flags {
	KILN_OPEN_DEGRADED = 1,	     /* go on with members missing, as long as all data is still there */
	KILN_OPEN_VERY_DEGRADED = 2, /* go on even if data is missing: what isn't there gives -EIO */
	KILN_OPEN_FORCE = 4,	     /* read although another process has it open for writing: contents may be torn */
	KILN_OPEN_BUFFERED = 8,	     /* no O_DIRECT */
	KILN_OPEN_NO_URING = 16,     /* pread instead of io_uring (used anyway where io_uring is forbidden) */
	KILN_OPEN_NO_SCAN = 32,	     /* don't look for members that weren't named among the block devices */
	/*
	 * Open for reading and writing: recovery runs, and the filesystem is marked as in use. One that this version
	 * can't write, or that mount_options let nobody write, is opened read-only, and kiln_write_refused() says why.
	 * An error while recovery is under way is one of opening.
	 */
	KILN_OPEN_WRITE = 64,
};

enum kiln_report_level {
	KILN_REPORT_INFO,      /* worth knowing; nothing is wrong */
	KILN_REPORT_RECOVERED, /* something is damaged, another copy served */
	KILN_REPORT_DAMAGE,    /* something can't be read; the rest goes on */
	KILN_REPORT_FATAL,     /* the call as a whole failed */
};

/* One thing found wrong. Strings may be NULL and live only during the callback. */
struct kiln_report {
	enum kiln_report_level level;
	int error;	   /* negative errno, or 0 */
	unsigned error_id; /* bcachefs' persistent error id, or 0 */
	const char *error_id_name;
	const char *device;    /* "/dev/sdb" */
	const char *structure; /* "btree node", "extent", ... */
	const char *position;
	const char *expected;
	const char *found;
	const char *advice; /* what to do next */
	const char *text;   /* all of it as one line */
};

enum kiln_log_level { KILN_LOG_ERROR, KILN_LOG_WARNING, KILN_LOG_INFO, KILN_LOG_DEBUG };

struct kiln_open_options {
	size_t struct_bytes; /* sizeof(struct kiln_open_options): callers built against older headers still work; 0 is
				-EINVAL */
	unsigned flags;	     /* enum kiln_open_flags */
	/*
	 * "name,name=value,...", as in fstab; NULL: none. Unknown names are an error. With ro, read_only, nochanges or
	 * norecovery nothing is written, whatever the flags say.
	 */
	const char *mount_options;
	uint64_t memory_bytes; /* budget for caches and buffers; 0: 256 MiB; at least KILN_MEMORY_MIN */
	uint64_t sb_sector;    /* superblock at this sector instead of the usual places; 0: usual */
	void *ctx;	       /* handed to the callbacks */
	/* Log lines, without newline. NULL: nowhere. */
	void (*log)(void *ctx, enum kiln_log_level level, const char *line);
	enum kiln_log_level log_level;
	void (*report)(void *ctx, const struct kiln_report *report);
	/*
	 * Passphrase of an encrypted filesystem: write it to @buf without newline, return its length or a negative
	 * errno.
	 * @attempt counts from 0; asked again after a wrong one until this returns an error. The buffer is locked
	 * memory and wiped after use. NULL: an encrypted filesystem fails with -ENOKEY.
	 */
	ssize_t (*passphrase)(void *ctx, const char *uuid, unsigned attempt, char *buf, size_t size);
	/*
	 * Instead of the passphrase: the KILN_KEY_BYTES that it makes by scrypt, as a kernel keeps them in its keyring.
	 * When they don't fit, the passphrase is asked for if that is possible. NULL: none.
	 */
	const uint8_t *key;
};
#define KILN_KEY_BYTES 32
/* Longer passphrases aren't asked for, and can't be set. */
#define KILN_PASSPHRASE_BYTES_MAX 4096
#define KILN_MEMORY_MIN		  (32ull << 20)

/*
 * Open, read-only unless asked otherwise. @devices: paths of block devices or image files, "a:b:c", or "UUID=...";
 * naming one member is enough where the others can be found. @options may be NULL. @why (may be NULL) receives a
 * sentence on failure.
 *
 * Besides the usual: -ENODEV members missing (see KILN_OPEN_DEGRADED), -ENOKEY no passphrase, -EKEYREJECTED wrong one,
 * -EBUSY another process writes it, -EPROTONOSUPPORT a feature that this version can't read, -EUCLEAN not a bcachefs or
 * damaged beyond use.
 */
KILN_API int kiln_open(const char *const *devices, size_t nr, const struct kiln_open_options *options, kiln_fs **fs,
		       char why[KILN_ERROR_BYTES]);
/*
 * End it. A filesystem that is open for writing is shut down cleanly first, as by kiln_shutdown(), whose error is told
 * to the report callback only.
 */
KILN_API void kiln_close(kiln_fs *fs);
/*
 * Write everything back and mark the filesystem clean. Only reading and kiln_close() may follow. 0, or an error: then
 * what was synced is safe, and the next open for writing recovers the rest as after a crash.
 */
KILN_API int kiln_shutdown(kiln_fs *fs);
/* Why a filesystem that was opened with KILN_OPEN_WRITE is read-only, a sentence; NULL when it isn't. */
KILN_API const char *kiln_write_refused(kiln_fs *fs);

/* --- making --- */

enum kiln_format_device_flags {
	KILN_FORMAT_DISCARD = 1, /* tell the device which space is free */
	KILN_FORMAT_CACHE = 2,	 /* durability 0: copies on it count for nothing */
};

/* What one device is for; zeroes are the defaults. */
struct kiln_format_device {
	const char *path;
	const char *label;     /* "hdd", or "hdd.first", which belongs to hdd; NULL: none */
	uint64_t file_bytes;   /* make the image file, or let it grow to this; 0: it exists, as large as it shall be */
	uint64_t size_bytes;   /* of the filesystem on it; 0: all of it */
	uint64_t bucket_bytes; /* 0: chosen by the sizes of all devices */
	unsigned flags;	       /* enum kiln_format_device_flags */
	unsigned durability;   /* how many copies one on it counts for, 1 or 2; 0: 1 */
	unsigned data_allowed; /* bits: 2 journal, 3 btree, 4 user; 0: all */
};

enum kiln_format_flags {
	KILN_FORMAT_FORCE = 1,	       /* overwrite what is on the devices, else -EEXIST if something is recognised */
	KILN_FORMAT_NO_INITIALIZE = 2, /* write superblocks only: the first mount makes the rest */
	KILN_FORMAT_BUFFERED = 4,      /* no O_DIRECT */
	KILN_FORMAT_NO_URING = 8,
	KILN_FORMAT_ENCRYPTED = 16, /* data and metadata; see kiln_format_options.passphrase */
};

struct kiln_format_options {
	size_t struct_bytes;	    /* sizeof(struct kiln_format_options) */
	size_t device_struct_bytes; /* sizeof(struct kiln_format_device) */
	unsigned flags;		    /* enum kiln_format_flags */
	/* Options of the filesystem, "name=value,...". Targets are paths of @devices or their labels. NULL: none. */
	const char *options;
	const char *label;	   /* up to 32 bytes; NULL: none */
	const uint8_t *uuid;	   /* 16 bytes: what users know it by; NULL: random */
	uint64_t superblock_bytes; /* room for each superblock: a power of two from 64 KiB to 32 MiB; 0: 1 MiB */
	uint64_t memory_bytes;	   /* as in kiln_open_options, as what follows */
	void *ctx;
	void (*log)(void *ctx, enum kiln_log_level level, const char *line);
	enum kiln_log_level log_level;
	void (*report)(void *ctx, const struct kiln_report *report);
	/*
	 * With KILN_FORMAT_ENCRYPTED: what it is opened with, @passphrase_bytes long, at most
	 * KILN_PASSPHRASE_BYTES_MAX. NULL: nothing, the key stands in the superblock, until kiln_passphrase_set()
	 * changes that.
	 */
	const char *passphrase;
	size_t passphrase_bytes;
};

/*
 * Make a filesystem of @devices, over whatever is on them: superblocks, journal, the root directory and lost+found.
 * With @fs it is open for writing afterwards, else (NULL) it is clean and closed.
 *
 * Nothing is written if something is wrong with what was asked for (-EINVAL, -ENOSPC), if a device is in use (-EBUSY),
 * or holds something and KILN_FORMAT_FORCE isn't given (-EEXIST); files that were made are removed again. Options whose
 * engine isn't there yet are -EOPNOTSUPP. @why (may be NULL) receives a sentence on failure.
 *
 * What was there before is gone when writing begins. A crash on the way leaves devices that can't be opened, or a
 * filesystem of which the first opening for a change makes the rest: format them again.
 */
KILN_API int kiln_format(const struct kiln_format_device *devices, size_t nr, const struct kiln_format_options *options,
			 kiln_fs **fs, char why[KILN_ERROR_BYTES]);

/*
 * Change what an encrypted filesystem is opened with: to @passphrase, or, if it is NULL, to nothing: the key then
 * stands in the superblock. Data isn't touched. Nobody may have it open; all devices must be there. It is opened with
 * @options, whose callback (or key) says the old passphrase. A crash leaves the old one or the new one.
 *
 * Besides what kiln_open() returns: -EINVAL it isn't encrypted, mount_options forbid writing, or the passphrase is too
 * long.
 */
KILN_API int kiln_passphrase_set(const char *const *devices, size_t nr, const struct kiln_open_options *options,
				 const char *passphrase, size_t passphrase_bytes, char why[KILN_ERROR_BYTES]);

/* How often each level of report was given since the open. */
KILN_API void kiln_report_counts(kiln_fs *fs, uint64_t counts[4]);
/*
 * Non-NULL when subvolumes or snapshots can't be read and a fallback view is shown: a sentence that says what that
 * means.
 */
KILN_API const char *kiln_fallback(kiln_fs *fs);

/* --- looking things up --- */

struct kiln_timespec {
	int64_t sec;
	uint32_t nsec;
};

struct kiln_stat {
	struct kiln_node node;
	uint32_t mode; /* as st_mode */
	uint32_t nlink;
	uint32_t uid, gid;
	uint32_t rdev_major, rdev_minor;
	uint64_t size;	  /* bytes */
	uint64_t sectors; /* of 512 bytes, allocated */
	uint32_t block_bytes;
	struct kiln_timespec atime, mtime, ctime, btime;
	uint32_t flags; /* FS_*_FL: sync, immutable, append, nodump, noatime */
	uint32_t generation;
	uint32_t project;
	bool is_subvol_root;
	bool is_readonly; /* in a read-only snapshot */
};

/* The root directory. */
KILN_API struct kiln_node kiln_root(kiln_fs *fs);
/* Attributes of an object. -ENOENT: there is no such inode (any more); -EIO. */
KILN_API int kiln_stat(kiln_fs *fs, struct kiln_node node, struct kiln_stat *st);
/* Entry @name (not terminated, @len bytes; "." and ".." work) of a directory. -ENOENT, -ENOTDIR, -EIO. */
KILN_API int kiln_lookup(kiln_fs *fs, struct kiln_node dir, const char *name, size_t len, struct kiln_stat *st);

enum kiln_lookup_flags { KILN_FOLLOW = 1 }; /* follow a symlink at the end of the path, within the filesystem */
/* Walk a path from the root; symlinks on the way are followed within the filesystem (40 at most: -ELOOP). */
KILN_API int kiln_lookup_path(kiln_fs *fs, const char *path, unsigned flags, struct kiln_stat *st);

struct kiln_dirent {
	struct kiln_node node;
	const char *name; /* terminated; @name_len without the NUL. Lives during the callback */
	size_t name_len;
	unsigned type;	      /* DT_* */
	uint64_t next_cookie; /* go on from here to get what comes behind this entry */
};
/* Return 0 to go on, anything else to stop. */
typedef int (*kiln_dirent_fn)(void *ctx, const struct kiln_dirent *entry);
/*
 * Entries of a directory from @cookie on (0: the start), "." and ".." first. 0 when stopped or at the end (*@at_end,
 * may be NULL). A damaged part gives -EIO, after everything before it; *@resume (may be NULL) is then the cookie to go
 * on behind it.
 */
KILN_API int kiln_readdir(kiln_fs *fs, struct kiln_node dir, uint64_t cookie, kiln_dirent_fn fn, void *ctx,
			  bool *at_end, uint64_t *resume);

/* --- reading --- */

/*
 * Read from a file. Returns bytes read; 0 at the end; less than asked at the end or before damage; -EIO when @offset
 * itself is damaged.
 */
KILN_API ssize_t kiln_read(kiln_fs *fs, struct kiln_node node, uint64_t offset, void *buf, size_t len);

typedef void (*kiln_damage_fn)(void *ctx, uint64_t offset, uint64_t len, int error);
/* The same, going on over damage: damaged ranges read as zeroes and are told to @damage, in ascending order. */
KILN_API ssize_t kiln_read_rescue(kiln_fs *fs, struct kiln_node node, uint64_t offset, void *buf, size_t len,
				  kiln_damage_fn damage, void *ctx);

/* lseek's SEEK_DATA and SEEK_HOLE: the new offset, or -ENXIO. Damaged ranges count as data. */
KILN_API int64_t kiln_seek_data(kiln_fs *fs, struct kiln_node node, uint64_t offset);
KILN_API int64_t kiln_seek_hole(kiln_fs *fs, struct kiln_node node, uint64_t offset);

/*
 * The next range at or behind @offset that is lost as a whole, because what tells where its data is can't be read.
 * Reads of it give -EIO whatever their size, and it may be many times longer than any data, so who reads on over damage
 * leaves it out. 0 with [*@begin, *@end), or -ENXIO when there is none.
 */
KILN_API int kiln_seek_lost(kiln_fs *fs, struct kiln_node node, uint64_t offset, uint64_t *begin, uint64_t *end);

/* Target of a symlink: its length; at most @size bytes are written, not terminated. */
KILN_API ssize_t kiln_readlink(kiln_fs *fs, struct kiln_node node, char *buf, size_t size);

/*
 * Extended attributes, ACLs included (as system.posix_acl_access / _default, in the system calls' form), and the
 * virtual bcachefs.* and bcachefs_effective.* options. -ENODATA, -ERANGE; with @size 0 the bytes needed.
 */
KILN_API ssize_t kiln_getxattr(kiln_fs *fs, struct kiln_node node, const char *name, void *value, size_t size);
/* Names of stored attributes, each terminated by NUL. The virtual ones can be asked for by name, but aren't listed. */
KILN_API ssize_t kiln_listxattr(kiln_fs *fs, struct kiln_node node, char *list, size_t size);

/* --- walking --- */

enum kiln_walk_event {
	KILN_WALK_ENTER, /* an object; directories: before their entries. Return KILN_WALK_SKIP to leave them out */
	KILN_WALK_LEAVE, /* a directory, after its entries */
	/*
	 * Something can't be read: error and what is known of the object; the walk goes on. A directory without a
	 * readable inode is entered next all the same, with a stand-in for its attributes: mode 0700, owner 0, no
	 * times.
	 */
	KILN_WALK_ERROR,
};
#define KILN_WALK_SKIP 1

struct kiln_walk_entry {
	enum kiln_walk_event event;
	const char *path;	    /* relative to where the walk began, "" for that itself */
	const char *name;	    /* last component */
	unsigned depth;		    /* 0 for where it began */
	int error;		    /* KILN_WALK_ERROR: negative errno */
	const struct kiln_stat *st; /* NULL if the inode couldn't be read */
};
/* Return 0 to go on, KILN_WALK_SKIP, or a negative value to stop with. */
typedef int (*kiln_walk_fn)(void *ctx, const struct kiln_walk_entry *entry);

/*
 * A whole tree, depth first, entries of a directory in the order of their names (bytes) up to 4096 entries, else in the
 * order on disk. Subvolumes on the way are entered. Directory loops (damage) are reported as -ELOOP, not followed.
 */
KILN_API int kiln_walk(kiln_fs *fs, struct kiln_node top, kiln_walk_fn fn, void *ctx);

/* --- changing --- */

/*
 * Calls that change something need a filesystem opened with KILN_OPEN_WRITE, else -EROFS.
 *
 * Each is atomic: after a crash all of it is there or nothing (large writes and truncations in parts, from the front; a
 * truncation that began is finished when the filesystem is opened again; a kiln_setattr() of a size and something else
 * is two changes, the size first). What is there after a crash is what had been
 * done up to some moment, never something later without something earlier. Durable is what kiln_fsync() or kiln_sync()
 * returned for; the rest follows within the journal's flush delay (a second).
 *
 * Permissions are not checked: who opens the devices owns them. What belongs to an operation's meaning is done: a
 * setgid directory hands on its group, default ACLs are inherited, setuid is cleared by writing.
 *
 * Besides the usual: -EROFS read-only, in a read-only snapshot, or after an error that made writing unsafe; -ENOSPC;
 * -EPERM immutable or append-only; -ENAMETOOLONG above 255 bytes; -EDQUOT (see quotas).
 */
struct kiln_create {
	uint32_t mode;	/* type and permissions, as st_mode; type 0: regular file */
	uint32_t umask; /* taken off the permissions, unless the directory has a default ACL */
	uint32_t uid, gid;
	uint32_t rdev_major, rdev_minor;
};
/* Make a file, directory, fifo, socket or device node. @st (may be NULL): the new object. -EEXIST. */
KILN_API int kiln_create(kiln_fs *fs, struct kiln_node dir, const char *name, size_t len,
			 const struct kiln_create *attr, struct kiln_stat *st);
/* A file without a name, held as by kiln_hold(): deleted at kiln_release() unless it was linked. */
KILN_API int kiln_create_unnamed(kiln_fs *fs, struct kiln_node dir, const struct kiln_create *attr,
				 struct kiln_stat *st);
/*
 * Make a symlink to @target (terminated; it isn't looked up). Of @attr owner and group count. @st (may be NULL): the
 * new object. -EEXIST; -ENOENT an empty target; -ENAMETOOLONG.
 */
KILN_API int kiln_symlink(kiln_fs *fs, struct kiln_node dir, const char *name, size_t len, const char *target,
			  const struct kiln_create *attr, struct kiln_stat *st);
/*
 * Give an object that isn't a directory (-EPERM) another name. -EEXIST; -EMLINK it has as many as there can be; -EXDEV
 * the directory is in another subvolume, or hands on options (project, compression, ...) that the object doesn't have.
 */
KILN_API int kiln_link(kiln_fs *fs, struct kiln_node node, struct kiln_node dir, const char *name, size_t len);
enum kiln_unlink_flags { KILN_UNLINK_DIR = 1 }; /* rmdir: an empty directory, and nothing else */
/*
 * Take a name away. An object without names is deleted when nobody holds it; its space is free some time after that
 * (kiln_deletions_wait()). -ENOENT; -EISDIR a directory, without KILN_UNLINK_DIR; with it -ENOTDIR and -ENOTEMPTY, and
 * -EOPNOTSUPP for a subvolume.
 */
KILN_API int kiln_unlink(kiln_fs *fs, struct kiln_node dir, const char *name, size_t len, unsigned flags);
enum kiln_rename_flags {
	KILN_RENAME_NOREPLACE = 1, /* -EEXIST rather than replace */
	KILN_RENAME_EXCHANGE = 2,  /* swap the two */
};
/*
 * Move @from to the name @to, atomically: whoever looks, and a crash, finds one or the other. An object that had the
 * name
 * @to loses it as by kiln_unlink(), unless @flags say otherwise; two names of the same object stay as they are.
 *
 * -ENOENT; -EEXIST (NOREPLACE); -EISDIR, -ENOTDIR: a directory replaces directories only, and nothing else does;
 * -ENOTEMPTY; -EINVAL a directory would come to lie below itself, or both flags; -EXDEV the directories are in
 * different subvolumes, or a directory would get other options from where it goes to.
 */
KILN_API int kiln_rename(kiln_fs *fs, struct kiln_node from_dir, const char *from, size_t from_len,
			 struct kiln_node to_dir, const char *to, size_t to_len, unsigned flags);

enum kiln_setattr_fields {
	KILN_SET_MODE = 1,
	KILN_SET_UID = 2,
	KILN_SET_GID = 4,
	KILN_SET_SIZE = 8,
	KILN_SET_ATIME = 16,
	KILN_SET_MTIME = 32,
	KILN_SET_CTIME = 64, /* else: now */
	KILN_SET_FLAGS = 128,
	KILN_SET_BTIME = 256,
	KILN_SET_ATIME_NOW = 512,
	KILN_SET_MTIME_NOW = 1024,
	KILN_SET_KEEP_CTIME = 4096,	/* ctime stays: reading changes nothing but atime, of immutable files too */
	KILN_SET_TIMES_OF_WRITE = 8192, /* mtime is that of a write, which was allowed: append-only files take it */
	KILN_SET_KEEP_SETID = 2048, /* a new size doesn't clear setuid and setgid: who sets it may have such files */
};
struct kiln_setattr {
	unsigned fields;
	uint32_t mode, uid, gid;
	uint32_t flags; /* as in kiln_stat */
	uint64_t size;
	struct kiln_timespec atime, mtime, ctime, btime;
};
/*
 * Change attributes, the size included (a larger one makes a hole). @st (may be NULL): what they are then. Cutting a
 * file inside of a block takes a new one: on a full filesystem -ENOSPC, with the file cut behind that block or not at
 * all.
 */
KILN_API int kiln_setattr(kiln_fs *fs, struct kiln_node node, const struct kiln_setattr *attr, struct kiln_stat *st);
/*
 * Bytes written: fewer than @len only when space ran out, or a device failed, on the way. -ENOSPC, -EIO, -EISDIR,
 * -EFBIG, when nothing was. @buf is read where it is, until this returns: what another thread changes in it meanwhile
 * may be in the file or not, in part, too.
 */
KILN_API ssize_t kiln_write(kiln_fs *fs, struct kiln_node node, uint64_t offset, const void *buf, size_t len);
enum kiln_write_flags {
	KILN_WRITE_KEEP_TIMES = 1, /* who writes sets mtime and ctime by kiln_setattr(); also on append-only files */
	KILN_WRITE_KEEP_SETID = 2, /* setuid and setgid stay */
};
/* The same, with @flags. */
KILN_API ssize_t kiln_write_with(kiln_fs *fs, struct kiln_node node, uint64_t offset, const void *buf, size_t len,
				 unsigned flags);
/* What kiln_fallocate() is to do: the numbers are those of Linux' FALLOC_FL_*. */
enum kiln_fallocate_flags {
	KILN_FALLOC_KEEP_SIZE = 1,	  /* the size stays, though the range ends behind it */
	KILN_FALLOC_PUNCH_HOLE = 2,	  /* a hole; with KEEP_SIZE */
	KILN_FALLOC_COLLAPSE_RANGE = 8,	  /* the range goes, what is behind it moves down */
	KILN_FALLOC_INSERT_RANGE = 32,	  /* a hole, what is behind it moves up */
	KILN_FALLOC_ZERO_RANGE = 16,	  /* what is there becomes zeroes; with or without KEEP_SIZE */
	KILN_FALLOC_KEEP_SETID = 1 << 30, /* ours, with any of these: setuid and setgid stay */
};
/*
 * Change what space a range of a file has. @mode 0 or KEEP_SIZE: all blocks of it get space, so that writing them can't
 * fail with -ENOSPC, but for those that hold data which takes less than it will anew: compressed, shared with other
 * files or snapshots, or a few bytes kept as metadata. The size grows to its end. ZERO_RANGE: the same for all of it,
 * and it reads as zeroes afterwards. PUNCH_HOLE: it reads as zeroes, and its space is free. Any bytes: blocks that are
 * part of the range only are zeroed in part.
 *
 * COLLAPSE_RANGE and INSERT_RANGE stand alone. They move what is behind the range, without reading or writing data, and
 * change the size by @len. Offset and length are whole blocks, the offset (of what is taken out, the end as well) lies
 * before the end of the file: else -EINVAL. After a crash they are finished when the filesystem is opened for writing.
 * After an error on the way (the file may read as moved in part then) whoever changes the file next finishes it first,
 * or gets the error too.
 *
 * -EOPNOTSUPP for other modes; -EINVAL @len 0; -ENOSPC: nothing has changed but, with ZERO_RANGE or PUNCH_HOLE, what
 * kiln_punch() says, and what the last two got half way with; -EFBIG; -EISDIR.
 */
KILN_API int kiln_fallocate(kiln_fs *fs, struct kiln_node node, unsigned mode, uint64_t offset, uint64_t len);
/*
 * Make a hole: what lies in the range reads as zeroes, its space is free. The size stays.
 *
 * Of blocks at its ends that are part of the range only the bytes in it are zeroed, for which each takes a new block.
 * On a full filesystem there may be none: -ENOSPC then, with none, or all, of the whole blocks gone already, and a part
 * of a block at the first end maybe zeroed. Where the range is of whole blocks that can't be.
 */
KILN_API int kiln_punch(kiln_fs *fs, struct kiln_node node, uint64_t offset, uint64_t len);

enum kiln_copy_flags {
	KILN_COPY_SHARE = 1,	  /* share it, or fail with -EINVAL */
	KILN_COPY_KEEP_SETID = 2, /* setuid and setgid of @to stay */
};
/*
 * Copy a range of a file to another place, in the same file or another, as copy_file_range(). Whole blocks that lie at
 * multiples of the block size on both sides are shared: no data is read or written, and they take space when one of the
 * two is written. The rest is copied. Holes stay holes. Returns the bytes copied: fewer than @len at the end of @from,
 * or when something went wrong after some.
 *
 * KILN_COPY_SHARE is what FICLONERANGE asks for: -EINVAL unless all of the range is within @from and can be shared (the
 * last block of @from counts as whole if it becomes the last of @to). -EINVAL: ranges of one file that overlap.
 *
 * A crash leaves a part from the front; of the rest @to is as it was.
 */
KILN_API ssize_t kiln_copy_range(kiln_fs *fs, struct kiln_node from, uint64_t from_offset, struct kiln_node to,
				 uint64_t to_offset, uint64_t len, unsigned flags);

enum kiln_xattr_flags {
	KILN_XATTR_CREATE = 1,	/* -EEXIST rather than replace */
	KILN_XATTR_REPLACE = 2, /* -ENODATA rather than create */
};
/* ACLs in the system calls' form; "bcachefs.NAME" sets an option of the file or, for what is made in it, directory. */
KILN_API int kiln_setxattr(kiln_fs *fs, struct kiln_node node, const char *name, const void *value, size_t size,
			   unsigned flags);
/* -ENODATA: it has none of this name. Without its own option a file has its directory's. */
KILN_API int kiln_removexattr(kiln_fs *fs, struct kiln_node node, const char *name);

/*
 * Many new objects at once: for filling a filesystem, much faster than one by one. Objects are collected in a batch,
 * which makes them in few transactions and with few writes. Of its directory an object inherits nothing but options: no
 * group, no ACL. All that holds for the calls above holds for each object; a file appears with its contents.
 *
 *	while ((err = kiln_batch_add(batch, &object, &contents)) == -ENOBUFS)
 *		kiln_batch_write(batch, done, NULL);
 *	if (!err)
 *		n = read(fd, contents, object.size);
 *
 * A batch is for one thread at a time, and freed before the filesystem is closed.
 */
typedef struct kiln_batch kiln_batch;
enum { KILN_BATCH_OBJECTS_MAX = 256, KILN_BATCH_BYTES = 1 << 20 };

struct kiln_new {
	struct kiln_node dir;
	const char *name; /* @len bytes; must stay until the object is made, as @target */
	size_t len;
	uint32_t mode; /* type and permissions; no umask */
	uint32_t uid, gid;
	uint32_t rdev_major, rdev_minor;
	struct kiln_timespec atime, mtime;
	uint64_t size;	    /* of a regular file */
	const char *target; /* of a symlink, terminated */
	void *ctx;	    /* for the callback */
};

/* NULL: memory is short, or the filesystem is read-only. */
KILN_API kiln_batch *kiln_batch_new(kiln_fs *fs);
/* Objects that weren't made are dropped. NULL is allowed. */
KILN_API void kiln_batch_free(kiln_batch *batch);
/*
 * Add an object. *@contents (may be NULL for all but regular files): where the @size bytes of a file go before
 * kiln_batch_write(). -ENOBUFS: no room until the batch is written; -EFBIG: too large for any batch, or a symlink too
 * long for one; -EINVAL, -ENAMETOOLONG. Nothing is looked up yet.
 */
KILN_API int kiln_batch_add(kiln_batch *batch, const struct kiln_new *object, void **contents);
/* Take back the object added last. */
KILN_API void kiln_batch_drop_last(kiln_batch *batch);
/* @error: 0, or why there is no such object, or only a part of its contents: -EEXIST, -ENOSPC, ... */
typedef void (*kiln_batch_fn)(void *ctx, const struct kiln_new *object, int error, struct kiln_node node);
/* Make all objects, and tell of each, in the order in which they were added. The batch is empty afterwards. */
KILN_API void kiln_batch_write(kiln_batch *batch, kiln_batch_fn fn, void *ctx);

/* Everything that was done to the object, and the names it was made or renamed with, is durable on return. */
KILN_API int kiln_fsync(kiln_fs *fs, struct kiln_node node);
/* Everything that was done before the call is durable on return. */
KILN_API int kiln_sync(kiln_fs *fs);

/* While held (counted), an object that loses its last name stays usable; it is deleted after the last release. */
KILN_API int kiln_hold(kiln_fs *fs, struct kiln_node node);
/* One kiln_hold() less; what has no name is deleted with the last, in the background. */
KILN_API void kiln_release(kiln_fs *fs, struct kiln_node node);
/*
 * For doors that hold very many objects and know them anyway: instead of kiln_hold() for each, @is_in_use is asked
 * about every object that loses its last name; where it returns true, the object is held as by kiln_hold(), and
 * kiln_release() is due. It comes from the thread that takes the name away, and may call kiln_release() only. Set it
 * before the first change; NULL: nobody.
 */
KILN_API void kiln_in_use_set(kiln_fs *fs, bool (*is_in_use)(void *ctx, struct kiln_node node), void *ctx);
/* Wait until what was deleted before the call has given back its space. */
KILN_API int kiln_deletions_wait(kiln_fs *fs);

/* --- quotas --- */

/*
 * What users, groups and projects use, and may use. The filesystem's options usrquota, grpquota and prjquota choose
 * which of them are counted; limits are stored whether they are or not. A file counts where the subvolume sees it that
 * the others are snapshots of; snapshots cost nothing.
 *
 * Use isn't stored: it is counted from all inodes. A filesystem that is open for writing begins to when it is opened,
 * in the background, and keeps the numbers up from then on; one that is only read counts when it is asked, all three
 * types. Limits hold once everything is counted: what would go beyond a hard limit, or beyond a soft one for longer
 * than the grace period, fails with -EDQUOT (writing: after as much as fits). Grace periods begin anew with each open.
 */
enum kiln_quota_type { KILN_QUOTA_USER, KILN_QUOTA_GROUP, KILN_QUOTA_PROJECT };

struct kiln_quota_value {
	uint64_t used, soft, hard; /* limits: 0 none */
	int64_t grace_end;	   /* seconds since 1970; 0: not above the soft limit */
};
struct kiln_quota {
	enum kiln_quota_type type;
	uint32_t id;
	struct kiln_quota_value space, inodes; /* space in bytes */
};
/* What one id uses, and its limits; waits until all is counted. -ESRCH: this type isn't counted. */
KILN_API int kiln_quota_get(kiln_fs *fs, enum kiln_quota_type type, uint32_t id, struct kiln_quota *quota);
/* Return 0 to go on, anything else to stop with. */
typedef int (*kiln_quota_fn)(void *ctx, const struct kiln_quota *quota);
/* The same of all ids that own something or have limits, in ascending order. */
KILN_API int kiln_quota_list(kiln_fs *fs, enum kiln_quota_type type, kiln_quota_fn fn, void *ctx);
/*
 * The same of a type that isn't counted: it is now, for this call. What others change meanwhile may be missing or
 * counted twice.
 */
KILN_API int kiln_quota_count(kiln_fs *fs, enum kiln_quota_type type, kiln_quota_fn fn, void *ctx);

enum kiln_quota_fields {
	KILN_QUOTA_SPACE_SOFT = 1,
	KILN_QUOTA_SPACE_HARD = 2,
	KILN_QUOTA_INODES_SOFT = 4,
	KILN_QUOTA_INODES_HARD = 8,
};
struct kiln_quota_limits {
	unsigned fields;		 /* enum kiln_quota_fields: what to set; the others stay */
	uint64_t space_soft, space_hard; /* bytes, rounded up to sectors; 0: no limit */
	uint64_t inodes_soft, inodes_hard;
};
/* Durable after kiln_sync(), holds at once. */
KILN_API int kiln_quota_set(kiln_fs *fs, enum kiln_quota_type type, uint32_t id,
			    const struct kiln_quota_limits *limits);

struct kiln_quota_info {
	bool is_enabled;		    /* the option is set: counted and limited when the filesystem is written */
	bool is_counted;		    /* the numbers are complete, and limits hold */
	bool is_partial;		    /* some inodes couldn't be read: what they use is missing */
	uint32_t space_grace, inodes_grace; /* seconds above the soft limit */
};
/* Doesn't wait. */
KILN_API int kiln_quota_info(kiln_fs *fs, enum kiln_quota_type type, struct kiln_quota_info *info);
/* Grace periods in seconds, stored durably; those that run already keep their end. */
KILN_API int kiln_quota_set_grace(kiln_fs *fs, enum kiln_quota_type type, uint32_t space_seconds,
				  uint32_t inodes_seconds);
/* Wait until all is counted and limits hold; at once where nothing is counted. */
KILN_API int kiln_quota_wait(kiln_fs *fs);
/*
 * Limits don't hold for calls of this thread from now on (@is_privileged), or hold again: what a mount does for
 * requests of root. Take it back before the thread ends.
 */
KILN_API int kiln_quota_privileged(kiln_fs *fs, bool is_privileged);

/* --- checking --- */

enum kiln_check_flags {
	KILN_CHECK_DATA = 1, /* also read and verify all data, of every replica */
};
enum { KILN_CHECK_PASSES_MAX = 32, KILN_CHECK_KINDS_MAX = 64 };

struct kiln_check_options {
	size_t struct_bytes;   /* sizeof(struct kiln_check_options) */
	unsigned flags;	       /* enum kiln_check_flags */
	const char *passes;    /* names of the passes to run, with commas; NULL: all of them */
	uint64_t memory_bytes; /* budget for tables, besides that of the filesystem; 0: 64 MiB; at least 1 MiB */
	uint64_t report_max;   /* of each error this many are reported, the others counted; 0: all */
	void *ctx;
	/* Errors that are found, all of level KILN_REPORT_DAMAGE. NULL: to the filesystem's own callback. */
	void (*report)(void *ctx, const struct kiln_report *report);
	/*
	 * Called every now and then: @done of @total (0: unknown) keys of pass @pass, or sectors where it reads data;
	 * and where it is. Non-zero stops, and is returned.
	 */
	int (*progress)(void *ctx, const char *pass, uint64_t done, uint64_t total, const char *position);
};

enum kiln_check_state {
	KILN_CHECK_NOT_RUN,
	KILN_CHECK_DONE,
	KILN_CHECK_PARTIAL,  /* damage kept it from comparing all */
	KILN_CHECK_LEFT_OUT, /* doesn't know the version's rules */
};
struct kiln_check_result {
	uint64_t errors;
	unsigned pass_nr;
	struct {
		const char *name, *what;
		enum kiln_check_state state;
		uint64_t errors, items, ns; /* items: keys, or sectors of data */
	} passes[KILN_CHECK_PASSES_MAX];
	/* How often each error was found, the most frequent first; no more kinds than fit. */
	unsigned kind_nr;
	struct {
		unsigned id; /* persistent error id; 1000 and above: what the format has no id for */
		const char *name;
		uint64_t count;
	} kinds[KILN_CHECK_KINDS_MAX];
};

/*
 * Check all that must hold in a consistent filesystem. Changes nothing. The filesystem may be open for writing, but
 * nothing may be changed meanwhile. 0 when it could be done, whatever was found; -EINVAL (an unknown pass, memory),
 * -ENOMEM, or what the progress callback returned.
 */
KILN_API int kiln_check(kiln_fs *fs, const struct kiln_check_options *options, struct kiln_check_result *result);

/* --- facts --- */

struct kiln_usage {
	bool is_known;					   /* false: this image has no counters that can be read */
	uint64_t capacity, used, cached, reserved, hidden; /* bytes; of the capacity, hidden can't be used */
	uint64_t available;				   /* bytes that can still be written, all copies counted */
	uint64_t inodes;
	uint64_t block_bytes;
	uint8_t uuid[16]; /* the external one */
	char label[33];
	char version[32]; /* "1.4" */
	bool is_clean, is_encrypted, is_degraded;
	unsigned device_nr; /* members, missing ones included */
};
/* Sizes, counters and state of the whole filesystem. -ENOMEM, -EIO. */
KILN_API int kiln_usage(kiln_fs *fs, struct kiln_usage *usage);

#ifdef __cplusplus
}
#endif

#endif
