"""The charts of what the model drew on: routing weights by dimension, and the bias that the frozen model brought along.

Shapes: C classes, V dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
import pandas as pd

from mdpr.evaluation.report.charts import BINS, MAX_SINGLE_CLASSES
from mdpr.evaluation.report.figure import (
    WIDTH_PX,
    Figure,
    LegendEntry,
    color_of,
    count_axis,
    render,
    shape_of,
    shot_legend,
    tip,
    tooltip,
)
from mdpr.pages import label

TRAINING = LegendEntry("training set", "#E69F00", "square")
PRIOR = LegendEntry("pre-training, estimated", "#0072B2", "circle")
RELATIVE_TITLE = "share, relative to an even one"
RELATIVE_TICKS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]


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
        name="routing",
        title="Which knowledge was consulted",
        caption="By shot group of the image's class. The dashed line is no preference between the "
        f"{len(labels)} sentences ({uniform:.2f}). Within a group the means differ by at most {spread:.2g}.",
        alternative=f"Mean routing weight by dimension. Largest for {most}.",
        svg=render(bars + even, "routing"),
        legend=legend,
    )


def hidden_prior(names: Sequence[str], train_images: Sequence[int], prior_C: np.ndarray) -> Figure:
    """The estimated pre-training prior beside each class's share of the training set."""
    count_C = np.asarray(train_images, dtype=float)
    relative_C = prior_C * len(names)
    largest, smallest = int(prior_C.argmax()), int(prior_C.argmin())
    crowded = len(names) > MAX_SINGLE_CLASSES
    quartiles = " Median and quartiles over neighbouring classes." if crowded else ""
    return Figure(
        name="hidden_prior",
        title="Two biases: training set and pre-training",
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
    """Quartiles of the prior over bins of the training count: a mark a class would be a cloud."""
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
