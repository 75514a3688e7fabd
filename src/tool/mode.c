/* Permissions as arguments. See mode.h. */
#include "tool/mode.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { PERMISSIONS = 07777 };

/* Bits that "u", "g", "o" and "a" stand for; everything if none is given. */
static uint32_t who_parse(const char **text)
{
	uint32_t who = 0;

	for (;; ++*text)
		switch (**text) {
		case 'u': who |= 04700; break;
		case 'g': who |= 02070; break;
		case 'o': who |= 01007; break;
		case 'a': who |= PERMISSIONS; break;
		default: return who ? who : PERMISSIONS;
		}
}

/* What permissions behind an operator stand for, for everybody. */
static uint32_t permissions_parse(const char **text, uint32_t old)
{
	uint32_t bits = 0;

	/* Copies of what one of them has already. */
	if (**text == 'u' || **text == 'g' || **text == 'o') {
		unsigned shift = **text == 'u' ? 6 : **text == 'g' ? 3 : 0;

		++*text;
		return (old >> shift & 7) * 0111;
	}
	for (;; ++*text)
		switch (**text) {
		case 'r': bits |= 0444; break;
		case 'w': bits |= 0222; break;
		case 'x': bits |= 0111; break;
		case 'X': bits |= S_ISDIR(old) || old & 0111 ? 0111 : 0; break;
		case 's': bits |= 06000; break;
		case 't': bits |= 01000; break;
		default: return bits;
		}
}

int mode_apply(const char *text, uint32_t old, uint32_t *mode)
{
	char *end;

	if (*text >= '0' && *text <= '7') {
		unsigned long value = strtoul(text, &end, 8);

		if (*end || value > PERMISSIONS)
			return -EINVAL;
		*mode = (old & ~(uint32_t)PERMISSIONS) | (uint32_t)value;
		return 0;
	}
	do {
		uint32_t who = who_parse(&text);

		if (!*text || !strchr("+-=", *text))
			return -EINVAL;
		while (*text && strchr("+-=", *text)) {
			char operator= * text++;
			uint32_t bits = permissions_parse(&text, old) & who;

			/* Directories keep setuid and setgid unless these are named. */
			uint32_t cleared = who & (S_ISDIR(old) ? ~06000u : ~0u);
			if (operator== '=')
				old &= ~(cleared & PERMISSIONS);
			old = operator== '-' ? old & ~bits : old | bits;
		}
	} while (*text == ',' && *++text);
	*mode = old;
	return *text ? -EINVAL : 0;
}
