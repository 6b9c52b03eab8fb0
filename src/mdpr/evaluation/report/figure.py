"""A chart of the report as static SVG: offline, without scripts, in colours that work on light and dark pages.

Text takes the page's own colour (`currentColor`), grids are grey and see-through, and the data colours are Okabe and
Ito's, which people with colour-blindness can distinguish; a shape or a dash repeats the distinction. Legends are HTML:
the page's font sets them. `write_figures` makes SVG files with title and legend, for MLflow and for slides.
"""

from __future__ import annotations

import base64
import io
import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any, Literal, ParamSpec

import altair as alt
import vl_convert
from PIL import Image

from mdpr.errors import MdprError, printable
from mdpr.evaluation.score_table import BRANCHES
from mdpr.launch import address_space_mb

logger = logging.getLogger(__name__)

P = ParamSpec("P")
Mark = Literal["circle", "square", "diamond", "triangle", "bar", "line", "dashed"]

BRANCH_COLORS = {"zero_shot": "#999999", "base": "#E69F00", "routed": "#009E73", "fused": "#0072B2"}
BRANCH_MARKS: dict[str, Mark] = {"zero_shot": "diamond", "base": "square", "routed": "triangle", "fused": "circle"}
SHOT_COLORS = {"many": "#0072B2", "medium": "#E69F00", "few": "#CC79A7"}
SHOT_MARKS: dict[str, Mark] = {"many": "circle", "medium": "square", "few": "triangle"}
HEAT_COLOR = "#0B6FAE"  # not one of the data colours, which a dark page brightens
NEUTRAL_COLOR = "#888888"
GRID_COLOR = "#8888884d"
FONT = "Arial, Helvetica, 'Liberation Sans', sans-serif"
PERCENT = ".0%"
TIP = "tip:"
ADDRESS_SPACE_MB = 76_000  # the renderer reserves 64 GB, and ends the process if it cannot have them
WIDTH_PX = 360  # plots are narrow, so that a phone need not shrink their text


@dataclass(frozen=True)
class LegendEntry:
    """One sign of a chart's legend."""

    label: str
    color: str
    mark: Mark


@dataclass(frozen=True)
class Figure:
    """A chart on the page. `alternative` says in words, with numbers, what the picture shows; `name` is its file's.

    `zoom` is a closer look at a part of it. Name and title come from `figure`.
    """

    caption: str
    alternative: str
    svg: str
    legend: Sequence[LegendEntry] = ()
    zoom: Figure | None = None
    name: str = ""
    title: str = ""


def figure(name: str, title: str) -> Callable[[Callable[P, Figure]], Callable[P, Figure]]:
    """Gives what a function draws its name and title; a chart that fails becomes a line that says so."""

    def decorate(chart: Callable[P, Figure]) -> Callable[P, Figure]:
        @wraps(chart)
        def draw(*args: P.args, **kwargs: P.kwargs) -> Figure:
            try:
                drawn = chart(*args, **kwargs)
            except Exception as error:  # a chart is worth less than the evaluation it belongs to
                logger.warning("the chart %r could not be drawn: %s", title, printable(str(error)))
                text = f"This chart could not be drawn ({type(error).__name__})."
                drawn = Figure(caption=text, alternative=text, svg="")
            return replace(drawn, name=name, title=title)

        return draw

    return decorate


def color_of(entries: Sequence[LegendEntry], column: str) -> alt.Color:
    """The colour channel of `column`, whose values are the entries' labels."""
    scale = alt.Scale(domain=[item.label for item in entries], range=[item.color for item in entries])
    return alt.Color(f"{column}:N", scale=scale, legend=None)


def shape_of(entries: Sequence[LegendEntry], column: str) -> alt.Shape:
    """The shape channel of `column`, whose values are the entries' labels."""
    shapes = [item.mark.replace("triangle", "triangle-up") for item in entries]
    scale = alt.Scale(domain=[item.label for item in entries], range=shapes)
    return alt.Shape(f"{column}:N", scale=scale, legend=None)


