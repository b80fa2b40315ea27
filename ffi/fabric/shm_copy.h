/*
 * shm_copy.h: copying into memory that its owner may write-protect at any moment. The store that hits the protection
 * raises SIGBUS; the handler ends the copy there and lets it return false. SIGBUS from anywhere else goes where it went
 * before.
 */
#ifndef MUSIDECAR_SHM_COPY_H
#define MUSIDECAR_SHM_COPY_H

#include <stdbool.h>
#include <stdint.h>

/* Installs the handler, once per process. Whoever installs one for SIGBUS later has to chain to it. */
void shm_copy_init(void);
/* The last 8 bytes land after all others. False when a store was refused; how many bytes landed is unknown then. */
bool shm_copy(uint8_t *to, const void *bytes, uint32_t length);

#endif
