"""Emblems: pictures drawn from a seed, about which everything is known. The controlled counterpart to photographs.

A picture (32 x 32) has a body with a silhouette and a colour, a mark on it, a tool in a corner and a scene behind.
A class is one value of each of these five attributes, and a name that means nothing. In every picture each attribute
is in a state of its own, drawn at random:

    shown     the value of the class
    absent    something neutral: a blob, grey, no mark, no tool, an even background
    foreign   another value than the class's, with a cue: a black patch beside a foreign mark, a red plate under a
              foreign tool, a white frame around a foreign scene

So the sentences of a class say what its name does not, which of them a picture bears out differs by picture, and both
are known. N pictures, C classes, A attributes, K values of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from mdpr.artifacts import ClassName, Split
from mdpr.artifacts.truth import STATES, ClassTruth, Truth, WorldTruth
from mdpr.data.sources.source import Place, Source, SourceImage, encode_png

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": ("disc", "square", "triangle", "plus", "diamond", "pennant"),
    "colour": ("red", "orange", "yellow", "green", "blue", "purple"),
    "mark": ("stripes", "dots", "checks", "crossed lines", "columns", "one big spot"),
    "tool": ("key", "cup", "flag", "ladder", "umbrella", "wheel"),
    "scene": ("meadow", "desert", "sea", "night sky", "brick wall", "snow"),
}
SHAPE, COLOUR, MARK, TOOL, SCENE = range(len(ATTRIBUTES))
VALUES = 6
SHOWN, ABSENT, FOREIGN = range(len(STATES))

# The attributes that a dimension's sentences are about; a contrast is about those that differ, others in each class.
DIMENSIONS_SHOW: dict[str, tuple[str, ...]] = {
    "general_appearance": ("shape", "colour"),
    "fine_grained_appearance": ("mark",),
    "functionality": ("tool",),
    "contextual_information": ("scene",),
}

# Probability of absent and of foreign, per attribute in the order of ATTRIBUTES.
SETTINGS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "absent": ((0.35, 0.35, 0.35, 0.35, 0.35), (0.0, 0.0, 0.0, 0.0, 0.0)),
    "foreign": ((0.25, 0.25, 0.15, 0.15, 0.15), (0.0, 0.0, 0.3, 0.3, 0.3)),
}

CLASSES = 80
WORLD_SEED = 20_261  # classes, names and hidden shares: those of the shipped weights and knowledge base
TEST_SEED = 7_919  # every model is judged by the same pictures, whatever prepare.seed draws for training
POOL_PER_CLASS = 1_000
TEST_PER_CLASS = 40
HIDDEN_RATIO = 50
ENDINGS = ("ax", "ib", "ek", "oz", "uv", "om")  # of names
SIDE_PX = 32
TOOL_PX = 9
BODY_PX = (15, 17, 19)


@dataclass(frozen=True)
class World:
    """The classes: names, values int64 (C, A), and each one's share of the named pictures of pre-training."""

    names: tuple[str, ...]
    value_CA: np.ndarray
    hidden_share_C: np.ndarray

    def shared_CC(self) -> np.ndarray:
        """How many values two classes have in common, int64 (C, C)."""
        return (self.value_CA[:, None] == self.value_CA[None]).sum(axis=2)


@dataclass(frozen=True)
class Pictures:
    """The content of N pictures: their classes (N,), the state of each attribute and the value drawn for it (N, A)."""

    labels_N: np.ndarray
    state_NA: np.ndarray
    drawn_NA: np.ndarray


def emblems_source(place: Place) -> Source:
    """Pictures of `prepare.emblems`, drawn from `prepare.seed`; the test set is the same for every seed."""
    world = build_world()
    return Source(
        classes=tuple(ClassName(index=index, name=name) for index, name in enumerate(world.names)),
        pool=EmblemSplit.draw("pool", world, place.params.emblems, (place.params.seed, 0), POOL_PER_CLASS),
        val=None,
        test=EmblemSplit.draw("test", world, place.params.emblems, (TEST_SEED, 1), TEST_PER_CLASS),
        truth=partial(_truth, world),
    )


