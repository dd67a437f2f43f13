/* Gated activations: out[t, i] = act(gate[t, i]) * up[t, i], with gate and up side by side in a row. */
#include "rootlet.h"
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

INLINE void activate_rows(char *out, const char *gate_up, int64_t rows, int64_t size, int threads, int kind,
                          int type) {
    size_t width = element_size(type);
    int64_t chunks = (size + CHUNK - 1) / CHUNK;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t unit = 0; unit < rows * chunks; unit++) {
        int64_t row = unit / chunks, first = unit % chunks * CHUNK;
        int64_t count = size - first < CHUNK ? size - first : CHUNK;
        const char *gate = gate_up + (row * 2 * size + first) * width;
        activate_chunk(out + (row * size + first) * width, gate, gate + size * width, count, kind, type);
    }
}

/* (out, gate_up, rows, size of gate, kind, type, threads) */
ROOTLET_FUNCTION(rootlet_gated_activation) {
    ARGUMENTS(7)
    char *out = pointer_argument(args[0]);
    const char *gate_up = pointer_argument(args[1]);
    int64_t rows = integer_argument(args[2]), size = integer_argument(args[3]);
    int kind = (int)integer_argument(args[4]), type = (int)integer_argument(args[5]);
    int threads = (int)integer_argument(args[6]);
    ARGUMENTS_END
    int large = rows * size >= 1 << 15;
    threads = large ? threads : 1;
    BEGIN_COMPUTE(large)
    switch (kind * 2 + (type == BF16)) {
    case SILU * 2: activate_rows(out, gate_up, rows, size, threads, SILU, F32); break;
    case SILU * 2 + 1: activate_rows(out, gate_up, rows, size, threads, SILU, BF16); break;
    case GELU * 2: activate_rows(out, gate_up, rows, size, threads, GELU, F32); break;
    case GELU * 2 + 1: activate_rows(out, gate_up, rows, size, threads, GELU, BF16); break;
    case GELU_TANH * 2: activate_rows(out, gate_up, rows, size, threads, GELU_TANH, F32); break;
    default: activate_rows(out, gate_up, rows, size, threads, GELU_TANH, BF16); break;
    }
    END_COMPUTE
    Py_RETURN_NONE;
}
