/* Rows of an embedding table, copied as bytes whatever their element type. */
#include "rootlet.h"
#include "team.h"
#include <string.h>

struct lookup {
    char *out;
    const int64_t *ids;
    const char *table;
    int64_t bytes; /* of a row */
};

static void copy_rows(void *context, int64_t begin, int64_t end, int thread) {
    const struct lookup *l = context;
    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        memcpy(l->out + i * l->bytes, l->table + l->ids[i] * l->bytes, (size_t)l->bytes);
    }
}

/* (out, ids, table, number of ids, rows of the table, bytes of a row); raises IndexError */
ROOTLET_FUNCTION(rootlet_embed) {
    ARGUMENTS(6)
    int64_t count = integer_argument(args[3]), rows = integer_argument(args[4]);
    struct lookup l = {
        .out = pointer_argument(args[0]),
        .ids = pointer_argument(args[1]),
        .table = pointer_argument(args[2]),
        .bytes = integer_argument(args[5]),
    };
    ARGUMENTS_END
    for (int64_t i = 0; i < count; i++) {
        if (l.ids[i] < 0 || l.ids[i] >= rows) {
            return PyErr_Format(PyExc_IndexError,
                                "Token id %lld at index %lld is outside the embedding table of %lld rows.",
                                (long long)l.ids[i], (long long)i, (long long)rows);
        }
    }
    int large = count * l.bytes >= 1 << 19;
    BEGIN_COMPUTE(large)
    team_rows(count, large, copy_rows, &l);
    END_COMPUTE
    Py_RETURN_NONE;
}
