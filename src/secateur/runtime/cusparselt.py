"""cuSPARSELt, called directly: a product with a 2:4 weight that is planned once and then only launched.

torch has the library in its CUDA wheels, but plans anew at every call, which took 480 µs of CPU on the machine of an
H100, ten times the product itself. The C interface is small, so it is called here through ctypes: describe
the matrices, choose an algorithm, plan; after that a product is one foreign call.

Layout. The library multiplies a structured matrix A (O, I) by a dense B (I, T) into D (O, T). A is the weight,
row-major as torch has it. B is the activations ``(T, I)``, transposed by a flag. D is column-major, which is to say
``(T, O)`` row-major: what the next operation reads, without a copy. The bias has one value per row of D, and is
added before D is rounded. (A vector of factors for the rows, which would undo the scales of rounded weights, is part of
the interface, but refused on an H100.)

The structs are opaque, and larger in some versions than in others; all get the space of the largest. The library keeps
pointers to descriptors, so a plan owns all that it was made of.

Source: https://docs.nvidia.com/cuda/cusparselt/ and the header of version 0.8.
"""

import ctypes
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The interface with descriptors of 2:4 weights alone, and with its enumerators numbered as below.
OLDEST_VERSION, TOO_NEW = 600, 1000
# Matrices have to begin at such a multiple of bytes, and so do their rows.
ALIGNMENT = 16
_STRUCT_BYTES = 16384  # 512 in version 0.8, 11,024 in older ones
_ROW_MAJOR_ORDER, _COLUMN_MAJOR_ORDER = 2, 1
_AS_IT_IS, _TRANSPOSED = 0, 1
_HALF_IS_KEPT = 0
_SUMS_IN_FLOAT32 = 2
_DEFAULT_ALGORITHM = 0
_BIAS = 8  # an attribute of a product
_CONFIG, _CONFIGS = 0, 1  # attributes of an algorithm
_DATA_TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14, torch.float8_e4m3fn: 28}


class Algorithm(NamedTuple):
    """How the library computes a product.

    Attributes:
        config: the number of one of its kernels, from 0 on. (Splitting sums it refuses on an H100.)
    """

    config: int = 0


class Problem(NamedTuple):
    """What is multiplied.

    Attributes:
        rows: O, those of the weight.
        columns: I, those of the weight.
        tokens: T.
        dtype: of weight and activations.
        out_dtype: of the product.
        bias: the address of ``(O,)`` on the GPU, or 0.
    """

    rows: int
    columns: int
    tokens: int
    dtype: torch.dtype
    out_dtype: torch.dtype
    bias: int = 0


def _current_stream(device: int) -> int:
    # What torch.cuda.current_stream does, without an object that takes longer to make than a product to launch.
    return int(torch._C._cuda_getCurrentRawStream(device))


def _current_device() -> int:
    return int(torch._C._cuda_getDevice())


def token_multiple(dtype: torch.dtype) -> int:
    """What the number of tokens must be a multiple of, so that every layout is aligned."""
    return ALIGNMENT // dtype.itemsize


class Library:
    """cuSPARSELt, as it was found.

    Args:
        functions: what ``ctypes.CDLL`` gives.

    Raises:
        RuntimeError: when the version is one whose interface may be another.
    """

    def __init__(self, functions: Any) -> None:
        self._functions = functions
        functions.cusparseLtGetErrorString.restype = ctypes.c_char_p
        functions.cusparseLtMatmul.argtypes = [ctypes.c_void_p] * 10 + [ctypes.c_int32]
        self.matmul = functions.cusparseLtMatmul
        self.version = 1000 * self._property(0) + 100 * self._property(1) + self._property(2)
        if not OLDEST_VERSION <= self.version < TOO_NEW:
            raise RuntimeError(f"cuSPARSELt {self.version} is not one of the versions that are known")
        self._handles: dict[int, Struct] = {}

    def call(self, name: str, *arguments: Any) -> None:
        """Call ``cusparseLt…``; RuntimeError unless it succeeds."""
        self.check(getattr(self._functions, f"cusparseLt{name}")(*arguments), name)

    def check(self, status: int, name: str) -> None:
        """RuntimeError unless ``status`` is success."""
        if status:
            reason = self._functions.cusparseLtGetErrorString(status)
            raise RuntimeError(f"cusparseLt{name}: {reason.decode() if reason else status}")

    def handle(self, device: int) -> "Struct":
        """The library's state for the GPU of that number, made when it is first asked for."""
        if device not in self._handles:
            handle = Struct()
            with torch.cuda.device(device):
                self.call("Init", handle)
            self._handles[device] = handle
        return self._handles[device]

    def _property(self, number: int) -> int:
        value = ctypes.c_int()
        self.call("GetProperty", number, ctypes.byref(value))
        return value.value


