/*
 * The core at work on the memory of another process: maps with a page table, and DMA. No mount.
 *
 * The other process has 1 GiB of private memory that nobody ever touched, 4 MiB in 1024 mappings,
 * and 64 KiB each of private and of shared memory in use.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench.h"
#include "domain.h"
#include "iommufs.h"
#include "iotlb.h"
#include "mm.h"

#define ROUNDS 9
#define K4 4096ull
#define K64 65536ull
#define M2 (1ull << 21)
#define M4 (1ull << 22)
#define M64 (1ull << 26)
#define G1 (1ull << 30)
#define IOVA G1

static pid_t client;
static char *large, *patchwork, *private, *shared;
static struct iofs_mm *mm;
static struct iofs_iopt *iopt;
static struct iofs_domain *domain;
static const struct iofs_charge no_charge = {IOFS_CHARGE_NONE, 0, 0};

/* ---- the other process ----------------------------------------------------------------------- */

static char *memory(uint64_t length, int flags) {
  char *made = mmap(NULL, length, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
  MUST(made != MAP_FAILED);
  return made;
}

static void start_client(void) {
  int ready[2];
  char byte;
  large = memory(G1, MAP_PRIVATE | MAP_NORESERVE);
  MUST(!madvise(large, G1, MADV_NOHUGEPAGE));
  patchwork = memory(M4, MAP_PRIVATE);
  for (uint64_t at = 0; at < M4; at += 2 * K4)
    MUST(!mprotect(patchwork + at, K4, PROT_READ | PROT_WRITE | PROT_EXEC));
  private = memory(K64, MAP_PRIVATE);
  shared = memory(K64, MAP_SHARED);
  MUST(!pipe(ready) && (client = fork()) >= 0);
  if (!client) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    memset(private, 1, K64);
    memset(shared, 1, K64);
    if (write(ready[1], "", 1) == 1)
      pause();
    _exit(1);
  }
  MUST(read(ready[0], &byte, 1) == 1);
}

/* How many of its pages are present in the client. */
static unsigned touched(const char *address, uint64_t length) {
  static uint64_t entries[G1 / K4];
  size_t n = length / K4;
  off_t at = (off_t)((uintptr_t)address / K4 * sizeof *entries);
  unsigned present = 0;
  char path[32];
  snprintf(path, sizeof path, "/proc/%d/pagemap", client);
  int fd = open(path, O_RDONLY);
  MUST(fd >= 0 && pread(fd, entries, n * sizeof *entries, at) == (ssize_t)(n * sizeof *entries));
  close(fd);
  for (size_t i = 0; i < n; i++)
    present += entries[i] >> 63;
  return present;
}

/* ---- maps ------------------------------------------------------------------------------------ */

static void map(const char *address, uint64_t length) {
  uint64_t iova = IOVA;
  MUST(!iofs_iopt_map_user(iopt, mm, &no_charge, (uintptr_t)address, length,
                           IOFS_READ | IOFS_WRITE, 1, &iova));
}

static void unmap(uint64_t length) {
  struct iofs_range notify;
  uint64_t unmapped = 0;
  MUST(!iofs_iopt_unmap(iopt, IOVA, length, &unmapped, &notify) && unmapped == length);
}

static void round_of_maps(struct series *series, const char *address, uint64_t length, int n) {
  uint64_t start = now_ns();
  for (int i = 0; i < n; i++) {
    map(address, length);
    unmap(length);
  }
  series_add(series, start, (uint64_t)n);
}

static void round_of_lookups(struct series *series, int n) {
  struct vma vma;
  uint64_t start = now_ns();
  for (int i = 0; i < n; i++)
    MUST(!mm_find_vma(mm, (uintptr_t)large, &vma));
  series_add(series, start, (uint64_t)n);
}

static unsigned leaves(uint64_t length) {
  struct pt_leaf leaf;
  unsigned n = 0;
  for (uint64_t at = 0; at < length; at += leaf.length, n++)
    MUST(pt_find(&domain->pt, IOVA + at, &leaf));
  return n;
}

/* One figure, and what one map of it needs: counted, not measured. */
static void report_maps(const char *figure, const struct series *ours, const char *peer_name,
                        const struct series *peer, const char *address, uint64_t length) {
  struct iofs_stats empty, mapped;
  uint64_t lookups = mm_n_lookups();
  iofs_statistics(&empty);
  map(address, length);
  iofs_statistics(&mapped);
  report(figure, ours, peer_name, peer,
         "\"vma_lookups\": %llu, \"leaves\": %u, \"table_bytes\": %llu, "
         "\"client_pages_touched\": %u",
         (unsigned long long)(mm_n_lookups() - lookups), leaves(length),
         (unsigned long long)(mapped.table_bytes - empty.table_bytes), touched(address, length));
  unmap(length);
}

static void maps(void) {
  MUST(touched(private, K64) == K64 / K4); /* it sees what is touched */
  struct series small = {0}, middle = {0}, whole = {0}, many = {0}, lookup = {0};
  struct series lookup_1024 = {0};
  for (int round = 0; round < ROUNDS; round++) {
    round_of_lookups(&lookup, 5000);
    round_of_maps(&small, large, K4, 3000);
    round_of_maps(&middle, large, M64, 3000);
    round_of_maps(&whole, large, G1, 3000);
    round_of_maps(&many, patchwork, M4, 10);
    lookup_1024.ns[lookup_1024.n++] = lookup.ns[round] * 1024;
  }
  report_maps("core: MAP + UNMAP 4 KiB, one page table", &small, "one VMA lookup", &lookup, large,
              K4);
  report_maps("core: MAP + UNMAP 64 MiB, one page table", &middle, "the same of 4 KiB", &small,
              large, M64);
  report_maps("core: MAP + UNMAP 1 GiB, one page table", &whole, "the same of 4 KiB", &small,
              large, G1);
  report_maps("core: MAP + UNMAP 4 MiB in 1024 mappings", &many, "1024 VMA lookups",
              &lookup_1024, patchwork, M4);
}

