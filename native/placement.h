/* Which core the reader whose turn it is runs on (see placement.c). */
#ifndef IOFS_PLACEMENT_H
#define IOFS_PLACEMENT_H

/* This thread, a reader, has done what it can for a request of that thread; 0: nobody's. */
void placement_note(int tid);

/* Nobody has called for a while: whoever does next may be elsewhere, and this core be busy. */
void placement_leave(void);

/* Whether this thread was put beside its client: then to ask again would only keep it from running. */
int placement_is_beside(void);

#endif
