"""monitor.json, and its figures as a page, as a table for a terminal, and by their names in MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from mdpr.artifacts import Check, Format
from mdpr.evaluation.score_table import Interval, in_percent, points, signed_points, signed_span, span
from mdpr.pages import render_page

if TYPE_CHECKING:
    from rich.table import Table


class Share(Format):
    """Shares of images as fractions: of the test set, of the predictions counted, and as estimated."""

    reference: float
    counted: float
    estimated: float
    interval: Interval


class Drift(Format):
    """AUC of a classifier that distinguishes new images from test images by `features`, on held-out images."""

    features: Literal["embeddings", "answers"]
    auc: float
    interval: Interval
    images: int


class Accuracy(Format):
    """Fractions: on the test set, as expected on the new images, and with the estimated shares as deployment prior."""

    reference: float
    expected: float
    expected_interval: Interval
    with_prior: float
    gain_of_prior: float
    gain_interval: Interval


class Monitoring(Format):
    """monitor.json. `shares` and `model_prior` make it a deployment prior for `--prior`."""

    format: Literal["mdpr-monitor/1"] = "mdpr-monitor/1"
    model: str
    version: str
    model_digest: str
    images: int
    images_used: int
    first: str
    last: str
    priors: tuple[str, ...]
    unreadable: tuple[str, ...]
    other_images: int
    dropped: int
    shares: dict[str, float]
    model_prior: dict[str, float]
    classes: dict[str, Share]
    groups: dict[str, Share]
    label_shift: float
    label_shift_interval: Interval
    accuracy: Accuracy
    drift: Drift | None
    checks: tuple[Check, ...]
    advice: Literal["keep", "retrain", "wait"]
    reason: str


def render_monitoring(content: Monitoring) -> str:
    """The result as one HTML document; classes with the largest change first."""
    classes = sorted(content.classes.items(), key=lambda item: -abs(item[1].estimated - item[1].reference))
    version = f", version {content.version}" if content.version else ""
    return render_page(
        "mdpr.monitoring",
        "monitoring.html.j2",
        "monitoring.js",
        filters={"points": points, "signed_points": signed_points, "span": span, "signed_span": signed_span},
        title=f"{content.model}{version}: after deployment",
        summary=f"{content.advice.capitalize()}: {content.reason}.",
        content=content,
        classes=classes,
        largest=max(max(share.estimated, share.reference) for _, share in classes),
    )


def monitoring_table(content: Monitoring) -> Table:
    """The figures that the advice rests on."""
    from rich.table import Table

    accuracy, drift = content.accuracy, content.drift
    table = Table(title=f"{content.images:,} answers of {content.model} {content.version}".rstrip())
    for title in ("figure", "estimate", "95 % interval"):
        table.add_column(title, justify="left" if title == "figure" else "right")

    low, high = content.label_shift_interval
    table.add_row("label shift, total variation", f"{content.label_shift:.3f}", f"{low:.3f} to {high:.3f}")
    for group, share in content.groups.items():
        name = f"share of {group} classes, percent (test set {points(share.reference)})"
        table.add_row(name, points(share.estimated), span(share.interval))
    table.add_row("accuracy on the test set, percent", points(accuracy.reference), "")
    table.add_row("accuracy expected, percent", points(accuracy.expected), span(accuracy.expected_interval))
    table.add_row("gain of --prior, points", signed_points(accuracy.gain_of_prior), signed_span(accuracy.gain_interval))
    if drift:
        low, high = drift.interval
        table.add_row(f"drift of {drift.features}, AUC", f"{drift.auc:.3f}", f"{low:.3f} to {high:.3f}")
    return table


def monitoring_metrics(content: Monitoring) -> dict[str, float]:
    """The figures by their names in MLflow: accuracies and shares of classes in percent, as in every run."""
    accuracy = content.accuracy
    accuracies = {"reference": accuracy.reference, "expected": accuracy.expected, "with_prior": accuracy.with_prior}
    shares = {group: share.estimated for group, share in content.groups.items()}
    metrics = {
        "monitor/images": content.images,
        "monitor/label_shift": content.label_shift,
        "monitor/retrain": float(content.advice == "retrain"),
        **{f"monitor/accuracy_{name}": value for name, value in in_percent(accuracies).items()},
        **{f"monitor/share/{group}": value for group, value in in_percent(shares).items()},
    }
    return metrics | ({"monitor/drift_auc": content.drift.auc} if content.drift else {})
