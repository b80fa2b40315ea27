/* client_list.h: lines of CLIENT LIST, for client_list.c and census.c. */
#ifndef MUSIDECAR_ENGINE_CLIENT_LIST_H
#define MUSIDECAR_ENGINE_CLIENT_LIST_H

#include "engine/engine_state.h"

struct field { const char *text; size_t length; }; /* a line; or what stands behind "name=" in one */

bool field_find(struct field line, const char *name, struct field *out);
uint64_t field_number(struct field f);
/* `line` up to that value, then another in its place; line goes on behind it. */
void field_replace(struct buffer *out, struct field *line, const char *name, const char *value, size_t length);
bool list_body(const uint8_t *reply, size_t length, struct field *body, size_t *tag); /* behind its head; false: an error, say */
struct field list_next(struct field *body);
void list_flags(struct field flags, char *out, size_t room); /* without the Unix socket's */

#endif
