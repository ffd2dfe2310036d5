// Open files that pass from one process to another: dup, fork, SCM_RIGHTS, close and exit.

#pragma once

#include "scene.h"

// ---- passing --------------------------------------------------------------------------------

static void test_passed(void) {
  section("passed");
  struct line l = new_line();
  fill(1);
  pid_t pid = begin_child(); // before anything is open
  if (!pid) {
    fill(2);
    struct space s = {receive_fd(l, 1), 1};
    rec_map("receiver maps its own memory", s, BUF, PAGE, 0x20000);
    rec_map("again", s, BUF + PAGE, PAGE, 0x21000);
    ioas_alloc("receiver makes an IOAS", s.f);
    edu_dev->fd = receive_fd(l, 1);
    struct dev_info info = {24};
    rec_ioctl("receiver asks the device", edu_dev->fd, V_INFO, dev_info_fields, &info, 24, 0);
    rec_pread("reads config space", edu_dev->fd, region(7), 4);
    rec_pread("reads a register", edu_dev->fd, 0, 4);
    rec_mmap("maps the BAR", edu_dev->fd, 0, PAGE, 3, MAP_SHARED);
    int e = eventfd(0, EFD_NONBLOCK);
    set_irqs("ties its eventfd", edu_dev->fd, 24, TRIGGER | EVENTFD, 1, 0, 1, e, -1);
    set_irqs("rings it", edu_dev->fd, 20, TRIGGER | NONE, 1, 0, 1, -1, -1);
    rec_eventfd("it rang", e);
    rec_attach("receiver attaches", edu_dev, 1);
    map_quietly(s, WATCH, PAGE, watch_iova);
    rec_dma_read("its memory", 0x20000);
    int d = open(other_dev->cdev, O_RDWR);
    bind_dev("receiver binds what it has opened", d, 24, 0, s.f, 0, 0);
    send_fd(l, 1, d);
    await(l, 1);
    _exit(0);
  }
  struct space s = new_space();
  take_device(s, edu_dev);
  send_fd(l, 0, s.f);
  send_fd(l, 0, edu_dev->fd);
  other_dev->fd = receive_fd(l, 0);
  struct dev_info info = {24};
  rec_ioctl("sender asks what it has got", other_dev->fd, V_INFO, dev_info_fields, &info, 24, 0);
  rec_attach("and attaches it: memory of the other", other_dev, s.ioas);
  rec_map("sender maps", s, BUF, PAGE, 0x30000);
  rec_dma_read("the sender's memory", 0x30000);
  rec_dma_read("the receiver's", 0x20000);
  set_irqs("ring the receiver's eventfd", edu_dev->fd, 20, TRIGGER | NONE, 1, 0, 1, -1, -1);
  tell(l, 0);
  rec_end("receiver", pid);
  set_irqs("ring it, nobody has it", edu_dev->fd, 20, TRIGGER | NONE, 1, 0, 1, -1, -1);
  rec_ioctl("the device it opened", other_dev->fd, V_INFO, dev_info_fields, &info, 24, 0);
  rec_detach("detach it", other_dev);
  rec_attach("attach: the memory is gone", other_dev, s.ioas);
  drop(s);
}

// A BIND names an iommufd in the table of descriptors of who calls.
static void test_bind_by_child(void) {
  section("bind-by-child");
  struct space s = new_space();
  int d = open(edu_dev->cdev, O_RDWR);
  int elsewhere = dup2(s.f, 300);
  IN_CHILD {
    close(s.f);
    bind_dev("number that the child has closed", d, 24, 0, s.f, 0, 0);
    bind_dev("its other number", d, 24, 0, elsewhere, 0, 0);
  }
  bind_dev("twice", d, 24, 0, s.f, 0, 0);
  struct attach a = {16, 0, s.ioas};
  rec("attach", "", ioctl(d, V_ATTACH, &a), 0);
  close(s.f);
  IN_CHILD {
    destroy("IOAS in use", elsewhere, s.ioas);
  }
  close(elsewhere);
  rec("detach without an iommufd", "", ioctl(d, V_DETACH, &(struct detach){12}), 0);
  close(d);
}

