/* Lines of /proc/self/mountinfo (proc(5)). */
#ifndef KILN_MOUNT_MOUNTINFO_H
#define KILN_MOUNT_MOUNTINFO_H

/* Undo the \ooo of a field, in place. */
void mountinfo_unescape(char *text);

#endif
