/* The loops over every row of a step, compiled. What they do is said in ../row_loops.py.

   All objects of a list are of one class with slots, and names are looked up once, in the class: what is left
   for each object is an addition. Nothing that is called here runs code of Python, so what is borrowed stays. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <limits.h>
#include <string.h>

typedef struct {
    PyTypeObject *type;
    Py_ssize_t offset;
} Member;

#define MAX_MEMBERS 6

/* Where the attributes of these names are in the objects of a list; nowhere if there are none. */
static int find_members(PyObject *objects, PyObject *const *names, Member *members, Py_ssize_t count) {
    if (!PyList_GET_SIZE(objects)) return 0;
    PyTypeObject *type = Py_TYPE(PyList_GET_ITEM(objects, 0));
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *descriptor = PyObject_GetAttr((PyObject *)type, names[i]);
        if (descriptor == NULL) return -1;
        int fits = Py_TYPE(descriptor) == &PyMemberDescr_Type;
        PyMemberDef *def = fits ? ((PyMemberDescrObject *)descriptor)->d_member : NULL;
        if (fits && def->type == T_OBJECT_EX)
            members[i] = (Member){type, def->offset};
        else
            PyErr_Format(PyExc_TypeError, "%U is no slot of %s", names[i], type->tp_name);
        Py_DECREF(descriptor); /* the class keeps it, and its definition */
        if (PyErr_Occurred()) return -1;
    }
    return 0;
}

static PyObject **slot_of(PyObject *object, const Member *member) {
    return (PyObject **)((char *)object + member->offset);
}

/* Whether all of the members can be read: the right class, and every slot filled. */
static int has_members(PyObject *object, const Member *members, int count) {
    for (int i = 0; i < count; i++) {
        if (Py_TYPE(object) != members[i].type) {
            PyErr_Format(PyExc_TypeError, "%R is no %s", object, members[i].type->tp_name);
            return 0;
        }
        if (*slot_of(object, &members[i]) == NULL) {
            PyErr_Format(PyExc_AttributeError, "a slot of a %s is empty", members[i].type->tp_name);
            return 0;
        }
    }
    return 1;
}

static int read_int(PyObject *number, int shift, int *value) {
    long long wide = PyLong_AsLongLong(number);
    if (wide == -1 && PyErr_Occurred()) return -1;
    wide += shift;
    if (wide < INT_MIN || wide > INT_MAX) {
        PyErr_Format(PyExc_OverflowError, "%lld is too large", wide);
        return -1;
    }
    *value = (int)wide;
    return 0;
}

static int set_count(PyObject *object, const Member *member, Py_ssize_t value) {
    PyObject *number = PyLong_FromSsize_t(value);
    if (number == NULL) return -1;
    PyObject *old = *slot_of(object, member);
    *slot_of(object, member) = number;
    Py_DECREF(old);
    return 0;
}

/* An iterator that visits one request after the other and yields those for which the visit says 1. */
typedef struct Loop {
    PyObject_HEAD
    int (*visit)(struct Loop *loop, PyObject *request);
    Member members[MAX_MEMBERS];
    PyObject *requests, *others; /* lists; what the others are depends on the loop */
    Py_ssize_t index;
    PyObject *one; /* an array('i') of one item, or NULL; ``item`` lets it be written in place */
    Py_buffer item;
} Loop;

static void loop_dealloc(Loop *loop) {
    if (loop->one != NULL) PyBuffer_Release(&loop->item);
    Py_XDECREF(loop->one);
    Py_XDECREF(loop->requests);
    Py_XDECREF(loop->others);
    PyObject_Free(loop);
}

static PyObject *loop_next(Loop *loop) {
    while (loop->index < PyList_GET_SIZE(loop->requests)) {
        PyObject *request = PyList_GET_ITEM(loop->requests, loop->index);
        int found = loop->visit(loop, request);
        loop->index++;
        if (found) return found < 0 ? NULL : Py_NewRef(request);
    }
    return NULL;
}

static PyTypeObject LoopType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "rootlet.engine.schedule._rows.Loop",
    .tp_basicsize = sizeof(Loop),
    .tp_dealloc = (destructor)loop_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_iter = PyObject_SelfIter,
    .tp_iternext = (iternextfunc)loop_next,
};

/* A loop of the arguments (names of members, requests, others). */
static Loop *loop_new(PyObject *args, int num_members, int (*visit)(Loop *, PyObject *)) {
    PyObject *names, *requests, *others;
    if (!PyArg_ParseTuple(args, "O!O!O!", &PyTuple_Type, &names, &PyList_Type, &requests, &PyList_Type,
                          &others))
        return NULL;
    if (PyTuple_GET_SIZE(names) != num_members) {
        PyErr_Format(PyExc_TypeError, "expected %d names", num_members);
        return NULL;
    }
    Loop *loop = PyObject_New(Loop, &LoopType);
    if (loop == NULL) return NULL;
    loop->visit = visit;
    loop->requests = Py_NewRef(requests);
    loop->others = Py_NewRef(others);
    loop->index = 0;
    loop->one = NULL;
    if (find_members(requests, PySequence_Fast_ITEMS(names), loop->members, num_members) == 0) return loop;
    Py_DECREF(loop);
    return NULL;
}

