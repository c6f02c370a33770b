"""A library that `write_library` made, in Python: ctypes over `edge_api.h`. Standard library only, Python 3.6 or later,
so this file runs on a board as it is; arrays are bytes, or anything with the buffer protocol (numpy).

    model = Model("folder")
    logits, = model.run([ids], length=len(ids))        # ids: int64, little-endian

A causal decoder also goes on where it stopped: `step` computes new tokens behind those that it holds, and `generate`
gives the likeliest continuation of a prompt.

    model.generate([464, 3290], 20)                    # 20 token ids
"""

import ctypes
import hashlib
import json
import os
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

OK, WRONG_CPU = 0, 4
STATUS = {
    1: "a bad argument", 2: "a bad input", 3: "not enough memory",
    4: "this CPU lacks instructions that the library uses", 5: "the system starts no more threads",
}
LIBRARY = "lib/libmodel.so"
INTERFACE = 2  # edge_version() of the libraries that this file calls
ELEMENTS = {"int64": ("lq", 8), "float32": ("f", 4)}  # by dtype: formats of the buffer protocol, and bytes


class LibraryError(Exception):
    """The folder is not a library, or is damaged; or an inference was refused."""


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("dtype", ctypes.c_char_p), ("bytes", ctypes.c_size_t), ("rank", ctypes.c_int),
        ("shape", ctypes.c_int64 * 4),
    ]


class Tensor:
    """An input or output: `shape` batch first (1), of the largest; `bytes` is its size."""

    def __init__(self, found: _Tensor) -> None:
        self.name = found.name.decode("ascii")  # type: str
        self.dtype = found.dtype.decode("ascii")  # type: str
        self.bytes = int(found.bytes)  # type: int
        self.shape = tuple(int(size) for size in found.shape[: found.rank])


