/* Four inputs times a line: the one place where the instruction sets differ in more than a vector's width.
 *
 *     bytes      w int8, all 256 of them, a int8 in -127 … 127: sum += Σ of four products, 16 lanes
 *     nibbles    w in 0 … 15: a line is two, the low halves and the high ones; sums of one group fit the smaller type
 *
 * All sums are exact whole numbers, so every instruction set has the same. `start` and `finish` make up for what
 * an instruction cannot: its sum of unsigned weights, or narrower lanes.
 */
#pragma once
#include "rows.h"

#if defined(ISA_AVX512)
#define MAX_ROWS 8 /* rows of a tile: as many accumulators as the registers hold */
/* Bytes before its use that a line is asked for. The processor itself follows one stream well (Zen 4: 25 GB/s a
 * thread, 18 when asked as well), but not one that eight rows hold up: 25 % faster so. */
#define AHEAD(num_rows) ((num_rows) >= 8 ? 4096 : 0)
#define PIN(v) __asm__("" : "+v"(v))
typedef __m512i ints;    /* 16 int32 */
typedef ints nibble_ints;
typedef __m512i line;
INLINE vec from_ints(ints v) { return _mm512_cvtepi32_ps(v); }
INLINE __m512i spread(const int8_t *a) { /* four bytes to all lanes, straight from memory: not through a register */
    __m512i lanes;
    __asm__("vpbroadcastd %1, %0" : "=v"(lanes) : "m"(*(const int32_t *)a));
    return lanes;
}
/* The instruction multiplies unsigned by signed bytes: weights are read as q + 128, and the sum starts at what
 * that adds, -128·Σa. */
INLINE ints start_bytes(const int32_t *bias) { return _mm512_set1_epi32(*bias); }
INLINE line load_bytes(const uint8_t *p) { return _mm512_xor_si512(_mm512_load_si512(p), _mm512_set1_epi8((char)0x80)); }
INLINE ints dot_bytes(ints sum, line w, const int8_t *a) {
    return _mm512_dpbusd_epi32(sum, w, spread(a));
}
INLINE nibble_ints start_nibbles(void) { return _mm512_setzero_si512(); }
INLINE line load_low(const uint8_t *p) { return _mm512_and_si512(_mm512_load_si512(p), _mm512_set1_epi8(15)); }
INLINE line load_high(const uint8_t *p) { return _mm512_and_si512(_mm512_srli_epi16(_mm512_load_si512(p), 4), _mm512_set1_epi8(15)); }
INLINE nibble_ints dot_nibbles(nibble_ints sum, line low, line high, const int8_t *a) {
    return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, low, spread(a)), high, spread(a + 4));
}
INLINE ints finish_nibbles(nibble_ints sum, int32_t more) { return _mm512_add_epi32(sum, _mm512_set1_epi32(more)); }

#elif defined(ISA_AVX2)
#define MAX_ROWS 4
#define AHEAD(num_rows) 2048 /* Zen 3: 10 % faster at any number of rows */
#define PIN(v) __asm__("" : "+x"((v).a), "+x"((v).b)) /* or gcc computes all products first and spills them */
typedef struct { __m256i a, b; } ints;
typedef ints nibble_ints; /* 2 × 16 int16: eight products of 15 · 127 fit */
typedef ints line;
INLINE __m256i spread(const int8_t *a) { /* four bytes to all lanes, straight from memory: not through a register */
    __m256i lanes;
    __asm__("vpbroadcastd %1, %0" : "=x"(lanes) : "m"(*(const int32_t *)a));
    return lanes;
}
INLINE vec from_ints(ints v) { return v_make(_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)); }
/* The instruction multiplies unsigned by signed bytes: the magnitudes of the weights by the row with their signs.
 * Two products of 128 · 127 fit int16. */
