/* Sixteen float32 at a time, three times: AVX-512, AVX2 and plain C.
 *
 * A `vec` is what a panel's 16 outputs, a KV block's 16 tokens and 16 neighbouring numbers of a row are held in.
 * Every function gives the same bits in all three: products and sums are fused where `v_fma` says so and nowhere
 * else (-ffp-contract=off), and horizontal sums go in one order (lanes i and i+8, then +4, +2, +1). So the plain C
 * library is the oracle of the others, compared by equality.
 *
 *     zero set1 load store load_n store_n load_half store_half        memory; _n: the first n lanes, others zero
 *     add sub mul div max min fma abs                                  lane by lane; fma(a, b, c) = a·b + c
 *     round scale2                                                     to the nearest whole number; v · 2^n
 *     sum top                                                          over the lanes: the sum, the largest
 *     largest(a, b)                                                    magnitude of all 32; NaN if there is one
 *     window(v, lo, hi, other)                                         lanes outside [lo, hi) replaced
 *     ge(a, b)                                                         bit i: lane i of a is at least b's
 *     keep(v, bits, other)                                             lanes whose bit is 0 replaced
 */
#pragma once
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#if defined(ISA_AVX512) || defined(ISA_AVX2)
#include <immintrin.h>
#endif

#if defined(ISA_AVX512)

typedef __m512 vec;
INLINE vec v_zero(void) { return _mm512_setzero_ps(); }
INLINE vec v_set1(float x) { return _mm512_set1_ps(x); }
INLINE vec v_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void v_store(float *p, vec v) { _mm512_storeu_ps(p, v); }
INLINE __mmask16 lanes(int n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }
INLINE vec v_load_n(const float *p, int n) { return _mm512_maskz_loadu_ps(lanes(n), p); }
INLINE void v_store_n(float *p, vec v, int n) { _mm512_mask_storeu_ps(p, lanes(n), v); }
INLINE vec v_load_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
INLINE void v_store_half(uint16_t *p, vec v) { _mm256_storeu_si256((void *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
INLINE vec v_add(vec a, vec b) { return _mm512_add_ps(a, b); }
INLINE vec v_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
INLINE vec v_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
INLINE vec v_div(vec a, vec b) { return _mm512_div_ps(a, b); }
INLINE vec v_max(vec a, vec b) { return _mm512_max_ps(a, b); }
INLINE vec v_min(vec a, vec b) { return _mm512_min_ps(a, b); }
INLINE vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec v_abs(vec a) { return _mm512_abs_ps(a); }
INLINE vec v_round(vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vec v_scale2(vec a, vec n) {
    __m512i exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), exponent));
}
INLINE vec v_window(vec v, int lo, int hi, float other) {
    return _mm512_mask_mov_ps(_mm512_set1_ps(other), lanes(hi) & (__mmask16)~lanes(lo), v);
}
INLINE uint32_t v_ge(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
INLINE vec v_keep(vec v, uint32_t bits, float other) { return _mm512_mask_mov_ps(_mm512_set1_ps(other), (__mmask16)bits, v); }
INLINE __m256i sizes(vec a, vec b) { /* magnitudes as whole numbers, which order alike and put NaN above all */
    __m512i most = _mm512_max_epi32(_mm512_castps_si512(v_abs(a)), _mm512_castps_si512(v_abs(b)));
    return _mm256_max_epi32(_mm512_castsi512_si256(most), _mm512_extracti64x4_epi64(most, 1));
}
INLINE __m256 low(vec v) { return _mm512_castps512_ps256(v); }
INLINE __m256 high(vec v) { return _mm512_extractf32x8_ps(v, 1); }

#elif defined(ISA_AVX2)

typedef struct { __m256 a, b; } vec;
INLINE vec v_make(__m256 a, __m256 b) { return (vec){a, b}; }
INLINE vec v_zero(void) { return v_make(_mm256_setzero_ps(), _mm256_setzero_ps()); }
INLINE vec v_set1(float x) { __m256 v = _mm256_set1_ps(x); return v_make(v, v); }
INLINE vec v_load(const float *p) { return v_make(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
INLINE void v_store(float *p, vec v) { _mm256_storeu_ps(p, v.a); _mm256_storeu_ps(p + 8, v.b); }
INLINE vec v_load_n(const float *p, int n) {
    _Alignas(32) float lanes[16] = {0};
    memcpy(lanes, p, sizeof(float) * (n > 16 ? 16 : n < 0 ? 0 : n));
    return v_load(lanes);
}
INLINE void v_store_n(float *p, vec v, int n) {
    _Alignas(32) float lanes[16];
    v_store(lanes, v);
    memcpy(p, lanes, sizeof(float) * (n > 16 ? 16 : n < 0 ? 0 : n));
}
INLINE vec v_load_half(const uint16_t *p) {
    return v_make(_mm256_cvtph_ps(_mm_loadu_si128((const void *)p)), _mm256_cvtph_ps(_mm_loadu_si128((const void *)(p + 8))));
}
INLINE void v_store_half(uint16_t *p, vec v) {
    _mm_storeu_si128((void *)p, _mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((void *)(p + 8), _mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT));
}
INLINE vec v_add(vec x, vec y) { return v_make(_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)); }
INLINE vec v_sub(vec x, vec y) { return v_make(_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)); }
INLINE vec v_mul(vec x, vec y) { return v_make(_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)); }
INLINE vec v_div(vec x, vec y) { return v_make(_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)); }
INLINE vec v_max(vec x, vec y) { return v_make(_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)); }
INLINE vec v_min(vec x, vec y) { return v_make(_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)); }
INLINE vec v_fma(vec x, vec y, vec z) { return v_make(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)); }
INLINE vec v_abs(vec x) {
    __m256 sign = _mm256_set1_ps(-0.f);
    return v_make(_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b));
}
INLINE vec v_round(vec x) {
    return v_make(_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                  _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE __m256 scale2_half(__m256 a, __m256 n) {
    __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent));
}
INLINE vec v_scale2(vec x, vec n) { return v_make(scale2_half(x.a, n.a), scale2_half(x.b, n.b)); }
INLINE __m256 window_half(__m256 v, int first, int lo, int hi, float other) {
    __m256i lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
    __m256i inside = _mm256_and_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(hi), lane),
                                      _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(lo - 1)));
    return _mm256_blendv_ps(_mm256_set1_ps(other), v, _mm256_castsi256_ps(inside));
}
INLINE vec v_window(vec v, int lo, int hi, float other) {
    return v_make(window_half(v.a, 0, lo, hi, other), window_half(v.b, 8, lo, hi, other));
}
INLINE uint32_t v_ge(vec x, vec y) {
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_GE_OQ)) |
           (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_GE_OQ)) << 8;
}
INLINE __m256 keep_half(__m256 v, uint32_t bits, float other) {
    const __m256i own = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i kept = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), own), own);
    return _mm256_blendv_ps(_mm256_set1_ps(other), v, _mm256_castsi256_ps(kept));
}
INLINE vec v_keep(vec v, uint32_t bits, float other) {
    return v_make(keep_half(v.a, bits, other), keep_half(v.b, bits >> 8, other));
}
INLINE __m256i sizes(vec x, vec y) { /* magnitudes as whole numbers, which order alike and put NaN above all */
    vec a = v_abs(x), b = v_abs(y);
    return _mm256_max_epi32(_mm256_max_epi32(_mm256_castps_si256(a.a), _mm256_castps_si256(a.b)),
                            _mm256_max_epi32(_mm256_castps_si256(b.a), _mm256_castps_si256(b.b)));
}
INLINE __m256 low(vec v) { return v.a; }
INLINE __m256 high(vec v) { return v.b; }

