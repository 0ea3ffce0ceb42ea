/* See draw.h. */
#include "draw.h"
#include "wide.h"
#include <float.h>
#include <math.h>

#define RUNGS 512
#define FEW 256 /* as many as top-k keeps of them are sorted at once */

typedef struct { double top, inverse; } Scale;

/* Candidates on rungs, the best on the first. What lies on a rung is looked up and sorted only if it must be. */
typedef struct {
    const Scores *scores;
    const Slate *slate;
    Scale scale;
    float steps;
    int num_rungs, most; /* most: kept of the last rung */
    int rung, num;       /* of the keys that are on the slate, in order */
    int counts[RUNGS];
    double ends[RUNGS];  /* the weight of all up to here */
} Ladder;

static uint64_t mix(uint64_t value) { /* a round of splitmix64 (Steele, Lea and Flood 2014) */
    value += 0x9E3779B97F4A7C15u;
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9u;
    value = (value ^ value >> 27) * 0x94D049BB133111EBu;
    return value ^ value >> 31;
}

double uniform(uint64_t seed, uint32_t choice, uint32_t position) {
    return (double)(mix(mix(mix(seed) ^ choice) ^ position) >> 11) * 0x1p-53;
}

INLINE wide weigh(const float *x, Scale scale) {
    return w_exp(w_mul(w_sub(w_widen(x), w_set1(scale.top)), w_set1(scale.inverse)));
}

void kernel_weigh(const float *x, int32_t num, double top, double inverse, double *weights) {
    for (int i = 0; i < num; i++) {
        const float eight[8] = {x[i]};
        double out[8];
        w_store(out, weigh(eight, (Scale){top, inverse}));
        weights[i] = out[0];
    }
}

/* ---- nothing cut ------------------------------------------------------------------------------------------ */

/* ends[i]: the weight of all spans up to i. Returns the last. */
static double sum_spans(const Scores *scores, Scale scale, double *ends) {
    double mass = 0.0;
    for (int i = 0; i < scores->num_spans; i++) {
        const float *x = span_of(scores, i);
        wide sum = weigh(x, scale);
        for (int j = 8; j < SPAN; j += 8) sum = w_add(sum, weigh(x + j, scale));
        ends[i] = mass += w_sum(sum);
    }
    return mass;
}

/* The first of an ascending series that is above `limit`, or the last. */
static int first_above(const double *ends, int num, double limit) {
    int first = 0;
    for (int last = num - 1; first < last;) {
        const int middle = (first + last) / 2;
        if (ends[middle] > limit) last = middle;
        else first = middle + 1;
    }
    return first;
}

static int draw_any(const Slate *slate, const Scores *scores, Scale scale, double u) {
    const double target = u * sum_spans(scores, scale, slate->masses);
    const int i = first_above(slate->masses, scores->num_spans, target);
    double mass = i ? slate->masses[i - 1] : 0.0, weights[SPAN];
    int found = 0;
    for (int j = 0; j < SPAN; j += 8) w_store(weights + j, weigh(span_of(scores, i) + j, scale));
    for (int j = 0; j < SPAN; j++) {
        if (weights[j] > 0.0) found = j; /* sums in two orders may differ in the last bit: then it is the last */
        if ((mass += weights[j]) > target) break;
    }
    return i * SPAN + found;
}

/* ---- top-k, top-p ----------------------------------------------------------------------------------------- */

/* A bound below which no token is kept. What is below it weighs less, all together, than top-p leaves out: the top
 * alone weighs 1. */
static float lowest_kept(const Scores *scores, const Sampling *sampling, int open) {
    if (!open) return bound_of(scores, sampling->top_k);
    const double bound = scores->top + sampling->temperature * log(0.99 * (1.0 - sampling->top_p) / scores->num);
    return bound > -FLT_MAX ? (float)bound : bound_of(scores, scores->num);
}

/* Counts and weights of 16 numbers, on their rungs; returns their weights' sum, whether they are on one or not. */
INLINE wide count(Ladder *ladder, const float *x) {
    const vec on = rungs_of(v_load(x), ladder->scores->top, ladder->steps);
    const wide low = weigh(x, ladder->scale), high = weigh(x + 8, ladder->scale);
    uint32_t bits = v_between(on, 0, ladder->num_rungs);
    if (bits) {
        float rungs[16];
        double weights[16];
        v_store(rungs, on);
        w_store(weights, low);
        w_store(weights + 8, high);
        for (; bits; bits &= bits - 1) {
            const int i = __builtin_ctz(bits), rung = (int)rungs[i];
            ladder->counts[rung]++;
            ladder->ends[rung] += weights[i];
        }
    }
    return w_add(low, high);
}

