"""The embedded default: who has seen which image, what the texts share, and that the weights are what they claim."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tools.embedded import build_dataset, pretrain
from tools.embedded.captions import load_captions
from tools.embedded.fashion_mnist import CLASS_NAMES, hidden_counts, pixel_hash, read_split, select
from tools.embedded.zero_shot import accuracy, class_embeddings, image_features, load_model, preprocess

from mdpr.artifacts import sha256

EMBEDDED = Path(__file__).resolve().parents[3] / "data" / "embedded"
IMAGES, MODEL = EMBEDDED / "fashion-mnist", EMBEDDED / "mdpr-tiny"
SOURCE = Path(os.environ.get("FASHION_MNIST_DIR", build_dataset.DEFAULT_SOURCE))
DIMENSIONS = [
    "general_appearance",
    "fine_grained_appearance",
    "functionality",
    "contextual_information",
    "differential_features",
]
LONGEST_SHARED_RUN_WORDS = 9

needs_source = pytest.mark.skipif(
    not SOURCE.is_dir(), reason=f"the official Fashion-MNIST files are not in {SOURCE}; set FASHION_MNIST_DIR"
)


def read_images(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return a Parquet file's decoded images (N, 28, 28) and labels (N,)."""
    table = pq.read_table(path)
    encoded = table["image"].combine_chunks().field("bytes").to_pylist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in encoded])
    return pixels, table["label"].to_numpy()


def words_of(text: str) -> list[str]:
    """Return a text's words in lower case, without punctuation."""
    return re.findall(r"[a-z0-9-]+", text.lower())


@pytest.fixture(scope="module")
def pool() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return read_images(IMAGES / "pool.parquet")


@pytest.fixture(scope="module")
def test_set() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return read_images(IMAGES / "test.parquet")


