"""The loop behind `edgesdk.stages.train.fit`."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgesdk.code_digest import code_digest
from edgesdk.errors import StageError
from edgesdk.files import canonical_json, sha256_bytes
from edgesdk.stages.base import Context
from edgesdk.stages.forward import autocast, no_denormals, predict, tensors_of
from edgesdk.stages.targets import package_key, validation_score
from edgesdk.stages.train import Loss, TrainingOptions
from edgesdk.stages.train_batches import epoch_batches, take_rows
from edgesdk.stages.train_optimizer import Optimizer
from edgesdk.stages.train_state import Checkpoint, random_states, restore_random_states, state_digest
from edgesdk.transformer.module import Transformer

__all__ = ["Training", "predict", "rate", "structural_zeros", "token_table"]

WARMUP = 0.1
HEAD_FACTOR = 5.0
SECONDS_BETWEEN_CHECKPOINTS = 60.0
TABLE = "embedding.tokens.weight"


class Training:
    """One call of `fit`; the arguments are explained there."""

    def __init__(
        self,
        module: Transformer,
        context: Context,
        options: TrainingOptions,
        loss: Loss,
        what: str,
        extra: nn.Module | None,
        parameters: Iterable[nn.Parameter] | None,
        score: Callable[[Transformer], float] | None,
        after_step: Callable[[int, int], None] | None,
        forward_context: Callable[[], AbstractContextManager[object]] | None,
    ) -> None:
        if context.train is None or len(context.train) == 0:
            raise StageError(f"stage {what}: there is no training data", "give --train-data")
        self.module, self.context, self.options, self.loss, self.what = module, context, options, loss, what
        self.extra, self.data = extra, context.train
        self.after_step = after_step
        self.forward_context = forward_context or contextlib.nullcontext
        self.score = score or functools.partial(validation_score, context)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.per_epoch = math.ceil(len(self.data) / options.batch)
        self.steps = max(1, round(options.epochs * self.per_epoch))
        # Before anything moves: what is zero now by the spec stays zero.
        self.zeros = structural_zeros(module)
        chosen = None if parameters is None else {id(parameter) for parameter in parameters}
        named = [*module.named_parameters(), *_prefixed(extra)]
        self.trained = {
            name: value for name, value in named
            if value.requires_grad and (chosen is None or id(value) in chosen or name.startswith("extra."))
        }
        self.table = token_table(module) if TABLE in self.trained else None
        self.checkpoint = Checkpoint(context.checkpoints, self._key() if context.checkpoints else "")

    def run(self) -> float:
        """See `fit`."""
        frozen = [value for value in self.module.parameters() if value.requires_grad]
        frozen = [value for value in frozen if not any(value is other for other in self.trained.values())]
        devices = [self.device] if self.device.type == "cuda" else []
        precision = autocast(self.module.spec, self.device)
        with torch.random.fork_rng(devices), no_denormals():
            torch.manual_seed(self.context.seed)
            for part in self._parts():
                part.to(self.device)
            self.zeros = {name: mask.to(self.device) for name, mask in self.zeros.items()}
            for value in frozen:
                value.requires_grad_(False)
            if self.table is not None:
                self.table.sparse = True
            try:
                return self._run(precision)
            finally:
                if self.table is not None:
                    self.table.sparse = False
                for value in frozen:
                    value.requires_grad_(True)
                for part in self._parts():
                    part.to("cpu").eval()
                for value in self.trained.values():
                    value.grad = None

    def _run(self, precision: Callable[[], AbstractContextManager[object]]) -> float:
        optimizer = self._optimizer()
        best: dict[str, Tensor] = {}
        facts: dict[str, Any] = {"step": 0, "best": None, "since": 0, "loss": 0.0, "scores": []}
        stored = self.checkpoint.read(self._tensors(optimizer, best))
        if stored is None:
            best = {name: value.detach().clone() for name, value in self._state().items()}
        else:
            tensors, facts = stored
            best = self._load(optimizer, tensors)
            restore_random_states(tensors, self.device)
            if self.after_step is not None:
                self.after_step(facts["step"], self.steps)
        saved = time.monotonic()
        batches: list[NDArray[np.int64]] = []
        while facts["step"] < self.steps and not self._out_of_patience(facts):
            epoch, index = divmod(facts["step"], self.per_epoch)
            if index == 0 or not batches:
                batches = epoch_batches(self.data.inputs, self.options.batch, self.context.seed, epoch)
            value = self._step(optimizer, batches[index], facts["step"], precision)
            facts["step"] += 1
            facts["loss"] = value if facts["step"] == 1 else 0.95 * facts["loss"] + 0.05 * value
            end = facts["step"] % self.per_epoch == 0 or facts["step"] == self.steps
            if end:
                figure = self._validate(precision)
                facts["scores"].append(figure if math.isfinite(figure) else None)
                facts["since"] += 1
                # ">=": later weights of an equal figure have seen the lower learning rates.
                if math.isfinite(figure) and figure >= (-math.inf if facts["best"] is None else facts["best"]):
                    facts["best"], facts["since"] = figure, 0
                    best = {name: value.detach().clone() for name, value in self._state().items()}
            self._show(facts)
            due = time.monotonic() - saved > SECONDS_BETWEEN_CHECKPOINTS
            if (end or due) and self.checkpoint.path is not None:
                self.checkpoint.write(self._tensors(optimizer, best), facts)
                saved = time.monotonic()
        self._restore(best)
        self.checkpoint.remove()
        return -math.inf if facts["best"] is None else float(facts["best"])

    def _step(
        self, optimizer: Optimizer, rows: NDArray[np.int64], step: int,
        precision: Callable[[], AbstractContextManager[object]],
    ) -> float:
        for part in self._parts():
            part.train()
        batch = tensors_of(take_rows(self.data.inputs, rows), self.device)
        optimizer.clear()
        with self.forward_context():
            with precision():
                value = self.loss(self.module, batch, torch.from_numpy(rows).to(self.device))
            value.backward()  # type: ignore[no-untyped-call]
        found = float(value.detach())
        if not math.isfinite(found):
            raise StageError(
                f"stage {self.what}: the loss is {found} at step {step + 1} of {self.steps}", "lower learning_rate"
            )
        optimizer.step(rate(step, self.steps))
        with torch.no_grad():
            for name, mask in self.zeros.items():
                self.module.get_parameter(name).mul_(mask)
        if self.after_step is not None:
            self.after_step(step + 1, self.steps)
        return found

    def _validate(self, precision: Callable[[], AbstractContextManager[object]]) -> float:
        for part in self._parts():
            part.eval()
        with torch.no_grad(), self.forward_context(), precision():
            return float(self.score(self.module))

    def _show(self, facts: Mapping[str, Any]) -> None:
        text = f"{self.what}: loss {facts['loss']:.4f}"
        if facts["scores"] and facts["scores"][-1] is not None:
            text += f", score {facts['scores'][-1]:.4f}"
        self.context.progress(text, facts["step"], self.steps)

    def _out_of_patience(self, facts: Mapping[str, Any]) -> bool:
        return self.options.patience is not None and facts["since"] >= self.options.patience

    def _optimizer(self) -> Optimizer:
        if not self.trained:
            raise StageError(f"stage {self.what}: nothing to train: no parameter was chosen")
        base = self.options.learning_rate
        head = self.options.head_learning_rate or min(0.99, HEAD_FACTOR * base)
        return Optimizer(self.trained, base, head, TABLE if self.table is not None else None)

    def _parts(self) -> Iterator[nn.Module]:
        yield self.module
        if self.extra is not None:
            yield self.extra

    def _state(self) -> dict[str, Tensor]:
        """Every tensor of module and extra, shared ones once."""
        state: dict[str, Tensor] = {}
        seen: set[int] = set()
        extra = {} if self.extra is None else self.extra.state_dict(keep_vars=True)
        named = {**self.module.state_dict(keep_vars=True), **{f"extra.{name}": value for name, value in extra.items()}}
        for name, value in named.items():
            if id(value) not in seen:
                seen.add(id(value))
                state[name] = value
        return state

    def _tensors(self, optimizer: Optimizer, best: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        state = self._state()
        tensors = {f"now.{name}": value for name, value in state.items()}
        tensors |= {f"best.{name}": best.get(name, value) for name, value in state.items()}
        return tensors | optimizer.tensors() | random_states(self.device)

    def _load(self, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put a checkpoint back; returns the best weights so far."""
        self._restore({name: tensors[f"now.{name}"] for name in self._state()})
        optimizer.load(tensors)
        return {name: tensors[f"best.{name}"] for name in self._state()}

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in self._state().items():
                value.copy_(state[name])

    def _key(self) -> str:
        """Digest of everything that decides what the training does."""
        given = (self.context.train, self.context.validation, self.context.calibration)
        sets = [None if data is None else data.digest for data in given]
        functions = (self.loss, self.score, self.after_step, self.forward_context)
        modules = {__name__, *(getattr(function, "__module__", "") for function in functions)}
        parts = [
            self.what, repr(self.module.spec), state_digest(self._state()), sorted(self.trained),
            package_key(self.context.teacher), self.options.model_dump(mode="json"), self.context.seed, sets,
            sorted({code_digest(name) for name in modules}), torch.__version__, self.device.type,
        ]
        return sha256_bytes(canonical_json(parts))[:32]


def structural_zeros(module: Transformer) -> dict[str, Tensor]:
    """Weight name → 1 where it is not zero, of every linear layer in `spec.sparse`."""
    names = sorted({f"{module.spec.stored(name)}.weight" for name in module.spec.sparse})
    return {name: (module.get_parameter(name).detach() != 0).float() for name in names}


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step that counts from 0: up linearly, down as half a cosine."""
    rising = max(1, int(steps * WARMUP))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def token_table(module: Transformer) -> nn.Embedding | None:
    """The table of token rows, where only the rows of a batch get gradients: not where it also makes token logits."""
    table = getattr(module.embedding, "tokens", None)
    return table if isinstance(table, nn.Embedding) and not module.spec.lm_head else None


def _prefixed(extra: nn.Module | None) -> Iterator[tuple[str, nn.Parameter]]:
    if extra is not None:
        for name, value in extra.named_parameters():
            yield f"extra.{name}", value