// ---- closing --------------------------------------------------------------------------------

static void test_closed(void) {
  section("closed");
  struct space s = new_space();
  struct line l = new_line();
  take_device(s, edu_dev);
  rec_attach("attach", edu_dev, s.ioas);
  pid_t pid = begin_child();
  if (!pid) {
    await(l, 1);
    struct dev_info info = {24};
    rec_ioctl("child asks the device", edu_dev->fd, V_INFO, dev_info_fields, &info, 24, 0);
    rec_map("maps", s, BUF, PAGE, 0x10000);
    tell(l, 1);
    await(l, 1);
    _exit(0);
  }
  u32 devid = edu_dev->devid;
  int f = dup(s.f);
  close(edu_dev->fd);
  close(s.f);
  s.f = f;
  edu_dev->fd = open(edu_dev->cdev, O_RDWR);
  bind_dev("a second open binds: the child has the first", edu_dev->fd, 24, 0, f, 0, 0);
  tell(l, 0);
  await(l, 0);
  rec_unmap("unmap what it mapped", s, 0x10000, PAGE);
  destroy("IOAS in use", f, s.ioas);
  destroy("device in use", f, devid);
  kill(pid, SIGKILL);
  rec_end("child", pid);
  bind_dev("the child is dead", edu_dev->fd, 24, 0, f, 0, 0);
  destroy("IOAS out of use", f, s.ioas);
  drop(s);
}

static void *polls(void *fd) {
  struct pollfd p = {(int)(intptr_t)fd, POLLIN, 0};
  return (void *)(intptr_t)poll(&p, 1, 300);
}

// Files of queues: kept open by whoever waits, asked by whoever has them.
static void test_queues(void) {
  section("queues");
  struct space s = new_space();
  struct faultq q = {sizeof q};
  rec("FAULT_QUEUE_ALLOC", "", ioctl(s.f, FAULTQ_ALLOC, &q), 0);
  int fd = (int)q.out_fault_fd;
  u8 bytes[160]; // four faults
  rec("read of nothing", "", read(fd, bytes, sizeof bytes), 0);
  struct line l = new_line();
  IN_CHILD {
    rec("child reads", "", read(fd, bytes, sizeof bytes), 0);
    rec("child writes", "", write(fd, bytes, 8), 0);
    rec("writes nothing", "", write(fd, bytes, 0), 0);
    struct pollfd p = {fd, POLLIN | POLLOUT, 0};
    int n = poll(&p, 1, 0);
    rec("polls", "", n, "\"events\":%d", p.revents);
    rec("ioctl", "", ioctl(fd, IOAS_ALLOC, bytes), 0);
    destroy("queue of an open file", s.f, q.out_fault_id);
    send_fd(l, 1, dup(fd));
  }
  int passed = receive_fd(l, 0);
  pthread_t thread;
  pthread_create(&thread, 0, polls, (void *)(intptr_t)fd);
  usleep(50000);
  close(fd);
  destroy("closed, but passed on", s.f, q.out_fault_id);
  rec("read what was passed", "", read(passed, bytes, sizeof bytes), 0);
  close(passed);
  void *result;
  pthread_join(thread, &result);
  rec("poll that began before the close", "", (long)result, 0);
  destroy("closed by all", s.f, q.out_fault_id);
  rec("FAULT_QUEUE_ALLOC", "", ioctl(s.f, FAULTQ_ALLOC, &q), 0);
  IN_CHILD {
    close(s.f);
    s.f = open("/dev/iommu", O_RDWR);
    rec("child reads with another iommufd only", "",
        read((int)q.out_fault_fd, bytes, sizeof bytes), 0);
  }
  close(s.f);
  rec("read without an iommufd", "", read((int)q.out_fault_fd, bytes, sizeof bytes), 0);
  close((int)q.out_fault_fd);
  drop(new_space());
}

