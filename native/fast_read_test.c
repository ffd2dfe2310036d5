/* What readers answer of what Python has published as memory. */
#include "fast.h"

#include <string.h>

#include "test.h"

enum { SIZE = 256 };

static _Alignas(8) uint8_t own[SIZE], kept[SIZE], mask[SIZE];

static struct iofs_fast *start(void) {
  struct iofs_fast *fast = iofs_fast_new();
  CHECK(fast);
  for (int i = 0; i < SIZE; i++) {
    own[i] = (uint8_t)i;
    kept[i] = (uint8_t)(255 - i);
    mask[i] = (uint8_t)(i * 37);
  }
  return fast;
}

static void test_every_piece_of_mixed_bits(void) {
  struct iofs_fast *fast = start();
  uint8_t out[SIZE];
  CHECK_EQ(iofs_fast_add_window(fast, 4096, SIZE, 0, own, kept, mask), 0);
  for (size_t at = 0; at < SIZE; at++)
    for (size_t size = 1; at + size <= SIZE; size++) {
      CHECK_EQ(iofs_fast_read(fast, 4096 + at, size, out), size);
      for (size_t i = 0; i < size; i++)
        CHECK_EQ(out[i], (own[at + i] & ~mask[at + i]) | (kept[at + i] & mask[at + i]));
    }
  own[8] = 0xAB; /* nothing is copied when it is published */
  CHECK_EQ(iofs_fast_read(fast, 4096 + 8, 1, out), 1);
  CHECK_EQ(out[0], (0xAB & ~mask[8]) | (kept[8] & mask[8]));
  iofs_fast_free(fast);
}

static void test_what_goes_past_a_window_is_pythons_or_ends(void) {
  struct iofs_fast *fast = start();
  uint8_t out[SIZE];
  CHECK_EQ(iofs_fast_add_window(fast, 0, SIZE, 0, own, NULL, NULL), 0);
  CHECK_EQ(iofs_fast_read(fast, SIZE - 2, 2, out), 2);
  CHECK_EQ(iofs_fast_read(fast, SIZE - 2, 3, out), 0);
  CHECK_EQ(iofs_fast_read(fast, SIZE, 1, out), 0);
  CHECK_EQ(iofs_fast_read(fast, UINT64_MAX, 1, out), 0);
  CHECK_EQ(iofs_fast_read(fast, 0, 0, out), 0);
  CHECK_EQ(iofs_fast_add_window(fast, 0, SIZE, IOFS_WINDOW_ENDS, own, NULL, NULL), 0);
  CHECK_EQ(iofs_fast_read(fast, SIZE - 2, SIZE_MAX, out), 2);
  CHECK(!memcmp(out, own + SIZE - 2, 2));
  CHECK_EQ(iofs_fast_read(fast, SIZE, 1, out), 0);
  iofs_fast_free(fast);
}

static void test_memory_is_read_while_it_is_enabled(void) {
  struct iofs_fast *fast = start();
  uint8_t out[8];
  CHECK_EQ(iofs_fast_add_window(fast, 0, SIZE, IOFS_WINDOW_MEMORY, own, NULL, NULL), 0);
  CHECK_EQ(iofs_fast_read(fast, 0, 8, out), 0);
  iofs_fast_set_memory(fast, 1);
  CHECK_EQ(iofs_fast_read(fast, 0, 8, out), 8);
  iofs_fast_set_memory(fast, 0);
  CHECK_EQ(iofs_fast_read(fast, 0, 8, out), 0);
  iofs_fast_free(fast);
}

static void test_a_long_read_is_pythons(void) {
  static _Alignas(8) uint8_t memory[2 * IOFS_MAX_FAST_READ];
  static uint8_t out[IOFS_MAX_FAST_READ];
  struct iofs_fast *fast = start();
  CHECK_EQ(iofs_fast_add_window(fast, 0, sizeof memory, 0, memory, NULL, NULL), 0);
  CHECK_EQ(iofs_fast_read(fast, 1, IOFS_MAX_FAST_READ, out), IOFS_MAX_FAST_READ);
  CHECK_EQ(iofs_fast_read(fast, 1, IOFS_MAX_FAST_READ + 1, out), 0);
  iofs_fast_free(fast);
}

static void test_what_is_withdrawn_is_pythons(void) {
  struct iofs_fast *fast = start();
  uint8_t out[8];
  CHECK_EQ(iofs_fast_add_window(fast, 0, SIZE, 0, own, NULL, NULL), 0);
  CHECK_EQ(iofs_fast_add_file(fast, 7), 0);
  CHECK_EQ(fast_read(7, 0, 8, out), 8);
  CHECK_EQ(fast_read(8, 0, 8, out), 0);
  iofs_fast_withdraw(fast);
  CHECK_EQ(fast_read(7, 0, 8, out), 0);
  iofs_fast_free(fast);
  iofs_fast_remove_file(7);
}

int main(void) {
  RUN(test_every_piece_of_mixed_bits);
  RUN(test_what_goes_past_a_window_is_pythons_or_ends);
  RUN(test_memory_is_read_while_it_is_enabled);
  RUN(test_a_long_read_is_pythons);
  RUN(test_what_is_withdrawn_is_pythons);
  return 0;
}
