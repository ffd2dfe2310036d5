// Whose memory a mapping is, and for how long: fork, exec, clone, exit.

#pragma once

#include "scene.h"

// ---- fork and exit --------------------------------------------------------------------------

static void test_fork_maps(void) {
  section("fork-maps");
  struct space s = new_dma_space();
  fill(1);
  rec_map("parent maps", s, BUF, PAGE, 0x10000);
  IN_CHILD {
    fill(2);
    rec_map("child maps the same address", s, BUF, PAGE, 0x20000);
    rec_dma_read("parent's page, seen by the child", 0x10000);
    rec_dma_read("child's page, seen by the child", 0x20000);
    dma_write(0x20000, 9);
    rec("child sees what is written", "", BUF[7], 0);
    rec_unmap("child unmaps the parent's", s, 0x10000, PAGE);
    rec_map("and maps its own", s, BUF + PAGE, PAGE, 0x10000);
    rec_dma_read("which is seen", 0x10000);
    rec_unmap("and unmapped", s, 0x10000, PAGE);
  }
  rec("parent does not", "", BUF[7], 0);
  rec_dma_read("page of the child that ended", 0x20000);
  rec_unmap("parent unmaps the child's", s, 0x20000, PAGE);
  rec_map("parent maps anew", s, BUF, PAGE, 0x20000);
  rec_dma_read("its page", 0x20000);
  IN_CHILD {
    rec_map("child maps shared memory", s, SHARED, PAGE, 0x30000);
    SHARED[7] = 33;
  }
  rec_dma_read("shared memory of the child that ended", 0x30000);
  dma_write(0x30000, 34);
  rec("is the parent's, too", "", SHARED[7], 0);
  IN_CHILD {
    map_pages(BUF, 1, MAP_SHARED | MAP_ANONYMOUS, -1);
    BUF[7] = 35;
    rec_map("child maps shared memory of its own", s, BUF, PAGE, 0x40000);
  }
  rec_dma_read("which nobody else has, after its end", 0x40000);
  drop(s);
}

static void test_exit(void) {
  section("exit");
  struct space s = new_space();
  take_device(s, edu_dev);
  fill(3);
  IN_CHILD {
    rec_map("child maps, no domain", s, BUF, PAGE, 0x10000);
  }
  rec_attach("attach: its memory is gone", edu_dev, s.ioas);
  rec_unmap("unmap", s, 0x10000, PAGE);
  IN_CHILD {
    rec_map("child maps shared memory", s, SHARED, PAGE, 0x10000);
  }
  rec_attach("attach: the mapping is gone, too", edu_dev, s.ioas);
  u32 other = new_ioas(s.f);
  copy("copy of what nobody pins", s.f, FIXED | RW, other, s.ioas, PAGE, 0x20000, 0x10000);
  rec_attach("attach to the copy", edu_dev, other);
  unmap("unmap", s.f, s.ioas, 0x10000, PAGE);
  unmap("unmap the copy", s.f, other, 0, ~0ull);
  rec_attach("attach to nothing", edu_dev, s.ioas);
  map_quietly(s, WATCH, PAGE, watch_iova);
  IN_CHILD {
    SHARED[7] = 44;
    rec_map("child maps shared memory, pinned", s, SHARED, 2 * PAGE, 0x10000);
  }
  copy("copy of what is pinned", s.f, FIXED | RW, other, s.ioas, 2 * PAGE, 0x20000, 0x10000);
  copy("within the IOAS", s.f, FIXED | RW, s.ioas, s.ioas, PAGE, 0x30000, 0x10000);
  rec_dma_read("the copy", 0x30000);
  take_device(s, other_dev);
  rec_attach("another domain for the copy", other_dev, other);
  rec_unmap("unmap the original", s, 0x10000, 2 * PAGE);
  rec_dma_read("the copy", 0x30000);
  rec_map("map again what it was", s, SHARED, 2 * PAGE, 0x10000);
  rec_detach("detach the other", other_dev);
  rec_attach("and attach it again: nobody pins the second page", other_dev, other);
  rec_unmap("unmap all", s, 0, ~0ull);
  rec_attach("attach it again: nobody pins any", other_dev, other);
  drop(s);
}

