/* Matrix products of packed weights with any number of rows.

   A matrix (M, K) is stored in panels of PANEL outputs, (M / PANEL, K, PANEL), so that a thread
   reads its weights sequentially, each once for all rows. The sum of an output runs over k in
   order, whatever the dtype of the weights and the number of rows are. Vectors are extensions of GCC and
   Clang; the threads of a parallel region share the panels. */

#include <stdint.h>
#include <string.h>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "threads.h"

#define INLINE static inline __attribute__((always_inline))

enum {
    PANEL = 32, /* outputs of a panel */
    LANES = 8,  /* numbers of a vector */
    VECTORS = PANEL / LANES,
    TILE = 3,    /* rows whose sums fit in registers */
    FEW = 4,     /* up to this many rows use the weights without unpacking them first */
    DEPTH = 128, /* inputs of a panel whose unpacked weights fit in the L1 cache */
    BLOCK = 64   /* rows whose sums fit in the L1 cache */
};
enum { FLOAT32, BFLOAT16, INT8 };

typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(32)));
typedef uint16_t Halves __attribute__((vector_size(16), aligned(2), may_alias));
typedef int8_t Bytes __attribute__((vector_size(8), aligned(1), may_alias));

typedef struct {
    const void *weight; /* panels */
    const float *scale; /* (M), or null */
    const float *bias;  /* (M), or null */
    int64_t outputs, inputs, dtype;
} Matrix;

INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE float horizontal_sum(Vector v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

INLINE Vector load(const float *x) { return *(const Vector *)x; }

INLINE void store(float *x, Vector v) { *(Vector *)x = v; }

/* Load eight weights. Compilers do not use the AVX2 instructions for widening by themselves. */
INLINE Vector load_weights(const void *weight, int64_t at, int dtype) {
    if (dtype == FLOAT32) return load((const float *)weight + at);
    if (dtype == BFLOAT16) {
        const uint16_t *w = (const uint16_t *)weight + at;
#ifdef __AVX2__
        Integers wide = (Integers)_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)w));
#else
        Integers wide = __builtin_convertvector(*(const Halves *)w, Integers);
#endif
        return (Vector)(wide << 16);
    }
    const int8_t *w = (const int8_t *)weight + at;
#ifdef __AVX2__
    Integers wide = (Integers)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)w));
#else
    Integers wide = __builtin_convertvector(*(const Bytes *)w, Integers);
#endif
    return __builtin_convertvector(wide, Vector);
}

/* Add the products of a panel's weights of `count` inputs with at most TILE rows to `sums`. The
   last two arguments are constants in every call, so that all loops but one are unrolled. */
INLINE void add_tile(const void *weight, int64_t at, const float *x, int64_t stride, int64_t count,
                     float *sums, int dtype, int rows) {
    Vector s[TILE][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < VECTORS; i++) s[r][i] = load(sums + r * PANEL + i * LANES);
    for (int64_t k = 0; k < count; k++)
        for (int i = 0; i < VECTORS; i++) {
            Vector w = load_weights(weight, at + k * PANEL + i * LANES, dtype);
            for (int r = 0; r < rows; r++) s[r][i] += w * x[r * stride + k];
        }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < VECTORS; i++) store(sums + r * PANEL + i * LANES, s[r][i]);
}

INLINE void add_rows(const void *weight, int64_t at, const float *x, int64_t stride, int64_t count,
                     int64_t rows, float *sums, int dtype) {
    for (; rows >= TILE; rows -= TILE, x += TILE * stride, sums += TILE * PANEL)
        add_tile(weight, at, x, stride, count, sums, dtype, TILE);
    if (rows == 2) add_tile(weight, at, x, stride, count, sums, dtype, 2);
    if (rows == 1) add_tile(weight, at, x, stride, count, sums, dtype, 1);
}

/* For more than FEW rows, the weights of DEPTH inputs are unpacked to floats once for all rows. */
INLINE void add_panel(const Matrix *m, int64_t panel, const float *x, int64_t rows, float *sums,
                      int dtype) {
    int64_t size = m->inputs, at = panel * size * PANEL;
    if (rows <= FEW) {
        add_rows(m->weight, at, x, size, size, rows, sums, dtype);
        return;
    }
    float floats[DEPTH * PANEL] __attribute__((aligned(64)));
    for (int64_t k = 0; k < size; k += DEPTH, at += DEPTH * PANEL) {
        int64_t count = min_of(DEPTH, size - k);
        if (dtype == FLOAT32) {
            add_rows(m->weight, at, x + k, size, count, rows, sums, FLOAT32);
        } else {
            for (int64_t i = 0; i < count * PANEL; i += LANES)
                store(floats + i, load_weights(m->weight, at + i, dtype));
            add_rows(floats, 0, x + k, size, count, rows, sums, FLOAT32);
        }
    }
}

/* Multiply one panel with at most BLOCK rows, (rows, inputs), into `sums`, (rows, PANEL). */
static void matmul_panel(const Matrix *m, int64_t panel, const float *x, int64_t rows,
                         float *sums) {
    memset(sums, 0, rows * PANEL * sizeof *sums);
    switch (m->dtype) {
    case FLOAT32: add_panel(m, panel, x, rows, sums, FLOAT32); break;
    case BFLOAT16: add_panel(m, panel, x, rows, sums, BFLOAT16); break;
    default: add_panel(m, panel, x, rows, sums, INT8);
    }
    int64_t width = min_of(PANEL, m->outputs - panel * PANEL);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < width; i++) {
            if (m->scale) sums[r * PANEL + i] *= m->scale[panel * PANEL + i];
            if (m->bias) sums[r * PANEL + i] += m->bias[panel * PANEL + i];
        }
}

/* The calling thread's part of y = x W^T, or of y += x W^T; y is (rows, outputs). */
static void matmul(const Matrix *m, const float *x, int64_t rows, float *y, int add) {
    float sums[BLOCK * PANEL] __attribute__((aligned(64)));
    int64_t begin, end;
    thread_range((m->outputs + PANEL - 1) / PANEL, &begin, &end);
    for (int64_t panel = begin; panel < end; panel++)
        for (int64_t row = 0; row < rows; row += BLOCK) {
            int64_t count = min_of(BLOCK, rows - row);
            int64_t width = min_of(PANEL, m->outputs - panel * PANEL);
            matmul_panel(m, panel, x + row * m->inputs, count, sums);
            for (int64_t r = 0; r < count; r++) {
                float *to = y + (row + r) * m->outputs + panel * PANEL;
                for (int64_t i = 0; i < width; i++)
                    to[i] = add ? to[i] + sums[r * PANEL + i] : sums[r * PANEL + i];
            }
        }
}
