/*
 * Small filesystems in memory for the tests of superblocks and journals: superblocks with the sections that matter
 * there, and journal entries, written straight to memory devices. There are no btree nodes behind them.
 */
#ifndef KILN_TESTS_SUPER_FS_BUILD_H
#define KILN_TESTS_SUPER_FS_BUILD_H

#include "device/device.h"
#include "format/jset.h"
#include "format/superblock.h"

enum {
	FS_DEVS_MAX = 4,
	FS_BUCKETS = 128,
	FS_BUCKET_SECTORS = 256,
	FS_BLOCK_SECTORS = 8,
	FS_JOURNAL_BUCKET = 20, /* first */
	FS_JOURNAL_BUCKETS = 8,
	FS_COPIES = 3,
	FS_SECTIONS_BYTES_MAX = 4096,
};

/* What a superblock says; fs_init() fills in an ordinary one. Change fields, then fs_write_sb(). */
struct fs {
	unsigned dev_nr;
	struct device *dev[FS_DEVS_MAX]; /* owned by the test until it is handed to super_open() */
	uint8_t uuid[16];
	unsigned version, version_min;
	uint64_t seq, write_time;
	unsigned block_sectors;
	unsigned bucket_sectors;
	unsigned csum_type;
	bool is_clean, is_initialized;
	uint64_t features;
	unsigned encryption_type;
	struct {
		uint8_t uuid_byte; /* 0: no such member */
		uint64_t seq;
		unsigned state;
		unsigned group; /* index + 1 */
	} member[FS_DEVS_MAX];
	const uint8_t *replicas; /* payload of the section */
	size_t replicas_bytes;
	const uint8_t *clean; /* sub-entries of the clean section; NULL: no section */
	size_t clean_bytes;
	uint64_t clean_seq;
	uint64_t blacklist[8][2];
	unsigned blacklist_nr;
	const char *label;     /* one disk group */
	const uint8_t *crypt;  /* 56 bytes: section without header */
	uint64_t flags_xor[7]; /* to spoil options */
};

uint64_t fs_copy_sector(unsigned i);
void fs_init(struct fs *fs, unsigned dev_nr);
/* The bytes of a copy; returns its size. @buf: 8192 bytes. */
size_t fs_sb_make(const struct fs *fs, unsigned dev_idx, uint64_t sector, void *buf);
/* Write copies whose bits are set in @copies to device @dev_idx, and the layout block. */
void fs_write_copies(const struct fs *fs, unsigned dev_idx, unsigned copies);
/* All copies of all devices. */
void fs_write_sb(const struct fs *fs);
void fs_zero_sectors(struct device *dev, uint64_t sector, uint64_t nr);
/* Close devices that weren't handed over. */
void fs_close(struct fs *fs);

/* Sub-entries, collected. */
struct subs {
	uint8_t bytes[65536];
	size_t len;
};
void subs_add(struct subs *s, unsigned type, unsigned btree_id, unsigned level, const void *payload, size_t bytes);
/* A key without value at (0, offset, snapshot U32_MAX): type set or deleted. */
void subs_add_key(struct subs *s, unsigned type, unsigned btree_id, uint64_t offset);
/* A btree root: node seq @node_seq on device 0. */
void subs_add_root(struct subs *s, unsigned btree_id, unsigned level, uint64_t node_seq);
void subs_add_usage(struct subs *s, unsigned kind, unsigned level, uint64_t v);

struct entry_spec {
	uint64_t seq, last_seq;
	bool is_noflush, has_overwrites;
	bool is_bad;	  /* a byte is changed after the checksum was made */
	unsigned version; /* 0: 1.4 */
	const struct crypt_key *key;
};
/*
 * Write an entry to journal bucket @ring_idx at @offset_sectors of device @dev; returns the offset behind it.
 */
unsigned fs_write_entry(const struct fs *fs, unsigned dev, unsigned ring_idx, unsigned offset_sectors,
			const struct entry_spec *e, const struct subs *subs);

/* Reports, counted. */
struct reports {
	unsigned levels[4];
	unsigned ids[512]; /* by error id; [0] those without */
	char text[16384];  /* all of them, to look for words in */
};
struct report_sink reports_sink(struct reports *r);
void reports_clear(struct reports *r);

#endif
