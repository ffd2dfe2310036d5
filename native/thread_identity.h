/* Who a waiting thread of a client is, asked anew each time: processes change their rights. */
#ifndef IOFS_THREAD_IDENTITY_H
#define IOFS_THREAD_IDENTITY_H

#include <stdint.h>

#define N_KNOWN_THREADS 32

struct thread_identity {
  int tgid;
  int is_new;   /* it was not known: its process may be one that has the number of another */
  int may_lock; /* CAP_IPC_LOCK, in our user namespace */
  uint32_t uid; /* the real one, of a thread that may not */
};

/* Descriptors of threads that asked before, each in a place that its number gives. */
struct known_threads {
  struct known_thread {
    int tid, tgid, pidfd, userns; /* tid 0: nothing; userns: the link itself */
  } threads[N_KNOWN_THREADS];
};

/* 0, or -errno: this kernel cannot say (before Linux 6.13), or it is gone. */
int thread_identify(struct known_threads *known, int tid, struct thread_identity *out);
int known_thread_tgid(const struct known_threads *known, int tid); /* as last seen; 0: unknown */
void known_threads_forget(struct known_threads *known);

#endif
