/* A row of scores, and its numbers in the order a sampler takes them: the largest first, of equal ones the lower id.
 *
 *     values   x_0 … x_63 │ x_64 … x_127 │ … x_V, -inf … -inf       in spans of 64
 *     tops     max        │ max          │ …                        so that a few numbers are found in few spans
 *     rungs    0 … 1 … 2 …                                          (top - x) · steps: how far below the largest
 *     key      value, descending │ id                               as one whole number: ascending keys are the order
 *
 * Nothing here sorts a vocabulary: only what lies between two rungs is looked at.
 */
#pragma once
#include "vec.h"
#include <stddef.h>

#define SPAN 64

typedef struct {
    const float *values; /* (num,) */
    int num, num_spans;
    float top;           /* the largest; NaN if one of them is no number */
    float *tops;         /* (num_spans, then -inf up to a multiple of 16) */
    float tail[SPAN];    /* the last span */
} Scores;

/* What a thread needs beside one row. */
typedef struct {
    float *adjusted;         /* (V up to whole spans,) */
    float *tops;             /* of Scores */
    double *masses;          /* (spans,) */
    uint64_t *found, *spare; /* (V,) keys */
} Slate;

size_t slate_bytes(int vocab_size);
Slate slate_over(void *memory, int vocab_size); /* 64-byte aligned */

/* Reads a row once: `tops` is the slate's. */
void open_scores(Scores *scores, const float *values, int num, float *tops);

/* A number that at least `count` of the row reach, and few more; if fewer are above -inf, the least of those. */
float bound_of(const Scores *scores, int count);

/* So many steps to the top that each number down to `least` is on one of `num_rungs` rungs. */
float steps_to(const Scores *scores, float least, int num_rungs);

/* Keys of the numbers on the rungs [from, to), in id order; returns how many. */
int collect(const Scores *scores, float steps, int from, int to, uint64_t *found);

/* Ascending; keys of equal values must stand in id order. `spare` has as much room. */
void sort_keys(uint64_t *keys, int num, uint64_t *spare);

/* How far numbers are below the top; those at -inf are on no rung, whatever the steps. */
INLINE vec rungs_of(vec x, float top, float steps) { return v_mul(v_sub(v_set1(top), x), v_set1(steps)); }
INLINE uint32_t v_between(vec rungs, int from, int to) {
    return v_ge(rungs, v_set1((float)from)) & ~v_ge(rungs, v_set1((float)to));
}
static inline const float *span_of(const Scores *scores, int i) {
    return i + 1 < scores->num_spans ? scores->values + (size_t)i * SPAN : scores->tail;
}
static inline uint32_t rising(float value) { /* whole numbers that order as floats do */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
static inline float unrising(uint32_t order) {
    const uint32_t bits = order & 0x80000000u ? order & 0x7fffffffu : ~order;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline uint64_t key_of(float value, int id) { return (uint64_t)~rising(value + 0.f) << 32 | (uint32_t)id; } /* -0 is 0 */
static inline float value_of(uint64_t key) { return unrising(~(uint32_t)(key >> 32)); }
static inline int id_of(uint64_t key) { return (int)(uint32_t)key; }
