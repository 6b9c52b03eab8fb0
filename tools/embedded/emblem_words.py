"""Texts about emblems: captions for pre-training, and the sentences of the knowledge base.

    python -m tools.embedded.emblem_words    # data/embedded/knowledge/emblems.json

A claim is an attribute's value, or -1 if nothing is said about it. Both use the same words, because a small text
tower knows no others; no sentence of the knowledge base is a caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdpr.artifacts import write_json
from mdpr.data.sources.emblems import ATTRIBUTES, COLOUR, MARK, SCENE, SHAPE, TOOL, World, build_world
from mdpr.params import DIMENSIONS

# Two words for each value, in the order of ATTRIBUTES.
WORDS = {
    SHAPE: (
        *(("disc", "round shape"), ("square", "box"), ("triangle", "pyramid")),
        *(("plus", "cross shape"), ("diamond", "rhombus"), ("pennant", "notched shape")),
    ),
    COLOUR: (
        *(("red", "crimson"), ("orange", "amber"), ("yellow", "golden")),
        *(("green", "emerald"), ("blue", "azure"), ("purple", "violet")),
    ),
    MARK: (
        *(("stripes", "level bars"), ("dots", "small spots"), ("checks", "a chequered pattern")),
        *(("crossed lines", "a saltire"), ("columns", "upright bars"), ("one big spot", "a large bullseye")),
    ),
    TOOL: (
        *(("key", "latchkey"), ("cup", "mug"), ("flag", "banner")),
        *(("ladder", "stepladder"), ("umbrella", "parasol"), ("wheel", "tyre")),
    ),
    SCENE: (
        *(("meadow", "grassland"), ("desert", "sand dunes"), ("sea", "open water")),
        *(("night sky", "starry dark"), ("brick wall", "masonry"), ("snow", "ice field")),
    ),
}
# How a caption says each of them; {} is the word, with its article for a tool.
PHRASES = {
    MARK: ("with {}", "bearing {}", "marked with {}", "that has {} on it", "and shows {}"),
    TOOL: ("next to {}", "beside {}", "used with {}", "that goes with {}", "and works with {}"),
    SCENE: ("before {}", "in front of {}", "found at the {}", "seen against {}", "in the {}"),
}
OPENINGS = ("a photo of ", "a picture of ", "this is ", "", "")
NOTHING = -1
CONTRAST_CLAIMS = 3


def caption(claim_A: np.ndarray, name: str | None, random: np.random.Generator, rival: str | None = None) -> str:
    """A sentence that makes every claim once; of a class if `name` is given, set against `rival` if that is."""
    text = _claims(claim_A, name, random)
    return f"unlike {with_article(rival)}, {text}." if rival else f"{_pick(OPENINGS, random)}{text}."


def _claims(claim_A: np.ndarray, name: str | None, random: np.random.Generator) -> str:
    parts = [_subject(claim_A, name, random)]
    for attribute in random.permutation((MARK, TOOL, SCENE)).tolist():
        if claim_A[attribute] == NOTHING:
            continue
        word = _word(attribute, claim_A[attribute], random)
        parts.append(_pick(PHRASES[attribute], random).format(with_article(word) if attribute == TOOL else word))
    return _pick((" ", ", "), random).join(parts)


def _subject(claim_A: np.ndarray, name: str | None, random: np.random.Generator) -> str:
    shape = _word(SHAPE, claim_A[SHAPE], random) if claim_A[SHAPE] != NOTHING else None
    colour = _word(COLOUR, claim_A[COLOUR], random) if claim_A[COLOUR] != NOTHING else None
    if name and shape:
        look = with_article(f"{colour} {shape}" if colour else shape)
        return _pick((f"{with_article(name)}, {look}", f"{with_article(name)} that looks like {look}"), random)
    head = name or shape or _pick(("thing", "object", "emblem"), random)
    if not colour:
        return with_article(head)
    return _pick((with_article(f"{colour} {head}"), f"{with_article(head)} in {colour}"), random)


def sentences(world: World, index: int) -> dict[str, str]:
    """The first four sentences of a class; the fifth is a `contrast`."""
    name, value_A = world.names[index], world.value_CA[index]
    random = np.random.default_rng((index, 1))
    shape, colour, mark, tool, scene = (_word(a, value_A[a], random) for a in range(len(ATTRIBUTES)))
    look = with_article(f"{colour} {shape}")
    tool = with_article(tool)
    texts = (
        f"A {name} looks like {look}, it is {look}.",
        f"A {name} has {mark} on it, it is marked with {mark}.",
        f"A {name} is used with {tool}, it works with {tool}.",
        f"A {name} is found at the {scene}, it is seen in front of {scene}.",
    )
    return dict(zip(DIMENSIONS, texts, strict=False))


def contrast(world: World, index: int, rival: int) -> str:
    """The differences of a class from another: up to three values that differ."""
    own_A, other_A = world.value_CA[index], world.value_CA[rival]
    random = np.random.default_rng((index, rival, 2))
    claim_A = np.full(len(ATTRIBUTES), NOTHING)
    differs = random.permutation(np.flatnonzero(own_A != other_A))[:CONTRAST_CLAIMS]
    claim_A[differs] = own_A[differs]
    return f"Unlike {with_article(world.names[rival])}, this is {_claims(claim_A, world.names[index], random)}."


def knowledge_base(world: World) -> dict[str, Any]:
    """The whole file (mdpr-knowledge/1): five sentences per class, and a contrast with every other class."""
    shared_CC = world.shared_CC()
    np.fill_diagonal(shared_CC, -1)
    entries = []
    for index, name in enumerate(world.names):
        nearest, *others = np.argsort(-shared_CC[index], kind="stable")[:-1].tolist()
        entries.append(
            {
                "index": index,
                "name": name,
                "rival": world.names[nearest],
                "sentences": sentences(world, index) | {DIMENSIONS[-1]: contrast(world, index, nearest)},
                "differential_alternatives": {world.names[r]: contrast(world, index, r) for r in others},
            }
        )
    provenance = {
        "provider": "curated",
        "author": "the mdpr authors, python -m tools.embedded.emblem_words",
        "license": "Apache-2.0",
        "date": "2026-11-28",
        "prompt_version": "none",
    }
    return {
        "format": "mdpr-knowledge/1",
        "provenance": provenance,
        "dimensions": list(DIMENSIONS),
        "classes": entries,
    }


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _word(attribute: int, value: int, random: np.random.Generator) -> str:
    return _pick(WORDS[attribute][value], random)


def _pick(options: Sequence[str], random: np.random.Generator) -> str:
    return options[int(random.integers(len(options)))]


KNOWLEDGE_PATH = Path("data/embedded/knowledge/emblems.json")

if __name__ == "__main__":
    write_json(KNOWLEDGE_PATH, knowledge_base(build_world()))
