/* Models in C: lives, stores of clients, interrupts, DMA that comes to an end with its route. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "device_host.h"
#include "test.h"

#define BASE 0x100000u

/* ---- a model that copies BASE to BASE + 4096 as often as it is told to, and counts -------------- */

static unsigned char bar[4096] __attribute__((aligned(4096)));
static _Atomic int n_models, n_lives, n_polls, n_copies, last_error;
static _Atomic uint32_t wanted;
static _Atomic uint64_t asked_for;
static _Atomic int does_not_answer, n_stuck;
static pthread_mutex_t answer = PTHREAD_MUTEX_INITIALIZER;
static _Atomic int n_answers;

/* Words in the order in which they are watched and stored to; the first and the last are one chunk.
 * Others are watched between the first two, so that they are not looked at in the same moment. */
static const uint64_t ordered[] = {32, 40, 36};
#define OTHERS_START 64u
#define OTHERS_END 1024u
static _Atomic uint32_t reported[3];

struct state {
  struct iommufs_device *device;
  uint32_t sum, request;
};

static void *create(const char *const *options, char *error, size_t size) {
  if (options[0] && !strcmp(options[0], "fail=1")) {
    snprintf(error, size, "told to fail");
    return NULL;
  }
  n_models++;
  return &n_models;
}

static void destroy(void *model) {
  (void)model;
  n_models--;
}

static void *start(void *model, struct iommufs_device *device) {
  struct state *state = calloc(1, sizeof *state);
  (void)model;
  state->device = device;
  n_lives++;
  for (unsigned i = 0; i < 16; i++)
    iommufs_store(device, 0, 4 * i, 4, 0);
  CHECK_EQ(iommufs_watch(device, 0, 0, 4), 0); /* a number to add up */
  CHECK_EQ(iommufs_watch(device, 0, 8, 8), 0); /* likewise */
  CHECK_EQ(iommufs_watch(device, 0, 16, 4), 0); /* do it */
  for (unsigned i = 0; i < 3; i++) {
    CHECK_EQ(iommufs_watch(device, 0, ordered[i], 4), 0);
    for (unsigned at = OTHERS_START; at < OTHERS_END && !i; at += 8)
      CHECK_EQ(iommufs_watch(device, 0, at, 8), 0);
  }
  return state;
}

static void end(void *state) {
  n_lives--;
  free(state);
}

/* The word at 4 shows the sum; a store to 16 sends a message and toggles the line. */
static void write_word(void *state_, unsigned b, uint64_t offset, unsigned size, uint64_t value) {
  struct state *state = state_;
  (void)size;
  CHECK_EQ(b, 0);
  if (offset == 0 || offset == 8) {
    state->sum += (uint32_t)value;
    iommufs_store(state->device, 0, 4, 4, state->sum);
    iommufs_store(state->device, 0, offset, offset ? 8 : 4, 0);
  } else if (offset == 16) {
    wanted = (uint32_t)value;
    iommufs_message(state->device, 3);
    iommufs_line(state->device, value & 1);
    iommufs_report(state->device, "seen");
  }
  for (unsigned i = 0; i < 3; i++) {
    if (offset != ordered[i])
      continue;
    for (unsigned earlier = 0; earlier < i; earlier++)
      CHECK(reported[earlier] >= value);
    reported[i] = (uint32_t)value;
  }
}

/* One request after the other for what lies at asked_for, until there is something. */
static int poll_page(struct state *state) {
  unsigned char data[64];
  int answer = state->request ? iommufs_page_answer(state->device, state->request) : 0;
  if (answer == -EINPROGRESS)
    return 0;
  n_answers += state->request != 0;
  state->request = 0;
  if (!answer)
    answer = iommufs_dma_read_or_ask(state->device, asked_for, data, sizeof data, &state->request);
  if (answer != -EINPROGRESS)
    asked_for = 0;
  last_error = answer;
  return 1;
}

static int poll_model(void *state_) {
  struct state *state = state_;
  unsigned char data[64];
  n_polls++;
  if (does_not_answer) {
    n_stuck++;
    pthread_mutex_lock(&answer);
    pthread_mutex_unlock(&answer);
  }
  if (asked_for)
    return poll_page(state);
  if (!wanted)
    return 0;
  int err = iommufs_dma_read(state->device, BASE, data, sizeof data);
  if (!err)
    err = iommufs_dma_write(state->device, BASE + 4096, data, sizeof data);
  last_error = err;
  n_copies++;
  return 1;
}

