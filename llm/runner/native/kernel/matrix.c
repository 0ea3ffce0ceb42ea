/* See matrix.h. */
#include "matrix.h"

#include "dot.h"

#define HEAD 64 /* bytes: the scales of two groups, or scales and minima of one */

static const int group_bytes[] = {[F32] = 2048, [Q8_0] = 512, [Q4_0] = 256, [Q4_1] = 256}; /* without heads */

/* Where group g's lines begin in a panel. */
INLINE size_t group_start(int format, int g) {
    const int heads = format == F32 ? 0 : format == Q4_1 ? g + 1 : g / 2 + 1;
    return (size_t)heads * HEAD + (size_t)g * group_bytes[format];
}

size_t panel_bytes(int format, int groups) {
    return group_start(format, groups - 1) + group_bytes[format];
}

/* Unrolled, or what is kept of the rows would be in memory. */
#define EACH_ROW _Pragma("GCC unroll 8") for (int r = 0; r < num_rows; r++)

/* The tiles: `num_rows` rows from `row` on times one panel. `num_rows` is a constant wherever they are inlined. */

INLINE void tile_f32(const int num_rows, const uint8_t *panel, int groups, const Rows *rows, int row, size_t ahead, vec *out) {
    const float *weights = (const float *)panel, *x = rows->values + row * rows->value_stride;
    const size_t stride = rows->value_stride;
    vec y[MAX_ROWS];
    EACH_ROW y[r] = v_zero();
    for (int k = 0; k < groups * GROUP; k++, weights += PANEL) {
        vec w = v_load(weights);
        ask_ahead(weights, ahead);
        EACH_ROW y[r] = v_fma(w, v_set1(x[r * stride + k]), y[r]);
    }
    EACH_ROW out[r] = y[r];
}

INLINE void tile_bytes(const int num_rows, const uint8_t *panel, int groups, const Rows *rows, int row, size_t ahead, vec *out) {
    const size_t scale_stride = rows->num_groups, stride = scale_stride * GROUP;
    const uint16_t *scales = NULL;
    const uint8_t *weights = panel;
    const int8_t *a = rows->quants + row * stride;
    const float *d = rows->scales + row * scale_stride;
    const int32_t *bias = rows->biases + row * scale_stride;
    vec y[MAX_ROWS];
    EACH_ROW y[r] = v_zero();
    for (int g = 0; g < groups; g++, a += GROUP, d++, bias++) {
        ints sum[MAX_ROWS];
        if (g % 2 == 0) {
            scales = (const uint16_t *)weights;
            weights += HEAD;
        }
        EACH_ROW sum[r] = start_bytes(bias + r * scale_stride);
        for (int j = 0; j < 8; j++, weights += 64) {
            line w = load_bytes(weights);
            ask_ahead(weights, ahead);
            EACH_ROW {
                sum[r] = dot_bytes(sum[r], w, a + r * stride + 4 * j);
                PIN(sum[r]);
            }
        }
        vec scale = v_load_half(scales + g % 2 * PANEL);
        EACH_ROW y[r] = v_fma(v_mul(from_ints(sum[r]), v_set1(d[r * scale_stride])), scale, y[r]);
    }
    EACH_ROW out[r] = y[r];
}

INLINE void tile_nibbles(const int num_rows, const int affine, const uint8_t *panel, int groups, const Rows *rows, int row, size_t ahead, vec *out) {
    const size_t scale_stride = rows->num_groups, stride = scale_stride * GROUP;
    const uint16_t *scales = NULL;
    const uint8_t *weights = panel;
    const int8_t *a = rows->quants + row * stride;
    const float *d = rows->scales + row * scale_stride, *offset = rows->offsets + row * scale_stride;
    const int32_t *bias = rows->biases + row * scale_stride;
    vec y[MAX_ROWS];
    EACH_ROW y[r] = v_zero();
    for (int g = 0; g < groups; g++, a += GROUP, d++, offset++, bias++) {
        nibble_ints sum[MAX_ROWS];
        if (affine || g % 2 == 0) {
            scales = (const uint16_t *)weights;
            weights += HEAD;
        }
        EACH_ROW sum[r] = start_nibbles();
        for (int j = 0; j < 4; j++, weights += 64) {
            line low = load_low(weights), high = load_high(weights);
            ask_ahead(weights, ahead);
            EACH_ROW {
                sum[r] = dot_nibbles(sum[r], low, high, a + r * stride + 8 * j);
                PIN(sum[r]);
            }
        }
        vec scale = v_load_half(scales + (affine ? 0 : g % 2 * PANEL));
        vec least = affine ? v_load_half(scales + PANEL) : v_zero();
        EACH_ROW {
            ints whole = finish_nibbles(sum[r], affine ? 0 : bias[r * scale_stride] / 16); /* -8·Σa */
            if (affine) y[r] = v_fma(least, v_set1(offset[r * scale_stride]), y[r]);
            y[r] = v_fma(v_mul(from_ints(whole), v_set1(d[r * scale_stride])), scale, y[r]);
        }
    }
    EACH_ROW out[r] = y[r];
}

INLINE void tile(const int num_rows, const Matrix *matrix, int panel, const Rows *rows, int row, size_t ahead, vec *out) {
    const int groups = num_groups(matrix);
    const uint8_t *at = (const uint8_t *)matrix->panels + panel * panel_bytes(matrix->format, groups);
    switch (matrix->format) {
    case F32: tile_f32(num_rows, at, groups, rows, row, ahead, out); break;
    case Q8_0: tile_bytes(num_rows, at, groups, rows, row, ahead, out); break;
    case Q4_0: tile_nibbles(num_rows, 0, at, groups, rows, row, ahead, out); break;
    default: tile_nibbles(num_rows, 1, at, groups, rows, row, ahead, out); break;
    }
    if (matrix->bias)
        EACH_ROW out[r] = v_add(out[r], v_load(matrix->bias + PANEL * panel));
}

