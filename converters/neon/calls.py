"""Steps → C statements: each step is one call of a kernel with constants."""

from __future__ import annotations

import numpy as np

from edgesdk.converters.neon.cache import AttendCached
from edgesdk.converters.neon.layers import dynamic_layer, float_layer, half_layer, static_layer, w8_layer
from edgesdk.converters.neon.memory import stride
from edgesdk.converters.neon.operands import Operands, c_float, rows_of
from edgesdk.converters.neon.packing import ROWS
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
)
from edgesdk.converters.neon.specialize import (
    AttendStatic,
    ByRow,
    NormalizeStatic,
    QuantizeAsMade,
    exponent,
    powers,
)


class Calls(Operands):
    """Writes the calls."""

    def call(self, step: Step) -> str:
        """The C statement of a step."""
        result, rows = step.result, rows_of(step.result)
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
                    f"edge_add_positions({self.floats(step.source)}, {rows_of(step.source)}, {result.columns}, "
                    f"{stride(result)}, {cls}, {self.table(step.positions)}, {self.floats(result)});"
                )
            case Dense():
                return self.dense(step)
            case Quantize():
                inverse = float(np.float32(1.0 / step.encoding.scale))
                return (
                    f"edge_quantize({self.floats(step.source)}, {stride(step.source)}, {rows}, {result.columns}, "
                    f"{c_float(inverse)}, {step.encoding.zero_point}, {self.bytes(result)}, {stride(result)});"
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
                    f"{c_float(step.epsilon)}, {floats}, {c_float(inverse)}, {step.encoding.zero_point}, "
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
                    self.weight(step.weight, "float"), self.weight(step.bias, "float"), c_float(step.epsilon)
                ]
            case RootNormalize():
                weight = self.weight(step.weight.astype(np.float32), "float")
                name, constants = "rmsnorm", [weight, c_float(step.epsilon)]
            case Activate():
                name, constants = step.kind, []
        result = step.result
        sizes = [rows_of(result), str(result.columns), str(stride(result))]
        arguments = [self.floats(step.source), *sizes, *constants, self.floats(result), *more]
        return f"edge_{name}{suffix}({', '.join(arguments)});"

    def quantized(self, step: QuantizeRows) -> str:
        """Where the integers of rows go, with their scales and zero points."""
        return f"(edge_quantized){{{self.scales(step.scales)}, {self.bytes(step.result)}, {stride(step.result)}}}"

    def dense(self, step: Dense) -> str:
        result, rows, source = step.result, rows_of(step.result), step.source
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

    def heads(self, step: Attend) -> str:
        """Query, key and value with their strides."""
        parts = zip((step.query, step.key, step.value), step.starts, strict=True)
        return ", ".join(f"{self.floats(tensor)} + {start}, {stride(tensor)}" for tensor, start in parts)

    def attend_cached(self, step: AttendCached) -> str:
        cache, scratch = (self.at(f"{step.result.name}.{part}", "float") for part in ("cache", "scratch"))
        return (
            f"edge_attention_cached({self.heads(step)}, {rows_of(step.result)}, past, length, {step.heads}, "
            f"{step.group}, {step.size}, {c_float(step.scale)}, {cache}, {step.key.rows}, {self.floats(step.result)}, "
            f"{stride(step.result)}, {scratch});"
        )

    def attend(self, step: Attend) -> str:
        keys = "length" if step.key.tokens else str(step.key.rows)
        scratch = self.at(f"{step.result.name}.scratch", "float")
        return (
            f"edge_attention({self.heads(step)}, "
            f"{rows_of(step.result)}, {keys}, {int(step.causal)}, {step.heads}, {step.group}, {step.size}, "
            f"{c_float(step.scale)}, {self.floats(step.result)}, {stride(step.result)}, {scratch});"
        )

    def attend_static(self, step: AttendStatic) -> str:
        found = exponent(step.query_encoding, step.key_encoding, step.scale)
        assert found is not None
        ratio = np.float32(step.value_encoding.scale) / np.float32(step.output.scale)
        offset = np.float32(step.output.zero_point) - np.float32(step.value_encoding.zero_point) * ratio
        factors = ", ".join(map(str, powers(step.key.rows)))
        layer = self.declare("edge_attention8", [
            f"{{{found[0]}, {found[1]}, {{{factors}}}}}", str(step.query_encoding.zero_point), c_float(float(ratio)),
            c_float(float(offset)), str(step.heads), str(step.group), str(step.size), str(int(step.causal)),
        ])
        panel = self.kernels.mr
        pointers = ", ".join(
            f"{self.bytes(tensor)} + {start * panel}, {stride(tensor)}"
            for tensor, start in zip((step.query, step.key, step.value), step.starts, strict=True)
        )
        keys = "length" if step.key.tokens else str(step.key.rows)
        return (
            f"edge_attention_int8({layer}, {pointers}, {rows_of(step.result)}, {keys}, {self.bytes(step.result)}, "
            f"{stride(step.result)}, {self.at(f'{step.result.name}.scratch', 'unsigned char')});"
        )
