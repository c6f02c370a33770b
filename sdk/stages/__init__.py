"""Stages: the compression steps of a recipe, in one table written by hand."""

from edgesdk.stages.base import Context, Options, Outline, Progress, Stage, outline_of, run_stage
from edgesdk.stages.distill import Distill
from edgesdk.stages.prune_neurons import PruneNeurons
from edgesdk.stages.quantize_ptq import QuantizePtq

STAGES: dict[str, type[Stage]] = {stage.name: stage for stage in (Distill, PruneNeurons, QuantizePtq)}

__all__ = ["STAGES", "Context", "Options", "Outline", "Progress", "Stage", "outline_of", "run_stage"]
