/* See workspace.h: how a kernel is made and ended, and the entry points that are no step. */
#include "workspace.h"
#include <stdlib.h>

/* Memory that goes when the kernel goes; NULL, and the kernel is not to be used, when memory is short. */
static void *own_raw(Kernel *kernel, size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (!memory) {
        kernel->is_short = 1;
        return NULL;
    }
    return kernel->owned[kernel->num_owned++] = memory;
}

/* Zeros. */
static void *own(Kernel *kernel, size_t bytes) {
    void *memory = own_raw(kernel, bytes);
    return memory ? memset(memory, 0, (bytes + 63) / 64 * 64 + 64) : NULL;
}

static void *own_rows(Kernel *kernel, size_t each) { return own(kernel, kernel->max_rows * each); }

static void furnish(Kernel *kernel, int num_threads) {
    const Model *model = &kernel->model;
    const int group = model->num_heads / model->num_kv_heads, groups = kernel->widest / GROUP, queries = PROMPT_ROWS * group;
    kernel->x = own_rows(kernel, sizeof(float) * kernel->width32);
    kernel->qkv = own_rows(kernel, sizeof(float) * kernel->qkv16);
    kernel->attended = own_rows(kernel, sizeof(float) * kernel->heads32);
    kernel->hidden = own_rows(kernel, sizeof(float) * kernel->ffn32);
    kernel->normal = own_rows(kernel, sizeof(float) * kernel->widest);
    const size_t thin_bytes = sizeof(float) * 2 * model->max_rank;
    kernel->thin = own_rows(kernel, thin_bytes);
    kernel->stretches = own_rows(kernel, sizeof(Stretch));
    void *rows = own(kernel, rows_bytes(kernel->max_rows, groups));
    kernel->desks = own(kernel, sizeof(Desk) * num_threads);
    const size_t row_bytes = sizeof(float) * kernel->widest, scratch_bytes = sizeof(float) * attention_scratch(queries, model->head_dim);
    const size_t desk_bytes = round_up(row_bytes + thin_bytes + scratch_bytes + sizeof(Query) * queries + rows_bytes(1, groups), 64) + 64;
    char *desk = own(kernel, desk_bytes * num_threads);
    const size_t slate = (slate_bytes(model->vocab_size) + 63) / 64 * 64;
    char *slates = own_raw(kernel, slate * num_threads); /* pages of it count once a thread draws */
    if (kernel->is_short) return;
    kernel->rows = rows_over(rows, kernel->max_rows, groups);
    for (int i = 0; i < num_threads; i++, desk += desk_bytes) {
        kernel->desks[i].rows = rows_over(desk, 1, groups);
        char *at = desk + round_up(rows_bytes(1, groups), 64);
        kernel->desks[i].row = (float *)at;
        kernel->desks[i].thin = (float *)(at + row_bytes);
        kernel->desks[i].attention = (float *)(at + row_bytes + thin_bytes);
        kernel->desks[i].queries = (Query *)(at + row_bytes + thin_bytes + scratch_bytes);
        kernel->desks[i].slate = slate_over(slates + slate * i, model->vocab_size);
    }
}

Kernel *kernel_new(const Model *model, const Cache *cache, int32_t num_threads, int32_t max_rows) {
    Kernel *kernel = calloc(1, sizeof(Kernel));
    if (!kernel) return NULL;
    kernel->model = *model;
    kernel->cache = *cache;
    kernel->max_rows = max_rows;
    kernel->width32 = round_up(model->width, 32);
    kernel->ffn32 = round_up(model->ffn_width, 32);
    kernel->heads32 = round_up(model->num_heads * model->head_dim, 32);
    kernel->qkv16 = round_up((model->num_heads + 2 * model->num_kv_heads) * model->head_dim, 16);
    kernel->widest = kernel->width32 > kernel->ffn32 ? kernel->width32 : kernel->ffn32;
    if (kernel->heads32 > kernel->widest) kernel->widest = kernel->heads32;
    kernel->layers = own(kernel, sizeof(Layer) * model->num_layers);
    furnish(kernel, num_threads);
    if (!kernel->is_short) {
        memcpy(kernel->layers, model->layers, sizeof(Layer) * model->num_layers);
        kernel->pool = pool_new(num_threads, 11 * model->num_layers + 4); /* phases of a layer: at most 11 */
    }
    if (kernel->pool) return kernel;
    kernel_free(kernel);
    return NULL;
}

void kernel_free(Kernel *kernel) {
    if (!kernel) return;
    pool_free(kernel->pool);
    for (int i = 0; i < kernel->num_owned; i++) free(kernel->owned[i]);
    free(kernel);
}

void kernel_copy_blocks(Kernel *kernel, const int32_t *pairs, int32_t num_pairs) {
    const Model *model = &kernel->model;
    const size_t heads = (kernel->cache.half ? 32 : 64) * (size_t)model->num_kv_heads;
    const size_t key_bytes = heads * model->head_dim, value_bytes = heads * round_up(model->head_dim, 16);
    for (size_t layer = 0; layer < (size_t)model->num_layers; layer++)
        for (int i = 0; i < num_pairs; i++) {
            const size_t first = layer * kernel->cache.num_blocks, from = first + pairs[2 * i], to = first + pairs[2 * i + 1];
            memcpy((char *)kernel->cache.keys + to * key_bytes, (char *)kernel->cache.keys + from * key_bytes, key_bytes);
            memcpy((char *)kernel->cache.values + to * value_bytes, (char *)kernel->cache.values + from * value_bytes, value_bytes);
        }
}

void kernel_matmul(const Matrix *matrix, const float *x, int32_t num_rows, float *y) {
    const int groups = num_groups(matrix), padded = groups * GROUP;
    float *values = calloc((size_t)num_rows * padded, sizeof(float));
    void *workspace = aligned_alloc(64, (rows_bytes(num_rows, groups) + 63) / 64 * 64);
    if (values && workspace) {
        Rows rows = rows_over(workspace, num_rows, groups);
        rows.values = values;
        rows.value_stride = padded;
        for (int r = 0; r < num_rows; r++) {
            memcpy(values + (size_t)r * padded, x + (size_t)r * matrix->num_in, sizeof(float) * matrix->num_in);
            quantize_row(&rows, r, values + (size_t)r * padded, groups);
        }
        Product product = {.matrix = matrix, .rows = rows, .num_rows = num_rows, .epilogue = STORE, .activation = -1,
                           .y = y, .stride = matrix->num_out, .limit = matrix->num_out};
        multiply_panels(&product, 0, num_panels(matrix));
    }
    free(values);
    free(workspace);
}

const char *kernel_isa(void) {
#if defined(ISA_AVX512)
    return "avx512";
#elif defined(ISA_AVX2)
    return "avx2";
#else
    return "portable";
#endif
}
