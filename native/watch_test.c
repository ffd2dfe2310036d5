/* Watches against memory that other threads store to, as clients store to a mapped BAR. */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "iommufs.h"

#define MAX_SLEEP_US 1000

struct bar {
  _Alignas(8) unsigned char memory[4096];
  struct iofs_watch *watch;
};

static struct bar *bar_new(uint64_t cookie) {
  struct bar *bar = calloc(1, sizeof *bar);
  assert(bar && iofs_watch_new(bar->memory, cookie, MAX_SLEEP_US, &bar->watch) == 0);
  return bar;
}

static void bar_free(struct bar *bar) {
  iofs_watch_free(bar->watch);
  free(bar);
}

/* A client's stores and loads. */
static void store4(struct bar *bar, uint64_t offset, uint32_t value) {
  __atomic_store_n((uint32_t *)(bar->memory + offset), value, __ATOMIC_RELEASE);
}

static void store8(struct bar *bar, uint64_t offset, uint64_t value) {
  __atomic_store_n((uint64_t *)(bar->memory + offset), value, __ATOMIC_RELEASE);
}

static uint64_t load8(struct bar *bar, uint64_t offset) {
  return __atomic_load_n((uint64_t *)(bar->memory + offset), __ATOMIC_ACQUIRE);
}

/* The model's. */
static void model_store(struct bar *bar, uint64_t offset, uint32_t size, uint64_t value) {
  iofs_watch_store(bar->watch, bar->memory, offset, size, value);
}

static int is_readable(void) {
  struct pollfd fd = {.fd = iofs_watch_fd(), .events = POLLIN};
  return poll(&fd, 1, 0) == 1;
}

static struct iofs_watch_event next(void) {
  struct iofs_watch_event event;
  while (!iofs_watch_next(&event)) {
    struct pollfd fd = {.fd = iofs_watch_fd(), .events = POLLIN};
    assert(poll(&fd, 1, 60000) == 1 || !"no event came");
  }
  return event;
}

static void expect(uint64_t cookie, uint64_t offset, uint32_t size, uint64_t value) {
  struct iofs_watch_event event = next();
  if (event.cookie != cookie || event.offset != offset || event.size != size ||
      event.value != value) {
    fprintf(stderr, "expected %#lx/%#lx/%u/%#lx, got %#lx/%#lx/%u/%#lx\n", cookie, offset, size,
            value, event.cookie, event.offset, event.size, event.value);
    abort();
  }
}

static void expect_none(void) {
  struct iofs_watch_event event;
  assert(!iofs_watch_next(&event) && !is_readable());
}

static void test_a_store_is_reported_once_with_its_width(void) {
  struct bar *bar = bar_new(7);
  assert(iofs_watch_add(bar->watch, 0x10, 4) == 0);
  assert(iofs_watch_add(bar->watch, 0x18, 8) == 0);
  store4(bar, 0x10, 0xfffffffe);
  expect(7, 0x10, 4, 0xfffffffe);
  store8(bar, 0x18, 0x1122334455667788);
  expect(7, 0x18, 8, 0x1122334455667788);
  expect_none();
  bar_free(bar);
}

static void test_half_a_word_is_reported_as_the_whole(void) {
  struct bar *bar = bar_new(7);
  store8(bar, 0x18, 0x1122334455667788);
  assert(iofs_watch_add(bar->watch, 0x18, 8) == 0);
  store4(bar, 0x1c, 0);
  expect(7, 0x18, 8, 0x55667788);
  bar_free(bar);
}

static void test_words_are_aligned_and_watched_once(void) {
  struct bar *bar = bar_new(1);
  assert(iofs_watch_add(bar->watch, 0x10, 8) == 0);
  assert(iofs_watch_add(bar->watch, 0x10, 8) == -EEXIST);
  assert(iofs_watch_add(bar->watch, 0x14, 4) == -EEXIST);
  assert(iofs_watch_add(bar->watch, 0x1c, 8) == -EINVAL);
  assert(iofs_watch_add(bar->watch, 0x22, 4) == -EINVAL);
  assert(iofs_watch_add(bar->watch, 0x20, 2) == -EINVAL);
  bar_free(bar);
}

