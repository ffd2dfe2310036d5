/*
 * Threads in the middle of DMA, and how the end of that is waited for: for as long as it takes a
 * thread to get a core, but not for memory that a client itself keeps from answering (userfaultfd),
 * which Linux would have pinned.
 */
#ifndef IOFS_FLIGHT_H
#define IOFS_FLIGHT_H

#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>

#define FLIGHTS_KNOWN 16 /* by their thread */

struct flights { /* all zeros: none */
  _Atomic int32_t n, n_given_up;
  _Atomic pid_t threads[FLIGHTS_KNOWN]; /* negative: nobody waits for it any more */
};

/* Of the calling thread; what begin gives is for its end. */
int flight_begin(struct flights *flights);
void flight_end(struct flights *flights, int place);

/* Until none is left, or those that are left are kept waiting, or for a tenth of a second; these
 * are not waited for again. */
void flights_wait(struct flights *flights);

/* Whether a thread waits for a page that a client serves. */
int is_kept_waiting(pid_t thread);

#endif
