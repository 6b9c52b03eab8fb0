"""The runner of stages: outputs whole or not at all."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mdpr.errors import ArtifactError, CheckFailed, ConfigError, MdprError
from mdpr.params import Params, TuneParams, parse_params
from mdpr.stages.outputs import MARKER
from mdpr.stages.stage import STAGES, Made, Stage, load_stage, run_stage


def stage(function: Callable[..., str | Made | None]) -> Stage:
    return Stage(function, ("source",), ("made",), {"params": "tune"}, "tune", {})


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "source").write_text("in")
    return {"source": tmp_path / "source", "made": tmp_path / "folder" / "made"}


@pytest.fixture
def params() -> Params:
    return parse_params({})


def write(source: Path, made: Path, params: TuneParams) -> None:
    made.mkdir()
    (made / "file").write_text(source.read_text())


def test_an_output_is_renamed_into_place(paths: dict[str, Path], params: Params) -> None:
    run_stage(stage(write), paths, params)
    assert (paths["made"] / "file").read_text() == "in"
    assert [path.name for path in paths["made"].parent.iterdir()] == ["made"]


def test_the_last_line_says_what_was_made(
    paths: dict[str, Path], params: Params, caplog: pytest.LogCaptureFixture
) -> None:
    def says(source: Path, made: Path, params: TuneParams) -> str:
        write(source, made, params)
        return "made: one file"

    with caplog.at_level("INFO", "mdpr"):
        run_stage(stage(says), paths, params)
    assert caplog.messages[-1] == "made: one file"


def test_what_a_stage_leaves_for_later_finds_its_outputs_in_place(
    paths: dict[str, Path], params: Params, caplog: pytest.LogCaptureFixture
) -> None:
    found: list[str] = []

    def publishes(source: Path, made: Path, params: TuneParams) -> Made:
        write(source, made, params)
        return Made("made: one file", then=lambda: found.append((paths["made"] / "file").read_text()))

    with caplog.at_level("INFO", "mdpr"):
        run_stage(stage(publishes), paths, params)
    assert found == ["in"]
    assert caplog.messages[-1] == "made: one file"

    def is_killed(source: Path, made: Path, params: TuneParams) -> Made:
        def stop() -> None:
            raise KeyboardInterrupt

        made.mkdir()
        (made / "file").write_text("second")
        return Made("made: one file", then=stop)

    with pytest.raises(KeyboardInterrupt):
        run_stage(stage(is_killed), paths, params)
    assert (paths["made"] / "file").read_text() == "second"


def test_a_second_run_replaces_the_whole_output(paths: dict[str, Path], params: Params) -> None:
    def writes_more(source: Path, made: Path, params: TuneParams) -> None:
        write(source, made, params)
        (made / "stale").write_text("old")

    run_stage(stage(writes_more), paths, params)
    run_stage(stage(write), paths, params)
    assert sorted(path.name for path in paths["made"].iterdir()) == [MARKER, "file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MdprError("no"), ZeroDivisionError])
def test_a_stage_that_stops_leaves_the_old_output_and_nothing_else(
    paths: dict[str, Path], params: Params, error: BaseException
) -> None:
    run_stage(stage(write), paths, params)
    paths["source"].write_text("new")

    def stops(source: Path, made: Path, params: TuneParams) -> None:
        write(source, made, params)
        raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        run_stage(stage(stops), paths, params)
    assert [path.name for path in paths["made"].parent.iterdir()] == ["made"]
    assert (paths["made"] / "file").read_text() == "in"


def test_what_a_failed_check_wrote_is_kept_beside_the_output(paths: dict[str, Path], params: Params) -> None:
    def fails(source: Path, made: Path, params: TuneParams) -> None:
        write(source, made, params)
        raise CheckFailed("class 3 has no image")

    with pytest.raises(CheckFailed, match=r"class 3 has no image; see .*made\.failed"):
        run_stage(stage(fails), paths, params)
    assert not paths["made"].exists()
    assert (paths["made"].parent / "made.failed" / "file").read_text() == "in"
    run_stage(stage(write), paths, params)
    assert not (paths["made"].parent / "made.failed").exists()


def test_what_a_killed_run_left_does_not_stop_the_next(paths: dict[str, Path], params: Params) -> None:
    left = paths["made"].with_name(".made.mdpr") / "0123abcd.new"
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    (left.parent / "lock").write_text("")
    run_stage(stage(write), paths, params)
    assert [path.name for path in paths["made"].parent.iterdir()] == ["made"]


@pytest.fixture
def resumable() -> Stage:
    """A stage that keeps what it did in its checkpoint, and stops the first time."""

    def goes_on(source: Path, made: Path, kept: Path, params: TuneParams) -> None:
        if not kept.exists():
            kept.mkdir()
            raise MdprError("stopped")
        write(source, made, params)

    return replace(stage(goes_on), checkpoint="kept")


def test_a_checkpoint_outlives_a_run_that_stops_and_goes_with_one_that_succeeds(
    paths: dict[str, Path], params: Params, resumable: Stage
) -> None:
    with pytest.raises(MdprError, match="stopped"):
        run_stage(resumable, paths, params)
    assert [path.name for path in paths["made"].parent.iterdir()] == [".made.checkpoint"]
    run_stage(resumable, paths, params)
    assert [path.name for path in paths["made"].parent.iterdir()] == ["made"]


@pytest.mark.parametrize("output", [".", "", "/", ".."])
def test_a_wrong_output_of_a_stage_with_a_checkpoint_is_refused(
    paths: dict[str, Path], params: Params, resumable: Stage, output: str
) -> None:
    with pytest.raises(ConfigError, match="working folder"):
        run_stage(resumable, paths | {"made": Path(output)}, params)


def test_tune_and_promote_have_a_checkpoint_and_it_is_no_port() -> None:
    stages = [load_stage(name) for name in STAGES]
    assert {item.name: item.checkpoint for item in stages if item.checkpoint} == dict.fromkeys(
        ("tune", "promote"), "checkpoint"
    )
    assert all("checkpoint" not in item.ports for item in stages)


def test_of_several_processes_the_one_that_leads_writes(
    paths: dict[str, Path], params: Params, resumable: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    kept = paths["made"].with_name(".made.checkpoint")
    kept.mkdir(parents=True)
    monkeypatch.setenv("RANK", "1")
    run_stage(resumable, paths, params)
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    monkeypatch.setenv("RANK", "0")
    run_stage(resumable, paths, params)
    assert [path.name for path in kept.parent.iterdir()] == ["made"]


def test_a_missing_input_is_named(paths: dict[str, Path], params: Params) -> None:
    paths["source"].unlink()
    with pytest.raises(ArtifactError, match=r"tune needs source at .*source, which does not exist"):
        run_stage(stage(write), paths, params)


def test_a_full_disk_is_one_line(paths: dict[str, Path], params: Params) -> None:
    def full(source: Path, made: Path, params: TuneParams) -> None:
        with Path("/dev/full").open("w") as file:
            file.write("x" * 100_000)

    with pytest.raises(MdprError, match="No space left on device"):
        run_stage(stage(full), paths, params)


def test_a_library_that_is_not_installed_is_named(paths: dict[str, Path], params: Params) -> None:
    def imports(source: Path, made: Path, params: TuneParams) -> None:
        importlib.import_module("no_such_library")

    with pytest.raises(MdprError, match=r"tune needs the package no_such_library, which is not installed: pip install"):
        run_stage(stage(imports), paths, params)


def test_there_are_nine_stages_and_no_other() -> None:
    assert [load_stage(name).name for name in STAGES] == list(STAGES)
    assert len(STAGES) == 9
    with pytest.raises(ConfigError, match="there is no stage tuna"):
        load_stage("tuna")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes")])
def test_too_little_memory_is_one_line(paths: dict[str, Path], params: Params, error: Exception) -> None:
    def grows(source: Path, made: Path, params: TuneParams) -> None:
        raise error

    with pytest.raises(MdprError, match="tune ran out of memory"):
        run_stage(stage(grows), paths, params)


def test_another_runtime_error_stays_what_it_is(paths: dict[str, Path], params: Params) -> None:
    def fails(source: Path, made: Path, params: TuneParams) -> None:
        raise RuntimeError("a slip of ours")

    with pytest.raises(RuntimeError, match="a slip of ours"):
        run_stage(stage(fails), paths, params)


@pytest.mark.parametrize("name", ["prepare", "probe", "evaluate"])
def test_a_limit_of_address_space_ends_a_stage_before_work(tmp_path: Path, project_root: Path, name: str) -> None:
    loaded = load_stage(name)
    for port in loaded.inputs:
        (tmp_path / port).mkdir()
    ports = [part for port in loaded.ports for part in (f"--{port}", port)]
    command = [sys.executable, "-m", "mdpr", name, *ports, "--params", str(project_root / "params.yaml")]
    limited = ["sh", "-c", 'ulimit -v 1000000; exec "$@"', "sh", *command]
    done = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "ulimit -v" in done.stderr
    assert len(done.stderr.splitlines()) == 1
