/*
 * oracle.h: what must hold at every moment of a run, whatever happens. It sees every record that a node hands out, every
 * part of a write that lands, every grant, and every node that leads.
 */
#ifndef MUSIDECAR_ORACLE_H
#define MUSIDECAR_ORACLE_H

#include "world.h"

void oracle_begin(void);
void oracle_free(void);
void oracle_watch(void); /* the fabric */

/* A node was handed this record: one record per index, at every node, ever; a chain of hashes; a payload that somebody
 * proposed, once; and, when it is the first to be told, a majority that has it in memory. */
void oracle_delivered(struct node *n, const struct record_header *h);
/* After each turn: hashes agree, commit indexes and minimal proposals do not go back, no leader without its NOOP, no
 * term twice. */
void oracle_turn(struct node *n);
/* A record was proposed: into a log that the proposer held. */
void oracle_proposed(const struct node *n, uint64_t sequence);
/* Is the record in this memory, or was it and has been handed out? `lived_to`: proposals made when its owner died. */
bool oracle_in_memory(const uint8_t *log, uint64_t delivered, uint64_t lived_to, uint64_t index);
/* A snapshot point: the same as everybody had there. */
void oracle_point(uint64_t index, uint64_t position, uint64_t hash);
/* Highest index that a leader saw committed. */
uint64_t oracle_acknowledged(void);
bool oracle_was_delivered(uint64_t sequence);

#endif
