"""The checkpoint's file: whole, exact, and known to its own run alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mdpr.errors import ArtifactError
from mdpr.training.checkpoint import FILE, Checkpoints, Snapshot, first_difference

IDENTITY = {"tune.learning_rate": 0.001, "tune.micro_batch_size": None, "backbone": "tiny:12ab", "processes": 1}
SNAPSHOT = Snapshot(
    {"weights.a": torch.tensor([0.1, float("inf")]), "optimizer.0.step": torch.tensor(3.0), "terms": torch.rand(2, 4)},
    {"epoch": 1, "history": [{"loss": 0.1 + 0.2, "val": float("nan")}]},
)


def test_what_was_written_comes_back_to_the_bit(tmp_path: Path) -> None:
    writer = Checkpoints(tmp_path / "odd näme .checkpoint", IDENTITY, {"run_id": "abc"})
    writer.write(SNAPSHOT)
    writer.write(SNAPSHOT)
    reader = Checkpoints(writer.folder, IDENTITY)
    found = reader.read()
    assert found is not None
    assert found.tensors.keys() == SNAPSHOT.tensors.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in SNAPSHOT.tensors.items())
    assert repr(found.record) == repr(SNAPSHOT.record)
    assert reader.notes == {"run_id": "abc"}
    assert [path.name for path in writer.folder.iterdir()] == [FILE]


def test_there_is_nothing_before_the_first_and_after_a_discard(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", IDENTITY)
    assert checkpoints.read() is None
    checkpoints.write(SNAPSHOT)
    checkpoints.discard()
    assert checkpoints.read() is None
    assert not checkpoints.folder.exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tune.learning_rate": 0.01}, "tune.learning_rate is 0.01 here, 0.001 there"),
        ({"tune.micro_batch_size": 8}, "tune.micro_batch_size is 8 here, None there"),
        ({"backbone": "tiny:99ff"}, "backbone is 'tiny:99ff' here, 'tiny:12ab' there"),
        ({"processes": 2}, "processes is 2 here, 1 there"),
        ({"tune.new": 1}, "tune.new is 1 here, absent there"),
    ],
)
def test_another_configuration_is_named_with_both_values_and_touches_nothing(
    tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    Checkpoints(tmp_path, IDENTITY).write(SNAPSHOT)
    before = (tmp_path / FILE).read_bytes()
    other = Checkpoints(tmp_path, {**IDENTITY, **changes})  # type: ignore[arg-type]
    with pytest.raises(ArtifactError) as caught:
        other.read()
    message = str(caught.value)
    assert (
        message
        == f"{tmp_path} was left by another configuration: {named}; set it back, or remove {tmp_path} to start over"
    )
    assert (tmp_path / FILE).read_bytes() == before


def test_equal_identities_do_not_differ() -> None:
    assert first_difference(IDENTITY, dict(reversed(IDENTITY.items()))) == ""


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\x80\x04\x95pickle", None])
def test_a_damaged_checkpoint_is_named_with_the_way_out(tmp_path: Path, damage: bytes | None) -> None:
    Checkpoints(tmp_path, IDENTITY).write(SNAPSHOT)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[:-5] if damage is None else damage)
    with pytest.raises(ArtifactError, match=r"is not a readable checkpoint .*: remove .* to start over"):
        Checkpoints(tmp_path, IDENTITY).read()


def test_another_format_is_not_half_understood(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / FILE, {"format": "mdpr-checkpoint/9"})
    with pytest.raises(ArtifactError, match=r"mdpr-checkpoint/9, expected mdpr-checkpoint/1.*: remove"):
        Checkpoints(tmp_path, IDENTITY).read()


def test_a_checkpoint_that_was_changed_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    Checkpoints(tmp_path, IDENTITY).write(SNAPSHOT)
    with safe_open(tmp_path / FILE, framework="pt") as file:
        metadata = file.metadata()
    tensors = {name: value + 1 for name, value in load_file(tmp_path / FILE).items()}
    save_file(tensors, tmp_path / FILE, metadata)
    with pytest.raises(ArtifactError, match=r"was changed after tune wrote it.*: remove"):
        Checkpoints(tmp_path, IDENTITY).read()


def test_the_same_snapshot_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        Checkpoints(tmp_path / name, IDENTITY).write(SNAPSHOT)
    assert (tmp_path / "first" / FILE).read_bytes() == (tmp_path / "second" / FILE).read_bytes()


def test_a_half_written_file_beside_it_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    (tmp_path / "state.partial").write_bytes(b"half")
    assert checkpoints.read() is None
    checkpoints.write(SNAPSHOT)
    assert checkpoints.read() is not None


def test_a_checkpoint_that_cannot_be_written_is_one_line_and_leaves_the_old_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.write(SNAPSHOT)
    (tmp_path / "state.partial").mkdir()
    with pytest.raises(ArtifactError, match=r"state\.partial cannot be written \(.*\): make room"):
        checkpoints.write(Snapshot({}, {}))
    found = checkpoints.read()
    assert found is not None
    assert found.record["epoch"] == 1


# Whatever line of the handler runs, another SIGTERM comes: a launcher and the node's agent both send one.
SIGNALS = """
import signal, sys
from mdpr.training.checkpoint import listen_for_sigterm

lines = set()

def send_again(frame, event, argument):
    if (line := (frame.f_code, frame.f_lineno)) not in lines:
        lines.add(line)
        signal.raise_signal(signal.SIGTERM)
    return send_again

with listen_for_sigterm() as stop:
    sys.settrace(send_again)
    signal.raise_signal(signal.SIGTERM)
    sys.settrace(None)
    print(stop.is_set(), len(lines) > 1)
"""


def test_a_second_sigterm_inside_the_handler_of_the_first_does_no_harm() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "True True\n"), done.stderr
