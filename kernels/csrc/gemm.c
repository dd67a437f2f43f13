/* y = x @ w.T + bias with bf16 or fp32 weights: fp32 sums over panels packed once.
 *
 * Layout. w [N, K] is cut into panels of PANEL rows (output columns); a panel stores, for each k in
 * turn, its PANEL values, so that a product walks memory straight ahead. fp32 values lie in the order of
 * their columns. Of bf16, inside a group of 2 * LANES values, column j and column LANES + j are
 * neighbours: read as one vector of 32-bit words, the low halves are the first LANES columns and the high
 * halves the next, and a shift and a mask widen 2 * LANES values. The last panel is filled up with zeros.
 *
 * Order of sums. Every output is one fp32 accumulator that takes k = 0, 1, ... K-1 in this order (put
 * aside between blocks of k, which is exact), then the bias, then one rounding. The result of a row
 * therefore depends on neither the other rows, nor their number, nor the number of threads.
 *
 * Blocking, after K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix Multiplication"
 * (2008): a block of a panel stays in the first-level cache while tiles of TILE rows of x pass by. A
 * single tile of rows takes no blocks: it reads each weight once, at the speed of memory.
 */
#include "rootlet.h"
#include "team.h"
#include "vector.h"

#include <stdlib.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "The packed layout counts on little-endian words."
#endif

/* TILE: the most rows of x in a tile. Its accumulators fill the vector registers, less a few for weights
 * and x. GROUPS: of 2 * LANES columns in a panel. */
#if defined(__AVX512F__)
#define TILE 12
#define GROUPS 1
#elif defined(__aarch64__)
#define TILE 5
#define GROUPS 2
#else
#define TILE 6
#define GROUPS 1
#endif
enum {
    GROUP = 2 * LANES,
    PANEL = GROUPS * GROUP,
    VECTORS = PANEL / LANES,       /* of fp32, per panel */
    MAX_PANELS = 4,                /* one tile spans at most */
    BLOCK_BYTES = 512 * PANEL,     /* of a panel in a block: 256 bf16 or 128 fp32 of each column */
    BLOCK_ROWS = 96,               /* of x, that pass by a panel's block */
    BLOCK_PANELS = 256 / PANEL,
    AHEAD = 4096,                  /* bytes of weights on their way from memory while a tile of few rows runs */
    LINE = 64,                     /* bytes of a cache line */
    SCRATCH_BYTES = 8 << 20,       /* of x widened to fp32 at a time */
    SERIAL_WORK = 1 << 16,         /* multiplications that are not worth waking a thread */
    LARGE_WORK = 1 << 22,          /* multiplications during which other Python threads may run */
};

/* One product: x [rows, k] of x_type, rows ldx apart; panels w of w_type; out [rows, n]; bias may be NULL. */
typedef struct {
    const void *x, *bias;
    const char *w;
    void *out;
    int x_type, w_type, bias_type, out_type;
    ptrdiff_t rows, n, k, ldx;
} product;

/* Where column c of a panel is stored among the PANEL values of one k. */
INLINE int place_of(int c, int type) {
    int inside = c % GROUP;
    return type == F32 ? c : c - inside + 2 * (inside % LANES) + inside / LANES;
}

/* ---- the tile: `rows` rows of x times `panels` panels of `type`, all three constant in every copy ---- */

/* The 2 * LANES weights of a group, widened. */
INLINE void load_group(vfloat wide[2], const char *at, const int type) {
    if (type == F32) {
        wide[0] = load(at, 0, F32);
        wide[1] = load(at, LANES, F32);
        return;
    }
    vuint pair;
    memcpy(&pair, at, sizeof pair);
    wide[0] = (vfloat)(pair << 16);
    wide[1] = (vfloat)(pair & 0xffff0000u);
}

/* a: rows of x, lda apart; w: the first panel, panel_bytes to the next; sums: [panels][..][PANEL] with
 * sums_stride to the next panel. Continues the sums found there unless `fresh`. Meanwhile asks memory for
 * k steps of next_bytes from `next` on, which need not exist. */
