/* The arithmetic of attention on one tile of keys; attention.c decides which tiles, when and where.
 *
 * Everything here keeps one rule: what is added to what, in which order, depends on the positions of
 * the query and its keys alone, never on how many queries are done together. Either way of computing a
 * product below thus gives bitwise the same result.
 */
#ifndef ROOTLET_ATTENTION_TILE_H
#define ROOTLET_ATTENTION_TILE_H

#include "rootlet.h"
#include "vector.h"

enum {
    KEYS = 64,           /* keys of a tile; tiles start at multiples of it */
    COLUMNS = 2 * LANES, /* width of a register tile */
    ROWS = 6,            /* its height: 12 sums, of 16 registers */
    /* floats of a panel of values; the odd row keeps panels off the same cache sets */
    PANEL = (KEYS + 1) * COLUMNS,
};

/* Stands for the maximum of no scores: finite, so that differences are numbers. */
#define NO_MAXIMUM (-1e30f)
#define LOG2_E 1.44269504f

struct attention {
    char *out;                 /* [T, num_q, dim] */
    const char *q;             /* [T, num_q, dim] */
    const char *k, *v;         /* [pages, page_size, num_kv, dim] */
    const int32_t *page_table; /* [rows, table_stride] */
    const int32_t *q_starts;   /* [rows + 1] */
    const int32_t *kv_lens;    /* [rows] */
    int64_t rows, table_stride, page_size, pages, num_q, num_kv, dim;
    float scale, soft_cap; /* soft_cap 0: none */
    int64_t window;        /* 0: none */
    int type;
    int64_t group;       /* query heads of a kv head */
    int64_t padded;      /* dim rounded up to COLUMNS */
    int64_t tile_tokens; /* most query tokens of a unit of work */
};

/* A softmax under way over some queries: out[m] = sum of 2^(score - max[m]) * value, and sum[m] the same
 * without the values. */
struct state {
    float *max, *sum; /* [rows] */
    float *out;       /* [rows, padded] */
};

/* One thread's buffers; rows are query tokens times query heads of a group. */
struct workspace {
    float *q;      /* [rows, dim]: widened and scaled */
    float *keys;   /* [KEYS / COLUMNS, dim, COLUMNS]: widened and transposed */
    float *values; /* [padded / COLUMNS, PANEL]: widened, rows of COLUMNS dimensions */
    float *scores; /* [rows, KEYS] */
    float *keep;   /* [rows]: factor by which the tile at hand shrinks what was summed before it */
    struct state first, next, part; /* of the first span, of another, and of the one under way */
    /* Bytes from the start of the cache to each key of the tile at hand, and, if fetch is set, of the tile
     * after it, which is fetched ahead: pages are scattered, and the processor does not guess the next one.
     * Fetches are strewn over the computation, since of many at once most are dropped. */
    int64_t *offset, *ahead;
    int64_t offsets[2][KEYS];
    int fetch;
};

/* c[m, :] = keep[m] * c[m, :] + sum over d of a[m, d] * b[d, :], for `rows` rows and COLUMNS columns; with
 * keep NULL c starts at 0. */
INLINE void multiply(float *c, int64_t ldc, const float *a, int64_t lda, const float *b, int64_t depth,
                     const float *keep, int rows) {
    vfloat acc[ROWS][2];
    for (int m = 0; m < rows; m++) {
        for (int n = 0; n < 2; n++) {
            acc[m][n] = keep != NULL ? load_fp32(c + m * ldc + n * LANES) * keep[m] : (vfloat){0};
        }
    }
    for (int64_t d = 0; d < depth; d++) {
        vfloat b0 = load_fp32(b + d * COLUMNS), b1 = load_fp32(b + d * COLUMNS + LANES);
        for (int m = 0; m < rows; m++) {
            vfloat x = splat(a[m * lda + d]);
            acc[m][0] += x * b0;
            acc[m][1] += x * b1;
        }
    }
    for (int m = 0; m < rows; m++) {
        for (int n = 0; n < 2; n++) {
            store_fp32(c + m * ldc + n * LANES, acc[m][n]);
        }
    }
}