/* Another takes stores as they are seen. */
static struct iommufs_store taken[4];
static size_t n_taken;
static int n_takes;

static void take_stores(void *state, const struct iommufs_store *stores, size_t n) {
  (void)state;
  CHECK(n <= 4);
  memcpy(taken, stores, n * sizeof *taken);
  n_taken = n;
  n_takes++;
}

#define CALLS                                                                                  \
  .abi = IOMMUFS_DEVICE_ABI, .create = create, .destroy = destroy, .start = start, .end = end, \
  .write = write_word, .poll = poll_model

static const struct iommufs_model model = {CALLS};
static const struct iommufs_model taking_model = {CALLS, .stores = take_stores};

/* ---- around it --------------------------------------------------------------------------------- */

struct scene {
  struct iofs_device *device;
  struct iofs_refused *refused;
  struct iofs_route *route;
  struct iofs_iopt *iopt;
  struct iofs_domain *domain;
  unsigned char *memory;
};

/* As iofs_device_new() does, with our own model in place of a built-in one. */
static struct iofs_device *make(struct iofs_refused *refused) {
  struct iofs_device *device;
  char error[64];
  static const char *const options[] = {"queues=1", NULL};
  CHECK_EQ(iofs_device_new(NULL, "nvme", options, 7, refused, error, sizeof error, &device), 0);
  device->model->destroy(device->instance);
  device->model = &model;
  device->instance = create(options + 1, error, sizeof error);
  return device;
}

static void set_up(struct scene *scene) {
  struct iofs_domain_config config = {.aperture_last = (1ull << 48) - 1,
                                      .pgsize_bitmap = 0x40201000,
                                      .format = IOFS_PT_VTD};
  struct iofs_charge charge = {.mode = IOFS_CHARGE_NONE};
  struct iofs_mm *mm;
  uint64_t iova = BASE;
  memset(scene, 0, sizeof *scene);
  memset(bar, 0, sizeof bar);
  wanted = 0;
  scene->memory = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memset(scene->memory, 5, 64);
  CHECK_EQ(iofs_refused_new(7, &scene->refused), 0);
  scene->device = make(scene->refused);
  scene->route = iofs_route_new();
  scene->iopt = iofs_iopt_new();
  CHECK_EQ(iofs_domain_new(&config, &scene->domain), 0);
  CHECK_EQ(iofs_iopt_add_domain(scene->iopt, scene->domain), 0);
  CHECK_EQ(iofs_mm_open_process(getpid(), &mm), 0);
  CHECK_EQ(iofs_iopt_map_user(scene->iopt, mm, &charge, (uintptr_t)scene->memory, 8192,
                              IOFS_READ | IOFS_WRITE, 1, &iova),
           0);
  iofs_mm_put(mm);
  iofs_route_set(scene->route, scene->domain);
  iofs_device_set_bar(scene->device, 0, bar, sizeof bar);
  iofs_device_set_route(scene->device, scene->route);
  iofs_device_set_bus_master(scene->device, 1);
}

static void wait_for(int (*condition)(const void *), const void *what) {
  time_t end = time(NULL) + 20;
  while (!condition(what)) {
    CHECK(time(NULL) < end);
    sched_yield();
  }
}

/* A thread that got no core in time goes on, and is the last who has the device. */
static int all_are_gone(const void *n) { return !__atomic_load_n((const int *)n, __ATOMIC_ACQUIRE); }

static void tear_down(struct scene *scene) {
  wanted = 0;
  iofs_device_free(scene->device);
  iofs_refused_free(scene->refused);
  iofs_route_put(scene->route);
  iofs_iopt_remove_domain(scene->iopt, scene->domain);
  iofs_domain_put(scene->domain);
  iofs_iopt_free(scene->iopt);
  munmap(scene->memory, 8192);
  wait_for(all_are_gone, &n_models);
  wait_for(all_are_gone, &n_lives);
}

