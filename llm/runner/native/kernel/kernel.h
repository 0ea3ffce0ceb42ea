/* The kernel's entry points and the structures that cross the border from Python.
 *
 *     T  rows of a step (tokens)     C  width             H  query heads       N  outputs of a matrix
 *     B  sequences of a step         F  ffn width         K  key/value heads   K_in  inputs of a matrix
 *     M  rows that want logits       V  vocabulary        D  head size         P  tokens per KV block: 16
 *
 * Everything is little-endian, every index int32, every pointer the caller's, alive while the kernel is.
 * Arrays of floats over the width are padded with zeros to a multiple of 32 (`C32`), so loops have no tails.
 * Nothing here checks its arguments: runner.py, the only caller, does.
 */
#pragma once
#include <stdint.h>

#define GROUP 32       /* inputs of a matrix that share a scale */
#define PANEL 16       /* outputs of a matrix that are computed side by side, one per SIMD lane */
#define BLOCK_TOKENS 16 /* tokens of a KV block */

enum Format { F32 = 0, Q8_0 = 1, Q4_0 = 2, Q4_1 = 3 };
enum Activation { GELU = 0, GELU_TANH = 1, SWIGLU = 2 };

/* One linear map, packed; formats.h draws `panels`. */
typedef struct {
    const void *panels;  /* 64-byte aligned; NULL when the network has no such matrix */
    const float *bias;   /* (N rounded up to 16) or NULL */
    int32_t format;      /* enum Format */
    int32_t num_out, num_in;
    int32_t reserved;
} Matrix;

typedef struct {
    Matrix qkv, out, gate, up, down; /* gate only with SwiGLU */
    const float *attention_norm, *attention_norm_bias; /* (C32,); a bias may be NULL */
    const float *ffn_norm, *ffn_norm_bias;
    const float *q_norm, *k_norm; /* (D,) RMSNorm over a head, or NULL */
    int32_t window;               /* tokens that a token sees, itself included; 0 for all */
    int32_t reserved;
} Layer;

typedef struct {
    int32_t num_layers, width, num_heads, num_kv_heads, head_dim, ffn_width, vocab_size;
    int32_t layer_norm;   /* 1 LayerNorm, 0 RMSNorm */
    int32_t activation;   /* enum Activation */
    float norm_eps;
    const Layer *layers;
    Matrix embedding, head; /* the same panels when tied */
    const float *positions; /* learned, (positions, C32), or NULL */
    const float *cosines, *sines; /* rotary, (positions, D/2) each, or NULL */
    const float *norm, *norm_bias;
} Model;

/* Keys and values of all layers; layout in attention.c. */
typedef struct {
    void *keys, *values;
    int32_t half;       /* 1: float16, 0: float32 */
    int32_t num_blocks;
} Cache;

/* One step's work. Rows of one sequence follow each other, at positions that follow each other. */
typedef struct {
    int32_t num_rows, num_sequences, table_width, num_logits, num_hidden, reserved;
    const int32_t *tokens;      /* (T,) */
    const int32_t *positions;   /* (T,) */
    const int32_t *starts;      /* (B + 1,) first row of each sequence, and T */
    const int32_t *tables;      /* (B, table_width) block ids */
    const int32_t *logit_rows;  /* (M,) */
    const int32_t *hidden_rows; /* (E,) */
    float *logits;              /* (M, V) out */
    float *hidden;              /* (E, C) out: after the final norm */
} Step;

typedef struct Kernel Kernel;

/* Workspace for steps of at most `max_rows` rows on `num_threads` threads, the caller's included; the others
 * sleep between steps. The structures are copied, what they point to is not. NULL when memory is short. */
Kernel *kernel_new(const Model *model, const Cache *cache, int32_t num_threads, int32_t max_rows);
void kernel_free(Kernel *kernel);

/* Computes every row, writes its keys and values, and fills logits and hidden. One step at a time. */
void kernel_step(Kernel *kernel, const Step *step);

/* Contents of KV blocks to others, all layers: pairs (from, to). Sources are read before a target that is
 * also a source is written only if the caller orders them so. */
void kernel_copy_blocks(Kernel *kernel, const int32_t *pairs, int32_t num_pairs);

/* For tests: x (T, K_in) floats → y (T, N), through the same quantisation of x as in a step. */
void kernel_matmul(const Matrix *matrix, const float *x, int32_t num_rows, float *y);

/* Ceilings; both run on all threads of the kernel and return the best of `repeats` runs. */
double kernel_read_rate(Kernel *kernel, const void *data, int64_t num_bytes, int32_t repeats); /* bytes/s */
double kernel_dot_rate(Kernel *kernel, int32_t repeats); /* int8 multiply-adds/s × 2, from registers */

const char *kernel_isa(void); /* "avx512", "avx2" or "portable" */