static void test_the_models_own_store_is_no_event(void) {
  struct bar *bar = bar_new(1);
  assert(iofs_watch_add(bar->watch, 0x10, 4) == 0);
  assert(iofs_watch_add(bar->watch, 0x18, 8) == 0);
  assert(iofs_watch_add(bar->watch, 0x20, 4) == 0);
  assert(iofs_watch_add(bar->watch, 0x24, 4) == 0);
  model_store(bar, 0x10, 4, 5);
  model_store(bar, 0x18, 4, 6); /* half of a word */
  model_store(bar, 0x1c, 4, 7);
  model_store(bar, 0x20, 8, 0x900000008); /* two words */
  model_store(bar, 0x30, 8, 10);          /* nobody watches */
  assert(load8(bar, 0x18) == 0x700000006 && load8(bar, 0x20) == 0x900000008);
  assert(load8(bar, 0x30) == 10);
  /* Of one scan, or of a later one: any event of the words before would come first. */
  store4(bar, 0x24, 1);
  expect(1, 0x24, 4, 1);
  expect_none();
  bar_free(bar);
}

static void test_the_same_value_again_is_seen_after_the_model_took_it_back(void) {
  struct bar *bar = bar_new(1);
  store4(bar, 0x60, 0xffffffff);
  assert(iofs_watch_add(bar->watch, 0x60, 4) == 0);
  for (int i = 0; i < 100; i++) {
    store4(bar, 0x60, 1);
    expect(1, 0x60, 4, 1);
    model_store(bar, 0x60, 4, 0xffffffff);
  }
  expect_none();
  bar_free(bar);
}

/* Whether the poller comes between the two stores or not. */
static void test_a_store_that_the_model_overwrites_is_not_lost(void) {
  struct bar *bar = bar_new(1);
  assert(iofs_watch_add(bar->watch, 0x98, 8) == 0);
  assert(iofs_watch_add(bar->watch, 0xa0, 4) == 0);
  for (uint64_t i = 1; i <= 1000; i++) {
    store8(bar, 0x98, i);
    model_store(bar, 0x98, 8, 0);
    expect(1, 0x98, 8, i);
    store4(bar, 0xa0, (uint32_t)i);
    model_store(bar, 0xa0, 8, 0);
    expect(1, 0xa0, 4, i);
    store8(bar, 0x98, i << 32 | i);
    model_store(bar, 0x9c, 4, 0);
    expect(1, 0x98, 8, i << 32 | i);
    model_store(bar, 0x98, 8, 0);
  }
  expect_none();
  bar_free(bar);
}

#define TRANSFERS 5000

/* A client: address, then doorbell; waits for the model's answer before the next. */
static void *ring_doorbells(void *arg) {
  struct bar *bar = arg;
  for (uint64_t i = 1; i <= TRANSFERS; i++) {
    store8(bar, 0x80, i * 3);
    store8(bar, 0x98, i);
    while (load8(bar, 0x98) != 0)
      ;
  }
  return NULL;
}

static void test_a_doorbell_never_overtakes_the_address(void) {
  struct bar *bar = bar_new(1);
  assert(iofs_watch_add(bar->watch, 0x80, 8) == 0);
  assert(iofs_watch_add(bar->watch, 0x98, 8) == 0);
  pthread_t client;
  assert(pthread_create(&client, NULL, ring_doorbells, bar) == 0);
  for (uint64_t i = 1; i <= TRANSFERS; i++) {
    expect(1, 0x80, 8, i * 3);
    expect(1, 0x98, 8, i);
    model_store(bar, 0x98, 8, 0);
  }
  pthread_join(client, NULL);
  expect_none();
  bar_free(bar);
}

