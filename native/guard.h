/*
 * Copying to and from mappings of files that others can cut short under us: touching a page past
 * the end of the file is SIGBUS, which must not end the server.
 */
#ifndef IOFS_GUARD_H
#define IOFS_GUARD_H

#include <stddef.h>

/* Take SIGBUS over, if it is not ours (any more); what came before is called for faults that no
 * guard_copy() of that thread causes. */
void guard_install(void);

/* memcpy(); EFAULT if a page of either side is gone, part being copied by then. */
int guard_copy(void *to, const void *from, size_t length);

#endif
