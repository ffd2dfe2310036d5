/* What the programs here share: a clock, rounds of two opponents in turn, a report for run.py. */
#ifndef BENCH_H
#define BENCH_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_ROUNDS 15

/* A check that stays in optimised programs; what fails ends the benchmark. */
#define MUST(condition)                                                      \
  do {                                                                       \
    if (!(condition)) {                                                      \
      fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      perror("errno");                                                       \
      exit(1);                                                               \
    }                                                                        \
  } while (0)

static inline uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* One of the two; nanoseconds for one operation, one entry for each round. */
struct series {
  int n;
  double ns[MAX_ROUNDS];
};

static inline void series_add(struct series *series, uint64_t since, uint64_t n_operations) {
  MUST(series->n < MAX_ROUNDS);
  series->ns[series->n++] = (double)(now_ns() - since) / (double)n_operations;
}

static inline void series_print(const char *name, const struct series *series) {
  printf(", \"%s\": [", name);
  for (int i = 0; i < series->n; i++)
    printf("%s%.2f", i ? ", " : "", series->ns[i]);
  printf("]");
}

/* One line of JSON. facts: the inside of an object, by printf. */
static inline void __attribute__((format(printf, 5, 6)))
report(const char *figure, const struct series *ours, const char *peer_name,
       const struct series *peer, const char *facts, ...) {
  va_list arguments;
  printf("{\"figure\": \"%s\", \"peer_name\": \"%s\"", figure, peer_name);
  series_print("ours", ours);
  series_print("peer", peer);
  printf(", \"facts\": {");
  va_start(arguments, facts);
  vprintf(facts, arguments);
  va_end(arguments);
  puts("}}");
  fflush(stdout);
}

/* splitmix64, so that every run does the same. */
static inline uint64_t random_u64(uint64_t *state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

#endif