static void test_stores_say_which_were_seen_together(void) {
  struct bar *bar = bar_new(1);
  uint64_t last = 0, n_together = 0;
  assert(iofs_watch_add(bar->watch, 0x10, 4) == 0);
  assert(iofs_watch_add(bar->watch, 0x14, 4) == 0);
  for (uint32_t i = 1; i <= 1000; i++) {
    store8(bar, 0x10, (uint64_t)i << 32 | i);
    struct iofs_watch_event first = next(), second = next();
    assert(first.offset == 0x10 && second.offset == 0x14);
    assert(last < first.scan && first.scan <= second.scan);
    n_together += first.scan == second.scan; /* unless the store came between two loads of a scan */
    last = second.scan;
  }
  assert(n_together);
  bar_free(bar);
}

static void *store_the_same(void *arg) {
  struct bar *bar = arg;
  for (uint32_t i = 0; i < TRANSFERS; i++) {
    store4(bar, 0x20, 7);
    while (__atomic_load_n((uint32_t *)(bar->memory + 0x20), __ATOMIC_ACQUIRE) != 0)
      sched_yield();
  }
  return NULL;
}

static void test_a_clearing_word_shows_each_store_of_the_same_value(void) {
  struct bar *bar = bar_new(1);
  assert(iofs_watch_add_clearing(bar->watch, 0x20, 4) == 0);
  assert(iofs_watch_add_clearing(bar->watch, 0x28, 8) == 0);
  pthread_t client;
  assert(pthread_create(&client, NULL, store_the_same, bar) == 0);
  for (int i = 0; i < TRANSFERS; i++)
    expect(1, 0x20, 4, 7);
  pthread_join(client, NULL);
  store8(bar, 0x28, 1ull << 40);
  expect(1, 0x28, 8, 1ull << 40);
  while (load8(bar, 0x28))
    sched_yield();
  expect_none();
  bar_free(bar);
}

struct burst {
  struct bar *bar;
  uint32_t n;
};

/* As a driver's: some words, then a doorbell, all in one go; the next when all has been seen. */
static void *store_bursts(void *arg) {
  struct burst *burst = arg;
  for (uint32_t i = 1; i <= burst->n; i++) {
    for (uint64_t offset = 0; offset < 0x100; offset += 8)
      store4(burst->bar, (offset * 5) % 0x100, i);
    while (__atomic_load_n((uint32_t *)(burst->bar->memory + 0x100), __ATOMIC_ACQUIRE) != i)
      sched_yield();
    for (volatile uint32_t spin = i % 1000; spin; spin--) /* to meet the poller anywhere */
      continue;
  }
  return NULL;
}

/* A client's stores come in the order in which it made them, up to those seen together. */
static void test_what_is_seen_together_was_so_at_one_moment(void) {
  struct bar *bar = bar_new(1);
  struct burst burst = {bar, 2000};
  uint64_t position[0x100 / 8];
  for (uint64_t offset = 0, at = 0; offset < 0x100; offset += 8)
    position[offset * 5 % 0x100 / 8] = at++;
  for (uint64_t offset = 0; offset < 0x100; offset += 8)
    assert(iofs_watch_add(bar->watch, offset, 4) == 0);
  pthread_t client;
  assert(pthread_create(&client, NULL, store_bursts, &burst) == 0);
  for (uint32_t i = 1; i <= burst.n; i++) {
    uint64_t scan = 0, last = 0, first = 0; /* positions up to `last` came before this scan */
    for (int n = 0; n < 0x100 / 8; n++) {
      struct iofs_watch_event event = next();
      assert(event.value == i);
      if (event.scan != scan)
        first = last, scan = event.scan;
      assert(position[event.offset / 8] >= first);
      if (position[event.offset / 8] >= last)
        last = position[event.offset / 8] + 1;
    }
    model_store(bar, 0x100, 4, i);
  }
  pthread_join(client, NULL);
  bar_free(bar);
}

struct storm {
  struct bar *bar;
  atomic_int stop;
};

