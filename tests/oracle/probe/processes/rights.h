// Who pays for locked memory, as processes change: users, privileges, namespaces, CHANGE_PROCESS.

#pragma once

#include "scene.h"

#include <linux/capability.h>
#include <sys/syscall.h>

#define LIMIT 16 // pages

static void limit(int pages) {
  struct rlimit l;
  getrlimit(RLIMIT_MEMLOCK, &l);
  l.rlim_cur = (rlim_t)pages * PAGE;
  if (setrlimit(RLIMIT_MEMLOCK, &l))
    perror("setrlimit");
}

static void become(int uid) {
  if (setresuid(uid, uid, uid))
    perror("setresuid");
}

// How many pages more of its own memory the caller can have pinned.
static void rec_room(const char *n, struct space s) {
  int pages = 0;
  while (pages < 40 && !map_quietly(s, BUF + pages * PAGE, PAGE, 0x8000000 + (u64)pages * PAGE))
    pages++;
  if (pages) {
    struct ioas_unmap u = {sizeof u, s.ioas, 0x8000000, (u64)pages * PAGE};
    if (ioctl(s.f, IOAS_UNMAP, &u))
      perror("unmap");
  }
  rec(n, "", pages, 0);
}

static struct space limited_space(int mode) {
  struct space s = {open("/dev/iommu", O_RDWR), 0};
  option("RLIMIT_MODE", s.f, 0, 0, 0, (u64)mode);
  s.ioas = new_ioas(s.f);
  take_device(s, edu_dev);
  rec_attach("attach", edu_dev, s.ioas);
  map_quietly(s, WATCH, PAGE, watch_iova);
  return s;
}

// In one user's processes, one after the other and in each other.
static void test_limit(void) {
  for (int mode = 0; mode < 2; mode++) {
    section(mode ? "limit-mm" : "limit-user");
    struct space s = limited_space(mode);
    rec_room("root", s);
    limit(LIMIT);
    rec_room("root with a limit", s);
    IN_CHILD {
      become(60000);
      rec_room("user", s);
      rec_map("user maps a half", s, BUF, 8 * PAGE, 0x100000);
      rec_room("is left", s);
      IN_CHILD {
        rec_room("child of the user", s);
        limit(LIMIT + 4);
        rec_room("with another limit", s);
        rec_map("child maps a quarter", s, BUF, 4 * PAGE, 0x200000);
        rec_room("is left", s);
      }
      rec_room("parent, after the child has ended", s);
      rec_unmap("parent unmaps the child's", s, 0x200000, 4 * PAGE);
      rec_room("parent", s);
      copy("copy", s.f, FIXED | RW, s.ioas, s.ioas, 8 * PAGE, 0x300000, 0x100000);
      rec_room("is left", s);
      rec_unmap("unmap the original", s, 0x100000, 8 * PAGE);
      rec_room("is left", s);
      limit(4);
      rec_room("under what is used", s);
      limit(LIMIT);
    }
    IN_CHILD {
      become(60000);
      rec_room("the next process of the user", s);
    }
    rec_unmap("root unmaps", s, 0x300000, 8 * PAGE);
    IN_CHILD {
      become(60000);
      rec_room("the next process of the user", s);
    }
    drop(s);
  }
}

static int child_of_user_maps(void *unused) {
  (void)unused;
  struct space s = *(struct space *)SHARED;
  rec_map("child that shares memory maps", s, BUF + 8 * PAGE, 4 * PAGE, 0x200000);
  rec_room("is left for it", s);
  return 0;
}

static void test_limit_shared(void) {
  for (int mode = 0; mode < 2; mode++) {
    section(mode ? "limit-shared-mm" : "limit-shared-user");
    struct space s = limited_space(mode);
    memcpy(SHARED, &s, sizeof s);
    limit(LIMIT);
    for (int first = 0; first < 2; first++)
      IN_CHILD {
        become(60000);
        if (first)
          rec_map("parent maps", s, BUF, PAGE, 0x100000);
        rec_end("child", sharing_child(child_of_user_maps, 0, CLONE_VFORK));
        rec_room("is left for the parent", s);
        rec_unmap("unmap", s, 0x200000, 4 * PAGE);
        rec_room("is left for the parent", s);
        struct ioas_unmap u = {sizeof u, s.ioas, 0x100000, PAGE};
        if (first)
          ioctl(s.f, IOAS_UNMAP, &u);
      }
    drop(s);
  }
}

