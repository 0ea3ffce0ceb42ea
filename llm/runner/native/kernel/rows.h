/* Rows of numbers on their way into a matrix: normalised, and for integer formats rounded to int8 in groups.
 *
 *     values   x_0 … x_31 │ x_32 … x_63 │ …                       float32, zeros up to a multiple of 32
 *     quants   q_0 … q_31 │ q_32 … q_63 │ …                       int8, in -127 … 127
 *     scales   d_0        │ d_1         │ …                       x ≈ d·q, d = max │x│ / 127 of the group
 *     offsets  d_0·Σq     │ d_1·Σq      │ …                       what a format's minimum is multiplied by
 *     biases   -128·Σq    │ -128·Σq     │ …                       what is left when weights are read as w + 128
 *
 * A group with a number that is none (NaN, infinite) has the scale NaN, so whatever it is multiplied with is NaN.
 */
#pragma once
#include "kernel.h"
#include "vec.h"

#include <stddef.h>

typedef struct {
    const float *values;
    size_t value_stride;
    int8_t *quants;
    float *scales, *offsets;
    int32_t *biases;
    int32_t num_groups; /* the stride of scales, offsets and biases; quants' is 32 times as much */
} Rows;

/* Bytes of workspace for so many rows of so many groups, quants to biases. */
size_t rows_bytes(int num_rows, int num_groups);

/* Rows over a workspace of rows_bytes bytes, 64-byte aligned; their values are elsewhere. */
Rows rows_over(void *workspace, int num_rows, int num_groups);

/* Round row `row` of the values to int8, up to its first `num_groups` groups. */
void quantize_row(const Rows *rows, int row, const float *values, int num_groups);

/* One row through LayerNorm or RMSNorm: x and y (width rounded up to 32,); weight and bias (ditto; bias or NULL). */
void normalize_row(const float *x, float *y, int width, int layer_norm, float eps, const float *weight, const float *bias);
