"""How the model came to be: accuracy on validation and loss, epoch by epoch."""

from __future__ import annotations

import altair as alt
import pandas as pd

from mdpr.evaluation.charts.svg import (
    NEUTRAL_COLOR,
    PERCENT,
    WIDTH_PX,
    Figure,
    LegendEntry,
    branch_legend,
    color_of,
    render,
)
from mdpr.evaluation.metrics import points
from mdpr.evaluation.predictions import BRANCHES

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