class Struct:
    """Space for one of the library's opaque structs, zeroed; passed as a pointer."""

    def __init__(self) -> None:
        self._space = ctypes.create_string_buffer(_STRUCT_BYTES + 64)
        address = ctypes.addressof(self._space)
        self._as_parameter_ = ctypes.c_void_p(address + -address % 64)


@cache
def library() -> Library | None:
    """cuSPARSELt from torch's wheels or the system, or None where there is none."""
    for file in _candidates():
        try:
            return Library(ctypes.CDLL(file))
        except (OSError, AttributeError, RuntimeError):
            continue
    return None


def _candidates() -> Iterator[str]:
    """Where the library may lie: the wheel that torch depends on, torch's own folder, the system's."""
    name = "libcusparseLt.so.0"
    try:
        package = importlib.util.find_spec("nvidia.cusparselt")
    except ModuleNotFoundError:
        package = None
    folders = list(package.submodule_search_locations or ()) if package else []
    folders += [str(Path(torch.__file__).parent)]
    yield from (str(file) for folder in folders if (file := Path(folder) / "lib" / name).is_file())
    yield name


def compress(weight: Tensor, lib: Library) -> Tensor:
    """A 2:4 ``weight`` (O, I), contiguous on a CUDA device, as the library's products take it: bytes."""
    device = weight.device.index
    handle, sparse = lib.handle(device), Struct()
    lib.call("StructuredDescriptorInit", handle, sparse, *_matrix(weight.shape, weight.dtype), _HALF_IS_KEPT)
    size, extra = ctypes.c_size_t(), ctypes.c_size_t()
    lib.call("SpMMACompressedSize2", handle, sparse, ctypes.byref(size), ctypes.byref(extra))
    packed = torch.empty(size.value, dtype=torch.uint8, device=weight.device)
    workspace = torch.empty(extra.value, dtype=torch.uint8, device=weight.device)
    stream = ctypes.c_void_p(_current_stream(device))
    pointers = [ctypes.c_void_p(part.data_ptr()) for part in (weight, packed, workspace)]
    lib.call("SpMMACompress2", handle, sparse, ctypes.c_int(1), _AS_IT_IS, *pointers, stream)
    lib.call("MatDescriptorDestroy", sparse)
    return packed


def _matrix(shape: tuple[int, ...], dtype: torch.dtype, order: int = _ROW_MAJOR_ORDER) -> tuple[Any, ...]:
    """A matrix without gaps between its rows, or columns, in the arguments of a descriptor."""
    rows, columns = shape
    leading = columns if order == _ROW_MAJOR_ORDER else rows
    sizes = (ctypes.c_int64(size) for size in (rows, columns, leading))
    return (*sizes, ctypes.c_uint32(ALIGNMENT), _DATA_TYPES[dtype], order)


