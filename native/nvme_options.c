/*
 * The options of a controller, as devices/nvme.py hands them over, checked there (docs/nvme.md tells
 * what they mean):
 *
 *   serial=… model=… firmware=… queues=n vectors=n mdts=n temperature=n vendor=n subsystem=n
 *   namespace=memory|file|null,id=n,size=n,lba=512|4096,readonly=0|1[,path=…]
 *   inject=[admin|io,][key=n,]…
 *
 * Keys of one namespace or injection are divided by commas; a path is the last one.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "alloc.h"
#include "nvme.h"

static void *map_anonymous(size_t size, int prot) {
  void *memory = mmap(NULL, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? NULL : memory;
}

/* The value behind "key=" in [*at, …), which is moved to the next word; NULL: it is another key. */
static const char *value_of(const char *word, const char *key) {
  size_t length = strlen(key);
  return !strncmp(word, key, length) && word[length] == '=' ? word + length + 1 : NULL;
}

static int is_word(const char *at, const char *word) {
  size_t length = strlen(word);
  return !strncmp(at, word, length) && (at[length] == ',' || !at[length]);
}

static const char *next_word(const char *at) {
  at += strcspn(at, ",");
  return *at ? at + 1 : at;
}

static int add_namespace(struct nvme *nvme, const char *text, char *error, size_t size) {
  struct nvme_ns *ns = &nvme->namespaces[nvme->n_namespaces];
  const char *path = NULL, *value;
  *ns = (struct nvme_ns){.fd = -1, .lba_lg2 = 9};
  for (const char *at = text; *at; at = path ? at + strlen(at) : next_word(at)) {
    if ((value = value_of(at, "id")))
      ns->id = (uint32_t)strtoul(value, NULL, 0);
    else if ((value = value_of(at, "size")))
      ns->size = strtoull(value, NULL, 0);
    else if ((value = value_of(at, "lba")))
      ns->lba_lg2 = strtoul(value, NULL, 0) == 4096 ? 12 : 9;
    else if ((value = value_of(at, "readonly")))
      ns->read_only = atoi(value);
    else if ((value = value_of(at, "path")))
      path = value;
    else
      ns->backing = is_word(at, "file") ? NVME_FILE
                                        : is_word(at, "null") ? NVME_NOTHING : NVME_MEMORY;
  }
  int err = nvme_ns_open(ns, path, nvme, error, size);
  if (err)
    nvme_ns_close(ns);
  else
    nvme->n_namespaces++;
  return err;
}

static void add_injection(struct nvme *nvme, const char *text) {
  struct nvme_injection *injection = &nvme->injections[nvme->n_injections++];
  const char *value;
  *injection = (struct nvme_injection){
      .queue = -1, .opcode = -1, .last_lba = UINT64_MAX, .every = 1, .count = UINT64_MAX};
  for (const char *at = text; *at; at = next_word(at)) {
    if (is_word(at, "admin"))
      injection->admin = 1;
    else if (is_word(at, "io"))
      injection->io = 1;
    else if ((value = value_of(at, "queue")))
      injection->queue = atoi(value);
    else if ((value = value_of(at, "opcode")))
      injection->opcode = atoi(value);
    else if ((value = value_of(at, "nsid")))
      injection->nsid = (uint32_t)strtoul(value, NULL, 0);
    else if ((value = value_of(at, "first_lba")))
      injection->first_lba = strtoull(value, NULL, 0);
    else if ((value = value_of(at, "last_lba")))
      injection->last_lba = strtoull(value, NULL, 0);
    else if ((value = value_of(at, "skip")))
      injection->skip = strtoull(value, NULL, 0);
    else if ((value = value_of(at, "every")))
      injection->every = strtoull(value, NULL, 0);
    else if ((value = value_of(at, "count")))
      injection->count = strtoull(value, NULL, 0);
    else if ((value = value_of(at, "status")))
      injection->status = (uint16_t)strtoul(value, NULL, 0);
    else if ((value = value_of(at, "drop")))
      injection->drop = atoi(value);
    else if ((value = value_of(at, "latency_us")))
      injection->latency_ns = strtoull(value, NULL, 0) * 1000;
  }
}

