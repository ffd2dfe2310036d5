// What the sections of processes.c share: children of all kinds, a device that does DMA, what is
// in the memory behind an IOVA.

#pragma once

#include "../j.h" // before what it makes declare GNU's functions

#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "../calls.h"
#include "../sweeps.h"
#include "../vdev.h"

#define PAGE 4096
#define WATCH ((u8 *)0x130000000000ull) // a shared page of all processes, mapped at watch_iova
#define SHARED ((u8 *)0x140000000000ull) // 16 pages that are shared with children, too
#define STACKS ((u8 *)0x150000000000ull) // of children that share our memory
#define ARENA_PAGES 256                  // private pages at BUF

static u64 watch_iova = 0xf000000; // another one after an exec
static ssize_t nobody_cares; // a result that cannot be anything else, or shows in the next record

// ---- memory ---------------------------------------------------------------------------------

static void *map_pages(u8 *at, int pages, int flags, int fd) {
  void *m = mmap(at, (size_t)pages * PAGE, 3, flags | MAP_FIXED, fd, 0);
  if (m != at) {
    perror("mmap");
    exit(1);
  }
  return m;
}

// Private pages at BUF, all bytes `value`, touched.
static void fill(u8 value) {
  memset(BUF, value, ARENA_PAGES * PAGE);
}

static void make_memory(void) {
  map_pages(BUF, ARENA_PAGES, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  map_pages(WATCH, 1, MAP_SHARED | MAP_ANONYMOUS, -1);
  map_pages(SHARED, 16, MAP_SHARED | MAP_ANONYMOUS, -1);
}

// ---- children -------------------------------------------------------------------------------

// How a child ended: its status, or 1000 and the signal.
static void rec_end(const char *n, pid_t pid) {
  int status = -1;
  waitpid(pid, &status, 0);
  rec(n, "", WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status), 0);
}

static pid_t begin_child(void) {
  fflush(stdout);
  pid_t pid = fork();
  if (!pid)
    prctl(PR_SET_PDEATHSIG, SIGKILL);
  return pid;
}

// What follows is done by a child, to its end, before the parent goes on.
#define IN_CHILD                                                                                   \
  for (pid_t pid_ = begin_child(); pid_ == 0 || (rec_end("child", pid_), 0); fflush(stdout), _exit(0))

// A child that shares our memory does `run`; `flags` of clone() besides CLONE_VM. Its number.
static pid_t sharing_child(int (*run)(void *), void *arg, int flags) {
  static int n;
  u8 *stack = map_pages(STACKS + 64 * PAGE * n++, 32, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  fflush(stdout);
  return clone(run, stack + 32 * PAGE, CLONE_VM | SIGCHLD | flags, arg);
}

// Both ways between parent and child: who tells wakes who awaits.
struct line {
  int ends[2];
};

static struct line new_line(void) {
  struct line l;
  struct timeval patience = {10, 0};
  if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, l.ends))
    perror("socketpair");
  for (int end = 0; end < 2; end++)
    setsockopt(l.ends[end], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  return l;
}

static void tell(struct line l, int end) {
  if (write(l.ends[end], "!", 1) != 1)
    perror("tell");
}

static void await(struct line l, int end) {
  char byte;
  if (read(l.ends[end], &byte, 1) != 1)
    perror("await");
}

static void send_fd(struct line l, int end, int fd) {
  char byte = 0, control[CMSG_SPACE(sizeof fd)] = {0};
  struct iovec data = {&byte, 1};
  struct msghdr m = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
                     .msg_controllen = sizeof control};
  struct cmsghdr *c = CMSG_FIRSTHDR(&m);
  *c = (struct cmsghdr){CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS};
  memcpy(CMSG_DATA(c), &fd, sizeof fd);
  if (sendmsg(l.ends[end], &m, 0) != 1)
    perror("sendmsg");
}

static int receive_fd(struct line l, int end) {
  char byte, control[CMSG_SPACE(sizeof(int))];
  struct iovec data = {&byte, 1};
  struct msghdr m = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
                     .msg_controllen = sizeof control};
  int fd = -1;
  if (recvmsg(l.ends[end], &m, 0) == 1 && CMSG_FIRSTHDR(&m))
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
  return fd;
}

// ---- a device -------------------------------------------------------------------------------

static struct vdev *edu_dev, *other_dev; // the one does DMA

struct space {
  int f;
  u32 ioas;
};

// An iommufd with an IOAS.
static struct space new_space(void) {
  struct space s = {open("/dev/iommu", O_RDWR), 0};
  s.ioas = new_ioas(s.f);
  return s;
}

// A device of the space, not yet attached.
static void take_device(struct space s, struct vdev *d) {
  struct bind b = {24, 0, s.f};
  u16 command = 6;
  d->fd = open(d->cdev, O_RDWR);
  if (d->fd < 0 || ioctl(d->fd, V_BIND, &b))
    rec("device", "", -1, 0);
  d->devid = b.out_devid;
  if (pwrite(d->fd, &command, 2, region(7) + 4) != 2)
    rec("bus master", "", -1, 0);
}

static int map_quietly(struct space s, void *va, u64 length, u64 iova) {
  struct ioas_map m = {sizeof m, FIXED | RW, s.ioas, 0, (u64)va, length, iova};
  return ioctl(s.f, IOAS_MAP, &m);
}

