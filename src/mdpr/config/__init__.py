"""Parameters: params.yaml, parsed once into frozen models. One section a stage, and the sections stages share.

Errors name the key, the value and what was allowed:

    tune.base_loss = 'cee': must be one of ce, logit_adjusted, balanced_softmax, ldam, focal, class_balanced
"""

from mdpr.config.data import PrepareParams, ValidateParams
from mdpr.config.delivery import EvaluateParams, PromoteParams, RegisterParams, TrackingParams
from mdpr.config.knowledge import DescribeParams, EncodeParams, LlmParams, ProbeParams
from mdpr.config.parsing import apply_overrides, load_params, parse_params, read_yaml
from mdpr.config.section import DIMENSIONS, Section
from mdpr.config.sections import SECTIONS
from mdpr.config.tuning import BackboneParams, LossParams, TuneParams

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
