/* See measure.h. The weights are float32, whose error is far below what is told; their sum over spans is float64. */
#include "measure.h"
#include <float.h>
#include <math.h>

static double sum_weights(const Scores *scores) {
    const vec top = v_set1(scores->top);
    double total = 0.0;
    for (int i = 0; i < scores->num_spans; i++) {
        const float *x = span_of(scores, i);
        vec sum = v_exp(v_sub(v_load(x), top));
        for (int j = 16; j < SPAN; j += 16) sum = v_add(sum, v_exp(v_sub(v_load(x + j), top)));
        total += v_sum(sum);
    }
    return total;
}

/* How many are above `value`, and one. */
static int rank_of(const Scores *scores, float value) {
    const vec limit = v_set1(value);
    int rank = 1;
    for (int i = 0; i < scores->num_spans; i++) {
        if (!(scores->tops[i] > value)) continue;
        for (int j = 0; j < SPAN; j += 16) rank += 16 - __builtin_popcount(v_ge(limit, v_load(span_of(scores, i) + j)));
    }
    return rank;
}

void measure_row(const Questions *questions, int i, const Slate *slate) {
    const float *logits = questions->logits + (size_t)questions->rows[i] * questions->stride;
    const int count = questions->num_top[i];
    const float chosen = logits[questions->tokens[i]];
    Scores scores;
    questions->ranks[i] = 0;
    open_scores(&scores, logits, questions->vocab_size, slate->tops);
    if (!(fabsf(scores.top) <= FLT_MAX)) return;
    const double total = scores.top + log(sum_weights(&scores));
    if (count) {
        const float steps = steps_to(&scores, bound_of(&scores, count), 1);
        const int found = collect(&scores, steps, 0, 1, slate->found);
        if (found < count) return;
        sort_keys(slate->found, found, slate->spare);
    }
    for (int j = 0; j < count; j++) {
        const size_t at = (size_t)i * questions->width + j;
        questions->top_ids[at] = id_of(slate->found[j]);
        questions->top_values[at] = (float)(logits[id_of(slate->found[j])] - total);
    }
    questions->values[i] = (float)(chosen - total);
    questions->ranks[i] = rank_of(&scores, chosen);
}
