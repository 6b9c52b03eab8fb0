"""The sections of params.yaml, in order of the flow: one a stage, and those that stages share."""

from __future__ import annotations

from mdpr.config.data import PrepareParams, ValidateParams
from mdpr.config.delivery import EvaluateParams, PromoteParams, RegisterParams, TrackingParams
from mdpr.config.knowledge import DescribeParams, EncodeParams, ProbeParams
from mdpr.config.section import Section
from mdpr.config.tuning import BackboneParams, TuneParams

SECTIONS: dict[str, type[Section]] = {
    "backbone": BackboneParams,
    "tracking": TrackingParams,
    "prepare": PrepareParams,
    "validate": ValidateParams,
    "probe": ProbeParams,
    "describe": DescribeParams,
    "encode": EncodeParams,
    "tune": TuneParams,
    "evaluate": EvaluateParams,
    "register": RegisterParams,
    "promote": PromoteParams,
}
