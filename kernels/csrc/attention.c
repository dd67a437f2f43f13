/* Causal attention over a paged KV cache: ragged rows of queries, fp32 inside, online softmax
 * (Milakov & Gimelshein 2018, arXiv:1805.02867), tiled as in FlashAttention (arXiv:2205.14135).
 *
 * A unit of work is (row, some of its query tokens, kv head): all query heads of the kv head go
 * together, so that a key or value is read and widened once for the group. Keys are taken in tiles at
 * fixed positions, tiles in spans of SPAN keys; a span starts a softmax of its own, and spans are merged
 * in order. Where there is less work than threads, the spans of a unit become units of their own. So
 * results are bitwise the same for prefill, chunked prefill and decode, in any batch, with any page size
 * and number of threads.
 */
#include "attention_tile.h"
#include "team.h"
#include <stdlib.h>

enum {
    SPAN = 256,   /* keys of a span; a multiple of KEYS */
    ROOM = 12288, /* floats of a unit's output, to stay in the second-level cache */
    ALL_SPANS = -1,
};

/* Query tokens [first, first + tokens) of a row, for one kv head. */
struct unit {
    int32_t row, head, first, tokens;
    int32_t span;    /* the only span to do, or ALL_SPANS, which also stores the result */
    int32_t spans;   /* on the first span of a divided unit: how many there are; else 0 */
    int64_t scratch; /* where a divided unit's partial result goes, in floats */
};

/* All units of one call, and the memory for the partial results of those that are divided. */
struct plan {
    struct unit *units;
    int64_t count;
    float *scratch; /* NULL if no unit is divided */
};

struct range {
    int64_t first, end;
};

/* The keys that the query at a position sees are [first_key, position]. */
INLINE int64_t first_key(const struct attention *a, int64_t position) {
    int64_t first = a->window > 0 ? position - a->window + 1 : 0;
    return first > 0 ? first : 0;
}

/* The positions of the unit's queries in the context of its row. */
INLINE struct range positions_of(const struct attention *a, const struct unit *u) {
    int64_t length = a->q_starts[u->row + 1] - a->q_starts[u->row];
    int64_t first = a->kv_lens[u->row] - length + u->first;
    return (struct range){first, first + u->tokens};
}

/* The keys that at least one query of the unit sees, within the unit's span. */
INLINE struct range keys_of(const struct attention *a, const struct unit *u) {
    struct range positions = positions_of(a, u);
    struct range keys = {first_key(a, positions.first), positions.end};
    if (u->span != ALL_SPANS) {
        int64_t start = (int64_t)u->span * SPAN;
        keys.first = keys.first > start ? keys.first : start;
        keys.end = keys.end < start + SPAN ? keys.end : start + SPAN;
    }
    return keys;
}

/* Those of the tile at `tile`, counted from its start. */
INLINE struct range within_tile(struct range keys, int64_t tile) {
    int64_t first = keys.first - tile, end = keys.end - tile;
    return (struct range){first > 0 ? first : 0, end < KEYS ? end : KEYS};
}

/* Where in the cache the keys of a tile are; 0 if a page of the row does not exist. Entries of the tile
 * that no query sees repeat one that some query does: they are read, and masked later. */
static int locate_keys(const struct attention *a, const struct unit *u, int64_t tile, int64_t *offset) {
    struct range keys = within_tile(keys_of(a, u), tile);
    const int32_t *pages = a->page_table + u->row * a->table_stride;
    int64_t head_bytes = a->dim * (int64_t)element_size(a->type), token_bytes = a->num_kv * head_bytes;
    int64_t page = (tile + keys.first) / a->page_size, slot = (tile + keys.first) % a->page_size;
    for (int64_t j = keys.first; j < keys.end; page++, slot = 0) {
        if (pages[page] < 0 || pages[page] >= a->pages) {
            return 0;
        }
        int64_t at = (pages[page] * a->page_size + slot) * token_bytes + u->head * head_bytes;
        int64_t end = j + a->page_size - slot < keys.end ? j + a->page_size - slot : keys.end;
        for (; j < end; j++, at += token_bytes) {
            offset[j] = at;
        }
    }
    for (int64_t j = 0; j < keys.first; j++) {
        offset[j] = offset[keys.first];
    }
    for (int64_t j = keys.end; j < KEYS; j++) {
        offset[j] = offset[keys.first];
    }
    return 1;
}

