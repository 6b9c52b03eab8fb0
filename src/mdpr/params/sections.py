"""The sections of params.yaml, in order of the flow: one a stage, and those that stages share."""

from __future__ import annotations

from mdpr.params.data import PrepareParams, ValidateParams
from mdpr.params.delivery import EvaluateParams, PromoteParams, RegisterParams, TrackingParams
from mdpr.params.knowledge import DescribeParams, EncodeParams, ProbeParams
from mdpr.params.section import Section
from mdpr.params.tuning import BackboneParams, TuneParams

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
