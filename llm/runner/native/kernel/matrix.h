/* A matrix times rows. How weights lie in memory, and what is done with the products.
 *
 * A panel is 16 outputs. Its weights are lines of 64 bytes in the order in which they are read, so one row reads
 * memory from end to end, and a line's 16 outputs are the lanes of one vector: no sum ever goes across lanes.
 * Four inputs of a row, 4 bytes, are spread to all lanes and multiplied with a line:
 *
 *     line of int8    │ output 0: inputs 0 1 2 3 │ output 1: inputs 0 1 2 3 │ … │ output 15 │      × 8 a group
 *     row             │          q_0 q_1 q_2 q_3 │          q_0 q_1 q_2 q_3 │ … │           │
 *     sums            │ one int32                │ one int32                │ … │           │
 *
 *     line of int4    the byte at the place of input i has input i in its low half, i + 4 in its high       × 4
 *     line of f32     one input of 16 outputs                                                              × 32
 *
 * Scales stand in the stream where they are needed, in lines of their own: 16 float16 of each of two groups, or a
 * group's 16 scales and 16 minima. One stream, because a processor follows one: with all scales ahead of all lines
 * a thread read 10 GB/s instead of 25.
 *
 *     Q8_0, Q4_0      │ d of groups 0, 1 │ lines of 0 │ lines of 1 │ d of 2, 3 │ …    w = d·q    w = d·(q - 8)
 *     Q4_1            │ d, m of group 0  │ lines of 0 │ d, m of 1  │ lines of 1 │ …   w = d·q + m
 *
 * An output's sum goes over the groups in order, whatever else is computed beside it:
 *
 *     y = ((Σ d_0 q_0 a_0) + Σ …) + …   with  d · scale · Σ q·a  in one fused step a group, the inner Σ exact
 */
#pragma once
#include "kernel.h"
#include "rows.h"

enum Epilogue { STORE, ADD, GATE }; /* y = v; y = y + v; y = silu(gate) · v */

/* What stands beside a matrix: each row's adapter's low rank. A row's sum goes over the ranks in order. */
typedef struct {
    const LowRank *parts;    /* adapter 0's; NULL: no row has any */
    size_t stride;           /* from an adapter's to the next's */
    const int32_t *adapters; /* (num_rows,) -1: none */
    float *thin;             /* (num_rows, thin_stride) A · x */
    size_t thin_stride;
} Beside;

typedef struct {
    const Matrix *matrix;
    const Matrix *gate;  /* with GATE */
    Beside beside, beside_gate;
    Rows rows;
    int32_t num_rows;
    int32_t epilogue;    /* enum Epilogue */
    int32_t activation;  /* enum Activation, or -1 for none: on v before it is stored */
    float *y;
    size_t stride;       /* of y, in floats */
    int32_t limit;       /* columns of y that exist: the last panel's others are dropped */
} Product;

/* Panels [begin, end) of y, all rows. */
void multiply_panels(const Product *product, int begin, int end);

/* A · x of one row, into its thin place: before its panels are multiplied. */
void thin_row(const Beside *beside, int row, const float *x);

static inline int num_panels(const Matrix *matrix) { return (matrix->num_out + PANEL - 1) / PANEL; }
static inline int num_groups(const Matrix *matrix) { return (matrix->num_in + GROUP - 1) / GROUP; }
size_t panel_bytes(int format, int groups);

/* Row `index` of a matrix, as floats: y (num_in rounded up to 32,). The embedding is read so. */
void read_row(const Matrix *matrix, int32_t index, float *y);
