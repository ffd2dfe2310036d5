/* The baton among threads that want it at once. */
#define _GNU_SOURCE
#include "baton.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "serve.h"
#include "test.h"

#define N_READERS 4
#define N_TURNS 2000

static unsigned n_turns; /* without a lock: whoever changes it has the baton */
static _Atomic int n_ended;

static void take_as_loop(void) {
  int found;
  while ((found = iofs_baton_take()) == IOFS_BATON_WAITED_FOR)
    ;
  CHECK_EQ(found, IOFS_BATON_TAKEN);
}

static void test_nobody_gets_it_before_it_is_opened_or_after_it_is_closed(void) {
  CHECK_EQ(baton_era(), 0);
  CHECK_EQ(baton_take(1, 0), 0);
  baton_open();
  uint64_t era = baton_era();
  iofs_baton_give();
  CHECK(baton_take(era, 0));
  baton_give();
  take_as_loop();
  baton_close();
  iofs_baton_give();
  CHECK_EQ(baton_take(era, BATON_FOR_EVER), 0);
  baton_open();
  iofs_baton_give();
  CHECK_EQ(baton_take(era, BATON_FOR_EVER), 0); /* of another era */
  take_as_loop();
  baton_close();
}

static void test_a_reader_waits_while_the_loop_has_it_and_no_longer_than_it_wants_to(void) {
  baton_open();
  CHECK_EQ(baton_take(baton_era(), 1000), 0);
  CHECK_EQ(baton_take(baton_era(), 0), 0);
  baton_close();
}

static void *take_turns(void *unused) {
  (void)unused;
  for (int i = 0; i < N_TURNS; i++) {
    CHECK(baton_take(baton_era(), BATON_FOR_EVER));
    n_turns++;
    baton_give();
  }
  n_ended++;
  return NULL;
}

static void test_one_has_it_at_a_time(void) {
  pthread_t threads[N_READERS];
  unsigned mine = 0;
  n_turns = n_ended = 0;
  baton_open();
  for (int i = 0; i < N_READERS; i++)
    CHECK(!pthread_create(&threads[i], NULL, take_turns, NULL));
  while (n_ended < N_READERS) {
    n_turns++;
    mine++;
    iofs_baton_give();
    sched_yield();
    take_as_loop();
  }
  CHECK_EQ(n_turns, mine + N_READERS * N_TURNS);
  baton_close();
  for (int i = 0; i < N_READERS; i++)
    pthread_join(threads[i], NULL);
}

static void *wait_in_vain(void *unused) {
  (void)unused;
  CHECK_EQ(baton_take(baton_era(), BATON_FOR_EVER), 0);
  return NULL;
}

static void test_closing_sends_those_away_that_wait(void) {
  pthread_t threads[N_READERS];
  baton_open();
  for (int i = 0; i < N_READERS; i++)
    CHECK(!pthread_create(&threads[i], NULL, wait_in_vain, NULL));
  sched_yield();
  baton_close();
  for (int i = 0; i < N_READERS; i++)
    pthread_join(threads[i], NULL);
}

static void *lend_it(void *done_for_me) {
  CHECK(baton_take(baton_era(), BATON_FOR_EVER));
  for (int i = 1; i <= 3; i++) {
    iofs_baton_lend();
    CHECK_EQ(*(int *)done_for_me, i);
  }
  baton_give();
  return NULL;
}

static void test_a_reader_lends_it_and_has_it_back(void) {
  pthread_t thread;
  int found, n_done = 0;
  baton_open();
  CHECK(!pthread_create(&thread, NULL, lend_it, &n_done));
  iofs_baton_give();
  while ((found = iofs_baton_take()) != IOFS_BATON_TAKEN || n_done < 3)
    if (found == IOFS_BATON_LENT) {
      n_done++;
      iofs_baton_return();
    } else if (found == IOFS_BATON_TAKEN) { /* before the reader was */
      iofs_baton_give();
      sched_yield();
    }
  pthread_join(thread, NULL);
  baton_close();
}

int main(void) {
  RUN(test_nobody_gets_it_before_it_is_opened_or_after_it_is_closed);
  RUN(test_a_reader_waits_while_the_loop_has_it_and_no_longer_than_it_wants_to);
  RUN(test_one_has_it_at_a_time);
  RUN(test_closing_sends_those_away_that_wait);
  RUN(test_a_reader_lends_it_and_has_it_back);
  return 0;
}
