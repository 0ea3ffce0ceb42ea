/* Logits to tokens and to log probabilities, rows shared among the kernel's threads. See draw.h, adjust.h, measure.h. */
#include "adjust.h"
#include "draw.h"
#include "measure.h"
#include "workspace.h"

#define ALONE 3 /* rows that one thread has done before it could have woken another */

typedef struct { Kernel *kernel; Draws draws; } Drawing;
typedef struct { Kernel *kernel; Questions questions; } Measuring;

/* A thread's slate; without a walk the caller is alone. */
static const Slate *slate_of(const Kernel *kernel, const Walk *walk) { return &kernel->desks[walk ? walk_thread(walk) : 0].slate; }

static int draw_row(const Draws *draws, int i, const Slate *slate) {
    const Sampling *sampling = draws->samplings + i;
    const double u = uniform(sampling->seed, (uint32_t)sampling->choice, (uint32_t)draws->positions[i]);
    Scores scores;
    if (!is_adjusted(draws, i)) {
        open_scores(&scores, draws->logits + (size_t)draws->rows[i] * draws->stride, draws->vocab_size, slate->tops);
    } else {
        adjust_row(draws, i, slate->adjusted);
        open_scores(&scores, slate->adjusted, draws->vocab_size, slate->tops);
        cut_improbable(&scores, slate->adjusted, sampling->min_p);
    }
    return draw_token(slate, &scores, sampling, u);
}

static void draw_rows(void *task, Walk *walk, int32_t begin, int32_t end) {
    const Drawing *drawing = task;
    for (int i = begin; i < end; i++)
        drawing->draws.tokens[i] = draw_row(&drawing->draws, i, slate_of(drawing->kernel, walk));
}

static void draw_all(void *context, Walk *walk) {
    pool_phase(walk, ((Drawing *)context)->draws.num_rows, 1, draw_rows, context);
}

static void measure_rows(void *task, Walk *walk, int32_t begin, int32_t end) {
    const Measuring *measuring = task;
    for (int i = begin; i < end; i++) measure_row(&measuring->questions, i, slate_of(measuring->kernel, walk));
}

static void measure_all(void *context, Walk *walk) {
    pool_phase(walk, ((Measuring *)context)->questions.num_rows, 1, measure_rows, context);
}

void kernel_draw(Kernel *kernel, const Draws *draws) {
    Drawing drawing = {kernel, *draws};
    if (draws->num_rows <= ALONE) draw_rows(&drawing, NULL, 0, draws->num_rows);
    else pool_run(kernel->pool, draw_all, &drawing, sizeof drawing);
}

void kernel_measure(Kernel *kernel, const Questions *questions) {
    Measuring measuring = {kernel, *questions};
    if (questions->num_rows <= ALONE) measure_rows(&measuring, NULL, 0, questions->num_rows);
    else pool_run(kernel->pool, measure_all, &measuring, sizeof measuring);
}
