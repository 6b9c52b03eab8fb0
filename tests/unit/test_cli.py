"""The command line as a user meets it, in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mdpr.artifacts import ClassInfo, write_classes
from mdpr.cli import stage_command
from mdpr.launch import COLLECT_AFTER
from mdpr.params import DIMENSIONS
from mdpr.stages.stage import STAGES, load_stage


def mdpr(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mdpr", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_help_lists_the_stages_in_order(tmp_path: Path) -> None:
    done = mdpr("--help", cwd=tmp_path)
    assert done.returncode == 0
    places = [done.stdout.index(f"\n  {name} ") for name in STAGES]
    assert places == sorted(places)


def test_a_command_waits_less_for_the_garbage_collector(tmp_path: Path) -> None:
    code = "import gc; from mdpr.cli import main\ntry: main()\nfinally: print(gc.get_threshold()[0])"
    done = subprocess.run([sys.executable, "-c", code, "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split()[-1] == str(COLLECT_AFTER)


def test_a_stages_help_explains_ports_and_settings(tmp_path: Path) -> None:
    done = mdpr("tune", "--help", cwd=tmp_path)
    assert done.returncode == 0
    for port in load_stage("tune").ports:
        assert f"--{port} PATH" in done.stdout
    assert "--base-loss ce|logit_adjusted|" in done.stdout
    assert "loss of the base branch [default: 'logit_adjusted']" in " ".join(done.stdout.split())
    assert "Settings in `backbone`" in done.stdout


@pytest.mark.parametrize("name", STAGES)
def test_a_stages_help_ends_with_a_command_to_copy(name: str) -> None:
    text = CliRunner().invoke(stage_command(load_stage(name)), ["--help"], max_content_width=110).output
    example = text.partition("Example:")[2].replace("\\\n", " ").split()
    assert example[:2] == ["mdpr", name]
    assert [word for word in example if word.startswith("--")] == [f"--{port}" for port in load_stage(name).ports]
    assert max(map(len, text.partition("Example:")[2].splitlines())) <= 100


def test_a_plain_setting_is_an_option(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("prepare: {seed: 1}")
    done = mdpr("prepare", "--prepared", "out", "--seed", "-1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: prepare.seed = -1: must be from 0 to 4294967295\n"


def test_a_missing_port_is_named(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("{}")
    done = mdpr("validate", "--prepared", "data", cwd=tmp_path)
    assert done.returncode == 2
    assert "Missing option '--validation'" in done.stderr + done.stdout


def test_mistakes_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = mdpr("prepare", "--prepared", "out", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: params.yaml does not exist: run from the project folder, or name another file\n"
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "params.yaml").write_text("prepare: {sead: 1}")
    done = mdpr("prepare", "--prepared", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: prepare.sead is not a setting; did you mean seed?\n"

    done = mdpr("prepair", "--prepared", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "No such command 'prepair'; did you mean prepare?" in done.stderr
    assert "did you mean compile?" in mdpr("pipeline", "compil", cwd=tmp_path).stderr


def test_predict_ends_in_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No image, none of that name, and a registry that is down."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.png").write_bytes(b"x")
    for words, fault in {
        ("folder",): "no image in folder",
        ("none.png",): "none.png does not exist",
        ("none.csv", "x.png"): "none.csv does not exist",
        ("x.png",): "http://127.0.0.1:1 cannot be reached",
    }.items():
        done = mdpr("predict", *words, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert fault in done.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "x.png"]


def test_a_dependency_that_nothing_reads_is_named_before_dvc_misses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text("describe: {provider: local, path: none.json}\nprepare: {root: none}")
    monkeypatch.setenv("DVC_STAGE", "prepare")
    done = mdpr("prepare", "--prepared", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "describe.path = none.json does not exist" in done.stderr
    assert "set it to data/prepared" in done.stderr
    done = mdpr("prepare", "--prepared", "out", "--set", "describe.path=data/prepared", cwd=tmp_path)
    assert "prepare.root = none" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--verbose", "prepare", "--prepared", "out"),
        ("prepare", "--prepared", "out", "-v"),
        ("tracking", "publish", "--verbose"),
        ("pipeline", "trainjob", "-v", "--cluster", "params.yaml"),
    ],
    ids=" ".join,
)
def test_verbose_adds_the_traceback_and_keeps_the_line(words: tuple[str, ...], tmp_path: Path) -> None:
    done = mdpr(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: params.yaml does not exist")


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit", "nowhere/knowledge.json"),
        ("new", "new.json", "--prepared", "prepared", "--earlier", "nowhere/knowledge.json"),
    ],
)
def test_a_knowledge_base_that_is_missing_is_named_with_what_makes_one(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    classes = [ClassInfo(index=i, name=name, train_images=1, shot="few") for i, name in enumerate(("boot", "bag"))]
    (tmp_path / "prepared").mkdir()
    write_classes(tmp_path / "prepared", classes)
    done = mdpr("knowledge", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere/knowledge.json is missing: run describe first" in done.stderr
    assert "mdpr knowledge new FILE" in done.stderr


def test_control_characters_never_reach_the_terminal(tmp_path: Path) -> None:
    """As an error, as a finding, and as JSON."""
    name = "a\x1b]0;title\x07b\u202e\x9b"
    sentences = dict.fromkeys(DIMENSIONS, f"One sentence on the {name} of it.")
    content = {"provenance": {}, "classes": [{"index": 0, "name": name, "sentences": sentences}]}
    (tmp_path / "base.json").write_text(json.dumps(content))
    for options in ([], ["--json"]):
        done = mdpr("knowledge", "audit", "base.json", *options, cwd=tmp_path)
        assert done.returncode == 2
        printed = done.stdout + done.stderr
        assert [letter for letter in printed if letter not in "\n" and not letter.isprintable()] == []
        assert r"\u202e" in printed
    (tmp_path / "params.yaml").write_text(json.dumps({"prepare": {name: 1}}))
    done = mdpr("prepare", "--prepared", "out", cwd=tmp_path)
    assert r"\x1b" in done.stderr
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_cannot_show_a_character_gets_another(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("tracking: {model_name: Mödel 日本}", encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    command = [sys.executable, "-m", "mdpr", "registry", "list"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "del " in done.stdout.decode(encoding)


# A command as mdpr.commands has them, whose thread goes on computing in a C++ library when a signal comes.
COMPUTES = """
import sys, threading, time, types
import click
import pyarrow as pa, pyarrow.compute, torch
from mdpr import cli
from mdpr.errors import Interrupted
from mdpr.training.checkpoint import listen_for_sigterm

