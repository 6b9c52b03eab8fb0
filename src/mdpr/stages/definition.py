"""What a stage is, read from its function's signature: the one definition behind the CLI, DVC and Kubeflow.

    def tune(prepared: In, features: In, probe: In, model: Out, *, params: TuneParams,
             backbone: BackboneParams) -> None

Positional arguments are ports: `In` exists when the stage starts, `Out` is made by it. Keyword-only arguments are
sections of params.yaml: `params` is the section named like the stage, any other is a section named like the
argument.

Stage modules import their libraries inside the function, so that reading a signature (for --help, for a compiled
pipeline, for the contract test) loads neither torch nor mlflow.

A stage module may name what the command line can do instead of running the stage (a preview, a way back):

    OTHERWISE = {"dry_run": preview}

`preview` takes some of the stage's inputs and sections, makes no output, and its docstring's first line is the help.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from mdpr.config import Section
from mdpr.errors import ArtifactError, CheckFailed, ConfigError, MdprError

logger = logging.getLogger(__name__)


class Direction(Enum):
    IN = "in"
    OUT = "out"


In = Annotated[Path, Direction.IN]
Out = Annotated[Path, Direction.OUT]

# The flow, in order, with the line each stage has in `mdpr --help`.
STAGES: dict[str, str] = {
    "prepare": "Cut a long-tailed training set, a balanced validation set and the test set from a source.",
    "validate": "Check the prepared data and write Data Docs.",
    "probe": "Read the frozen CLIP's own bias from the training images: confusion, rivals, hidden prior.",
    "describe": "Gather one sentence a class in each of the five dimensions, and audit them.",
    "encode": "Turn the sentences into features with the frozen text encoder.",
    "tune": "Train the prompts and the router; keep the epoch that is best on validation.",
    "evaluate": "Score the untouched test set: base, routed, fused, by all / many / medium / few.",
    "register": "Make a version in the MLflow model registry, alias `challenger`.",
    "promote": "Move the alias `champion` to the challenger when the gate passes.",
}


@dataclass(frozen=True)
class Interface:
    """A function and what it takes, in order of declaration."""

    function: Callable[..., None]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sections: Mapping[str, str]  # keyword argument -> section of params.yaml

    @property
    def help(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]


@dataclass(frozen=True)
class Stage(Interface):
    """A stage's name, its function, its interface, and what the command line can do instead of running it."""

    name: str
    otherwise: Mapping[str, Interface]

    @property
    def ports(self) -> tuple[str, ...]:
        return self.inputs + self.outputs


def load_stage(name: str) -> Stage:
    """The stage called `name`, its interface read from the signature."""
    if name not in STAGES:
        raise ConfigError(f"there is no stage {name}: there are {', '.join(STAGES)}")
    module = importlib.import_module(f"mdpr.stages.{name}")
    otherwise = {flag: _interface(name, function) for flag, function in getattr(module, "OTHERWISE", {}).items()}
    whole = _interface(name, getattr(module, name))
    return Stage(whole.function, whole.inputs, whole.outputs, whole.sections, name, otherwise)


def _interface(stage: str, function: Callable[..., None]) -> Interface:
    hints = get_type_hints(function, include_extras=True)
    inputs: list[str] = []
    outputs: list[str] = []
    sections: dict[str, str] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            sections[parameter.name] = stage if parameter.name == "params" else parameter.name
        else:
            direction = get_args(hints[parameter.name])[1]
            (inputs if direction is Direction.IN else outputs).append(parameter.name)
    return Interface(function, tuple(inputs), tuple(outputs), sections)


def run_stage(stage: Stage, paths: Mapping[str, Path], params: Mapping[str, Section]) -> None:
    """Run `stage` on `paths` (port -> path) with the parsed sections of params.yaml.

    Outputs appear whole or not at all: the stage writes to a temporary name beside each output, renamed once it
    has returned. Where a check failed (`CheckFailed`), what it wrote is kept as `<output>.failed`.
    Raises `ArtifactError` for an input that is not there.
    """
    arguments = _arguments(stage, stage, paths, params)
    started = time.monotonic()
    with _whole_or_not_at_all([paths[port] for port in stage.outputs]) as partial:
        outputs = dict(zip(stage.outputs, partial, strict=True))
        _call(stage, stage, arguments | outputs)
    logger.info("%s done in %.1f s", stage.name, time.monotonic() - started)


def run_otherwise(stage: Stage, flag: str, paths: Mapping[str, Path], params: Mapping[str, Section]) -> None:
    """Do what `stage` offers under `flag` instead of running. Raises as `run_stage` does."""
    other = stage.otherwise[flag]
    _call(stage, other, _arguments(stage, other, paths, params))


def _arguments(
    stage: Stage, interface: Interface, paths: Mapping[str, Path], params: Mapping[str, Section]
) -> dict[str, Any]:
    for port in interface.inputs:
        if not paths[port].exists():
            raise ArtifactError(
                f"{stage.name} needs {port} at {paths[port]}, which does not exist: run its stage first"
            )
    sections = {keyword: params[section] for keyword, section in interface.sections.items()}
    return {port: paths[port] for port in interface.inputs} | sections


def _call(stage: Stage, interface: Interface, arguments: Mapping[str, Any]) -> None:
    try:
        interface.function(**arguments)
    except ModuleNotFoundError as error:
        extras = "pip install 'mdpr[data,llm,train,track]'"
        raise MdprError(f"{stage.name} needs the package {error.name}, which is not installed: {extras}") from error


@contextmanager
def _whole_or_not_at_all(finals: list[Path]) -> Iterator[list[Path]]:
    """Temporary names for `finals`, renamed on success, kept as `.failed` on `CheckFailed`, removed otherwise."""
    partial = [final.with_name(f".{final.name}.partial") for final in finals]
    failed = [final.with_name(f"{final.name}.failed") for final in finals]
    for path in (*partial, *failed):
        _remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        for temporary, final in zip(partial, finals, strict=True):
            assert temporary.exists(), f"the stage did not write {final}"
        for temporary, final in zip(partial, finals, strict=True):
            _remove(final)
            temporary.rename(final)
    except CheckFailed as error:
        for temporary, kept in zip(partial, failed, strict=True):
            if temporary.exists():
                temporary.rename(kept)
        raise type(error)(f"{error}; see {', '.join(str(path) for path in failed)}") from None
    except OSError as error:
        raise MdprError(f"{error.strerror or error}: {error.filename or finals[0]}") from error
    finally:
        for path in partial:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
