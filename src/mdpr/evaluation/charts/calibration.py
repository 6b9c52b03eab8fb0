"""Whether the model is right as often as it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd

from mdpr.evaluation.charts.svg import (
    NEUTRAL_COLOR,
    PERCENT,
    WIDTH_PX,
    Figure,
    branch_legend,
    color_of,
    render,
    shape_of,
    tip,
    tooltip,
)
from mdpr.evaluation.metrics import points
from mdpr.evaluation.predictions import BRANCHES


def reliability_diagram(
    reliability: pd.DataFrame, branches: Sequence[str], scores: Mapping[str, Mapping[str, float]]
) -> Figure:
    """Accuracy over stated probability, one mark a bin, its area by the number of images in it."""
    rows = reliability[reliability["branch"].isin(branches)].copy()
    rows["share"] = rows["images"] / rows.groupby("branch")["images"].transform("sum")
    rows["name"] = [BRANCHES[branch] for branch in rows["branch"]]
    rows["tip"] = tip(
        f"{row['name']}: {row['images']:,} images at {points(row['confidence'])} % on average, "
        f"{points(row['accuracy'])} % of them right"
        for row in rows.to_dict("records")
    )
    legend = branch_legend(branches)
    axis = alt.Axis(format=PERCENT, tickCount=6)
    unit = alt.Scale(domain=[0, 1])
    across = alt.X("confidence:Q", title="stated probability", axis=axis, scale=unit)
    up = alt.Y("accuracy:Q", title="share that is right", axis=axis, scale=unit)
    base = alt.Chart(rows, width=WIDTH_PX, height=250).encode(x=across, y=up, color=color_of(legend, "name"))
    marks = base.mark_point(filled=True, opacity=0.9).encode(
        shape=shape_of(legend, "name"),
        size=alt.Size("share:Q", scale=alt.Scale(domain=[0, 1], range=[15, 500])),
        description=tooltip("tip"),
    )
    ends = pd.DataFrame({"confidence": [0.0, 1.0], "accuracy": [0.0, 1.0]})
    diagonal = alt.Chart(ends).mark_line(strokeDash=[4, 4], color=NEUTRAL_COLOR).encode(x=across, y=up)
    errors = ", ".join(f"{BRANCHES[branch]} {points(scores[branch]['ece'])} %" for branch in branches)
    return Figure(
        name="reliability",
        title="Reliability",
        caption="Below the dashed line a branch is surer than it is right, above it less sure. The larger a mark, "
        f"the more images. Expected calibration error: {errors}.",
        alternative=f"Share of right answers over stated probability. Expected calibration error: {errors}.",
        svg=render(diagonal + base.mark_line(opacity=0.4) + marks, "reliability"),
        legend=legend,
    )
