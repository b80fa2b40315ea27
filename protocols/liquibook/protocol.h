/* protocol.h: the exchange as the engine knows it (../protocol.h); what it is made of is lines.h. */
#ifndef MUSIDECAR_LIQUIBOOK_PROTOCOL_H
#define MUSIDECAR_LIQUIBOOK_PROTOCOL_H

#include "protocols/protocol.h"

extern const struct protocol liquibook_protocol;

#endif
