/* See rows.h. */
#include "rows.h"
#include <float.h>
#include <math.h>

static size_t array_bytes(int num_rows, int num_groups) { return ((size_t)num_rows * num_groups * 4 + 63) / 64 * 64; }

size_t rows_bytes(int num_rows, int num_groups) {
    return 3 * array_bytes(num_rows, num_groups) + (size_t)num_rows * num_groups * GROUP;
}

Rows rows_over(void *workspace, int num_rows, int num_groups) {
    const size_t each = array_bytes(num_rows, num_groups);
    char *at = workspace;
    return (Rows){.num_groups = num_groups, .scales = (float *)at, .offsets = (float *)(at + each),
                  .biases = (int32_t *)(at + 2 * each), .quants = (int8_t *)(at + 3 * each)};
}

#if defined(ISA_AVX512)
INLINE int32_t round_group(vec a, vec b, float inverse, int8_t *quants) {
    __m512i first = _mm512_cvtps_epi32(v_mul(a, v_set1(inverse))), second = _mm512_cvtps_epi32(v_mul(b, v_set1(inverse)));
    _mm_storeu_si128((void *)quants, _mm512_cvtsepi32_epi8(first));
    _mm_storeu_si128((void *)(quants + 16), _mm512_cvtsepi32_epi8(second));
    return _mm512_reduce_add_epi32(_mm512_add_epi32(first, second));
}
#elif defined(ISA_AVX2)
INLINE int32_t round_group(vec a, vec b, float inverse, int8_t *quants) {
    vec first = v_mul(a, v_set1(inverse)), second = v_mul(b, v_set1(inverse));
    __m256i q0 = _mm256_cvtps_epi32(first.a), q1 = _mm256_cvtps_epi32(first.b);
    __m256i q2 = _mm256_cvtps_epi32(second.a), q3 = _mm256_cvtps_epi32(second.b);
    __m256i eight = _mm256_add_epi32(_mm256_add_epi32(q0, q1), _mm256_add_epi32(q2, q3));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q0, q1), _mm256_packs_epi32(q2, q3));
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((void *)quants, bytes);
    return _mm_cvtsi128_si32(four);
}
#else
INLINE int32_t round_group(vec a, vec b, float inverse, int8_t *quants) {
    int32_t sum = 0;
    for (int i = 0; i < GROUP; i++) {
        const float x = (i < 16 ? a.lane[i] : b.lane[i - 16]) * inverse;
        const int32_t q = x != x ? 0 : (int32_t)nearbyintf(x); /* then the scale is NaN, and quants do not matter */
        quants[i] = (int8_t)q;
        sum += q;
    }
    return sum;
}
#endif

void quantize_row(const Rows *rows, int row, const float *values, int num_groups) {
    int8_t *quants = rows->quants + (size_t)row * rows->num_groups * GROUP;
    const size_t first = (size_t)row * rows->num_groups;
    for (int g = 0; g < num_groups; g++) {
        vec a = v_load(values + GROUP * g), b = v_load(values + GROUP * g + 16);
        const float top = v_largest(a, b);
        const float inverse = top > 1e-30f ? 127.f / top : 0.f, scale = top <= FLT_MAX ? top / 127.f : NAN;
        const int32_t sum = round_group(a, b, inverse, quants + GROUP * g);
        rows->scales[first + g] = scale;
        rows->offsets[first + g] = scale * (float)sum;
        rows->biases[first + g] = (int32_t)(-128u * (uint32_t)sum);
    }
}

void normalize_row(const float *x, float *y, int width, int layer_norm, float eps, const float *weight, const float *bias) {
    const int padded = (width + 31) / 32 * 32;
    float mean = 0.f;
    if (layer_norm) {
        vec sum = v_zero();
        for (int i = 0; i < padded; i += 16) sum = v_add(sum, v_load(x + i)); /* the padding is zero */
        mean = v_sum(sum) / (float)width;
    }
    vec squares = v_zero();
    for (int i = 0; i < padded; i += 16) {
        vec from_mean = v_window(v_sub(v_load(x + i), v_set1(mean)), 0, width - i, 0.f);
        squares = v_fma(from_mean, from_mean, squares);
    }
    const vec inverse = v_set1(1.f / sqrtf(v_sum(squares) / (float)width + eps));
    for (int i = 0; i < padded; i += 16) {
        vec scaled = v_mul(v_mul(v_sub(v_load(x + i), v_set1(mean)), inverse), v_load(weight + i));
        v_store(y + i, bias ? v_add(scaled, v_load(bias + i)) : scaled);
    }
}