/* Returns the weight of the whole vocabulary, or, if it is not asked for, of the spans that reach the ladder. */
static double climb(Ladder *ladder, int all) {
    const Scores *scores = ladder->scores;
    double total = 0.0;
    for (int i = 0; i < scores->num_spans; i++) {
        if (!all && (scores->top - scores->tops[i]) * ladder->steps >= (float)ladder->num_rungs) continue;
        wide sum = w_zero();
        for (int j = 0; j < SPAN; j += 16) sum = w_add(sum, count(ladder, span_of(scores, i) + j));
        total += w_sum(sum);
    }
    for (int rung = 1; rung < ladder->num_rungs; rung++) ladder->ends[rung] += ladder->ends[rung - 1];
    return total;
}

INLINE wide weigh_keys(const uint64_t *keys, int num, Scale scale) { /* the first eight, or fewer */
    float x[8];
    for (int i = 0; i < 8; i++) x[i] = i < num ? value_of(keys[i]) : -INFINITY;
    return weigh(x, scale);
}

/* A rung's keys onto the slate, in order; returns how many are kept. */
static int look_up(Ladder *ladder, int rung) {
    const Slate *slate = ladder->slate;
    if (ladder->rung != rung) {
        ladder->num = collect(ladder->scores, ladder->steps, rung, rung + 1, slate->found);
        sort_keys(slate->found, ladder->num, slate->spare);
        ladder->rung = rung;
    }
    return rung + 1 == ladder->num_rungs && ladder->most < ladder->num ? ladder->most : ladder->num;
}

/* The first of a rung's keys with which the weight of all before it reaches `limit`, or passes it; the last that is
 * kept if none does. `mass`: the weight with it. */
static int cross(Ladder *ladder, int rung, double limit, int pass, double *mass) {
    const int num = look_up(ladder, rung);
    const uint64_t *keys = ladder->slate->found;
    double weights[8];
    *mass = rung ? ladder->ends[rung - 1] : 0.0;
    for (int i = 0; i < num; i++) {
        if (i % 8 == 0) w_store(weights, weigh_keys(keys + i, num - i, ladder->scale));
        *mass += weights[i % 8];
        if (*mass > limit || (!pass && *mass == limit)) return i;
    }
    return num - 1;
}

/* The best `num` alone are left. */
static void keep_best(Ladder *ladder, int num) {
    int rung = 0;
    for (; rung + 1 < ladder->num_rungs && ladder->counts[rung] < num; rung++) num -= ladder->counts[rung];
    ladder->num_rungs = rung + 1;
    ladder->most = num;
    cross(ladder, rung, INFINITY, 1, ladder->ends + rung);
}

static int draw_cut(const Slate *slate, const Scores *scores, const Sampling *sampling, Scale scale, double u) {
    const int open = !sampling->top_k || sampling->top_k >= scores->num;
    Ladder ladder = {.scores = scores, .slate = slate, .scale = scale, .most = scores->num, .rung = -1};
    ladder.num_rungs = open || sampling->top_k > FEW ? RUNGS : 1;
    ladder.steps = steps_to(scores, lowest_kept(scores, sampling, open), ladder.num_rungs);
    double whole = ladder.num_rungs > 1 ? climb(&ladder, open) : 0.0;
    if (!open) { /* an open row's probabilities sum up over the vocabulary, a top-k row's over its k */
        keep_best(&ladder, sampling->top_k);
        whole = ladder.ends[ladder.num_rungs - 1];
    }
    const double limit = sampling->top_p * whole;
    int rung = 0;
    while (rung + 1 < ladder.num_rungs && ladder.ends[rung] < limit) rung++;
    double kept, mass;
    ladder.most = 1 + cross(&ladder, rung, limit, 0, &kept); /* the token that crosses p stays */
    ladder.num_rungs = rung + 1;
    ladder.ends[rung] = kept;
    const int drawn = first_above(ladder.ends, ladder.num_rungs, u * kept);
    return id_of(slate->found[cross(&ladder, drawn, u * kept, 1, &mass)]);
}

/* ----------------------------------------------------------------------------------------------------------- */

static int draw_best(const Scores *scores) {
    const vec top = v_set1(scores->top);
    int i = 0;
    while (scores->tops[i] != scores->top) i++;
    for (int j = 0;; j += 16) {
        const uint32_t bits = v_ge(v_load(span_of(scores, i) + j), top);
        if (bits) return i * SPAN + j + __builtin_ctz(bits);
    }
}

int draw_token(const Slate *slate, const Scores *scores, const Sampling *sampling, double u) {
    if (!(fabsf(scores->top) <= FLT_MAX)) return INVALID;
    if (sampling->temperature == 0.0) return draw_best(scores);
    const Scale scale = {scores->top, 1.0 / fmax(sampling->temperature, DBL_MIN)};
    if (!sampling->top_k && sampling->top_p >= 1.0) return draw_any(slate, scores, scale, u);
    return draw_cut(slate, scores, sampling, scale, u);
}
