/*
 * config_kept.h: parameters that a client may set, and reads as it has set them, while the server has a value of the
 * sidecar's: what a client sets is logged as any other parameter is, and every node sets its own server to what it needs.
 *
 *   masterauth, masteruser   by these the sidecar knows its own server when that asks for its feed: never a client's
 *   repl-backlog-size        at least what a fail-over needs (R8)
 *   slowlog-max-len          so many that the sidecar's questions among them push nothing out (slowlog.h)
 */
#ifndef MUSIDECAR_CONFIG_KEPT_H
#define MUSIDECAR_CONFIG_KEPT_H

#define BACKLOG_BYTES_MIN (64u << 20)
#define SLOWLOG_ENTRIES_MIN 1024u

#endif
