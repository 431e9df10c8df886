/* A pass of a Llama-like decoder over few rows on a CPU, limited by how fast its weights are read.

   Contract: all buffers are the caller's, who has checked what is in them. Every number is computed
   by one thread in an order that depends on nothing but its own row: results are the same bit for
   bit with any number of threads and whatever the other rows are. */

#include <math.h>

#include "panels.h"

enum { SILU, GELU, GELU_TANH };

typedef struct {
    Matrix qkv, output, gate_up, down; /* the panels of gate and up alternate */
    const float *attention_norm, *mlp_norm;
    const float *query_norm, *key_norm; /* (D), or none */
    float *cache;                       /* (rows, 2, kv_heads, length, D) */
} Layer;

typedef struct {
    int64_t layers, hidden, heads, kv_heads, head_dim, intermediate, activation;
    float eps, scaling;
    const float *cosines, *sines; /* (context, D / 2) */
    const float *norm;
    const Layer *layer;
} Model;

typedef struct {
    int64_t rows, steps, first, length, threads;
    const int64_t *starts; /* (rows) */
    float *hidden;         /* (rows * steps, hidden): embeddings in, last hidden states out */
    float *normed;         /* (rows * steps, hidden) */
    float *qkv;            /* (rows * steps, (heads + 2 kv_heads) D) */
    float *attended;       /* (rows * steps, heads * D) */
    float *inner;          /* (rows * steps, intermediate) */
    float *scores;         /* (threads, length + LANES) */
} Pass;

INLINE Vector choose(Integers where, Vector yes, Vector no) {
    return (Vector)((where & (Integers)yes) | (~where & (Integers)no));
}

/* exp(x) to within two units of the last place; Cephes' expf. */
INLINE Vector exponential(Vector x) {
    const Vector low = x * 0 - 87, high = x * 0 + 88;
    x = choose(x < low, low, choose(x > high, high, x));
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
        Vector g = load(gate + i), share;
        if (activation == SILU) share = 1 / (1 + exponential(-g));
        else if (activation == GELU_TANH)
            share = 1 / (1 + exponential(-1.5957691f * (g + 0.044715f * g * g * g)));
        else
            for (int j = 0; j < LANES; j++) share[j] = 0.5f * (1 + erff(g[j] * 0.70710678f));
        store(gate + i, g * share * load(up + i));
    }
}

/* The calling thread's share of y = activation(gate) * up; y is (rows, intermediate). */
static void feed(const Matrix *m, const float *x, int64_t rows, float *y, int64_t intermediate,
                 int64_t activation) {
    float gate[BLOCK * PANEL] __attribute__((aligned(64)));
    float up[BLOCK * PANEL] __attribute__((aligned(64)));
    int64_t begin, end;
    share((intermediate + PANEL - 1) / PANEL, &begin, &end);
    for (int64_t panel = begin; panel < end; panel++)
        for (int64_t row = 0; row < rows; row += BLOCK) {
            int64_t count = least(BLOCK, rows - row);
            int64_t width = least(PANEL, intermediate - panel * PANEL);
            multiply_panel(m, 2 * panel, x + row * m->inputs, count, gate);
            multiply_panel(m, 2 * panel + 1, x + row * m->inputs, count, up);
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
    float squares = sum_of(sums);
    for (; i < count; i++) squares += x[i] * x[i];
    float factor = 1 / sqrtf(squares / count + eps);
    for (i = 0; i < count; i++) y[i] = x[i] * factor * scale[i];
}

static void normalize_rows(const float *x, const float *scale, int64_t rows, int64_t count,
                           float eps, float *y) {
    int64_t begin, end;
    share(rows, &begin, &end);
    for (int64_t r = begin; r < end; r++)
        normalize(x + r * count, scale, count, eps, y + r * count);
}

/* Turn the pairs (i, i + D / 2) of one head, times a factor. */
static void rotate(float *x, const float *cosine, const float *sine, int64_t size, float factor) {
    int64_t half = size / 2;
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = (a * cosine[i] - b * sine[i]) * factor;
        x[i + half] = (b * cosine[i] + a * sine[i]) * factor;
    }
}

