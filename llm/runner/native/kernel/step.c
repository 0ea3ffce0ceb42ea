/* A whole step: rows in, logits and hidden states out. See kernel.h.
 *
 *     embed ─▶ ┌ norm ─▶ qkv ─▶ rotate, store keys and values ─▶ attend ─▶ out + ┐
 *              └ norm ─▶ gate, up ─▶ activation ─▶ down + ───────────────────────┘ × layers ─▶ norm ─▶ head
 *
 * Every arrow is a phase of the pool: panels of a matrix, rows, or (rows of one sequence, key/value head). With
 * one row each thread normalises and rounds it for itself, which costs less than waiting for another to do it.
 * A step of decoders alone rotates, stores and attends in one phase: no row looks at another's keys.
 *
 * A low-rank adapter's A is multiplied where a row is made ready, its B where a panel's outputs are finished: each
 * row's by itself, so that no row hangs on which adapters are beside it.
 */
#include "workspace.h"
#include <math.h>

/* What is fixed for a step. Late threads read it when the step is over, so they get a copy. */
typedef struct {
    Kernel *kernel;
    Step step;
    int32_t num_stretches, decodes; /* decodes: every sequence has one row */
} Plan;

static int smaller(int a, int b) { return a < b ? a : b; }
static int grain_of(const Kernel *kernel, int total) {
    const int grain = total / (8 * pool_num_threads(kernel->pool));
    return grain > 1 ? grain : 1;
}

/* ---- rows into a matrix ---------------------------------------------------------------------------------- */

/* y = epilogue(matrix · norm(source)) */
typedef struct {
    Kernel *kernel;
    const float *source;
    size_t stride;
    const int32_t *index;       /* rows of source to take, or NULL for all */
    const float *norm, *norm_bias; /* NULL: the rows as they are */
    Product product;
} Linear;

static const float *prepare_row(const Linear *linear, const Product *product, int row, float *normal) {
    const Kernel *kernel = linear->kernel;
    const float *from = linear->source + (linear->index ? linear->index[row] : row) * linear->stride;
    if (linear->norm) {
        normalize_row(from, normal, kernel->model.width, kernel->model.layer_norm, kernel->model.norm_eps, linear->norm, linear->norm_bias);
        from = normal;
    }
    if (product->matrix->format != F32) quantize_row(&product->rows, row, from, num_groups(product->matrix));
    if (product->beside.parts) thin_row(&product->beside, row, from);
    if (product->beside_gate.parts) thin_row(&product->beside_gate, row, from);
    return from;
}

static void prepare_rows(void *task, Walk *walk, int32_t begin, int32_t end) {
    const Linear *linear = task;
    Kernel *kernel = linear->kernel;
    const int keep = linear->product.matrix->format == F32; /* its tiles read what was normalised */
    for (int row = begin; row < end; row++)
        prepare_row(linear, &linear->product, row, keep ? kernel->normal + (size_t)row * kernel->widest : kernel->desks[walk_thread(walk)].row);
}

static void multiply(void *task, Walk *walk, int32_t begin, int32_t end) {
    const Linear *linear = task;
    if (linear->product.num_rows > 1) {
        multiply_panels(&linear->product, begin, end);
        return;
    }
    Desk *desk = linear->kernel->desks + walk_thread(walk);
    Product product = linear->product;
    product.rows = desk->rows;
    product.beside.thin = desk->thin;
    product.beside_gate.thin = desk->thin + linear->kernel->model.max_rank;
    if (desk->prepared != walk_phase(walk)) {
        desk->rows.values = prepare_row(linear, &product, 0, desk->row);
        desk->prepared = walk_phase(walk);
    }
    product.rows.values = desk->rows.values;
    multiply_panels(&product, begin, end);
}

static void linear(Linear *linear, Walk *walk) {
    Kernel *kernel = linear->kernel;
    Product *product = &linear->product;
    product->rows = kernel->rows;
    product->rows.values = linear->norm ? kernel->normal : linear->source;
    product->rows.value_stride = linear->norm ? (size_t)kernel->widest : linear->stride;
    if (product->num_rows == 0) return;
    const int is_made = linear->norm || product->matrix->format != F32 || product->beside.parts;
    if (product->num_rows > 1 && is_made)
        pool_phase(walk, product->num_rows, grain_of(kernel, product->num_rows), prepare_rows, linear);
    const int panels = num_panels(product->matrix);
    pool_phase(walk, panels, grain_of(kernel, panels), multiply, linear);
}

