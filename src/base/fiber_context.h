/*
 * Machine contexts: stacks and the switch between them. Private to the fiber scheduler (base/fiber.c).
 *
 * A context is either made with a stack of its own, or stands for the real thread that runs the simulation. Switching
 * tells AddressSanitizer and ThreadSanitizer, which otherwise take the new stack for a corrupted one.
 */
#ifndef KILN_BASE_FIBER_CONTEXT_H
#define KILN_BASE_FIBER_CONTEXT_H

#include <stdbool.h>
#include <stddef.h>

/* x86-64 has a switch of its own, without the system calls of swapcontext(); define this to use the portable one. */
#if !defined(__x86_64__) && !defined(KILN_FIBER_UCONTEXT)
#define KILN_FIBER_UCONTEXT
#endif

#ifdef KILN_FIBER_UCONTEXT
#include <ucontext.h>
#endif

struct fiber_context {
#ifdef KILN_FIBER_UCONTEXT
	ucontext_t machine;
#else
	void *stack_pointer; /* registers are saved on the stack */
#endif
	const void *stack; /* lowest usable byte; of the real thread: known once it was left */
	size_t stack_bytes;
	void *mapping; /* NULL for the real thread */
	size_t mapping_bytes;
	struct fiber_context *came_from; /* who switched here last */
	void *asan_fake_stack;
	void *tsan_fiber;
};

/* @context becomes the real thread's, which runs now. */
void fiber_context_init_thread(struct fiber_context *context);

/*
 * A new context that starts in @entry when it is first switched to. @entry must first call fiber_context_arrived() and
 * must not return. Returns 0 or -ENOMEM.
 */
int fiber_context_init(struct fiber_context *context, size_t stack_bytes, const char *name, void (*entry)(void));
/* Free the stack. Not for the context that runs. */
void fiber_context_destroy(struct fiber_context *context);

void fiber_context_arrived(struct fiber_context *context);
/* Returns when somebody switches back to @from. */
void fiber_context_switch(struct fiber_context *from, struct fiber_context *to);
/* Leave @from for good. */
_Noreturn void fiber_context_exit(struct fiber_context *from, struct fiber_context *to);

#endif
