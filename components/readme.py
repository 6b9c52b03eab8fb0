"""The README of each component, made from its own interface.

python -m components.readme --write     write components/<name>/README.md
python -m components.readme --check     exit 1 when one of them is stale
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import click
from kfp.dsl.python_component import PythonComponent

from mdpr.stages.stage import STAGES, load_stage

COMPONENTS = ("configure", *STAGES, "shard", "merge", "vary", "select", "close")
HEADER = "<!-- Made by `python -m components.readme --write` from component.py -->"


def load_component(name: str) -> PythonComponent:
    """The component called `name`."""
    component: PythonComponent = getattr(import_module(f"components.{name}.component"), name)
    return component


def render(component: PythonComponent) -> str:
    """The README of `component` as Markdown."""
    spec = component.component_spec
    name = component.name
    lines = [HEADER, "", f"# {name}", "", spec.description, ""]
    lines += [f"Image: `{spec.implementation.container.image}`", ""]
    lines += _table("Input", spec.inputs or {}) + _table("Output", spec.outputs or {})
    if name in STAGES:
        stage = load_stage(name)
        ports = " ".join(f"--{port} {port.upper()}" for port in stage.ports)
        lines += ["The same stage on the command line:", "", f"    mdpr {name} {ports}", ""]
        sections = " and ".join(f"`{section}`" for section in sorted(stage.sections.values()))
        lines += [f"Settings: {sections} in params.yaml; `mdpr {name} --help` explains each.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(title: str, ports: dict[str, Any]) -> list[str]:
    rows = [f"| `{name}` | {_type_name(port)} | {port.description} |" for name, port in ports.items()]
    return [f"| {title} | Type | What it is |", "|---|---|---|", *rows, ""]


def _type_name(port: Any) -> str:
    """system.Dataset@0.0.1 -> Dataset"""
    name = str(port.type).removeprefix("system.").partition("@")[0]
    return f"list of {name}" if port.is_artifact_list else name


def stale(root: Path) -> list[Path]:
    """The READMEs below `root` that differ from what their components say."""
    return [path for path, text in _readmes(root) if not path.is_file() or path.read_text("utf-8") != text]


def _readmes(root: Path) -> list[tuple[Path, str]]:
    return [(root / name / "README.md", render(load_component(name))) for name in COMPONENTS]


@click.command()
@click.option("--write/--check", "write", required=True, help="Write them, or exit 1 when one is stale.")
def main(write: bool) -> None:
    """The README of each component, made from its own interface."""
    root = Path(__file__).parent
    if write:
        for path, text in _readmes(root):
            path.write_text(text, "utf-8")
    elif faulty := stale(root):
        names = ", ".join(path.parent.name for path in faulty)
        raise click.ClickException(f"README stale: {names}; run python -m components.readme --write")


if __name__ == "__main__":
    main()
