/* Threads that share the phases of a step, and wait for work, not for each other.
 *
 * A step is a fixed sequence of phases. A phase is `total` pieces of work in any order; it is over when all are
 * done, whoever did them. Each thread first claims pieces of its own share, then of the others' that are left:
 *
 *     phase 7, 60 panels, 2 threads     share 0: 0 … 29 │ share 1: 30 … 59
 *                                       next  0: ──▶ 12 │ next  1: ──▶ 38        done: 18 of 60
 *
 * So a thread that the operating system has put aside holds up at most the piece it is at: the others do the
 * rest of the phase, and of the step, without it. When it comes back it finds every earlier phase done, walks
 * past them and joins where the others are, or finds the step over. Since every piece writes its own outputs
 * in one fixed order of operations, who does it changes no bit.
 *
 * Each step's counters live in an arena, and a thread that is late keeps its step's from being used again. There
 * are a few, so the next step waits for the latest only when as many steps have passed. Between steps threads
 * sleep on a condition variable after a few microseconds.
 */
#pragma once
#include <stdint.h>

typedef struct Pool Pool;
typedef struct Walk Walk; /* one thread's way through one step */

typedef void Body(void *context, Walk *walk);                        /* every thread runs it: the same phases */
typedef void Work(void *task, Walk *walk, int32_t begin, int32_t end); /* pieces [begin, end) of a phase */

/* NULL when memory or threads are short. */
Pool *pool_new(int num_threads, int max_phases);
void pool_free(Pool *pool);
int pool_num_threads(const Pool *pool);

/* Runs `body` on this thread and on whichever others come; over when this thread's way is, by when every phase
 * is. `context` is copied for those who come late: `size` bytes, at most CONTEXT_BYTES. */
#define CONTEXT_BYTES 256
void pool_run(Pool *pool, Body *body, const void *context, int size);

/* The next phase of this way: `total` pieces, claimed `grain` at a time. Returns when all are done. `work` is
 * called for what this thread claimed; `task` is only read then. */
void pool_phase(Walk *walk, int32_t total, int32_t grain, Work *work, void *task);

int walk_thread(const Walk *walk);       /* 0 is the caller's */
uint64_t walk_phase(const Walk *walk);   /* of all phases of all steps this one's number: never twice the same */
