/*
 * A reader goes to the core of its client, if it has only one.
 *
 * The two take turns. On one core that is a change of context; on two, each wakes the other's core
 * from sleep, which on a virtual machine takes several times what the call takes. Linux might put
 * them together by itself, or might not.
 *
 * Only the affinity of the reader changes. Where its client runs is looked up after some requests
 * in a row, when one is answered: where the client was woken, it will ask again. Then at most once
 * a millisecond. As soon as another client asks, or none does for a while, the reader may run
 * anywhere again; so too if the client never stays where it was, which is how some schedulers treat
 * a thread that is woken: then a reader beside it would always come too late.
 */
#define _GNU_SOURCE
#include "placement.h"

#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define IN_A_ROW 16          /* requests of one client before it counts as the only one */
#define LOOK_NS 1000000ull   /* at most so often */
#define MAX_MOVES 8          /* looks in a row that found it elsewhere */
#define REST_NS 1000000000ull /* without a place after that */

#define ANYWHERE (-1)

static struct { /* of whose turn it is */
  int client, core;
  unsigned in_a_row, moves;
  uint64_t next_look;
} wanted = {.core = ANYWHERE};

static _Thread_local struct {
  int placed, core;
  cpu_set_t before; /* where it might run */
} mine;

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Where a thread ran last; ANYWHERE: it cannot be told. */
static int core_of(int tid) {
  enum { AFTER_NAME = 37 }; /* the fields of /proc/…/stat up to "processor" */
  char path[40], text[512];
  snprintf(path, sizeof path, "/proc/%d/stat", tid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return ANYWHERE;
  ssize_t n = read(fd, text, sizeof text - 1);
  close(fd);
  text[n > 0 ? n : 0] = 0;
  const char *at = strrchr(text, ')');
  for (int i = 0; at && i < AFTER_NAME; i++)
    at = strchr(at + 1, ' ');
  return at ? atoi(at + 1) : ANYWHERE;
}

static void leave_place(void) {
  if (mine.placed)
    sched_setaffinity(0, sizeof mine.before, &mine.before);
  mine.placed = 0;
}

/* If others have changed where this thread may run, theirs holds. */
static void take_place(int core) {
  cpu_set_t now, one;
  CPU_ZERO(&one);
  if (sched_getaffinity(0, sizeof now, &now))
    return;
  if (mine.placed)
    CPU_SET(mine.core, &one);
  if (!mine.placed || !CPU_EQUAL(&now, &one))
    mine.before = now;
  mine.placed = 0;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  if (CPU_ISSET(core, &mine.before) && CPU_COUNT(&mine.before) > 1 &&
      !sched_setaffinity(0, sizeof one, &one)) {
    mine.placed = 1;
    mine.core = core;
  }
}

static void look(uint64_t now) {
  int core = core_of(wanted.client);
  wanted.moves = core == wanted.core ? 0 : wanted.moves + 1;
  wanted.core = core < CPU_SETSIZE ? core : ANYWHERE;
  wanted.next_look = now + LOOK_NS;
  if (wanted.moves > MAX_MOVES) {
    wanted.moves = 0;
    wanted.core = ANYWHERE;
    wanted.next_look = now + REST_NS;
  }
}

void placement_note(int tid) {
  if (!tid) /* the kernel asks, or somebody whom our pid namespace does not show */
    return;
  if (tid != wanted.client) {
    wanted.client = tid;
    wanted.core = ANYWHERE;
    wanted.in_a_row = 0;
  } else if (!(++wanted.in_a_row % IN_A_ROW)) {
    uint64_t now = now_ns();
    if (now >= wanted.next_look)
      look(now);
  }
  if (wanted.core == ANYWHERE)
    leave_place();
  else if (!mine.placed || mine.core != wanted.core)
    take_place(wanted.core);
}

void placement_leave(void) {
  wanted.core = ANYWHERE;
  wanted.in_a_row = 0;
  leave_place();
}

int placement_is_beside(void) { return mine.placed; }