/* Have the keys and values at w->ahead[from..to) brought near. */
INLINE void fetch_tokens(const struct attention *a, const struct workspace *w, int64_t from, int64_t to) {
    int64_t bytes = a->dim * (int64_t)element_size(a->type);
    for (int64_t j = from; j < to; j++) {
        for (int64_t line = 0; line < bytes; line += 64) {
            __builtin_prefetch(a->k + w->ahead[j] + line);
            __builtin_prefetch(a->v + w->ahead[j] + line);
        }
    }
}

/* Add the keys of one tile, at w->offset, to w->part; `fresh` if that holds nothing yet. */
static void attend_tile(const struct attention *a, const struct unit *u, struct workspace *w, int64_t tile,
                        int fresh) {
    int64_t position = positions_of(a, u).first - tile, rows = u->tokens * a->group;
    struct range keys = within_tile(keys_of(a, u), tile);
    int low = (int)keys.first, high = (int)keys.end;
    int from = low / COLUMNS * COLUMNS, to = (high + COLUMNS - 1) / COLUMNS * COLUMNS;
    int fetch = w->fetch && !is_direct(a, rows); /* else score_tile and add_tile do it */
    score_tile(a, w, from, to, rows);
    for (int64_t m = 0; m < rows; m++) {
        if (fetch) {
            fetch_tokens(a, w, KEYS * m / rows, KEYS * (m + 1) / rows);
        }
        int64_t at = position + m / a->group;
        int64_t seen_from = a->window > 0 ? at - a->window + 1 : 0;
        w->keep[m] = weigh_row(w->scores + m * KEYS, from, to, seen_from, at + 1, a->soft_cap * LOG2_E,
                               &w->part.max[m], &w->part.sum[m]);
    }
    add_tile(a, w, low, high, fresh ? NULL : w->keep, rows);
}

/* Attend to the keys of one span, into w->part; w->offset holds its first tile, and then the first tile of
 * the next span. 0 for a page out of range. While a tile is computed, the one after it is fetched: the
 * unit's next, or the first of `next`, the unit that this thread probably does next (or NULL). */
static int attend_span(const struct attention *a, const struct unit *u, const struct unit *next,
                       struct workspace *w, int64_t span) {
    struct range keys = keys_of(a, u);
    int64_t tile = keys.first / KEYS * KEYS, start = span * SPAN, end = start + SPAN;
    tile = tile > start ? tile : start;
    end = end < keys.end ? end : keys.end;
    for (int64_t m = 0; m < u->tokens * a->group; m++) {
        w->part.max[m] = NO_MAXIMUM;
        w->part.sum[m] = 0;
    }
    for (int fresh = 1; tile < end; tile += KEYS, fresh = 0) {
        int more = tile + KEYS < keys.end;
        w->fetch = 0;
        if (more) {
            w->fetch = locate_keys(a, u, tile + KEYS, w->ahead);
        } else if (next != NULL) {
            w->fetch = locate_keys(a, next, keys_of(a, next).first / KEYS * KEYS, w->ahead);
        }
        if (more && !w->fetch) {
            return 0;
        }
        attend_tile(a, u, w, tile, fresh);
        int64_t *done = w->offset;
        w->offset = w->ahead;
        w->ahead = done;
    }
    return 1;
}

/* Widen and scale the queries of the unit, the query heads of a token side by side. */
INLINE void load_queries(const struct attention *a, const struct unit *u, struct workspace *w, int type) {
    float scale = a->soft_cap != 0 ? a->scale / a->soft_cap : a->scale * LOG2_E;
    int64_t token = a->q_starts[u->row] + u->first, size = a->group * a->dim;
    for (int64_t t = 0; t < u->tokens; t++) {
        int64_t from = ((token + t) * a->num_kv + u->head) * size, i = 0;
        for (; i + LANES <= size; i += LANES) {
            store_fp32(w->q + t * size + i, load(a->q, from + i, type) * scale);
        }
        for (; i < size; i++) {
            w->q[t * size + i] = load_one(a->q, from + i, type) * scale;
        }
    }
}

