"""What a result comes from, by digest; what Kubeflow is told of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from mdpr import __version__
from mdpr.artifacts import (
    Origin,
    Registration,
    TrackedRun,
    data_digests,
    model_digests,
    read_card,
    write_json,
)
from mdpr.kubeflow.components import summarise

ORIGIN = Origin(repo="https://example.org/shoes.git", rev="v1", path="data/shoes", commit="c" * 40, md5="m.dir")


@pytest.fixture
def prepared(encoded: Mapping[str, Path], tmp_path: Path) -> Path:
    """card.json of a real data set, in a folder that may be changed."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    shutil.copy(encoded["prepared"] / "card.json", folder)
    return folder


def test_the_digest_follows_the_images_and_nothing_else(prepared: Path) -> None:
    card = read_card(prepared)
    digest = data_digests(prepared)["mdpr.data_digest"]
    assert set(data_digests(prepared)) == {"mdpr.data_digest"}
    write_json(prepared / "card.json", card.model_copy(update={"seed": card.seed + 1, "origin": ORIGIN}))
    assert data_digests(prepared)["mdpr.data_digest"] == digest
    write_json(prepared / "card.json", card.model_copy(update={"sha256": card.sha256 | {"val.parquet": "0" * 64}}))
    assert data_digests(prepared)["mdpr.data_digest"] != digest


def test_where_the_source_lies_in_dvc_is_told(prepared: Path) -> None:
    write_json(prepared / "card.json", read_card(prepared).model_copy(update={"origin": ORIGIN}))
    digests = model_digests(prepared, knowledge="k", backbone="b")
    assert {key: value for key, value in digests.items() if key != "mdpr.data_digest"} == {
        "mdpr.version": __version__,
        "mdpr.data_repo": ORIGIN.repo,
        "mdpr.data_rev": "v1",
        "mdpr.data_path": "data/shoes",
        "mdpr.data_commit": "c" * 40,
        "mdpr.data_md5": "m.dir",
        "mdpr.knowledge_digest": "k",
        "mdpr.backbone": "b",
    }
    assert summarise(prepared) == data_digests(prepared)


def test_kubeflow_is_told_the_digests_of_a_model_and_of_a_version(tmp_path: Path) -> None:
    digests = {"mdpr.data_digest": "d", "mdpr.version": "1"}
    model = tmp_path / "model"
    model.mkdir()
    write_json(model / "run.json", TrackedRun(run_id="r", experiment="e", digests=digests))
    assert summarise(model) == {"format": "mdpr-run/1", "run_id": "r", "experiment": "e", **digests}
    version = Registration(
        model_name="m", version="1", run_id="r", model_digest="x", alias="a", source="s", digests=digests
    )
    write_json(tmp_path / "registration", version)
    told = summarise(tmp_path / "registration")
    assert told == json.loads(version.model_dump_json(exclude={"digests"})) | digests