@dataclass(frozen=True)
class EmblemSplit:
    """Pictures that are drawn when they are read. Row r has a random generator of its own, `(*seed, r)`."""

    name: str
    pictures: Pictures
    seed: tuple[int, ...]

    @classmethod
    def draw(cls, name: str, world: World, setting: str, seed: tuple[int, ...], per_class: int) -> EmblemSplit:
        """`per_class` pictures of each class, class by class; `setting` is a key of `SETTINGS`."""
        random = np.random.default_rng(seed)
        labels_N = np.repeat(np.arange(len(world.names)), per_class)
        return cls(name, draw_pictures(labels_N, world.value_CA[labels_N], *SETTINGS[setting], random), seed)

    @property
    def labels_N(self) -> np.ndarray:
        return self.pictures.labels_N

    def images(self, rows: np.ndarray) -> Iterator[SourceImage]:
        for row in rows.tolist():
            path = self.path(row)
            yield SourceImage(partial(self._png, row), path, int(self.labels_N[row]), path)

    def path(self, row: int) -> str:
        return f"{self.name}/{row:05}.png"

    def _png(self, row: int) -> bytes:
        random = np.random.default_rng((*self.seed, row))
        return encode_png(render(self.pictures.drawn_NA[row], self.pictures.state_NA[row], random))


def _truth(world: World, chosen: Mapping[Split, tuple[EmblemSplit, np.ndarray]]) -> Truth:
    """The truth about the pictures of the rows chosen of each split."""
    tables = []
    for split, (source, rows) in chosen.items():
        pictures = source.pictures
        table = {"split": split, "path": [source.path(row) for row in rows], "label": pictures.labels_N[rows]}
        for index, (attribute, words) in enumerate(ATTRIBUTES.items()):
            state_N = pictures.state_NA[rows, index]
            table[attribute] = np.where(state_N == ABSENT, "", np.array(words)[pictures.drawn_NA[rows, index]])
            table[f"{attribute}_state"] = np.array(STATES)[state_N]
        for dimension, attributes in DIMENSIONS_SHOW.items():
            is_shown = np.any([table[f"{attribute}_state"] == "shown" for attribute in attributes], axis=0)
            table[dimension] = np.where(is_shown, "shown", table[f"{attributes[0]}_state"])
        tables.append(pd.DataFrame(table))
    classes = tuple(
        ClassTruth(
            index=index,
            name=name,
            values={key: words[value] for (key, words), value in zip(ATTRIBUTES.items(), value_A, strict=True)},
            hidden_share=float(share),
        )
        for index, (name, value_A, share) in enumerate(
            zip(world.names, world.value_CA, world.hidden_share_C, strict=True)
        )
    )
    return Truth(WorldTruth(dimensions=DIMENSIONS_SHOW, classes=classes), pd.concat(tables, ignore_index=True))


@cache
def build_world() -> World:
    """Combinations of values in pairs: two classes of a pair share three values, any others at most two."""
    random = np.random.default_rng(WORLD_SEED)
    chosen: list[np.ndarray] = []

    def is_apart(value_A: np.ndarray) -> bool:
        return all((value_A == other_A).sum() <= 2 for other_A in chosen)

    while len(chosen) < CLASSES:
        first_A = random.integers(0, VALUES, len(ATTRIBUTES))
        second_A = first_A.copy()
        changed = random.permutation(len(ATTRIBUTES))[:2]
        second_A[changed] = (second_A[changed] + random.integers(1, VALUES, 2)) % VALUES
        if is_apart(first_A) and is_apart(second_A):
            chosen += [first_A, second_A]
    value_CA = np.array(chosen)[random.permutation(CLASSES)]
    rank_C = random.permutation(CLASSES)
    share_C = HIDDEN_RATIO ** (-rank_C / (CLASSES - 1))
    return World(_names(random), value_CA, share_C / share_C.sum())


def _names(random: np.random.Generator) -> tuple[str, ...]:
    """Words of two syllables that are in no dictionary."""
    parts = (*"bdfgkmpvz", "bl", "dr", "fl", "gr", "kl", "pl", "sn", "tr"), "aeiou", "bdfgkmnprtvz", ENDINGS
    names: dict[str, None] = {}
    while len(names) < CLASSES:
        names["".join(part[random.integers(len(part))] for part in parts)] = None
    return tuple(names)


def draw_pictures(
    labels_N: np.ndarray,
    true_NA: np.ndarray,
    absent_A: tuple[float, ...],
    foreign_A: tuple[float, ...],
    random: np.random.Generator,
) -> Pictures:
    """States at random by their probabilities, and what is drawn: for foreign any value but the true one."""
    chance_NA = random.random(true_NA.shape)
    absent, foreign = np.array(absent_A), np.array(foreign_A)
    state_NA = np.where(chance_NA < absent, ABSENT, np.where(chance_NA < absent + foreign, FOREIGN, SHOWN))
    other_NA = (true_NA + random.integers(1, VALUES, true_NA.shape)) % VALUES
    return Pictures(labels_N, state_NA, np.where(state_NA == FOREIGN, other_NA, true_NA))