/* y = softmax(q K^T) V over `count` positions of one head; q is scaled. */
static void attend(const float *q, const float *keys, const float *values, int64_t count,
                   int64_t size, float *scores, float *y) {
    float highest = -INFINITY, total = 0;
    int64_t s = 0;
    for (; s < count; s += 4) {
        const float *k[4];
        Vector sums[4] = {{0}};
        for (int i = 0; i < 4; i++) k[i] = keys + least(s + i, count - 1) * size;
        for (int64_t d = 0; d < size; d += LANES)
            for (int i = 0; i < 4; i++) sums[i] += load(q + d) * load(k[i] + d);
        for (int i = 0; i < 4; i++) scores[s + i] = sum_of(sums[i]);
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

/* Rotate the calling thread's share of queries and keys; write keys and values into the cache. */
static void remember(const Model *m, const Layer *layer, const Pass *pass) {
    int64_t size = m->head_dim, plane = pass->length * size, begin, end;
    share(pass->rows * pass->steps, &begin, &end);
    for (int64_t at = begin; at < end; at++) {
        int64_t row = at / pass->steps, position = pass->starts[row] + at % pass->steps;
        const float *cosine = m->cosines + position * size / 2;
        const float *sine = m->sines + position * size / 2;
        float *query = pass->qkv + at * (m->heads + 2 * m->kv_heads) * size;
        float *key = query + m->heads * size, *value = key + m->kv_heads * size;
        float *to = layer->cache + (pass->first + row) * 2 * m->kv_heads * plane + position * size;
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

/* Attend from the calling thread's share of the queries; later positions take longer, so the shares
   alternate. */
static void recall(const Model *m, const Layer *layer, const Pass *pass) {
    int64_t size = m->head_dim, plane = pass->length * size;
    int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    float *scores = pass->scores + thread * (pass->length + LANES);
    for (int64_t i = thread; i < pass->rows * pass->steps * m->heads; i += threads) {
        int64_t at = i / m->heads, head = i % m->heads, row = at / pass->steps;
        int64_t line = (pass->first + row) * 2 * m->kv_heads + head * m->kv_heads / m->heads;
        const float *keys = layer->cache + line * plane;
        const float *query = pass->qkv + (at * (m->heads + 2 * m->kv_heads) + head) * size;
        attend(query, keys, keys + m->kv_heads * plane, pass->starts[row] + at % pass->steps + 1,
               size, scores, pass->attended + i * size);
    }
}

/* The checksum of the sources, from whoever compiles it. */
int64_t liquid_source(void) { return LIQUID_SOURCE; }

/* y = x W^T + bias; x is (rows, inputs), y (rows, outputs). */
void liquid_multiply(const Matrix *m, const float *x, int64_t rows, float *y, int64_t threads) {
    Place place = PLACE;
#pragma omp parallel num_threads(threads)
    {
        multiply(m, x, rows, y, 0);
        meet(&place);
    }
}

/* The next `steps` positions of neighbouring rows of the cache, through all layers. */
void liquid_forward(const Model *m, const Pass *pass) {
    int64_t rows = pass->rows * pass->steps;
    Place place = PLACE;
#pragma omp parallel num_threads(pass->threads)
    {
        for (const Layer *layer = m->layer; layer < m->layer + m->layers; layer++) {
            normalize_rows(pass->hidden, layer->attention_norm, rows, m->hidden, m->eps,
                           pass->normed);
            meet(&place);
            multiply(&layer->qkv, pass->normed, rows, pass->qkv, 0);
            meet(&place);
            remember(m, layer, pass);
            meet(&place);
            recall(m, layer, pass);
            meet(&place);
            multiply(&layer->output, pass->attended, rows, pass->hidden, 1);
            meet(&place);
            normalize_rows(pass->hidden, layer->mlp_norm, rows, m->hidden, m->eps, pass->normed);
            meet(&place);
            feed(&layer->gate_up, pass->normed, rows, pass->inner, m->intermediate, m->activation);
            meet(&place);
            multiply(&layer->down, pass->inner, rows, pass->hidden, 1);
            meet(&place);
        }
        normalize_rows(pass->hidden, m->norm, rows, m->hidden, m->eps, pass->hidden);
        meet(&place);
    }
}
