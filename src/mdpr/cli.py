"""`mdpr`: the stages of the pipeline, and the commands around it.

Starting up loads click and nothing heavy: `mdpr --help` must not wait for torch, mlflow or kfp.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys

import click

from mdpr.commands.stage import TableGroup, stage_command
from mdpr.errors import Interrupted, MdprError, printable
from mdpr.launch import collect_rarely, read_launch
from mdpr.stages.stage import STAGES, load_stage

EPILOG = """Stages run in the order shown. `dvc repro` runs them all and skips what is up to date; each stage is
also a component of the Kubeflow pipeline in pipelines/."""

CTRL_C = 130  # exit code
# Name -> its module in mdpr.commands, where it stands under that name, and its line in `mdpr --help`.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("projects", "Make a project of your own: Git, DVC, settings, policy, README, CI workflow."),
    "demo": ("projects", "Run the whole chain on the embedded data in a folder of its own: `mdpr demo`."),
    "repro": ("projects", "`dvc repro`, also if this environment is not activated: `.venv/bin/mdpr repro`."),
    "knowledge": ("inputs", "Start, check or merge a knowledge base: `mdpr knowledge audit FILE`."),
    "summary": (
        "results",
        "Show the scores, the champion in the MLflow registry, the gate's decision and the report's path.",
    ),
    "report": ("results", "Make the report again with the gate's decision, and open it."),
    "compare": ("results", "Compare runs on the same test images: paired tests, corrected by Holm's method."),
    "registry": ("models", "Look into the MLflow model registry: versions, aliases, test figures."),
    "predict": ("models", "Classify image files, folders or a list of them with the champion or another model."),
    "serve": ("models", "Serve the champion over HTTP."),
    "monitor": ("monitor", "Judge what a deployed model answered: label shift, expected accuracy, drift of features."),
    "tracking": ("models", "Publish to MLflow what it could not take while it was down."),
    "recipe": ("projects", "List, show or use the settings of a known benchmark."),
    "pipeline": ("projects", "Compile the Kubeflow pipeline, run it here, or start it on a cluster."),
    "data": ("inputs", "See how a data set would be read; bring one that DVC keeps elsewhere into data/."),
}


class PrintableFormatter(logging.Formatter):
    """One line per message: a control character in a name is shown escaped and never reaches the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(record.message)


def tables() -> dict[str, dict[str, str]]:
    """The commands with their lines, by the titles in `mdpr --help`."""
    return {"Stages, in order": STAGES, "Other commands": {name: line for name, (_, line) in COMMANDS.items()}}


def load(name: str) -> click.Command:
    """The command `name` of `tables`."""
    if name in STAGES:
        return stage_command(load_stage(name))
    command: click.Command = getattr(importlib.import_module(f"mdpr.commands.{COMMANDS[name][0]}"), name)
    return command


@click.group(cls=TableGroup, tables=tables, load=load, epilog=EPILOG, context_settings={"max_content_width": 110})
@click.version_option(package_name="mdpr")
@click.option("--verbose", "-v", is_flag=True, help="Show debug messages, and the traceback of an error.")
def cli(verbose: bool) -> None:
    """Tune CLIP on long-tailed data with multi-dimensional dynamic prompt routing (MDPR)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    level = logging.INFO if read_launch().is_main else logging.WARNING  # of torchrun's processes only the main one
    logging.getLogger("mdpr").setLevel(logging.DEBUG if verbose else level)
    logging.getLogger("urllib3").setLevel(logging.DEBUG if verbose else logging.ERROR)  # it warns of each try


def main() -> None:
    """Entry point: one line and exit code 2 for a user's mistake, 130 for Ctrl-C."""
    collect_rarely()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character of a name or a table
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()  # what is printed last may find the disk of `> file` full
    except click.exceptions.Abort:
        code = CTRL_C
    except BrokenPipeError:  # `mdpr registry list | head -1`
        code = 0
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (MdprError, OSError) as error:
        if logging.getLogger("mdpr").isEnabledFor(logging.DEBUG):
            logging.getLogger("mdpr").exception("traceback")
        click.echo(f"error: {printable(str(error))}", err=True)
        code = error.exit_code if isinstance(error, MdprError) else 2
    try:
        sys.stdout.flush()
    except OSError:  # the output that failed is still waiting: it must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if code in (CTRL_C, Interrupted.exit_code):
        # A thread may still compute in a library: torch aborts the process if the interpreter ends meanwhile.
        logging.shutdown()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
