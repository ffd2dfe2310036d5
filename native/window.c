/* Memory files of clients and windows onto them (see window.h). */
#define _GNU_SOURCE
#include "window.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "alloc.h"
#include "guard.h"
#include "stats.h"

struct memfile {
  struct memfile *next;
  struct iofs_mm *mm;
  dev_t dev;
  uint64_t ino;
  int fd;
  uint32_t refs;
  struct itree windows;
};

#define N_BUCKETS 512
/* A file up to this size is mapped as a whole, of a greater one the aligned pieces asked for. */
#define WHOLE (4ull << 30)
#define PIECE (1ull << 30)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct memfile *buckets[N_BUCKETS];
static dev_t internal[4]; /* the kernel's own mounts: memfd and shared anonymous, hugetlb sizes */
static unsigned n_internal;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void learn(unsigned memfd_flags) {
  struct stat stat;
  int fd = memfd_create("iommufs", MFD_CLOEXEC | memfd_flags);
  if (fd < 0)
    return; /* a page size that this machine does not have */
  if (!fstat(fd, &stat))
    internal[n_internal++] = stat.st_dev;
  close(fd);
}

static void learn_internal(void) {
  learn(0);
  learn(MFD_HUGETLB);
  learn(MFD_HUGETLB | MFD_HUGE_2MB);
  learn(MFD_HUGETLB | MFD_HUGE_1GB);
}

/* Ask the list of mounts of a process, so that no foreign file system is asked, which might never
 * answer. */
static int is_memory_mount(const char *mountinfo, uint32_t major, uint32_t minor) {
  char *line = NULL;
  size_t size = 0;
  int found = 0;
  FILE *file = fopen(mountinfo, "re");
  while (file && !found && getline(&line, &size, file) > 0) {
    uint32_t line_major, line_minor;
    const char *type = strstr(line, " - ");
    if (type && sscanf(line, "%*d %*d %u:%u", &line_major, &line_minor) == 2 &&
        line_major == major && line_minor == minor)
      found = !strncmp(type + 3, "tmpfs ", 6) || !strncmp(type + 3, "hugetlbfs ", 10) ||
              !strncmp(type + 3, "devtmpfs ", 9);
  }
  free(line);
  if (file)
    fclose(file);
  return found;
}

static int memfile_is_on(const struct iofs_mm *mm, uint32_t major, uint32_t minor) {
  char path[48];
  pthread_once(&once, learn_internal);
  for (unsigned i = 0; i < n_internal; i++)
    if (internal[i] == makedev(major, minor))
      return 1;
  snprintf(path, sizeof path, "/proc/%d/mountinfo", mm->process);
  return is_memory_mount(path, major, minor) ||
         is_memory_mount("/proc/self/mountinfo", major, minor);
}

static struct memfile **bucket_of(const struct iofs_mm *mm, dev_t dev, uint64_t ino) {
  uint64_t hash = ((uintptr_t)mm >> 6) * 31 + dev * 7 + ino;
  return &buckets[hash % N_BUCKETS];
}

static struct memfile *find(struct iofs_mm *mm, dev_t dev, uint64_t ino) {
  struct memfile *file = *bucket_of(mm, dev, ino);
  while (file && (file->mm != mm || file->dev != dev || file->ino != ino))
    file = file->next;
  if (file)
    file->refs++;
  return file;
}

/* Takes fd over. Under the lock. */
static int add(struct iofs_mm *mm, dev_t dev, uint64_t ino, int fd, struct memfile **out) {
  struct memfile *file = alloc_zeroed(sizeof *file), **bucket = bucket_of(mm, dev, ino);
  if (!file) {
    close(fd);
    return -ENOMEM;
  }
  iofs_mm_get(mm);
  *file = (struct memfile){*bucket, mm, dev, ino, fd, 1, {NULL, ITREE_OVERLAP}};
  *bucket = file;
  *out = file;
  return 0;
}

/* Open what a link of /proc leads to, for writing if it may be. */
static int open_link(const char *path) {
  int fd = open(path, O_RDWR | O_CLOEXEC);
  return fd < 0 && (errno == EACCES || errno == EPERM || errno == EROFS)
             ? open(path, O_RDONLY | O_CLOEXEC)
             : fd;
}

/* The memfile that is known already, or a new one for what the link leads to. EINVAL: it is on no
 * memory device; EFAULT: it is not that file any more. */
static int find_or_open(struct iofs_mm *mm, dev_t dev, uint64_t ino, const char *link,
                        struct memfile **out) {
  struct stat stat;
  int err = 0;
  pthread_mutex_lock(&lock);
  *out = find(mm, dev, ino);
  pthread_mutex_unlock(&lock);
  if (*out)
    return 0;
  if (!memfile_is_on(mm, major(dev), minor(dev)))
    return -EINVAL;
  int fd = open_link(link);
  if (fd < 0) /* our own descriptors may have run out, of which the client knows nothing */
    return errno == EMFILE || errno == ENFILE ? -ENOMEM : -errno;
  if (fstat(fd, &stat) || stat.st_dev != dev || stat.st_ino != ino) {
    close(fd);
    return -EFAULT;
  }
  pthread_mutex_lock(&lock);
  if ((*out = find(mm, dev, ino))) /* another thread was faster */
    close(fd);
  else
    err = add(mm, dev, ino, fd, out);
  pthread_mutex_unlock(&lock);
  return err;
}

