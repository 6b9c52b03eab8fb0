"""What each variant of the model gains or costs against the model itself."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from mdpr.evaluation.charts.svg import NEUTRAL_COLOR, WIDTH_PX, Figure, LegendEntry, color_of, render, tip, tooltip
from mdpr.evaluation.metrics import signed_points

GAIN_TICKS = [-50, -20, -10, -5, -2, 0, 2, 5, 10, 20, 50]
KINDS = {
    "ablation": LegendEntry("routing taken apart", "#CC79A7", "circle"),
    "robust": LegendEntry("robust option", "#009E73", "circle"),
}
TITLES = {
    "uniform_routing": "Uniform routing",
    "prior_only": "Prior only",
    "shuffled_sentences": "Shuffled sentences",
    "flip_ensemble": "Flip ensemble",
    "five_crop_ensemble": "Five-crop ensemble",
    "five_crop_flip_ensemble": "Five crops, flipped too",
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
