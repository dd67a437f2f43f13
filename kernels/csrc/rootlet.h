/* What every file of the extension shares: the functions Python sees, and how they read arguments.
 *
 * Every function takes plain integers (addresses, sizes, counts) and floats and checks nothing that
 * its Python launcher already has checked. Work is shared by the team of the calling thread (team.h).
 *
 * To add a function: declare it here, and add its line to the table in module.c.
 */
#ifndef ROOTLET_H
#define ROOTLET_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>

#define ROOTLET_FUNCTION(name) PyObject *name(PyObject *module, PyObject *const *args, Py_ssize_t nargs)

ROOTLET_FUNCTION(rootlet_rms_norm);
ROOTLET_FUNCTION(rootlet_gated_activation);
ROOTLET_FUNCTION(rootlet_rotary_and_store);
ROOTLET_FUNCTION(rootlet_embed);
ROOTLET_FUNCTION(rootlet_mask_disallowed);
ROOTLET_FUNCTION(rootlet_paged_attention);
ROOTLET_FUNCTION(rootlet_gemm);
ROOTLET_FUNCTION(rootlet_gemm_pack);
ROOTLET_FUNCTION(rootlet_gemm_panel);
ROOTLET_FUNCTION(rootlet_gemm_rows);
ROOTLET_FUNCTION(rootlet_team_open);
ROOTLET_FUNCTION(rootlet_team_bind);
ROOTLET_FUNCTION(rootlet_team_stalled);
ROOTLET_FUNCTION(rootlet_team_close);

/* Arguments are read first and PyErr_Occurred() is asked once, through ARGUMENTS_END. */
#define ARGUMENTS(count)                                                                    \
    if (nargs != (count)) {                                                                 \
        PyErr_Format(PyExc_TypeError, "%s takes %d arguments, got %zd.", __func__, (count), nargs); \
        return NULL;                                                                        \
    }
#define ARGUMENTS_END         \
    if (PyErr_Occurred()) {   \
        return NULL;          \
    }

static inline void *pointer_argument(PyObject *object) { return PyLong_AsVoidPtr(object); }
static inline int64_t integer_argument(PyObject *object) { return PyLong_AsLongLong(object); }
static inline float float_argument(PyObject *object) { return (float)PyFloat_AsDouble(object); }

/* Letting go of the GIL around a call of a microsecond costs more than it gives: another Python
 * thread may take it and keep it for a whole switch interval. So it is held for small work. */
#define BEGIN_COMPUTE(large) PyThreadState *saved_state = (large) ? PyEval_SaveThread() : NULL;
#define END_COMPUTE                         \
    if (saved_state != NULL) {              \
        PyEval_RestoreThread(saved_state);  \
    }

#endif
