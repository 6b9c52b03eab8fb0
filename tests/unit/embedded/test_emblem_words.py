"""What is said about emblems: captions claim what they are given, the knowledge base what is true of its classes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
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
from tools.embedded.training import Recipe

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


def test_a_caption_fits_its_own_picture_and_those_that_show_what_it_claims() -> None:
    album = pretrain_emblems.Album(build_world(), np.random.default_rng(1), size=64)
    batch = album.batch(np.arange(64), np.random.default_rng(2))
    assert batch.images_B3HW.shape == (64, 3, 32, 32)
    assert batch.fits_BB.diagonal().all()
    for column, text in enumerate(batch.texts):
        shows = [all(album.seen_NA[row, a] == v for a, v in claimed(text)) for row in range(64)]
        fits = batch.fits_BB[:, column].numpy()
        assert not (fits & ~np.array(shows)).any()
        names = [row for row in range(64) if album.label_N[row] >= 0 and fits[row]]
        assert fits.sum() == sum(shows) or len({album.label_N[row] for row in names}) == 1


def test_training_is_deterministic_and_words_that_no_caption_has_are_zero() -> None:
    world = build_world()
    open_clip.add_model_config(pretrain_emblems.CONFIG)

    def trained() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = open_clip.create_model(pretrain_emblems.MODEL_NAME, force_custom_text=True)
        album = pretrain_emblems.Album(world, np.random.default_rng(1), size=64)
        recipe = Recipe(batch=16, warmup_steps=1)
        pretrain_emblems.train(model, album, recipe, 2, np.random.default_rng(2))
        return {name: value.clone() for name, value in model.state_dict().items()}

    first, again = trained(), trained()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    embedding = first["text.token_embedding.weight"]
    said = open_clip.get_tokenizer(pretrain_emblems.MODEL_NAME).encode("a")
    assert embedding[said].abs().sum() > 0
    assert (embedding.abs().sum(dim=1) == 0).float().mean() > 0.98


def test_no_steps_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain_emblems.main(["--steps", "0", "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()
