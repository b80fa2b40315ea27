/* protocol.h: memcached as the engine knows it (../protocol.h); what it is made of is memcached.h. */
#ifndef MUSIDECAR_MEMCACHED_PROTOCOL_H
#define MUSIDECAR_MEMCACHED_PROTOCOL_H

#include "protocols/protocol.h"

extern const struct protocol memcached_protocol;

#endif