/* ---- DMA ------------------------------------------------------------------------------------- */

static char buffer[K64];

static void round_of_dma(struct series *series, size_t length, int n) {
  struct iofs_dma_fault fault;
  uint64_t start = now_ns();
  for (int i = 0; i < n; i++)
    MUST(!iofs_dma_write(domain, IOVA, buffer, length, &fault));
  series_add(series, start, (uint64_t)n);
}

static void round_of_memcpy(struct series *series, size_t length, int n) {
  uint64_t start = now_ns();
  for (int i = 0; i < n; i++) {
    memcpy(shared, buffer, length);
    __asm__ volatile("" ::: "memory"); /* every copy is made */
  }
  series_add(series, start, (uint64_t)n);
}

static void round_of_process_vm(struct series *series, size_t length, int n) {
  struct iovec mine = {buffer, length}, theirs = {private, length};
  uint64_t start = now_ns();
  for (int i = 0; i < n; i++)
    MUST(process_vm_writev(client, &mine, 1, &theirs, 1, 0) == (ssize_t)length);
  series_add(series, start, (uint64_t)n);
}

static void dma(const char *figure, const char *address, size_t length, int n) {
  struct series ours = {0}, peer = {0};
  map(address, K64);
  for (int round = 0; round < ROUNDS; round++) {
    if (address == shared)
      round_of_memcpy(&peer, length, n);
    else
      round_of_process_vm(&peer, length, n);
    round_of_dma(&ours, length, n);
  }
  report(figure, &ours, address == shared ? "memcpy()" : "process_vm_writev()", &peer,
         "\"bytes\": %zu", length);
  unmap(K64);
}

/* ---- translation ----------------------------------------------------------------------------- */

#define N_IOVAS 256 /* pages, looked up again and again */

static void round_of_hits(struct series *series, const uint64_t *iovas, int n) {
  uint64_t sum = 0, start = now_ns();
  for (int i = 0; i < n; i++)
    sum += iotlb_find(domain, iovas[i % N_IOVAS])->start;
  __asm__ volatile("" ::"r"(sum));
  series_add(series, start, (uint64_t)n);
}

static void round_of_walks(struct series *series, const uint64_t *iovas, int n) {
  struct pt_leaf leaf;
  uint64_t start = now_ns();
  for (int i = 0; i < n; i++)
    MUST(pt_find(&domain->pt, iovas[i % N_IOVAS], &leaf));
  series_add(series, start, (uint64_t)n);
}

static void round_of_misses(struct series *series, const uint64_t *iovas, int n) {
  uint64_t start = now_ns();
  for (int i = 0; i < n; i++)
    MUST(iotlb_fill(domain, iovas[i % N_IOVAS], 1));
  series_add(series, start, (uint64_t)n);
}

/* 4 KiB leaves, in random order. */
static void translation(void) {
  struct series hits = {0}, walks = {0}, misses = {0};
  uint64_t iovas[N_IOVAS], state = 1;
  map(large, N_IOVAS * K4); /* too short for a larger leaf */
  MUST(leaves(N_IOVAS * K4) == N_IOVAS);
  for (int i = 0; i < N_IOVAS; i++)
    iovas[i] = IOVA + (uint64_t)i * K4 + random_u64(&state) % K4;
  for (int i = N_IOVAS; --i;) {
    int other = (int)(random_u64(&state) % (unsigned)i);
    uint64_t iova = iovas[i];
    iovas[i] = iovas[other];
    iovas[other] = iova;
  }
  for (int round = 0; round < ROUNDS; round++) {
    round_of_misses(&misses, iovas, 100000);
    round_of_hits(&hits, iovas, 100000);
    round_of_walks(&walks, iovas, 100000);
  }
  report("translation: IOTLB hit", &hits, "page walk", &walks, "\"pages\": %d", N_IOVAS);
  report("translation: IOTLB miss, with its walk", &misses, "page walk", &walks, "\"pages\": %d",
         N_IOVAS);
  unmap(N_IOVAS * K4);
}

int main(void) {
  struct iofs_domain_config config = {
      .aperture_last = (1ull << 48) - 1, .pgsize_bitmap = K4 | M2 | G1, .format = IOFS_PT_VTD};
  start_client();
  MUST(!iofs_mm_open_process(client, &mm) && (iopt = iofs_iopt_new()));
  MUST(!iofs_domain_new(&config, &domain) && !iofs_iopt_add_domain(iopt, domain));
  maps();
  translation();
  dma("DMA 64 B, shared memory", shared, 64, 50000);
  dma("DMA 4 KiB, shared memory", shared, K4, 20000);
  dma("DMA 64 KiB, shared memory", shared, K64, 2000);
  dma("DMA 64 B, private memory", private, 64, 10000);
  dma("DMA 4 KiB, private memory", private, K4, 5000);
  dma("DMA 64 KiB, private memory", private, K64, 1000);
  iofs_iopt_remove_domain(iopt, domain);
  iofs_domain_put(domain);
  iofs_iopt_free(iopt);
  iofs_mm_put(mm);
  kill(client, SIGKILL);
  waitpid(client, NULL, 0);
  return 0;
}
