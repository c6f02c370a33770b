"""Stages: the compression steps of a recipe, in one table written by hand."""

from edgesdk.stages.base import Context, Options, Outline, Progress, Stage, outline_of, run_stage
from edgesdk.stages.distill import Distill
from edgesdk.stages.exit_early import ExitEarly
from edgesdk.stages.exit_thresholds import ExitThresholds
from edgesdk.stages.factorize import Factorize
from edgesdk.stages.optimize import Optimize
from edgesdk.stages.prune_heads import PruneHeads
from edgesdk.stages.prune_layers import PruneLayers
from edgesdk.stages.prune_neurons import PruneNeurons
from edgesdk.stages.prune_vocabulary import PruneVocabulary
from edgesdk.stages.prune_weights import PruneWeights
from edgesdk.stages.quantize_ptq import QuantizePtq
from edgesdk.stages.quantize_qat import QuantizeQat
from edgesdk.stages.route_skip import RouteSkip
from edgesdk.stages.share_kv_heads import ShareKvHeads
from edgesdk.stages.share_layers import ShareLayers

STAGES: dict[str, type[Stage]] = {
    stage.name: stage
    for stage in (
        Distill, ExitEarly, ExitThresholds, Factorize, Optimize, PruneHeads, PruneLayers, PruneNeurons, PruneVocabulary,
        PruneWeights, QuantizePtq, QuantizeQat, RouteSkip, ShareKvHeads, ShareLayers,
    )
}

__all__ = ["STAGES", "Context", "Options", "Outline", "Progress", "Stage", "outline_of", "run_stage"]
