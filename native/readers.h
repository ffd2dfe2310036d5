/*
 * Who reads /dev/fuse. Readers take turns: the one whose turn it is reads a request and brings it to
 * its place in a queue, so queues keep the order of arrival.
 */
#ifndef IOFS_READERS_H
#define IOFS_READERS_H

#include <stddef.h>

struct reader;

/* Called with the turn: what to do with a request. */
typedef void readers_handle(struct reader *me, void *request, size_t length);

/* stop_fd: readable from when readers are to end. on_end: the mount is gone, or memory. */
int readers_start(int fuse_fd, int stop_fd, readers_handle *handle, void (*on_end)(void));
/* Wait until all have ended, but for those in a client's memory, for so long. */
void readers_stop(unsigned seconds);

/* This reader is about to touch a client's memory, which may take for ever: should it, another
 * takes the turn. 0: there is none, so it must not. The request has its place by now. */
int reader_leave(struct reader *me);
/* It has come back from there, but not for the next request; it will touch memory again. */
void reader_is_back(struct reader *me);
void reader_touches_memory(struct reader *me);

/* The thread that calls this waits for a request of our own: if it is a reader, another takes the
 * turn. */
void readers_step_aside(void);

#endif
