"""The README of each component, made from its own interface, and `configure`, made from the settings it offers.

python -m components.readme --write     write components/<name>/README.md and components/configure/component.py
python -m components.readme --check     exit 1 if one of them is stale
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import click
from kfp.dsl.python_component import PythonComponent

from mdpr.params import choices
from mdpr.stages.stage import STAGES, load_stage

COMPONENTS = ("configure", *STAGES, "require", "shard", "merge", "vary", "trainjob", "select", "monitor", "close")
CONFIGURE = Path("configure") / "component.py"
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


def render_configure() -> str:
    """The file of the component `configure`, an argument per setting that is marked as offered in `mdpr.params`.

    It is a file, because Kubeflow copies the source of a component's function, and nothing around it.
    """
    offered = choices()
    given = [f"    {name}: {choice.kind.__name__}," for name, choice in offered.items()]
    texts = [f"        {name}: {choice.text.rstrip('.')} ({choice.key})." for name, choice in offered.items()]
    return TEMPLATE.format(
        arguments="\n".join(given),
        texts="\n".join(texts),
        outputs="\n".join(f'        ("{stage}", str),' for stage in STAGES),
        output_texts="\n".join(f"        {stage}: Parameters of {stage}." for stage in STAGES),
    )


TEMPLATE = '''"""configure: the parameters of a run, checked before anything is computed and split by stage.

Made by `python -m components.readme --write` from the settings that `mdpr.params` marks as offered.
"""

# ruff: noqa: E501 - a description is one line
from typing import NamedTuple

from components.images import IMAGE_CPU
from kfp import dsl
from kfp.dsl import Artifact, Output


@dsl.component(base_image=IMAGE_CPU, packages_to_install=[], install_kfp_package=False)
def configure(
    base: str,
    recipe: str,
{arguments}
    overrides: str,
    settings: Output[Artifact],
) -> NamedTuple(  # type: ignore[valid-type]  # Kubeflow copies only the function, so the type is spelled here
    "StageParams",
    [
{outputs}
    ],
):
    """Check the parameters of a run and give each stage its own sections as YAML text.

    Args:
        base: params.yaml as it was when the pipeline was compiled.
        recipe: Known benchmark to start from instead; then only what differs from base counts below.
{texts}
        overrides: YAML text of sections and keys, over everything above.

    Returns:
        settings: All parameters of the run, as a params.yaml.
{output_texts}
    """
    arguments = dict(locals())
    from mdpr.kubeflow.components import configure_stages

    return configure_stages(arguments)
'''


def stale(root: Path) -> list[Path]:
    """The files below `root` that differ from what they are made of."""
    return [path for path, text in _files(root) if not path.is_file() or path.read_text("utf-8") != text]


def _files(root: Path) -> list[tuple[Path, str]]:
    readmes = [(root / name / "README.md", render(load_component(name))) for name in COMPONENTS]
    return [(root / CONFIGURE, render_configure()), *readmes]


@click.command()
@click.option("--write/--check", "write", required=True, help="Write them, or exit 1 if one is stale.")
def main(write: bool) -> None:
    """The README of each component, made from its own interface, and the component configure."""
    root = Path(__file__).parent
    if write:
        (root / CONFIGURE).write_text(render_configure(), "utf-8")  # before its README, which is made from it
        for path, text in _files(root):
            path.write_text(text, "utf-8")
    elif faulty := stale(root):
        names = ", ".join(str(path.relative_to(root)) for path in faulty)
        raise click.ClickException(f"stale: {names}; run python -m components.readme --write")


if __name__ == "__main__":
    main()
