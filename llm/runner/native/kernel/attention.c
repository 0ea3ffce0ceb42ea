/* See attention.h. Flash attention (Dao et al. 2022): tile by tile, with a running maximum and sum per query.
 *
 *     scores = q · K                     of the tile's tokens                     (queries, 128)
 *     top'   = max(top, max scores)
 *     weight = e^(scores - top')         zero for tokens that a query does not see
 *     sum    = sum · e^(top - top') + Σ weight
 *     answer = answer · e^(top - top') + weight · V                               in the end, answer / sum
 *
 * Keys and values are read once for up to MAX_QUERIES queries: the query heads of a group, and neighbouring rows
 * of a prompt. A tile that a query does not see changes none of its bits: e^0 is 1, and what is added is 0.
 */
#include "attention.h"

#define TILE 128               /* tokens: their keys and values of a head of 64 are 32 KB in float16 */
#define TILE_BLOCKS (TILE / BLOCK_TOKENS)
#define NONE (-1e30f)          /* the score of a token that is not seen */

#if defined(ISA_AVX512)
#define MAX_QUERIES 12         /* as many accumulators as the registers hold */
#else
#define MAX_QUERIES 6
#endif

/* A line that a later tile will read, into the second-level cache: the first holds this tile's keys and values. */
INLINE void fetch(const char *p) {
#if defined(ISA_AVX512) || defined(ISA_AVX2)
    _mm_prefetch(p, _MM_HINT_T1);
#else
    (void)p;
#endif
}
INLINE vec load(const char *p, const int half) { return half ? v_load_half((const uint16_t *)p) : v_load((const float *)p); }
static int round_up(int n, int to) { return (n + to - 1) / to * to; }
static char *block_of(char *pool, size_t bytes, const Pages *pages, int head, int block) {
    return pool + ((size_t)pages->table[block] * pages->num_heads + head) * bytes;
}
static char *keys_of(const Pages *pages, int head, int block) { return block_of(pages->keys, pages->key_bytes, pages, head, block); }
static char *values_of(const Pages *pages, int head, int block) { return block_of(pages->values, pages->value_bytes, pages, head, block); }

/* What float16 can hold: a number beyond would be infinite, and infinity times a weight of zero no number, so
 * that a row's answer hung on which later tokens came in the same step. NaN stays NaN. */
INLINE vec bounded(vec v) { return v_max(v_set1(-65504.f), v_min(v_set1(65504.f), v)); }

void store_key(const Pages *pages, int head, int position, const float *key) {
    char *block = keys_of(pages, head, position / BLOCK_TOKENS);
    const int token = position % BLOCK_TOKENS;
    for (int i = 0; i < pages->head_dim; i += 16) {
        const int n = pages->head_dim - i < 16 ? pages->head_dim - i : 16;
        vec v = v_load_n(key + i, n);
        if (pages->half) {
            uint16_t lanes[16];
            v_store_half(lanes, bounded(v));
            for (int j = 0; j < n; j++) ((uint16_t *)block)[(i + j) * BLOCK_TOKENS + token] = lanes[j];
        } else {
            for (int j = 0; j < n; j++) ((float *)block)[(i + j) * BLOCK_TOKENS + token] = key[i + j];
        }
    }
}

void store_value(const Pages *pages, int head, int position, const float *value, int clear) {
    char *block = values_of(pages, head, position / BLOCK_TOKENS);
    const int token = position % BLOCK_TOKENS;
    const size_t line = pages->half ? 32 : 64;
    for (int i = 0; i < pages->head_dim; i += 16, block += BLOCK_TOKENS * line) {
        char *at = block + token * line;
        vec v = v_load_n(value + i, pages->head_dim - i);
        if (pages->half) v_store_half((uint16_t *)at, bounded(v));
        else v_store((float *)at, v);
        if (clear) memset(at + line, 0, (BLOCK_TOKENS - 1 - token) * line);
    }
}

