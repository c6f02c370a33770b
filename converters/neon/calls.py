"""Steps → C statements: each step is one call of a kernel with constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgesdk.converters.neon.cache import AttendCached
from edgesdk.converters.neon.kernel_sets import KernelSet
from edgesdk.converters.neon.layers import dynamic_layer, float_layer, half_layer, static_layer, w8_layer
from edgesdk.converters.neon.memory import stride
from edgesdk.converters.neon.packing import ROWS, round_up
from edgesdk.converters.neon.plan import (
    Activate,
    Attend,
    Dense,
    DenseDynamic,
    DenseHalf,
    DenseStatic,
    Embed,
    Features,
    Halve,
    Lookup,
    Normalize,
    Patches,
    Pool,
    Positions,
    Product,
    Quantize,
    QuantizeRows,
    RootNormalize,
    Rotate,
    Step,
    Sum,
    Table,
    Tensor,
)
from edgesdk.converters.neon.specialize import (
    AttendStatic,
    ByRow,
    NormalizeStatic,
    QuantizeAsMade,
    exponent,
    powers,
)
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


class Calls:
    """Writes calls for buffers at `offsets` of the arena; collects their `weights`, the `declarations` of
    layers, how their int8 `matrices` are stored, and the tables of 4 bits (`small`, by id)."""

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

    def call(self, step: Step) -> str:
        """The C statement of a step."""
        result, rows = step.result, _rows(step.result)
        match step:
            case Embed():
                positions = "NULL" if step.positions is None else self.table(step.positions)
                tables = f"{self.table(step.tokens)}, {positions}, past"
                embed = f"edge_embed(ids, {rows}, {result.columns}, {tables}, {self.floats(result)}, {stride(result)});"
                return self.touch(step, rows) + embed
            case Patches():
                return (
                    f"edge_patches(inputs[0], {step.channels}, {step.size}, {step.patch}, {self.floats(result)}, "
                    f"{stride(result)});"
                )
            case Features():
                return (
                    f"edge_copy(inputs[0], {result.columns}, {rows}, {result.columns}, {self.floats(result)}, "
                    f"{stride(result)});"
                )
            case Positions():
                cls = "NULL, 0" if step.cls is None else f"{self.weight(step.cls, 'float')}, {len(step.cls)}"
                return (
                    f"edge_add_positions({self.floats(step.source)}, {_rows(step.source)}, {result.columns}, "
                    f"{stride(result)}, {cls}, {self.table(step.positions)}, {self.floats(result)});"
                )
            case Dense():
                return self.dense(step)
            case Quantize():
                inverse = float(np.float32(1.0 / step.encoding.scale))
                return (
                    f"edge_quantize({self.floats(step.source)}, {stride(step.source)}, {rows}, {result.columns}, "
                    f"{_float(inverse)}, {step.encoding.zero_point}, {self.bytes(result)}, {stride(result)});"
                )
            case QuantizeAsMade():
                return self.by_row(step.maker, "_quantized", self.quantized(step))
            case QuantizeRows():
                return (
                    f"edge_quantize_rows({self.floats(step.source)}, {stride(step.source)}, {rows}, {result.columns}, "
                    f"{self.quantized(step)});"
                )
            case Halve():
                return (
                    f"edge_halve({self.floats(step.source)}, {stride(step.source)}, {rows}, {result.columns}, "
                    f"{self.halves(result)}, {stride(result)});"
                )
            case Lookup():
                entries = np.empty(256, np.uint8)
                index = np.arange(-128, 128).astype(np.int8).view(np.uint8) ^ np.uint8(self.kernels.flip)
                entries[index] = step.entries.view(np.uint8) ^ np.uint8(self.kernels.flip)
                count = f"({rows} + {ROWS - 1}) / {ROWS} * {ROWS * stride(result)}"
                return f"edge_table({self.bytes(result)}, {count}, {self.weight(entries, 'uint8_t')});"
            case NormalizeStatic():
                inverse = float(np.float32(1.0 / step.encoding.scale))
                floats = "NULL" if step.floats is None else self.floats(step.floats)
                return (
                    f"edge_layernorm_packed({self.floats(step.source)}, {rows}, {result.columns}, "
                    f"{stride(step.source)}, {self.weight(step.weight, 'float')}, {self.weight(step.bias, 'float')}, "
                    f"{_float(step.epsilon)}, {floats}, {_float(inverse)}, {step.encoding.zero_point}, "
                    f"{self.bytes(result)}, {stride(result)});"
                )
            case Normalize() | RootNormalize() | Activate():
                return self.by_row(step)
            case Rotate():
                first = f" + (size_t)past * {step.size}" if step.source.tokens else ""
                angles = ", ".join(f"{self.weight(table, 'float')}{first}" for table in (step.cosine, step.sine))
                return (
                    f"edge_rotate({self.floats(step.source)}, {rows}, {step.heads}, {step.size}, {stride(result)}, "
                    f"{angles}, {self.floats(result)});"
                )
            case Product():
                return (
                    f"edge_multiply({self.floats(step.left)}, {self.floats(step.right)}, {rows}, {stride(result)}, "
                    f"{self.floats(result)});"
                )
            case Sum():
                return (
                    f"edge_add({self.floats(step.left)}, {self.floats(step.right)}, {rows}, {stride(result)}, "
                    f"{self.floats(result)});"
                )
            case AttendStatic():
                return self.attend_static(step)
            case AttendCached():
                return self.attend_cached(step)
            case Attend():
                return self.attend(step)
            case Pool():
                source = self.floats(step.source)
                if step.kind == "cls":
                    target = f"{self.floats(result)}, {stride(result)}"
                    return f"edge_copy({source}, {stride(result)}, 1, {result.columns}, {target});"
                length = "length" if step.source.tokens else str(step.source.rows)
                return f"edge_mean({source}, {length}, {result.columns}, {stride(result)}, {self.floats(result)});"
            case _:
                raise AssertionError(f"no code for {type(step).__name__}")

    def by_row(self, step: ByRow, suffix: str = "", *more: str) -> str:
        """The call of the kernel, whose name ends in `suffix`, that makes rows of floats; `more` are its last
        arguments."""
        match step:
            case Normalize():
                name, constants = "layernorm", [
                    self.weight(step.weight, "float"), self.weight(step.bias, "float"), _float(step.epsilon)
                ]
            case RootNormalize():
                weight = self.weight(step.weight.astype(np.float32), "float")
                name, constants = "rmsnorm", [weight, _float(step.epsilon)]
            case Activate():
                name, constants = step.kind, []
        result = step.result
        sizes = [_rows(result), str(result.columns), str(stride(result))]
        arguments = [self.floats(step.source), *sizes, *constants, self.floats(result), *more]
        return f"edge_{name}{suffix}({', '.join(arguments)});"

    def quantized(self, step: QuantizeRows) -> str:
        """Where the integers of rows go, with their scales and zero points."""
        return f"(edge_quantized){{{self.scales(step.scales)}, {self.bytes(step.result)}, {stride(step.result)}}}"

    def dense(self, step: Dense) -> str:
        result, rows, source = step.result, _rows(step.result), step.source
        if isinstance(step, DenseStatic):
            layer = self.declare_int8(*static_layer(step, self.kernels, self.weight))
            operands = f"{layer}, {self.bytes(source)}, {rows}"
            if result.layout == "packed_a":
                return f"edge_int8_to_packed({operands}, {self.bytes(result)}, {stride(result)});"
            target = f"{self.floats(result)}, {stride(result)}"
            return f"edge_int8_to_float({operands}, {self.residual(step)}, {target});"
        if isinstance(step, DenseDynamic):
            assert step.scales is not None
            layer = self.declare_int8(*dynamic_layer(step, self.kernels, self.weight))
            return (
                f"edge_int8_dynamic({layer}, {self.bytes(source)}, {self.scales(step.scales)}, {rows}, "
                f"{self.residual(step)}, {self.floats(result)}, {stride(result)});"
            )
        if isinstance(step, DenseHalf):
            layer = self.declare("edge_half", half_layer(step, self.weight))
            return (
                f"edge_half_linear({layer}, {self.halves(source)}, {rows}, {self.residual(step)}, "
                f"{self.floats(result)}, {stride(result)});"
            )
        if step.linears[0].form == "w8":
            arguments = ", ".join(w8_layer(step, self.weight))
            return (
                f"edge_w8_linear({arguments}, {self.floats(source)}, {stride(source)}, {rows}, {self.floats(result)}, "
                f"{stride(result)});"
            )
        layer = self.declare("edge_float", float_layer(step, self.kernels, self.weight))
        return (
            f"edge_float_linear({layer}, {self.floats(source)}, {stride(source)}, {rows}, {self.residual(step)}, "
            f"{self.floats(result)}, {stride(result)});"
        )

    def scales(self, tensor: Tensor) -> str:
        middle = self.offsets[tensor.name] + 4 * round_up(tensor.rows, ROWS)
        return f"{self.floats(tensor)}, (int32_t *)(arena + {middle})"

    def heads(self, step: Attend) -> str:
        """Query, key and value with their strides."""
        parts = zip((step.query, step.key, step.value), step.starts, strict=True)
        return ", ".join(f"{self.floats(tensor)} + {start}, {stride(tensor)}" for tensor, start in parts)

    def attend_cached(self, step: AttendCached) -> str:
        cache, scratch = (self.at(f"{step.result.name}.{part}", "float") for part in ("cache", "scratch"))
        return (
            f"edge_attention_cached({self.heads(step)}, {_rows(step.result)}, past, length, {step.heads}, "
            f"{step.group}, {step.size}, {_float(step.scale)}, {cache}, {step.key.rows}, {self.floats(step.result)}, "
            f"{stride(step.result)}, {scratch});"
        )

    def attend(self, step: Attend) -> str:
        keys = "length" if step.key.tokens else str(step.key.rows)
        scratch = self.at(f"{step.result.name}.scratch", "float")
        return (
            f"edge_attention({self.heads(step)}, "
            f"{_rows(step.result)}, {keys}, {int(step.causal)}, {step.heads}, {step.group}, {step.size}, "
            f"{_float(step.scale)}, {self.floats(step.result)}, {stride(step.result)}, {scratch});"
        )

    def attend_static(self, step: AttendStatic) -> str:
        found = exponent(step.query_encoding, step.key_encoding, step.scale)
        assert found is not None
        ratio = np.float32(step.value_encoding.scale) / np.float32(step.output.scale)
        offset = np.float32(step.output.zero_point) - np.float32(step.value_encoding.zero_point) * ratio
        factors = ", ".join(map(str, powers(step.key.rows)))
        layer = self.declare("edge_attention8", [
            f"{{{found[0]}, {found[1]}, {{{factors}}}}}", str(step.query_encoding.zero_point), _float(float(ratio)),
            _float(float(offset)), str(step.heads), str(step.group), str(step.size), str(int(step.causal)),
        ])
        panel = self.kernels.mr
        pointers = ", ".join(
            f"{self.bytes(tensor)} + {start * panel}, {stride(tensor)}"
            for tensor, start in zip((step.query, step.key, step.value), step.starts, strict=True)
        )
        keys = "length" if step.key.tokens else str(step.key.rows)
        return (
            f"edge_attention_int8({layer}, {pointers}, {_rows(step.result)}, {keys}, {self.bytes(step.result)}, "
            f"{stride(step.result)}, {self.at(f'{step.result.name}.scratch', 'unsigned char')});"
        )


def _rows(tensor: Tensor) -> str:
    return "tokens" if tensor.tokens else str(tensor.rows)


def _float(value: float) -> str:
    """A C float constant of exactly this float32."""
    return f"{float(np.float32(value)).hex()}f"
