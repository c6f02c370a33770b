"""What calls are given, as C text: buffers of the arena, constants in the block of weights, declared layers, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgesdk.converters.neon.kernel_sets import KernelSet
from edgesdk.converters.neon.packing import ROWS, round_up
from edgesdk.converters.neon.plan import Dense, Embed, Table, Tensor
from edgesdk.converters.neon.storage import SmallRows, Stored, pack_rows

LARGE_TABLE = 1 << 20  # bytes from which on rows that no token asks for are kept out of memory
SMALLEST_PAGE = 4096


class Weights:
    """One block of constants at offsets that are multiples of 64; equal arrays are stored once."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.offsets: dict[bytes, int] = {}

    def add(self, array: NDArray[np.generic]) -> int:
        content = np.ascontiguousarray(array).tobytes()
        if content not in self.offsets:
            self.data += bytes(-len(self.data) % 64)
            self.offsets[content] = len(self.data)
            self.data += content
        return self.offsets[content]


class Operands:
    """Buffers lie at `offsets` of the arena; what was asked for is collected: `weights`, the `declarations` of layers,
    how their int8 `matrices` are stored, and the tables of 4 bits (`small`, by id)."""

    def __init__(self, kernels: KernelSet, offsets: Mapping[str, int]) -> None:
        self.kernels, self.offsets, self.weights = kernels, offsets, Weights()
        self.declarations: list[str] = []
        self.matrices: list[Stored] = []
        self.small: dict[int, SmallRows | None] = {}

    def at(self, name: str, kind: str) -> str:
        return f"({kind} *)(arena + {self.offsets[name]})"

    def floats(self, tensor: Tensor) -> str:
        return self.at(tensor.name, "float")

    def bytes(self, tensor: Tensor) -> str:
        return self.at(tensor.name, "int8_t")

    def halves(self, tensor: Tensor) -> str:
        return self.at(tensor.name, "edge_f16")

    def weight(self, array: NDArray[np.generic], kind: str) -> str:
        return f"(const {kind} *)(edge_weights + {self.weights.add(array)})"

    def rows(self, table: Table) -> tuple[NDArray[np.generic], str, SmallRows | None]:
        """A table's rows as they are stored, their C type, and the whole where they have 4 bits."""
        if table.scale is None:
            kind, name = (np.float16, "edge_f16") if self.kernels.halves else (np.float32, "float")
            return table.values.astype(kind), name, None
        if id(table) not in self.small:
            self.small[id(table)] = pack_rows(table.values)
        small = self.small[id(table)]
        return (table.values if small is None else small.weights), "int8_t", small

    def table(self, table: Table) -> str:
        values, kind, small = self.rows(table)
        scale = "NULL" if table.scale is None else self.weight(table.scale.astype(np.float32), "float")
        groups = ["NULL", "0", "0"] if small is None else [
            self.weight(small.multipliers, "uint8_t"), str(small.multipliers.shape[1]),
            str(small.group.bit_length() - 1),
        ]
        return self.declare("edge_lookup", [self.weight(values, kind), scale, *groups])

    def touch(self, step: Embed, rows: str) -> str:
        """What keeps the rest of a large table of tokens out of memory; nothing for a small one."""
        values, kind, _ = self.rows(step.tokens)
        if values.nbytes < LARGE_TABLE:
            return ""
        name = f"seen{len(self.declarations)}"
        self.declarations.append(f"static uint8_t {name}[{values.nbytes // SMALLEST_PAGE + 2}];")
        table = self.weight(values, kind)
        return f"edge_touch_rows(ids, {rows}, {table}, {values.nbytes // len(values)}, {values.nbytes}, {name}); "

    def declare(self, kind: str, fields: Sequence[str]) -> str:
        name = f"layer{len(self.declarations)}"
        self.declarations.append(f"static const {kind} {name} = {{{', '.join(fields)}}};")
        return f"&{name}"

    def declare_int8(self, fields: Sequence[str], stored: Stored) -> str:
        self.matrices.append(stored)
        return self.declare("edge_int8", fields)

    def residual(self, step: Dense) -> str:
        return self.floats(step.residual) if step.residual is not None else "NULL"

    def scales(self, tensor: Tensor) -> str:
        middle = self.offsets[tensor.name] + 4 * round_up(tensor.rows, ROWS)
        return f"{self.floats(tensor)}, (int32_t *)(arena + {middle})"


def rows_of(tensor: Tensor) -> str:
    """How many rows a call works on: the input's, or a constant."""
    return "tokens" if tensor.tokens else str(tensor.rows)


def c_float(value: float) -> str:
    """A C float constant of exactly this float32."""
    return f"{float(np.float32(value)).hex()}f"