// A descriptor that an ioctl returns belongs to the caller alone.
static void test_returned(void) {
  section("returned");
  struct space s = new_space();
  struct line l = new_line();
  int mine = -1;
  IN_CHILD {
    mine = new_access(s, 0);
    rec("child gets an access", "", mine < 0 ? -1 : 0, 0);
    rec_map("maps", s, BUF, PAGE, 0x10000);
    BUF[3] = 41;
    rec_access_read("reads", s, mine, 0x10000, 0);
    send_fd(l, 1, mine);
    struct faultq q = {sizeof q};
    int lowest = dup(1);
    close(lowest);
    rec("FAULT_QUEUE_ALLOC", "", ioctl(s.f, FAULTQ_ALLOC, &q), 0);
    rec("lowest number", "", (int)q.out_fault_fd == lowest, 0);
    rec("closed by exec", "", fcntl((int)q.out_fault_fd, F_GETFD), 0);
  }
  int access = receive_fd(l, 0);
  rec_map("parent maps", s, BUF, PAGE, 0x20000);
  BUF[3] = 42;
  rec_access_read("parent reads with what was passed", s, access, 0x20000, 0);
  rec_access_read("memory of the child, which ended", s, access, 0x10000, 0);
  struct space other = new_space();
  rec_access_read("through another iommufd", other, access, 0x20000, 0);
  destroy("IOAS that an access uses", s.f, s.ioas);
  close(access);
  destroy("closed by all", s.f, s.ioas);
  close(other.f);
  drop(s);
}

// An exec closes what is to be closed, and others can have the device before the new program runs.
static void test_closed_by_exec(void) {
  section("closed-by-exec");
  for (int closes = 0; closes < 2; closes++) {
    struct line l = new_line();
    pid_t pid = begin_child();
    if (!pid) {
      struct space s = new_dma_space();
      int flags = closes ? FD_CLOEXEC : 0;
      fcntl(s.f, F_SETFD, flags);
      fcntl(edu_dev->fd, F_SETFD, flags);
      char number[16];
      snprintf(number, sizeof number, "%d", l.ends[1]);
      fflush(stdout);
      execl("/proc/self/exe", "processes", "hold", number, (char *)0);
      _exit(1);
    }
    await(l, 0);
    struct space s = {open("/dev/iommu", O_RDWR), 0};
    edu_dev->fd = open(edu_dev->cdev, O_RDWR);
    bind_dev(closes ? "bind: it was closed" : "bind: it is open", edu_dev->fd, 24, 0, s.f, 0, 0);
    tell(l, 0);
    rec_end("child", pid);
    drop(s);
  }
}

// ---- groups and containers --------------------------------------------------------------------

#define MAP_DMA(f, a, n, i)                                                                        \
  ioctl(f, C_MAP, &(struct dma_map){32, 3, (u64)(a), i, n})
#define UNMAP_DMA(f, n, i) ioctl(f, C_UNMAP, &(struct dma_unmap){24, 0, i, n})

struct dma_map {
  u32 argsz, flags;
  u64 vaddr, iova, size;
};

struct dma_unmap {
  u32 argsz, flags;
  u64 iova, size;
};

static int open_group(const struct vdev *d) {
  char path[64], target[128];
  snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/iommu_group", d->bdf);
  ssize_t n = readlink(path, target, sizeof target - 1);
  target[n > 0 ? n : 0] = 0;
  const char *number = strrchr(target, '/');
  snprintf(path, sizeof path, "/dev/vfio/%s", number ? number + 1 : "none");
  return open(path, O_RDWR);
}

