/* Rows of an embedding table, copied as bytes whatever their element type. */
#include "rootlet.h"
#include <string.h>

/* (out, ids, table, number of ids, rows of the table, bytes of a row, threads); raises IndexError */
ROOTLET_FUNCTION(rootlet_embed) {
    ARGUMENTS(7)
    char *out = pointer_argument(args[0]);
    const int64_t *ids = pointer_argument(args[1]);
    const char *table = pointer_argument(args[2]);
    int64_t count = integer_argument(args[3]), rows = integer_argument(args[4]);
    int64_t bytes = integer_argument(args[5]);
    int threads = (int)integer_argument(args[6]);
    ARGUMENTS_END
    for (int64_t i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= rows) {
            return PyErr_Format(PyExc_IndexError,
                                "Token id %lld at index %lld is outside the embedding table of %lld rows.",
                                (long long)ids[i], (long long)i, (long long)rows);
        }
    }
    int large = count * bytes >= 1 << 19;
    threads = large ? threads : 1;
    BEGIN_COMPUTE(large)
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < count; i++) {
        memcpy(out + i * bytes, table + ids[i] * bytes, (size_t)bytes);
    }
    END_COMPUTE
    Py_RETURN_NONE;
}
