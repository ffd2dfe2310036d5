/* How readers take part in the baton (see "visits" in serve.h). */
#ifndef IOFS_BATON_H
#define IOFS_BATON_H

#include <stdint.h>

#define BATON_FOR_EVER UINT64_MAX

/* An era begins when the event loop opens visits and ends when it closes them. 0: it is closed. */
uint64_t baton_era(void);
void baton_open(void);  /* the thread that calls it has the baton from here */
void baton_close(void); /* called with the baton: nobody else gets it until it is opened again */

/* 1: taken; 0: not within so long, or the era is over. */
int baton_take(uint64_t era, uint64_t ns);
void baton_give(void);

#endif