static void test_exit_private(void) {
  section("exit-private");
  struct space s = new_dma_space();
  u32 other = new_ioas(s.f);
  IN_CHILD {
    fill(5);
    rec_map("child maps", s, BUF, 2 * PAGE, 0x10000);
    rec_map("sixteen pages", s, BUF, 16 * PAGE, 0x100000);
  }
  copy("copy of what is pinned", s.f, FIXED | RW, other, s.ioas, 2 * PAGE, 0x20000, 0x10000);
  copy("part of it", s.f, FIXED | RD, other, s.ioas, PAGE, 0x40000, 0x11000);
  take_device(s, other_dev);
  rec_attach("another domain for the copies", other_dev, other);
  rec_detach("detach", other_dev);
  rec_attach("attach again", other_dev, other);
  rec_unmap("unmap the original", s, 0x10000, 2 * PAGE);
  rec_detach("detach the last that pins", other_dev);
  rec_attach("attach", other_dev, other);
  copy("copy back", s.f, FIXED | RW, s.ioas, other, 2 * PAGE, 0x10000, 0x20000);
  rec_unmap("unmap a part of sixteen", s, 0x100000, PAGE);
  rec_unmap("unmap sixteen", s, 0x100000, 16 * PAGE);
  drop(s);
}

static void test_exit_access(void) {
  section("exit-access");
  struct space s = new_space();
  int plain = new_access(s, 0), pins = new_access(s, 1);
  IN_CHILD {
    fill(6);
    rec_map("child maps", s, BUF, 4 * PAGE, 0x10000);
    map_pages(BUF + 16 * PAGE, 4, MAP_SHARED | MAP_ANONYMOUS, -1);
    BUF[16 * PAGE + 3] = 7;
    rec_map("child maps shared memory", s, BUF + 16 * PAGE, 4 * PAGE, 0x20000);
    rec_access_read("child reads", s, plain, 0x10000, 0);
    rec_access_read("the slow way", s, plain, 0x10000, RW_SLOW);
    rec("child writes", "", access_write(s, plain, 0x11000, 8, 0), 0);
    rec("it sees that", "", BUF[PAGE], 0);
    IN_CHILD {
      memset(BUF, 77, 4 * PAGE);
      rec_access_read("grandchild reads its parent's memory", s, plain, 0x10000, 0);
      rec_access_read("by a pinning access", s, pins, 0x11000, 0);
      rec("grandchild writes there", "", access_write(s, plain, 0x12000, 9, 0), 0);
      rec("it does not see that", "", BUF[2 * PAGE], 0);
      rec("over a border", "", access_write(s, plain, 0x12ffc, 10, 0), 0);
    }
    rec("child sees it", "", BUF[2 * PAGE], "\"border\":%d", BUF[3 * PAGE]);
    rec_access_pin("child pins shared memory", s, pins, 1, 0, PAGE);
  }
  rec_access_read("read of memory that is gone", s, plain, 0x10000, 0);
  rec_access_read("the slow way", s, plain, 0x10000, RW_SLOW);
  rec_access_read("over a border", s, plain, 0x10ffc, 0);
  rec("write", "", access_write(s, plain, 0x10000, 1, 0), 0);
  rec_access_pin("pin it", s, pins, 0, 0, PAGE);
  rec_access_read("shared memory that is pinned", s, plain, 0x20000, 0);
  rec_access_read("that is not", s, plain, 0x21000, 0);
  rec_access_pin("pin what is pinned", s, pins, 1, 0, PAGE);
  rec_access_pin("pin what is not", s, pins, 1, PAGE, PAGE);
  rec_access_pin("both", s, pins, 1, 0, 2 * PAGE);
  rec_access_unpin("unpin by another process", s, pins, pin_id);
  rec_unmap("unmap all", s, 0, ~0ull);
  close(plain);
  close(pins);
  drop(s);
}

// ---- exec -----------------------------------------------------------------------------------

static void exec_self(const char *what, struct space s) {
  char numbers[3][16];
  int words[] = {s.f, (int)s.ioas, edu_dev->fd};
  for (int i = 0; i < 3; i++)
    snprintf(numbers[i], 16, "%d", words[i]);
  fflush(stdout);
  execl("/proc/self/exe", "processes", what, numbers[0], numbers[1], numbers[2], (char *)0);
  perror("exec");
  _exit(1);
}

