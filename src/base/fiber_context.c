/* Stacks and the switch between them (see base/fiber_context.h). */
#include "base/fiber_context.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/sanitizer.h"
#include "base/util.h"

#if KILN_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if KILN_TSAN
#include <sanitizer/tsan_interface.h>
#endif

/* Red zones and shadow calls make frames larger, and so does not optimizing. */
#ifdef __OPTIMIZE__
enum { STACK_SCALE = KILN_ASAN || KILN_TSAN ? 4 : 1 };
#else
enum { STACK_SCALE = 4 };
#endif

/*
 * ThreadSanitizer keeps a stack of calls for each fiber and pushes and pops at the entry and end of each function. From
 * telling it of a switch to the switch itself no function may be entered or left: what lies between is inlined.
 */
#define SWITCH_STEP static inline __attribute__((always_inline)) void

#ifdef KILN_FIBER_UCONTEXT

static void machine_init(struct fiber_context *context, void (*entry)(void))
{
	getcontext(&context->machine);
	context->machine.uc_stack.ss_sp = (void *)context->stack;
	context->machine.uc_stack.ss_size = context->stack_bytes;
	context->machine.uc_link = NULL;
	makecontext(&context->machine, entry, 0);
}

SWITCH_STEP machine_switch(struct fiber_context *from, struct fiber_context *to)
{
	swapcontext(&from->machine, &to->machine);
}

#else

/*
 * void kiln_stack_switch(void **save, void *load): push what a function must preserve, store the stack pointer in
 * *@save, and undo the same from @load.
 */
__asm__(".text\n"
	".p2align 4\n"
	".globl kiln_stack_switch\n"
	".hidden kiln_stack_switch\n"
	".type kiln_stack_switch, @function\n"
	"kiln_stack_switch:\n"
	"	pushq %rbp\n"
	"	pushq %rbx\n"
	"	pushq %r12\n"
	"	pushq %r13\n"
	"	pushq %r14\n"
	"	pushq %r15\n"
	"	subq $8, %rsp\n"
	"	stmxcsr (%rsp)\n"
	"	fnstcw 4(%rsp)\n"
	"	movq %rsp, (%rdi)\n"
	"	movq %rsi, %rsp\n"
	"	ldmxcsr (%rsp)\n"
	"	fldcw 4(%rsp)\n"
	"	addq $8, %rsp\n"
	"	popq %r15\n"
	"	popq %r14\n"
	"	popq %r13\n"
	"	popq %r12\n"
	"	popq %rbx\n"
	"	popq %rbp\n"
	"	ret\n"
	".size kiln_stack_switch, . - kiln_stack_switch\n");
void kiln_stack_switch(void **save, void *load) __attribute__((visibility("hidden")));

/* What kiln_stack_switch() finds on a stack that has never run. */
struct first_frame {
	uint32_t mxcsr;
	uint16_t fpu_control;
	uint16_t pad;
	uint64_t r15, r14, r13, r12, rbx, rbp;
	void (*entry)(void);
	uint64_t return_address; /* of entry: none; ends backtraces, and aligns the stack as a call would */
};
_Static_assert(sizeof(struct first_frame) == 72, "seven registers, the entry and its return address");

static void machine_init(struct fiber_context *context, void (*entry)(void))
{
	struct first_frame frame = { .entry = entry };
	char *top = (char *)context->stack + context->stack_bytes;

	__asm__("stmxcsr %0\n\tfnstcw %1" : "=m"(frame.mxcsr), "=m"(frame.fpu_control));
	context->stack_pointer = top - sizeof(frame);
	memcpy(context->stack_pointer, &frame, sizeof(frame));
}

SWITCH_STEP machine_switch(struct fiber_context *from, struct fiber_context *to)
{
	kiln_stack_switch(&from->stack_pointer, to->stack_pointer);
}

#endif

void fiber_context_init_thread(struct fiber_context *context)
{
	*context = (struct fiber_context){ 0 };
#if KILN_TSAN
	context->tsan_fiber = __tsan_get_current_fiber();
#endif
}

int fiber_context_init(struct fiber_context *context, size_t stack_bytes, const char *name, void (*entry)(void))
{
	size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);

	*context = (struct fiber_context){ 0 };
	context->stack_bytes = round_up_u64((uint64_t)stack_bytes * STACK_SCALE, page_bytes);
	context->mapping_bytes = context->stack_bytes + page_bytes;
	context->mapping = mmap(NULL, context->mapping_bytes, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
	if (context->mapping == MAP_FAILED)
		return -ENOMEM;
	/* Stacks grow down: overflowing one hits the guard page, not a neighbour. */
	if (mprotect(context->mapping, page_bytes, PROT_NONE)) {
		munmap(context->mapping, context->mapping_bytes);
		return -ENOMEM;
	}
	context->stack = (char *)context->mapping + page_bytes;
	machine_init(context, entry);
#if KILN_TSAN
	context->tsan_fiber = __tsan_create_fiber(0);
	__tsan_set_fiber_name(context->tsan_fiber, name);
#endif
	return 0;
}

void fiber_context_destroy(struct fiber_context *context)
{
#if KILN_ASAN
	/* Frames that were never returned from have left their red zones behind. */
	ASAN_UNPOISON_MEMORY_REGION(context->stack, context->stack_bytes);
#endif
#if KILN_TSAN
	__tsan_destroy_fiber(context->tsan_fiber);
#endif
	munmap(context->mapping, context->mapping_bytes);
}

void fiber_context_arrived(struct fiber_context *context)
{
#if KILN_ASAN
	/* This also is how the bounds of the real thread's stack become known. */
	__sanitizer_finish_switch_fiber(context->asan_fake_stack, &context->came_from->stack,
					&context->came_from->stack_bytes);
#endif
}

/* @fake_stack NULL: never comes back. */
SWITCH_STEP switch_announce(struct fiber_context *from, struct fiber_context *to, void **fake_stack)
{
	to->came_from = from;
#if KILN_ASAN
	__sanitizer_start_switch_fiber(fake_stack, to->stack, to->stack_bytes);
#endif
#if KILN_TSAN
	__tsan_switch_to_fiber(to->tsan_fiber, 0);
#endif
}

void fiber_context_switch(struct fiber_context *from, struct fiber_context *to)
{
	switch_announce(from, to, &from->asan_fake_stack);
	machine_switch(from, to);
	fiber_context_arrived(from);
}

_Noreturn void fiber_context_exit(struct fiber_context *from, struct fiber_context *to)
{
	switch_announce(from, to, NULL);
	machine_switch(from, to);
	abort(); /* somebody switched to a context that has ended */
}