def render(drawn_A: np.ndarray, state_A: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One picture, uint8 (32, 32, 3): scene, then body with its mark, then tool, then the cues of what is foreign."""
    pixels = _scene(drawn_A[SCENE] if state_A[SCENE] != ABSENT else None, random)
    side = BODY_PX[random.integers(len(BODY_PX))]
    top, left = (SIDE_PX - side) // 2 + random.integers(-3, 4, 2)
    outline = _silhouette(drawn_A[SHAPE], side) if state_A[SHAPE] != ABSENT else _blob(side, random)
    body = pixels[top : top + side, left : left + side]
    body += outline[..., None] * (_surface(drawn_A, state_A, side, random) - body)
    corners = random.permutation(4)
    if state_A[TOOL] != ABSENT:
        plate = (0.85, 0.1, 0.1) if state_A[TOOL] == FOREIGN else (0.95, 0.95, 0.9)
        ink = _tool(drawn_A[TOOL])[..., None]
        _corner(pixels, corners[0], TOOL_PX)[:] = np.array(plate) * (1 - ink) + 0.05 * ink
    if state_A[MARK] == FOREIGN:
        _corner(pixels, corners[1], 6)[:] = 0.02
    if state_A[SCENE] == FOREIGN:
        for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
            edge[:] = 1
    return (pixels.clip(0, 1) * 255).astype(np.uint8)


def _corner(pixels: np.ndarray, corner: int, side: int) -> np.ndarray:
    """View of a square of `side` pixels in one of the four corners."""
    rows = slice(0, side) if corner < 2 else slice(SIDE_PX - side, SIDE_PX)
    columns = slice(0, side) if corner % 2 == 0 else slice(SIDE_PX - side, SIDE_PX)
    return pixels[rows, columns]


COLOURS = np.array(
    [
        (0.86, 0.16, 0.16),
        (0.96, 0.59, 0.12),
        (0.98, 0.88, 0.24),
        (0.2, 0.67, 0.27),
        (0.2, 0.35, 0.86),
        (0.59, 0.24, 0.71),
    ]
)


def _surface(drawn_A: np.ndarray, state_A: np.ndarray, side: int, random: np.random.Generator) -> np.ndarray:
    """Colour and mark of the body, (side, side, 3); a mark is light on dark colours and dark on light ones."""
    if state_A[COLOUR] == ABSENT:
        colour = np.full(3, random.uniform(0.45, 0.6))
    else:
        colour = COLOURS[drawn_A[COLOUR]] * random.uniform(0.85, 1.1)
    ink = 0.97 if colour.mean() < 0.6 else 0.08
    inked = _mark(drawn_A[MARK], side)[..., None] if state_A[MARK] != ABSENT else 0.0
    return colour * (1 - inked) + ink * inked


def _scene(value: int | None, random: np.random.Generator) -> np.ndarray:
    """The background, float64 (32, 32, 3); None is an even grey."""
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    phase = random.uniform(0, 2 * np.pi)
    grey = random.uniform(0.35, 0.75)
    base = (
        (0.45, 0.72, 0.3),
        (0.9, 0.78, 0.5),
        (0.2, 0.55, 0.7),
        (0.05, 0.06, 0.18),
        (0.6, 0.3, 0.25),
        (0.93, 0.95, 0.98),
    )
    pixels = np.empty((SIDE_PX, SIDE_PX, 3))
    pixels[:] = (grey, grey, grey) if value is None else base[value]
    name = "" if value is None else ATTRIBUTES["scene"][value]
    if name == "meadow":
        pixels += random.normal(0, 0.09, (SIDE_PX, SIDE_PX, 1))
    elif name == "desert":
        pixels += 0.07 * np.sin(y / 2.2 + x / 9 + phase)[..., None]
    elif name == "sea":
        pixels += 0.12 * np.sin(y * 1.3 + np.sin(x / 3 + phase))[..., None]
    elif name == "brick wall":
        y = y + random.integers(4)
        pixels[(y % 4 == 0) | ((x + 4 * (y // 4 % 2)) % 8 == 0)] = (0.8, 0.75, 0.7)
    elif name in ("night sky", "snow"):
        count, ink = (24, (0.95, 0.95, 0.95)) if name == "night sky" else (40, (0.75, 0.82, 0.92))
        pixels[random.integers(0, SIDE_PX, count), random.integers(0, SIDE_PX, count)] = ink
    return pixels + random.normal(0, 0.03, (SIDE_PX, SIDE_PX, 1))


def _blob(side: int, random: np.random.Generator) -> np.ndarray:
    """A round body without a shape of its own: a circle whose radius wavers at random."""
    v, u = (np.mgrid[:side, :side] + 0.5) / side * 2 - 1
    waves = [random.normal(0, 0.07) * np.cos(n * np.arctan2(v, u) + random.uniform(0, 2 * np.pi)) for n in (2, 3, 5)]
    return ((0.72 + sum(waves) - np.hypot(u, v)) * side / 2 + 0.5).clip(0, 1)


OVERSAMPLING = 4
POLYGONS = {  # corners in the unit square
    "square": ((0.08, 0.08), (0.92, 0.08), (0.92, 0.92), (0.08, 0.92)),
    "triangle": ((0.5, 0.02), (0.98, 0.95), (0.02, 0.95)),
    "diamond": ((0.5, 0), (0.85, 0.5), (0.5, 1), (0.15, 0.5)),
    "pennant": ((0.02, 0.1), (0.98, 0.1), (0.5, 0.55), (0.98, 0.98), (0.02, 0.98)),
    "plus": (
        *((0.33, 0), (0.67, 0), (0.67, 0.33), (1, 0.33), (1, 0.67), (0.67, 0.67)),
        *((0.67, 1), (0.33, 1), (0.33, 0.67), (0, 0.67), (0, 0.33), (0.33, 0.33)),
    ),
}


@cache
def _silhouette(value: int, side: int) -> np.ndarray:
    """How much of each pixel a shape covers, (side, side) in 0..1."""
    image = Image.new("L", (OVERSAMPLING * side, OVERSAMPLING * side))
    draw, last = ImageDraw.Draw(image), OVERSAMPLING * side - 1
    name = ATTRIBUTES["shape"][value]
    if name == "disc":
        draw.ellipse((0, 0, last, last), fill=255)
    else:
        draw.polygon([(x * last, y * last) for x, y in POLYGONS[name]], fill=255)
    return _shrink(image, side)


@cache
def _mark(value: int, side: int) -> np.ndarray:
    """Where a mark is, (side, side), 0 or 1."""
    y, x = np.mgrid[:side, :side]
    v, u = (np.stack([y, x]) + 0.5) / side * 2 - 1
    masks = {
        "stripes": y % 5 < 2,
        "dots": (x % 6 - 2.5) ** 2 + (y % 6 - 2.5) ** 2 < 3.2,
        "checks": (x // 4 + y // 4) % 2 == 0,
        "crossed lines": (abs(u - v) < 0.22) | (abs(u + v) < 0.22),
        "columns": x % 5 < 2,
        "one big spot": u**2 + v**2 < 0.16,
    }
    return masks[ATTRIBUTES["mark"][value]].astype(float)


@cache
def _tool(value: int) -> np.ndarray:
    """How much of each pixel a tool covers, (9, 9) in 0..1."""
    image = Image.new("L", (OVERSAMPLING * TOOL_PX, OVERSAMPLING * TOOL_PX))
    draw = ImageDraw.Draw(image)
    name = ATTRIBUTES["tool"][value]
    if name == "key":
        draw.ellipse((4, 10, 18, 24), outline=255, width=5)
        draw.line((18, 17, 33, 17), fill=255, width=5)
        draw.line((29, 17, 29, 26), fill=255, width=5)
    elif name == "cup":
        draw.rectangle((7, 10, 23, 30), fill=255)
        draw.arc((18, 12, 32, 26), -90, 90, fill=255, width=4)
    elif name == "flag":
        draw.line((8, 3, 8, 33), fill=255, width=5)
        draw.polygon([(8, 4), (32, 11), (8, 19)], fill=255)
    elif name == "ladder":
        for x in (9, 27):
            draw.line((x, 2, x, 34), fill=255, width=4)
        for y in (8, 18, 28):
            draw.line((9, y, 27, y), fill=255, width=4)
    elif name == "umbrella":
        draw.pieslice((2, 4, 34, 34), 180, 360, fill=255)
        draw.line((18, 18, 18, 34), fill=255, width=4)
    else:
        draw.ellipse((4, 4, 32, 32), outline=255, width=5)
        draw.line((4, 18, 32, 18), fill=255, width=4)
        draw.line((18, 4, 18, 32), fill=255, width=4)
    return _shrink(image, TOOL_PX)


def _shrink(image: Image.Image, side: int) -> np.ndarray:
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), dtype=float) / 255
