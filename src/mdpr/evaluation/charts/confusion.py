"""The confusion matrix: the whole of it, and a closer look at the block of the worst confusions.

Shapes: C classes, K classes with a name on the axis, S cells a side where classes share cells.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd
from PIL import Image

from mdpr.evaluation.charts.svg import FONT, HEAT_COLOR, NEUTRAL_COLOR, Figure, render, tip, tooltip
from mdpr.evaluation.metrics import points

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
