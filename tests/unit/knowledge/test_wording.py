"""Checks of one sentence, and how class names are found in it."""

from __future__ import annotations

import pytest

from mdpr.knowledge.wording import NameIndex, hidden, language, look_alike, spelled_alike, words_of

SHIRT = "A \u202egnihtemos\u202c short\u200b\u2060 shirt"


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        (SHIRT, ["U+200B", "U+202C", "U+202E", "and 1 more"]),
        ("A shirt with a \u2066collar\u2069.", ["U+2066", "U+2069"]),
        ("\ufeffA shirt.", ["U+FEFF"]),
        ("A sh\u00adirt.", ["U+00AD SOFT HYPHEN"]),
        ("A shirt\u3164.", ["U+3164"]),
        ("A shirt\ufe0f.", ["U+FE0F"]),
        ("A shirt\U000e0041.", ["U+E0041"]),
        ("A shirt\x1b]0;title\x07.", ["U+0007", "U+001B"]),
        ("A shirt\nwith a collar.", ["U+000A"]),
        ("A shirt\u2028with a collar.", ["U+2028"]),
        ("A \ue000 shirt.", ["U+E000"]),
    ],
    ids=ascii,
)
def test_characters_that_nobody_sees_are_named_by_code_point(text: str, codes: list[str]) -> None:
    fault = hidden(text) or ""
    assert [code for code in codes if code not in fault] == []
    assert fault.isprintable()


@pytest.mark.parametrize(
    "text", ["A café’s naïve façade – 90 °C, “quoted”.", "A\u00a0shirt of 5\u202fcm.", "A señor’s Ångström µm ½ ½”."]
)
def test_letters_with_accents_and_spaces_of_typesetting_are_fine(text: str) -> None:
    assert (hidden(text), look_alike(text), language(text)) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "code"),
    [("A sh\u0456rt.", "U+0456"), ("A \u0421oat.", "U+0421"), ("A b\u03bfot.", "U+03BF"), ("A c\uff4fat.", "U+FF4F")],
    ids=ascii,
)
def test_letters_of_another_script_inside_a_word_are_named(text: str, code: str) -> None:
    assert code in (look_alike(text) or "")


def test_a_sentence_in_other_letters_is_not_english() -> None:
    assert language("一只高大的灰色鸟有着细长的腿")
    assert language("Серая птица с длинными ногами")
    assert language("The Greek letter Ω is on the badge.") is None


def test_names_are_whole_words_in_singular_or_plural_and_the_longest_counts() -> None:
    index = NameIndex(["gull", "sea gull", "bus", "cherry", "T-shirt", "shirt"])
    text = words_of("Two buses, cherries, a T-shirt and sea gulls over the busy gullies.")
    assert index.named_in(text) == [("bus",), ("cherry",), ("t", "shirt"), ("sea", "gull")]
    assert index.rest_of(text) == "two a and over the busy gullies"


@pytest.mark.parametrize(
    ("name", "sentence", "named"),
    [
        ("mountain snowy", "A wild snowy mountain has no lifts.", True),
        ("oilrig", "The oil rig stands in the sea.", True),
        ("sun glasses", "Dark sunglasses hide both eyes.", True),
        ("kindergarden classroom", "The kindergarten classroom is bright.", True),
        ("mountain snowy", "A wild mountain has no lifts.", False),
        ("ant", "A taller plant has no elephant in it, nor than thing.", False),
        ("oilrig", "The oil is in the sea, the rig is not.", False),
    ],
)
def test_a_name_counts_as_named_in_another_order_division_or_spelling(name: str, sentence: str, named: bool) -> None:
    assert spelled_alike(words_of(name), words_of(sentence)) is named