static void *store_always(void *arg) {
  struct storm *storm = arg;
  for (uint64_t i = 1; !atomic_load(&storm->stop); i++)
    for (uint64_t offset = 0; offset < 64; offset += 8)
      store8(storm->bar, offset, i);
  return NULL;
}

/* Nobody fetches for a while; then the other watch's event must still come. */
static void test_a_client_that_never_rests_keeps_nobody_waiting(void) {
  struct storm storm = {.bar = bar_new(1)};
  struct bar *quiet = bar_new(2);
  for (uint64_t offset = 0; offset < 64; offset += 8)
    assert(iofs_watch_add(storm.bar->watch, offset, 8) == 0);
  assert(iofs_watch_add(quiet->watch, 0, 4) == 0);
  pthread_t client;
  assert(pthread_create(&client, NULL, store_always, &storm) == 0);
  for (int i = 0; i < 2000; i++)
    assert(next().cookie == 1);
  /* A model that stores and does not fetch cannot make the ring overflow either. */
  for (uint64_t i = 0; i < 5000; i++)
    model_store(storm.bar, 8 * (i % 8), 8, 0);
  store4(quiet, 0, 1);
  while (next().cookie != 2)
    ;
  atomic_store(&storm.stop, 1);
  pthread_join(client, NULL);
  bar_free(storm.bar);
  bar_free(quiet);
  expect_none();
}

static void test_events_of_a_freed_watch_are_gone(void) {
  struct bar *freed = bar_new(1), *kept = bar_new(2);
  assert(iofs_watch_add(freed->watch, 0, 4) == 0);
  assert(iofs_watch_add(kept->watch, 0, 4) == 0);
  for (uint32_t i = 1; i <= 200; i++) {
    store4(freed, 0, i);
    model_store(freed, 0, 4, 0);
  }
  assert(is_readable());
  bar_free(freed);
  expect_none();
  store4(kept, 0, 1);
  expect(2, 0, 4, 1);
  bar_free(kept);
}

static void test_watches_come_and_go_while_clients_store(void) {
  struct bar *stays = bar_new(1);
  assert(iofs_watch_add(stays->watch, 0x80, 8) == 0);
  assert(iofs_watch_add(stays->watch, 0x98, 8) == 0);
  pthread_t client;
  assert(pthread_create(&client, NULL, ring_doorbells, stays) == 0);
  for (uint64_t i = 1; i <= TRANSFERS; i++) {
    struct bar *other = bar_new(2);
    for (uint64_t offset = 0; offset < 8 * (i % 40); offset += 8)
      assert(iofs_watch_add(other->watch, offset, 8) == 0);
    store8(other, 0, i);
    model_store(other, 0, 8, 0);
    bar_free(other);
    expect(1, 0x80, 8, i * 3);
    expect(1, 0x98, 8, i);
    model_store(stays, 0x98, 8, 0);
  }
  pthread_join(client, NULL);
  bar_free(stays);
  expect_none();
}

#define RUN(test) (test(), printf("ok %s\n", #test), (void)fflush(stdout))

int main(void) {
  RUN(test_a_store_is_reported_once_with_its_width);
  RUN(test_half_a_word_is_reported_as_the_whole);
  RUN(test_words_are_aligned_and_watched_once);
  RUN(test_the_models_own_store_is_no_event);
  RUN(test_the_same_value_again_is_seen_after_the_model_took_it_back);
  RUN(test_a_store_that_the_model_overwrites_is_not_lost);
  RUN(test_a_doorbell_never_overtakes_the_address);
  RUN(test_a_clearing_word_shows_each_store_of_the_same_value);
  RUN(test_what_is_seen_together_was_so_at_one_moment);
  RUN(test_stores_say_which_were_seen_together);
  RUN(test_a_client_that_never_rests_keeps_nobody_waiting);
  RUN(test_events_of_a_freed_watch_are_gone);
  RUN(test_watches_come_and_go_while_clients_store);
  return 0;
}