/* All rows of a times one panel b of COLUMNS columns. */
static void multiply_panel(float *c, int64_t ldc, const float *a, int64_t lda, const float *b, int64_t depth,
                           const float *keep, int64_t rows) {
    int64_t blocks = (rows + ROWS - 1) / ROWS;
    for (int64_t block = 0; block < blocks; block++) {
        int64_t row = rows * block / blocks, height = rows * (block + 1) / blocks - row;
        float *to = c + row * ldc;
        const float *from = a + row * lda, *shrink = keep != NULL ? keep + row : NULL;
        switch (height) {
        case 1: multiply(to, ldc, from, lda, b, depth, shrink, 1); break;
        case 2: multiply(to, ldc, from, lda, b, depth, shrink, 2); break;
        case 3: multiply(to, ldc, from, lda, b, depth, shrink, 3); break;
        case 4: multiply(to, ldc, from, lda, b, depth, shrink, 4); break;
        case 5: multiply(to, ldc, from, lda, b, depth, shrink, 5); break;
        default: multiply(to, ldc, from, lda, b, depth, shrink, 6); break;
        }
    }
}

/* Dimensions in four 32-bit words, the step of a transposition. */
INLINE int64_t step_of(int type) { return type == BF16 ? 8 : 4; }

/* Of four transposed words, the LANES values of dimension i: a word of bf16 holds two dimensions. */
INLINE vfloat dimension(const vuint words[4], int i, int type) {
    if (type == F32) {
        return (vfloat)words[i];
    }
    return (vfloat)(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u);
}

/* Widen and transpose the keys [from, to) of the tile, multiples of COLUMNS. */
INLINE void pack_keys(const struct attention *a, struct workspace *w, int from, int to, int type) {
    int64_t step = step_of(type), whole = a->dim / step * step;
    for (int j = from; j < to; j += LANES) {
        float *out = w->keys + j / COLUMNS * a->dim * COLUMNS + j % COLUMNS;
        const int64_t *at = w->offset + j;
        for (int64_t d = 0; d < whole; d += step) {
            vuint words[4];
            load_transposed(words, a->k + d * element_size(type), at);
            for (int i = 0; i < step; i++) {
                store_fp32(out + (d + i) * COLUMNS, dimension(words, i, type));
            }
        }
        for (int64_t d = whole; d < a->dim; d++) {
            for (int lane = 0; lane < LANES; lane++) {
                out[d * COLUMNS + lane] = load_one(a->k + at[lane], d, type);
            }
        }
    }
}

/* Widen values [from, to) of the tile into panels of COLUMNS dimensions, padded with zeros. */
INLINE void pack_values(const struct attention *a, struct workspace *w, int from, int to, int type) {
    for (int j = from; j < to; j++) {
        const char *value = a->v + w->offset[j];
        float *out = w->values + j * COLUMNS;
        int64_t d = 0;
        for (; d + COLUMNS <= a->dim; d += COLUMNS, out += PANEL) {
            store_fp32(out, load(value, d, type));
            store_fp32(out + LANES, load(value, d + LANES, type));
        }
        if (d < a->dim) {
            int rest = (int)(a->dim - d);
            store_fp32(out, load_part(value, d, rest < LANES ? rest : LANES, type));
            store_fp32(out + LANES, load_part(value, d + LANES, rest > LANES ? rest - LANES : 0, type));
        }
    }
}

/* Products straight from the cache, for so few rows that packing would not pay. */

/* Have keys brought near that lie ahead of the COLUMNS keys from j on: over a line's dimensions, a quarter
 * of the keys at each of the four steps that it takes. */
INLINE void fetch_keys(const struct attention *a, const struct workspace *w, int j, int64_t byte) {
    const int64_t *ahead = w->ahead + j + byte / 16 % 4 * (COLUMNS / 4);
    for (int i = 0; i < COLUMNS / 4; i++) {
        __builtin_prefetch(a->k + ahead[i] + byte / 64 * 64);
    }
}

