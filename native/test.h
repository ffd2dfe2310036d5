/* What the *_test.c programs share: checks that say where they failed, and a seeded generator. */
#ifndef IOFS_TEST_H
#define IOFS_TEST_H

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      fprintf(stderr, "%s:%d: %s: failed: %s\n", __FILE__, __LINE__, __func__, #condition); \
      abort();                                                                     \
    }                                                                              \
  } while (0)

#define CHECK_EQ(got, expected)                                                    \
  do {                                                                             \
    int64_t got_ = (int64_t)(got), expected_ = (int64_t)(expected);                \
    if (got_ != expected_) {                                                       \
      fprintf(stderr, "%s:%d: %s: %s is %" PRId64 " (%#" PRIx64 "), not %s\n", __FILE__, __LINE__, \
              __func__, #got, got_, (uint64_t)got_, #expected);                    \
      abort();                                                                     \
    }                                                                              \
  } while (0)

#define RUN(test)            \
  do {                       \
    test();                  \
    printf("ok %s\n", #test); \
    fflush(stdout);          \
  } while (0)

/* Whether this process may open the files behind mappings, which takes capabilities. */
static inline int test_may_open_mappings(void) {
  int may = 0;
  DIR *dir = opendir("/proc/self/map_files");
  struct dirent *entry;
  while (dir && !may && (entry = readdir(dir))) {
    int fd = openat(dirfd(dir), entry->d_name, O_RDONLY | O_CLOEXEC);
    may = fd >= 0 && entry->d_name[0] != '.';
    if (fd >= 0)
      close(fd);
  }
  if (dir)
    closedir(dir);
  return may;
}

/* For tests of memory that is reached through the file behind a mapping. */
#define RUN_WITH_RIGHTS(test)                                          \
  do {                                                                 \
    if (test_may_open_mappings())                                      \
      RUN(test);                                                       \
    else                                                               \
      printf("left out %s: no right to open map_files\n", #test);      \
  } while (0)

/* splitmix64: the same sequence for the same seed everywhere. */
static inline uint64_t test_random(uint64_t *state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

/* The seed of this run: argv[1], or else a fresh one; printed either way. */
static inline uint64_t test_seed(int argc, char **argv) {
  uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)time(NULL);
  printf("seed %" PRIu64 "\n", seed);
  return seed;
}

#endif
