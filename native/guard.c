/* memcpy() that survives SIGBUS (see guard.h). */
#define _GNU_SOURCE
#include "guard.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction before;
static _Thread_local sigjmp_buf *volatile escape;

static void on_sigbus(int signal, siginfo_t *info, void *context) {
  if (escape)
    siglongjmp(*escape, 1);
  if (before.sa_flags & SA_SIGINFO) {
    before.sa_sigaction(signal, info, context);
    return;
  }
  if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(signal);
    return;
  }
  /* Not ours: fault again, now fatally. */
  struct sigaction fatal = {.sa_handler = SIG_DFL};
  sigaction(SIGBUS, &fatal, NULL);
}

void guard_install(void) {
  struct sigaction now, ours = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER};
  pthread_mutex_lock(&lock);
  if (!sigaction(SIGBUS, NULL, &now) &&
      !(now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_sigbus)) {
    before = now;
    sigaction(SIGBUS, &ours, NULL);
  }
  pthread_mutex_unlock(&lock);
}

int guard_copy(void *to, const void *from, size_t length) {
  sigjmp_buf here;
  if (sigsetjmp(here, 0)) {
    escape = NULL;
    return -EFAULT;
  }
  escape = &here;
  atomic_signal_fence(memory_order_seq_cst);
  memcpy(to, from, length);
  atomic_signal_fence(memory_order_seq_cst);
  escape = NULL;
  return 0;
}
