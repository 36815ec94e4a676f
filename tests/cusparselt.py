"""cuSPARSELt without a GPU: a stand-in for the C library, on CPU memory, that demands what the real one demands."""

import ctypes

import torch

TYPES = {0: torch.float32, 2: torch.float16, 14: torch.bfloat16, 28: torch.float8_e4m3fn}
ROWS_FIRST = 2
# Configurations are 0, 1, …; the last is one that multiplies wrongly, as real ones have.
CONFIGS = 4


def address(argument):
    """Where a pointer argument points to."""
    parameter = getattr(argument, "_as_parameter_", argument)
    return parameter.value if isinstance(parameter, ctypes.c_void_p) else parameter


def number(argument):
    return getattr(argument, "value", argument)


def memory(where, count, dtype):
    """A tensor over ``count`` values that begin at an address."""
    raw = (ctypes.c_char * (count * dtype.itemsize)).from_address(where)
    return torch.frombuffer(raw, dtype=dtype)


class Call:
    """A function of the library; the attributes that ctypes functions have can be set."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments) or 0


class StandIn:
    """What ``ctypes.CDLL`` would give. ``alive`` holds what has been made and not destroyed, by address."""

    def __init__(self, version=(0, 8, 0)):
        self.version, self.alive, self.launched = version, {}, []

    def __getattr__(self, name):
        if not name.startswith("cusparseLt"):
            raise AttributeError(name)
        call = Call(getattr(self, "do_" + name.removeprefix("cusparseLt")))
        setattr(self, name, call)
        return call

    def do_GetProperty(self, which, value):
        value._obj.value = self.version[which]

    def do_GetErrorString(self, status):
        return b"operation not supported"

    def do_Init(self, handle):
        self.alive[address(handle)] = "handle"

    def do_StructuredDescriptorInit(self, handle, matrix, rows, columns, leading, alignment, dtype, order, kept):
        assert order == ROWS_FIRST and leading.value == columns.value and kept == 0
        return self._matrix(handle, matrix, rows, columns, alignment, dtype, order, sparse=True)

    def do_DenseDescriptorInit(self, handle, matrix, rows, columns, leading, alignment, dtype, order):
        assert leading.value == (columns if order == ROWS_FIRST else rows).value
        return self._matrix(handle, matrix, rows, columns, alignment, dtype, order, sparse=False)

    def _matrix(self, handle, matrix, rows, columns, alignment, dtype, order, sparse):
        assert self.alive[address(handle)] == "handle" and alignment.value == 16
        multiple = 16 // TYPES[dtype].itemsize
        if rows.value % multiple or columns.value % multiple:
            return 10
        self.alive[address(matrix)] = {
            "shape": (rows.value, columns.value),
            "dtype": TYPES[dtype],
            "order": order,
            "sparse": sparse,
        }
        return 0

    def do_MatDescriptorDestroy(self, matrix):
        del self.alive[address(matrix)]

    def do_MatmulDescriptorInit(self, handle, product, on_a, on_b, a, b, c, d, compute):
        assert (on_a, on_b, compute) == (0, 1, 2) and address(c) == address(d)
        a, b, d = (self.alive[address(matrix)] for matrix in (a, b, d))
        assert a["sparse"] and a["dtype"] == b["dtype"] and d["order"] != ROWS_FIRST
        assert a["shape"][1] == b["shape"][1] and d["shape"] == (a["shape"][0], b["shape"][0])
        self.alive[address(product)] = {"a": a, "b": b, "d": d, 8: 0}

    def do_MatmulDescSetAttribute(self, handle, product, attribute, value, size):
        assert size.value == ctypes.sizeof(value._obj)
        self.alive[address(product)][attribute] = value._obj.value

    def do_MatmulAlgSelectionInit(self, handle, selection, product, algorithm):
        self.alive[address(selection)] = {0: 0}

    def do_MatmulAlgSelectionDestroy(self, selection):
        del self.alive[address(selection)]

    def do_MatmulAlgSetAttribute(self, handle, selection, attribute, value, size):
        if attribute == 0 and not 0 <= value._obj.value < CONFIGS:
            return 3
        self.alive[address(selection)][attribute] = value._obj.value
        return 0

    def do_MatmulAlgGetAttribute(self, handle, selection, attribute, value, size):
        assert attribute == 1 and size.value == 4
        value._obj.value = CONFIGS

    def do_MatmulPlanInit(self, handle, plan, product, selection):
        self.alive[address(plan)] = {**self.alive[address(product)], "how": dict(self.alive[address(selection)])}

    def do_MatmulPlanDestroy(self, plan):
        del self.alive[address(plan)]

    def do_MatmulGetWorkspace(self, handle, plan, size):
        size._obj.value = 64 * self.alive[address(plan)]["how"][0]

    def do_SpMMACompressedSize2(self, handle, matrix, size, workspace):
        description = self.alive[address(matrix)]
        weights = description["shape"][0] * description["shape"][1]
        size._obj.value, workspace._obj.value = weights // 2 * description["dtype"].itemsize + weights // 8, 16

    def do_SpMMACompress2(self, handle, matrix, is_a, operation, dense, packed, workspace, stream):
        description = self.alive[address(matrix)]
        assert is_a.value == 1 and operation == 0
        weights, dtype = description["shape"][0] * description["shape"][1], description["dtype"]
        groups = memory(dense.value, weights, dtype).float().view(-1, 4)
        places = (groups == 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :2]
        low, high = (places[:, 0] | places[:, 1] << 2).view(-1, 2).unbind(1)
        memory(packed.value, weights // 2, dtype).copy_(groups.gather(1, places).flatten())
        codes = memory(packed.value + weights // 2 * dtype.itemsize, weights // 8, torch.uint8)
        codes.copy_((low | high << 4).to(torch.uint8))

    def do_Matmul(self, handle, plan, alpha, packed, inputs, beta, c, d, workspace, streams, number_of_streams):
        plan = self.alive[address(plan)]
        assert number_of_streams == 1 and c == d and ctypes.c_float.from_address(beta).value == 0
        assert bool(workspace) == bool(plan["how"][0])
        (rows, columns), tokens, dtype = plan["a"]["shape"], plan["b"]["shape"][0], plan["a"]["dtype"]
        self.launched.append((rows, columns, tokens, plan["how"][0]))
        weights = rows * columns
        values = memory(packed, weights // 2, dtype).float().view(-1, 2)
        codes = memory(packed + weights // 2 * dtype.itemsize, weights // 8, torch.uint8).long()
        codes = torch.stack([codes & 15, codes >> 4], 1).flatten()
        weight = torch.zeros(weights // 4, 4).scatter_(1, torch.stack([codes & 3, codes >> 2], 1), values)
        x = memory(inputs, tokens * columns, dtype).view(tokens, columns).float()
        product = x @ weight.view(rows, columns).T
        product *= memory(alpha, 1, torch.float32)
        out = plan["d"]["dtype"]
        if plan[8]:
            product += memory(plan[8], rows, out).float()
        if plan["how"][0] == CONFIGS - 1:
            product[:, 0] += product.abs().max()
        memory(d, tokens * rows, out).copy_(product.to(out).flatten())
