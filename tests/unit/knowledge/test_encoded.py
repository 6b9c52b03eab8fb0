"""Lengths in tokens, and the margins that encode writes beside the features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from mdpr.artifacts import ClassKnowledge, Knowledge, read_features, read_json, read_knowledge
from mdpr.knowledge.audit import too_many_tokens
from mdpr.knowledge.audit.encoded import not_discriminating, sentence_margins
from mdpr.knowledge.audit.rules import lines_of
from mdpr.params import DIMENSIONS

BASE = Knowledge(
    provenance={},
    classes=tuple(
        ClassKnowledge(
            index=index,
            name=name,
            sentences={key: f"The {key} of a {name}" + " and so on" * v for v, key in enumerate(DIMENSIONS)},
        )
        for index, name in enumerate(["heron", "crane", "sea gull"])
    ),
)


def test_too_many_tokens_counts_start_and_end() -> None:
    def words(text: str) -> list[int]:
        return [0] * len(text.split())

    longest = max(len(words(text)) for line in lines_of(BASE) for text in [line.sentence])
    assert list(too_many_tokens(BASE, words, longest + 2)) == []
    found = list(too_many_tokens(BASE, words, longest + 1))
    assert found
    assert {item.check for item in found} == {"too_many_tokens"}


def test_margins_are_what_the_definition_says() -> None:
    rng = np.random.default_rng(0)
    sentences_CVd, names_Cd = rng.normal(size=(5, 3, 8)), rng.normal(size=(5, 8))
    margin_CV, nearest_CV = sentence_margins(sentences_CVd, names_Cd, ["a", "b", "c", "d", "b"])
    for c in range(5):
        for v in range(3):
            x = sentences_CVd[c, v]
            cosine_C = np.array([x @ t / np.linalg.norm(x) / np.linalg.norm(t) for t in names_Cd])
            others = [j for j in range(5) if j != c and not {c, j} <= {1, 4}]
            best = max(others, key=lambda j: cosine_C[j])
            assert nearest_CV[c, v] == best
            assert margin_CV[c, v] == pytest.approx(cosine_C[c] - cosine_C[best], abs=1e-6)


def test_a_negative_margin_is_a_warning_that_names_the_other_class() -> None:
    margin_CV = np.full((3, 5), 0.1)
    margin_CV[1, 2] = -0.2
    (finding,) = not_discriminating(BASE, margin_CV, np.zeros((3, 5), dtype=int))
    assert (finding.level, finding.class_name, finding.dimension) == ("warning", "crane", DIMENSIONS[2])
    assert "heron (margin -0.200)" in finding.message


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