def branch_legend(branches: Sequence[str], mark: Mark | None = None) -> list[LegendEntry]:
    """Each branch by its name, in its own colour; with its own shape unless `mark` is given."""
    return [LegendEntry(BRANCHES[key], BRANCH_COLORS[key], mark or BRANCH_MARKS[key]) for key in branches]


def shot_legend(shots: Sequence[str], mark: Mark | None = None) -> list[LegendEntry]:
    """Each shot group in its own colour; with its own shape unless `mark` is given."""
    return [LegendEntry(shot, SHOT_COLORS[shot], mark or SHOT_MARKS[shot]) for shot in shots]


def count_axis(low: float, high: float) -> alt.X:
    """A logarithmic axis of training images, ticks at 1, 2, 5, 10, ...; symmetric-log if a count is 0."""
    decades = range(math.floor(math.log10(max(low, 1))), math.ceil(math.log10(max(high, 10))) + 1)
    ticks = [digit * 10**decade for decade in decades for digit in (1, 2, 5)]
    domain = [low * 0.85 if low else 0, high * 1.15]
    return alt.X(
        "train_images:Q",
        title="training images of the class",
        scale=alt.Scale(type="log" if low else "symlog", domain=domain, nice=False),
        axis=alt.Axis(values=[tick for tick in ticks if domain[0] <= tick <= domain[1]], format=",d"),
    )


def tooltip(column: str) -> alt.Description:
    """The text that a mark shows under the pointer; `column` is made by `tip`."""
    return alt.Description(f"{column}:N")


def tip(texts: Iterable[str]) -> list[str]:
    """Values for the column of `tooltip`."""
    return [f"{TIP}{text}" for text in texts]


def render(chart: alt.TopLevelMixin, name: str) -> str:
    """`chart` as an SVG element. `name` keeps its ids apart from those of other charts on the page."""
    text = {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
    }
    themed = chart.configure(
        background="transparent",
        padding={"left": 18, "right": 12, "top": 5, "bottom": 10},  # room for a font wider than the one measured
        font=FONT,
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            **text, gridColor=GRID_COLOR, domainColor=NEUTRAL_COLOR, tickColor=NEUTRAL_COLOR, labelLimit=150, aria=False
        ),
        rule=alt.MarkConfig(color=NEUTRAL_COLOR),
        legend=alt.LegendConfig(disable=True),
    )
    if (limit_mb := address_space_mb()) < ADDRESS_SPACE_MB:
        raise MdprError(f"charts need {ADDRESS_SPACE_MB:,} MB of address space, the limit is {limit_mb:,.0f} MB")
    svg: str = vl_convert.vegalite_to_svg(_without_control_characters(themed.to_dict()))
    # The page gives every chart one text alternative; what Vega says of each mark is a tooltip or nothing.
    svg = re.sub(rf'<(\w+) aria-label="{TIP}([^"]*)"([^>]*)/>', r"<\1\3><title>\2</title></\1>", svg)
    svg = re.sub(r' (?:aria-label|aria-roledescription|role)="[^"]*"', "", svg)
    return re.sub(r'(\bid="|url\(#)', rf"\g<1>{name}-", svg)


def _without_control_characters(value: Any) -> Any:
    """`value` with every text printable: the renderer ends the whole process on some characters that XML lacks."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_without_control_characters(key): _without_control_characters(item) for key, item in value.items()}
    return [_without_control_characters(item) for item in value] if isinstance(value, list | tuple) else value


def data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    """`image` as a data: URI of the format `kind`, PNG or JPEG; `options` are Pillow's for saving."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


HEADER_PX = 26
LEGEND_PX = 20
INK, PAPER = "#1b1f24", "#ffffff"


def write_figures(folder: Path, figures: Sequence[Figure]) -> list[Path]:
    """One NAME.svg per figure, and NAME_zoom.svg if it has a closer look; returns the paths."""
    folder.mkdir()
    written = []
    for figure in figures:
        for suffix, part in (("", figure), ("_zoom", figure.zoom)):
            if part is not None and part.svg:
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
