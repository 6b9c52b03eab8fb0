"""What is said about emblems: captions claim what they are given, the knowledge base what is true of its classes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tools.embedded import pretrain_emblems
from tools.embedded.emblem_words import (
    CONTRAST_CLAIMS,
    NOTHING,
    WORDS,
    caption,
    contrast,
    knowledge_base,
    sentences,
    with_article,
)

from mdpr.data.sources.emblems import ATTRIBUTES, build_world

KNOWLEDGE = Path(__file__).resolve().parents[3] / "data" / "embedded" / "knowledge" / "emblems.json"
CAPTIONS = 3_000


def claimed(text: str) -> set[tuple[int, int]]:
    """(attribute, value) of every word or phrase of `WORDS` in a text."""
    return {
        (attribute, value)
        for attribute, options in WORDS.items()
        for value, words in enumerate(options)
        if any(re.search(rf"\b{re.escape(word)}\b", text) for word in words)
    }


@pytest.fixture(scope="module")
def captions() -> list[str]:
    world, random = build_world(), np.random.default_rng(0)
    texts = []
    for _ in range(CAPTIONS):
        index = int(random.integers(len(world.names)))
        claim_A = np.where(random.random(len(ATTRIBUTES)) < 0.4, world.value_CA[index], NOTHING)
        rival = world.names[random.integers(len(world.names))] if random.random() < 0.3 else None
        name = world.names[index] if random.random() < 0.5 else None
        text = caption(claim_A, name, random, rival)
        assert claimed(text) == {(a, v) for a, v in enumerate(claim_A.tolist()) if v != NOTHING}, text
        assert name is None or f" {name}" in f" {text}"
        texts.append(text)
    return texts


def test_the_shipped_knowledge_base_is_what_the_world_says() -> None:
    assert json.loads(KNOWLEDGE.read_text(encoding="utf-8")) == knowledge_base(build_world())


def test_sentences_say_their_attributes_and_a_contrast_what_differs() -> None:
    world = build_world()
    for index in range(len(world.names)):
        expected = [{0, 1}, {2}, {3}, {4}]
        for text, attributes in zip(sentences(world, index).values(), expected, strict=True):
            assert claimed(text) == {(attribute, world.value_CA[index, attribute]) for attribute in attributes}, text
        rival = (index + 1) % len(world.names)
        said = claimed(contrast(world, index, rival))
        assert 0 < len(said) <= CONTRAST_CLAIMS
        assert all(world.value_CA[index, a] == v != world.value_CA[rival, a] for a, v in said)


def test_no_sentence_is_a_caption_and_every_word_is_known(captions: list[str]) -> None:
    texts = [text for item in knowledge_base(build_world())["classes"] for text in item["sentences"].values()]
    assert not {text.lower() for text in texts} & set(captions)
    known = {word for text in captions for word in re.findall(r"[a-z]+", text)}
    assert {word for text in texts for word in re.findall(r"[a-z]+", text.lower())} <= known


def test_articles() -> None:
    assert with_article("orange box") == "an orange box"
    assert with_article("box") == "a box"


def test_no_steps_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain_emblems.main(["--steps", "0", "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()
