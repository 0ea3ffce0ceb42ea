/* Softmax attention of a step's rows over paged keys and values. */
#pragma once
#include "kernel.h"
#include "vec.h"
#include <stddef.h>

/* Where one layer's keys and values of one sequence are. A block of one head, D numbers a token:
 *
 *     keys     [D][16 tokens]              scores of 16 tokens at a time, one number of the query after the other
 *     values   [D/16][16 tokens][16]       16 numbers of the answer at a time, one token after the other
 *
 * in float16 or float32; D is rounded up to 16 in values. Block b of head h of layer l is at
 * ((l · num_blocks + b) · num_heads + h) · block_size of its pool. */
typedef struct {
    char *keys, *values;     /* of this layer */
    size_t key_bytes, value_bytes; /* of a block of one head */
    int32_t num_heads, head_dim, half;
    const int32_t *table;    /* block ids of the sequence */
} Pages;

/* Write one token's key or value: `head`'s D floats. A value that is the last of its chunk in a block the chunk
 * began says `clear`: the rest of the block becomes zero, because what an earlier owner left there is multiplied
 * by zero when its tokens are masked, and zero times NaN is NaN. */
void store_key(const Pages *pages, int head, int position, const float *key);
void store_value(const Pages *pages, int head, int position, const float *value, int clear);

/* One query: D floats, already scaled; it sees tokens [first, last]. */
typedef struct {
    const float *query;
    float *answer; /* (D,) out */
    int32_t first, last;
} Query;

/* Floats of scratch for so many queries. */
size_t attention_scratch(int num_queries, int head_dim);

/* Answers queries of one sequence and one key/value head. A query's bits depend on its own tokens alone: tiles
 * of tokens begin at fixed positions, and each tile is worked off in one order. */
void attend(const Pages *pages, int head, const Query *queries, int num_queries, float *scratch);