/* ---- embedding ------------------------------------------------------------------------------------------- */

static void embed(void *task, Walk *walk, int32_t begin, int32_t end) {
    const Plan *plan = task;
    const Kernel *kernel = plan->kernel;
    (void)walk;
    for (int row = begin; row < end; row++) {
        float *x = kernel->x + (size_t)row * kernel->width32;
        read_row(&kernel->model.embedding, plan->step.tokens[row], x);
        if (!kernel->model.positions) continue;
        const float *position = kernel->model.positions + (size_t)plan->step.positions[row] * kernel->width32;
        for (int i = 0; i < kernel->width32; i += 16) v_store(x + i, v_add(v_load(x + i), v_load(position + i)));
    }
}

/* ---- attention ------------------------------------------------------------------------------------------- */

typedef struct {
    const Plan *plan;
    const Layer *layer;
    int index;
} Attention;

INLINE vec load_some(const float *p, int n) { return n >= 16 ? v_load(p) : v_load_n(p, n); }
INLINE void store_some(float *p, vec v, int n) {
    if (n >= 16) v_store(p, v);
    else v_store_n(p, v, n);
}

static void normalize_head(float *head, int head_dim, float eps, const float *weight) {
    vec squares = v_zero();
    for (int i = 0; i < head_dim; i += 16) {
        vec v = load_some(head + i, head_dim - i);
        squares = v_fma(v, v, squares);
    }
    const vec inverse = v_set1(1.f / sqrtf(v_sum(squares) / (float)head_dim + eps));
    for (int i = 0; i < head_dim; i += 16) {
        const int n = head_dim - i;
        store_some(head + i, v_mul(v_mul(load_some(head + i, n), inverse), load_some(weight + i, n)), n);
    }
}

/* Numbers i and i + D/2 turn together by the position's angle i. */
static void rotate_head(float *head, int head_dim, const float *cosines, const float *sines) {
    const int half = head_dim / 2;
    for (int i = 0; i < half; i += 16) {
        const int n = half - i;
        vec a = load_some(head + i, n), b = load_some(head + half + i, n);
        vec cosine = load_some(cosines + i, n), sine = load_some(sines + i, n);
        store_some(head + i, v_sub(v_mul(a, cosine), v_mul(b, sine)), n);
        store_some(head + half + i, v_fma(b, cosine, v_mul(a, sine)), n);
    }
}

/* Norm, rotation and scale of one head's numbers in place. */
static void place_head(const Model *model, float *head, int position, const float *norm, float scale) {
    if (norm) normalize_head(head, model->head_dim, model->norm_eps, norm);
    const size_t at = (size_t)position * (model->head_dim / 2);
    if (model->cosines) rotate_head(head, model->head_dim, model->cosines + at, model->sines + at);
    if (scale == 1.f) return;
    for (int i = 0; i < model->head_dim; i += 16) {
        const int n = model->head_dim - i;
        store_some(head + i, v_mul(load_some(head + i, n), v_set1(scale)), n);
    }
}

static Pages pages_of(const Attention *attention, int sequence) {
    const Kernel *kernel = attention->plan->kernel;
    const Model *model = &kernel->model;
    const size_t line = kernel->cache.half ? 32 : 64, layer = (size_t)attention->index * kernel->cache.num_blocks * model->num_kv_heads;
    Pages pages = {.num_heads = model->num_kv_heads, .head_dim = model->head_dim, .half = kernel->cache.half};
    pages.key_bytes = line * model->head_dim;
    pages.value_bytes = line * round_up(model->head_dim, 16);
    pages.keys = (char *)kernel->cache.keys + layer * pages.key_bytes;
    pages.values = (char *)kernel->cache.values + layer * pages.value_bytes;
    pages.table = attention->plan->step.tables + (size_t)sequence * attention->plan->step.table_width;
    return pages;
}

