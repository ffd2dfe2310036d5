// Who pays for locked memory, as processes change: users, privileges, namespaces, CHANGE_PROCESS.

#pragma once

#include "scene.h"

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
