/*
 * Mutants: each takes one safety out of the engine, to see that tests notice (tests/sim/mutants).
 *
 * Only in builds with -Dmutants=true, which must never be used for anything else; in all others is_mutant() is the
 * constant false, and nothing of them is compiled.
 */
#ifndef KILN_BASE_MUTANT_H
#define KILN_BASE_MUTANT_H

#include <stdbool.h>

#define MUTANTS(X)                                                                            \
	X(DATA_BEFORE_KEY, "keys are committed before the data they point at is written")     \
	X(NODE_BEFORE_POINTER, "pointers are committed before the new nodes are written")     \
	X(SET_BEFORE_END, "the new end of a node's log is committed before the set there is") \
	X(REPLICAS_BEFORE_USE, "replicas entries aren't written")                             \
	X(FEATURE_BEFORE_USE, "features are used before superblocks say so")                  \
	X(PREFLUSH, "only devices that get the journal entry are flushed before it")          \
	X(ENTRY_FLUSH, "devices aren't flushed after a flush entry")                          \
	X(BUCKET_REUSE, "empty buckets are used again before a flush entry says so")          \
	X(BUFFER_PIN, "keys in the write buffer don't pin the journal")                       \
	X(KEY_CACHE_PIN, "keys in the key cache don't pin the journal")                       \
	X(NODE_NONCES, "encrypted nodes are appended to after a crash")                       \
	X(SET_PIN, "the pin goes before sectors_written is committed")                        \
	X(UPDATE_PIN, "the pins of replaced nodes go before the new ones are reachable")      \
	X(LAST_SEQ_AT_CLOSE, "last_seq is taken when the devices have been flushed")          \
	X(BLACKLIST, "sequence numbers that were lost aren't blacklisted")                    \
	X(DIRTY_MARK, "a filesystem isn't marked as in use")                                  \
	X(CLEAN_FLAG, "a filesystem is marked as clean before all is written")                \
	X(SUPER_BACKUPS, "backups of superblocks are written before the primary is durable")  \
	X(DATA_CHECKSUM, "checksums of data aren't looked at")                                \
	X(NODE_CHECKSUM, "checksums of nodes aren't looked at")                               \
	X(JOURNAL_CHECKSUM, "checksums of journal entries aren't looked at")                  \
	X(LOGGED_OPS, "what was under way isn't finished")                                    \
	X(DEAD_INODES, "inodes that were in use without a name are left alone")               \
	X(WRITE_BEHIND, "the journal goes on in the place of its newest entry")               \
	X(MOVE_BEFORE_COPY, "moved data is pointed at before it has been written")            \
	X(NOCOW_FLUSH, "devices aren't flushed after data was overwritten in place")          \
	X(FSYNC, "fsync doesn't wait")                                                        \
	X(COUNTERS, "counters of an entry are those of now")                                  \
	X(CACHED_GEN, "buckets of cached data are taken back without a new generation")       \
	X(CACHED_STALE, "cached copies are read that are there no more")                      \
	X(OP_END, "what is done stays logged as being under way")                             \
	X(MOVE_RACE, "what was written while it was moved goes back to what it was")          \
	X(MOVE_LOCKS, "what is overwritten in place is moved meanwhile")                      \
	X(FAILED_COPIES, "copies of data that weren't written are pointed at")                \
	X(FAILED_NODES, "copies of nodes that weren't written are pointed at")                \
	X(RESERVATIONS, "what is reserved for a write that fails isn't given back")           \
	X(QUOTAS, "what is deleted isn't taken from quotas")

enum mutant {
	MUTANT_NONE,
#define MUTANT_ID(name, text) MUTANT_##name,
	MUTANTS(MUTANT_ID)
#undef MUTANT_ID
		MUTANT_NR,
};

#ifdef KILN_MUTANTS
extern enum mutant mutant_active;
static inline bool is_mutant(enum mutant m) { return mutant_active == m; }
#else
static inline bool is_mutant(enum mutant m)
{
	(void)m;
	return false;
}
#endif

#endif
