"""Files of tensors: the same bytes from the same arrays, and read whole or refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from benchmarks.tampering import FEATURES, PROBE, rows
from safetensors.numpy import save

from mdpr.artifacts import (
    check_digest,
    check_finite,
    read_classes,
    read_features,
    read_probe,
    read_tensors,
    write_features,
    write_probe,
    write_tensors,
)
from mdpr.artifacts.tensors import DTYPES
from mdpr.errors import ArtifactError

SCALAR = np.array(3.0, np.float32)


@pytest.fixture
def names(encoded: Mapping[str, Path]) -> list[str]:
    return [item.name for item in read_classes(encoded["prepared"])]


def refused(read: object, folder: Path, names: list[str]) -> str:
    with pytest.raises(ArtifactError) as raised:
        read(folder, names)  # type: ignore[operator]
    message = str(raised.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


@pytest.mark.parametrize("name", [name for name in FEATURES if name != "of another backbone"])
def test_changed_features_are_refused_in_one_line(
    encoded: Mapping[str, Path], names: list[str], tmp_path: Path, name: str
) -> None:
    shutil.copytree(encoded["features"], tmp_path / "features")
    FEATURES[name](tmp_path / "features" / "knowledge.safetensors")
    refused(read_features, tmp_path / "features", names)


@pytest.mark.parametrize("name", PROBE)
def test_a_changed_probe_is_refused_in_one_line(
    encoded: Mapping[str, Path], names: list[str], tmp_path: Path, name: str
) -> None:
    shutil.copytree(encoded["probe"], tmp_path / "probe")
    PROBE[name](tmp_path / "probe" / "probe.safetensors")
    refused(read_probe, tmp_path / "probe", names)


def test_a_wrong_shape_is_named_with_the_expected_one(
    encoded: Mapping[str, Path], names: list[str], tmp_path: Path
) -> None:
    shutil.copytree(encoded["features"], tmp_path / "features")
    rows(2)(tmp_path / "features" / "knowledge.safetensors")
    message = refused(read_features, tmp_path / "features", names)
    assert "prior_CV has the shape (2, 5), expected (10, 5)" in message or "(10, 5, " in message
    assert "run encode again" in message


def test_what_was_written_is_read_back(encoded: Mapping[str, Path], names: list[str], tmp_path: Path) -> None:
    features, probe = read_features(encoded["features"], names), read_probe(encoded["probe"], names)
    write_features(tmp_path, features, names)
    arrays, _ = read_tensors(encoded["probe"] / "probe.safetensors", "probe")
    write_probe(tmp_path, probe, arrays["confusion_CC"], names)
    for port, file in (("features", "knowledge.safetensors"), ("probe", "probe.safetensors")):
        assert (tmp_path / file).read_bytes() == (encoded[port] / file).read_bytes()
    assert (tmp_path / "zero_shot.csv").read_bytes() == (encoded["probe"] / "zero_shot.csv").read_bytes()


def test_every_process_writes_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import numpy as np; from mdpr.artifacts import write_tensors\n"
        "arrays = {name: np.arange(6.0).reshape(2, 3) for name in sys.argv[2].split()}\n"
        "write_tensors(Path(sys.argv[1]), arrays, {name: name for name in sys.argv[2].split()})\n"
    )
    written = []
    for number, order in enumerate(("a b c d e f", "f e d c b a")):
        path = tmp_path / str(number)
        subprocess.run([sys.executable, "-c", code, str(path), order], check=True)
        written.append(path.read_bytes())
    assert written[0] == written[1]


def test_shapes_and_dtypes_survive(tmp_path: Path) -> None:
    arrays = {"s": SCALAR, "i": np.arange(3), "t": np.arange(6.0).reshape(2, 3).T, "b": np.array([True, False])}
    write_tensors(tmp_path / "x", arrays, {"key": "ä\n"})
    found, metadata = read_tensors(tmp_path / "x", "tune")
    assert metadata["key"] == "ä\n"
    for name, array in arrays.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(found[name], array)
    check_digest(tmp_path / "x", found, metadata, "tune")
    with pytest.raises(ArtifactError, match="was changed after tune wrote it"):
        check_digest(tmp_path / "x", {**found, "s": found["s"] + 1}, metadata, "tune")
    with pytest.raises(ArtifactError, match="was changed after tune wrote it"):
        check_digest(tmp_path / "x", found, {"key": metadata["key"]}, "tune")
    with pytest.raises(ArtifactError, match="t holds values that are not finite"):
        check_finite(tmp_path / "x", {"t": np.array([1.0, np.nan])}, "tune")


def test_the_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    arrays = {f"{kind} {size}": np.ones((size, 3), kind) for kind in DTYPES for size in (2, 1)} | {"scalar": SCALAR}
    arrays |= {"empty": np.zeros((0, 2), np.float32), "strided": np.arange(6.0).reshape(2, 3).T}
    write_tensors(tmp_path / "ours", arrays, {"format": "x"})
    found, expected = (tmp_path / "ours").read_bytes(), save({k: np.asarray(v, order="C") for k, v in arrays.items()})
    headers = []
    for content in (found, expected):
        length = int.from_bytes(content[:8], "little")
        headers.append((json.loads(content[8 : 8 + length]), content[8 + length :]))
    del headers[0][0]["__metadata__"]
    assert headers[0] == headers[1]
    assert list(headers[0][0]) == list(headers[1][0])
