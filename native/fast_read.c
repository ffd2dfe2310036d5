/*
 * Reads of what Python has published as memory: config space, which is the function's bits and the
 * client's, and regions that are memory. Python changes that memory without a lock, so whatever may
 * be a register is read by one load.
 */
#include "fast.h"

#define RELAXED __ATOMIC_RELAXED

static uint64_t load(const uint8_t *at, size_t width) {
  switch (width) {
  case 8:
    return __atomic_load_n((const uint64_t *)(const void *)at, RELAXED);
  case 4:
    return __atomic_load_n((const uint32_t *)(const void *)at, RELAXED);
  case 2:
    return __atomic_load_n((const uint16_t *)(const void *)at, RELAXED);
  default:
    return __atomic_load_n(at, RELAXED);
  }
}

static void copy(const struct fast_window *window, uint64_t from, size_t length, uint8_t *out) {
  size_t width;
  for (; length; from += width, length -= width) {
    for (width = 8; width > length || from % width;)
      width /= 2;
    uint64_t value = load(window->own + from, width);
    if (window->mask) {
      uint64_t mask = load(window->mask + from, width);
      value = (value & ~mask) | (load(window->kept + from, width) & mask);
    }
    for (size_t i = 0; i < width; i++)
      *out++ = (uint8_t)(value >> 8 * i);
  }
}

/* How much of a read a window gives. */
static size_t clip(const struct fast_window *window, uint64_t position, size_t size) {
  if (position < window->position || position - window->position >= window->length)
    return 0;
  uint64_t room = window->length - (position - window->position);
  if (size <= room)
    return size;
  return window->flags & IOFS_WINDOW_ENDS ? (size_t)room : 0;
}

static size_t read_window(const struct iofs_fast *fast, uint64_t position, size_t size,
                          void *out) {
  const struct fast_window *window = fast->windows;
  size_t length = 0;
  while (window && !(length = clip(window, position, size)))
    window = window->next;
  if (length > IOFS_MAX_FAST_READ || !window ||
      (window->flags & IOFS_WINDOW_MEMORY && !fast->memory_enabled))
    return 0;
  copy(window, position - window->position, length, out);
  return length;
}

size_t iofs_fast_read(struct iofs_fast *fast, uint64_t position, size_t size, void *out) {
  pthread_mutex_lock(&fast->lock);
  size_t length = size ? read_window(fast, position, size, out) : 0;
  pthread_mutex_unlock(&fast->lock);
  return length;
}

size_t fast_read(uint64_t fh, uint64_t position, size_t size, void *out) {
  struct iofs_fast *fast = fast_get(fh);
  if (!fast)
    return 0;
  size_t length = iofs_fast_read(fast, position, size, out);
  fast_put(fast);
  return length;
}