#else /* plain C */

#include <math.h>
typedef struct { float lane[16]; } vec;
#define EACH for (int i = 0; i < 16; i++)
INLINE vec v_set1(float x) { vec r; EACH r.lane[i] = x; return r; }
INLINE vec v_zero(void) { return v_set1(0.f); }
INLINE vec v_load(const float *p) { vec r; EACH r.lane[i] = p[i]; return r; }
INLINE void v_store(float *p, vec v) { EACH p[i] = v.lane[i]; }
INLINE vec v_load_n(const float *p, int n) { vec r; EACH r.lane[i] = i < n ? p[i] : 0.f; return r; }
INLINE void v_store_n(float *p, vec v, int n) { EACH if (i < n) p[i] = v.lane[i]; }
INLINE vec v_load_half(const uint16_t *p) { _Float16 h[16]; vec r; memcpy(h, p, 32); EACH r.lane[i] = (float)h[i]; return r; }
INLINE void v_store_half(uint16_t *p, vec v) { _Float16 h[16]; EACH h[i] = (_Float16)v.lane[i]; memcpy(p, h, 32); }
INLINE vec v_add(vec a, vec b) { EACH a.lane[i] += b.lane[i]; return a; }
INLINE vec v_sub(vec a, vec b) { EACH a.lane[i] -= b.lane[i]; return a; }
INLINE vec v_mul(vec a, vec b) { EACH a.lane[i] *= b.lane[i]; return a; }
INLINE vec v_div(vec a, vec b) { EACH a.lane[i] /= b.lane[i]; return a; }
INLINE vec v_max(vec a, vec b) { EACH a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; return a; } /* b if NaN, as x86 */
INLINE vec v_min(vec a, vec b) { EACH a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; return a; }
INLINE vec v_fma(vec a, vec b, vec c) { EACH c.lane[i] = fmaf(a.lane[i], b.lane[i], c.lane[i]); return c; }
INLINE vec v_abs(vec a) { EACH a.lane[i] = fabsf(a.lane[i]); return a; }
INLINE vec v_round(vec a) { EACH a.lane[i] = nearbyintf(a.lane[i]); return a; }
INLINE vec v_scale2(vec a, vec n) {
    uint32_t bits[16];
    memcpy(bits, a.lane, 64);
    EACH bits[i] += (uint32_t)(int32_t)n.lane[i] << 23;
    memcpy(a.lane, bits, 64);
    return a;
}
INLINE vec v_window(vec v, int lo, int hi, float other) { EACH if (i < lo || i >= hi) v.lane[i] = other; return v; }
INLINE uint32_t v_ge(vec a, vec b) { uint32_t bits = 0; EACH bits |= (uint32_t)(a.lane[i] >= b.lane[i]) << i; return bits; }
INLINE vec v_keep(vec v, uint32_t bits, float other) { EACH if (!(bits >> i & 1)) v.lane[i] = other; return v; }

