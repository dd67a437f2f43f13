/* Rotary position embedding of q and k, fused with storing k and v in the paged cache. */
#include "rootlet.h"
#include "team.h"
#include "vector.h"

struct rotary {
    char *q_out;          /* [T, num_q, dim] */
    const char *qkv;      /* [T, num_q + 2 num_kv, dim] */
    const float *cos_sin; /* [num_positions, rotary_dim]: cos | sin */
    const int64_t *positions, *slots;
    char *k_cache, *v_cache; /* [num_slots, num_kv, dim] */
    int64_t tokens, num_q, num_kv, dim, rotary_dim, num_positions, num_slots;
    int type;
};

/* Rotate one head of dim elements: pairs (i, i + half) by the angles, the rest copied. */
INLINE void rotate_head(char *out, const char *in, const float *cos, int64_t half, int64_t dim, int type) {
    const float *sin = cos + half;
    int64_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        vfloat first = load(in, i, type), second = load(in, half + i, type);
        vfloat c = load_fp32(cos + i), s = load_fp32(sin + i);
        store(out, i, first * c - second * s, type);
        store(out, half + i, second * c + first * s, type);
    }
    for (; i < half; i++) {
        float first = load_one(in, i, type), second = load_one(in, half + i, type);
        store_one(out, i, first * cos[i] - second * sin[i], type);
        store_one(out, half + i, second * cos[i] + first * sin[i], type);
    }
    size_t width = element_size(type);
    memcpy(out + 2 * half * width, in + 2 * half * width, (size_t)(dim - 2 * half) * width);
}

INLINE void rotate_tokens(const struct rotary *r, int64_t begin, int64_t end, int type) {
    size_t head = (size_t)r->dim * element_size(type);
    for (int64_t t = begin; t < end; t++) {
        const float *angles = r->cos_sin + r->positions[t] * r->rotary_dim;
        const char *in = r->qkv + t * (r->num_q + 2 * r->num_kv) * head;
        char *q = r->q_out + t * r->num_q * head;
        char *k = r->k_cache + r->slots[t] * r->num_kv * head;
        for (int64_t h = 0; h < r->num_q; h++, in += head) {
            rotate_head(q + h * head, in, angles, r->rotary_dim / 2, r->dim, type);
        }
        for (int64_t h = 0; h < r->num_kv; h++, in += head) {
            rotate_head(k + h * head, in, angles, r->rotary_dim / 2, r->dim, type);
        }
        memcpy(r->v_cache + r->slots[t] * r->num_kv * head, in, r->num_kv * head);
    }
}

static void rotate_share(void *context, int64_t begin, int64_t end, int thread) {
    const struct rotary *r = context;
    (void)thread;
    if (r->type == BF16) {
        rotate_tokens(r, begin, end, BF16);
    } else {
        rotate_tokens(r, begin, end, F32);
    }
}

/* Index of the first value outside 0..limit-1, or count. */
static int64_t first_outside(const int64_t *values, int64_t count, int64_t limit) {
    int64_t i = 0;
    while (i < count && values[i] >= 0 && values[i] < limit) {
        i++;
    }
    return i;
}

static int check_range(const char *what, const int64_t *values, int64_t count, int64_t limit) {
    int64_t i = first_outside(values, count, limit);
    if (i < count) {
        PyErr_Format(PyExc_IndexError, "%s %lld of token %lld is outside 0..%lld.", what,
                     (long long)values[i], (long long)i, (long long)limit - 1);
    }
    return i == count;
}

/* (q_out, qkv, cos_sin, positions, slots, k_cache, v_cache, tokens, num_q, num_kv, dim, rotary_dim,
 *  num_positions, num_slots, type); raises IndexError */
ROOTLET_FUNCTION(rootlet_rotary_and_store) {
    ARGUMENTS(15)
    struct rotary r = {
        .q_out = pointer_argument(args[0]),
        .qkv = pointer_argument(args[1]),
        .cos_sin = pointer_argument(args[2]),
        .positions = pointer_argument(args[3]),
        .slots = pointer_argument(args[4]),
        .k_cache = pointer_argument(args[5]),
        .v_cache = pointer_argument(args[6]),
        .tokens = integer_argument(args[7]),
        .num_q = integer_argument(args[8]),
        .num_kv = integer_argument(args[9]),
        .dim = integer_argument(args[10]),
        .rotary_dim = integer_argument(args[11]),
        .num_positions = integer_argument(args[12]),
        .num_slots = integer_argument(args[13]),
        .type = (int)integer_argument(args[14]),
    };
    ARGUMENTS_END
    if (!check_range("Position", r.positions, r.tokens, r.num_positions) ||
        !check_range("KV slot", r.slots, r.tokens, r.num_slots)) {
        return NULL;
    }
    int large = r.tokens * (r.num_q + 2 * r.num_kv) * r.dim >= 1 << 16;
    BEGIN_COMPUTE(large)
    team_rows(r.tokens, large, rotate_share, &r);
    END_COMPUTE
    Py_RETURN_NONE;
}
