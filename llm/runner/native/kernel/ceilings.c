/* What the machine can do at most, measured with the kernel's own threads and instructions. */
#include "dot.h"
#include "workspace.h"
#include <time.h>

#define PIECE_BYTES (256 << 10) /* of memory, a piece of work of the reader */
#define DOT_PIECES 64
#define DOT_LOOPS 60000
#define CHAINS (MAX_ROWS >= 8 ? 12 : 4) /* of sums that do not wait for each other */

typedef struct {
    Kernel *kernel;
    const uint8_t *data;
    int64_t num_bytes;
} Reading;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void read_pieces(void *task, Walk *walk, int32_t begin, int32_t end) {
    const Reading *reading = task;
    const float *data = (const float *)(reading->data + (int64_t)begin * PIECE_BYTES);
    const float *stop = (const float *)(reading->data + (int64_t)end * PIECE_BYTES);
    vec sum[8];
    for (int i = 0; i < 8; i++) sum[i] = v_zero();
    for (; data < stop; data += 128)
        for (int i = 0; i < 8; i++) sum[i] = v_max(sum[i], v_load(data + 16 * i));
    for (int i = 0; i < 8; i++) reading->kernel->desks[walk_thread(walk)].sink += v_sum(sum[i]);
}

static void read_all(void *context, Walk *walk) {
    Reading *reading = context;
    pool_phase(walk, (int32_t)(reading->num_bytes / PIECE_BYTES), 1, read_pieces, reading);
}

static void dot_pieces(void *task, Walk *walk, int32_t begin, int32_t end) {
    Kernel *kernel = *(Kernel **)task;
    int8_t quants[4 * CHAINS] = {0};
    uint8_t bytes[64] __attribute__((aligned(64))) = {0};
    for (int piece = begin; piece < end; piece++) {
        ints sum[CHAINS];
        const int32_t zero = 0;
        for (int i = 0; i < CHAINS; i++) sum[i] = start_bytes(&zero);
        line w = load_bytes(bytes);
        for (int loop = 0; loop < DOT_LOOPS; loop++) {
#pragma GCC unroll 12
            for (int i = 0; i < CHAINS; i++) {
                sum[i] = dot_bytes(sum[i], w, quants + 4 * i);
                PIN(sum[i]);
            }
        }
        for (int i = 0; i < CHAINS; i++) kernel->desks[walk_thread(walk)].sink += v_sum(from_ints(sum[i]));
    }
}

static void dot_all(void *context, Walk *walk) { pool_phase(walk, DOT_PIECES, 1, dot_pieces, context); }

double kernel_read_rate(Kernel *kernel, const void *data, int64_t num_bytes, int32_t repeats) {
    double best = 0;
    for (int i = 0; i < repeats; i++) {
        Reading reading = {kernel, data, num_bytes / PIECE_BYTES * PIECE_BYTES};
        const double start = now();
        pool_run(kernel->pool, read_all, &reading, sizeof reading);
        const double rate = (double)reading.num_bytes / (now() - start);
        if (rate > best) best = rate;
    }
    return best;
}

double kernel_dot_rate(Kernel *kernel, int32_t repeats) {
    double best = 0;
    for (int i = 0; i < repeats; i++) {
        const double start = now();
        pool_run(kernel->pool, dot_all, &kernel, sizeof kernel);
        const double rate = 2.0 * 64 * CHAINS * DOT_LOOPS * DOT_PIECES / (now() - start);
        if (rate > best) best = rate;
    }
    return best;
}
