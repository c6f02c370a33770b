"""The Python face of EdgeSDK. Nothing heavy is imported until a function is called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

    from edgesdk.pipeline import Build


def build(
    model: Any = None,
    data: Any = None,
    *,
    train_data: Any = None,
    target: str = "host",
    recipe: str | Sequence[str] = (),
    converter: str | Sequence[str] = (),
    goals: Mapping[str, str] | Iterable[str] | None = None,
    board: str | None = None,
    farm: Path | str | None = None,
    sequence: int | None = None,
    seed: int | None = None,
    profile: str = "smoke",
    out: Path | str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Build:
    """Compress, convert, deploy, measure, choose and report; the same as `edgesdk build`.

    Args:
        model: transformers folder, `module:function`, `.edgepkg`, a torch model, or None for the demo.
        data: evaluation data: a path, `module:function`, or an `edgesdk.data.Dataset`.
        train_data: the same for calibration and recovery.
        recipe, converter: a name or several; by default all that the data and the target allow.
        goals: e.g. `{"accuracy": "max-degradation 1", "size": "max 30%"}`.

    Returns:
        the build: `document` (what `--json` prints), `selection`, `record`, paths of report and packages.

    Raises:
        EdgeSDKError: see `edgesdk.errors`. No candidate within the goals is no error: `selection.selected` is None.
    """
    from edgesdk.pipeline import build as run
    from edgesdk.request import Request

    request = Request(
        model=model, data=data, train_data=train_data, target=target,
        recipes=[recipe] if isinstance(recipe, str) else recipe,
        converters=[converter] if isinstance(converter, str) else converter,
        goals=goals, board=board, farm=None if farm is None else Path(farm), sequence=sequence, seed=seed,
        profile=profile, out=None if out is None else Path(out),
    )
    return run(request, progress or (lambda what, done, total: None), lambda text: None)


def results(
    store: Path | str | None = None, *, target: str | None = None, board: str | None = None, model: str | None = None
) -> pandas.DataFrame:
    """Every candidate of every build in the results store, one row each (default: `.edgesdk/results.sqlite`)."""
    from edgesdk.store import Store

    return Store(store, create=False).results(target=target, board=board, model=model)
