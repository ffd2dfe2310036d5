/*
 * A reader carries an ioctl out in Python (see "visits" in serve.h).
 *
 * It runs a step of the handler with the baton, then touches the client's memory as the step asked,
 * with neither baton nor GIL, then runs the next step. Python may take the handler away meanwhile, as
 * it does when the caller is killed: then nobody wants the job any more, and the reader is done.
 */
#include <stdatomic.h>

#include "baton.h"
#include "job.h"
#include "readers.h"
#include "serve.h"
#include "transport.h"

/* Longer than most turns of the event loop, and than all steps of another reader's but few; shorter
 * than it takes until this reader's turn is taken from it. */
#define PATIENCE_NS 200000

static iofs_visit_begin *begin;
static iofs_visit_go_on *go_on;

void iofs_visits_open(iofs_visit_begin *on_begin, iofs_visit_go_on *on_go_on) {
  begin = on_begin;
  go_on = on_go_on;
  baton_open();
}

void iofs_visits_close(void) { baton_close(); }

static void go_through(struct reader *me, uint64_t era, const struct iofs_ioctl *ioctl) {
  struct iofs_job *job = begin(ioctl);
  while (job) {
    job_claim(job); /* before anybody else can have the baton, and with it the job */
    baton_give();
    reader_touches_memory(me);
    int wanted = job_run(job);
    reader_is_back(me);
    if (!wanted || !baton_take(era, BATON_FOR_EVER))
      return;
    job = go_on(ioctl->unique);
  }
  baton_give();
}

int visit(struct reader *me, struct pending *pending, const struct iofs_ioctl *ioctl) {
  uint64_t era = baton_era();
  reader_is_back(me);
  if (!era || !iofs_ioctls_is_due(pending) || !baton_take(era, PATIENCE_NS))
    return 0;
  if (iofs_ioctls_take(pending))
    go_through(me, era, ioctl);
  else
    baton_give();
  return 1;
}
