/* Tokens that a grammar forbids, set to minus infinity. */
#include "rootlet.h"
#include "team.h"
#include <math.h>

struct masking {
    float *logits;           /* [rows, columns] */
    const uint32_t *allowed; /* [rows, words] */
    int64_t columns, words;
};

static void mask_rows(void *context, int64_t begin, int64_t end, int thread) {
    const struct masking *m = context;
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        float *line = m->logits + row * m->columns;
        for (int64_t word = 0; word * 32 < m->columns; word++) {
            uint32_t bits = m->allowed[row * m->words + word];
            int64_t rest = m->columns - word * 32;
            int count = rest < 32 ? (int)rest : 32;
            if (bits == UINT32_MAX) {
                continue;
            }
            for (int bit = 0; bit < count; bit++) {
                line[word * 32 + bit] = bits >> bit & 1 ? line[word * 32 + bit] : -INFINITY;
            }
        }
    }
}

/* (logits fp32, allowed bits, rows, columns, words of a row) */
ROOTLET_FUNCTION(rootlet_mask_disallowed) {
    ARGUMENTS(5)
    int64_t rows = integer_argument(args[2]);
    struct masking m = {
        .logits = pointer_argument(args[0]),
        .allowed = pointer_argument(args[1]),
        .columns = integer_argument(args[3]),
        .words = integer_argument(args[4]),
    };
    ARGUMENTS_END
    int large = rows * m.columns >= 1 << 17;
    BEGIN_COMPUTE(large)
    team_rows(rows, large, mask_rows, &m);
    END_COMPUTE
    Py_RETURN_NONE;
}