/* The largest tile that fits what is left of the rows; returns how many it did. The first tile of a panel reads it
 * from memory, the others from the nearest cache; the last one asks for the next panel meanwhile. */
static __attribute__((noinline)) int any_tile(int left, const Matrix *matrix, int panel, const Rows *rows, int row, size_t ahead, vec *out) {
#if MAX_ROWS >= 8
    if (left >= 8) return tile(8, matrix, panel, rows, row, ahead, out), 8;
#endif
    if (left >= 4) return tile(4, matrix, panel, rows, row, ahead, out), 4;
    if (left >= 2) return tile(2, matrix, panel, rows, row, ahead, out), 2;
    return tile(1, matrix, panel, rows, row, ahead, out), 1;
}

INLINE vec activate(int activation, vec v) {
    if (activation == GELU) return v_gelu(v);
    return activation == GELU_TANH ? v_gelu_tanh(v) : v;
}

static const LowRank *part_of(const Beside *beside, int row) {
    const int adapter = beside->adapters[row];
    return adapter < 0 ? NULL : beside->parts + adapter * beside->stride;
}

void thin_row(const Beside *beside, int row, const float *x) {
    const LowRank *part = part_of(beside, row);
    if (!part || !part->a.num_out) return;
    const Product product = {.matrix = &part->a, .rows = {.values = x}, .num_rows = 1, .epilogue = STORE, .activation = -1,
                             .y = beside->thin + row * beside->thin_stride, .limit = part->a.num_out};
    multiply_panels(&product, 0, num_panels(&part->a));
}

static vec add_beside(const Beside *beside, int panel, int row, vec v) {
    const LowRank *part = part_of(beside, row);
    if (!part) return v;
    const int rank = part->a.num_out;
    const float *b = part->b + (size_t)panel * rank * PANEL, *thin = beside->thin + row * beside->thin_stride;
    for (int k = 0; k < rank; k++, b += PANEL) v = v_fma(v_load(b), v_set1(thin[k]), v);
    return v;
}

static void finish(const Product *product, int panel, int row, int num_rows, const vec *out, const vec *gate) {
    const int columns = product->limit - PANEL * panel;
    float *y = product->y + row * product->stride + PANEL * panel;
    for (int r = 0; r < num_rows; r++, y += product->stride) {
        vec v = product->beside.parts ? add_beside(&product->beside, panel, row + r, out[r]) : out[r];
        v = activate(product->activation, v);
        if (product->epilogue == GATE) {
            vec g = product->beside_gate.parts ? add_beside(&product->beside_gate, panel, row + r, gate[r]) : gate[r];
            v = v_mul(v_silu(g), v);
        }
        if (columns >= PANEL) {
            v_store(y, product->epilogue == ADD ? v_add(v_load(y), v) : v);
        } else {
            v_store_n(y, product->epilogue == ADD ? v_add(v_load_n(y, columns), v) : v, columns);
        }
    }
}

#define ROWS_AT_ONCE 128 /* their quants stay in the second-level cache while the panels pass */

void multiply_panels(const Product *product, int begin, int end) {
    for (int from = 0; from < product->num_rows; from += ROWS_AT_ONCE) {
        const int to = from + ROWS_AT_ONCE < product->num_rows ? from + ROWS_AT_ONCE : product->num_rows;
        for (int panel = begin; panel < end; panel++)
            for (int row = from; row < to;) {
                vec out[MAX_ROWS], gate[MAX_ROWS];
                const Matrix *matrix = product->matrix;
                const size_t ahead = row == from ? AHEAD(to - row) : row + MAX_ROWS < to ? 0 : panel_bytes(matrix->format, num_groups(matrix));
                const int done = any_tile(to - row, matrix, panel, &product->rows, row, ahead, out);
                if (product->epilogue == GATE) any_tile(to - row, product->gate, panel, &product->rows, row, ahead, gate);
                finish(product, panel, row, done, out, gate);
                row += done;
            }
    }
}

static float half_at(const uint16_t *p) {
    uint16_t lanes[16] = {*p};
    float values[16];
    v_store(values, v_load_half(lanes));
    return values[0];
}

void read_row(const Matrix *matrix, int32_t index, float *y) {
    const int groups = num_groups(matrix), lane = index % PANEL, format = matrix->format;
    const uint8_t *panel = (const uint8_t *)matrix->panels + (size_t)(index / PANEL) * panel_bytes(format, groups);
    if (format == F32) {
        for (int k = 0; k < groups * GROUP; k++) y[k] = ((const float *)panel)[k * PANEL + lane];
        return;
    }
    for (int g = 0; g < groups; g++) {
        const uint8_t *lines = panel + group_start(format, g);
        const uint16_t *head = (const uint16_t *)(lines - HEAD - (format != Q4_1 && g % 2) * group_bytes[format]);
        const float scale = half_at(head + (format != Q4_1 && g % 2) * PANEL + lane);
        const float least = format == Q4_1 ? half_at(head + PANEL + lane) : 0.f;
        for (int i = 0; i < GROUP; i++) {
            if (format == Q8_0) {
                y[GROUP * g + i] = scale * (float)(int8_t)lines[64 * (i / 4) + 4 * lane + i % 4];
            } else {
                const uint8_t byte = lines[64 * (i / 8) + 4 * lane + i % 4];
                const int quant = i % 8 < 4 ? byte & 15 : byte >> 4;
                y[GROUP * g + i] = format == Q4_0 ? scale * (float)(quant - 8) : scale * (float)quant + least;
            }
        }
    }
}