static int more_copies(const void *n) { return n_copies > *(const int *)n; }

static void wait_for_copies(void) {
  int before = n_copies + 1;
  wait_for(more_copies, &before);
}

static uint32_t sum(void) { return __atomic_load_n((uint32_t *)(bar + 4), __ATOMIC_ACQUIRE); }

static int sum_is(const void *value) { return sum() == *(const uint32_t *)value; }

/* ---- tests ------------------------------------------------------------------------------------- */

static void a_life_begins_and_ends(void) {
  struct scene scene;
  set_up(&scene);
  CHECK_EQ(n_lives, 0);
  CHECK_EQ(iofs_device_start(scene.device), 0);
  CHECK_EQ(n_lives, 1);
  CHECK_EQ(iofs_device_start(scene.device), 0); /* a reset */
  CHECK_EQ(n_lives, 1);
  iofs_device_stop(scene.device);
  CHECK_EQ(n_lives, 0);
  iofs_device_stop(scene.device);
  iofs_device_write(scene.device, 0, 0, 4, 1); /* nobody hears it */
  CHECK_EQ(iofs_device_read(scene.device, 0, 4, 4), 0);
  tear_down(&scene);
}

static void what_cannot_be_made_says_why(void) {
  static const char *const none[] = {NULL}, *const bad[] = {"what=1", NULL};
  struct iofs_device *device;
  char error[64];
  CHECK_EQ(iofs_device_new(NULL, "none", none, 1, NULL, error, sizeof error, &device), -EINVAL);
  CHECK(strstr(error, "no model none"));
  CHECK_EQ(iofs_device_new("/no/such.so", "x", none, 1, NULL, error, sizeof error, &device),
           -EINVAL);
  CHECK(strstr(error, "/no/such.so"));
  CHECK_EQ(iofs_device_new(NULL, "nvme", bad, 1, NULL, error, sizeof error, &device), -EINVAL);
  CHECK(strstr(error, "what=1"));
}

static void stores_and_writes_add_up(void) {
  struct scene scene;
  uint32_t expected = 0;
  set_up(&scene);
  CHECK_EQ(iofs_device_start(scene.device), 0);
  for (uint32_t i = 1; i < 2000; i++) {
    /* The model puts 0 there again: a store before that is not lost, though it may meet another. */
    if (i % 3)
      __atomic_store_n((uint32_t *)bar, i, __ATOMIC_RELEASE);
    else
      __atomic_store_n((uint64_t *)(bar + 8), i, __ATOMIC_RELEASE);
    expected += i;
    wait_for(sum_is, &expected);
    iofs_device_write(scene.device, 0, 0, 4, 1);
    CHECK_EQ(sum(), ++expected);
    CHECK_EQ(iofs_device_read(scene.device, 0, 4, 4), expected);
  }
  tear_down(&scene);
}

static int last_is_reported(const void *value) { return reported[2] == *(const uint32_t *)value; }

static void what_was_stored_earlier_is_reported_earlier(void) {
  struct scene scene;
  uint32_t n = 0;
  set_up(&scene);
  for (unsigned i = 0; i < 3; i++)
    reported[i] = 0;
  CHECK_EQ(iofs_device_start(scene.device), 0);
  for (int round = 0; round < 20; round++) {
    for (int burst = 0; burst < 50000; burst++) {
      n++;
      for (unsigned i = 0; i < 3; i++)
        __atomic_store_n((uint32_t *)(void *)(bar + ordered[i]), n, __ATOMIC_RELEASE);
    }
    wait_for(last_is_reported, &n);
  }
  tear_down(&scene);
}

static void a_read_comes_after_the_stores_before_it(void) {
  struct scene scene;
  uint32_t expected = 0;
  set_up(&scene);
  CHECK_EQ(iofs_device_start(scene.device), 0);
  for (uint32_t i = 1; i < 2000; i++) {
    __atomic_store_n((uint32_t *)bar, i, __ATOMIC_RELEASE);
    expected += i;
    CHECK_EQ(iofs_device_read(scene.device, 0, 4, 4), expected);
  }
  tear_down(&scene);
}

static void store32(unsigned offset, uint32_t value) {
  __atomic_store_n((uint32_t *)(bar + offset), value, __ATOMIC_RELEASE);
}

