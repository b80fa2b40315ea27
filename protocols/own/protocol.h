/* protocol.h: a machine of the user's own as the engine knows it (../protocol.h); what it is made of is frames.h. */
#ifndef MUSIDECAR_OWN_PROTOCOL_H
#define MUSIDECAR_OWN_PROTOCOL_H

#include "protocols/protocol.h"

extern const struct protocol own_protocol;

#endif
