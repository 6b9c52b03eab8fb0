"""The charts of the report: accuracy by class, calibration, training, variants, routing, priors.

Shapes: C classes, V dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from mdpr.artifacts import SHOT_GROUPS
from mdpr.evaluation.report.figure import (
    NEUTRAL_COLOR,
    PERCENT,
    WIDTH_PX,
    Figure,
    LegendEntry,
    branch_legend,
    color_of,
    count_axis,
    figure,
    render,
    shape_of,
    shot_legend,
    tip,
    tooltip,
)
from mdpr.evaluation.report.text import variant_title
from mdpr.evaluation.score_table import BRANCHES, Metrics, points, signed_points, signed_span
from mdpr.pages import label

MAX_SINGLE_CLASSES = 60  # more classes than this are drawn as groups of neighbours
BINS = 20


@figure("accuracy_by_count", "Accuracy by training count")
def accuracy_by_count(per_class: pd.DataFrame, branches: Sequence[str]) -> Figure:
    """Accuracy of `branches` over the number of training images (log), one mark per class or bin of classes."""
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
        caption=f"Each mark is {unit}. A flat line treats head and tail alike.",
        alternative=f"Accuracy over training images. {ends}.",
        svg=render(base.mark_line(opacity=0.45) + marks, "count"),
        legend=legend,
    )


@figure("accuracy_by_zero_shot", "Accuracy against the frozen model's own")
def accuracy_by_zero_shot(per_class: pd.DataFrame) -> Figure:
    """Accuracy of the tuned model over the frozen model's own, one mark per class or cell of classes."""
    x, y = "zero_shot_accuracy", "fused_accuracy"
    known = per_class.dropna(subset=[x, y])[["class", "shot", x, y]]
    class_count, better, worse = len(known), (known[y] > known[x]).sum(), (known[y] < known[x]).sum()
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
        caption=f"Above the dashed line tuning helped a class, below it tuning cost it something.{area}",
        alternative=f"Of {class_count:,} classes, {better:,} are above the frozen model's zero-shot accuracy "
        f"and {worse:,} below it.",
        svg=render(diagonal.encode(x=across, y=up) + dots, "bias"),
        legend=legend,
    )


@figure("reliability", "Reliability")
def reliability_diagram(reliability: pd.DataFrame, branches: Sequence[str], scores: Metrics) -> Figure:
    """Accuracy over stated probability, one mark per bin, its area by the number of images in it."""
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
        caption="Below the dashed line a branch is surer than it is right, above it less sure. The larger a mark, "
        f"the more images. Expected calibration error: {errors}.",
        alternative=f"Share of right answers over stated probability. Expected calibration error: {errors}.",
        svg=render(diagonal + base.mark_line(opacity=0.4) + marks, "reliability"),
        legend=legend,
    )


GROUP_NAMES = {"all": "all classes", "few": "few-shot classes"}
DASHES = [[1, 0], [4, 3]]
MAX_TICKS = 10