static void stores_are_reported_together_to_a_model_that_wants_them_so(void) {
  struct scene scene;
  set_up(&scene);
  scene.device->model = &taking_model;
  CHECK_EQ(iofs_device_start(scene.device), 0);
  for (uint32_t i = 1; i < 200; i++) {
    n_takes = 0;
    device_enter(scene.device); /* nobody looks meanwhile */
    store32(16, i);
    store32(8, i + 1);
    store32(0, i + 2);
    device_leave(scene.device);
    CHECK_EQ(iofs_device_read(scene.device, 0, 8, 4), i + 1);
    CHECK(n_takes == 1 && n_taken == 3);
    CHECK(taken[0].offset == 0 && taken[0].size == 4 && taken[0].value == i + 2);
    CHECK(taken[1].offset == 8 && taken[1].size == 8 && taken[1].value == i + 1);
    CHECK(taken[2].offset == 16 && taken[2].bar == 0 && taken[2].value == i);
  }
  tear_down(&scene);
}

static void what_an_exchange_found_is_not_reported_again(void) {
  struct scene scene;
  set_up(&scene);
  scene.device->model = &taking_model;
  CHECK_EQ(iofs_device_start(scene.device), 0);
  struct iommufs_device *handle = &scene.device->life->handle;
  n_takes = 0;
  device_enter(scene.device);
  CHECK_EQ(iommufs_exchange(handle, 0, 0, 4, 3), 0);
  store32(0, 5);
  CHECK_EQ(iommufs_exchange(handle, 0, 0, 4, 9), 5);
  device_leave(scene.device);
  CHECK_EQ(iofs_device_read(scene.device, 0, 0, 4), 9);
  CHECK_EQ(n_takes, 0);
  device_enter(scene.device);
  store32(0, 6);
  iommufs_store(handle, 0, 0, 4, 9); /* this is another matter */
  device_leave(scene.device);
  CHECK_EQ(iofs_device_read(scene.device, 0, 0, 4), 9);
  CHECK(n_takes == 1 && n_taken == 1 && taken[0].value == 6);
  tear_down(&scene);
}

static void messages_reach_their_eventfd_if_they_may(void) {
  struct scene scene;
  eventfd_t value;
  int fd = eventfd(0, EFD_NONBLOCK);
  set_up(&scene);
  CHECK_EQ(iofs_device_set_vector(scene.device, 3, fd), 0);
  CHECK_EQ(iofs_device_start(scene.device), 0);
  iofs_device_write(scene.device, 0, 16, 4, 0); /* they are off */
  CHECK(eventfd_read(fd, &value));
  iofs_device_set_messages(scene.device, IOFS_MESSAGES_DIRECT);
  iofs_device_write(scene.device, 0, 16, 4, 0);
  CHECK(!eventfd_read(fd, &value) && value == 1);
  iofs_device_set_bus_master(scene.device, 0);
  iofs_device_write(scene.device, 0, 16, 4, 0);
  CHECK(eventfd_read(fd, &value));
  iofs_device_set_bus_master(scene.device, 1);
  CHECK_EQ(iofs_device_set_vector(scene.device, 3, -1), 0);
  iofs_device_write(scene.device, 0, 16, 4, 0);
  CHECK(eventfd_read(fd, &value));
  close(fd);
  tear_down(&scene);
}

static void python_hears_of_the_line_of_held_messages_and_of_reports(void) {
  struct iofs_device_event event;
  struct scene scene;
  set_up(&scene);
  iofs_device_set_messages(scene.device, IOFS_MESSAGES_BY_EVENT);
  CHECK_EQ(iofs_device_start(scene.device), 0);
  iofs_device_write(scene.device, 0, 16, 4, 1);
  iofs_device_write(scene.device, 0, 16, 4, 1);
  CHECK(iofs_device_next_event(&event));
  CHECK(event.kind == IOFS_DEVICE_LINE && event.cookie == 7 && iofs_device_line(scene.device));
  CHECK(iofs_device_next_event(&event) && event.kind == IOFS_DEVICE_MESSAGE && event.vector == 3);
  CHECK(iofs_device_next_event(&event) && event.kind == IOFS_DEVICE_REPORT && event.n_lost == 1);
  CHECK(!strcmp(event.text, "seen"));
  CHECK(!iofs_device_next_event(&event));
  iofs_device_write(scene.device, 0, 16, 4, 0);
  CHECK(iofs_device_next_event(&event) && !iofs_device_line(scene.device));
  tear_down(&scene); /* with events that nobody fetched */
  CHECK(!iofs_device_next_event(&event));
}

