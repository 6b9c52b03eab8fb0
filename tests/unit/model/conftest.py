"""The embedded backbone, once for this folder."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from mdpr.model.backbone import Backbone
from mdpr.params import BackboneParams, Section


@pytest.fixture(scope="session")
def params(small_params: Mapping[str, Section]) -> BackboneParams:
    params = small_params["backbone"]
    assert isinstance(params, BackboneParams)
    return params


@pytest.fixture(scope="session")
def backbone(params: BackboneParams) -> Backbone:
    return Backbone.load(params)
