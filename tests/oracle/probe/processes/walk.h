// A random walk: processes fork, share memory, execute, end, change their user, map, copy and unmap,
// while a device is attached and detached and reads what is mapped. The steps follow from a seed and
// from the answers. What Linux cannot have from us is left out: private memory of the dead.

#pragma once

#include "scene.h"

#include <sys/syscall.h>

#define N_WORKERS 5
#define N_LINES 200 // as many workers may there be in a walk, one after the other
#define N_SLOTS 12  // places of the IOAS, a mapping of up to four pages in each
#define N_PAGES 8   // of each worker, at BUF; as many are shared by all, at SHARED
#define SLOT_IOVA(i) (0x100000 + (u64)(i) * 0x10000)

enum op {
  OP_READY,
  OP_FORK,
  OP_SHARE,
  OP_EXEC,
  OP_EXIT,
  OP_STORE,
  OP_MAP,
  OP_MAP_SHARED,
  OP_UNMAP,
  OP_COPY,
  OP_USER,
  OP_LIMIT,
  OP_CHANGE_PROCESS
};

static const char *const op_names[] = {"ready", "fork",       "share", "exec", "exit", "store", "map",
                                       "map shared", "unmap", "copy",  "user", "limit", "change process"};

struct order {
  int op, a, b, c;
};

static struct line lines[N_LINES];
static struct space walk_space;

// Where all workers have these, after an exec too.
#define SHARED_FD 500
#define LINE_FD(i) (520 + (i))

// ---- workers --------------------------------------------------------------------------------

static void work(int me);

static int work_sharing(void *me) {
  work((int)(intptr_t)me);
  return 0;
}

static long become_user(int uid) {
  return syscall(SYS_setresuid, uid, uid, uid);
}

static long spawn(struct order o) {
  if (o.op == OP_SHARE)
    return sharing_child(work_sharing, (void *)(intptr_t)o.a, 0);
  long pid = syscall(SYS_fork);
  if (!pid) {
    work(o.a);
    _exit(0);
  }
  return pid;
}

static void execute(int me) {
  char words[3][16];
  int numbers[] = {me, walk_space.f, (int)walk_space.ioas};
  for (int i = 0; i < 3; i++)
    snprintf(words[i], 16, "%d", numbers[i]);
  execl("/proc/self/exe", "processes", "walker", words[0], words[1], words[2], (char *)0);
  _exit(1);
}

static long set_limit(int pages) {
  struct rlimit l;
  getrlimit(RLIMIT_MEMLOCK, &l);
  l.rlim_cur = (rlim_t)pages * PAGE;
  return setrlimit(RLIMIT_MEMLOCK, &l);
}

static long obey(int me, struct order o) {
  struct space s = walk_space;
  struct ioas_unmap u = {sizeof u, s.ioas, SLOT_IOVA(o.a), 0x10000};
  struct ioas_copy c = {sizeof c,         FIXED | RW,       s.ioas, s.ioas, (u64)o.c * PAGE,
                        SLOT_IOVA(o.b), SLOT_IOVA(o.a)};
  switch (o.op) {
  case OP_FORK:
  case OP_SHARE:
    return spawn(o);
  case OP_EXEC:
    execute(me);
    return -1;
  case OP_STORE:
    BUF[o.a * PAGE + 7] = (u8)o.b;
    return 0;
  case OP_MAP:
    return map_quietly(s, BUF + o.b * PAGE, (u64)o.c * PAGE, SLOT_IOVA(o.a));
  case OP_MAP_SHARED:
    return map_quietly(s, SHARED + o.b * PAGE, (u64)o.c * PAGE, SLOT_IOVA(o.a));
  case OP_UNMAP:
    return ioctl(s.f, IOAS_UNMAP, &u);
  case OP_COPY:
    return ioctl(s.f, IOAS_COPY, &c);
  case OP_USER:
    return become_user(o.a);
  case OP_LIMIT:
    return set_limit(o.a);
  case OP_CHANGE_PROCESS:
    return ioctl(s.f, CHANGE_PROCESS, &(struct change_process){8, 0});
  }
  return 0;
}

