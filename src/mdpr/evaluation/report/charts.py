"""The charts of the report: accuracy by class, calibration, confusion, training, variants.

Shapes: C classes, K classes with a name on the axis, S cells per side if classes share cells.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from PIL import Image

from mdpr.artifacts import SHOT_GROUPS
from mdpr.evaluation.report.figure import (
    FONT,
    HEAT_COLOR,
    NEUTRAL_COLOR,
    PERCENT,
    WIDTH_PX,
    Figure,
    LegendEntry,
    branch_legend,
    color_of,
    count_axis,
    render,
    shape_of,
    shot_legend,
    tip,
    tooltip,
)
from mdpr.evaluation.score_table import BRANCHES, points, signed_points

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


BLANK_BELOW = 0.005  # shares that round to 0 % leave their cell empty
WHITE_TEXT_ABOVE = 0.85
WIDE_UP_TO = 12  # classes; more of them get narrower cells
DENSITY_SIDE_PX = 360
FAINTEST = 0.12  # of a cell that is not empty: one wrong image in a thousand classes must be seen


def labelled(names: Sequence[str], share_KK: np.ndarray, title: str, name: str, scope: str = "") -> Figure:
    """A row-normalised matrix whose K classes are named; rows are true classes."""
    size = len(names)
    order = list(names)
    rows = pd.DataFrame(
        {"actual": np.repeat(order, size), "predicted": np.tile(order, size), "share": share_KK.ravel()}
    )
    rows = rows[rows["share"] >= BLANK_BELOW]
    rows["tip"] = tip(
        f"{points(row['share'])} % of {row['actual']} are taken for {row['predicted']}"
        for row in rows.to_dict("records")
    )
    large = size <= WIDE_UP_TO
    side_px = (32 if large else 24) * size
    scale = alt.Scale(domain=order, padding=0)
    base = alt.Chart(rows, width=side_px, height=side_px).encode(
        x=alt.X("predicted:N", title="predicted", scale=scale, axis=alt.Axis(labelAngle=-90)),
        y=alt.Y("actual:N", title="true class", scale=scale),
        description=tooltip("tip"),
    )
    opacity = alt.Opacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.04, 1]))
    ink = alt.condition(f"datum.share > {WHITE_TEXT_ABOVE}", alt.value("#ffffff"), alt.value("currentColor"))
    label = base.transform_calculate(label="round(datum.share * 100)").mark_text(fontSize=11 if large else 10)
    wrong_KK = share_KK - np.diag(np.diag(share_KK))
    actual, predicted = divmod(int(wrong_KK.argmax()), size)
    return Figure(
        name=name,
        title=title,
        caption=f"Percent of each true class's test images (a row).{scope}",
        alternative=f"Confusion matrix. The largest share of mistakes: {points(wrong_KK[actual, predicted])} % "
        f"of {order[actual]} are taken for {order[predicted]}.",
        svg=render(
            base.mark_rect(color=HEAT_COLOR).encode(opacity=opacity) + label.encode(text="label:N", color=ink), name
        ),
    )


def whole(density_SS: np.ndarray, class_count: int, zoom: Figure) -> Figure:
    """All classes at once, a cell a share: an image, for a thousand classes have no room for names."""
    cells = len(density_SS)
    pixels = np.zeros((cells, cells, 4), dtype=np.uint8)
    pixels[..., :3] = [int(HEAT_COLOR[index : index + 2], 16) for index in (1, 3, 5)]
    share_SS = np.nan_to_num(density_SS)
    strength = np.where(share_SS > 0, FAINTEST + (1 - FAINTEST) * np.sqrt(np.clip(share_SS, 0, 1)), 0)
    pixels[..., 3] = np.round(255 * strength)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    picture = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    side, left, top = DENSITY_SIDE_PX, 34, 8
    label = f'font-family="{FONT}" font-size="12" fill="currentColor"'
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{side + left + 8}" height="{side + 60}" '
        f'viewBox="0 0 {side + left + 8} {side + 60}">'
        f'<image href="{picture}" x="{left}" y="{top}" width="{side}" height="{side}" '
        'preserveAspectRatio="none" style="image-rendering:pixelated"/>'
        f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="none" stroke="{NEUTRAL_COLOR}"/>'
        f'<text x="{left}" y="{side + 26}" {label}>← most training images</text>'
        f'<text x="{left + side}" y="{side + 26}" text-anchor="end" {label}>fewest →</text>'
        f'<text x="{left + side / 2}" y="{side + 48}" text-anchor="middle" {label}>predicted</text>'
        f'<text transform="translate(20,{top + side / 2}) rotate(-90)" text-anchor="middle" {label}>true class</text>'
        "</svg>"
    )
    share = float(np.nanmean(np.diag(density_SS)))
    per_cell = "" if cells == class_count else f" A cell stands for about {class_count / cells:.0f} classes each way."
    return Figure(
        name="confusion",
        title="Confusion",
        caption=f"All {class_count:,} classes by training count; the darker a cell, the more of a true class's images "
        f"(a row) lie in it. A column that stands out swallows other classes.{per_cell}",
        alternative=f"Confusion matrix of {class_count:,} classes. On the diagonal lie {points(share)} % of the images "
        f"of a class on average.",
        svg=svg,
        zoom=zoom,
    )


GROUP_NAMES = {"all": "all classes", "few": "few-shot classes"}
DASHES = [[1, 0], [4, 3]]


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
    epochs = alt.X("epoch:Q", title=None, axis=alt.Axis(values=_ticks(history), format="d"))
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
        name="training",
        title="Training",
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


def _ticks(history: pd.DataFrame, most: int = 10) -> list[int]:
    """Whole epochs alone, at most about `most` of them."""
    epochs: list[int] = history["epoch"].astype(int).tolist()
    return epochs[:: -(-len(epochs) // most)]


GAIN_TICKS = [-50, -20, -10, -5, -2, 0, 2, 5, 10, 20, 50]
KINDS = {
    "ablation": LegendEntry("routing taken apart", "#CC79A7", "circle"),
    "robust": LegendEntry("robust option", "#009E73", "circle"),
}
TITLES = {
    "uniform_routing": "Uniform routing",
    "prior_only": "Prior only",
    "shuffled_sentences": "Shuffled sentences",
    "without_logit_adjustment": "Without the logit adjustment",
    "flip_ensemble": "Flip ensemble",
    "five_crop_ensemble": "Five-crop ensemble",
    "five_crop_flip_ensemble": "Five crops, flipped too",
    "lift_ensemble": "Five crops, logits averaged (LIFT)",
}


def variant_title(name: str) -> str:
    """`without_functionality` as people read it: Without functionality."""
    return TITLES.get(name, name.replace("_", " ").capitalize())


def variant_gains(variants: pd.DataFrame) -> Figure:
    """The gain of each variant in class-balanced accuracy, in points, with its paired 95 % interval."""
    rows = variants.assign(
        title=[variant_title(name) for name in variants["variant"]],
        kind=[KINDS[kind].label for kind in variants["kind"]],
        **{name: 100 * variants[name] for name in ("gain", "gain_low", "gain_high")},
    )
    rows["tip"] = tip(
        f"{title}: {signed_points(gain)} points, {signed_points(low)} to {signed_points(high)}"
        for title, gain, low, high in zip(
            rows["title"], variants["gain"], variants["gain_low"], variants["gain_high"], strict=True
        )
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
        name="variants",
        title="The same model, otherwise",
        caption="Class-balanced accuracy of each variant minus the model's own, on the same images, with 95 % "
        "intervals. Nothing was trained again, and none of it is part of the main result.",
        alternative=f"Gains over the model: from {signed_points(worst['gain'])} points "
        f"({variant_title(worst['variant'])}) to {signed_points(best['gain'])} ({variant_title(best['variant'])}).",
        svg=render(zero + whiskers + dots, "variants"),
        legend=legend,
    )
