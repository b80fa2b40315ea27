/*
 * protocol.h: what the engine needs to know about a backend's protocol. Documentation: Redis is the only backend today,
 * the engine calls its functions by name, and there is no table of function pointers for a second one to fill.
 *
 * Frame a request. resp_request_feed() says of the bytes a client has sent so far whether a request is whole (DONE), not
 *   yet (MORE), nothing to do (EMPTY) or BAD, in which case the client gets the backend's own error and is closed. It copies
 *   and allocates nothing and looks at each byte once. It must agree with the backend on where a request ends, byte for
 *   byte, odd input included: requests of many clients share one connection, so a disagreement would hand one client's
 *   bytes, or another's answer, to somebody else. What only a person types (inline requests) is normalised first.
 *
 * Classify it. command_lookup() gives the command's way; what is no command, or has too few arguments, gets the backend's
 *   own text (command_error()) and goes no further. In the terms of the plan:
 *     READ     WAY_READ: the shared connection, not logged; its answer waits for a permission probe.
 *     WRITE    WAY_WRITE: logged and committed, then the shared connection.
 *     SESSION  WAY_SESSION: state of one connection (database, protocol version, an open transaction), kept and answered
 *              by session.c, so that what travels is stateless. WAY_LATER: state that needs a backend connection of its
 *              own (WATCH, blocking, subscriptions, MONITOR), answered with an error as long as there is none.
 *     ADMIN    WAY_ADMIN: must overtake the shared connection (SCRIPT KILL). WAY_REFUSE: would take the backend out of
 *              the cluster's hands. Commands whose state the effect stream does not show are WAY_LATER too, except
 *              script bodies, which are logged.
 *     BAD      RESP_BAD, or a verdict other than COMMAND_OK.
 *   A command may have an action besides: something in it that the session layer or the engine has to look at.
 *   Commands are classified by what the running backend says of them and a reviewed list (commands.py). One that is not
 *   known there is never run unlogged unless the backend itself calls it readonly.
 *
 * Rewrite what only the leader can decide. Not needed for Redis, which reveals its effects.
 *
 * Frame a reply. resp_reply_feed() consumes bytes of the backend as they come and says where a reply ends, and whether it
 *   is a push, which answers no request. Not RESP means that the two have lost step: nothing may be answered any more.
 *
 * Reveal effects. Redis does: its replication stream is what followers apply (ffi/engine).
 *
 * The driver (Python: driver.py, admin.py, rdb.py) starts, watches and configures the backend and moves its snapshots.
 */
#ifndef MUSIDECAR_PROTOCOL_H
#define MUSIDECAR_PROTOCOL_H

#endif