INLINE void tile(const int type, const int rows, const int panels, const float *a, ptrdiff_t lda,
                 const char *w, ptrdiff_t panel_bytes, ptrdiff_t k, float *sums, ptrdiff_t sums_stride,
                 int fresh, const char *next, ptrdiff_t next_bytes) {
    const ptrdiff_t size = element_size(type), step = PANEL * size;
    vfloat acc[TILE][MAX_PANELS * VECTORS];
    const float *row[(TILE + 2) / 3]; /* every third: so few addresses stay in registers */
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        if (r % 3 == 0) {
            row[r / 3] = a + r * lda;
        }
#pragma GCC unroll 16
        for (int v = 0; v < panels * VECTORS; v++) {
            const float *at = sums + v / VECTORS * sums_stride + r * PANEL + v % VECTORS * LANES;
            acc[r][v] = fresh ? (vfloat){0} : load_fp32(at);
        }
    }
    for (ptrdiff_t i = 0; i < k; i++) {
#pragma GCC unroll 16
        for (int p = 0; p < panels; p++) {
#pragma GCC unroll 16
            for (ptrdiff_t line = 0; line < step; line += LINE) {
                __builtin_prefetch(next + p * panel_bytes + i * next_bytes + line);
            }
        }
        vfloat wide[MAX_PANELS * VECTORS];
#pragma GCC unroll 16
        for (int g = 0; g < panels * GROUPS; g++) {
            const char *at = w + g / GROUPS * panel_bytes + i * step + g % GROUPS * GROUP * size;
            load_group(wide + 2 * g, at, type);
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            float factor = row[r / 3][r % 3 * lda];
#pragma GCC unroll 16
            for (int v = 0; v < panels * VECTORS; v++) {
                acc[r][v] += factor * wide[v];
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; r += 3) {
            row[r / 3]++;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 16
        for (int v = 0; v < panels * VECTORS; v++) {
            float *at = sums + v / VECTORS * sums_stride + r * PANEL + v % VECTORS * LANES;
            store_fp32(at, acc[r][v]);
        }
    }
}

typedef void tile_function(const float *, ptrdiff_t, const char *, ptrdiff_t, ptrdiff_t, float *, ptrdiff_t,
                           int, const char *, ptrdiff_t);

#define TYPED_COPY(type, rows, panels)                                                                 \
    static void tile_##type##_##rows##_##panels(const float *a, ptrdiff_t lda, const char *w,          \
                                                ptrdiff_t panel_bytes, ptrdiff_t k, float *sums,       \
                                                ptrdiff_t sums_stride, int fresh, const char *next,    \
                                                ptrdiff_t next_bytes) {                                \
        tile(type, rows, panels, a, lda, w, panel_bytes, k, sums, sums_stride, fresh, next, next_bytes); \
    }
/* tile_<rows>_<panels>: the copies by type */
#define TILE_COPY(rows, panels)                                                                        \
    TYPED_COPY(BF16, rows, panels)                                                                     \
    TYPED_COPY(F32, rows, panels)                                                                      \
    static tile_function *const tile_##rows##_##panels[] = {                                           \
        [F32] = tile_F32_##rows##_##panels, [BF16] = tile_BF16_##rows##_##panels};
TILE_COPY(1, 1) TILE_COPY(1, 2) TILE_COPY(1, 4) TILE_COPY(2, 1) TILE_COPY(2, 2)
TILE_COPY(3, 1) TILE_COPY(4, 1) TILE_COPY(5, 1)
#if TILE >= 6
TILE_COPY(6, 1)
#endif
#if TILE >= 12
TILE_COPY(7, 1) TILE_COPY(8, 1) TILE_COPY(9, 1) TILE_COPY(10, 1) TILE_COPY(11, 1) TILE_COPY(12, 1)
#endif

/* by rows, for one panel */
static tile_function *const *const one_panel[TILE + 1] = {
    NULL, tile_1_1, tile_2_1, tile_3_1, tile_4_1, tile_5_1,
#if TILE >= 6
    tile_6_1,
#endif
#if TILE >= 12
    tile_7_1, tile_8_1, tile_9_1, tile_10_1, tile_11_1, tile_12_1,
#endif
};

/* Few rows need several panels to keep the multipliers busy: the number of panels, at most `left`, that a
 * tile of `rows` rows takes at once; sets its function. */
static int choose_tile(int type, ptrdiff_t rows, ptrdiff_t left, tile_function **function) {
    if (rows == 1 && left >= 4) {
        *function = tile_1_4[type];
        return 4;
    }
    if (rows <= 2 && left >= 2) {
        *function = (rows == 1 ? tile_1_2 : tile_2_2)[type];
        return 2;
    }
    *function = one_panel[rows][type];
    return 1;
}

/* ---- blocks ---- */