class Model:
    """One model in memory of its own. Not for several threads of Python at a time."""

    def __init__(self, folder: "str | os.PathLike[str]", threads: int = 1) -> None:
        """Raises LibraryError: `folder` holds no whole library, or this machine cannot run it."""
        self._model = ctypes.c_void_p()
        self._library = _load(str(folder))
        bytes_needed = self._library.edge_memory(threads)
        if not bytes_needed:
            raise LibraryError(f"{folder}: threads must be 1 to 16, not {threads}")
        self._memory = ctypes.create_string_buffer(bytes_needed)
        status = self._library.edge_create(ctypes.byref(self._model), self._memory, bytes_needed, threads)
        if status != OK:
            raise LibraryError("{}: {}".format(folder, STATUS.get(status, f"status {status}")))
        self.name = self._library.edge_name().decode("ascii")  # type: str
        self.decodes = bool(self._library.edge_decodes())  # type: bool
        self.max_length = int(self._library.edge_max_length())  # type: int
        self.inputs = [Tensor(self._library.edge_input(i).contents) for i in range(self._library.edge_inputs())]
        self.outputs = [Tensor(self._library.edge_output(i).contents) for i in range(self._library.edge_outputs())]

    def run(self, inputs: "Sequence[Any]", length: "int | None" = None) -> "list[bytearray]":
        """One inference; outputs as `bytearray`s, of which those by token hold `length` rows.

        `inputs` are raw arrays in the order of `self.inputs`; token ids are int64 and as many as `length` (as many as
        there are, unless it is given).

        Raises LibraryError: an array has another type or size than its descriptor says, or the library refuses the
            inputs.
        """
        self._check_open()
        if len(inputs) != len(self.inputs):
            raise LibraryError(f"{self.name}: {len(inputs)} inputs, expected {len(self.inputs)}")
        arrays = [self._raw(inputs[at], tensor.name, tensor.dtype) for at, tensor in enumerate(self.inputs)]
        if length is None:
            length = len(arrays[0]) // 8 if self.max_length else 0
        for at, tensor in enumerate(self.inputs):
            array = arrays[at]
            expected = 8 * length if self.max_length and tensor.dtype == "int64" else tensor.bytes
            if len(array) != expected:
                message = f"{self.name}: input {tensor.name} has {len(array)} bytes, expected {expected}"
                raise LibraryError(message)
        outputs = [bytearray(tensor.bytes) for tensor in self.outputs]
        given = (ctypes.c_char_p * len(arrays))(*arrays)
        buffers = [(ctypes.c_char * len(output)).from_buffer(output) for output in outputs]
        taken = (ctypes.c_void_p * len(outputs))(*[ctypes.addressof(buffer) for buffer in buffers])
        self._check(self._library.edge_infer(self._model, given, length, taken))
        del buffers
        for at, tensor in enumerate(self.outputs):
            if self.max_length and len(tensor.shape) == 3:
                del outputs[at][tensor.bytes // tensor.shape[1] * length :]
        return outputs

    def step(self, ids: "Any") -> bytearray:
        """Compute new tokens behind the `past` ones; the rows of the first output for the new ones.

        `ids` is a raw array of int64: a prompt, or one token.

        Raises LibraryError: not a causal decoder, ids of another type, too many tokens with those before, an id outside
            of the vocabulary.
        """
        self._check_open()
        array = self._raw(ids, "ids", "int64")
        count, tensor = len(array) // 8, self.outputs[0]
        row = tensor.bytes // (tensor.shape[1] if self.decodes else 1)
        output = bytearray(row * max(1, min(count, self.max_length)))
        taken = (ctypes.c_char * len(output)).from_buffer(output)
        self._check(self._library.edge_step(self._model, array, count, taken))
        del taken
        return output

    @property
    def past(self) -> int:
        """The tokens that the model holds."""
        self._check_open()
        return int(self._library.edge_past(self._model))

    def rewind(self, length: int = 0) -> None:
        """Forget all but the first `length` tokens. Raises LibraryError: it does not hold so many."""
        self._check_open()
        self._check(self._library.edge_rewind(self._model, length))

    def generate(self, prompt: "Sequence[int]", count: int) -> "list[int]":
        """The `count` likeliest tokens behind a prompt of token ids, one by one.

        Raises LibraryError: see `step`; or the model gives no `token_logits`.
        """
        if not self.decodes or self.outputs[0].name != "token_logits":
            raise LibraryError(f"{self.name}: not a causal decoder with token_logits")
        self.rewind()
        made = []  # type: list[int]
        ids = list(prompt)
        while len(made) < count:
            rows = self.step(struct.pack(f"<{len(ids)}q", *ids))
            logits = struct.unpack_from(f"<{self.outputs[0].shape[2]}f", rows, len(rows) - 4 * self.outputs[0].shape[2])
            ids = [max(range(len(logits)), key=logits.__getitem__)]
            made += ids
        return made

    def _raw(self, value: "Any", name: str, dtype: str) -> bytes:
        """The bytes of an array of this type, or raw bytes, of which it is only known that they are whole elements."""
        formats, size = ELEMENTS[dtype]
        try:
            view = memoryview(value)
        except TypeError:
            found = type(value).__name__
        else:
            code = view.format.lstrip("@=<")
            if (code in tuple("Bbc") and view.nbytes % size == 0) or (code in tuple(formats) and view.itemsize == size):
                return bytes(view)
            found = f"{view.nbytes} bytes in elements of {view.itemsize} (format {view.format})"
        raise LibraryError(f"{self.name}: {name} must be {dtype}, as an array or raw bytes, not {found}")

    def _check_open(self) -> None:
        if self._model.value is None:
            raise LibraryError(f"{self.name}: the model is closed")

    def _check(self, status: int) -> None:
        if status != OK:
            message = self._library.edge_message(self._model).decode("ascii")
            raise LibraryError(f"{self.name}: {STATUS.get(status, status)}: {message}")

    def close(self) -> None:
        """Stop its threads; it cannot run any more."""
        if self._model.value is not None:
            self._library.edge_destroy(self._model)
            self._model = ctypes.c_void_p()

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _load(folder: str) -> ctypes.CDLL:
    """The shared library, after its digest: a file that is cut off would end the process."""
    path = os.path.join(folder, *LIBRARY.split("/"))
    try:
        with open(os.path.join(folder, "library.json"), "rb") as stream:
            document = json.loads(stream.read().decode("utf-8"))
        with open(path, "rb") as stream:
            digest = hashlib.sha256(stream.read()).hexdigest()
        known = document["files"][LIBRARY]
        kind = (document["format"], document["version"])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise LibraryError(f"{folder}: not a library: {problem!r}") from problem
    if kind != ("edgesdk.library", 1):
        raise LibraryError(f"{folder}: format {kind} is not edgesdk.library 1")
    if digest != known:
        raise LibraryError(f"{path}: sha256 differs from library.json: write the library again")
    try:
        library = ctypes.CDLL(os.path.abspath(path))
    except OSError as problem:
        raise LibraryError(f"{path}: cannot be loaded: {problem}") from problem
    version = getattr(library, "edge_version", None)
    interface = version() if version else 0
    if interface != INTERFACE:
        message = f"{path}: has interface {interface}, this binding needs {INTERFACE}: write the library again"
        raise LibraryError(message)
    for name, result, arguments in (
        ("edge_name", ctypes.c_char_p, []),
        ("edge_inputs", ctypes.c_int, []),
        ("edge_outputs", ctypes.c_int, []),
        ("edge_decodes", ctypes.c_int, []),
        ("edge_max_length", ctypes.c_int, []),
        ("edge_input", ctypes.POINTER(_Tensor), [ctypes.c_int]),
        ("edge_output", ctypes.POINTER(_Tensor), [ctypes.c_int]),
        ("edge_memory", ctypes.c_size_t, [ctypes.c_int]),
        ("edge_create", ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]),
        ("edge_infer", ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]),
        ("edge_step", ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p]),
        ("edge_past", ctypes.c_int, [ctypes.c_void_p]),
        ("edge_rewind", ctypes.c_int, [ctypes.c_void_p, ctypes.c_int]),
        ("edge_message", ctypes.c_char_p, [ctypes.c_void_p]),
        ("edge_destroy", None, [ctypes.c_void_p]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
