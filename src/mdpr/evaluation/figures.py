"""The report's charts as SVG files of their own, for MLflow and for slides: title, legend and picture in one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from mdpr.evaluation.charts.svg import FONT, Figure

HEADER_PX = 26
LEGEND_PX = 20
INK, PAPER = "#1b1f24", "#ffffff"


def write_figures(folder: Path, figures: Sequence[Figure]) -> list[Path]:
    """One NAME.svg a figure, and NAME_zoom.svg where it has a closer look; returns the paths."""
    folder.mkdir()
    written = []
    for figure in figures:
        for suffix, part in (("", figure), ("_zoom", figure.zoom)):
            if part is not None:
                written.append(folder / f"{figure.name}{suffix}.svg")
                written[-1].write_text(standalone(part), encoding="utf-8")
    return written


def standalone(figure: Figure) -> str:
    """`figure` as an SVG document that needs no page around it."""
    width, height = (float(size) for size in re.findall(r'\b(?:width|height)="([\d.]+)"', figure.svg)[:2])
    top = HEADER_PX + LEGEND_PX * len(figure.legend)
    legend = "".join(
        f'<rect x="12" y="{HEADER_PX + LEGEND_PX * row + 3}" width="11" height="11" fill="{entry.color}"/>'
        f'<text x="30" y="{HEADER_PX + LEGEND_PX * row + 13}" font-size="12">{escape(entry.label)}</text>'
        for row, entry in enumerate(figure.legend)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height + top:g}" '
        f'font-family="{FONT}" fill="{INK}" color="{INK}"><desc>{escape(figure.alternative)}</desc>'
        f'<rect width="100%" height="100%" fill="{PAPER}"/>'
        f'<text x="12" y="18" font-size="14" font-weight="bold">{escape(figure.title)}</text>{legend}'
        f'<g transform="translate(0,{top})">{figure.svg}</g></svg>\n'
    )
