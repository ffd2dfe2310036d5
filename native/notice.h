/* What seccomp.c, notice.c and notifier.c share; the rest is in serve.h. */
#ifndef IOFS_NOTICE_H
#define IOFS_NOTICE_H

#include <linux/seccomp.h>
#include <stdint.h>

#include "serve.h"

/* One system call that the filter notices. compat: of 32 bits, or x32. */
struct iofs_noticed {
  uint32_t arch, nr;
  uint32_t call; /* enum iofs_notice_call */
  uint32_t compat;
};

const struct iofs_noticed *iofs_noticed_call(const struct seccomp_data *data); /* NULL: none */

/* What the kernel knows of the file of a notice, without asking whoever serves it; -errno. */
struct statx;
int iofs_notice_statx(const struct iofs_notice *notice, uint32_t mask, struct statx *out);

#endif