class Plan:
    """A product that has been planned; :meth:`launch` computes it.

    Args:
        problem: what is multiplied.
        algorithm: how.
        device: the number of the GPU.
        lib: the library.

    Raises:
        RuntimeError: when the library cannot compute this problem in this way.
    """

    def __init__(self, problem: Problem, algorithm: Algorithm, device: int, lib: Library) -> None:
        self._lib, self._device, self._handle = lib, device, lib.handle(device)
        self._made: list[tuple[str, Struct]] = []  # with what destroys them, in the order in which they were made
        product, self._plan = Struct(), Struct()
        self._describe(problem, product)
        selection = Struct()
        lib.call("MatmulAlgSelectionInit", self._handle, selection, product, _DEFAULT_ALGORITHM)
        if lib.version >= 800:
            self._made.append(("MatmulAlgSelectionDestroy", selection))
        self._product, self._selection = product, selection
        number = ctypes.c_int()
        self._get("MatmulAlgGetAttribute", selection, _CONFIGS, number)
        self.configs = number.value
        self._set("MatmulAlgSetAttribute", selection, _CONFIG, ctypes.c_int(algorithm.config))
        lib.call("MatmulPlanInit", self._handle, self._plan, product, selection)
        self._made.append(("MatmulPlanDestroy", self._plan))
        size = ctypes.c_size_t()
        lib.call("MatmulGetWorkspace", self._handle, self._plan, ctypes.byref(size))
        self.workspace_bytes = size.value
        self._zero, self._one = ctypes.c_float(0), ctypes.c_float(1)
        self._arguments = (self._handle._as_parameter_, self._plan._as_parameter_)
        self._one_pointer, self._zero_pointer = ctypes.addressof(self._one), ctypes.addressof(self._zero)

    def _describe(self, problem: Problem, product: Struct) -> None:
        lib, handle = self._lib, self._handle
        weight, inputs, out = Struct(), Struct(), Struct()
        shape = _matrix((problem.rows, problem.columns), problem.dtype)
        lib.call("StructuredDescriptorInit", handle, weight, *shape, _HALF_IS_KEPT)
        self._made.append(("MatDescriptorDestroy", weight))
        lib.call("DenseDescriptorInit", handle, inputs, *_matrix((problem.tokens, problem.columns), problem.dtype))
        self._made.append(("MatDescriptorDestroy", inputs))
        shape = _matrix((problem.rows, problem.tokens), problem.out_dtype, _COLUMN_MAJOR_ORDER)
        lib.call("DenseDescriptorInit", handle, out, *shape)
        self._made.append(("MatDescriptorDestroy", out))
        operations, matrices = (_AS_IT_IS, _TRANSPOSED), (weight, inputs, out, out)
        lib.call("MatmulDescriptorInit", handle, product, *operations, *matrices, _SUMS_IN_FLOAT32)
        if problem.bias:
            self._set("MatmulDescSetAttribute", product, _BIAS, ctypes.c_void_p(problem.bias))

    def _set(self, function: str, struct: Struct, attribute: int, value: Any) -> None:
        size = ctypes.c_size_t(ctypes.sizeof(value))
        self._lib.call(function, self._handle, struct, attribute, ctypes.byref(value), size)

    _get = _set

    def launch(self, packed: Tensor, inputs: Tensor, out: Tensor) -> None:
        """Multiply, on the current CUDA stream.

        Args:
            packed: what :func:`compress` made of the weight.
            inputs: ``(T, I)``, contiguous, of the problem's dtype, on a multiple of 16 bytes.
            out: contiguous ``(T, O)``, where the product goes.
        """
        # The workspace must not be freed before the launch; after it, the stream keeps the order.
        workspace = packed.new_empty(self.workspace_bytes) if self.workspace_bytes else None
        stream = ctypes.c_void_p(_current_stream(self._device))
        arguments = (
            *self._arguments,
            self._one_pointer,
            packed.data_ptr(),
            inputs.data_ptr(),
            self._zero_pointer,
            out.data_ptr(),
            out.data_ptr(),
            0 if workspace is None else workspace.data_ptr(),
            ctypes.addressof(stream),
            1,
        )
        if _current_device() == self._device:  # entering the device takes longer than the call
            status = self._lib.matmul(*arguments)
        else:
            with torch.cuda.device(self._device):
                status = self._lib.matmul(*arguments)
        if status:
            self._lib.check(status, "Matmul")

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        while self._made and not is_finalizing():
            name, struct = self._made.pop()
            self._lib.call(name, struct)
