/* protocol.h: HERD behind its gate, as the engine knows it (../protocol.h): request.h and what the gate answers (wire.h). */
#ifndef MUSIDECAR_HERD_PROTOCOL_H
#define MUSIDECAR_HERD_PROTOCOL_H

#include "protocols/protocol.h"

extern const struct protocol herd_protocol;

#endif
