"""Parameters: params.yaml, parsed once into frozen models. One section a stage, and the sections stages share.

Errors name the key, the value and what was allowed:

    tune.base_loss = 'cee': must be one of ce, logit_adjusted, balanced_softmax, ldam, focal, class_balanced
"""

from mdpr.params.data import PrepareParams, ValidateParams
from mdpr.params.delivery import EvaluateParams, PromoteParams, RegisterParams, TrackingParams
from mdpr.params.knowledge import DescribeParams, EncodeParams, LlmParams, ProbeParams
from mdpr.params.parsing import apply_overrides, load_params, parse_params, read_yaml
from mdpr.params.section import DIMENSIONS, Section
from mdpr.params.sections import SECTIONS
from mdpr.params.tuning import BackboneParams, LossParams, TuneParams

__all__ = [
    "DIMENSIONS",
    "SECTIONS",
    "BackboneParams",
    "DescribeParams",
    "EncodeParams",
    "EvaluateParams",
    "LlmParams",
    "LossParams",
    "PrepareParams",
    "ProbeParams",
    "PromoteParams",
    "RegisterParams",
    "Section",
    "TrackingParams",
    "TuneParams",
    "ValidateParams",
    "apply_overrides",
    "load_params",
    "parse_params",
    "read_yaml",
]