/* Scores of the COLUMNS keys from j on. */
INLINE void score_keys(const struct attention *a, struct workspace *w, int j, int row, int rows, int type) {
    vfloat acc[ROWS][2] = {0};
    const float *q = w->q + row * a->dim;
    int64_t step = step_of(type);
    for (int64_t d = 0; d < a->dim; d += step) {
        int64_t byte = d * (int64_t)element_size(type);
        if (w->fetch && row == 0) {
            fetch_keys(a, w, j, byte);
        }
        vuint left[4], right[4];
        load_transposed(left, a->k + byte, w->offset + j);
        load_transposed(right, a->k + byte, w->offset + j + LANES);
        for (int i = 0; i < step; i++) {
            vfloat k0 = dimension(left, i, type), k1 = dimension(right, i, type);
            for (int m = 0; m < rows; m++) {
                vfloat x = splat(q[m * a->dim + d + i]);
                acc[m][0] += x * k0;
                acc[m][1] += x * k1;
            }
        }
    }
    for (int m = 0; m < rows; m++) {
        store_fp32(w->scores + (row + m) * KEYS + j, acc[m][0]);
        store_fp32(w->scores + (row + m) * KEYS + j + LANES, acc[m][1]);
    }
}

/* out[m, d] = out[m, d] * keep[m] + sum of weight[m, j] * value[j, d] over j in [low, high), for `width`
 * vectors of dimensions from d on. */
INLINE void add_values(const struct attention *a, const struct workspace *w, int low, int high, int64_t d,
                       const float *keep, int row, int rows, int width, int type) {
    vfloat acc[ROWS][4];
    float *out = w->part.out + row * a->padded + d;
    const float *weight = w->scores + row * KEYS;
    for (int m = 0; m < rows; m++) {
        for (int n = 0; n < width; n++) {
            acc[m][n] =
                keep != NULL ? load_fp32(out + m * a->padded + n * LANES) * keep[row + m] : (vfloat){0};
        }
    }
    for (int j = low; j < high; j++) {
        const char *value = a->v + w->offset[j];
        if (w->fetch && row == 0) {
            __builtin_prefetch(a->v + w->ahead[j] + d * (int64_t)element_size(type));
        }
        for (int n = 0; n < width; n++) {
            vfloat v = load(value, d + n * LANES, type);
            for (int m = 0; m < rows; m++) {
                acc[m][n] += splat(weight[m * KEYS + j]) * v;
            }
        }
    }
    for (int m = 0; m < rows; m++) {
        for (int n = 0; n < width; n++) {
            store_fp32(out + m * a->padded + n * LANES, acc[m][n]);
        }
    }
}

/* CALL(n, type) with the number of rows and the type as constants. */
#define DISPATCH(rows, type, CALL)           \
    switch (2 * (rows) + ((type) == BF16)) { \
    case 2: CALL(1, F32); break;             \
    case 3: CALL(1, BF16); break;            \
    case 4: CALL(2, F32); break;             \
    case 5: CALL(2, BF16); break;            \
    case 6: CALL(3, F32); break;             \
    case 7: CALL(3, BF16); break;            \
    case 8: CALL(4, F32); break;             \
    case 9: CALL(4, BF16); break;            \
    case 10: CALL(5, F32); break;            \
    case 11: CALL(5, BF16); break;           \
    case 12: CALL(6, F32); break;            \
    default: CALL(6, BF16); break;           \
    }

static void score_block(const struct attention *a, struct workspace *w, int from, int to, int row,
                        int height) {
    int type = a->type;
    for (int j = from; j < to; j += COLUMNS) {
#define CALL(n, type) score_keys(a, w, j, row, n, type)
        DISPATCH(height, type, CALL)
#undef CALL
    }
}

/* All dimensions of the output, in steps as wide as registers allow. */
INLINE void add_dimensions(const struct attention *a, const struct workspace *w, int low, int high,
                           const float *keep, int row, int rows, int type) {
    int64_t d = 0;
    for (; rows <= 3 && d + 4 * LANES <= a->dim; d += 4 * LANES) {
        add_values(a, w, low, high, d, keep, row, rows, 4, type);
    }
    for (; d + 2 * LANES <= a->dim; d += 2 * LANES) {
        add_values(a, w, low, high, d, keep, row, rows, 2, type);
    }
    for (; d < a->dim; d += LANES) {
        add_values(a, w, low, high, d, keep, row, rows, 1, type);
    }
}

static void add_block(const struct attention *a, const struct workspace *w, int low, int high,
                      const float *keep, int row, int height) {
    int type = a->type;
#define CALL(n, type) add_dimensions(a, w, low, high, keep, row, n, type)
    DISPATCH(height, type, CALL)
#undef CALL
}

