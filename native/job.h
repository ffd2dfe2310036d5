/* What the rooms of this directory share of the job pool; the rest is in iommufs.h. */
#ifndef IOFS_JOB_H
#define IOFS_JOB_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct iofs_job;

extern _Atomic uint64_t iofs_live_jobs;

/* A thread that is awake anyway says so, and looks for jobs until it says that it is not. */
void jobs_attend(int present);
int jobs_are_queued(void);
void jobs_help(void); /* does one, if there is one: it may take for ever */

/* Do a job that nobody has begun: it is this thread's from claim on, whoever waits for it or frees it.
 * run: 1 if nobody has done so meanwhile. */
void job_claim(struct iofs_job *job);
int job_run(struct iofs_job *job);

/* Bytes moved, fewer than length where the client's memory ends, or -errno for the first byte. May
 * wait for ever: see "job" in iommufs.h. */
ssize_t iofs_client_read(int tid, uint64_t address, void *buf, size_t length);
/* The same, and then so many bytes elsewhere: how many of both together. */
ssize_t iofs_client_read_both(int tid, uint64_t address, void *buf, size_t length,
                              uint64_t elsewhere, void *more, size_t n_more);
ssize_t iofs_client_write(int tid, uint64_t address, const void *buf, size_t length);

#endif
