"""Faithfulness of routing weights to a known truth, and the answer of an oracle."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mdpr.artifacts.truth import ClassTruth, Truth, WorldTruth
from mdpr.evaluation.faithfulness import faithfulness, oracle_accuracy
from mdpr.params import DIMENSIONS

GENERAL, FINE = DIMENSIONS[:2]


def test_weights_that_follow_the_truth_are_faithful_and_even_ones_say_nothing() -> None:
    state_N = np.array(["shown", "absent", "shown", "foreign"])
    pictures = pd.DataFrame({GENERAL: state_N, FINE: state_N})
    weights_NV = np.full((4, len(DIMENSIONS)), 0.2)
    weights_NV[:, 0] = [0.5, 0.1, 0.4, 0.2]
    assert faithfulness(weights_NV, pictures) == {GENERAL: 1.0, FINE: 0.5}
    assert faithfulness(-weights_NV, pictures) == {GENERAL: 0.0, FINE: 0.5}


def test_a_dimension_that_is_shown_everywhere_or_of_unknown_state_has_no_figure() -> None:
    assert faithfulness(np.zeros((2, len(DIMENSIONS))), pd.DataFrame({GENERAL: ["shown", "shown"]})) == {}


def test_an_oracle_believes_what_is_shown_and_shares_ties() -> None:
    values = ({"mark": "dots", "tool": "key"}, {"mark": "dots", "tool": "cup"}, {"mark": "checks", "tool": "flag"})
    classes = tuple(
        ClassTruth(index=index, name=f"c{index}", values=item, hidden_share=1 / 3) for index, item in enumerate(values)
    )
    pictures = pd.DataFrame(
        {
            "split": "test",
            "label": [0, 1, 2, 2],
            "mark": ["dots", "dots", "", "dots"],
            "mark_state": ["shown", "shown", "absent", "foreign"],
            "tool": ["key", "cup", "", "flag"],
            "tool_state": ["shown", "absent", "absent", "shown"],
        }
    )
    truth = Truth(WorldTruth(dimensions={}, classes=classes), pictures)
    groups = oracle_accuracy(truth, "test", ["many", "few", "few"])
    # Class 0 is certain, class 1 one of two with dots, class 2 one of three, then certain by its tool alone.
    assert groups["many"] == 1
    assert groups["few"] == pytest.approx((1 / 2 + (1 / 3 + 1) / 2) / 2)
