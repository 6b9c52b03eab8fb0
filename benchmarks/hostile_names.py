"""Class names that would be markup, a formula, a script or a control sequence wherever they are not shown as text.

A name with a control character is refused by `prepare` in one line, escaped. All others go together through the nine
stages; then every page, table and line of the terminal is read as a browser, a spreadsheet and a terminal would.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from benchmarks.trial_project import PROJECT, Figures, Project, call_mdpr, file_name, tell
from mdpr.params import DIMENSIONS
from mdpr.progress import track
from mdpr.stages.stage import STAGES, load_stage

HOSTILE = (
    "<img src=x onerror=alert(2)>",
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(3)>",
    "<!--<script>",
    '"><svg/onload=1>',
    "[x](javascript:alert(1))",
    "=cmd|' /C calc'!A0",
    "@SUM(1)",
    "'=1",
    "a\x07b",
    "\x1b]0;title\x07",
    "two\nlines",
    "nul\x00",
    "next\x85line",
    "\ufffe",
    "\u202egnp",
    "[bold]",
    "[/foo]",
    "a | b",
    "{{ title }}",
)
FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
IMAGES_PER_CLASS = 14
EMBEDDED = PROJECT / "data/embedded"


class _Page(HTMLParser):
    """Elements and attributes of a page that none of its own templates has."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: list[str] = []
        self._in_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_script = tag == "script"
        for name, value in attrs:
            if name.startswith("on") or (value or "").strip().lower().startswith("javascript:"):
                self.foreign.append(f"<{tag} {name}={value}>")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = self._in_script and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._in_script and data.lstrip().startswith("alert("):
            self.foreign.append(f"<script>{data[:20]}")


def foreign_markup(page: str) -> list[str]:
    """Everything that runs or loads in `page` although it came out of a name: event handlers, scripts, addresses."""
    parser = _Page()
    parser.feed(page)
    parser.close()
    return parser.foreign


def unprintable(text: str) -> str:
    """The control and invisible characters of `text` but for line ends, escaped."""
    return "".join(ascii(letter)[1:-1] for letter in text if not letter.isprintable() and letter != "\n")


def formulas(table: Path) -> list[str]:
    """Cells of text that a spreadsheet would compute."""
    import pandas as pd

    texts = pd.read_csv(table, dtype=str, keep_default_na=False)
    cells = [cell for name in texts.columns for cell in texts[name] if cell.startswith(FORMULA_SIGNS)]
    return [cell for cell in cells if not re.fullmatch(r"-?[0-9.e+-]+", cell)]


def write_source(folder: Path, names: Sequence[str]) -> list[str]:
    """A folder source whose classes c0, c1, ... have these names; the settings to read it with."""
    rows = pq.read_table(EMBEDDED / "fashion-mnist/test.parquet").to_pylist()
    for index in range(len(names)):
        images = [row["image"]["bytes"] for row in rows if row["label"] == index % 10][:IMAGES_PER_CLASS]
        place = folder / "images" / f"c{index}"
        place.mkdir(parents=True)
        for number, data in enumerate(images):
            picture = Image.open(io.BytesIO(data)).convert("RGB")
            picture.putpixel((0, 0), (index, number, 0))  # no picture is in two classes
            picture.save(place / f"{number}.png")
    (folder / "images/classes.json").write_text(json.dumps({f"c{index}": name for index, name in enumerate(names)}))
    sentences = {"classes": [_knowledge(index, name, names) for index, name in enumerate(names)]}
    (folder / "knowledge.json").write_text(json.dumps({**_head(), **sentences}))
    settings = {
        "prepare": {"source": "folder", "root": str(folder / "images"), "profile": "natural"},
        "describe": {"provider": "curated", "path": str(folder / "knowledge.json"), "strict": False},
        "tune": {"epochs": 1, "workers": 0},
        "backbone": {
            "architecture": str(EMBEDDED / "mdpr-tiny/mdpr-tiny.json"),
            "weights": str(EMBEDDED / "mdpr-tiny/mdpr-tiny.safetensors"),
            "device": "cpu",
        },
        "register": {"pyfunc": str(PROJECT / "mlflow/model.py")},
        "promote": {"policy": str(PROJECT / "mlflow/promotion.yaml")},
    }
    (folder / "params.yaml").write_text(json.dumps(settings))
    return ["--params", str(folder / "params.yaml")]


