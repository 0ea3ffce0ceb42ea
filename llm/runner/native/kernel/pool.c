/* See pool.h. */
#include "pool.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define LINE 64
#define IDLE_SPINS 300   /* pauses, some 10 µs, before a thread sleeps until the next step */
#define ARENAS 4
#define PHASE_SPINS 2000 /* pauses before a thread that waits within a step lets others run */

typedef struct { _Alignas(LINE) atomic_int value; } Counter; /* alone in its cache line */

typedef struct {
    Counter inside;    /* threads on their way through it */
    Counter *counters; /* [max_phases][num_threads + 1]: pieces claimed of each share, then pieces done */
    int used_phases;
    Body *body;
    uint64_t step;
    _Alignas(16) unsigned char context[CONTEXT_BYTES];
} Arena;

struct Walk {
    Pool *pool;
    Arena *arena;
    int thread, phase;
};

struct Pool {
    int num_threads, max_phases;
    Arena arenas[ARENAS];
    pthread_t *threads;
    uint64_t steps;
    Counter current;    /* the open step's arena */
    Counter generation; /* odd while a step is open, even between steps; negative: time to end */
    pthread_mutex_t lock;
    pthread_cond_t opened;
};

typedef struct { Pool *pool; int thread; } Seat;

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

int pool_num_threads(const Pool *pool) { return pool->num_threads; }
int walk_thread(const Walk *walk) { return walk->thread; }
uint64_t walk_phase(const Walk *walk) { return walk->arena->step * (uint64_t)walk->pool->max_phases + walk->phase; }

void pool_phase(Walk *walk, int32_t total, int32_t grain, Work *work, void *task) {
    const int n = walk->pool->num_threads;
    Counter *claimed = walk->arena->counters + (size_t)walk->phase * (n + 1), *done = claimed + n;
    if (n == 1) {
        work(task, walk, 0, total);
        walk->phase++;
        return;
    }
    for (int i = 0; i < n; i++) {
        const int share = (walk->thread + i) % n;
        const int first = (int)((int64_t)total * share / n), last = (int)((int64_t)total * (share + 1) / n);
        while (atomic_load_explicit(&claimed[share].value, memory_order_relaxed) < last - first) {
            const int begin = first + atomic_fetch_add_explicit(&claimed[share].value, grain, memory_order_acq_rel);
            if (begin >= last) break;
            const int end = begin + grain < last ? begin + grain : last;
            work(task, walk, begin, end);
            atomic_fetch_add_explicit(&done->value, end - begin, memory_order_acq_rel);
        }
    }
    for (int spins = 0; atomic_load_explicit(&done->value, memory_order_acquire) < total;) {
        relax();
        if (++spins >= PHASE_SPINS) sched_yield();
    }
    walk->phase++;
}

/* A thread's turn in an open step. It counts itself in before it looks whether the step is still open, and the
 * owner closes the step before it looks who is in: one of the two sees the other. */
static void join(Pool *pool, int thread, int generation) {
    Arena *arena = pool->arenas + atomic_load(&pool->current.value);
    atomic_fetch_add(&arena->inside.value, 1);
    if (atomic_load(&pool->generation.value) == generation) {
        Walk walk = {pool, arena, thread, 0};
        arena->body(arena->context, &walk);
    }
    atomic_fetch_sub(&arena->inside.value, 1);
}

static void *serve(void *argument) {
    Seat seat = *(Seat *)argument;
    free(argument);
    Pool *pool = seat.pool;
    int seen = 0;
    for (;;) {
        int now = atomic_load(&pool->generation.value);
        for (int spins = 0; (now == seen || now % 2 == 0) && now >= 0 && spins < IDLE_SPINS; spins++) {
            relax();
            now = atomic_load(&pool->generation.value);
        }
        if ((now == seen || now % 2 == 0) && now >= 0) {
            pthread_mutex_lock(&pool->lock);
            while ((now = atomic_load(&pool->generation.value)) >= 0 && (now == seen || now % 2 == 0))
                pthread_cond_wait(&pool->opened, &pool->lock);
            pthread_mutex_unlock(&pool->lock);
        }
        if (now < 0) return NULL;
        join(pool, seat.thread, now);
        seen = now;
    }
}

/* An arena that nobody is in. Whoever is late walks out of his without doing anything: it is a short wait, and
 * only when every arena has someone like that. */
static int free_arena(Pool *pool) {
    for (;; sched_yield())
        for (int i = 0; i < ARENAS; i++)
            if (atomic_load(&pool->arenas[i].inside.value) == 0) return i;
}

static void announce(Pool *pool, int generation) {
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->generation.value, generation);
    pthread_cond_broadcast(&pool->opened);
    pthread_mutex_unlock(&pool->lock);
}

void pool_run(Pool *pool, Body *body, const void *context, int size) {
    const int index = free_arena(pool);
    Arena *arena = pool->arenas + index;
    const size_t num_counters = (size_t)arena->used_phases * (pool->num_threads + 1);
    memset((void *)arena->counters, 0, num_counters * sizeof(Counter));
    memcpy(arena->context, context, size);
    arena->body = body;
    arena->step = ++pool->steps;
    const int generation = atomic_load(&pool->generation.value);
    atomic_store(&pool->current.value, index);
    if (pool->num_threads > 1) announce(pool, (generation + 1) & 0x7fffffff);
    Walk walk = {pool, arena, 0, 0};
    body(arena->context, &walk);
    arena->used_phases = walk.phase;
    if (pool->num_threads > 1) atomic_store(&pool->generation.value, (generation + 2) & 0x7fffffff);
}

Pool *pool_new(int num_threads, int max_phases) {
    Pool *pool = aligned_alloc(LINE, sizeof(Pool)); /* a multiple of LINE, as its members are aligned */
    if (!pool) return NULL;
    memset((void *)pool, 0, sizeof(Pool));
    pool->max_phases = max_phases;
    pool->threads = calloc(num_threads, sizeof(pthread_t));
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->opened, NULL);
    int complete = pool->threads != NULL;
    for (int i = 0; complete && i < ARENAS; i++) {
        const size_t bytes = sizeof(Counter) * max_phases * (num_threads + 1);
        Counter *counters = aligned_alloc(LINE, bytes);
        if (counters) memset((void *)counters, 0, bytes);
        pool->arenas[i].counters = counters;
        complete = counters != NULL;
    }
    pool->num_threads = 1;
    for (int i = 1; complete && i < num_threads; i++) {
        Seat *seat = malloc(sizeof(Seat));
        if (seat) *seat = (Seat){pool, i};
        complete = seat && !pthread_create(&pool->threads[i], NULL, serve, seat);
        if (complete) pool->num_threads++;
        else free(seat);
    }
    if (complete) return pool;
    pool_free(pool);
    return NULL;
}

void pool_free(Pool *pool) {
    if (!pool) return;
    announce(pool, -1);
    for (int i = 1; i < pool->num_threads; i++) pthread_join(pool->threads[i], NULL);
    for (int i = 0; i < ARENAS; i++) free(pool->arenas[i].counters);
    pthread_cond_destroy(&pool->opened);
    pthread_mutex_destroy(&pool->lock);
    free(pool->threads);
    free(pool);
}
