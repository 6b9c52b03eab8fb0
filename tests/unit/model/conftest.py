"""The embedded backbone, once for this folder."""

from __future__ import annotations

import pytest

from mdpr.model.backbone import Backbone
from mdpr.params import BackboneParams, Params


@pytest.fixture(scope="session")
def params(small_params: Params) -> BackboneParams:
    return small_params.backbone


@pytest.fixture(scope="session")
def backbone(params: BackboneParams) -> Backbone:
    return Backbone.load(params)