/* Scores of `num_blocks` blocks for `n` queries: (n, TILE). `next` is what will be read next, a block for a block. */
INLINE void score(const int n, const int half, const int wide, const Query *queries, int head_dim,
                  char *const *keys, char *const *next, int num_blocks, float *scores) {
    const size_t line = half ? 32 : 64;
    for (int b = 0; b < num_blocks; b += wide) {
        vec sum[MAX_QUERIES][2];
        const int both = wide == 2 && b + 1 < num_blocks;
        const char *first = keys[b], *second = keys[both ? b + 1 : b];
        for (int i = 0; i < n; i++) sum[i][0] = sum[i][1] = v_zero();
        for (int d = 0; d < head_dim; d++) {
            vec k0 = load(first + d * line, half), k1 = wide == 2 ? load(second + d * line, half) : k0;
            if (!half || d % 2 == 0) {
                fetch(next[b] + d * line);
                if (wide == 2) fetch(next[both ? b + 1 : b] + d * line);
            }
            for (int i = 0; i < n; i++) {
                vec q = v_set1(queries[i].query[d]);
                sum[i][0] = v_fma(q, k0, sum[i][0]);
                if (wide == 2) sum[i][1] = v_fma(q, k1, sum[i][1]);
            }
        }
        for (int i = 0; i < n; i++) {
            v_store(scores + i * TILE + b * 16, sum[i][0]);
            if (both) v_store(scores + i * TILE + b * 16 + 16, sum[i][1]);
        }
    }
}

/* One query's scores of a tile into weights. Returns what its earlier sum and answer shrink by. */
static float weigh(const Query *query, int tile_start, int num_blocks, float *scores, float *top, float *sum) {
    vec most = v_set1(*top);
    for (int b = 0; b < num_blocks; b++) {
        const int start = tile_start + 16 * b, lo = query->first - start, hi = query->last + 1 - start;
        vec s = v_load(scores + 16 * b);
        if (lo > 0 || hi < 16) {
            s = v_window(s, lo, hi, NONE);
            v_store(scores + 16 * b, s);
        }
        most = v_max(s, most);
    }
    const float new_top = v_top(most);
    vec total = v_zero();
    for (int b = 0; b < num_blocks; b++) {
        const int start = tile_start + 16 * b, lo = query->first - start, hi = query->last + 1 - start;
        vec weight = v_exp(v_sub(v_load(scores + 16 * b), v_set1(new_top)));
        if (lo > 0 || hi < 16) weight = v_window(weight, lo, hi, 0.f);
        v_store(scores + 16 * b, weight);
        total = v_add(total, weight);
    }
    float shrink[16];
    v_store(shrink, v_exp(v_set1(*top - new_top)));
    *top = new_top;
    *sum = *sum * shrink[0] + v_sum(total);
    return shrink[0];
}

/* answers = answers · shrink + weights · values, `wide` times 16 numbers at a time. */
INLINE void mix(const int n, const int half, const int wide, int first_chunk, const float *weights, const float *shrink,
                char *const *values, char *const *next, int num_blocks, float *answers, int stride) {
    const size_t line = half ? 32 : 64, chunk = 16 * line;
    vec sum[MAX_QUERIES][4];
    for (int i = 0; i < n; i++)
        for (int c = 0; c < wide; c++)
            sum[i][c] = v_mul(v_load(answers + i * stride + 16 * (first_chunk + c)), v_set1(shrink[i]));
    for (int b = 0; b < num_blocks; b++) {
        const char *block = values[b] + first_chunk * chunk, *after = next[b] + first_chunk * chunk;
        for (int t = 0; t < 16; t++) {
            vec v[4];
            for (int c = 0; c < wide; c++) {
                v[c] = load(block + c * chunk + t * line, half);
                if (!half || t % 2 == 0) fetch(after + c * chunk + t * line);
            }
            for (int i = 0; i < n; i++) {
                vec w = v_set1(weights[i * TILE + 16 * b + t]);
                for (int c = 0; c < wide; c++) sum[i][c] = v_fma(w, v[c], sum[i][c]);
            }
        }
    }
    for (int i = 0; i < n; i++)
        for (int c = 0; c < wide; c++) v_store(answers + i * stride + 16 * (first_chunk + c), sum[i][c]);
}

/* What is kept of a tile's blocks while its queries pass. */
typedef struct {
    int start, num_blocks;
    char *keys[TILE_BLOCKS], *values[TILE_BLOCKS], *next[TILE_BLOCKS]; /* next: the keys of the tile after */
} Tile;