/* sums [rows][PANEL] of panel p -> rows row0... of out: adds the bias, rounds. */
static void finish(const product *g, const float *sums, ptrdiff_t row0, ptrdiff_t rows, ptrdiff_t p) {
    ptrdiff_t column0 = p * PANEL;
    for (int v = 0; v < VECTORS; v++) {
        ptrdiff_t column = column0 + v * LANES;
        ptrdiff_t left = g->n - column < LANES ? g->n - column : LANES;
        if (left <= 0) {
            return;
        }
        vfloat bias = {0};
        if (g->bias != NULL) {
            bias = load_part(g->bias, column, (int)left, g->bias_type);
        }
        for (ptrdiff_t r = 0; r < rows; r++) {
            vfloat y = load_fp32(sums + r * PANEL + v * LANES) + bias;
            ptrdiff_t at = (row0 + r) * g->n + column;
            if (left == LANES) {
                store(g->out, at, y, g->out_type);
            } else {
                store_part(g->out, at, y, (int)left, g->out_type);
            }
        }
    }
}

/* Rows row0.. of out (at most BLOCK_ROWS), panels first..last-1. a: these rows of x in fp32.
 * sums: room for [last - first][rows][PANEL], or for [MAX_PANELS][TILE][PANEL] if rows <= TILE. */