/* A row's query heads of one group made ready; its key and value stored. */
static void place_row(const Attention *attention, const Pages *pages, int sequence, int row, int kv_head) {
    const Kernel *kernel = attention->plan->kernel;
    const Step *step = &attention->plan->step;
    const Model *model = &kernel->model;
    const int size = model->head_dim, group = model->num_heads / model->num_kv_heads, position = step->positions[row];
    float *q = kernel->qkv + (size_t)row * kernel->qkv16;
    float *key = q + (model->num_heads + kv_head) * size, *value = key + model->num_kv_heads * size;
    for (int h = kv_head * group; h < (kv_head + 1) * group; h++)
        place_head(model, q + h * size, position, attention->layer->q_norm, 1.f / sqrtf((float)size));
    place_head(model, key, position, attention->layer->k_norm, 1.f);
    const int is_last = row + 1 == step->starts[sequence + 1];
    const int began_block = step->positions[step->starts[sequence]] <= position / BLOCK_TOKENS * BLOCK_TOKENS;
    store_key(pages, kv_head, position, key);
    store_value(pages, kv_head, position, value, is_last && began_block);
}

/* Pieces are (stretch, key/value head). */
static void place_stretches(void *task, Walk *walk, int32_t begin, int32_t end) {
    const Attention *attention = task;
    const Kernel *kernel = attention->plan->kernel;
    (void)walk;
    for (int piece = begin; piece < end; piece++) {
        const Stretch *stretch = kernel->stretches + piece / kernel->model.num_kv_heads;
        const Pages pages = pages_of(attention, stretch->sequence);
        for (int row = stretch->row; row < stretch->row + stretch->num_rows; row++)
            place_row(attention, &pages, stretch->sequence, row, piece % kernel->model.num_kv_heads);
    }
}

static void attend_stretches(void *task, Walk *walk, int32_t begin, int32_t end) {
    const Attention *attention = task;
    const Kernel *kernel = attention->plan->kernel;
    const Model *model = &kernel->model;
    const int group = model->num_heads / model->num_kv_heads, window = attention->layer->window;
    Desk *desk = kernel->desks + walk_thread(walk);
    for (int piece = begin; piece < end; piece++) {
        const Stretch *stretch = kernel->stretches + piece / model->num_kv_heads;
        const int kv_head = piece % model->num_kv_heads;
        const Pages pages = pages_of(attention, stretch->sequence);
        if (attention->plan->decodes) place_row(attention, &pages, stretch->sequence, stretch->row, kv_head);
        int n = 0;
        for (int row = stretch->row; row < stretch->row + stretch->num_rows; row++) {
            const int position = attention->plan->step.positions[row];
            for (int h = kv_head * group; h < (kv_head + 1) * group; h++, n++) {
                desk->queries[n].query = kernel->qkv + (size_t)row * kernel->qkv16 + h * model->head_dim;
                desk->queries[n].answer = kernel->attended + (size_t)row * kernel->heads32 + h * model->head_dim;
                desk->queries[n].first = window && position >= window ? position - window + 1 : 0;
                desk->queries[n].last = position;
            }
        }
        attend(&pages, kv_head, desk->queries, n, desk->attention);
    }
}

/* ---- the step -------------------------------------------------------------------------------------------- */

/* The low ranks beside a matrix of a layer; `member` is its place in Adapter. */
static Beside beside(const Plan *plan, int layer, size_t member, int is_gate) {
    const Kernel *kernel = plan->kernel;
    const Model *model = &kernel->model;
    if (!plan->step.adapters) return (Beside){0};
    const LowRank *parts = (const LowRank *)((const char *)(model->adapters + layer) + member);
    return (Beside){parts, (size_t)model->num_layers * (sizeof(Adapter) / sizeof(LowRank)), plan->step.adapters,
                    kernel->thin + is_gate * model->max_rank, 2 * (size_t)model->max_rank};
}