// Privileges count when a mapping is made, the limit when it is pinned.
static void test_privileges(void) {
  section("privileges");
  struct space s = new_space();
  take_device(s, edu_dev);
  limit(4);
  IN_CHILD {
    rec_map("root maps", s, BUF, 8 * PAGE, 0x100000);
    become(60000);
    rec_attach("attach as a user", edu_dev, s.ioas);
    rec_room("user", s);
    rec_unmap("unmap root's", s, 0x100000, 8 * PAGE);
    rec_room("user", s);
    rec_detach("detach", edu_dev);
  }
  IN_CHILD {
    if (setresuid(60000, 60000, 0))
      perror("setresuid");
    rec_map("user maps", s, BUF, 8 * PAGE, 0x100000);
    if (setresuid(0, 0, 0))
      perror("setresuid");
    rec_attach("attach as root: too much", edu_dev, s.ioas);
    limit(8);
    rec_attach("attach with another limit", edu_dev, s.ioas);
    limit(4);
    rec_room("root", s);
    if (setresuid(60001, 60000, 0))
      perror("setresuid");
    rec_room("another real user", s);
    if (setresuid(60000, 60001, 0))
      perror("setresuid");
    rec_room("the real user", s);
    if (setresuid(60000, 0, 0))
      perror("setresuid");
    rec_room("effective root", s);
    limit(12);
    if (setresuid(60000, 60001, 0))
      perror("setresuid");
    rec_room("the real user, with more", s);
    rec_detach("detach", edu_dev);
    rec_unmap("unmap", s, 0, ~0ull);
  }
  drop(s);
}

static struct space thread_space;

// Calls the kernel, not the C library, which would change all threads.
static void *is_another_user(void *uid) {
  long id = (long)uid;
  if (syscall(SYS_setresuid, id, id, id))
    perror("setresuid");
  rec_room("thread of a user", thread_space);
  rec_map("maps", thread_space, BUF, 2 * PAGE, 0x100000 + (u64)id * 2 * PAGE);
  rec_room("is left", thread_space);
  return 0;
}

static void set_ipc_lock(int on) {
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct data[2];
  u32 bit = 1u << CAP_IPC_LOCK;
  syscall(SYS_capget, &header, data);
  data[0].effective = on ? data[0].effective | bit : data[0].effective & ~bit;
  if (syscall(SYS_capset, &header, data))
    perror("capset");
}

// Users and capabilities are a thread's, the limit is its process'.
static void test_threads_of_users(void) {
  section("threads-of-users");
  struct space s = thread_space = limited_space(0);
  limit(4);
  pthread_t thread;
  for (long uid = 60000; uid < 60002; uid++) {
    pthread_create(&thread, 0, is_another_user, (void *)uid);
    pthread_join(thread, 0);
    rec_room("first thread", s);
  }
  IN_CHILD {
    become(60000);
    rec_room("another process of the first user", s);
  }
  set_ipc_lock(0);
  rec_room("root without CAP_IPC_LOCK", s);
  rec_map("maps", s, BUF, 3 * PAGE, 0x200000);
  rec_room("is left", s);
  set_ipc_lock(1);
  rec_room("and with it", s);
  IN_CHILD {
    set_ipc_lock(0);
    rec_room("child of root", s);
  }
  drop(s);
}