/* `n` queries and one tile; `n` is a constant where this is inlined. */
INLINE void pass(const int n, const int half, const Pages *pages, const Tile *tile, const Query *queries, float *answers, int stride) {
    _Alignas(64) float scores[MAX_QUERIES * TILE];
    float shrink[MAX_QUERIES];
    int last = tile->start - 1; /* blocks behind the last token that one of these sees would change nothing */
    for (int i = 0; i < n; i++) last = queries[i].last > last ? queries[i].last : last;
    int num_blocks = (last - tile->start + BLOCK_TOKENS) / BLOCK_TOKENS;
    if (num_blocks > tile->num_blocks) num_blocks = tile->num_blocks;
    if (num_blocks == 0) return;
    score(n, half, n <= 4 ? 2 : 1, queries, pages->head_dim, tile->keys, tile->values, num_blocks, scores);
    for (int i = 0; i < n; i++) {
        float *state = answers + i * stride + stride - 16; /* behind the answer: top, sum */
        shrink[i] = weigh(queries + i, tile->start, num_blocks, scores + i * TILE, state, state + 1);
    }
    const int chunks = (stride - 16) / 16, wide = n <= MAX_QUERIES / 4 ? 4 : n <= MAX_QUERIES / 2 ? 2 : 1;
    int c = 0;
#define MIX(wide, first) mix(n, half, wide, first, scores, shrink, tile->values, tile->next, num_blocks, answers, stride)
    if (wide >= 4) for (; c + 4 <= chunks; c += 4) MIX(4, c);
    if (wide >= 2) for (; c + 2 <= chunks; c += 2) MIX(2, c);
    for (; c < chunks; c++) MIX(1, c);
#undef MIX
}

/* As many queries as there are and fit; returns their number. */
static __attribute__((noinline)) int any_pass(int left, const Pages *pages, const Tile *tile, const Query *queries, float *answers, int stride) {
#define PASS(n)                                                             \
    if (left >= n) {                                                        \
        if (pages->half) pass(n, 1, pages, tile, queries, answers, stride); \
        else pass(n, 0, pages, tile, queries, answers, stride);             \
        return n;                                                           \
    }
#if MAX_QUERIES >= 12
    PASS(12)
#endif
    PASS(6) PASS(3) PASS(2) PASS(1)
#undef PASS
    return 0;
}

static void open_tile(Tile *tile, const Pages *pages, int head, int start, int last) {
    const int end = start + TILE <= last ? start + TILE : last + 1;
    tile->start = start;
    tile->num_blocks = (end - start + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    for (int b = 0; b < tile->num_blocks; b++) {
        const int block = start / BLOCK_TOKENS + b, after = block + TILE_BLOCKS;
        tile->keys[b] = keys_of(pages, head, block);
        tile->values[b] = values_of(pages, head, block);
        tile->next[b] = after <= last / BLOCK_TOKENS ? keys_of(pages, head, after) : tile->keys[b];
    }
}

size_t attention_scratch(int num_queries, int head_dim) { return (size_t)num_queries * (round_up(head_dim, 16) + 16); }

void attend(const Pages *pages, int head, const Query *queries, int num_queries, float *scratch) {
    const int stride = round_up(pages->head_dim, 16) + 16;
    int first = queries[0].first, last = queries[0].last;
    for (int i = 0; i < num_queries; i++) {
        if (queries[i].first < first) first = queries[i].first;
        if (queries[i].last > last) last = queries[i].last;
        memset(scratch + i * stride, 0, sizeof(float) * stride);
        scratch[i * stride + stride - 16] = NONE;
    }
    for (int start = first / TILE * TILE; start <= last; start += TILE) {
        Tile tile;
        open_tile(&tile, pages, head, start, last);
        for (int i = 0; i < num_queries;) i += any_pass(num_queries - i, pages, &tile, queries + i, scratch + i * stride, stride);
    }
    for (int i = 0; i < num_queries; i++) {
        const float *answer = scratch + i * stride;
        const vec share = v_set1(1.f / answer[stride - 15]);
        for (int d = 0; d < pages->head_dim; d += 16)
            v_store_n(queries[i].answer + d, v_mul(v_load(answer + d), share), pages->head_dim - d);
    }
}
