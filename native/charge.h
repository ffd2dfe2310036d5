/*
 * Who pays for pinned pages (iommufd's rlimit modes): counters of locked pages for
 * each user and for each address space, held against RLIMIT_MEMLOCK of a process.
 */
#ifndef IOFS_CHARGE_H
#define IOFS_CHARGE_H

#include "iommufs.h"

/* ENOMEM if the limit does not allow n_pages more; then nothing is charged. */
int charge_add(const struct iofs_charge *charge, struct iofs_mm *mm, uint64_t n_pages);
/* Remember the limit of the process, which may have ended when it is needed. */
void charge_note_limit(const struct iofs_charge *charge, struct iofs_mm *mm);
void charge_remove(const struct iofs_charge *charge, struct iofs_mm *mm, uint64_t n_pages);

/* What is charged now, in pages. */
uint64_t charge_of_user(uint32_t uid);

#endif