def _head() -> dict[str, object]:
    shipped = json.loads((EMBEDDED / "knowledge/fashion-mnist.json").read_text())
    return {key: shipped[key] for key in ("format", "provenance", "dimensions")}


def _knowledge(index: int, name: str, names: Sequence[str]) -> dict[str, object]:
    rival = names[(index + 1) % len(names)]
    sentences = {dimension: f"A {name} has the {dimension} of a thing, unlike a {rival}." for dimension in DIMENSIONS}
    return {"index": index, "name": name, "rival": rival, "sentences": sentences}


def refused_names(folder: Path) -> dict[str, str]:
    """Hostile name that `prepare` does not take -> what is wrong with how it says so; nothing is wrong with most."""
    refused = {}
    for number, name in enumerate(track(HOSTILE, "names")):
        place = folder / str(number)
        settings = write_source(place, [name, "shoe"])
        end = call_mdpr(["prepare", "--prepared", str(place / "prepared"), *settings], place)
        if end.code:
            refused[name] = "" if end.is_one_line and not unprintable(end.text) else end.text[-300:]
    return refused


def chain(folder: Path, names: Sequence[str]) -> Iterator[str]:
    """Faults of all that nine stages, their reports and DVC's plots make of data whose classes have these names."""
    settings = write_source(folder, names)
    data = folder / "data"
    for stage in STAGES:
        ports = [part for port in load_stage(stage).ports for part in (f"--{port}", str(data / file_name(port)))]
        yield from _printed(stage, [stage, *ports, *settings], folder)
    for command in ("summary", "report render", "registry list"):
        yield from _printed(command, [*command.split(), *settings], folder)
    predict = ["predict", "images", "--model", "data/model", "--top-k", "3", "--out", "data/predictions.csv"]
    yield from _printed("predict", predict, folder)
    shutil.copytree(data / "evaluation", data / "again")
    yield from _printed("compare", ["compare", "data/evaluation", "data/again"], folder)
    _plots(folder)
    for path in sorted(folder.rglob("*.html")) + sorted(folder.rglob("*.svg")):
        if markup := foreign_markup(path.read_text("utf-8")):
            yield f"{path.relative_to(folder)}: {markup[:3]}"
    for path in sorted(data.rglob("*.csv")):
        if cells := formulas(path):
            yield f"{path.relative_to(folder)}: {cells[:3]}"


def _printed(what: str, arguments: list[str], folder: Path) -> Iterator[str]:
    end = call_mdpr(arguments, folder)
    if end.code:
        yield f"{what}: exit code {end.code}: {end.text[-500:]}"
    if letters := unprintable(end.text):
        yield f"{what} prints {letters[:60]}"


def _plots(folder: Path) -> None:
    """The page of `dvc plots show`, with the project's template and plots."""
    import yaml

    for name in ("config", "plots.html", "plots/bars.json"):
        (folder / ".dvc" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / ".dvc" / name).write_bytes((PROJECT / ".dvc" / name).read_bytes())
    shown = yaml.safe_load((PROJECT / "dvc.yaml").read_text("utf-8"))["plots"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"plots": shown}), encoding="utf-8")
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "plots", "show", "--out", "dvc_plots"]):
        subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)


def hostile_names(project: Project, seed: int) -> Figures:
    """Every hostile name: refused in one line, or text in all that the stages make."""
    folder = project.root.parent / "names"
    refused = refused_names(folder)
    taken = [name for name in HOSTILE if name not in refused]
    faults = [f"{name!a}: {fault}" for name, fault in refused.items() if fault]
    in_chain = list(chain(folder / "chain", taken))
    for fault in [*faults, *in_chain]:
        tell("names, %s", fault)
    survived = len(refused) - len(faults) + (0 if in_chain else len(taken))
    return {"hostile_names_survived": survived, "hostile_names": len(HOSTILE)}