static int decode(Loop *loop, PyObject *request) {
    const Member *computed = &loop->members[0], *until = &loop->members[1], *total = &loop->members[2];
    if (!has_members(request, loop->members, 3)) return -1;
    Py_ssize_t start = PyLong_AsSsize_t(*slot_of(request, computed));
    Py_ssize_t end = PyLong_AsSsize_t(*slot_of(request, until));
    Py_ssize_t num_tokens = PyLong_AsSsize_t(*slot_of(request, total));
    if (PyErr_Occurred()) return -1;
    if (start >= end) return 1;
    if (set_count(request, computed, start + 1) || set_count(request, total, num_tokens + 1)) return -1;
    return PyList_Append(loop->others, request);
}

static PyObject *decode_all(PyObject *module, PyObject *args) {
    (void)module;
    return (PyObject *)loop_new(args, 3, decode);
}

/* Append to an array('i') by way of the array of one item: array.append parses its argument, twice, which
   takes longer than all the rest of a row. */
static int append_int(Loop *loop, PyObject *known, PyObject *number) {
    int value;
    if (read_int(number, 0, &value)) return -1;
    memcpy(loop->item.buf, &value, sizeof value);
    PyObject *same = PySequence_InPlaceConcat(known, loop->one);
    Py_XDECREF(same);
    return same == NULL ? -1 : 0;
}

static int take(Loop *loop, PyObject *request) {
    if (!has_members(request, loop->members, 6)) return -1;
    PyObject *values[6];
    for (int i = 0; i < 6; i++) values[i] = *slot_of(request, &loop->members[i]);
    PyObject *finish_reason = values[0], *known = values[1], *limit = values[2], *stops = values[3];
    PyObject *is_watched = values[4], *constraint = values[5];
    if (finish_reason != Py_None) return 1;
    if (loop->index >= PyList_GET_SIZE(loop->others)) {
        PyErr_SetString(PyExc_ValueError, "there are fewer tokens than rows");
        return -1;
    }
    PyObject *token_id = PyList_GET_ITEM(loop->others, loop->index);
    if (append_int(loop, known, token_id)) return -1;
    Py_ssize_t length = PyObject_Size(known), most = PyLong_AsSsize_t(limit);
    int stops_here = PySet_Contains(stops, token_id), watched = PyObject_IsTrue(is_watched);
    if (PyErr_Occurred()) return -1;
    return length >= most || stops_here || watched || constraint != Py_None;
}

/* An array('i') of a list of numbers, or of the bytes of them. Gives up ``contents``, which may be NULL. */
static PyObject *new_array(PyObject *contents) {
    PyObject *arrays = contents == NULL ? NULL : PyImport_ImportModule("array");
    PyObject *array = arrays == NULL ? NULL : PyObject_CallMethod(arrays, "array", "sO", "i", contents);
    Py_XDECREF(arrays);
    Py_XDECREF(contents);
    return array;
}

static PyObject *take_all(PyObject *module, PyObject *args) {
    (void)module;
    Loop *loop = loop_new(args, 6, take);
    if (loop == NULL) return NULL;
    if (PyList_GET_SIZE(loop->requests) != PyList_GET_SIZE(loop->others))
        PyErr_Format(PyExc_ValueError, "%zd rows and %zd tokens", PyList_GET_SIZE(loop->requests),
                     PyList_GET_SIZE(loop->others));
    PyObject *one = PyErr_Occurred() ? NULL : new_array(Py_BuildValue("[i]", 0));
    if (one != NULL && PyObject_GetBuffer(one, &loop->item, PyBUF_WRITABLE) == 0) {
        loop->one = one;
        return (PyObject *)loop;
    }
    Py_XDECREF(one);
    Py_DECREF(loop);
    return NULL;
}

static PyObject *gather(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *name, *objects;
    Member member;
    if (!PyArg_ParseTuple(args, "UO!", &name, &PyList_Type, &objects)) return NULL;
    if (find_members(objects, &name, &member, 1)) return NULL;
    Py_ssize_t count = PyList_GET_SIZE(objects);
    PyObject *values = PyList_New(count);
    for (Py_ssize_t i = 0; values != NULL && i < count; i++) {
        PyObject *object = PyList_GET_ITEM(objects, i);
        if (has_members(object, &member, 1))
            PyList_SET_ITEM(values, i, Py_NewRef(*slot_of(object, &member)));
        else
            Py_CLEAR(values);
    }
    return values;
}

static PyObject *gather_ints(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *name, *objects;
    int shift;
    Member member;
    if (!PyArg_ParseTuple(args, "UO!i", &name, &PyList_Type, &objects, &shift)) return NULL;
    if (find_members(objects, &name, &member, 1)) return NULL;
    Py_ssize_t count = PyList_GET_SIZE(objects);
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)sizeof(int));
    if (bytes == NULL) return NULL;
    int *values = (int *)PyBytes_AS_STRING(bytes);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *object = PyList_GET_ITEM(objects, i);
        if (!has_members(object, &member, 1) || read_int(*slot_of(object, &member), shift, &values[i])) {
            Py_DECREF(bytes);
            return NULL;
        }
    }
    return new_array(bytes);
}

static PyMethodDef methods[] = {
    {"decode_all", decode_all, METH_VARARGS, NULL},
    {"take_all", take_all, METH_VARARGS, NULL},
    {"gather", gather, METH_VARARGS, NULL},
    {"gather_ints", gather_ints, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static int rows_exec(PyObject *module) {
    (void)module;
    return PyType_Ready(&LoopType);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, rows_exec}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_rows",
    .m_doc = "Loops over requests; called through rootlet.engine.schedule.row_loops.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__rows(void) { return PyModuleDef_Init(&definition); }