/* The weighted means, in the type of the output. */
INLINE void store_result(const struct attention *a, const struct unit *u, struct state total, int type) {
    int64_t token = a->q_starts[u->row] + u->first;
    for (int64_t m = 0; m < u->tokens * a->group; m++) {
        int64_t head = u->head * a->group + m % a->group;
        int64_t to = ((token + m / a->group) * a->num_q + head) * a->dim, d = 0;
        const float *from = total.out + m * a->padded;
        float factor = 1.0f / total.sum[m];
        for (; d + LANES <= a->dim; d += LANES) {
            store(a->out, to + d, load_fp32(from + d) * factor, type);
        }
        for (; d < a->dim; d++) {
            store_one(a->out, to + d, from[d] * factor, type);
        }
    }
}

static void store_as(const struct attention *a, const struct unit *u, struct state total) {
    if (a->type == BF16) {
        store_result(a, u, total, BF16);
    } else {
        store_result(a, u, total, F32);
    }
}

/* A state of `rows` queries laid out in one piece of rows * (2 + padded) floats. */
INLINE struct state state_at(float *memory, int64_t rows) {
    return (struct state){.max = memory, .sum = memory + rows, .out = memory + 2 * rows};
}

/* Do a whole unit; 0 for a page out of range. */
static int attend_unit(const struct attention *a, const struct unit *u, const struct unit *next,
                       struct workspace *w, float *scratch) {
    struct range keys = keys_of(a, u);
    int64_t rows = u->tokens * a->group, first = keys.first / SPAN, end = (keys.end - 1) / SPAN + 1;
    if (!locate_keys(a, u, keys.first / KEYS * KEYS, w->offset)) {
        return 0;
    }
    if (a->type == BF16) {
        load_queries(a, u, w, BF16);
    } else {
        load_queries(a, u, w, F32);
    }
    for (int64_t span = first; span < end; span++) {
        w->part = span == first ? w->first : w->next;
        if (u->span != ALL_SPANS) {
            w->part = state_at(scratch + u->scratch, rows);
        }
        if (!attend_span(a, u, next, w, span)) {
            return 0;
        }
        if (span > first) {
            merge(w->first, w->next, rows, a->padded);
        }
    }
    if (u->span == ALL_SPANS) {
        store_as(a, u, w->first);
    }
    return 1;
}

/* Merge the spans of a divided unit, of which u is the first; those of one head are num_kv units apart. */
static void finish_unit(const struct attention *a, const struct unit *u, float *scratch) {
    int64_t rows = u->tokens * a->group;
    struct state total = state_at(scratch + u->scratch, rows);
    for (int64_t i = 1; i < u->spans; i++) {
        merge(total, state_at(scratch + u[i * a->num_kv].scratch, rows), rows, a->padded);
    }
    store_as(a, u, total);
}

/* Floats of one thread's buffers, a multiple of a cache line. */
static int64_t workspace_size(const struct attention *a) {
    int64_t rows = a->tile_tokens * a->group, state = rows * (2 + a->padded);
    int64_t keys = KEYS * a->dim, values = a->padded / COLUMNS * PANEL, scores = rows * KEYS;
    return (keys + values + scores + rows * a->dim + rows + 2 * state + 15) / 16 * 16;
}

static void lay_out(const struct attention *a, struct workspace *w, float *memory) {
    int64_t rows = a->tile_tokens * a->group, state = rows * (2 + a->padded);
    w->keys = memory;
    w->values = w->keys + KEYS * a->dim;
    w->scores = w->values + a->padded / COLUMNS * PANEL;
    w->q = w->scores + rows * KEYS;
    w->keep = w->q + rows * a->dim;
    w->first = state_at(w->keep + rows, rows);
    w->next = state_at(w->keep + rows + state, rows);
    w->offset = w->offsets[0];
    w->ahead = w->offsets[1];
}

enum outcome { DONE, NO_MEMORY, BAD_PAGE };

struct job {
    const struct attention *a;
    const struct plan *plan;
    struct workspace *workspaces; /* one per thread */
    int threads;
    enum outcome outcome;
};

static void attend_share(void *context, int64_t begin, int64_t end, int thread) {
    struct job *job = context;
    const struct plan *plan = job->plan;
    for (int64_t i = begin; i < end; i++) {
        /* pieces are single units, handed out in order; alone a thread does them all */
        int64_t after = end - begin > 1 ? i + 1 : i + job->threads;
        const struct unit *next = after < plan->count ? &plan->units[after] : NULL;
        if (!attend_unit(job->a, &plan->units[i], next, &job->workspaces[thread], plan->scratch)) {
            __atomic_store_n(&job->outcome, BAD_PAGE, __ATOMIC_RELAXED);
        }
    }
}

