/*
 * Read-copy-update: readers that never wait, for tables that rarely change (devices, snapshots, roots).
 *
 * Thread mode uses userspace-rcu (bp flavour: threads need no registration). ThreadSanitizer builds use a reader/writer
 * lock with the same interface, which the sanitizer understands. In fiber mode a read section contains no switch point
 * (asserted), so any switch is a grace period.
 *
 * Never wait inside a read section.
 */
#ifndef KILN_BASE_RCU_H
#define KILN_BASE_RCU_H

/* Sections nest. */
void rcu_section_begin(void);
void rcu_section_end(void);
/* Wait until every read section that was open has ended. Switch point. */
void rcu_wait(void);

/* Asserts that the caller is in no read section. Every primitive that may wait starts with this. */
void rcu_assert_outside(void);

/* Publish a pointer after the object behind it is complete; read one inside a section. */
#define rcu_publish(p, v) __atomic_store_n(&(p), (v), __ATOMIC_RELEASE)
#define rcu_read(p)	  __atomic_load_n(&(p), __ATOMIC_CONSUME)

#endif