INLINE ints start_bytes(const int32_t *bias) { (void)bias; return (ints){_mm256_setzero_si256(), _mm256_setzero_si256()}; }
INLINE line load_line(const uint8_t *p) {
    return (line){_mm256_load_si256((const void *)p), _mm256_load_si256((const void *)(p + 32))};
}
INLINE line load_bytes(const uint8_t *p) { return load_line(p); }
INLINE __m256i dot_half(__m256i sum, __m256i w, __m256i a) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
INLINE ints dot_bytes(ints sum, line w, const int8_t *a) {
    __m256i four = spread(a);
    return (ints){dot_half(sum.a, w.a, four), dot_half(sum.b, w.b, four)};
}
INLINE nibble_ints start_nibbles(void) { return (ints){_mm256_setzero_si256(), _mm256_setzero_si256()}; }
INLINE line load_low(const uint8_t *p) {
    line v = load_line(p);
    __m256i fifteen = _mm256_set1_epi8(15);
    return (line){_mm256_and_si256(v.a, fifteen), _mm256_and_si256(v.b, fifteen)};
}
INLINE line load_high(const uint8_t *p) {
    line v = load_line(p);
    __m256i fifteen = _mm256_set1_epi8(15);
    return (line){_mm256_and_si256(_mm256_srli_epi16(v.a, 4), fifteen), _mm256_and_si256(_mm256_srli_epi16(v.b, 4), fifteen)};
}
INLINE nibble_ints dot_nibbles(nibble_ints sum, line low, line high, const int8_t *a) {
    __m256i first = spread(a), second = spread(a + 4);
    sum.a = _mm256_add_epi16(sum.a, _mm256_add_epi16(_mm256_maddubs_epi16(low.a, first), _mm256_maddubs_epi16(high.a, second)));
    sum.b = _mm256_add_epi16(sum.b, _mm256_add_epi16(_mm256_maddubs_epi16(low.b, first), _mm256_maddubs_epi16(high.b, second)));
    return sum;
}
INLINE ints finish_nibbles(nibble_ints sum, int32_t more) {
    __m256i one = _mm256_set1_epi16(1), rest = _mm256_set1_epi32(more);
    return (ints){_mm256_add_epi32(_mm256_madd_epi16(sum.a, one), rest), _mm256_add_epi32(_mm256_madd_epi16(sum.b, one), rest)};
}

#else
#define MAX_ROWS 4
#define PIN(v) (void)0
#define AHEAD(num_rows) 0
typedef struct { int32_t lane[16]; } ints;
typedef ints nibble_ints;
typedef struct { int8_t byte[64]; } line;
INLINE vec from_ints(ints v) { vec r; EACH r.lane[i] = (float)v.lane[i]; return r; }
INLINE ints start_bytes(const int32_t *bias) { (void)bias; return (ints){{0}}; }
INLINE line load_bytes(const uint8_t *p) { line w; memcpy(&w, p, 64); return w; }
INLINE ints dot_bytes(ints sum, line w, const int8_t *a) {
    EACH for (int k = 0; k < 4; k++) sum.lane[i] += (int32_t)w.byte[4 * i + k] * a[k];
    return sum;
}
INLINE nibble_ints start_nibbles(void) { return (ints){{0}}; }
INLINE line load_low(const uint8_t *p) { line w; for (int i = 0; i < 64; i++) w.byte[i] = p[i] & 15; return w; }
INLINE line load_high(const uint8_t *p) { line w; for (int i = 0; i < 64; i++) w.byte[i] = p[i] >> 4; return w; }
INLINE nibble_ints dot_nibbles(nibble_ints sum, line low, line high, const int8_t *a) {
    return dot_bytes(dot_bytes(sum, low, a), high, a + 4);
}
INLINE ints finish_nibbles(nibble_ints sum, int32_t more) { EACH sum.lane[i] += more; return sum; }
#endif

/* Ask for the line `ahead` bytes further on, unless that is 0. */
INLINE void ask_ahead(const void *p, size_t ahead) {
#if defined(ISA_AVX512) || defined(ISA_AVX2)
    if (ahead) _mm_prefetch((const char *)p + ahead, _MM_HINT_T0);
#else
    (void)p, (void)ahead;
#endif
}