@figure("training", "Training")
def training_curves(history: pd.DataFrame, selected_epoch: int) -> Figure:
    """Validation accuracy of each branch (all solid, few dashed) above the training loss.

    `history` is model/history.csv: epoch, loss, val_{branch}_{group}; a branch or group that does not exist has
    no column. Epochs count from 0, as in the file.
    """
    branches = [branch for branch in BRANCHES if f"val_{branch}_all" in history.columns]
    groups = [group for group in GROUP_NAMES if f"val_base_{group}" in history.columns]
    rows = pd.concat(
        history[["epoch"]].assign(
            branch=BRANCHES[branch], group=GROUP_NAMES[group], accuracy=history[f"val_{branch}_{group}"]
        )
        for branch in branches
        for group in groups
    )
    legend = branch_legend(branches, mark="line")
    single = len(history) == 1  # a line of one point is invisible
    ticks = history["epoch"].astype(int).tolist()[:: -(-len(history) // MAX_TICKS)]  # only whole epochs
    epochs = alt.X("epoch:Q", title=None, axis=alt.Axis(values=ticks, format="d"))
    dash = alt.StrokeDash("group:N", scale=alt.Scale(domain=list(GROUP_NAMES.values()), range=DASHES))
    percent = alt.Axis(format=PERCENT)
    lines = alt.Chart(rows, width=WIDTH_PX, height=190).mark_line(point=single)
    lines = lines.encode(
        x=epochs,
        y=alt.Y("accuracy:Q", title="validation accuracy", axis=percent, scale=alt.Scale(zero=False)),
        color=color_of(legend, "branch"),
        strokeDash=dash,
    )
    kept = alt.Chart(pd.DataFrame({"epoch": [selected_epoch]})).mark_rule(strokeDash=[2, 3])
    loss = alt.Chart(history[["epoch", "loss"]], width=WIDTH_PX, height=80)
    loss = loss.mark_line(color=NEUTRAL_COLOR, point=single).encode(
        x=epochs.title("epoch"), y=alt.Y("loss:Q", title="loss", axis=alt.Axis(tickCount=4))
    )
    last = "; ".join(f"{BRANCHES[branch]} {points(history[f'val_{branch}_all'].iloc[-1])} %" for branch in branches)
    return Figure(
        caption=f"The dotted line marks epoch {selected_epoch} (the first is 0), the one kept: best on "
        "validation, never on test.",
        alternative=f"{len(history)} epochs; epoch {selected_epoch} was kept. Validation accuracy over all classes "
        f"after the last: {last}. Loss from {history['loss'].iloc[0]:.3f} to {history['loss'].iloc[-1]:.3f}.",
        svg=render(alt.vconcat(lines + kept.encode(x="epoch:Q"), loss, spacing=8), "training"),
        legend=[
            *legend,
            LegendEntry(GROUP_NAMES["all"], NEUTRAL_COLOR, "line"),
            *([LegendEntry(GROUP_NAMES["few"], NEUTRAL_COLOR, "dashed")] if "few" in groups else []),
        ],
    )


GAIN_TICKS = [-50, -20, -10, -5, -2, 0, 2, 5, 10, 20, 50]
KINDS = {
    "ablation": LegendEntry("routing taken apart", "#CC79A7", "circle"),
    "robust": LegendEntry("robust option", "#009E73", "circle"),
}


@figure("variants", "The same model, otherwise")
def variant_gains(variants: pd.DataFrame) -> Figure:
    """The gain of each variant in class-balanced accuracy, in points, with its paired 95 % interval."""
    rows = variants.assign(
        title=[variant_title(name) for name in variants["variant"]],
        kind=[KINDS[kind].label for kind in variants["kind"]],
        **{name: 100 * variants[name] for name in ("gain", "gain_low", "gain_high")},
    )
    rows["tip"] = tip(
        f"{variant_title(row['variant'])}: {signed_points(row['gain'])} points, "
        f"{signed_span((row['gain_low'], row['gain_high']))}"
        for row in variants.to_dict("records")
    )
    order = rows["title"].tolist()
    legend = [entry for entry in KINDS.values() if entry.label in set(rows["kind"])]
    base = alt.Chart(rows, width=WIDTH_PX - 130, height=24 * len(rows))
    base = base.encode(
        y=alt.Y("title:N", title=None, sort=order, axis=alt.Axis(grid=True, labelLimit=230)),
        color=color_of(legend, "kind"),
        description=tooltip("tip"),
    )
    # Symmetric-log: shuffled sentences may cost a hundred times what a dimension does.
    look: dict[str, Any] = {
        "title": "gain over the model, points",
        "scale": alt.Scale(type="symlog", constant=1),
        "axis": alt.Axis(values=GAIN_TICKS, labelExpr="format(datum.value, '+d')"),
    }
    whiskers = base.mark_rule(strokeWidth=2).encode(x=alt.X("gain_low:Q", **look), x2="gain_high:Q")
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(x=alt.X("gain:Q", **look))
    zero = alt.Chart(pd.DataFrame({"gain": [0]})).mark_rule(strokeDash=[4, 4], color=NEUTRAL_COLOR).encode(x="gain:Q")
    ranked = variants.sort_values("gain", kind="stable")
    worst, best = ranked.iloc[0], ranked.iloc[-1]
    return Figure(
        caption="Class-balanced accuracy of each variant minus the model's own, on the same images, with 95 % "
        "intervals. Nothing was trained again, and none of it is part of the main result.",
        alternative=f"Gains over the model: from {signed_points(worst['gain'])} points "
        f"({variant_title(worst['variant'])}) to {signed_points(best['gain'])} ({variant_title(best['variant'])}).",
        svg=render(zero + whiskers + dots, "variants"),
        legend=legend,
    )


TRAINING = LegendEntry("training set", "#E69F00", "square")
PRIOR = LegendEntry("pre-training, estimated", "#0072B2", "circle")
RELATIVE_TITLE = "share, relative to an even one"
RELATIVE_TICKS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]


@figure("routing", "Which knowledge was consulted")
def routing_by_dimension(routing_V: Mapping[str, np.ndarray], dimensions: Sequence[str]) -> Figure:
    """Mean routing weight of each dimension, by shot group of the image's class."""
    shots = list(routing_V)
    labels = [label(key) for key in dimensions]
    rows = pd.concat(
        pd.DataFrame({"dimension": labels, "shot": shot, "weight": weights}) for shot, weights in routing_V.items()
    )
    rows["tip"] = tip(f"{row['dimension']}, {row['shot']}: {row['weight']:.3f}" for row in rows.to_dict("records"))
    uniform = 1 / len(labels)
    legend = shot_legend(shots, mark="bar")
    bars = alt.Chart(rows, width=WIDTH_PX - 120, height=230).mark_bar()
    bars = bars.encode(
        x=alt.X("weight:Q", title="mean routing weight", axis=alt.Axis(tickCount=5)),
        y=alt.Y("dimension:N", title=None, sort=labels),
        yOffset=alt.YOffset("shot:N", sort=shots),
        color=color_of(legend, "shot"),
        description=tooltip("tip"),
    )
    even = alt.Chart(pd.DataFrame({"weight": [uniform]})).mark_rule(strokeDash=[4, 4]).encode(x="weight:Q")
    most = "; ".join(
        f"{shot}: {labels[int(weights.argmax())]} ({weights.max():.2f})" for shot, weights in routing_V.items()
    )
    spread = max(float(np.ptp(weights)) for weights in routing_V.values())
    return Figure(
        caption="By shot group of the image's class. The dashed line is no preference between the "
        f"{len(labels)} sentences ({uniform:.2f}). Within a group the means differ by at most {spread:.2g}.",
        alternative=f"Mean routing weight by dimension. Largest for {most}.",
        svg=render(bars + even, "routing"),
        legend=legend,
    )


@figure("hidden_prior", "Two biases: training set and pre-training")
def hidden_prior(names: Sequence[str], train_images: Sequence[int], prior_C: np.ndarray) -> Figure:
    """The estimated pre-training prior beside each class's share of the training set."""
    count_C = np.asarray(train_images, dtype=float)
    relative_C = prior_C * len(names)
    largest, smallest = int(prior_C.argmax()), int(prior_C.argmin())
    crowded = len(names) > MAX_SINGLE_CLASSES
    quartiles = " Median and quartiles over neighbouring classes." if crowded else ""
    return Figure(
        caption="The pre-training share is estimated from the frozen model's answers on training images; "
        f"1 is an even share.{quartiles}",
        alternative=f"Estimated pre-training share relative to an even one: largest for {names[largest]} "
        f"({relative_C[largest]:.2f}), smallest for {names[smallest]} ({relative_C[smallest]:.2f}). In the "
        f"training set the largest class has {count_C.max():,.0f} images and the smallest {count_C.min():,.0f}.",
        svg=render(
            _prior_by_count(count_C, relative_C) if crowded else _prior_per_class(names, count_C, relative_C),
            "prior",
        ),
        legend=[PRIOR] if crowded else [TRAINING, PRIOR],
    )


def _prior_per_class(names: Sequence[str], count_C: np.ndarray, relative_C: np.ndarray) -> alt.Chart:
    order = np.argsort(-count_C, kind="stable")
    sorted_names = [names[index] for index in order]
    values = {TRAINING: count_C / count_C.mean(), PRIOR: relative_C}
    rows = pd.concat(
        pd.DataFrame({"class": sorted_names, "source": entry.label, "relative": value_C[order]})
        for entry, value_C in values.items()
    )
    rows["tip"] = tip(f"{row['class']}: {row['source']} {row['relative']:.2f}" for row in rows.to_dict("records"))
    scale = alt.Scale(type="log" if (rows["relative"] > 0).all() else "symlog")
    height_px = len(names) * (24 if len(names) <= 20 else 14)
    chart = alt.Chart(rows, width=WIDTH_PX - 90, height=height_px).mark_point(filled=True, size=70, opacity=1)
    return chart.encode(
        x=alt.X("relative:Q", title=RELATIVE_TITLE, scale=scale, axis=alt.Axis(values=RELATIVE_TICKS, format="~g")),
        y=alt.Y("class:N", title=None, sort=sorted_names, axis=alt.Axis(grid=True)),
        color=color_of([TRAINING, PRIOR], "source"),
        shape=shape_of([TRAINING, PRIOR], "source"),
        description=tooltip("tip"),
    )


def _prior_by_count(count_C: np.ndarray, relative_C: np.ndarray) -> alt.LayerChart:
    """Quartiles of the prior over bins of the training count: a mark per class would be a cloud."""
    rows = []
    for chunk in np.array_split(np.argsort(count_C, kind="stable"), BINS):
        low, median, high = np.quantile(relative_C[chunk], [0.25, 0.5, 0.75])
        rows.append({"train_images": count_C[chunk].mean(), "low": low, "relative": median, "high": high})
    base = alt.Chart(pd.DataFrame(rows), width=WIDTH_PX, height=230)
    base = base.encode(x=count_axis(rows[0]["train_images"], rows[-1]["train_images"]))
    axis = alt.Axis(values=RELATIVE_TICKS, format="~g")
    scale = alt.Scale(type="log")
    band = base.mark_area(opacity=0.25, color=PRIOR.color).encode(
        y=alt.Y("low:Q", title=RELATIVE_TITLE, scale=scale, axis=axis), y2="high:Q"
    )
    line = base.mark_line(color=PRIOR.color, point={"color": PRIOR.color})
    return band + line.encode(y=alt.Y("relative:Q", title=RELATIVE_TITLE, scale=scale, axis=axis))