#endif

#if defined(ISA_AVX512) || defined(ISA_AVX2)
INLINE float v_sum(vec v) {
    __m256 eight = _mm256_add_ps(low(v), high(v));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
INLINE float v_top(vec v) {
    __m256 eight = _mm256_max_ps(low(v), high(v));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
INLINE float v_largest(vec a, vec b) {
    __m256i eight = sizes(a, b);
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1))));
}
#else
INLINE float v_largest(vec a, vec b) {
    float most = 0.f;
    EACH if (most == most && !(fabsf(a.lane[i]) <= most)) most = fabsf(a.lane[i]);
    EACH if (most == most && !(fabsf(b.lane[i]) <= most)) most = fabsf(b.lane[i]);
    return most;
}
INLINE float v_sum(vec v) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) v.lane[i] += v.lane[i + half];
    return v.lane[0];
}
INLINE float v_top(vec v) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) v.lane[i] = v.lane[i] > v.lane[i + half] ? v.lane[i] : v.lane[i + half];
    return v.lane[0];
}
#endif

/* e^x, relative error 1e-7 over [-87, 88]; beyond, as at the border. Cody and Waite's reduction to
 * r = x - n·ln 2, Cephes' polynomial for e^r, then 2^n into the exponent. e^0 is exactly 1. */
INLINE vec v_exp(vec x) {
    x = v_max(v_min(x, v_set1(88.f)), v_set1(-87.f));
    vec n = v_round(v_mul(x, v_set1(1.44269504f)));
    vec r = v_fma(n, v_set1(-0.693359375f), x);
    r = v_fma(n, v_set1(2.12194440e-4f), r);
    vec p = v_set1(1.9875691500e-4f);
    p = v_fma(p, r, v_set1(1.3981999507e-3f));
    p = v_fma(p, r, v_set1(8.3334519073e-3f));
    p = v_fma(p, r, v_set1(4.1665795894e-2f));
    p = v_fma(p, r, v_set1(1.6666665459e-1f));
    p = v_fma(p, r, v_set1(5.0000001201e-1f));
    p = v_fma(p, v_mul(r, r), v_add(r, v_set1(1.f)));
    return v_scale2(p, n);
}

/* x / (1 + e^-x) */
INLINE vec v_silu(vec x) { return v_div(x, v_add(v_exp(v_sub(v_zero(), x)), v_set1(1.f))); }

/* x · (1 + tanh(√(2/π)·(x + 0.044715·x³))) / 2, with (1 + tanh y) / 2 = 1 / (1 + e^-2y) */
INLINE vec v_gelu_tanh(vec x) {
    vec cubic = v_fma(v_mul(v_mul(x, x), x), v_set1(0.044715f), x);
    return v_div(x, v_add(v_exp(v_mul(cubic, v_set1(-1.5957691216f))), v_set1(1.f)));
}

/* x · (1 + erf(x/√2)) / 2; erf by Abramowitz and Stegun 7.1.26, absolute error 1.5e-7. With z = |x|/√2 and
 * tail = (1 - erf z) / 2, the answer is x·tail for negative x and x·(1 - tail) for others: no cancellation. */
INLINE vec v_gelu(vec x) {
    vec z = v_mul(v_abs(x), v_set1(0.70710678119f));
    vec t = v_div(v_set1(1.f), v_fma(z, v_set1(0.3275911f), v_set1(1.f)));
    vec p = v_set1(1.061405429f);
    p = v_fma(p, t, v_set1(-1.453152027f));
    p = v_fma(p, t, v_set1(1.421413741f));
    p = v_fma(p, t, v_set1(-0.284496736f));
    p = v_fma(p, t, v_set1(0.254829592f));
    vec tail = v_mul(v_mul(p, t), v_mul(v_set1(0.5f), v_exp(v_sub(v_zero(), v_mul(z, z)))));
    vec positive = v_max(x, v_zero());
    return v_sub(positive, v_mul(v_abs(x), tail)); /* x ≥ 0: x - x·tail; x < 0: x·tail = -|x|·tail */
}