static void test_user_namespace(void) {
  section("user-namespace");
  struct space s = limited_space(0);
  struct line l = new_line();
  limit(4);
  IN_CHILD {
    rec_room("root", s);
    rec("unshare(CLONE_NEWUSER)", "", unshare(CLONE_NEWUSER), 0);
    rec_room("all capabilities, in another namespace", s);
    option("RLIMIT_MODE", s.f, 0, 0, 0, 0);
    struct space mine = {open("/dev/iommu", O_RDWR), 0};
    rec("open", "", mine.f < 0 ? -1 : 0, 0);
    option("RLIMIT_MODE", mine.f, 0, 0, 0, 1);
    rec_map("map", s, BUF, 2 * PAGE, 0x100000);
    rec_room("is left", s);
    IN_CHILD {
      rec_room("for a child", s);
      rec("unshare(CLONE_NEWUSER)", "", unshare(CLONE_NEWUSER), 0);
      rec_room("one further down", s);
    }
  }
  IN_CHILD {
    become(60000);
    rec("unshare(CLONE_NEWUSER)", "", unshare(CLONE_NEWUSER), 0);
    rec_room("a user's", s);
    prctl(PR_SET_DUMPABLE, 1); // else it is root's
    int uid_map = open("/proc/self/uid_map", O_WRONLY);
    rec("root there", "", write(uid_map, "0 60000 1", 9), 0);
    rec("uid", "", getuid(), 0);
    rec_map("map", s, BUF, PAGE, 0x200000);
    rec_room("is left", s);
    option("RLIMIT_MODE", s.f, 0, 0, 0, 0);
    IN_CHILD {
      rec("unshare(CLONE_NEWUSER)", "", unshare(CLONE_NEWUSER), 0);
      rec_room("one further down", s);
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/user", getpid());
    send_fd(l, 1, open(path, O_RDONLY));
  }
  IN_CHILD {
    rec("setns", "", setns(receive_fd(l, 0), CLONE_NEWUSER), 0);
    rec_room("who was root", s);
  }
  IN_CHILD {
    become(60000);
    rec_room("the same user outside", s);
  }
  drop(s);
}

static void test_pid_namespace(void) {
  section("pid-namespace");
  struct space s = new_dma_space();
  fcntl(edu_dev->fd, F_SETFD, 0);
  fill(70);
  IN_CHILD {
    rec("unshare(CLONE_NEWPID)", "", unshare(CLONE_NEWPID), 0);
    IN_CHILD {
      fill(71);
      rec("pid", "", getpid(), 0);
      rec_map("map", s, BUF, PAGE, 0x10000);
      rec_map("again", s, BUF + PAGE, PAGE, 0x11000);
      rec_dma_read("its memory", 0x10000);
      int access = new_access(s, 0);
      BUF[3] = 72;
      rec_access_read("access", s, access, 0x10000, 0);
      int e = eventfd(0, EFD_NONBLOCK);
      set_irqs("eventfd", edu_dev->fd, 24, TRIGGER | EVENTFD, 1, 0, 1, e, -1);
      set_irqs("ring", edu_dev->fd, 20, TRIGGER | NONE, 1, 0, 1, -1, -1);
      rec_eventfd("it rang", e);
      int d = open(other_dev->cdev, O_RDWR);
      bind_dev("bind", d, 24, 0, s.f, 0, 0);
      int memory = memfd_create("m", 0);
      nobody_cares = ftruncate(memory, 4 * PAGE);
      map_file("map a file", s, memory, 0, PAGE, 0x20000);
      IN_CHILD {
        rec("pid", "", getpid(), 0);
        rec_map("child maps", s, BUF, PAGE, 0x30000);
        exec_self("exec", s);
      }
      limit(4);
      become(60000);
      rec_room("user", s);
    }
  }
  drop(s);
}

// Other views of the file system, and a process that nobody may look at.
static void test_other_views(void) {
  section("other-views");
  struct space s = new_dma_space();
  IN_CHILD {
    fill(73);
    rec("unshare(CLONE_NEWNS)", "", unshare(CLONE_NEWNS | CLONE_FS), 0);
    rec("chroot", "", chroot("/proc/self/fdinfo"), 0);
    rec_map("map", s, BUF, PAGE, 0x10000);
    rec_map("shared memory", s, SHARED, PAGE, 0x11000);
    rec_dma_read("its memory", 0x10000);
    SHARED[7] = 74;
    rec_dma_read("its shared memory", 0x11000);
  }
  IN_CHILD {
    fill(75);
    rec("PR_SET_DUMPABLE", "", prctl(PR_SET_DUMPABLE, 0), 0);
    rec_map("map", s, BUF, PAGE, 0x20000);
    rec_map("again", s, BUF + PAGE, PAGE, 0x21000);
    rec_map("shared memory", s, SHARED + PAGE, PAGE, 0x22000);
    rec_dma_read("its memory", 0x20000);
    become(60000);
    rec_map("as a user", s, BUF + PAGE, PAGE, 0x23000);
    rec_dma_read("its memory", 0x23000);
  }
  drop(s);
}

// ---- CHANGE_PROCESS ---------------------------------------------------------------------------

static int changes(void *unused) {
  (void)unused;
  struct space s = *(struct space *)SHARED;
  change_process("child that shares memory", s);
  rec_room("is left for it", s);
  return 0;
}

static void test_change_process(void) {
  for (int mode = 0; mode < 2; mode++) {
    section(mode ? "change-process-mm" : "change-process-user");
    struct space s = limited_space(mode);
    int memory = memfd_create("m", 0);
    nobody_cares = ftruncate(memory, 64 * PAGE);
    memcpy(SHARED, &s, sizeof s);
    limit(LIMIT);
    change_process("a mapping of memory", s);
    rec_unmap("unmap all", s, 0, ~0ull);
    change_process("nothing to change", s);
    struct line l = new_line();
    pid_t pid = begin_child();
    if (!pid) {
      become(60000);
      map_file("user maps a file", s, memory, 0, 6 * PAGE, 0x100000);
      rec_room("is left", s);
      change_process("to itself", s);
      rec_room("is left", s);
      rec_end("child", sharing_child(changes, 0, CLONE_VFORK));
      rec_room("is left for the parent", s);
      tell(l, 1);
      await(l, 1);
      rec_room("after the other has taken it", s);
      tell(l, 1);
      await(l, 1);
      change_process("and back", s);
      rec_room("is left", s);
      tell(l, 1);
      await(l, 1);
      _exit(0);
    }
    await(l, 0);
    IN_CHILD {
      become(60001);
      limit(4);
      change_process("another user, too poor", s);
      rec_room("has", s);
      limit(8);
      change_process("another user", s);
      rec_room("has left", s);
      tell(l, 0);
      await(l, 0);
    }
    IN_CHILD {
      become(60001);
      limit(8);
      rec_room("the other user's next process", s);
    }
    tell(l, 0);
    await(l, 0);
    kill(pid, SIGKILL);
    rec_end("payer", pid);
    IN_CHILD {
      become(60002);
      change_process("from the dead", s);
      rec_room("is left", s);
    }
    change_process("to root", s);
    IN_CHILD {
      become(60002);
      rec_room("the last payer's user", s);
    }
    rec_unmap("unmap all", s, 0, ~0ull);
    close(memory);
    drop(s);
  }
}
