/* The Python side of the engine: `pyflannel.datapath.native._native`, typed in _native.pyi.
 *
 * Theory of operation. The module has one type, Engine, a thin shell over `struct engine`, and three
 * functions that expose the pure parts for tests (`lookup`, `segment`, `join`). Nothing but argument
 * handling happens here. The engine's threads never call into Python and never hold the GIL; it is
 * released only in `stop`, while that waits for the threads. There is no global state: the type
 * hangs on the module object (multi-phase initialisation), so several interpreters may load it.
 *
 * Only the limited API is used: one build serves every CPython from 3.11 on (abi3).
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <stdlib.h>

#include "coalesce.h"
#include "engine.h"
#include "segment.h"

typedef struct {
    PyObject_HEAD
    struct engine *engine;
} EngineObject;

static struct engine *engine_of(PyObject *self)
{
    return ((EngineObject *)self)->engine;
}

static PyObject *raise_errno(int error)
{
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static int fill_queues(struct engine_config *config, PyObject *fds)
{
    Py_ssize_t count = PyTuple_Size(fds);

    if (count < 1 || count > ENGINE_QUEUES) {
        PyErr_Format(PyExc_ValueError, "1 to %d TUN queues, not %zd", ENGINE_QUEUES, count);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        long fd = PyLong_AsLong(PyTuple_GetItem(fds, i));

        if (fd == -1 && PyErr_Occurred())
            return -1;
        config->tun_fds[i] = (int)fd;
    }
    config->queues = (size_t)count;
    return 0;
}

static PyObject *Engine_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"tun_fds",     "udp_fd",     "tun_address",     "network", "netmask",
                            "mtu",         "port",       "any_port",   "accept_any", "vnet_header",
                            "forced_off",  "assume_offloads", "threads",    "spin_us", "gather_us",
                            NULL};
    struct engine_config config = {0};
    PyObject *fds;
    int any_port, accept_any, vnet_header, assume_offloads;
    EngineObject *self;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!iIIIIHpppIpIII", names, &PyTuple_Type, &fds,
                                     &config.udp_fd, &config.tun_address, &config.network,
                                     &config.netmask, &config.mtu, &config.port, &any_port, &accept_any,
                                     &vnet_header, &config.forced_off, &assume_offloads,
                                     &config.threads, &config.spin_us, &config.gather_us) ||
        fill_queues(&config, fds))
        return NULL;
    config.any_port = any_port;
    config.accept_any = accept_any;
    config.vnet_header = vnet_header;
    config.assume_offloads = assume_offloads;
    self = (EngineObject *)allocate(type, 0);
    if (!self)
        return NULL;
    self->engine = engine_new(&config);
    if (!self->engine) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void Engine_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    if (engine_of(self))
        engine_free(engine_of(self));
    release(self);
    Py_DECREF(type);
}

static PyObject *Engine_start(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    int error = engine_start(engine_of(self));

    if (error)
        return raise_errno(error);
    Py_RETURN_NONE;
}

static PyObject *Engine_stop(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    Py_BEGIN_ALLOW_THREADS
    engine_stop(engine_of(self));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *Engine_replace_table(PyObject *self, PyObject *rows)
{
    char *bytes;
    Py_ssize_t size;
    int error;

    if (PyBytes_AsStringAndSize(rows, &bytes, &size))
        return NULL;
    if (size % (Py_ssize_t)sizeof(struct table_row)) {
        PyErr_SetString(PyExc_ValueError, "a row has 12 bytes");
        return NULL;
    }
    /* A bytes object's data is aligned well enough for 32-bit words. */
    error = engine_replace_table(engine_of(self), (const struct table_row *)(const void *)bytes,
                                 (size_t)size / sizeof(struct table_row));
    if (error)
        return raise_errno(error);
    Py_RETURN_NONE;
}

static PyObject *Engine_counters(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    uint64_t values[COUNTERS];
    PyObject *result = PyTuple_New(COUNTERS);

    engine_counters(engine_of(self), values);
    for (Py_ssize_t i = 0; result && i < COUNTERS; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(values[i]);

        if (!value || PyTuple_SetItem(result, i, value))
            Py_CLEAR(result);
    }
    return result;
}

