/* The module's table of functions. Compiled under the name ROOTLET_MODULE, once per instruction set. */
#include "rootlet.h"

#define ENTRY(name) {#name, (PyCFunction)(void (*)(void))rootlet_##name, METH_FASTCALL, NULL}

static PyMethodDef methods[] = {
    ENTRY(rms_norm),
    ENTRY(gated_activation),
    ENTRY(rotary_and_store),
    ENTRY(embed),
    ENTRY(mask_disallowed),
    ENTRY(paged_attention),
    ENTRY(gemm),
    ENTRY(gemm_pack),
    ENTRY(gemm_panel),
    ENTRY(gemm_rows),
    ENTRY(team_open),
    ENTRY(team_bind),
    ENTRY(team_stalled),
    ENTRY(team_close),
    {NULL, NULL, 0, NULL},
};

#define TEXT_(name) #name
#define TEXT(name) TEXT_(name)
#define INIT_(name) PyInit_##name
#define INIT(name) INIT_(name)

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = TEXT(ROOTLET_MODULE),
    .m_doc = "CPU kernels; called through the launchers of rootlet.kernels.",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC INIT(ROOTLET_MODULE)(void) { return PyModuleDef_Init(&definition); }
