"""Rounding of a weight to the numbers of its encoding so that the layer's output changes little.

With X the inputs of a layer and H = E[x·xᵀ], rounding a row w to ŵ adds the mean squared error (w − ŵ)·H·(w − ŵ)ᵀ to
its output. Both methods lower that number, and a row that they do not better keeps the nearest numbers.

`gptq`: column by column, what a column loses is made good by the columns after it (Frantar et al. 2022,
arXiv:2210.17323), columns of large inputs first. `adaround`: every weight goes up or down, learned by a rectified
sigmoid under the same error (Nagel et al. 2020, arXiv:2004.10568).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgesdk.encodings import WeightEncoding
from edgesdk.transformer.quantize import dequantized

Matrix = NDArray[np.float32]

DAMPING = 0.01  # share of the mean diagonal that is added to H before it is inverted
BLOCK = 128  # columns that GPTQ rounds before it updates all that are left

# AdaRound: the sigmoid is stretched to [LOW, HIGH] and clipped to [0, 1]; β falls from FIRST_BETA to LAST_BETA after
# the share WARM of the iterations, in which nothing pulls towards 0 and 1.
LOW, HIGH = -0.1, 1.1
FIRST_BETA, LAST_BETA, WARM = 20.0, 2.0, 0.2
LEARNING_RATE, PULL = 0.1, 2.0


def output_error(weight: Matrix, rounded: Matrix, hessian: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean squared error of each output, [N]: weights [N, K], H [K, K]."""
    delta = weight.astype(np.float64) - rounded
    return np.asarray(((delta @ hessian) * delta).sum(1))


def steps_of(encoding: WeightEncoding, inputs: int) -> Matrix:
    """The step [N, K] (or [N, 1]) between neighbouring numbers of the encoding."""
    if encoding.multiplier is None or encoding.group is None:
        return encoding.scale[:, None]
    steps = encoding.scale[:, None] * encoding.multiplier.astype(np.float32)
    return np.repeat(steps, encoding.group, axis=1).astype(np.float32)


def limits_of(encoding: WeightEncoding) -> tuple[int, int]:
    """Smallest and largest integer of the encoding."""
    return (-127, 127) if encoding.bits == 8 else (-8, 7)


def gptq(
    weight: Matrix, encoding: WeightEncoding, hessian: NDArray[np.float64], kept: NDArray[np.bool_] | None = None
) -> Matrix:
    """The weight [N, K] as numbers of its encoding; places where `kept` [N, K] is False stay zero."""
    inputs = weight.shape[1]
    order = np.argsort(-np.diag(hessian), kind="stable")
    steps = np.broadcast_to(steps_of(encoding, inputs), weight.shape)[:, order].astype(np.float64)
    mask = np.ones(weight.shape, bool) if kept is None else kept
    low, high = limits_of(encoding)
    left = weight[:, order].astype(np.float64)
    mask = mask[:, order]
    factor = _inverse_factor(hessian[np.ix_(order, order)])
    rounded = np.zeros_like(left)
    for start in range(0, inputs, BLOCK):
        end = min(start + BLOCK, inputs)
        errors = np.zeros((len(weight), end - start))
        for column in range(start, end):
            step = steps[:, column]
            value = np.clip(np.rint(left[:, column] / step), low, high) * step * mask[:, column]
            rounded[:, column] = value
            error = (left[:, column] - value) / factor[column, column]
            left[:, column:end] -= np.outer(error, factor[column, column:end])
            errors[:, column - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    result = np.empty_like(rounded)
    result[:, order] = rounded
    return _better(weight, dequantized(result.astype(np.float32), encoding), encoding, hessian)


def _inverse_factor(hessian: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper triangular U with Uᵀ·U = (H + damping)⁻¹. More damping where H is too close to singular."""
    diagonal = np.diag(hessian)
    level = max(float(diagonal.mean()), 1e-12)
    damping = DAMPING
    while True:
        damped = hessian + np.diag(np.where(diagonal > 0, damping * level, level))
        try:
            return np.asarray(np.linalg.cholesky(np.linalg.inv(damped)).T)
        except np.linalg.LinAlgError:
            damping *= 10.0


def adaround(
    weight: Matrix,
    encoding: WeightEncoding,
    hessian: NDArray[np.float64],
    kept: NDArray[np.bool_] | None = None,
    iterations: int = 300,
) -> Matrix:
    """The weight [N, K] as numbers of its encoding; places where `kept` [N, K] is False stay zero.

    The reconstruction error of the whole calibration set is a quadratic form in H, so every iteration has its exact
    gradient: there are no batches and nothing random.
    """
    import torch

    steps = torch.from_numpy(np.broadcast_to(steps_of(encoding, weight.shape[1]), weight.shape).copy())
    original = torch.from_numpy(np.array(weight, np.float32))
    low, high = limits_of(encoding)
    floor = torch.floor(original / steps)
    share = (original / steps - floor).clamp(0.01, 0.99)
    # h(V) = share at the start: the weights as they are.
    values = torch.logit((share - LOW) / (HIGH - LOW)).requires_grad_()
    level = max(float(np.diag(hessian).mean()), 1e-12)
    # In units of the mean squared step, so that one pull fits every layer.
    matrix = torch.from_numpy((hessian / level).astype(np.float32))
    unit = float(steps.square().mean())
    free = torch.ones_like(original, dtype=torch.bool) if kept is None else torch.from_numpy(np.array(kept))
    optimizer = torch.optim.Adam([values], lr=LEARNING_RATE)
    for iteration in range(iterations):
        up = (torch.sigmoid(values) * (HIGH - LOW) + LOW).clamp(0.0, 1.0)
        delta = torch.where(free, (floor + up).clamp(low, high) * steps - original, 0.0)
        with torch.no_grad():
            gradient = 2.0 * (delta @ matrix) / unit
        loss = (gradient * delta).sum()
        done = iteration / iterations
        if done > WARM:
            beta = LAST_BETA + (FIRST_BETA - LAST_BETA) * 0.5 * (1.0 + np.cos(np.pi * (done - WARM) / (1.0 - WARM)))
            loss = loss + PULL * (1.0 - (2.0 * up - 1.0).abs().pow(beta)).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        chosen = torch.where(free, (floor + (values > 0)).clamp(low, high) * steps, 0.0)
    return _better(weight, dequantized(chosen.numpy(), encoding), encoding, hessian)


def _better(
    weight: Matrix, rounded: Matrix, encoding: WeightEncoding, hessian: NDArray[np.float64]
) -> Matrix:
    """Row by row the better of `rounded` and the nearest numbers."""
    nearest = dequantized(weight, encoding)
    wins = output_error(weight, rounded, hessian) < output_error(weight, nearest, hessian)
    return np.where(wins[:, None], rounded, nearest).astype(np.float32)