static void multiply_block(const product *g, const float *a, ptrdiff_t lda, ptrdiff_t row0, ptrdiff_t rows,
                           ptrdiff_t first, ptrdiff_t last, float *sums) {
    ptrdiff_t tiles = (rows + TILE - 1) / TILE;
    ptrdiff_t size = element_size(g->w_type), panel_bytes = PANEL * g->k * size;
    ptrdiff_t blocks = tiles == 1 || g->k == 0 ? 1 : (panel_bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;
    for (ptrdiff_t b = 0; b < blocks; b++) {
        ptrdiff_t k0 = b * g->k / blocks, k1 = (b + 1) * g->k / blocks;
        int panels;
        for (ptrdiff_t p = first; p < last; p += panels) {
            const char *w = g->w + p * panel_bytes + k0 * PANEL * size;
            float *block_sums = blocks == 1 ? sums : sums + (p - first) * rows * PANEL;
            panels = 1;
            for (ptrdiff_t t = 0; t < tiles; t++) {
                ptrdiff_t r0 = t * rows / tiles, r1 = (t + 1) * rows / tiles;
                tile_function *run = one_panel[r1 - r0][g->w_type];
                if (tiles == 1) {
                    panels = choose_tile(g->w_type, rows, last - p, &run);
                }
                /* one tile: fetch what comes soon; several: each fetches its part of the next panel */
                ptrdiff_t next_bytes = tiles == 1 ? PANEL * size : PANEL / tiles * size;
                ptrdiff_t ahead = tiles == 1 ? AHEAD / panels : panel_bytes + t * next_bytes * (k1 - k0);
                run(a + r0 * lda + k0, lda, w, panel_bytes, k1 - k0, block_sums + r0 * PANEL, rows * PANEL,
                    b == 0, w + ahead, next_bytes);
            }
            if (b == blocks - 1) {
                for (int i = 0; i < panels; i++) {
                    finish(g, block_sums + i * rows * PANEL, row0, rows, p + i);
                }
            }
        }
    }
}

/* How the work is cut: every block of rows into `chunks` runs of panels. */
typedef struct {
    ptrdiff_t panels, chunks, sums_size; /* sums_size: floats of scratch space per thread */
} division;

static division divide(const product *g, ptrdiff_t rows, int threads) {
    division d = {.panels = (g->n + PANEL - 1) / PANEL};
    if (rows <= TILE) {
        /* each thread streams one long run of memory; several if that leaves each long enough */
        d.chunks = d.panels >= 128 * threads ? 4 * threads : threads;
    } else {
        d.chunks = (d.panels + BLOCK_PANELS - 1) / BLOCK_PANELS;
        d.chunks = (d.chunks + threads - 1) / threads * threads;
    }
    ptrdiff_t longest = (d.panels + d.chunks - 1) / d.chunks;
    d.sums_size = rows <= TILE ? MAX_PANELS * TILE * PANEL : longest * BLOCK_ROWS * PANEL;
    return d;
}

/* Rows row0.. (`rows` of them) of out. */
typedef struct {
    const product *g;
    const division *d;
    float *a; /* these rows of x in fp32, `lda` apart */
    ptrdiff_t lda, row0, rows;
    float *sums; /* d->sums_size floats per thread */
} part;

static void multiply_share(void *context, int64_t begin, int64_t end, int thread) {
    const part *p = context;
    const division *d = p->d;
    ptrdiff_t row_blocks = (p->rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    for (ptrdiff_t task = begin; task < end; task++) {
        ptrdiff_t chunk = task / row_blocks, block = task % row_blocks;
        ptrdiff_t r0 = block * p->rows / row_blocks, r1 = (block + 1) * p->rows / row_blocks;
        ptrdiff_t first = chunk * d->panels / d->chunks, last = (chunk + 1) * d->panels / d->chunks;
        multiply_block(p->g, p->a + r0 * p->lda, p->lda, p->row0 + r0, r1 - r0, first, last,
                       p->sums + thread * d->sums_size);
    }
}

static void multiply_rows(part *p, int shared) {
    ptrdiff_t tasks = (p->rows + BLOCK_ROWS - 1) / BLOCK_ROWS * p->d->chunks;
    team_share(tasks, shared ? tasks : 1, multiply_share, p);
}

/* rows of x -> p->a */
static void widen_share(void *context, int64_t begin, int64_t end, int thread) {
    const part *p = context;
    const product *g = p->g;
    (void)thread;
    for (ptrdiff_t r = begin; r < end; r++) {
        if (g->x_type == F32) {
            memcpy(p->a + r * p->lda, (const float *)g->x + (p->row0 + r) * g->ldx, g->k * sizeof(float));
            continue;
        }
        const uint16_t *x = (const uint16_t *)g->x + (p->row0 + r) * g->ldx;
        ptrdiff_t k = 0;
        for (; k + LANES <= g->k; k += LANES) {
            store_fp32(p->a + r * p->lda + k, load(x, k, BF16));
        }
        for (; k < g->k; k++) {
            p->a[r * p->lda + k] = load_one(x, k, BF16);
        }
    }
}

/* Returns 0, or -1 if there is no memory for scratch space. */
static int multiply(const product *g) {
    int shared = g->rows * g->n * g->k > SERIAL_WORK, threads = shared ? team_size() : 1;
    division d = divide(g, g->rows, threads);
    /* Rows of fp32 lie a multiple of a kilobyte apart, as k is: those of one tile would share cache sets. An
     * odd multiple of a cache line keeps them apart, which is worth a copy where several tiles read it. */
    int widen = g->x_type == BF16 || g->rows > 2 * TILE;
    ptrdiff_t lda = widen ? (g->k / 16 | 1) * 16 + 32 : g->ldx;
    ptrdiff_t step = g->rows;
    if (widen && step * lda * 4 > SCRATCH_BYTES) {
        ptrdiff_t fitting = SCRATCH_BYTES / (lda * 4) / BLOCK_ROWS * BLOCK_ROWS;
        step = fitting > BLOCK_ROWS ? fitting : BLOCK_ROWS;
        step = step < g->rows ? step : g->rows;
    }
    size_t widened = widen ? step * lda : 0;
    float *scratch = aligned_alloc(64, ((widened + threads * d.sums_size) * sizeof(float) + 63) / 64 * 64);
    if (scratch == NULL) {
        return -1;
    }
    part p = {.g = g, .d = &d, .lda = lda, .sums = scratch + widened};
    for (p.row0 = 0; p.row0 < g->rows; p.row0 += step) {
        p.rows = g->rows - p.row0 < step ? g->rows - p.row0 : step;
        p.a = widen ? scratch : (float *)g->x + p.row0 * g->ldx;
        if (widen) {
            team_rows(p.rows, shared && p.rows * g->k > SERIAL_WORK, widen_share, &p);
        }
        multiply_rows(&p, shared);
    }
    free(scratch);
    return 0;
}

/* ---- packing ---- */

/* `count` elements, from_step and to_step apart. */
INLINE void copy_elements(char *to, ptrdiff_t to_step, const char *from, ptrdiff_t from_step, ptrdiff_t count,
                          const int type) {
    const ptrdiff_t size = element_size(type);
    for (ptrdiff_t i = 0; i < count; i++) {
        memcpy(to + i * to_step * size, from + i * from_step * size, size);
    }
}

/* Panel p of source [n, k]. */
INLINE void pack_panel(char *panel, const char *source, ptrdiff_t n, ptrdiff_t k, ptrdiff_t p, const int type) {
    const ptrdiff_t size = element_size(type);
    ptrdiff_t columns = n - p * PANEL < PANEL ? n - p * PANEL : PANEL;
    if (columns < PANEL) {
        memset(panel, 0, PANEL * k * size);
    }
    for (int c = 0; c < columns; c++) {
        const char *row = source + (p * PANEL + c) * k * size;
        copy_elements(panel + place_of(c, type) * size, PANEL, row, 1, k, type);
    }
}

/* Row `row` of the packed weight -> out [k]. */
INLINE void unpack_row(char *out, const char *panels, ptrdiff_t row, ptrdiff_t k, const int type) {
    const ptrdiff_t size = element_size(type);
    const char *from = panels + (row / PANEL * PANEL * k + place_of((int)(row % PANEL), type)) * size;
    copy_elements(out, 1, from, PANEL, k, type);
}

/* ---- the functions Python calls ---- */

/* () -> the number of rows of a panel */
ROOTLET_FUNCTION(rootlet_gemm_panel) {
    ARGUMENTS(0)
    return PyLong_FromLong(PANEL);
}

typedef struct {
    char *to;
    const char *from;
    const int64_t *ids; /* of the rows to unpack */
    ptrdiff_t n, k;
    int type;
} copying;

static void pack_share(void *context, int64_t begin, int64_t end, int thread) {
    const copying *c = context;
    (void)thread;
    for (ptrdiff_t p = begin; p < end; p++) {
        char *panel = c->to + p * PANEL * c->k * element_size(c->type);
        if (c->type == BF16) {
            pack_panel(panel, c->from, c->n, c->k, p, BF16);
        } else {
            pack_panel(panel, c->from, c->n, c->k, p, F32);
        }
    }
}

static void unpack_share(void *context, int64_t begin, int64_t end, int thread) {
    const copying *c = context;
    (void)thread;
    for (ptrdiff_t i = begin; i < end; i++) {
        char *row = c->to + i * c->k * element_size(c->type);
        if (c->type == BF16) {
            unpack_row(row, c->from, c->ids[i], c->k, BF16);
        } else {
            unpack_row(row, c->from, c->ids[i], c->k, F32);
        }
    }
}

/* (panels, source, n, k, type): source [n, k] -> panels */
ROOTLET_FUNCTION(rootlet_gemm_pack) {
    ARGUMENTS(5)
    copying c = {
        .to = pointer_argument(args[0]),
        .from = pointer_argument(args[1]),
        .n = integer_argument(args[2]),
        .k = integer_argument(args[3]),
        .type = (int)integer_argument(args[4]),
    };
    ARGUMENTS_END
    int large = c.n * c.k > SERIAL_WORK;
    BEGIN_COMPUTE(large)
    team_rows((c.n + PANEL - 1) / PANEL, large, pack_share, &c);
    END_COMPUTE
    Py_RETURN_NONE;
}

/* (out, panels, ids, count, n, k, type): rows ids [count] int64 of the packed weight -> out [count, k] */
ROOTLET_FUNCTION(rootlet_gemm_rows) {
    ARGUMENTS(7)
    int64_t count = integer_argument(args[3]);
    copying c = {
        .to = pointer_argument(args[0]),
        .from = pointer_argument(args[1]),
        .ids = pointer_argument(args[2]),
        .n = integer_argument(args[4]),
        .k = integer_argument(args[5]),
        .type = (int)integer_argument(args[6]),
    };
    ARGUMENTS_END
    for (ptrdiff_t i = 0; i < count; i++) {
        if (c.ids[i] < 0 || c.ids[i] >= c.n) {
            return PyErr_Format(PyExc_IndexError, "Row %lld is not in 0..%zd.", (long long)c.ids[i], c.n - 1);
        }
    }
    int large = count * c.k > SERIAL_WORK;
    BEGIN_COMPUTE(large)
    team_rows(count, large, unpack_share, &c);
    END_COMPUTE
    Py_RETURN_NONE;
}

/* (out, out_type, x, x_type, ldx, panels, w_type, bias, bias_type, rows, n, k); bias 0 for none */
ROOTLET_FUNCTION(rootlet_gemm) {
    ARGUMENTS(12)
    product g = {
        .out = pointer_argument(args[0]),
        .out_type = (int)integer_argument(args[1]),
        .x = pointer_argument(args[2]),
        .x_type = (int)integer_argument(args[3]),
        .ldx = integer_argument(args[4]),
        .w = pointer_argument(args[5]),
        .w_type = (int)integer_argument(args[6]),
        .bias = pointer_argument(args[7]),
        .bias_type = (int)integer_argument(args[8]),
        .rows = integer_argument(args[9]),
        .n = integer_argument(args[10]),
        .k = integer_argument(args[11]),
    };
    ARGUMENTS_END
    BEGIN_COMPUTE(g.rows * g.n * g.k > LARGE_WORK)
    int failed = g.rows * g.n > 0 && multiply(&g) != 0;
    END_COMPUTE
    if (failed) {
        return PyErr_NoMemory();
    }
    Py_RETURN_NONE;
}