static void dma_goes_where_the_route_goes(void) {
  struct iofs_refusals refusals;
  struct scene scene;
  set_up(&scene);
  CHECK_EQ(iofs_device_start(scene.device), 0);
  iofs_device_write(scene.device, 0, 16, 4, 1);
  wait_for_copies();
  CHECK(last_error == 0 && scene.memory[4096 + 63] == 5);
  iofs_device_set_bus_master(scene.device, 0);
  wait_for_copies();
  CHECK_EQ(last_error, -EFAULT);
  CHECK(iofs_refused_next(&refusals) && refusals.reason == IOFS_DMA_NO_MASTER);
  iofs_device_set_bus_master(scene.device, 1);
  wait_for_copies();
  while (iofs_refused_next(&refusals))
    ;
  iofs_route_set(scene.route, NULL);
  wait_for_copies();
  CHECK_EQ(last_error, -EFAULT);
  CHECK(iofs_refused_next(&refusals) && refusals.reason == IOFS_DMA_DETACHED);
  tear_down(&scene);
}

/* What a client does in the middle of DMA: when it is told that it is done, the memory is quiet. */
static void nothing_lands_after_a_detach_an_unmap_or_a_reset(void) {
  struct scene scene;
  set_up(&scene);
  CHECK_EQ(iofs_device_start(scene.device), 0);
  for (int i = 0; i < 300; i++) {
    iofs_device_write(scene.device, 0, 16, 4, 1);
    wait_for_copies();
    if (i % 2)
      iofs_route_set(scene.route, NULL);
    else {
      wanted = 0; /* the next life is to do nothing */
      CHECK_EQ(iofs_device_start(scene.device), 0);
    }
    memset(scene.memory + 4096, 1, 64);
    if (i % 2)
      wait_for_copies();
    for (int at = 0; at < 64; at++)
      CHECK_EQ(scene.memory[4096 + at], 1);
    iofs_route_set(scene.route, scene.domain);
  }
  tear_down(&scene);
}

static int is_not_asked_for(const void *unused) { return !unused && !asked_for; }

static int an_event(const void *event) {
  return iofs_device_next_event((struct iofs_device_event *)(uintptr_t)event);
}

static int more_answers(const void *n) { return n_answers == *(const int *)n; }

static void map_again(struct scene *scene, uint64_t iova) {
  struct iofs_charge charge = {.mode = IOFS_CHARGE_NONE};
  struct iofs_mm *mm;
  CHECK_EQ(iofs_mm_open_process(getpid(), &mm), 0);
  CHECK_EQ(iofs_iopt_map_user(scene->iopt, mm, &charge, (uintptr_t)scene->memory, 4096,
                              IOFS_READ | IOFS_WRITE, 1, &iova),
           0);
  iofs_mm_put(mm);
}

static void a_page_is_asked_for_until_it_comes_or_is_refused(void) {
  const uint64_t missing = BASE + (1u << 20) + 8;
  struct iofs_device_event event;
  struct iofs_refusals refusals;
  struct scene scene;
  int n = n_answers;
  set_up(&scene);
  CHECK_EQ(iofs_device_start(scene.device), 0);
  asked_for = missing; /* by a device that has no PRI */
  wait_for(is_not_asked_for, NULL);
  CHECK(last_error == -EFAULT && iofs_refused_next(&refusals));

  iofs_device_set_page_requests(scene.device, 1);
  asked_for = missing;
  wait_for(an_event, &event);
  CHECK(event.kind == IOFS_DEVICE_PAGE && event.iova == missing && !event.write);
  CHECK_EQ(event.cookie, 7);
  iofs_device_answer_page(scene.device, event.request + 1, 0); /* it is not the one */
  CHECK_EQ(asked_for, missing);
  iofs_device_answer_page(scene.device, event.request, 1); /* although nothing is there */
  n++;
  wait_for(more_answers, &n);
  wait_for(an_event, &event);
  map_again(&scene, missing & ~4095ull);
  iofs_device_answer_page(scene.device, event.request, 1);
  wait_for(is_not_asked_for, NULL);
  CHECK_EQ(last_error, 0);
  CHECK(!iofs_refused_next(&refusals));

  asked_for = missing + 4096;
  wait_for(an_event, &event);
  CHECK(!iofs_refused_next(&refusals));
  iofs_device_answer_page(scene.device, event.request, 0);
  wait_for(is_not_asked_for, NULL);
  CHECK(last_error == -EFAULT && iofs_refused_next(&refusals));
  CHECK(refusals.iova == missing + 4096 && refusals.reason == IOFS_DMA_UNMAPPED);
  tear_down(&scene);
}