/* Whether few enough rows, of dimensions without a remainder, go straight from the cache. */
INLINE int is_direct(const struct attention *a, int64_t rows) {
    return rows <= 2 * ROWS && a->dim % LANES == 0 && a->dim % step_of(a->type) == 0;
}

/* scores = q k^T for the keys of the tile in [from, to), multiples of COLUMNS. */
static void score_tile(const struct attention *a, struct workspace *w, int from, int to, int64_t rows) {
    if (is_direct(a, rows)) {
        int half = (int)(rows > ROWS ? rows / 2 : rows);
        score_block(a, w, from, to, 0, half);
        if (half < rows) {
            score_block(a, w, from, to, half, (int)rows - half);
        }
        return;
    }
    if (a->type == BF16) {
        pack_keys(a, w, from, to, BF16);
    } else {
        pack_keys(a, w, from, to, F32);
    }
    for (int j = from; j < to; j += COLUMNS) {
        multiply_panel(w->scores + j, KEYS, w->q, a->dim, w->keys + j * a->dim, a->dim, NULL, rows);
    }
}

/* part.out = keep * part.out + weights v for the keys of the tile in [low, high); with keep NULL, part.out
 * holds nothing yet. */
static void add_tile(const struct attention *a, struct workspace *w, int low, int high, const float *keep,
                     int64_t rows) {
    if (is_direct(a, rows)) {
        int half = (int)(rows > ROWS ? rows / 2 : rows);
        add_block(a, w, low, high, keep, 0, half);
        if (half < rows) {
            add_block(a, w, low, high, keep, half, (int)rows - half);
        }
        return;
    }
    if (a->type == BF16) {
        pack_values(a, w, low, high, BF16);
    } else {
        pack_values(a, w, low, high, F32);
    }
    for (int64_t panel = 0; panel < a->padded / COLUMNS; panel++) {
        multiply_panel(w->part.out + panel * COLUMNS, a->padded, w->scores + low, KEYS,
                       w->values + panel * PANEL + low * COLUMNS, high - low, keep, rows);
    }
}

/* Turn the scores of one row, columns [from, to), into weights 2^(score - max); only those in
 * [low, high) count, the others become 0. Updates max and sum and returns the factor by which what
 * was summed before shrinks. */
INLINE float weigh_row(float *score, int from, int to, int64_t low, int64_t high, float cap, float *max,
                       float *sum) {
    const vint lane = lane_numbers();
    int masked = low > from || high < to;
    vfloat top = splat(NO_MAXIMUM);
    for (int j = from; j < to; j += LANES) {
        vfloat s = load_fp32(score + j);
        if (cap != 0) {
            s = cap * vtanh(s);
        }
        if (masked) {
            vint index = lane + j;
            s = select_lanes((index >= (int32_t)low) & (index < (int32_t)high), s, splat(NO_MAXIMUM));
        }
        store_fp32(score + j, s);
        top = vmax(s, top);
    }
    float old = *max, new = larger(lanes_max(top), old);
    vfloat total = {0};
    for (int j = from; j < to; j += LANES) {
        vfloat s = load_fp32(score + j);
        vfloat p = vexp2(s - new);
        if (masked) {
            vint index = lane + j;
            p = select_lanes((index >= (int32_t)low) & (index < (int32_t)high), p, (vfloat){0});
        }
        store_fp32(score + j, p);
        total += p;
    }
    float keep = vexp2(splat(old - new))[0];
    *max = new;
    *sum = *sum * keep + lanes_sum(total);
    return keep;
}

/* into = into + from, as softmaxes over more keys. */
static void merge(struct state into, struct state from, int64_t rows, int64_t padded) {
    for (int64_t m = 0; m < rows; m++) {
        float max = larger(into.max[m], from.max[m]);
        float keep = vexp2(splat(into.max[m] - max))[0], scale = vexp2(splat(from.max[m] - max))[0];
        into.max[m] = max;
        into.sum[m] = into.sum[m] * keep + from.sum[m] * scale;
        for (int64_t d = 0; d < padded; d += LANES) {
            float *at = into.out + m * padded + d;
            store_fp32(at, load_fp32(at) * keep + load_fp32(from.out + m * padded + d) * scale);
        }
    }
}

#endif