x, column = torch.rand(64, 64), pa.array(range(10_000))
work = {"torch": lambda: torch.linalg.svd(x), "pyarrow": lambda: pa.compute.sort_indices(column)}[sys.argv.pop()]

def go_on():
    while True:
        work()

@click.command()
def stall():
    threading.Thread(target=go_on, daemon=True).start()
    with listen_for_sigterm() as stop:
        print("ready", flush=True)
        while not stop.is_set():  # as tune does: a handler cannot set an event whose lock `wait` holds
            time.sleep(0.01)
    raise Interrupted("stopped")

sys.modules["mdpr.commands.stalling"] = types.SimpleNamespace(stall=stall)
cli.COMMANDS["stall"] = ("stalling", "")
cli.main()
"""


@pytest.mark.parametrize(
    ("library", "number", "code"),
    [("torch", signal.SIGINT, 130), ("pyarrow", signal.SIGINT, 130), ("torch", signal.SIGTERM, 143)],
)
def test_a_stop_keeps_its_exit_code_while_a_thread_computes_in_a_library(
    tmp_path: Path, library: str, number: int, code: int
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", COMPUTES, "stall", library],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell in the background ignores it
    )
    assert child.stdout
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == code, errors
    assert len(errors.split("\n")) <= 2


def test_a_pipe_that_closes_early_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m mdpr recipe list | true"
    done = subprocess.run(["/bin/bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""


@pytest.mark.parametrize("words", [("recipe", "list"), ("--help",), ("tune", "--help")])
def test_a_full_disk_behind_the_output_is_one_line(words: tuple[str, ...], tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "mdpr", *words]
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2
    assert [line.startswith("error: ") and "No space left" in line for line in done.stderr.splitlines()] == [True]
