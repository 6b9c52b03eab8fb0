"""Captions measured from pictures: what is measured, what is said, and to which pictures it fits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tools.embedded.fashion_mnist import CLASS_NAMES
from tools.embedded.measured import ATTRIBUTES, NOTHING, PHRASES, draw_caption, fits, knowledge_base, measure
from tools.embedded.zero_shot import KNOWLEDGE_PATH

T_SHIRT, SNEAKER = CLASS_NAMES.index("t-shirt"), CLASS_NAMES.index("sneaker")


def picture(*boxes: tuple[int, int, int, int], grey: int = 200) -> np.ndarray:
    """A picture of filled boxes: first and last row, first and last column, the last ones not included."""
    pixels = np.zeros((28, 28), np.uint8)
    for top, bottom, left, right in boxes:
        pixels[top:bottom, left:right] = grey
    return pixels


BODY, UPPER_ARMS, ARMS = (0, 28, 8, 20), [(2, 12, 3, 8), (2, 12, 20, 25)], [(2, 26, 3, 8), (2, 26, 20, 25)]
BARE, SHORT, LONG = picture(BODY), picture(BODY, *UPPER_ARMS), picture(BODY, *ARMS, grey=90)
FLAT = picture((18, 28, 0, 28))
HEEL = picture((12, 20, 0, 28), (20, 28, 0, 6))


@pytest.fixture(scope="module")
def measured() -> dict[str, list[int]]:
    """attribute -> value of bare, short, long (t-shirts), flat, heel (sneakers)."""
    labels = np.array([T_SHIRT] * 3 + [SNEAKER] * 2)
    value_NA = measure(np.stack([BARE, SHORT, LONG, FLAT, HEEL]), labels)
    return dict(zip(ATTRIBUTES, value_NA.T.tolist(), strict=True))


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("sleeves", ["no sleeves", "short sleeves", "long sleeves", None, None]),
        ("heel", [None, None, None, "a flat sole", "a high heel"]),
        ("tone", ["a bright tone", "a bright tone", "a dark tone", "a bright tone", "a bright tone"]),
        (
            "outline",
            ["a narrow outline", *["a wide outline"] * 2, *["an outline from side to side of the picture"] * 2],
        ),
        ("surface", ["a plain even surface"] * 5),
        ("front", [*["an unbroken front"] * 3, None, None]),
    ],
)
def test_what_a_picture_shows_is_measured(
    measured: dict[str, list[int]], attribute: str, said: list[str | None]
) -> None:
    found = [None if value == NOTHING else PHRASES[attribute][value] for value in measured[attribute]]
    assert found == said


def test_a_caption_fits_all_pictures_of_which_it_is_true() -> None:
    chance = np.random.default_rng(0)
    label_B = chance.integers(0, 3, 40)
    value_BA = chance.integers(NOTHING, 1, (40, len(ATTRIBUTES)))
    said = [draw_caption(value_A, int(label), chance) for value_A, label in zip(value_BA, label_B, strict=True)]
    fits_BB = fits(said, value_BA, label_B)
    assert fits_BB.dtype == torch.bool
    assert fits_BB.diagonal().all()
    assert not fits_BB.all()
    for column, caption in enumerate(said):
        claimed = [
            all(claim in (NOTHING, value) for claim, value in zip(caption.claim_A, value_A, strict=True))
            for value_A in value_BA
        ]
        named = [caption.label in (NOTHING, label) for label in label_B]
        assert fits_BB[:, column].tolist() == [a and b for a, b in zip(claimed, named, strict=True)]
        names = [name for name in CLASS_NAMES if name in caption.text.split()]
        assert names == ([] if caption.label == NOTHING else [CLASS_NAMES[caption.label]])


def test_the_knowledge_base_says_what_is_typical() -> None:
    present = json.loads(KNOWLEDGE_PATH.read_text(encoding="utf-8"))
    labels_N = np.repeat(np.arange(len(CLASS_NAMES)), 2)
    value_NA = measure(np.stack([SHORT, SHORT] + [picture(BODY, *ARMS)] * 18), labels_N)
    made = knowledge_base(present, value_NA, labels_N)
    first, *others = made["classes"]
    assert "short sleeves" in first["sentences"]["functionality"]
    assert all(list(entry["sentences"]) == list(present["dimensions"]) for entry in others)
    assert all("short sleeves" not in sentence for entry in others for sentence in entry["sentences"].values())
    assert "short sleeves" in first["sentences"]["differential_features"]