@pytest.fixture(scope="module")
def pretraining() -> dict[str, Any]:
    return json.loads((MODEL / "pretraining.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def knowledge() -> dict[str, Any]:
    return json.loads((EMBEDDED / "knowledge" / "fashion-mnist.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def sentences(knowledge: dict[str, Any]) -> list[str]:
    return [
        sentence
        for entry in knowledge["classes"]
        for sentence in (*entry["sentences"].values(), *entry["differential_alternatives"].values())
    ]


class TestImages:
    def test_no_image_of_pool_or_test_was_used_in_pretraining(self, pool, test_set, pretraining):
        seen = set(pretraining["pixel_sha256_first_16_digits"])
        pool_hashes = {pixel_hash(pixels)[: pretrain.HASH_DIGITS] for pixels in pool[0]}
        test_hashes = {pixel_hash(pixels)[: pretrain.HASH_DIGITS] for pixels in test_set[0]}

        assert len(seen) == pretraining["images"] == sum(pretraining["images_per_class"].values())
        assert len(pool_hashes) == len(pool[0])
        assert seen.isdisjoint(pool_hashes)
        assert seen.isdisjoint(test_hashes)
        assert pool_hashes.isdisjoint(test_hashes)

    @needs_source
    def test_recorded_images_are_those_the_selection_gives(self, pool, test_set, pretraining):
        train, test = read_split(SOURCE, "train"), read_split(SOURCE, "t10k")
        selection = select(train, test)
        used = sorted(train.hashes[index][: pretrain.HASH_DIGITS] for index in selection.pretraining)

        assert used == pretraining["pixel_sha256_first_16_digits"]
        np.testing.assert_array_equal(pool[0], train.pixels[selection.pool])
        np.testing.assert_array_equal(pool[1], train.labels[selection.pool])
        np.testing.assert_array_equal(test_set[0], test.pixels)
        np.testing.assert_array_equal(test_set[1], test.labels)

    @needs_source
    def test_building_twice_gives_the_same_bytes(self, tmp_path):
        for folder in ("first", "second"):
            assert build_dataset.main(["--source", str(SOURCE), "--output", str(tmp_path / folder)]) == 0
        # Across versions of Pillow the PNG bytes may differ, so the shipped Parquet files are no yardstick.
        for name in ("pool.parquet", "test.parquet", "card.json", "classes.json", "LICENSE"):
            first = (tmp_path / "first" / name).read_bytes()
            assert first == (tmp_path / "second" / name).read_bytes(), name
        for name in ("classes.json", "LICENSE"):
            assert (tmp_path / "first" / name).read_bytes() == (IMAGES / name).read_bytes(), name

    def test_counts(self, pool, test_set, pretraining):
        assert np.bincount(pool[1]).tolist() == [1_200] * 10
        assert np.bincount(test_set[1]).tolist() == [1_000] * 10
        order = tuple(CLASS_NAMES.index(name) for name in pretraining["hidden_class_order"])
        expected = {CLASS_NAMES[label]: count for label, count in hidden_counts(order).items()}
        assert pretraining["images_per_class"] == expected
        assert max(expected.values()) == 20 * min(expected.values())

    def test_checksums_on_the_card(self):
        card = json.loads((IMAGES / "card.json").read_text(encoding="utf-8"))
        assert set(card["sha256"]) == {"pool.parquet", "test.parquet", "classes.json"}
        for name, checksum in card["sha256"].items():
            assert sha256(IMAGES / name) == checksum, name

    def test_layout_is_hugging_faces(self):
        schema = pq.read_schema(IMAGES / "pool.parquet")
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        assert str(schema.field("image").type) == "struct<bytes: binary, path: string>"
        assert str(schema.field("label").type) == "int64"
        assert features["image"] == {"_type": "Image"}
        assert features["label"] == {"names": list(CLASS_NAMES), "_type": "ClassLabel"}

    @pytest.mark.parametrize("tool", [build_dataset, pretrain])
    def test_missing_source_is_one_line_and_exit_code_2(self, tool, tmp_path, capsys):
        assert tool.main(["--source", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "train-images-idx3-ubyte.gz is missing" in error
        assert not (tmp_path / "out").exists()


class TestTexts:
    def test_knowledge_is_complete(self, knowledge):
        classes = json.loads((IMAGES / "classes.json").read_text(encoding="utf-8"))["classes"]
        names = [entry["name"] for entry in classes]
        assert names == list(CLASS_NAMES)
        assert knowledge["dimensions"] == DIMENSIONS
        assert [entry["name"] for entry in knowledge["classes"]] == names
        assert [entry["index"] for entry in knowledge["classes"]] == list(range(len(names)))
        for entry in knowledge["classes"]:
            assert list(entry["sentences"]) == DIMENSIONS
            rivals = {entry["rival"]: entry["sentences"]["differential_features"]}
            assert not rivals.keys() & entry["differential_alternatives"].keys()
            for rival, sentence in (rivals | entry["differential_alternatives"]).items():
                assert rival in names
                assert rival != entry["name"]
                assert f"{rival}, " in sentence
                assert entry["name"] in sentence.split(", ", maxsplit=1)[1]

    def test_sentences_are_short_distinct_and_name_their_class(self, knowledge, sentences):
        assert len(sentences) == len(set(sentences))
        assert all(8 <= len(sentence.split()) <= 30 for sentence in sentences)
        for entry in knowledge["classes"]:
            assert all(entry["name"] in words for words in map(str.lower, entry["sentences"].values()))
        # A sentence longer than the context is cut, its end token moved to the last slot.
        assert (open_clip.tokenize(sentences)[:, -1] == 0).all()

    def test_no_sentence_is_in_the_captions(self, sentences):
        captions = {" ".join(words_of(caption)) for caption in load_captions().every()}
        normalised = {" ".join(words_of(sentence)) for sentence in sentences}
        assert len(captions) > 10_000
        assert not [s for s in normalised if any(s in caption or caption == s for caption in captions)]

    def test_no_long_run_of_a_sentence_is_in_the_captions(self, sentences):
        length = LONGEST_SHARED_RUN_WORDS + 1
        runs = {run for caption in load_captions().every() for run in _runs(caption, length)}
        assert not [run for sentence in sentences for run in _runs(sentence, length) if run in runs]

    def test_every_word_of_the_knowledge_occurs_in_the_captions(self, sentences):
        known = {word for caption in load_captions().every() for word in words_of(caption)}
        assert not {word for sentence in sentences for word in words_of(sentence)} - known

    def test_every_sampled_caption_is_among_all_captions(self):
        captions = load_captions()
        every, chance = set(captions.every()), np.random.default_rng(0)
        for label in range(len(captions.classes)):
            assert {captions.sample(label, group, chance) for group in captions.frames} <= every


class TestWeights:
    def test_zero_shot_accuracy(self, test_set, pretraining, knowledge):
        model = load_model(MODEL)
        pixels, labels = (part[:2_000] for part in test_set)
        image_Nd = image_features(model, preprocess(pixels, model))
        figures = {
            text: accuracy(image_Nd, class_Cd, torch.tensor(labels))
            for text, class_Cd in class_embeddings(model, knowledge).items()
        }
        assert figures.keys() == {"name", "knowledge_mean", *DIMENSIONS}
        assert figures["name"] > 70
        assert figures["knowledge_mean"] > 70
        assert min(figures[dimension] for dimension in DIMENSIONS) > 60
        claimed = pretraining["zero_shot_accuracy_percent"]["test"]
        assert all(abs(figures[text] - claimed[text]) < 3 for text in claimed)

    def test_preprocessing_is_clips(self):
        settings = load_model(MODEL).visual.preprocess_cfg
        assert settings["size"] == (32, 32)
        assert settings["mean"] == open_clip.OPENAI_DATASET_MEAN
        assert settings["std"] == open_clip.OPENAI_DATASET_STD

    def test_weights_that_do_not_fit_are_an_error(self, tmp_path):
        config = json.loads((MODEL / "mdpr-tiny.json").read_text(encoding="utf-8"))
        config["vision_cfg"]["layers"] += 1
        (tmp_path / "mdpr-tiny.json").write_text(json.dumps(config), encoding="utf-8")
        (tmp_path / "mdpr-tiny.safetensors").write_bytes((MODEL / "mdpr-tiny.safetensors").read_bytes())
        try:
            with pytest.raises(RuntimeError, match="Missing key"):
                load_model(tmp_path)
        finally:
            open_clip.add_model_config(MODEL)


@pytest.mark.parametrize(
    ("path", "limit_mb"),
    [
        (IMAGES / "pool.parquet", 7),
        (IMAGES / "test.parquet", 7),
        (MODEL / "mdpr-tiny.safetensors", 10),
        (EMBEDDED / "emblems" / "emblem-tiny.safetensors", 8),
    ],
)
def test_file_sizes(path, limit_mb):
    assert path.stat().st_size < limit_mb * 1e6


def test_the_whole_default_is_small_and_whole():
    files = [path for path in EMBEDDED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 32e6
    assert not [path for path in files if path.suffix == ".tmp"]


def _runs(text: str, length: int) -> set[str]:
    """Return all runs of `length` words in a text."""
    words = words_of(text)
    return {" ".join(words[start : start + length]) for start in range(len(words) - length + 1)}