// Obeys until it is told to end. The answer: a result, or a negative errno.
static void work(int me) {
  struct order o;
  long result = 0;
  int fd = LINE_FD(me);
  for (;;) {
    if (write(fd, &result, sizeof result) != sizeof result || read(fd, &o, sizeof o) != sizeof o ||
        o.op == OP_EXIT)
      syscall(SYS_exit, 0);
    result = obey(me, o);
    if (result < 0)
      result = -errno;
  }
}

// What an executed worker goes on with.
static void walk_on(char **argv) {
  int me = atoi(argv[2]);
  walk_space = (struct space){atoi(argv[3]), (u32)atoi(argv[4])};
  memset(BUF, 200, N_PAGES * PAGE);
  map_pages(SHARED, 16, MAP_SHARED, SHARED_FD);
  work(me);
}

// ---- the walk -------------------------------------------------------------------------------

static struct worker {
  int line, pidfd, memory, is_user;
} workers[N_WORKERS];

static int n_workers, n_lines, n_memories;
static int slot_memory[N_SLOTS]; // whose private memory is there; 0: shared, or nothing
static int is_attached;
static u64 walk_state;

static int any(int n) { // splitmix64
  u64 z = walk_state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return (int)((z ^ z >> 31) % (u64)n);
}

static long answer_of(const struct worker *w) {
  long result = -EIO;
  if (read(lines[w->line].ends[0], &result, sizeof result) != sizeof result)
    return -EIO;
  return result;
}

static long tell_worker(const struct worker *w, struct order o) {
  if (write(lines[w->line].ends[0], &o, sizeof o) != sizeof o)
    return -EIO;
  return o.op == OP_EXIT ? 0 : answer_of(w);
}

static void rec_step(const struct worker *w, struct order o, long result) {
  char in[96];
  snprintf(in, sizeof in, "\"worker\":%d,\"a\":%d,\"b\":%d,\"c\":%d", w->line, o.a, o.b, o.c);
  errno = result < 0 ? (int)-result : 0;
  rec(op_names[o.op], in, result < 0 ? -1 : result, 0);
}

static int lives(int memory) {
  for (int i = 0; i < n_workers; i++)
    if (workers[i].memory == memory)
      return 1;
  return !memory;
}

static void add_worker(long pid, int memory, int is_user) {
  struct worker *w = &workers[n_workers++];
  *w = (struct worker){n_lines++, (int)syscall(SYS_pidfd_open, pid, 0), memory, is_user};
  answer_of(w);
}

static void let_spawn(struct worker *w, int op) {
  struct order o = {op, n_lines, 0, 0};
  if (n_workers == N_WORKERS || n_lines == N_LINES)
    return;
  long pid = tell_worker(w, o);
  rec_step(w, o, pid < 0 ? pid : 0);
  if (pid > 0)
    add_worker(pid, op == OP_SHARE ? w->memory : ++n_memories, w->is_user);
}

static void let_end(struct worker *w) {
  struct order o = {OP_EXIT, 0, 0, 0};
  if (n_workers == 1)
    return;
  rec_step(w, o, tell_worker(w, o));
  struct pollfd p = {w->pidfd, POLLIN, 0};
  poll(&p, 1, 10000);
  close(w->pidfd);
  *w = workers[--n_workers];
}

static void let_execute(struct worker *w) {
  struct order o = {OP_EXEC, 0, 0, 0};
  rec_step(w, o, tell_worker(w, o));
  w->memory = ++n_memories;
}

static void let_map(const struct worker *w, int op) {
  int slot = any(N_SLOTS), page = any(N_PAGES);
  struct order o = {op, slot, page, 1 + any(page + 4 > N_PAGES ? N_PAGES - page : 4)};
  long result = tell_worker(w, o);
  rec_step(w, o, result);
  if (!result)
    slot_memory[slot] = op == OP_MAP ? w->memory : 0;
}

static void let_unmap(const struct worker *w) {
  struct order o = {OP_UNMAP, any(N_SLOTS), 0, 0};
  rec_step(w, o, tell_worker(w, o));
}