static void finish_share(void *context, int64_t begin, int64_t end, int thread) {
    struct job *job = context;
    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        if (job->plan->units[i].spans > 0) {
            finish_unit(job->a, &job->plan->units[i], job->plan->scratch);
        }
    }
}

static enum outcome attend_units(const struct attention *a, const struct plan *plan, int threads) {
    struct job job = {.a = a, .plan = plan, .threads = threads, .outcome = DONE};
    int64_t size = workspace_size(a);
    float *memory;
    job.workspaces = malloc((size_t)threads * sizeof *job.workspaces);
    if (job.workspaces == NULL) {
        return NO_MEMORY;
    }
    if (posix_memalign((void **)&memory, 64, (size_t)(threads * size) * sizeof *memory)) {
        free(job.workspaces);
        return NO_MEMORY;
    }
    for (int i = 0; i < threads; i++) {
        lay_out(a, &job.workspaces[i], memory + i * size);
    }
    team_share(plan->count, threads > 1 ? plan->count : 1, attend_share, &job);
    if (plan->scratch != NULL) {
        team_share(plan->count, threads > 1 ? 4 * threads : 1, finish_share, &job);
    }
    free(memory);
    free(job.workspaces);
    return job.outcome;
}

/* Work of a unit, in products of a query and a key: reading and widening a key costs about 8 of them. */
INLINE int64_t cost_of(const struct attention *a, const struct unit *u) {
    struct range keys = keys_of(a, u);
    return (u->tokens * a->group + 8) * (keys.end - keys.first + KEYS);
}

/* Query tokens of a unit: as many as there is room for, fewer where threads would lack work. */
static int64_t choose_tile(const struct attention *a, int threads) {
    int64_t tokens = a->q_starts[a->rows], longest = 1;
    for (int64_t row = 0; row < a->rows; row++) {
        int64_t length = a->q_starts[row + 1] - a->q_starts[row];
        longest = length > longest ? length : longest;
    }
    int64_t tile = ROOM / (a->padded * a->group), least = (4 * ROWS + a->group - 1) / a->group;
    int64_t shared = tokens * a->num_kv / (4 * threads);
    tile = tile < shared ? tile : shared;
    tile = tile > least ? tile : least;
    return tile < longest ? tile : longest;
}

/* Append the spans of u for every kv head, each a unit of its own. */
static void divide(const struct attention *a, struct plan *plan, struct unit u, int64_t *scratch) {
    struct range keys = keys_of(a, &u);
    int64_t first = keys.first / SPAN, end = (keys.end - 1) / SPAN + 1;
    for (int64_t span = first; span < end; span++) {
        for (u.head = 0; u.head < a->num_kv; u.head++) {
            u.span = (int32_t)span;
            u.spans = span == first ? (int32_t)(end - first) : 0;
            u.scratch = *scratch;
            *scratch += u.tokens * a->group * (2 + a->padded);
            plan->units[plan->count++] = u;
        }
    }
}

/* Totals over all units, before any is divided. */
struct totals {
    int64_t cost; /* work */
    int64_t room; /* how many units there are at most, after dividing */
};

/* List the units, of a row those with most keys first. Those that cost more than `limit` are divided;
 * *scratch becomes the floats their partial results take. With no list yet, only add up the totals. */
static void list_units(const struct attention *a, struct plan *plan, int64_t limit, struct totals *totals,
                       int64_t *scratch) {
    for (int64_t row = 0; row < a->rows; row++) {
        int64_t length = a->q_starts[row + 1] - a->q_starts[row], tile = a->tile_tokens;
        for (int64_t first = (length - 1) / tile * tile; length > 0 && first >= 0; first -= tile) {
            int64_t tokens = length - first < tile ? length - first : tile;
            struct unit u = {.row = (int32_t)row, .first = (int32_t)first, .span = ALL_SPANS};
            u.tokens = (int32_t)tokens;
            struct range keys = keys_of(a, &u);
            int64_t spans = (keys.end - 1) / SPAN + 1 - keys.first / SPAN;
            if (plan->units == NULL) {
                totals->room += spans * a->num_kv;
                totals->cost += cost_of(a, &u) * a->num_kv;
            } else if (spans > 1 && cost_of(a, &u) > limit) {
                divide(a, plan, u, scratch);
            } else {
                for (u.head = 0; u.head < a->num_kv; u.head++) {
                    plan->units[plan->count++] = u;
                }
            }
        }
    }
}

