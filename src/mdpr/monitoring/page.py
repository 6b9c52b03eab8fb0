"""The page of a monitoring: advice, checks, accuracy, class shares."""

from __future__ import annotations

from mdpr.evaluation.score_table import points, signed_points
from mdpr.monitoring.shift import Interval, Monitoring
from mdpr.pages import render_page


def render_monitoring(content: Monitoring) -> str:
    """The result as one HTML document; classes with the largest change first."""
    classes = sorted(content.classes.items(), key=lambda item: -abs(item[1].estimated - item[1].reference))
    version = f", version {content.version}" if content.version else ""
    return render_page(
        "mdpr.monitoring",
        "monitoring.html.j2",
        "monitoring.js",
        filters={"points": points, "signed": signed_points, "span": _span, "signed_span": _signed_span},
        title=f"{content.model}{version}: after deployment",
        summary=f"{content.advice.capitalize()}: {content.reason}.",
        content=content,
        classes=classes,
        largest=max(max(share.estimated, share.reference) for _, share in classes),
    )


def _span(interval: Interval) -> str:
    return f"{points(interval[0])} to {points(interval[1])}"


def _signed_span(interval: Interval) -> str:
    return f"{signed_points(interval[0])} to {signed_points(interval[1])}"
