/* Forward pass of Llama-like models on a CPU, limited by memory bandwidth for few rows.

   The caller owns and checks all buffers. Every number is computed by one thread, in an order that
   depends only on its own row: results are bitwise equal with any number of threads and any other
   rows. ffi.py mirrors the structures; `liquid_abi` lets it check them. */

#include <math.h>

#include "matmul.h"

enum { SILU, GELU, GELU_TANH };

typedef struct {
    Matrix qkv, output, gate_up, down; /* the panels of gate and up alternate */
    const float *attention_norm, *mlp_norm;
    const float *query_norm, *key_norm; /* (D), or null */
    float *cache;                       /* (slots, 2, kv_heads, length, D) */
} Layer;

typedef struct {
    int64_t layers, hidden, heads, kv_heads, head_dim, intermediate, activation;
    float eps, scaling;
    const float *cosines, *sines; /* (context, D / 2) */
    const float *norm;
    const Layer *layer;
} Model;

typedef struct {
    int64_t slots, steps, first_slot, length, threads;
    const int64_t *starts; /* (slots) */
    float *hidden;         /* (slots * steps, hidden): embeddings in, last hidden states out */
    float *normed;         /* (slots * steps, hidden) */
    float *qkv;            /* (slots * steps, (heads + 2 kv_heads) D) */
    float *attended;       /* (slots * steps, heads * D) */
    float *inner;          /* (slots * steps, intermediate) */
    float *scores;         /* (threads, length + LANES) */
} ForwardArgs;

INLINE Vector select_lanes(Integers where, Vector yes, Vector no) {
    return (Vector)((where & (Integers)yes) | (~where & (Integers)no));
}

/* exp(x) to within two units of the last place; Cephes' expf. */
INLINE Vector exponential(Vector x) {
    const Vector low = x * 0 - 87, high = x * 0 + 88;
    x = select_lanes(x < low, low, select_lanes(x > high, high, x));
    Vector n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* to the nearest integer */
    x = x - n * 0.693359375f - n * -2.12194440e-4f;
    Vector y = x * 0 + 1.9875691500e-4f;
    y = y * x + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    y = y * x * x + x + 1;
    return y * (Vector)((__builtin_convertvector(n, Integers) + 127) << 23);
}

/* gate = activation(gate) * up; whole vectors. */
static void activate(float *gate, const float *up, int64_t count, int64_t activation) {
    for (int64_t i = 0; i < count; i += LANES) {
        Vector g = load(gate + i), gated;
        if (activation == SILU) gated = 1 / (1 + exponential(-g));
        else if (activation == GELU_TANH)
            gated = 1 / (1 + exponential(-1.5957691f * (g + 0.044715f * g * g * g)));
        else
            for (int j = 0; j < LANES; j++) gated[j] = 0.5f * (1 + erff(g[j] * 0.70710678f));
        store(gate + i, g * gated * load(up + i));
    }
}

/* The calling thread's part of y = activation(gate) * up; y is (rows, intermediate). */
static void mlp(const Matrix *m, const float *x, int64_t rows, float *y, int64_t intermediate,
                int64_t activation) {
    float gate[BLOCK * PANEL] __attribute__((aligned(64)));
    float up[BLOCK * PANEL] __attribute__((aligned(64)));
    int64_t begin, end;
    thread_range((intermediate + PANEL - 1) / PANEL, &begin, &end);
    for (int64_t panel = begin; panel < end; panel++)
        for (int64_t row = 0; row < rows; row += BLOCK) {
            int64_t count = min_of(BLOCK, rows - row);
            int64_t width = min_of(PANEL, intermediate - panel * PANEL);
            matmul_panel(m, 2 * panel, x + row * m->inputs, count, gate);
            matmul_panel(m, 2 * panel + 1, x + row * m->inputs, count, up);
            activate(gate, up, count * PANEL, activation);
            for (int64_t r = 0; r < count; r++)
                memcpy(y + (row + r) * intermediate + panel * PANEL, gate + r * PANEL,
                       width * sizeof *y);
        }
}

/* y = x / sqrt(mean(x^2) + eps) * scale */
static void normalize(const float *x, const float *scale, int64_t count, float eps, float *y) {
    Vector sums = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) sums += load(x + i) * load(x + i);
    float squares = horizontal_sum(sums);
    for (; i < count; i++) squares += x[i] * x[i];
    float factor = 1 / sqrtf(squares / count + eps);
    for (i = 0; i < count; i++) y[i] = x[i] * factor * scale[i];
}

static void normalize_rows(const float *x, const float *scale, int64_t rows, int64_t count,
                           float eps, float *y) {
    int64_t begin, end;
    thread_range(rows, &begin, &end);
    for (int64_t r = begin; r < end; r++)
        normalize(x + r * count, scale, count, eps, y + r * count);
}

/* Rotate the pairs (i, i + D / 2) of one head and multiply by a factor. */
static void rotate(float *x, const float *cosine, const float *sine, int64_t size, float factor) {
    int64_t half = size / 2;
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = (a * cosine[i] - b * sine[i]) * factor;
        x[i + half] = (b * cosine[i] + a * sine[i]) * factor;
    }
}