// The program that exec began: maps the same address as before.
static void after_exec(struct space s) {
  fill(60);
  rec_map("new program maps", s, BUF, PAGE, 0x60000);
  rec_map("and again", s, BUF + PAGE, PAGE, 0x61000);
  BUF[PAGE + 7] = 61;
  dma_write(0x60000, 62);
  rec("it sees what is written", "", BUF[7], 0);
  BUF[7] = 63;
  rec_map("shared memory", s, map_pages(BUF + 8 * PAGE, 1, MAP_SHARED | MAP_ANONYMOUS, -1), PAGE,
          0x62000);
  BUF[8 * PAGE + 7] = 64;
}

static void test_exec(void) {
  section("exec");
  struct space s = new_dma_space();
  fcntl(edu_dev->fd, F_SETFD, 0);
  fill(4);
  IN_CHILD {
    fill(5);
    rec_map("child maps", s, BUF, PAGE, 0x10000);
    rec_map("and again", s, BUF, PAGE, 0x11000);
    rec_map("shared memory", s, SHARED, PAGE, 0x12000);
    exec_self("exec", s);
  }
  SHARED[7] = 45;
  rec_dma_read("shared memory from before the exec", 0x12000);
  rec_dma_read("shared memory of the new program, which ended", 0x62000);
  rec_unmap("unmap what was there before the exec", s, 0x10000, 2 * PAGE);
  rec_unmap("unmap what came after", s, 0x60000, 2 * PAGE);
  drop(s);
}

// ---- processes that share memory ------------------------------------------------------------

static struct space shared_space;
static struct line shared_line;

static int maps_and_execs(void *unused) {
  (void)unused;
  rec_map("child that shares memory maps", shared_space, BUF, PAGE, 0x10000);
  rec_map("again", shared_space, BUF + PAGE, PAGE, 0x11000);
  BUF[7] = 11;
  exec_self("exec", shared_space);
  return 0;
}

static void test_vfork_exec(void) {
  section("vfork-exec");
  for (int registered = 0; registered < 2; registered++) {
    struct space s = shared_space = new_dma_space();
    fill(10);
    if (registered)
      rec_map("parent maps", s, BUF + 2 * PAGE, PAGE, 0x20000);
    pid_t pid = sharing_child(maps_and_execs, 0, CLONE_VFORK);
    rec_end("child", pid);
    rec_dma_read("page that the child mapped is ours", 0x10000);
    rec("not written to", "", BUF[7], 0);
    dma_write(0x11000, 12);
    rec("written to", "", BUF[PAGE + 7], 0);
    rec_map("parent maps", s, BUF + 3 * PAGE, PAGE, 0x21000);
    dma_write(0x21000, 13);
    rec("written to", "", BUF[3 * PAGE + 7], 0);
    rec_dma_read("shared memory of the new program", 0x62000);
    drop(s);
  }
}

static int waits(void *unused) {
  (void)unused;
  await(shared_line, 1);
  return 0;
}

static int maps_in_the_end(void *unused) {
  (void)unused;
  await(shared_line, 1);
  rec_map("child whose parent has another program maps", shared_space, BUF + 4 * PAGE, PAGE,
          0x40000);
  BUF[4 * PAGE + 7] = 14;
  rec_dma_read("its memory", 0x40000);
  dma_write(0x10000, 15);
  rec("what the parent has mapped before is the child's memory", "", BUF[7], 0);
  return 0;
}

// The parent calls exec, and the child goes on in the memory that it had.
static void test_exec_of_the_parent(void) {
  section("parent-exec");
  for (int maps = 0; maps < 2; maps++) {
    struct space s = shared_space = new_dma_space();
    fcntl(edu_dev->fd, F_SETFD, 0);
    shared_line = new_line();
    IN_CHILD {
      fill(16);
      rec_map("parent maps", s, BUF, PAGE, 0x10000);
      rec_map("again", s, BUF + PAGE, PAGE, 0x11000);
      sharing_child(maps ? maps_in_the_end : waits, 0, 0);
      exec_self("exec", s);
    }
    tell(shared_line, 0);
    close(shared_line.ends[1]);
    char byte;
    nobody_cares = read(shared_line.ends[0], &byte, 1); // until the child, too, has ended
    close(shared_line.ends[0]);
    rec_unmap("unmap all that is left", s, 0, ~0ull);
    drop(s);
  }
}

