/* See order.h. */
#include "order.h"
#include <float.h>
#include <math.h>

#define FEW 48 /* keys that are sorted faster by insertion than by digits */

static size_t rounded(size_t n, size_t to) { return (n + to - 1) / to * to; }
static size_t num_spans_of(int vocab_size) { return rounded(vocab_size, SPAN) / SPAN; }

size_t slate_bytes(int vocab_size) {
    const size_t padded = rounded(vocab_size, SPAN), spans = rounded(num_spans_of(vocab_size), 16);
    return padded * (sizeof(float) + 2 * sizeof(uint64_t)) + spans * (sizeof(float) + sizeof(double));
}

Slate slate_over(void *memory, int vocab_size) {
    const size_t padded = rounded(vocab_size, SPAN), spans = rounded(num_spans_of(vocab_size), 16);
    Slate slate;
    slate.adjusted = memory;
    slate.tops = slate.adjusted + padded;
    slate.masses = (double *)(slate.tops + spans);
    slate.found = (uint64_t *)(slate.masses + spans);
    slate.spare = slate.found + padded;
    return slate;
}

void open_scores(Scores *scores, const float *values, int num, float *tops) {
    *scores = (Scores){.values = values, .num = num, .num_spans = (int)num_spans_of(num), .tops = tops};
    const int whole = scores->num_spans - 1;
    for (int i = 0; i < SPAN; i++) scores->tail[i] = whole * SPAN + i < num ? values[whole * SPAN + i] : -INFINITY;
    vec all = v_set1(-INFINITY);
    uint32_t numbers = 0xffff;
    for (int i = 0; i < scores->num_spans; i++) {
        const float *x = span_of(scores, i);
        const vec a = v_load(x), b = v_load(x + 16), c = v_load(x + 32), d = v_load(x + 48);
        numbers &= v_ge(a, a) & v_ge(b, b) & v_ge(c, c) & v_ge(d, d);
        const vec most = v_max(v_max(a, b), v_max(c, d));
        tops[i] = v_top(most);
        all = v_max(most, all);
    }
    for (int i = scores->num_spans; i % 16; i++) tops[i] = -INFINITY;
    scores->top = numbers == 0xffff ? v_top(all) : NAN;
}

static int num_reaching(const float *x, int num, float least) {
    int count = 0;
    for (int i = 0; i < num; i += 16) count += __builtin_popcount(v_ge(v_load(x + i), v_set1(least)));
    return count;
}

/* Of the tops, or of the numbers themselves: those of spans whose top does. */
static int count_reaching(const Scores *scores, float least, int by_tops) {
    if (by_tops) return num_reaching(scores->tops, scores->num_spans, least);
    int count = 0;
    for (int i = 0; i < scores->num_spans; i++)
        if (scores->tops[i] >= least) count += num_reaching(span_of(scores, i), SPAN, least);
    return count;
}

/* If as many spans reach a bound as numbers are wanted, so many numbers do. Found by halving, among the whole
 * numbers that order as floats do, until an eighth more than wanted reach it. */
float bound_of(const Scores *scores, int count) {
    const int by_tops = count_reaching(scores, -FLT_MAX, 1) >= count;
    if (!by_tops) {
        const int finite = count_reaching(scores, -FLT_MAX, 0);
        count = finite < count ? finite : count;
    }
    int64_t least = rising(-FLT_MAX), most = rising(scores->top);
    while (least < most) {
        const int64_t middle = least + (most - least + 1) / 2;
        const int reaching = count_reaching(scores, unrising((uint32_t)middle), by_tops);
        if (reaching >= count) least = middle;
        else most = middle - 1;
        if (reaching >= count && reaching <= count + count / 8) break;
    }
    return unrising((uint32_t)least);
}

float steps_to(const Scores *scores, float least, int num_rungs) {
    const float steps = 0.9999f * (float)num_rungs / (scores->top - least);
    return steps < FLT_MAX ? steps : FLT_MAX;
}

int collect(const Scores *scores, float steps, int from, int to, uint64_t *found) {
    const float top = scores->top;
    int num = 0;
    for (int first = 0; first < scores->num_spans; first += 16) {
        uint32_t spans = ~v_ge(rungs_of(v_load(scores->tops + first), top, steps), v_set1((float)to)) & 0xffff;
        for (; spans; spans &= spans - 1) {
            const int i = first + __builtin_ctz(spans);
            if (i >= scores->num_spans) break;
            const float *x = span_of(scores, i);
            for (int j = 0; j < SPAN; j += 16) {
                for (uint32_t bits = v_between(rungs_of(v_load(x + j), top, steps), from, to); bits; bits &= bits - 1) {
                    const int at = j + __builtin_ctz(bits);
                    found[num++] = key_of(x[at], i * SPAN + at);
                }
            }
        }
    }
    return num;
}

static void insert_keys(uint64_t *keys, int num) {
    for (int i = 1; i < num; i++) {
        const uint64_t key = keys[i];
        int j = i;
        for (; j && keys[j - 1] > key; j--) keys[j] = keys[j - 1];
        keys[j] = key;
    }
}

/* By the value's four bytes, the lowest first; each pass keeps what the one before it ordered. */
void sort_keys(uint64_t *keys, int num, uint64_t *spare) {
    if (num <= FEW) {
        insert_keys(keys, num);
        return;
    }
    int counts[4][256] = {{0}};
    for (int i = 0; i < num; i++)
        for (int digit = 0; digit < 4; digit++) counts[digit][keys[i] >> (32 + 8 * digit) & 255]++;
    uint64_t *from = keys, *to = spare;
    for (int digit = 0; digit < 4; digit++) {
        const int shift = 32 + 8 * digit;
        if (counts[digit][from[0] >> shift & 255] == num) continue; /* all alike */
        int starts[256];
        for (int i = 0, at = 0; i < 256; at += counts[digit][i++]) starts[i] = at;
        for (int i = 0; i < num; i++) to[starts[from[i] >> shift & 255]++] = from[i];
        uint64_t *done = to;
        to = from;
        from = done;
    }
    if (from != keys) memcpy(keys, from, sizeof(uint64_t) * num);
}
