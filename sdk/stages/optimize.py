"""`optimize`: graph passes that leave what the model computes as it is (`edgesdk.transformer.passes`).

The stage only names the passes; they run whenever the package's graph is written, also after later stages. A pass that
has nothing to do in a form (the float ones after quantization) leaves it alone.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from edgesdk.package import Package
from edgesdk.stages.base import Change, Context, Options, Outline, Stage
from edgesdk.transformer.passes import PASSES


class OptimizeOptions(Options):
    """`passes`: names with commas between them; empty chooses all that change the graph of this model and scheme."""

    passes: str = ""


class Optimize(Stage):
    """Graph passes."""

    name: ClassVar[str] = "optimize"
    options_type: ClassVar[type[Options]] = OptimizeOptions
    options: OptimizeOptions

    def requires(self, outline: Outline) -> list[str]:
        wanted = self._named()
        unknown = [name for name in wanted if name not in PASSES]
        if unknown:
            return [f"no graph pass {name[:50]!r}; there are {', '.join(PASSES)}" for name in unknown]
        reasons = [f"pass {name} is given twice" for name in sorted(set(wanted)) if wanted.count(name) > 1]
        for name in wanted:
            objection = PASSES[name].objection(outline.spec, outline.scheme)
            if name in outline.spec.passes:
                reasons.append(f"pass {name} is applied already")
            elif objection is not None:
                reasons.append(f"pass {name}: {objection}")
        if not wanted and not self._chosen(outline):
            objections = {name: PASSES[name].objection(outline.spec, outline.scheme) for name in PASSES}
            found = [
                f"{name}: {objections[name] or 'applied already'}" for name in PASSES if PASSES[name].by_default
            ]
            reasons.append("no graph pass changes this model; " + "; ".join(found))
        return reasons

    def ensures(self, outline: Outline) -> Outline:
        passes = (*outline.spec.passes, *self._chosen(outline))
        return dataclasses.replace(outline, spec=dataclasses.replace(outline.spec, passes=passes))

    def apply(self, package: Package, context: Context) -> Change:
        return Change(spec=self.ensures(context.outline(package)).spec)

    def _named(self) -> list[str]:
        return [name.strip() for name in self.options.passes.split(",")] if self.options.passes.strip() else []

    def _chosen(self, outline: Outline) -> list[str]:
        if self._named():
            return self._named()
        return [
            name
            for name, entry in PASSES.items()
            if entry.by_default
            and name not in outline.spec.passes
            and entry.objection(outline.spec, outline.scheme) is None
        ]
