/* Which sanitizer this build has: KILN_ASAN and KILN_TSAN are 1 or 0 for gcc and clang alike. */
#ifndef KILN_BASE_SANITIZER_H
#define KILN_BASE_SANITIZER_H

#ifdef __has_feature
#define SANITIZER_CLANG(name) __has_feature(name)
#else
#define SANITIZER_CLANG(name) 0
#endif

#if defined(__SANITIZE_ADDRESS__) || SANITIZER_CLANG(address_sanitizer)
#define KILN_ASAN 1
#else
#define KILN_ASAN 0
#endif

#if defined(__SANITIZE_THREAD__) || SANITIZER_CLANG(thread_sanitizer)
#define KILN_TSAN 1
#else
#define KILN_TSAN 0
#endif

/* Tests do a part of their rounds: what sanitizers look for shows in the first ones, at a third of the speed or less.
 */
#define KILN_SANITIZED (KILN_ASAN || KILN_TSAN)

#endif
