/* What a kernel keeps between steps: copies of the structures, threads, and room for the rows of one step. */
#pragma once
#include "attention.h"
#include "matrix.h"
#include "order.h"
#include "pool.h"

#define PROMPT_ROWS 16 /* rows of a prompt that attend together and share the keys they read */

typedef struct { int32_t sequence, row, num_rows; } Stretch; /* rows of one sequence that attend together */

typedef struct {
    Rows rows;          /* of the one row of a step that has no other */
    uint64_t prepared;  /* the phase they were made for */
    float *row;         /* (widest input,) */
    float *thin;        /* (2, max_rank) low ranks of that row, and of its gate */
    float *attention;   /* scratch of `attend` */
    Query *queries;
    Slate slate;        /* to draw a row's token on */
    float sink;         /* what a measurement found, so that it is not optimised away */
} Desk;                 /* what a thread has for itself */

struct Kernel {
    Model model;
    Layer *layers;
    Cache cache;
    Pool *pool;
    int max_rows, width32, ffn32, heads32, qkv16, widest;
    float *x, *qkv, *attended, *hidden, *normal; /* (max_rows, width32 | qkv16 | heads32 | ffn32 | widest) */
    float *thin; /* (max_rows, 2, max_rank) */
    Rows rows;
    Stretch *stretches;
    Desk *desks;
    void *owned[16];
    int num_owned, is_short; /* is_short: not all of it could be had */
};

static inline int round_up(int n, int to) { return (n + to - 1) / to * to; }
