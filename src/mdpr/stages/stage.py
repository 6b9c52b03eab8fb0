"""A stage as its function's signature defines it: the one definition behind the CLI, DVC and Kubeflow.

    def tune(prepared: In, features: In, probe: In, model: Out, *, params: TuneParams,
             backbone: BackboneParams) -> str

Positional arguments are ports: `In` exists when the stage starts, `Out` is made by it. Keyword-only arguments are
sections of params.yaml: `params` is the section named like the stage, any other is a section named like the
argument. It returns what it made, in one line; or a `Made`, if there is more to do once its outputs stand.

A stage that takes long may take a `Checkpoint` as well: a folder of its own beside its first output, which outlives a
run that was killed and is removed by one that succeeds. It is not a port, so drivers do not handle it.

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
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from mdpr.errors import ArtifactError, ConfigError, MdprError
from mdpr.launch import address_space_mb, end_with_driver, read_launch
from mdpr.params import Params, input_paths
from mdpr.stages.outputs import beside, dropped, whole_or_not_at_all

logger = logging.getLogger(__name__)

CHECKPOINTS = "MDPR_CHECKPOINTS"  # environment variable: the folder of checkpoints, if not that of the output
OUT_OF_MEMORY = re.compile(r"out of memory|allocate memory|start new thread")


class Direction(Enum):
    """Whether a stage reads a path, writes it, or keeps state in it."""

    IN = "in"
    OUT = "out"
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Made:
    """A stage's result in one line, and what is left to do once its outputs stand: a kill then costs none of them."""

    line: str
    then: Callable[[], None]


In = Annotated[Path, Direction.IN]
Out = Annotated[Path, Direction.OUT]
Checkpoint = Annotated[Path, Direction.CHECKPOINT]

# The flow, in order, with the line each stage has in `mdpr --help`.
STAGES: dict[str, str] = {
    "prepare": "Cut a long-tailed training set, a balanced validation set and the test set from a source.",
    "validate": "Check the prepared data and write Data Docs.",
    "probe": "Read the frozen CLIP's own bias from the training images: confusion, rivals, hidden prior.",
    "describe": "Gather one sentence per class in each of the five dimensions, and audit them.",
    "encode": "Turn the sentences into features with the frozen text encoder.",
    "tune": "Train the prompts and the router; keep the epoch that is best on validation.",
    "evaluate": "Score the untouched test set: base, routed, fused, by all / many / medium / few.",
    "register": "Make a version in the MLflow model registry, alias `challenger`.",
    "promote": "Move the alias `champion` to the challenger when the gate passes.",
}

# Peak memory on the embedded data, CPU, in MB: resident, and address space (what `ulimit -v` limits). Both grow with
# the data and the model. Charts need more: evaluate leaves them out where they cannot have it.
MEMORY_MB: dict[str, tuple[int, int]] = {
    "prepare": (190, 1_900),
    "validate": (380, 2_100),
    "probe": (1_130, 5_400),
    "describe": (70, 370),
    "encode": (990, 3_800),
    "tune": (1_320, 5_700),
    "evaluate": (1_460, 5_700),
    "register": (1_290, 6_000),
    "promote": (960, 5_100),
}


@dataclass(frozen=True)
class Interface:
    """A function of the stage `name` and what it takes, in order of declaration."""

    function: Callable[..., str | Made | None]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sections: Mapping[str, str]  # keyword argument -> section of params.yaml
    name: str

    @property
    def help(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]


@dataclass(frozen=True)
class Stage(Interface):
    """The interface of the stage itself, and what the command line can do instead of running it."""

    otherwise: Mapping[str, Interface]
    checkpoint: str | None = None  # the argument that takes the checkpoint's folder

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
    checkpoint = next(iter(_ports(whole.function, Direction.CHECKPOINT)), None)
    return Stage(**vars(whole), otherwise=otherwise, checkpoint=checkpoint)


