"""The confusion of classes: the matrix as a chart, whole or a block of it, and the worst pairs.

Shapes: C classes, K classes with a name on the axis, S cells per side if classes share cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import altair as alt
import numpy as np
import pandas as pd
from PIL import Image

from mdpr.evaluation.predictions import final_branch
from mdpr.evaluation.report.figure import (
    FONT,
    HEAT_COLOR,
    NEUTRAL_COLOR,
    Figure,
    data_uri,
    figure,
    render,
    tip,
    tooltip,
)
from mdpr.evaluation.score_table import points
from mdpr.evaluation.tables import Results

MAX_LABELLED_CLASSES = 20
WORST_BLOCK_CLASSES = 5  # of a matrix that is labelled whole
DENSITY_CELLS = 250
BLANK_BELOW = 0.005  # shares that round to 0 % leave their cell empty
WHITE_TEXT_ABOVE = 0.85
WIDE_UP_TO = 12  # classes; more of them get narrower cells
DENSITY_SIDE_PX = 360
FAINTEST = 0.12  # of a cell that is not empty: one wrong image in a thousand classes must be seen


@figure("confusion", "Confusion")
def confusion_figure(results: Results, names: Sequence[str]) -> Figure:
    """The whole matrix, with names where they have room, and a closer look at the block of the worst confusions."""
    classes = len(names)
    everything = classes <= MAX_LABELLED_CLASSES
    most = WORST_BLOCK_CLASSES if everything else MAX_LABELLED_CLASSES
    if everything:
        _, share_CC = confusion_block(results.predictions, classes, classes)
        matrix = _labelled(names, share_CC, "confusion")
        if classes <= most:
            return matrix
    class_K, share_KK = confusion_block(results.predictions, classes, most)
    scope = f" Shown are the {len(class_K)} classes of the worst confusions, of {classes:,}."
    block = _labelled([names[index] for index in class_K], share_KK, "confusion_zoom", scope)
    closer = replace(block, title="Worst block")
    if everything:
        return replace(matrix, zoom=closer)
    order_C = np.argsort([-item.train_images for item in results.classes], kind="stable")
    return _whole(confusion_density(results.predictions, order_C, DENSITY_CELLS), classes, closer)


def confusion_shares(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per pair of classes that occurs: actual, predicted, images, share of the true class's images."""
    label = predictions["label"].rename("actual")
    predicted = predictions[f"{final_branch(predictions)}_top1"].rename("predicted")
    pairs = pd.concat([label, predicted], axis=1).value_counts().rename("images").reset_index()
    return pairs.assign(share=pairs["images"] / pairs["actual"].map(label.value_counts()))


def confusion_block(predictions: pd.DataFrame, class_count: int, max_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The classes (K,) of the worst confusions, K = min(C, max_classes), and their row-normalised matrix (K, K).

    Classes enter pair by pair, from the largest share of a true class that went to one other class downwards. Rows
    are true classes and are normalised over all predictions, so a row of a block may sum to less than 1. The whole
    C x C matrix is never made: it would be half a gigabyte for 8,142 classes.
    """
    pairs = confusion_shares(predictions)
    worst = pairs[pairs["actual"] != pairs["predicted"]].sort_values(
        ["share", "actual", "predicted"], ascending=[False, True, True]
    )
    order = worst[["actual", "predicted"]].to_numpy().ravel().tolist() + list(range(class_count))
    class_K = np.sort(np.array(list(dict.fromkeys(order))[:max_classes], dtype=np.int64))
    inside = pairs[pairs["actual"].isin(class_K) & pairs["predicted"].isin(class_K)]
    matrix = inside.pivot(index="actual", columns="predicted", values="share")
    return class_K, matrix.reindex(index=class_K, columns=class_K).fillna(0.0).to_numpy()


def worst_confusions(predictions: pd.DataFrame, names: Sequence[str], most: int) -> pd.DataFrame:
    """The `most` largest of `confusion_shares` that are mistakes, with the classes' names."""
    pairs = confusion_shares(predictions)
    wrong = pairs[pairs["actual"] != pairs["predicted"]].sort_values(
        ["share", "images", "actual", "predicted"], ascending=[False, False, True, True]
    )
    name_C = np.asarray(names, dtype=object)
    return wrong.head(most).assign(
        actual=lambda table: name_C[table["actual"]], predicted=lambda table: name_C[table["predicted"]]
    )


def confusion_density(predictions: pd.DataFrame, order_C: np.ndarray, side: int) -> np.ndarray:
    """The whole row-normalised matrix on at most `side` x `side` cells, a cell the mean over its true classes of the
    share that went to its predicted classes; classes in the order `order_C`. Rows of untested classes are NaN."""
    classes = len(order_C)
    cells = min(side, classes)
    cell_C = np.empty(classes, dtype=np.int64)
    cell_C[order_C] = np.arange(classes) * cells // classes
    label_N = predictions["label"].to_numpy()
    predicted_N = predictions[f"{final_branch(predictions)}_top1"].to_numpy()
    image_C = np.bincount(label_N, minlength=classes)
    flat_N = cell_C[label_N] * cells + cell_C[predicted_N]
    total = np.bincount(flat_N, weights=1 / image_C[label_N], minlength=cells * cells).reshape(cells, cells)
    tested = np.bincount(cell_C, weights=image_C > 0, minlength=cells)[:, None]
    return np.divide(total, tested, out=np.full_like(total, np.nan), where=tested > 0)


def _labelled(names: Sequence[str], share_KK: np.ndarray, name: str, scope: str = "") -> Figure:
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
    largest = f"{points(wrong_KK[actual, predicted])} % of {order[actual]} are taken for {order[predicted]}"
    return Figure(
        caption=f"Percent of each true class's test images (a row).{scope}",
        alternative=f"Confusion matrix. The largest share of mistakes: {largest if wrong_KK.any() else '0 %'}.",
        svg=render(
            base.mark_rect(color=HEAT_COLOR).encode(opacity=opacity) + label.encode(text="label:N", color=ink), name
        ),
    )


def _whole(density_SS: np.ndarray, class_count: int, zoom: Figure) -> Figure:
    """All classes at once, a cell per share, as an image: a thousand classes have no room for names."""
    cells = len(density_SS)
    pixels = np.zeros((cells, cells, 4), dtype=np.uint8)
    pixels[..., :3] = [int(HEAT_COLOR[index : index + 2], 16) for index in (1, 3, 5)]
    share_SS = np.nan_to_num(density_SS)
    strength = np.where(share_SS > 0, FAINTEST + (1 - FAINTEST) * np.sqrt(np.clip(share_SS, 0, 1)), 0)
    pixels[..., 3] = np.round(255 * strength)
    picture = data_uri(Image.fromarray(pixels), "PNG", optimize=True)
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
        caption=f"All {class_count:,} classes by training count; the darker a cell, the more of a true class's images "
        f"(a row) lie in it. A column that stands out swallows other classes.{per_cell}",
        alternative=f"Confusion matrix of {class_count:,} classes. On the diagonal lie {points(share)} % of the images "
        f"of a class on average.",
        svg=svg,
        zoom=zoom,
    )