static int take(struct nvme *nvme, const char *option, char *error, size_t size) {
  const char *value;
  if ((value = value_of(option, "serial")))
    snprintf(nvme->serial, sizeof nvme->serial, "%s", value);
  else if ((value = value_of(option, "model")))
    snprintf(nvme->model, sizeof nvme->model, "%s", value);
  else if ((value = value_of(option, "firmware")))
    snprintf(nvme->firmware, sizeof nvme->firmware, "%s", value);
  else if ((value = value_of(option, "queues")))
    nvme->max_queues = (unsigned)strtoul(value, NULL, 0);
  else if ((value = value_of(option, "vectors")))
    nvme->n_vectors = (unsigned)strtoul(value, NULL, 0);
  else if ((value = value_of(option, "mdts")))
    nvme->mdts = (unsigned)strtoul(value, NULL, 0);
  else if ((value = value_of(option, "temperature")))
    nvme->temperature = (uint16_t)strtoul(value, NULL, 0);
  else if ((value = value_of(option, "vendor")))
    nvme->vendor = (uint16_t)strtoul(value, NULL, 0);
  else if ((value = value_of(option, "subsystem")))
    nvme->subsystem_vendor = (uint16_t)strtoul(value, NULL, 0);
  else if ((value = value_of(option, "inject")))
    add_injection(nvme, value);
  else if (!value_of(option, "namespace")) {
    snprintf(error, size, "unknown option: %s", option);
    return -1;
  }
  return 0;
}

/* How often a key is there: what to make room for. */
static size_t count(const char *const *options, const char *key) {
  size_t n = 0;
  for (; *options; options++)
    n += !!value_of(*options, key);
  return n;
}

struct nvme *nvme_create(const char *const *options, char *error, size_t size) {
  struct nvme *nvme = alloc_zeroed(sizeof *nvme);
  int err = 0;
  snprintf(error, size, "no memory");
  if (!nvme)
    return NULL;
  nvme->max_queues = 64;
  nvme->n_vectors = 1;
  nvme->mdts = 7;
  nvme->temperature = 323;
  nvme->started_ns = nvme_now();
  nvme->namespaces = alloc_array(count(options, "namespace") + 1, sizeof *nvme->namespaces);
  nvme->injections = alloc_array(count(options, "inject") + 1, sizeof *nvme->injections);
  err = !nvme->namespaces || !nvme->injections;
  for (size_t i = 0; options[i] && !err; i++)
    err = take(nvme, options[i], error, size);
  if (!err) {
    nvme->zeros = map_anonymous(nvme_max_transfer(nvme), PROT_READ);
    nvme->sink = map_anonymous(nvme_max_transfer(nvme), PROT_READ | PROT_WRITE);
    err = !nvme->zeros || !nvme->sink;
  }
  for (size_t i = 0; options[i] && !err; i++) /* now that all else is known */
    if (value_of(options[i], "namespace"))
      err = add_namespace(nvme, value_of(options[i], "namespace"), error, size);
  if (!err)
    return nvme;
  nvme_destroy(nvme);
  return NULL;
}

void nvme_destroy(struct nvme *nvme) {
  for (uint32_t i = 0; i < nvme->n_namespaces; i++)
    nvme_ns_close(&nvme->namespaces[i]);
  if (nvme->zeros)
    munmap(nvme->zeros, nvme_max_transfer(nvme));
  if (nvme->sink)
    munmap(nvme->sink, nvme_max_transfer(nvme));
  alloc_free(nvme->namespaces);
  alloc_free(nvme->injections);
  alloc_free(nvme);
}