static PyObject *Engine_peer(PyObject *self, PyObject *argument)
{
    uint64_t values[PEER_COUNTERS];
    unsigned long address = PyLong_AsUnsignedLong(argument);
    PyObject *result;

    if (PyErr_Occurred())
        return NULL;
    if (!engine_peer(engine_of(self), (uint32_t)address, values))
        Py_RETURN_NONE;
    result = PyTuple_New(PEER_COUNTERS);
    for (Py_ssize_t i = 0; result && i < PEER_COUNTERS; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(values[i]);

        if (!value || PyTuple_SetItem(result, i, value))
            Py_CLEAR(result);
    }
    return result;
}

static PyObject *Engine_offloads(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *result = PyTuple_New(OFFLOADS);

    for (Py_ssize_t i = 0; result && i < OFFLOADS; i++) {
        unsigned value = atomic_load(&engine_of(self)->offloads[i]);
        PyObject *pair = Py_BuildValue("(II)", value >> 16, value & 0xffff);

        if (!pair || PyTuple_SetItem(result, i, pair))
            Py_CLEAR(result);
    }
    return result;
}

static PyObject *Engine_failure(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(atomic_load(&engine_of(self)->failure));
}

static PyObject *Engine_retired(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromSize_t(engine_retired(engine_of(self)));
}

static PyMethodDef Engine_methods[] = {
    {"start", Engine_start, METH_NOARGS, NULL},
    {"stop", Engine_stop, METH_NOARGS, NULL},
    {"replace_table", Engine_replace_table, METH_O, NULL},
    {"counters", Engine_counters, METH_NOARGS, NULL},
    {"peer", Engine_peer, METH_O, NULL},
    {"offloads", Engine_offloads, METH_NOARGS, NULL},
    {"failure", Engine_failure, METH_NOARGS, NULL},
    {"retired", Engine_retired, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Engine_slots[] = {
    {Py_tp_new, (void *)Engine_new},
    {Py_tp_dealloc, (void *)Engine_dealloc},
    {Py_tp_methods, Engine_methods},
    {0, NULL},
};

static PyType_Spec Engine_spec = {
    .name = "pyflannel.datapath.native._native.Engine",
    .basicsize = sizeof(EngineObject),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = Engine_slots,
};

static PyObject *native_lookup(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *rows, *wanted;
    Py_ssize_t rows_size, wanted_size;
    struct table *t;
    PyObject *result;
    uint32_t *out;

    if (!PyArg_ParseTuple(args, "y#y#", &rows, &rows_size, &wanted, &wanted_size))
        return NULL;
    if (rows_size % (Py_ssize_t)sizeof(struct table_row) || wanted_size % 4) {
        PyErr_SetString(PyExc_ValueError, "a row has 12 bytes, an address 4");
        return NULL;
    }
    errno = 0;
    t = table_new((const struct table_row *)(const void *)rows,
                  (size_t)rows_size / sizeof(struct table_row));
    if (!t)
        return raise_errno(errno ? errno : EINVAL);
    result = PyBytes_FromStringAndSize(NULL, wanted_size);
    if (result) {
        out = (uint32_t *)(void *)PyBytes_AsString(result);
        for (Py_ssize_t i = 0; i < wanted_size / 4; i++)
            out[i] = table_lookup(t, ((const uint32_t *)(const void *)wanted)[i]);
    }
    free(t);
    return result;
}

static int append_bytes(PyObject *list, const struct iovec *pieces, size_t count)
{
    size_t total = 0;
    PyObject *whole;
    char *out;
    int failed;

    for (size_t i = 0; i < count; i++)
        total += pieces[i].iov_len;
    whole = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)total);
    if (!whole)
        return -1;
    out = PyBytes_AsString(whole);
    for (size_t i = 0; i < count; i++) {
        memcpy(out, pieces[i].iov_base, pieces[i].iov_len);
        out += pieces[i].iov_len;
    }
    failed = PyList_Append(list, whole);
    Py_DECREF(whole);
    return failed;
}