/* y = softmax(q K^T) V over `count` positions of one head; q is scaled. */
static void attend_head(const float *q, const float *keys, const float *values, int64_t count,
                        int64_t size, float *scores, float *y) {
    float highest = -INFINITY, total = 0;
    int64_t s = 0;
    for (; s < count; s += 4) {
        const float *k[4];
        Vector sums[4] = {{0}};
        for (int i = 0; i < 4; i++) k[i] = keys + min_of(s + i, count - 1) * size;
        for (int64_t d = 0; d < size; d += LANES)
            for (int i = 0; i < 4; i++) sums[i] += load(q + d) * load(k[i] + d);
        for (int i = 0; i < 4; i++) scores[s + i] = horizontal_sum(sums[i]);
    }
    for (s = 0; s < count; s++) highest = scores[s] > highest ? scores[s] : highest;
    for (s = 0; s < count; s += LANES)
        store(scores + s, exponential(load(scores + s) - highest));
    for (s = 0; s < count; s++) total += scores[s];
    for (int64_t d = 0; d < size; d += LANES) {
        Vector sum = {0}, other = {0};
        for (s = 0; s + 1 < count; s += 2) {
            sum += load(values + s * size + d) * scores[s];
            other += load(values + (s + 1) * size + d) * scores[s + 1];
        }
        if (s < count) sum += load(values + s * size + d) * scores[s];
        store(y + d, (sum + other) / total);
    }
}

/* Rotate the calling thread's part of queries and keys; write keys and values into the cache. */
static void rope_and_cache(const Model *m, const Layer *layer, const ForwardArgs *args) {
    int64_t size = m->head_dim, plane = args->length * size, begin, end;
    thread_range(args->slots * args->steps, &begin, &end);
    for (int64_t at = begin; at < end; at++) {
        int64_t slot = at / args->steps, position = args->starts[slot] + at % args->steps;
        const float *cosine = m->cosines + position * size / 2;
        const float *sine = m->sines + position * size / 2;
        float *query = args->qkv + at * (m->heads + 2 * m->kv_heads) * size;
        float *key = query + m->heads * size, *value = key + m->kv_heads * size;
        float *to = layer->cache + (args->first_slot + slot) * 2 * m->kv_heads * plane +
                    position * size;
        for (int64_t h = 0; h < m->heads; h++, query += size) {
            if (layer->query_norm) normalize(query, layer->query_norm, size, m->eps, query);
            rotate(query, cosine, sine, size, m->scaling);
        }
        for (int64_t h = 0; h < m->kv_heads; h++, key += size, value += size, to += plane) {
            if (layer->key_norm) normalize(key, layer->key_norm, size, m->eps, key);
            rotate(key, cosine, sine, size, 1);
            memcpy(to, key, size * sizeof *to);
            memcpy(to + m->kv_heads * plane, value, size * sizeof *to);
        }
    }
}

/* Attend from the calling thread's part of the queries; later positions take longer, so the threads
   alternate. */
static void attention(const Model *m, const Layer *layer, const ForwardArgs *args) {
    int64_t size = m->head_dim, plane = args->length * size;
    int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    float *scores = args->scores + thread * (args->length + LANES);
    for (int64_t i = thread; i < args->slots * args->steps * m->heads; i += threads) {
        int64_t at = i / m->heads, head = i % m->heads, slot = at / args->steps;
        int64_t line = (args->first_slot + slot) * 2 * m->kv_heads + head * m->kv_heads / m->heads;
        const float *keys = layer->cache + line * plane;
        const float *query = args->qkv + (at * (m->heads + 2 * m->kv_heads) + head) * size;
        attend_head(query, keys, keys + m->kv_heads * plane,
                    args->starts[slot] + at % args->steps + 1, size, scores,
                    args->attended + i * size);
    }
}

/* The checksum of the sources, which setup.py defines. */
int64_t liquid_source(void) { return LIQUID_SOURCE; }

/* The sizes of the structures and the values of the constants that ffi.py repeats. */
const int64_t *liquid_abi(void) {
    static const int64_t abi[] = {
        sizeof(Matrix), sizeof(Layer), sizeof(Model), sizeof(ForwardArgs), PANEL, LANES,
        FLOAT32,        BFLOAT16,      INT8,          SILU,                GELU,  GELU_TANH,
    };
    return abi;
}

/* y = x W^T + bias; x is (rows, inputs), y (rows, outputs). */
void liquid_matmul(const Matrix *m, const float *x, int64_t rows, float *y, int64_t threads) {
    Barrier barrier = BARRIER_INITIALIZER;
#pragma omp parallel num_threads(threads)
    {
        matmul(m, x, rows, y, 0);
        barrier_wait(&barrier);
    }
}

/* Run the next `steps` positions of contiguous slots of the cache through all layers. */
void liquid_forward(const Model *m, const ForwardArgs *args) {
    int64_t rows = args->slots * args->steps;
    Barrier barrier = BARRIER_INITIALIZER;
#pragma omp parallel num_threads(args->threads)
    {
        for (const Layer *layer = m->layer; layer < m->layer + m->layers; layer++) {
            normalize_rows(args->hidden, layer->attention_norm, rows, m->hidden, m->eps,
                           args->normed);
            barrier_wait(&barrier);
            matmul(&layer->qkv, args->normed, rows, args->qkv, 0);
            barrier_wait(&barrier);
            rope_and_cache(m, layer, args);
            barrier_wait(&barrier);
            attention(m, layer, args);
            barrier_wait(&barrier);
            matmul(&layer->output, args->attended, rows, args->hidden, 1);
            barrier_wait(&barrier);
            normalize_rows(args->hidden, layer->mlp_norm, rows, m->hidden, m->eps, args->normed);
            barrier_wait(&barrier);
            mlp(&layer->gate_up, args->normed, rows, args->inner, m->intermediate, m->activation);
            barrier_wait(&barrier);
            matmul(&layer->down, args->inner, rows, args->hidden, 1);
            barrier_wait(&barrier);
        }
        normalize_rows(args->hidden, m->norm, rows, m->hidden, m->eps, args->hidden);
        barrier_wait(&barrier);
    }
}
