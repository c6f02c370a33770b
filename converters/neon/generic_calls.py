"""Steps of branches and plain operators → C statements (`kernels/edge_generic.h`)."""

from __future__ import annotations

import numpy as np

from edgesdk.converters.neon.branches import Assign, Branch, Join, Otherwise
from edgesdk.converters.neon.calls import Calls
from edgesdk.converters.neon.generic import Generic
from edgesdk.converters.neon.generic_ops import SELF, Shape, View
from edgesdk.converters.neon.memory import stride
from edgesdk.converters.neon.plan import Step, Tensor
from edgesdk.converters.neon.symbols import Input


class AllCalls(Calls):
    """`Calls` for every kind of step; counts the branches. `inputs` are the names of the model's inputs in order."""

    inputs: tuple[str, ...] = ()
    branches = 0

    def call(self, step: Step) -> str:
        match step:
            case Branch():
                index, self.branches = self.branches, self.branches + 1
                return f"if (*{self.floats(step.condition)} != 0.0f) {{ taken[{index}]++;"
            case Otherwise():
                return "} else {"
            case Join():
                return "}"
            case Assign():
                width = step.result.columns
                rows = "tokens" if step.result.tokens else str(step.result.rows)
                return (
                    f"edge_copy({self.floats(step.source)}, {stride(step.source)}, {rows}, {width}, "
                    f"{self.floats(step.result)}, {stride(step.result)});"
                )
            case Generic():
                return self.generic(step)
            case _:
                return super().call(step)

    def generic(self, step: Generic) -> str:
        kernel = step.kernel
        dims = [_dims(sizes) for sizes in kernel.dims]
        result = self.view(kernel.result, step.result)
        if kernel.function == "input":
            source = kernel.operands[0].source
            assert isinstance(source, Input)
            place = {"input_ids": "ids", "attention_mask": "mask"}.get(source.stage)
            if place is None:
                return f"edge_from_float({dims[0]}, {result}, inputs[{self.inputs.index(source.stage)}]);"
            return f"edge_from_int64({dims[0]}, {result}, {place});"
        views = [self.view(view, step.result) for view in kernel.operands]
        if kernel.function == "map":
            padded = [*views, *(views[-1],) * (3 - len(views))]
            return f"EDGE_MAP({', '.join([*dims, result, *padded])}, {kernel.expression});"
        if kernel.function == "reduce":
            return f"EDGE_REDUCE({', '.join([*dims, result, *views])}, {kernel.expression});"
        numbers = [str(n) if isinstance(n, int) else f"{float(np.float32(n)).hex()}f" for n in kernel.numbers]
        return f"edge_{kernel.function}({', '.join([*dims, result, *views, *numbers])});"

    def view(self, view: View, result: Tensor) -> str:
        source = view.source
        if isinstance(source, np.ndarray):
            place = f"(float *){self.weight(source, 'float')}"
        elif isinstance(source, Tensor):
            place = self.floats(source)
        else:
            assert source == SELF
            place = self.floats(result)
        return f"((edge_view){{{place} + {view.offset}, {{{', '.join(map(str, view.steps))}}}}})"


def _dims(sizes: Shape) -> str:
    return f"((const int[6]){{{', '.join(map(str, sizes))}}})"