static PyObject *native_segment(PyObject *Py_UNUSED(module), PyObject *argument)
{
    char *bytes;
    Py_ssize_t size;
    struct vnet_header vnet;
    struct segmenter s;
    const uint8_t *p;
    size_t length;
    PyObject *list;

    if (PyBytes_AsStringAndSize(argument, &bytes, &size))
        return NULL;
    if (size < (Py_ssize_t)sizeof vnet)
        Py_RETURN_NONE;
    memcpy(&vnet, bytes, sizeof vnet);
    p = (const uint8_t *)bytes + sizeof vnet;
    length = (size_t)size - sizeof vnet;
    if (packet_check(p, length, IP4_MAX_PACKET) != PACKET_OK || !segment_begin(&s, p, length, &vnet))
        Py_RETURN_NONE;
    list = PyList_New(0);
    for (size_t i = 0; list && i < s.count; i++) {
        uint8_t header[SEGMENT_HEADER_MAX];
        const uint8_t *payload = segment_write(&s, i, header);
        struct iovec pieces[2] = {{header, s.header},
                                  {(void *)(uintptr_t)payload, segment_length(&s, i) - s.header}};

        if (append_bytes(list, pieces, 2))
            Py_CLEAR(list);
    }
    return list;
}

struct join_output {
    PyObject *list; /* NULL after a failure */
};

static void collect(void *context, struct join_flow *flow)
{
    struct join_output *output = context;
    struct vnet_header none = {0};
    struct iovec alone[2] = {{&none, sizeof none}, join_packet(flow, 0)};

    if (!output->list)
        return;
    if (flow->count > 1)
        join_finish(flow);
    if (append_bytes(output->list, flow->count > 1 ? flow->parts : alone,
                     flow->count > 1 ? flow->count + 2 : 2))
        Py_CLEAR(output->list);
}

static PyObject *native_join(PyObject *Py_UNUSED(module), PyObject *packets)
{
    struct join_output output = {NULL};
    struct joiner *j;
    Py_ssize_t count = PyList_Size(packets);

    if (count < 0)
        return NULL;
    j = PyMem_Calloc(1, sizeof *j);
    if (!j)
        return PyErr_NoMemory();
    output.list = PyList_New(0);
    j->emit = collect;
    j->context = &output;
    j->tcp = j->udp = true;
    for (Py_ssize_t i = 0; output.list && i < count; i++) {
        struct vnet_header none = {0};
        char *bytes;
        Py_ssize_t size;

        if (PyBytes_AsStringAndSize(PyList_GetItem(packets, i), &bytes, &size)) {
            Py_CLEAR(output.list);
        } else if (packet_check((uint8_t *)bytes, (size_t)size, IP4_MAX_PACKET) == PACKET_OK &&
                   !join_offer(j, (uint8_t *)bytes, (size_t)size) && output.list) {
            struct iovec pieces[2] = {{&none, sizeof none}, {bytes, (size_t)size}};

            if (append_bytes(output.list, pieces, 2))
                Py_CLEAR(output.list);
        }
    }
    join_flush(j);
    PyMem_Free(j);
    return output.list;
}

static PyMethodDef module_methods[] = {
    {"lookup", native_lookup, METH_VARARGS, NULL},
    {"segment", native_segment, METH_O, NULL},
    {"join", native_join, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static int add_names(PyObject *module, const char *attribute, const char *const *names, size_t count)
{
    PyObject *tuple = PyTuple_New((Py_ssize_t)count);
    int failed;

    for (size_t i = 0; tuple && i < count; i++) {
        PyObject *name = PyUnicode_FromString(names[i]);

        if (!name || PyTuple_SetItem(tuple, (Py_ssize_t)i, name))
            Py_CLEAR(tuple);
    }
    if (!tuple)
        return -1;
    failed = PyModule_AddObjectRef(module, attribute, tuple);
    Py_DECREF(tuple);
    return failed;
}

static int module_exec(PyObject *module)
{
#define X(name) #name,
    static const char *const counters[] = {ENGINE_COUNTERS(X)};
    static const char *const offloads[] = {ENGINE_OFFLOADS(X)};
    static const char *const peer[] = {ENGINE_PEER_COUNTERS(X)};
#undef X
    PyObject *type = PyType_FromModuleAndSpec(module, &Engine_spec, NULL);
    int failed = !type || PyModule_AddObjectRef(module, "Engine", type);

    Py_XDECREF(type);
    return failed || add_names(module, "COUNTERS", counters, COUNTERS) ||
                   add_names(module, "PEER_COUNTERS", peer, PEER_COUNTERS) ||
                   add_names(module, "OFFLOADS", offloads, OFFLOADS)
               ? -1
               : 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, (void *)module_exec},
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_doc = "Threads that move packets between a TUN and a UDP socket.",
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&module_definition);
}
