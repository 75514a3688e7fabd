/* Memory for keys: libsodium's guarded allocations (see base/secret.h). */
#include "base/secret.h"

#include <pthread.h>
#include <sodium.h>
#include <stdalign.h>
#include <string.h>

static pthread_once_t sodium_once = PTHREAD_ONCE_INIT;
static int sodium_status;

static void sodium_start(void) { sodium_status = sodium_init(); }

void *secret_alloc(size_t len)
{
	/* libsodium puts the end of an allocation at the end of a page, so its length decides its alignment. */
	const size_t unit = alignof(max_align_t);
	void *secret;

	pthread_once(&sodium_once, sodium_start);
	if (sodium_status < 0 || len > PTRDIFF_MAX)
		return NULL;
	len = len ? (len + unit - 1) / unit * unit : unit;
	secret = sodium_malloc(len);
	if (secret)
		memset(secret, 0, len);
	return secret;
}

void secret_free(void *secret) { sodium_free(secret); }

void secret_wipe(void *secret, size_t len) { sodium_memzero(secret, len); }
