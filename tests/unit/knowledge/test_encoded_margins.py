"""The margins that encode writes beside the features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mdpr.artifacts import read_features, read_json, read_knowledge


def test_encode_writes_a_margin_a_sentence_and_warns_of_the_negative_ones(encoded: Mapping[str, Path]) -> None:
    knowledge = read_knowledge(encoded["knowledge"] / "knowledge.json")
    audit = read_json(encoded["features"] / "audit.json")
    margin_CV = np.array(audit["margin_CV"])
    prior_CV = read_features(encoded["features"], [item.name for item in knowledge.classes]).prior_CV
    assert margin_CV.shape == prior_CV.shape
    assert (margin_CV <= prior_CV + 1.0001).all()  # a margin is M less a cosine, which is at least -1
    warned = {(item["class_index"], item["dimension"]) for item in audit["findings"]}
    negative = {(int(c), knowledge.dimensions[v]) for c, v in zip(*np.nonzero(margin_CV < 0), strict=True)}
    assert warned == negative
