/* RMS normalisation of rows, alone or after adding to the residual stream. */
#include "rootlet.h"
#include "team.h"
#include "vector.h"

/* Sum of squares in four chains, to hide the latency of the multiply-add. With a residual, x is added
 * to it in place first, and what is squared is the rounded sum. */
INLINE float sum_of_squares(const void *x, void *residual, int64_t size, int type) {
    vfloat sum[4] = {0};
    int64_t i = 0;
    for (; i + 4 * LANES <= size; i += 4 * LANES) {
        for (int k = 0; k < 4; k++) {
            vfloat v = load(x, i + k * LANES, type);
            if (residual != NULL) {
                store(residual, i + k * LANES, v + load(residual, i + k * LANES, type), type);
                v = load(residual, i + k * LANES, type);
            }
            sum[k] += v * v;
        }
    }
    float total = lanes_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    for (; i < size; i++) {
        float v = load_one(x, i, type);
        if (residual != NULL) {
            store_one(residual, i, v + load_one(residual, i, type), type);
            v = load_one(residual, i, type);
        }
        total += v * v;
    }
    return total;
}

/* With shifted, offset is added to the weight in fp32: 1 + w of a bf16 w has no bf16. */
INLINE void norm_row(void *out, const void *x, void *residual, const void *weight, int64_t size, float eps,
                     float offset, int shifted, int type) {
    float total = sum_of_squares(x, residual, size, type);
    float scale = 1.0f / __builtin_sqrtf(total / (float)size + eps);
    const void *source = residual != NULL ? residual : x;
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        vfloat w = load(weight, i, type);
        if (shifted) {
            w += offset;
        }
        store(out, i, load(source, i, type) * scale * w, type);
    }
    for (; i < size; i++) {
        float w = load_one(weight, i, type);
        if (shifted) {
            w += offset;
        }
        store_one(out, i, load_one(source, i, type) * scale * w, type);
    }
}

struct norm {
    char *out;
    const char *x;
    char *residual; /* or NULL */
    const void *weight;
    int64_t size;
    float eps;
    float offset;
    int type;
};

INLINE void norm_rows(const struct norm *n, int64_t begin, int64_t end, char *residual, int shifted,
                      int type) {
    size_t stride = (size_t)n->size * element_size(type);
    for (int64_t row = begin; row < end; row++) {
        char *add_to = residual != NULL ? residual + row * stride : NULL;
        norm_row(n->out + row * stride, n->x + row * stride, add_to, n->weight, n->size, n->eps, n->offset,
                 shifted, type);
    }
}

INLINE void norm_kinds(const struct norm *n, int64_t begin, int64_t end, int shifted) {
    if (n->type == BF16 && n->residual != NULL) {
        norm_rows(n, begin, end, n->residual, shifted, BF16);
    } else if (n->type == BF16) {
        norm_rows(n, begin, end, NULL, shifted, BF16);
    } else if (n->residual != NULL) {
        norm_rows(n, begin, end, n->residual, shifted, F32);
    } else {
        norm_rows(n, begin, end, NULL, shifted, F32);
    }
}

static void norm_share(void *context, int64_t begin, int64_t end, int thread) {
    const struct norm *n = context;
    (void)thread;
    if (n->offset != 0.0f) {
        norm_kinds(n, begin, end, 1);
    } else {
        norm_kinds(n, begin, end, 0);
    }
}

/* (out, x, residual or 0, weight, rows, size, eps, offset, type) */
ROOTLET_FUNCTION(rootlet_rms_norm) {
    ARGUMENTS(9)
    int64_t rows = integer_argument(args[4]);
    struct norm n = {
        .out = pointer_argument(args[0]),
        .x = pointer_argument(args[1]),
        .residual = pointer_argument(args[2]),
        .weight = pointer_argument(args[3]),
        .size = integer_argument(args[5]),
        .eps = float_argument(args[6]),
        .offset = float_argument(args[7]),
        .type = (int)integer_argument(args[8]),
    };
    ARGUMENTS_END
    int large = rows * n.size >= 1 << 16;
    BEGIN_COMPUTE(large)
    team_rows(rows, large, norm_share, &n);
    END_COMPUTE
    Py_RETURN_NONE;
}