int memfile_of_fd(struct iofs_mm *mm, int fd, struct memfile **out) {
  struct statx stat;
  char path[48];
  /* Without DONT_SYNC a file of a dead FUSE server would keep us waiting. */
  if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &stat))
    return -errno;
  if (!S_ISREG(stat.stx_mode))
    return -EINVAL;
  /* The client's descriptor may be read-only: that does not limit what a device may do. */
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return find_or_open(mm, makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino, path, out);
}

static int open_vma(struct iofs_mm *mm, const struct vma *vma, struct memfile **out) {
  char path[80];
  snprintf(path, sizeof path, "/proc/%d/map_files/%llx-%llx", mm->process,
           (unsigned long long)vma->start, (unsigned long long)vma->end);
  return find_or_open(mm, makedev(vma->major, vma->minor), vma->ino, path, out);
}

int memfile_of_vma(struct iofs_mm *mm, const struct vma *vma, struct memfile **out) {
  int err = open_vma(mm, vma, out);
  int is_elsewhere = err == -ENOENT || err == -EFAULT; /* the process, in another address space */
  return is_elsewhere && mm_look_again(mm) ? open_vma(mm, vma, out) : err;
}

/* Under the lock. */
static void put_file(struct memfile *file) {
  if (--file->refs)
    return;
  struct memfile **link = bucket_of(file->mm, file->dev, file->ino);
  while (*link != file)
    link = &(*link)->next;
  *link = file->next;
  close(file->fd);
  iofs_mm_put(file->mm);
  alloc_free(file);
}

void memfile_put(struct memfile *file) {
  pthread_mutex_lock(&lock);
  put_file(file);
  pthread_mutex_unlock(&lock);
}

uint64_t memfile_size(const struct memfile *file) {
  struct stat stat;
  return fstat(file->fd, &stat) ? 0 : (uint64_t)stat.st_size;
}

static struct window *find_window(struct memfile *file, uint64_t start, uint64_t last) {
  struct itree_node *node = itree_find(&file->windows, start, last);
  while (node && (node->start > start || node->last < last))
    node = itree_find_next(node, start, last);
  return node ? ITREE_OF(node, struct window, node) : NULL;
}

/* Map [start, start + length) into this process. */
static int map(struct memfile *file, uint64_t start, uint64_t length, struct window *window) {
  window->writable = 1;
  void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file->fd,
                      (off_t)start);
  if (memory == MAP_FAILED && (errno == EACCES || errno == EPERM)) {
    window->writable = 0; /* sealed against writing */
    memory = mmap(NULL, length, PROT_READ, MAP_SHARED | MAP_NORESERVE, file->fd, (off_t)start);
  }
  if (memory == MAP_FAILED)
    return -errno;
  /* A core dump of ours is no place for clients' memory; nor is a child of ours. */
  madvise(memory, length, MADV_DONTDUMP);
  madvise(memory, length, MADV_DONTFORK);
  window->memory = memory;
  window->node.start = start;
  window->node.last = start + length - 1;
  return 0;
}

static uint64_t round_up(uint64_t bytes, uint64_t unit) {
  return (bytes + unit - 1) & ~(unit - 1);
}

/* Under the lock. */
static int add_window(struct memfile *file, uint64_t offset, uint64_t length, struct window **out) {
  uint64_t start = offset & ~(PIECE - 1), end = round_up(offset + length, PIECE);
  uint64_t size = round_up(memfile_size(file), PAGE_SIZE);
  struct window *window = alloc_zeroed(sizeof *window);
  if (!window)
    return -ENOMEM;
  if (size < offset + length) /* cut short since it was looked at */
    size = offset + length;
  if (size <= WHOLE)
    start = 0;
  if (size <= WHOLE || end > size) /* further, and hugetlbfs would enlarge the file */
    end = size;
  guard_install();
  int err = map(file, start, end - start, window);
  if (err) {
    alloc_free(window);
    return err;
  }
  window->file = file;
  window->refs = 1;
  file->refs++;
  itree_insert(&file->windows, &window->node);
  stats.source_maps++;
  *out = window;
  return 0;
}

int window_open(struct memfile *file, uint64_t offset, uint64_t length, struct window **out) {
  int err = 0;
  if (offset > INT64_MAX - PIECE || length > INT64_MAX - PIECE - offset)
    return -ENOMEM;
  pthread_mutex_lock(&lock);
  struct window *window = find_window(file, offset, offset + length - 1);
  if (window) {
    window->refs++;
    *out = window;
  } else
    err = add_window(file, offset, length, out);
  pthread_mutex_unlock(&lock);
  return err;
}

void window_get(struct window *window) {
  pthread_mutex_lock(&lock);
  window->refs++;
  pthread_mutex_unlock(&lock);
}

void window_put(struct window *window) {
  pthread_mutex_lock(&lock);
  if (!--window->refs) {
    itree_erase(&window->file->windows, &window->node);
    munmap(window->memory, window->node.last - window->node.start + 1);
    put_file(window->file);
    alloc_free(window);
    stats.source_maps--;
  }
  pthread_mutex_unlock(&lock);
}

void window_identify(const struct window *window, const unsigned char *memory, uint64_t *dev,
                     uint64_t *ino, uint64_t *offset, uint64_t *block) {
  struct stat stat;
  *dev = window->file->dev;
  *ino = window->file->ino;
  *offset = window->node.start + (uint64_t)(memory - window->memory);
  *block = fstat(window->file->fd, &stat) ? PAGE_SIZE : (uint64_t)stat.st_blksize;
}
