/* Eight float64 at a time, three times: AVX-512, AVX2 and plain C, with the same bits in all three, as vec.h has
 * sixteen float32. What is drawn hangs on sums over a whole vocabulary, of which float32 would lose the tail.
 *
 *     zero set1 widen                       eight of one number; eight float32
 *     add sub mul max fma                   lane by lane; fma(a, b, c) = a·b + c
 *     round scale2                          to the nearest whole number; v · 2^n
 *     above(v, x, least)                    lanes whose x is below `least` become 0
 *     store sum                             to memory; over the lanes (i and i+4, then +2, +1)
 */
#pragma once
#include "vec.h"

#if defined(ISA_AVX512)

typedef __m512d wide;
INLINE wide w_zero(void) { return _mm512_setzero_pd(); }
INLINE wide w_set1(double x) { return _mm512_set1_pd(x); }
INLINE wide w_widen(const float *p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
INLINE void w_store(double *p, wide v) { _mm512_storeu_pd(p, v); }
INLINE wide w_add(wide a, wide b) { return _mm512_add_pd(a, b); }
INLINE wide w_sub(wide a, wide b) { return _mm512_sub_pd(a, b); }
INLINE wide w_mul(wide a, wide b) { return _mm512_mul_pd(a, b); }
INLINE wide w_max(wide a, wide b) { return _mm512_max_pd(a, b); }
INLINE wide w_fma(wide a, wide b, wide c) { return _mm512_fmadd_pd(a, b, c); }
INLINE wide w_round(wide a) { return _mm512_roundscale_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE wide w_scale2(wide a, wide n) {
    __m512i exponent = _mm512_slli_epi64(_mm512_cvtpd_epi64(n), 52);
    return _mm512_castsi512_pd(_mm512_add_epi64(_mm512_castpd_si512(a), exponent));
}
INLINE wide w_above(wide v, wide x, wide least) { return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(x, least, _CMP_GE_OQ), v); }
INLINE __m256d w_low(wide v) { return _mm512_castpd512_pd256(v); }
INLINE __m256d w_high(wide v) { return _mm512_extractf64x4_pd(v, 1); }

#elif defined(ISA_AVX2)

typedef struct { __m256d a, b; } wide;
INLINE wide w_make(__m256d a, __m256d b) { return (wide){a, b}; }
INLINE wide w_set1(double x) { return w_make(_mm256_set1_pd(x), _mm256_set1_pd(x)); }
INLINE wide w_zero(void) { return w_set1(0.0); }
INLINE wide w_widen(const float *p) { return w_make(_mm256_cvtps_pd(_mm_loadu_ps(p)), _mm256_cvtps_pd(_mm_loadu_ps(p + 4))); }
INLINE void w_store(double *p, wide v) { _mm256_storeu_pd(p, v.a); _mm256_storeu_pd(p + 4, v.b); }
INLINE wide w_add(wide x, wide y) { return w_make(_mm256_add_pd(x.a, y.a), _mm256_add_pd(x.b, y.b)); }
INLINE wide w_sub(wide x, wide y) { return w_make(_mm256_sub_pd(x.a, y.a), _mm256_sub_pd(x.b, y.b)); }
INLINE wide w_mul(wide x, wide y) { return w_make(_mm256_mul_pd(x.a, y.a), _mm256_mul_pd(x.b, y.b)); }
INLINE wide w_max(wide x, wide y) { return w_make(_mm256_max_pd(x.a, y.a), _mm256_max_pd(x.b, y.b)); }
INLINE wide w_fma(wide x, wide y, wide z) { return w_make(_mm256_fmadd_pd(x.a, y.a, z.a), _mm256_fmadd_pd(x.b, y.b, z.b)); }
INLINE wide w_round(wide x) {
    return w_make(_mm256_round_pd(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                  _mm256_round_pd(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE __m256d w_scale2_half(__m256d a, __m256d n) {
    __m256i exponent = _mm256_slli_epi64(_mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n)), 52);
    return _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(a), exponent));
}
INLINE wide w_scale2(wide x, wide n) { return w_make(w_scale2_half(x.a, n.a), w_scale2_half(x.b, n.b)); }
INLINE wide w_above(wide v, wide x, wide least) {
    return w_make(_mm256_and_pd(v.a, _mm256_cmp_pd(x.a, least.a, _CMP_GE_OQ)), _mm256_and_pd(v.b, _mm256_cmp_pd(x.b, least.b, _CMP_GE_OQ)));
}
INLINE __m256d w_low(wide v) { return v.a; }
INLINE __m256d w_high(wide v) { return v.b; }

#else /* plain C */

typedef struct { double lane[8]; } wide;
#define EIGHT for (int i = 0; i < 8; i++)
INLINE wide w_set1(double x) { wide r; EIGHT r.lane[i] = x; return r; }
INLINE wide w_zero(void) { return w_set1(0.0); }
INLINE wide w_widen(const float *p) { wide r; EIGHT r.lane[i] = (double)p[i]; return r; }
INLINE void w_store(double *p, wide v) { EIGHT p[i] = v.lane[i]; }
INLINE wide w_add(wide a, wide b) { EIGHT a.lane[i] += b.lane[i]; return a; }
INLINE wide w_sub(wide a, wide b) { EIGHT a.lane[i] -= b.lane[i]; return a; }
INLINE wide w_mul(wide a, wide b) { EIGHT a.lane[i] *= b.lane[i]; return a; }
INLINE wide w_max(wide a, wide b) { EIGHT a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; return a; }
INLINE wide w_fma(wide a, wide b, wide c) { EIGHT c.lane[i] = fma(a.lane[i], b.lane[i], c.lane[i]); return c; }
INLINE wide w_round(wide a) { EIGHT a.lane[i] = nearbyint(a.lane[i]); return a; }
INLINE wide w_scale2(wide a, wide n) {
    uint64_t bits[8];
    memcpy(bits, a.lane, 64);
    EIGHT bits[i] += (uint64_t)(int64_t)n.lane[i] << 52;
    memcpy(a.lane, bits, 64);
    return a;
}
INLINE wide w_above(wide v, wide x, wide least) { EIGHT if (!(x.lane[i] >= least.lane[i])) v.lane[i] = 0.0; return v; }
INLINE double w_sum(wide v) {
    for (int half = 4; half; half /= 2)
        for (int i = 0; i < half; i++) v.lane[i] += v.lane[i + half];
    return v.lane[0];
}

#endif

#if defined(ISA_AVX512) || defined(ISA_AVX2)
INLINE double w_sum(wide v) {
    __m256d four = _mm256_add_pd(w_low(v), w_high(v));
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf128_pd(four, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
#endif

/* e^x for x ≤ 0, relative error below 2e-16; 0 below -708, where float64 begins to lose digits. r = x - n·ln 2 with
 * ln 2 in two parts; e^r = 1 + r + r²·q(r), q of degree 9 by Remez' exchange for the least relative error of e^r
 * over |r| ≤ ln 2 / 2: 3.6e-18. e^0 is exactly 1. */
INLINE wide w_exp(wide x) {
    const wide least = w_set1(-708.0), c = w_max(x, least);
    wide n = w_round(w_mul(c, w_set1(1.4426950408889634)));
    wide r = w_fma(n, w_set1(-0.6931471805599453), c);
    r = w_fma(n, w_set1(-2.3190468138462996e-17), r);
    wide q = w_set1(2.5000013913453016e-08);
    q = w_fma(q, r, w_set1(2.7630306208172274e-07));
    q = w_fma(q, r, w_set1(2.7557586818266117e-06));
    q = w_fma(q, r, w_set1(2.480149294975501e-05));
    q = w_fma(q, r, w_set1(0.0001984126950575929));
    q = w_fma(q, r, w_set1(0.0013888888943759845));
    q = w_fma(q, r, w_set1(0.008333333333494983));
    q = w_fma(q, r, w_set1(0.041666666666529725));
    q = w_fma(q, r, w_set1(0.1666666666666641));
    q = w_fma(q, r, w_set1(0.5000000000000011));
    q = w_fma(q, w_mul(r, r), w_add(r, w_set1(1.0)));
    return w_above(w_scale2(q, n), x, least);
}