static void run_layer(const Plan *plan, Walk *walk, int index) {
    Kernel *kernel = plan->kernel;
    const Model *model = &kernel->model;
    const Layer *layer = kernel->layers + index;
    const int num_rows = plan->step.num_rows, pieces = plan->num_stretches * model->num_kv_heads;
    linear(&(Linear){kernel, kernel->x, kernel->width32, NULL, layer->attention_norm, layer->attention_norm_bias,
                     {.matrix = &layer->qkv, .beside = beside(plan, index, offsetof(Adapter, qkv), 0), .num_rows = num_rows, .epilogue = STORE, .activation = -1,
                      .y = kernel->qkv, .stride = kernel->qkv16, .limit = kernel->qkv16}}, walk);
    Attention attention = {plan, layer, index};
    if (!plan->decodes) pool_phase(walk, pieces, grain_of(kernel, pieces), place_stretches, &attention);
    pool_phase(walk, pieces, grain_of(kernel, pieces), attend_stretches, &attention);
    linear(&(Linear){kernel, kernel->attended, kernel->heads32, NULL, NULL, NULL,
                     {.matrix = &layer->out, .beside = beside(plan, index, offsetof(Adapter, out), 0), .num_rows = num_rows, .epilogue = ADD, .activation = -1,
                      .y = kernel->x, .stride = kernel->width32, .limit = kernel->width32}}, walk);
    const int gated = model->activation == SWIGLU;
    linear(&(Linear){kernel, kernel->x, kernel->width32, NULL, layer->ffn_norm, layer->ffn_norm_bias,
                     {.matrix = &layer->up, .gate = &layer->gate, .beside = beside(plan, index, offsetof(Adapter, up), 0),
                      .beside_gate = gated ? beside(plan, index, offsetof(Adapter, gate), 1) : (Beside){0}, .num_rows = num_rows, .epilogue = gated ? GATE : STORE,
                      .activation = gated ? -1 : model->activation,
                      .y = kernel->hidden, .stride = kernel->ffn32, .limit = kernel->ffn32}}, walk);
    linear(&(Linear){kernel, kernel->hidden, kernel->ffn32, NULL, NULL, NULL,
                     {.matrix = &layer->down, .beside = beside(plan, index, offsetof(Adapter, down), 0), .num_rows = num_rows, .epilogue = ADD, .activation = -1,
                      .y = kernel->x, .stride = kernel->width32, .limit = kernel->width32}}, walk);
}

static void tell_hidden(void *task, Walk *walk, int32_t begin, int32_t end) {
    const Plan *plan = task;
    const Kernel *kernel = plan->kernel;
    const Model *model = &kernel->model;
    float *row = kernel->desks[walk_thread(walk)].row;
    for (int i = begin; i < end; i++) {
        const float *x = kernel->x + (size_t)plan->step.hidden_rows[i] * kernel->width32;
        normalize_row(x, row, model->width, model->layer_norm, model->norm_eps, model->norm, model->norm_bias);
        memcpy(plan->step.hidden + (size_t)i * model->width, row, sizeof(float) * model->width);
    }
}

static void run(void *context, Walk *walk) {
    Plan *plan = context;
    Kernel *kernel = plan->kernel;
    const Model *model = &kernel->model;
    pool_phase(walk, plan->step.num_rows, grain_of(kernel, plan->step.num_rows), embed, plan);
    for (int index = 0; index < model->num_layers; index++) run_layer(plan, walk, index);
    if (plan->step.num_hidden) pool_phase(walk, plan->step.num_hidden, 1, tell_hidden, plan);
    linear(&(Linear){kernel, kernel->x, kernel->width32, plan->step.logit_rows, model->norm, model->norm_bias,
                     {.matrix = &model->head, .num_rows = plan->step.num_logits, .epilogue = STORE, .activation = -1,
                      .y = plan->step.logits, .stride = model->vocab_size, .limit = model->vocab_size}}, walk);
}

void kernel_step(Kernel *kernel, const Step *step) {
    Plan plan = {kernel, *step, 0, 1};
    for (int sequence = 0; sequence < step->num_sequences; sequence++) {
        const int begin = step->starts[sequence], end = step->starts[sequence + 1];
        if (end - begin > 1) plan.decodes = 0;
        for (int row = begin; row < end; row += PROMPT_ROWS)
            kernel->stretches[plan.num_stretches++] = (Stretch){sequence, row, smaller(PROMPT_ROWS, end - row)};
    }
    pool_run(kernel->pool, run, &plan, sizeof plan);
}