def _interface(stage: str, function: Callable[..., str | Made | None]) -> Interface:
    sections = {
        parameter.name: stage if parameter.name == "params" else parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    return Interface(function, _ports(function, Direction.IN), _ports(function, Direction.OUT), sections, stage)


def _ports(function: Callable[..., str | Made | None], direction: Direction) -> tuple[str, ...]:
    """The positional arguments that are annotated with `direction`."""
    hints = get_type_hints(function, include_extras=True)
    return tuple(
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY and get_args(hints[parameter.name])[1] is direction
    )


def run_stage(stage: Stage, paths: Mapping[str, Path], params: Params) -> None:
    """Run `stage` on `paths` (port -> path) with the parsed sections of params.yaml.

    Outputs appear whole or not at all (`mdpr.stages.outputs`): the stage writes under another name, renamed once it has
    returned. If a check failed (`CheckFailed`), what it wrote is kept as `<output>.failed`.
    Of several processes that torchrun started, the main one writes outputs; what the others write is dropped.
    Raises `ArtifactError` for an input that does not exist, and `ConfigError` for an output that would replace anything
    but an earlier output of this stage, or that another process is writing.
    """
    end_with_driver()
    _check_memory(stage)
    started = time.monotonic()
    arguments = _arguments(stage, paths, params)
    outputs = {port: paths[port] for port in stage.outputs}
    first = paths[stage.outputs[0]]
    kept = Path(os.environ[CHECKPOINTS]) / first.name if CHECKPOINTS in os.environ else first
    checkpoint = beside(kept, ".", ".checkpoint") if stage.checkpoint else None
    if stage.checkpoint:
        arguments[stage.checkpoint] = checkpoint
    if read_launch().is_main:
        inputs = {port: paths[port] for port in stage.inputs}
        for section in stage.sections.values():
            inputs |= {f"{section}.{key}": path for key, path in input_paths(getattr(params, section)).items()}
        writing = whole_or_not_at_all(outputs, inputs, checkpoint=checkpoint)
    else:
        writing = dropped(len(outputs))
    with writing as partial:
        made = _call(stage, arguments | dict(zip(outputs, partial, strict=True)))
    if isinstance(made, Made):
        made.then()
    logger.info("%s done in %.1f s", stage.name, time.monotonic() - started)
    if made:
        logger.info("%s", made.line if isinstance(made, Made) else made)


def run_otherwise(stage: Stage, flag: str, paths: Mapping[str, Path], params: Params) -> None:
    """Do what `stage` offers under `flag` instead of running. Raises as `run_stage` does."""
    other = stage.otherwise[flag]
    _call(other, _arguments(other, paths, params))


def _arguments(interface: Interface, paths: Mapping[str, Path], params: Params) -> dict[str, Any]:
    for port in interface.inputs:
        if not os.path.exists(paths[port]):  # Path.exists raises for a name that is too long
            needs = f"{interface.name} needs {port} at {paths[port]}"
            raise ArtifactError(f"{needs}, which does not exist: run its stage first")
    sections = {keyword: params.section(section) for keyword, section in interface.sections.items()}
    return {port: paths[port] for port in interface.inputs} | sections


def _check_memory(stage: Stage) -> None:
    """Raises `MdprError` under a limit of address space in which a library would end the process by a signal."""
    limit_mb, need_mb = address_space_mb(), MEMORY_MB[stage.name][1]
    if limit_mb < need_mb:
        raise MdprError(
            f"{stage.name} needs {need_mb:,} MB of address space, the limit is {limit_mb:,.0f} MB: raise `ulimit -v`"
        )
    if limit_mb < float("inf"):  # NumPy's BLAS reserves memory per core, and ends the process if it cannot
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _call(interface: Interface, arguments: Mapping[str, Any]) -> str | Made | None:
    try:
        return interface.function(**arguments)
    except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError
        reason = " ".join(str(error).split())
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(reason):
            raise
        raise MdprError(
            f"{interface.name} ran out of memory ({reason[:200] or 'allocation failed'}): give it more, or lower its "
            "batch_size or workers"
        ) from error
    except ModuleNotFoundError as error:
        extras = "pip install 'mdpr[data,llm,train,track]'"
        raise MdprError(f"{interface.name} needs the package {error.name}, which is not installed: {extras}") from error