static void let_copy(const struct worker *w) {
  struct order o = {OP_COPY, any(N_SLOTS), any(N_SLOTS), 1 + any(2)};
  long result = tell_worker(w, o);
  rec_step(w, o, result);
  if (!result)
    slot_memory[o.b] = slot_memory[o.a];
}

static void let_do(struct worker *w, struct order o) {
  rec_step(w, o, tell_worker(w, o));
}

static void read_slot(void) {
  int slot = any(N_SLOTS);
  if (is_attached && lives(slot_memory[slot]))
    rec_dma_read(named("read slot %d", slot), SLOT_IOVA(slot));
}

// What the dead have mapped keeps it from being attached, so that has to go.
static void attach_space(void) {
  is_attached = !rec_attach("attach", edu_dev, walk_space.ioas);
  for (int i = 0; i < N_SLOTS && !is_attached; i++)
    if (!lives(slot_memory[i]) || !any(3)) {
      rec_unmap("unmap", walk_space, SLOT_IOVA(i), 0x10000);
      slot_memory[i] = 0;
    }
  if (!is_attached)
    is_attached = !rec_attach("attach again", edu_dev, walk_space.ioas);
}

static void attach_or_detach(void) {
  if (is_attached)
    is_attached = rec_detach("detach", edu_dev) != 0;
  else
    attach_space();
}

static void change_rights(struct worker *w) {
  if (!w->is_user && any(3)) {
    let_do(w, (struct order){OP_USER, 60000 + any(2), 0, 0});
    w->is_user = 1;
  } else {
    let_do(w, (struct order){OP_LIMIT, any(24), 0, 0});
  }
}

static void step(void) {
  struct worker *w = &workers[any(n_workers)];
  int n = any(100);
  if (n < 26)
    let_map(w, OP_MAP);
  else if (n < 36)
    let_map(w, OP_MAP_SHARED);
  else if (n < 52)
    let_unmap(w);
  else if (n < 60)
    let_copy(w);
  else if (n < 68)
    let_do(w, (struct order){OP_STORE, any(N_PAGES), any(200), 0});
  else if (n < 78)
    read_slot();
  else if (n < 83)
    let_spawn(w, OP_FORK);
  else if (n < 87)
    let_spawn(w, OP_SHARE);
  else if (n < 90)
    let_execute(w);
  else if (n < 94)
    let_end(w);
  else if (n < 96)
    change_rights(w);
  else if (n < 97)
    let_do(w, (struct order){OP_CHANGE_PROCESS, 0, 0, 0});
  else if (!is_attached || n < 98)
    attach_or_detach();
}

static void start_walk(u64 seed, int mode) {
  walk_state = seed;
  int memory = memfd_create("shared", 0);
  nobody_cares = ftruncate(memory, 16 * PAGE);
  dup2(memory, SHARED_FD);
  map_pages(SHARED, 16, MAP_SHARED, SHARED_FD);
  for (int i = 0; i < N_LINES; i++) {
    lines[i] = new_line();
    dup2(lines[i].ends[1], LINE_FD(i));
    close(lines[i].ends[1]);
  }
  walk_space.f = open("/dev/iommu", O_RDWR);
  option("RLIMIT_MODE", walk_space.f, 0, 0, 0, (u64)mode);
  walk_space.ioas = new_ioas(walk_space.f);
  take_device(walk_space, edu_dev);
  map_quietly(walk_space, WATCH, PAGE, watch_iova);
  long pid = syscall(SYS_fork);
  if (!pid) {
    work(0);
    _exit(0);
  }
  n_lines = n_workers = 0;
  add_worker(pid, ++n_memories, 0);
}

static void walk(u64 seed, int n_steps) {
  section("walk");
  start_walk(seed, (int)(seed & 1));
  for (int i = 0; i < n_steps; i++)
    step();
  for (int i = 0; i < n_workers; i++)
    tell_worker(&workers[i], (struct order){OP_EXIT, 0, 0, 0});
  drop(walk_space);
}