// With the device, which sees WATCH, attached.
static struct space new_dma_space(void) {
  struct space s = new_space();
  take_device(s, edu_dev);
  struct attach a = {16, 0, s.ioas};
  if (ioctl(edu_dev->fd, V_ATTACH, &a) || map_quietly(s, WATCH, PAGE, watch_iova))
    rec("attach", "", -1, 0);
  return s;
}

static void drop(struct space s) {
  if (edu_dev->fd >= 0)
    close(edu_dev->fd);
  if (other_dev->fd >= 0)
    close(other_dev->fd);
  edu_dev->fd = other_dev->fd = -1;
  close(s.f);
}

// Records what the device reads at an IOVA, as the result; 238: it got nothing.
static void rec_dma_read(const char *n, u64 iova) {
  memset(WATCH, 0xee, 16);
  edu_run_dma(edu_dev, watch_iova, 0x40000, 16, 1);
  edu_run_dma(edu_dev, iova, 0x40000, 16, 1);
  memset(WATCH, 0, 16);
  edu_run_dma(edu_dev, 0x40000, watch_iova, 16, 3);
  rec(n, "", WATCH[7], 0);
}

static void dma_write(u64 iova, u8 value) {
  memset(WATCH, value, 16);
  edu_run_dma(edu_dev, watch_iova, 0x40000, 16, 1);
  edu_run_dma(edu_dev, 0x40000, iova, 16, 3);
}

// ---- an access ------------------------------------------------------------------------------

// The test ioctl, as far as it is about accesses.
struct test_cmd {
  u32 size, op, id, resv;
  union {
    struct {
      u32 out_fd, flags;
    } create;
    struct {
      u32 flags, out_id;
      u64 iova, length, uptr;
    } pages;
    struct {
      u64 iova, length, uptr;
      u32 flags;
    } rw;
    u32 pages_id, ioas_id;
    u8 room[56]; // to the end of the kernel's structure
  };
};

#define TEST_CMD IOC(0xa0)
#define RW_WRITE 1
#define RW_SLOW 4

static int test_cmd(int f, u32 op, u32 id, struct test_cmd *c) {
  c->size = sizeof *c;
  c->op = op;
  c->id = id;
  return ioctl(f, TEST_CMD, c);
}

static int new_access(struct space s, u32 flags) {
  struct test_cmd c = {.create = {0, flags}};
  return test_cmd(s.f, 5, s.ioas, &c) ? -1 : (int)c.create.out_fd;
}

// Records what an access reads at an IOVA: a byte, or the error.
static void rec_access_read(const char *n, struct space s, int access, u64 iova, u32 flags) {
  u8 bytes[8] = {0xee, 0xee, 0xee, 0xee};
  struct test_cmd c = {.rw = {iova, sizeof bytes, (u64)bytes, flags}};
  int r = test_cmd(s.f, 8, access, &c);
  rec(n, "", r ? r : bytes[3], 0);
}

static int access_write(struct space s, int access, u64 iova, u8 value, u32 flags) {
  u8 bytes[8];
  memset(bytes, value, sizeof bytes);
  struct test_cmd c = {.rw = {iova, sizeof bytes, (u64)bytes, RW_WRITE | flags}};
  return test_cmd(s.f, 8, access, &c);
}

static u32 pin_id; // of the last pin

// From the beginning of the n-th mapping of the IOAS on, so that nobody compares it with memory of
// the caller's (SYZ).
static int rec_access_pin(const char *n, struct space s, int access, u32 nth, u64 offset,
                          u64 length) {
  struct test_cmd c = {.pages = {1 << 16, 0, offset << 32 | nth, length, 0}};
  int r = test_cmd(s.f, 7, access, &c);
  pin_id = c.pages.out_id;
  return rec(n, "", r, 0);
}

static int rec_access_unpin(const char *n, struct space s, int access, u32 id) {
  struct test_cmd c = {.pages_id = id};
  return rec(n, "", test_cmd(s.f, 6, access, &c), 0);
}

// ---- recorded calls with a space ------------------------------------------------------------

static int rec_map(const char *n, struct space s, void *va, u64 length, u64 iova) {
  return map(n, s.f, FIXED | RW, s.ioas, va, length, iova);
}

static int rec_unmap(const char *n, struct space s, u64 iova, u64 length) {
  return unmap(n, s.f, s.ioas, iova, length);
}

static int rec_attach(const char *n, struct vdev *d, u32 pt) {
  struct attach a = {16, 0, pt};
  return rec(n, "", ioctl(d->fd, V_ATTACH, &a), 0);
}

static int rec_detach(const char *n, struct vdev *d) {
  struct detach a = {12};
  return rec(n, "", ioctl(d->fd, V_DETACH, &a), 0);
}

static int map_file(const char *n, struct space s, int fd, u64 start, u64 length, u64 iova) {
  struct map_file m = {sizeof m, FIXED | RW, s.ioas, fd, start, length, iova};
  return rec(n, "", ioctl(s.f, IOAS_MAP_FILE, &m), 0);
}

static int change_process(const char *n, struct space s) {
  struct change_process c = {8};
  return rec(n, "", ioctl(s.f, CHANGE_PROCESS, &c), 0);
}