static int maps_alone(void *unused) {
  (void)unused;
  struct space s = shared_space;
  await(shared_line, 1);
  for (int i = 0; i < 3; i++)
    rec_map("child whose parent has ended maps", s, BUF + i * PAGE, PAGE, 0x20000 + i * PAGE);
  BUF[7] = 18;
  rec_dma_read("its memory", 0x20000);
  rec_dma_read("what the parent has mapped is the same memory", 0x10000);
  rec_map("shared memory", s, map_pages(BUF + 8 * PAGE, 1, MAP_SHARED | MAP_ANONYMOUS, -1), PAGE,
          0x30000);
  BUF[8 * PAGE + 7] = 19;
  munmap(BUF + 8 * PAGE, PAGE);
  rec_dma_read("which is unmapped", 0x30000);
  return 0;
}

static void test_exit_of_the_parent(void) {
  section("parent-exit");
  for (int maps = 0; maps < 2; maps++) {
    struct space s = shared_space = new_dma_space();
    shared_line = new_line();
    IN_CHILD {
      fill(17);
      if (maps)
        rec_map("parent maps", s, BUF, PAGE, 0x10000);
      sharing_child(maps_alone, 0, 0);
    }
    tell(shared_line, 0);
    close(shared_line.ends[1]);
    char byte;
    nobody_cares = read(shared_line.ends[0], &byte, 1);
    close(shared_line.ends[0]);
    rec_dma_read("shared memory of the last, which ended", 0x30000);
    drop(s);
  }
}

// ---- threads --------------------------------------------------------------------------------

static void *maps_many(void *number) {
  int me = (int)(intptr_t)number;
  long failed = 0;
  for (int i = 0; i < 200; i++) {
    u64 iova = 0x1000000 * (u64)(me + 1) + (u64)(i % 16) * PAGE;
    struct ioas_unmap u = {sizeof u, shared_space.ioas, iova, PAGE};
    failed += !!map_quietly(shared_space, BUF + me * PAGE, PAGE, iova);
    failed += ioctl(shared_space.f, IOAS_UNMAP, &u) || u.length != PAGE;
  }
  return (void *)failed;
}

static void *outlives(void *unused) {
  (void)unused;
  usleep(50000); // the first thread has ended by then; if not, the records are the same
  rec_map("thread maps after the end of the first one", shared_space, BUF, PAGE, 0x10000);
  rec_map("again", shared_space, BUF + PAGE, PAGE, 0x11000);
  BUF[7] = 21;
  rec_dma_read("its memory", 0x10000);
  rec_map("shared memory", shared_space,
          map_pages(BUF + 8 * PAGE, 1, MAP_SHARED | MAP_ANONYMOUS, -1), PAGE, 0x30000);
  BUF[8 * PAGE + 7] = 22;
  munmap(BUF + 8 * PAGE, PAGE);
  rec_dma_read("which is unmapped", 0x30000);
  struct dev_info info = {24};
  rec_ioctl("GET_INFO", edu_dev->fd, V_INFO, dev_info_fields, &info, 24, 0);
  fflush(stdout);
  _exit(5);
}

static void *execs(void *unused) {
  (void)unused;
  rec_map("thread maps", shared_space, BUF, PAGE, 0x10000);
  exec_self("exec", shared_space);
  return 0;
}

static void test_threads(void) {
  section("threads");
  struct space s = shared_space = new_dma_space();
  pthread_t threads[8];
  long failed = 0;
  for (int i = 0; i < 8; i++)
    pthread_create(&threads[i], 0, maps_many, (void *)(intptr_t)i);
  for (int i = 0; i < 8; i++) {
    void *result;
    pthread_join(threads[i], &result);
    failed += (long)result;
  }
  rec("eight threads map and unmap: what failed", "", failed, 0);
  IN_CHILD {
    fill(20);
    pthread_create(&threads[0], 0, outlives, 0);
    pthread_exit(0);
  }
  rec_dma_read("shared memory of a process that ended", 0x30000);
  rec_unmap("unmap", s, 0x10000, 2 * PAGE);
  fcntl(edu_dev->fd, F_SETFD, 0);
  IN_CHILD {
    rec_map("first thread maps", s, BUF, PAGE, 0x12000);
    pthread_create(&threads[0], 0, execs, 0);
    pause();
  }
  drop(s);
}
