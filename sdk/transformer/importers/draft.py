"""What every importer hands over: a spec, weights under canonical names, and the original to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgesdk.errors import ModelError
from edgesdk.transformer.spec import Activation, TransformerSpec

# Names of `hidden_act` in configurations of transformers → the canonical activation.
ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True)
class Draft:
    """An import before it was checked.

    Attributes:
        spec: the canonical form.
        weights: canonical name → tensor of the original; the shapes are those of `spec.weight_shapes()`.
        forward: runs the original on the inputs of the spec and gives the output that the spec promises.
        parts: name of a module of the canonical Transformer → the module of the original with the same output, in the
            order of execution; used to name the first part that diverges.
        labels: names of the classes, where the model has its own.
        padding: token id that the original takes for padding wherever it stands; samples have it there only.
        notes: what the user should know of this import.
        family: name of the family that read the model, where it is another than the one that was asked.
    """

    spec: TransformerSpec
    weights: dict[str, Tensor]
    forward: Callable[[Mapping[str, Tensor]], Tensor]
    parts: Mapping[str, nn.Module] = field(default_factory=dict)
    labels: list[str] | None = None
    padding: int | None = None
    notes: tuple[str, ...] = ()
    family: str | None = None

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The weights as contiguous float32 arrays of their own, in the order of the spec.

        Raises:
            ModelError: a weight is missing, of another shape, not of floating point, or not finite.
        """
        expected = self.spec.weight_shapes()
        arrays: dict[str, NDArray[np.float32]] = {}
        if unknown := sorted(set(self.weights) - set(expected)):
            raise ModelError(f"import: weights without a place in the spec: {unknown[:4]}")
        for name, shape in expected.items():
            tensor = self.weights.get(name)
            if tensor is None:
                raise ModelError(f"import: the model has no weight for {name}")
            if tuple(tensor.shape) != shape:
                raise ModelError(f"import: {name} has shape {list(tensor.shape)}, the configuration says {list(shape)}")
            if not tensor.is_floating_point() or tensor.is_meta:
                found = "an unloaded (meta) tensor" if tensor.is_meta else str(tensor.dtype)
                raise ModelError(f"import: {name} is {found}, expected floating point", "import the model unquantized")
            array = np.array(tensor.detach().cpu().float().numpy(), np.float32, order="C")
            if not np.isfinite(array).all():
                count = int((~np.isfinite(array)).sum())
                raise ModelError(
                    f"import: {name} has {count} values that are not finite (NaN or infinity)",
                    "train or download the model again; such weights cannot be quantized",
                )
            arrays[name] = array
        return arrays


def refuse_config(family: str, key: str, value: object, covered: str) -> NoReturn:
    """Raise ModelError about a configuration key that the importer of `family` does not cover."""
    raise ModelError(
        f"{family} import: config.{key} is {value!r}, covered: {covered}",
        f"change the model so that {key} is {covered}",
    )


def activation_of(family: str, hidden_act: object, key: str = "hidden_act") -> Activation:
    """The canonical activation of a configuration's `hidden_act` (or of `key`); ModelError where it is not covered."""
    if not isinstance(hidden_act, str) or hidden_act not in ACTIVATIONS:
        refuse_config(family, key, hidden_act, ", ".join(ACTIVATIONS))
    return ACTIVATIONS[hidden_act]


def classes_of(family: str, config: Any) -> int:
    """Number of classes of a classification head; ModelError for regression and for several labels at once."""
    problem = getattr(config, "problem_type", None)
    if problem not in (None, "single_label_classification"):
        refuse_config(family, "problem_type", problem, "single_label_classification")
    if config.num_labels < 2:
        refuse_config(family, "num_labels", config.num_labels, "2 or more (classification)")
    return int(config.num_labels)


def labels_of(config: Any, classes: int) -> list[str] | None:
    """Names of the classes from `id2label`; None where transformers made them up (LABEL_0, LABEL_1 …)."""
    names = getattr(config, "id2label", None)
    if not isinstance(names, Mapping):
        return None
    labels = [str(names.get(index, names.get(str(index), ""))) for index in range(classes)]
    made_up = labels == [f"LABEL_{index}" for index in range(classes)]
    return None if made_up or len(set(labels)) < classes or "" in labels else labels


def linear(name: str, layer: nn.Linear) -> dict[str, Tensor]:
    """Weights of a linear layer under its canonical name; zeros where it has no bias."""
    bias = layer.bias if layer.bias is not None else layer.weight.new_zeros(len(layer.weight))
    return {f"{name}.weight": layer.weight, f"{name}.bias": bias}


def norm(name: str, layer: nn.LayerNorm) -> dict[str, Tensor]:
    """Weights of a LayerNorm under its canonical name; zeros where it has no bias.

    Raises:
        ModelError: the norm has no weight (elementwise_affine=False).
    """
    if layer.weight is None:
        raise ModelError(f"import: the LayerNorm {name} has no weights", "use elementwise_affine=True")
    bias = layer.bias if layer.bias is not None else layer.weight.new_zeros(len(layer.weight))
    return {f"{name}.weight": layer.weight, f"{name}.bias": bias}


def refuse_untied(family: str, config: Any, head: nn.Linear, table: nn.Embedding) -> None:
    """Raise ModelError where a decoder's head is not its token table: it is stored once."""
    if not torch.equal(head.weight, table.weight):
        refuse_config(family, "tie_word_embeddings", config.tie_word_embeddings, "True (the token table is the head)")


def decoder_forward(model: Any, head: bool) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """`forward` of a decoder of transformers: its logits where it has a `head`, else its hidden states."""

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        arguments = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        output = model(**arguments, use_cache=False, return_dict=True)
        value: Tensor = output.logits if head else output.last_hidden_state
        return value

    return forward


def comes_from(model: object, module: str, name: str) -> bool:
    """Whether a model is of the class `name` of `module`, or of a subclass; loads no library."""
    return any(cls.__module__ == module and cls.__name__ == name for cls in type(model).__mro__)