static void test_container(void) {
  section("container");
  int container = open("/dev/vfio/vfio", O_RDWR), group = open_group(edu_dev);
  u16 command = 6;
  fill(50);
  IN_CHILD {
    rec("child ties group and container", "", ioctl(group, V_GSETC, &container), 0);
    rec("child sets the IOMMU", "", ioctl(container, V_SETIOMMU, 3), 0);
    rec("child maps", "", MAP_DMA(container, BUF, PAGE, 0x10000), 0);
  }
  rec("parent opens the device", "", ioctl(group, V_GGETDEV, edu_dev->bdf) < 0 ? -1 : 0, 0);
  rec("unmap the child's", "", UNMAP_DMA(container, PAGE, 0x10000), 0);
  edu_dev->fd = ioctl(group, V_GGETDEV, edu_dev->bdf);
  rec("and then", "", edu_dev->fd < 0 ? -1 : 0, 0);
  nobody_cares = pwrite(edu_dev->fd, &command, 2, region(7) + 4);
  rec("parent maps", "", MAP_DMA(container, BUF, PAGE, 0x20000), 0);
  MAP_DMA(container, WATCH, PAGE, watch_iova);
  rec_dma_read("its memory", 0x20000);
  IN_CHILD {
    fill(51);
    rec("child maps over it", "", MAP_DMA(container, BUF, PAGE, 0x20000), 0);
    rec("child unmaps the parent's", "", UNMAP_DMA(container, PAGE, 0x20000), 0);
    rec("child maps", "", MAP_DMA(container, BUF, PAGE, 0x20000), 0);
    rec_dma_read("the child's memory", 0x20000);
    rec("child maps shared memory", "", MAP_DMA(container, SHARED, PAGE, 0x30000), 0);
    rec("child opens the device again", "", ioctl(group, V_GGETDEV, edu_dev->bdf) < 0 ? -1 : 0, 0);
    rec("child sets the IOMMU again", "", ioctl(container, V_SETIOMMU, 3), 0);
    rec("child unties the group", "", ioctl(group, V_GUNSETC), 0);
    close(container);
    close(group);
  }
  SHARED[7] = 52;
  rec_dma_read("shared memory of the child", 0x30000);
  rec("unmap the child's", "", UNMAP_DMA(container, PAGE, 0x20000), 0);
  struct line l = new_line();
  pid_t pid = begin_child();
  if (!pid) {
    await(l, 1);
    rec("child maps after the parent closed all", "", MAP_DMA(container, BUF, PAGE, 0x40000), 0);
    rec_dma_read("its memory", 0x40000);
    rec("it opens the group", "", open_group(edu_dev) < 0 ? -1 : 0, 0);
    _exit(0);
  }
  close(container);
  close(group);
  close(edu_dev->fd);
  tell(l, 0);
  rec_end("child", pid);
  group = open_group(edu_dev);
  rec("parent opens the group when all is closed", "", group < 0 ? -1 : 0, 0);
  close(group);
  edu_dev->fd = -1;
}

// An unprivileged user of a container: locked memory is counted for each address space.
static void test_container_limit(void) {
  section("container-limit");
  int container = open("/dev/vfio/vfio", O_RDWR), group = open_group(edu_dev);
  rec("SET_CONTAINER", "", ioctl(group, V_GSETC, &container), 0);
  rec("SET_IOMMU", "", ioctl(container, V_SETIOMMU, 1), 0);
  edu_dev->fd = ioctl(group, V_GGETDEV, edu_dev->bdf);
  drop_root();
  rec("all of it", "", MAP_DMA(container, BUF, 16 * PAGE, 0x100000), 0);
  rec("more", "", MAP_DMA(container, BUF, PAGE, 0x200000), 0);
  IN_CHILD {
    rec("a child has its own", "", MAP_DMA(container, BUF, 16 * PAGE, 0x200000), 0);
    rec("but not more", "", MAP_DMA(container, BUF, PAGE, 0x300000), 0);
    rec("it frees a page of the parent", "", UNMAP_DMA(container, PAGE, 0x100000), 0);
    rec("which is of no use to it", "", MAP_DMA(container, BUF, PAGE, 0x300000), 0);
  }
  rec("but to the parent", "", MAP_DMA(container, BUF, PAGE, 0x300000), 0);
  rec("once", "", MAP_DMA(container, BUF, PAGE, 0x400000), 0);
  rec("unmap what is the child's", "", UNMAP_DMA(container, 16 * PAGE, 0x200000), 0);
  rec("which does not help", "", MAP_DMA(container, BUF, PAGE, 0x400000), 0);
  close(edu_dev->fd);
  close(group);
  close(container);
  edu_dev->fd = -1;
}
