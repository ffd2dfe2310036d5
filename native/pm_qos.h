/* Whether idle cores of the machine may sleep (see pm_qos.c). For the reader whose turn it is. */
#ifndef IOFS_PM_QOS_H
#define IOFS_PM_QOS_H

/* A request was answered. */
void pm_qos_note(void);

/* Nobody has called for a while. */
void pm_qos_release(void);

int pm_qos_is_held(void);

#endif