static int is_asked(const void *unused) { return !unused && last_error == -EINPROGRESS; }

static void a_page_that_never_comes_keeps_nothing_waiting(void) {
  struct iofs_device_event event;
  struct scene scene;
  set_up(&scene);
  iofs_device_set_page_requests(scene.device, 1);
  CHECK_EQ(iofs_device_start(scene.device), 0);
  for (int i = 0; i < 200; i++) { /* more than can be asked for at a time */
    last_error = 0;
    asked_for = BASE + (1u << 20);
    wait_for(is_asked, NULL);
    uint32_t request = 1;
    if (i % 2 && iofs_device_next_event(&event))
      request = event.request;
    asked_for = 0;
    CHECK_EQ(iofs_device_start(scene.device), 0);
    CHECK(!iofs_device_next_event(&event)); /* of a life that is over */
    iofs_device_answer_page(scene.device, request, 1);
  }
  tear_down(&scene);
}

static int all_are_stuck(const void *unused) { return !unused && n_stuck == n_lives; }
static int one_lives(const void *unused) { return !unused && n_lives == 1; }

static void lives_that_do_not_end_are_left_behind_but_not_without_end(void) {
  struct scene scene;
  int n = 0;
  set_up(&scene);
  pthread_mutex_lock(&answer);
  does_not_answer = 1;
  while (!iofs_device_start(scene.device)) {
    n++;
    CHECK_EQ(n_lives, n);
    wait_for(all_are_stuck, NULL);
  }
  CHECK_EQ(n, 16);
  CHECK_EQ(iofs_device_read(scene.device, 0, 4, 4), 0);
  CHECK_EQ(iofs_device_start(scene.device), -EAGAIN);
  does_not_answer = 0;
  pthread_mutex_unlock(&answer);
  while (iofs_device_start(scene.device))
    sched_yield();
  wait_for(one_lives, NULL);
  tear_down(&scene);
}

static void an_idle_device_rests(void) {
  struct scene scene;
  set_up(&scene);
  CHECK_EQ(iofs_device_start(scene.device), 0);
  const struct timespec while_idle = {0, 300000000}; /* rest is what the test is about */
  nanosleep(&while_idle, NULL);
  int before = n_polls;
  nanosleep(&while_idle, NULL);
  CHECK(n_polls - before < 100);
  tear_down(&scene);
}

int main(void) {
  RUN(a_life_begins_and_ends);
  RUN(what_cannot_be_made_says_why);
  RUN(stores_and_writes_add_up);
  RUN(what_was_stored_earlier_is_reported_earlier);
  RUN(a_read_comes_after_the_stores_before_it);
  RUN(stores_are_reported_together_to_a_model_that_wants_them_so);
  RUN(what_an_exchange_found_is_not_reported_again);
  RUN(messages_reach_their_eventfd_if_they_may);
  RUN(python_hears_of_the_line_of_held_messages_and_of_reports);
  RUN(dma_goes_where_the_route_goes);
  RUN(nothing_lands_after_a_detach_an_unmap_or_a_reset);
  RUN(a_page_is_asked_for_until_it_comes_or_is_refused);
  RUN(a_page_that_never_comes_keeps_nothing_waiting);
  RUN(lives_that_do_not_end_are_left_behind_but_not_without_end);
  RUN(an_idle_device_rests);
  return 0;
}
