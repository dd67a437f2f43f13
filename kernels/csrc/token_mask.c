/* Tokens that a grammar forbids, set to minus infinity. */
#include "rootlet.h"
#include <math.h>

/* (logits fp32, allowed bits, rows, columns, words of a row, threads) */
ROOTLET_FUNCTION(rootlet_mask_disallowed) {
    ARGUMENTS(6)
    float *logits = pointer_argument(args[0]);
    const uint32_t *allowed = pointer_argument(args[1]);
    int64_t rows = integer_argument(args[2]), columns = integer_argument(args[3]);
    int64_t words = integer_argument(args[4]);
    int threads = (int)integer_argument(args[5]);
    ARGUMENTS_END
    int large = rows * columns >= 1 << 17;
    threads = large ? threads : 1;
    BEGIN_COMPUTE(large)
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < rows; row++) {
        float *line = logits + row * columns;
        for (int64_t word = 0; word * 32 < columns; word++) {
            uint32_t bits = allowed[row * words + word];
            int64_t rest = columns - word * 32;
            int count = rest < 32 ? (int)rest : 32;
            if (bits == UINT32_MAX) {
                continue;
            }
            for (int bit = 0; bit < count; bit++) {
                line[word * 32 + bit] = bits >> bit & 1 ? line[word * 32 + bit] : -INFINITY;
            }
        }
    }
    END_COMPUTE
    Py_RETURN_NONE;
}
