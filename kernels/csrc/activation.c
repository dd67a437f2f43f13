/* Gated activations: out[t, i] = act(gate[t, i]) * up[t, i], with gate and up side by side in a row. */
#include "rootlet.h"
#include "team.h"
#include "vector.h"
#include <math.h>

enum { SILU = 0, GELU = 1, GELU_TANH = 2 };
/* columns of one unit of work, so that a single long row is shared too */
enum { CHUNK = 2048 };

INLINE vfloat activate(vfloat x, int kind) {
    if (kind == SILU) {
        return x * vsigmoid(x);
    }
    if (kind == GELU_TANH) {
        /* (1 + tanh u) / 2 is sigmoid(2u), which loses nothing to cancellation */
        return x * vsigmoid(1.5957691216f * (x + 0.044715f * x * x * x));
    }
    for (int lane = 0; lane < LANES; lane++) {
        x[lane] *= 0.5f * (1.0f + erff(x[lane] * 0.70710678f));
    }
    return x;
}

INLINE void activate_chunk(void *out, const void *gate, const void *up, int64_t size, int kind, int type) {
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        store(out, i, activate(load(gate, i, type), kind) * load(up, i, type), type);
    }
    if (i < size) {
        int rest = (int)(size - i);
        store_part(out, i, activate(load_part(gate, i, rest, type), kind) * load_part(up, i, rest, type),
                   rest, type);
    }
}

struct activation {
    char *out;           /* [rows, size] */
    const char *gate_up; /* [rows, 2 * size] */
    int64_t size, chunks;
    int kind, type;
};

INLINE void activate_units(const struct activation *a, int64_t begin, int64_t end, int kind, int type) {
    size_t width = element_size(type);
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t row = unit / a->chunks, first = unit % a->chunks * CHUNK;
        int64_t count = a->size - first < CHUNK ? a->size - first : CHUNK;
        const char *gate = a->gate_up + (row * 2 * a->size + first) * width;
        char *out = a->out + (row * a->size + first) * width;
        activate_chunk(out, gate, gate + a->size * width, count, kind, type);
    }
}

static void activate_share(void *context, int64_t begin, int64_t end, int thread) {
    const struct activation *a = context;
    (void)thread;
    switch (a->kind * 2 + (a->type == BF16)) {
    case SILU * 2: activate_units(a, begin, end, SILU, F32); break;
    case SILU * 2 + 1: activate_units(a, begin, end, SILU, BF16); break;
    case GELU * 2: activate_units(a, begin, end, GELU, F32); break;
    case GELU * 2 + 1: activate_units(a, begin, end, GELU, BF16); break;
    case GELU_TANH * 2: activate_units(a, begin, end, GELU_TANH, F32); break;
    default: activate_units(a, begin, end, GELU_TANH, BF16); break;
    }
}

/* (out, gate_up, rows, size of gate, kind, type) */
ROOTLET_FUNCTION(rootlet_gated_activation) {
    ARGUMENTS(6)
    int64_t rows = integer_argument(args[2]), size = integer_argument(args[3]);
    struct activation a = {
        .out = pointer_argument(args[0]),
        .gate_up = pointer_argument(args[1]),
        .size = size,
        .chunks = (size + CHUNK - 1) / CHUNK,
        .kind = (int)integer_argument(args[4]),
        .type = (int)integer_argument(args[5]),
    };
    ARGUMENTS_END
    int large = rows * size >= 1 << 15;
    BEGIN_COMPUTE(large)
    team_rows(rows * a.chunks, large, activate_share, &a);
    END_COMPUTE
    Py_RETURN_NONE;
}