/* Fill the plan; 0 if there is no memory. */
static int make_plan(const struct attention *a, struct plan *plan, int threads, struct totals *totals) {
    int64_t scratch = 0;
    list_units(a, plan, 0, totals, NULL);
    plan->units = malloc((size_t)(totals->room + 1) * sizeof *plan->units);
    if (plan->units == NULL) {
        return 0;
    }
    list_units(a, plan, threads > 1 ? totals->cost / (4 * threads) : INT64_MAX, NULL, &scratch);
    if (scratch > 0) {
        plan->scratch = malloc((size_t)scratch * sizeof *plan->scratch);
    }
    return scratch == 0 || plan->scratch != NULL;
}

static enum outcome attend(const struct attention *a, int threads) {
    struct plan plan = {0};
    struct totals totals = {0};
    enum outcome outcome = NO_MEMORY;
    if (make_plan(a, &plan, threads, &totals)) {
        int large = totals.cost * a->dim > 1 << 20;
        BEGIN_COMPUTE(large)
        outcome = attend_units(a, &plan, large ? threads : 1);
        END_COMPUTE
    }
    free(plan.scratch);
    free(plan.units);
    return outcome;
}

/* Raise ValueError unless the rows fit the tokens and the page table. */
static int check_rows(const struct attention *a, int64_t tokens) {
    int ok = a->q_starts[0] == 0 && a->q_starts[a->rows] == tokens;
    for (int64_t row = 0; row < a->rows && ok; row++) {
        int64_t length = (int64_t)a->q_starts[row + 1] - a->q_starts[row], context = a->kv_lens[row];
        ok = length >= 0 && length <= context && context <= a->table_stride * a->page_size;
    }
    if (!ok) {
        PyErr_Format(
            PyExc_ValueError,
            "The attention plan does not fit %lld q tokens: q_starts must rise from 0 to that number, "
            "each kv_len must be at least the row's q tokens and fit its %lld pages of %lld tokens.",
            (long long)tokens, (long long)a->table_stride, (long long)a->page_size);
    }
    return ok;
}

/* (out, q, k, v, page_table, q_starts, kv_lens, rows, table_stride, page_size, pages, tokens, num_q,
 *  num_kv, dim, scale, window or 0, soft_cap or 0, type); raises ValueError, IndexError */
ROOTLET_FUNCTION(rootlet_paged_attention) {
    ARGUMENTS(19)
    struct attention a = {
        .out = pointer_argument(args[0]),
        .q = pointer_argument(args[1]),
        .k = pointer_argument(args[2]),
        .v = pointer_argument(args[3]),
        .page_table = pointer_argument(args[4]),
        .q_starts = pointer_argument(args[5]),
        .kv_lens = pointer_argument(args[6]),
        .rows = integer_argument(args[7]),
        .table_stride = integer_argument(args[8]),
        .page_size = integer_argument(args[9]),
        .pages = integer_argument(args[10]),
        .num_q = integer_argument(args[12]),
        .num_kv = integer_argument(args[13]),
        .dim = integer_argument(args[14]),
        .scale = float_argument(args[15]),
        .window = integer_argument(args[16]),
        .soft_cap = float_argument(args[17]),
        .type = (int)integer_argument(args[18]),
    };
    int64_t tokens = integer_argument(args[11]);
    int threads = team_size();
    ARGUMENTS_END
    if (!check_rows(&a, tokens)) {
        return NULL;
    }
    a.group = a.num_q / a.num_kv;
    a.padded = (a.dim + COLUMNS - 1) / COLUMNS * COLUMNS;
    a.tile_tokens = choose_tile(&a, threads);
    switch (attend(&a, threads)) {
    case NO_MEMORY: return PyErr_NoMemory();
    case BAD_PAGE:
        return PyErr_Format(PyExc_IndexError, "The page table names a page outside 0..%lld.",
                            (long long)a.pages - 1);
    default: Py_RETURN_NONE;
    }
}
