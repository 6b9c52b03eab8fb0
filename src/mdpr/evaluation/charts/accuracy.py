"""Where the model is right: by training count, and by what the frozen model already knew."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from mdpr.artifacts import SHOT_GROUPS
from mdpr.evaluation.charts.svg import (
    NEUTRAL_COLOR,
    PERCENT,
    WIDTH_PX,
    Figure,
    branch_legend,
    color_of,
    count_axis,
    render,
    shape_of,
    shot_legend,
    tip,
    tooltip,
)
from mdpr.evaluation.metrics import points
from mdpr.evaluation.predictions import BRANCHES

MAX_SINGLE_CLASSES = 60  # more classes than this are drawn as groups of neighbours
BINS = 20


def accuracy_by_count(per_class: pd.DataFrame, branches: Sequence[str]) -> Figure:
    """Accuracy of `branches` over the number of training images (log), one mark a class or a bin of classes."""
    columns = [f"{branch}_accuracy" for branch in branches]
    known = per_class.dropna(subset=columns).sort_values("train_images", ascending=False, kind="stable")
    size = 1 if len(known) <= MAX_SINGLE_CLASSES else -(-len(known) // BINS)
    if size > 1:
        known = known.groupby(np.arange(len(known)) // size)[["train_images", *columns]].mean()
        known["class"] = f"{size} classes"
    rows = pd.concat(
        known[["train_images", "class"]].assign(branch=BRANCHES[branch], accuracy=known[column])
        for branch, column in zip(branches, columns, strict=True)
    )
    rows["tip"] = tip(
        f"{row['class']}: {row['branch']} {points(row['accuracy'])} %, {row['train_images']:,.0f} training images"
        for row in rows.to_dict("records")
    )
    legend = branch_legend(branches)
    base = alt.Chart(rows, width=WIDTH_PX, height=230).encode(
        x=count_axis(known["train_images"].min(), known["train_images"].max()),
        y=alt.Y("accuracy:Q", title="test accuracy", axis=alt.Axis(format=PERCENT), scale=alt.Scale(zero=False)),
        color=color_of(legend, "branch"),
    )
    marks = base.mark_point(size=55, filled=True, opacity=1)
    marks = marks.encode(shape=shape_of(legend, "branch"), description=tooltip("tip"))
    first, last = known.iloc[0], known.iloc[-1]
    ends = "; ".join(
        f"{BRANCHES[branch]} {points(first[column])} % at {first['train_images']:,.0f} images and "
        f"{points(last[column])} % at {last['train_images']:,.0f}"
        for branch, column in zip(branches, columns, strict=True)
    )
    unit = "one class" if size == 1 else f"the mean of {size} classes of like count"
    return Figure(
        name="accuracy_by_count",
        title="Accuracy by training count",
        caption=f"Each mark is {unit}. A flat line treats head and tail alike.",
        alternative=f"Accuracy over training images. {ends}.",
        svg=render(base.mark_line(opacity=0.45) + marks, "count"),
        legend=legend,
    )


def accuracy_by_zero_shot(per_class: pd.DataFrame) -> Figure:
    """Accuracy of the tuned model over the frozen model's own, one mark a class or a cell of classes."""
    x, y = "zero_shot_accuracy", "fused_accuracy"
    known = per_class.dropna(subset=[x, y])[["class", "shot", x, y]]
    class_count, better, worse = (
        len(known),
        int((known[y] > known[x]).sum()),
        int((known[y] < known[x]).sum()),
    )
    crowded = class_count > MAX_SINGLE_CLASSES
    if crowded:
        cells = known.assign(**{name: (known[name] * BINS).round() / BINS for name in (x, y)})
        known = cells.groupby(["shot", x, y]).size().rename("classes").reset_index()
        known["class"] = [f"{classes} {shot} classes" for classes, shot in known[["classes", "shot"]].to_numpy()]
    known["tip"] = tip(
        f"{row['class']}: zero-shot {points(row[x])} %, tuned {points(row[y])} %" for row in known.to_dict("records")
    )
    legend = shot_legend([shot for shot in SHOT_GROUPS if shot in set(known["shot"])])
    domain = [max(0.0, float(known[[x, y]].min().min()) - 0.05), 1.0]
    scale = alt.Scale(domain=domain, nice=False, zero=False)
    percent = alt.Axis(format=PERCENT, tickCount=6)
    across = alt.X(f"{x}:Q", title="zero-shot accuracy (frozen CLIP)", axis=percent, scale=scale)
    up = alt.Y(f"{y}:Q", title="tuned accuracy", axis=percent, scale=scale)
    dots = alt.Chart(known, width=WIDTH_PX, height=250).mark_point(filled=True, opacity=0.8)
    dots = dots.encode(
        x=across,
        y=up,
        color=color_of(legend, "shot"),
        shape=shape_of(legend, "shot"),
        description=tooltip("tip"),
        size=alt.Size("classes:Q", scale=alt.Scale(range=[10, 400])) if crowded else alt.value(80),
    )
    diagonal = alt.Chart(pd.DataFrame({x: domain, y: domain})).mark_line(strokeDash=[4, 4], color=NEUTRAL_COLOR)
    area = " The larger a mark, the more classes it stands for." if crowded else ""
    return Figure(
        name="accuracy_by_zero_shot",
        title="Accuracy against the frozen model's own",
        caption=f"Above the dashed line tuning helped a class, below it tuning cost it something.{area}",
        alternative=f"Of {class_count:,} classes, {better:,} are above the frozen model's zero-shot accuracy "
        f"and {worse:,} below it.",
        svg=render(diagonal.encode(x=across, y=up) + dots, "bias"),
        legend=legend,
    )
