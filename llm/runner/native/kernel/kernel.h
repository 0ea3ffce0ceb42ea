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

/* What an adapter adds to a matrix's output, before its activation: B · (A · x), scaled in B. */
typedef struct {
    Matrix a;       /* f32, (rank, K_in); num_out 0: nothing */
    const float *b; /* (panels of N, rank, 16) */
} LowRank;

typedef struct {
    LowRank qkv, out, gate, up, down;
} Adapter; /* of one layer */

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
    const Adapter *adapters; /* (adapters, num_layers) */
    int32_t max_rank;        /* of all of their matrices */
    int32_t reserved;
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
    const int32_t *adapters;    /* (T,) whose low ranks a row gets, -1 for none; NULL: no row gets any */
} Step;

/* How a reply's tokens are drawn; llm/config.py says what the numbers mean. */
typedef struct {
    uint64_t seed;
    double temperature;         /* 0: greedy */
    double top_p;               /* 1: all */
    double frequency, presence; /* 0: none */
    float repetition;           /* 1: none */
    float min_p;                /* temperature · ln(min_p), which the largest may exceed others by; -inf: no matter */
    int32_t choice;
    int32_t top_k;              /* 0: all */
    int32_t num_seen, num_biased, num_ends;
    int32_t min_tokens;
    const int32_t *seen, *counts; /* (num_seen,) ids of prompt and reply, each once; how often the reply has each */
    const int32_t *biased;        /* (num_biased,) */
    const float *amounts;         /* (num_biased,) added to those */
    const int32_t *ends;          /* (num_ends,) forbidden before position min_tokens */
} Sampling;

/* Rows that draw a token each. Several may look at the same logits. */
typedef struct {
    int32_t num_rows, vocab_size; /* vocab_size: ids that may be drawn, at most `stride` */
    int32_t stride, mask_bytes;
    const float *logits;       /* (., stride) */
    const int32_t *rows;       /* (M,) of the logits */
    const int32_t *positions;  /* (M,) of the token in its reply */
    const Sampling *samplings; /* (M,) */
    const int32_t *mask_rows;  /* (M,) of the masks, -1 where everything is allowed */
    const uint8_t *masks;      /* (., mask_bytes) bit k of a row: id k is allowed; whole words of 32 bits */
    int32_t *tokens;           /* (M,) out: -1 where the logits are no numbers, or allow none */
} Draws;

/* Rows of which one token's log probability is asked, and the best tokens'. */
typedef struct {
    int32_t num_rows, vocab_size;
    int32_t stride, width;
    const float *logits;    /* (., stride) */
    const int32_t *rows;    /* (A,) of the logits */
    const int32_t *tokens;  /* (A,) */
    const int32_t *num_top; /* (A,) at most `width` */
    int32_t *ranks;         /* (A,) out: 1 for the best; 0 where logits are no numbers, or too few above -inf */
    float *values;          /* (A,) out */
    int32_t *top_ids;       /* (A, width) out, the best first */
    float *top_values;      /* (A, width) out */
} Questions;

typedef struct Kernel Kernel;

/* Workspace for steps of at most `max_rows` rows on `num_threads` threads, the caller's included; the others
 * sleep between steps. The structures are copied, what they point to is not. NULL when memory is short. */
Kernel *kernel_new(const Model *model, const Cache *cache, int32_t num_threads, int32_t max_rows);
void kernel_free(Kernel *kernel);

/* Computes every row, writes its keys and values, and fills logits and hidden. One step at a time. */
void kernel_step(Kernel *kernel, const Step *step);

/* Draws tokens, and answers questions; each row's answer hangs on nothing but that row. */
void kernel_draw(Kernel *kernel, const Draws *draws);
void kernel_measure(Kernel *kernel, const Questions *questions);

/* Contents of KV blocks to others, all layers: pairs (from, to). Sources are read before a target that is
 * also a source is written only if the caller orders them so. */
void kernel_copy_blocks(Kernel *kernel, const int32_t *pairs, int32_t num_pairs);

/* For tests: x (T, K_in) floats → y (T, N), through the same quantisation of x as in a step. */
void kernel_matmul(const Matrix *matrix, const float *x, int32_t num_rows, float *y);

/* For tests: what row i of the draws is drawn from, before min-p (vocab_size,); and the weights of draw.h. */
void kernel_adjust(const Draws *draws, int32_t i, float *adjusted);
void kernel_weigh(const float *x, int32_t num, double top, double inverse, double *weights);

/* Ceilings; both run on all threads of the kernel and return the best of `repeats` runs. */
double kernel_read_rate(Kernel *kernel, const void *data, int64_t num_bytes, int32_t repeats); /* bytes/s */
double kernel_dot_rate(Kernel *kernel, int32_t repeats); /* int8 multiply-adds/s × 2, from registers */

const char *kernel_isa(void); /* "avx512", "avx2" or "portable" */
