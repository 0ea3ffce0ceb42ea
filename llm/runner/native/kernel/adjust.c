/* See adjust.h. */
#include "adjust.h"
#include <math.h>

static const uint8_t *mask_of(const Draws *draws, int i) {
    const int row = draws->mask_rows[i];
    return row < 0 ? NULL : draws->masks + (size_t)row * draws->mask_bytes;
}

static int is_early(const Draws *draws, int i) { return draws->positions[i] < draws->samplings[i].min_tokens; }

int is_adjusted(const Draws *draws, int i) {
    const Sampling *sampling = draws->samplings + i;
    return sampling->num_seen || sampling->num_biased || (sampling->num_ends && is_early(draws, i)) ||
           sampling->min_p > -INFINITY || mask_of(draws, i);
}

static void penalize(const Sampling *sampling, int vocab_size, float *x) {
    for (int i = 0; i < sampling->num_seen; i++) {
        const int id = sampling->seen[i], count = sampling->counts[i];
        if ((uint32_t)id >= (uint32_t)vocab_size) continue;
        if (sampling->repetition != 1.f) x[id] = x[id] > 0.f ? x[id] / sampling->repetition : x[id] * sampling->repetition;
        if (count) x[id] -= (float)(sampling->frequency * count + sampling->presence);
    }
}

/* What a mask forbids becomes -inf, unless it is no number: that stays to be seen. */
static void forbid(const uint8_t *mask, int vocab_size, float *x) {
    int i = 0;
    for (; i + 16 <= vocab_size; i += 16) {
        const uint32_t bits = mask[i / 8] | (uint32_t)mask[i / 8 + 1] << 8;
        if (bits != 0xffff) v_store(x + i, v_add(v_load(x + i), v_keep(v_zero(), bits, -INFINITY)));
    }
    for (; i < vocab_size; i++)
        if (!(mask[i / 8] >> i % 8 & 1)) x[i] += -INFINITY;
}

void adjust_row(const Draws *draws, int i, float *adjusted) {
    const Sampling *sampling = draws->samplings + i;
    const int vocab_size = draws->vocab_size;
    memcpy(adjusted, draws->logits + (size_t)draws->rows[i] * draws->stride, sizeof(float) * vocab_size);
    penalize(sampling, vocab_size, adjusted);
    for (int j = 0; j < sampling->num_biased; j++)
        if ((uint32_t)sampling->biased[j] < (uint32_t)vocab_size) adjusted[sampling->biased[j]] += sampling->amounts[j];
    for (int j = 0; is_early(draws, i) && j < sampling->num_ends; j++)
        if ((uint32_t)sampling->ends[j] < (uint32_t)vocab_size) adjusted[sampling->ends[j]] = -INFINITY;
    if (mask_of(draws, i)) forbid(mask_of(draws, i), vocab_size, adjusted);
}

void cut_improbable(Scores *scores, float *values, float min_p) {
    if (!(min_p > -INFINITY)) return;
    const float lowest = scores->top + min_p;
    for (int i = 0; i < scores->num_spans; i++) {
        float *x = i + 1 < scores->num_spans ? values + (size_t)i * SPAN : scores->tail;
        for (int j = 0; j < SPAN; j += 16) {
            const vec v = v_load(x + j);
            v_store(x + j, v_keep(v, v_ge(v, v_set1(lowest)), -INFINITY));
        }
        if (scores->tops[i] < lowest) scores->tops[i] = -INFINITY;
    }
}

void kernel_adjust(const Draws *draws, int32_t i, float *adjusted) { adjust_row(draws, i, adjusted); }
