"""Files of tensors: probe.safetensors, knowledge.safetensors, and the one writer and reader of all others.

The same arrays give the same bytes. A file carries a digest of its content; the arrays of the two formats here are
declared (shape, dtype, range), and a file that does not match its declaration is refused before anything is computed.

C classes, V dimensions, d joint embedding width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mdpr.artifacts.formats import class_digest, write_csv
from mdpr.errors import ArtifactError, one_line
from mdpr.params import DIMENSIONS

if TYPE_CHECKING:
    import numpy as np

DIGEST = "sha256"  # key in the metadata
# NumPy's names and those of safetensors, in the library's order: of one file, the arrays of later ones come first.
DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
}
TOLERANCE = 1e-3  # of sums and cosines, in float32 over a thousand classes


@dataclass(frozen=True)
class Array:
    """An array of a file: its shape, a letter per axis, and what its values may be.

    `sums`: the function of a row, or of the whole vector, that is 1.
    """

    shape: str
    low: float = float("-inf")
    high: float | str = float("inf")  # a letter: the size of that axis, exclusive
    dtype: str = "float32"
    sums: str = ""  # "" none, "plain", "exp", "squares"


@dataclass(frozen=True)
class TensorFormat:
    """A safetensors file between two stages."""

    name: str
    stage: str
    arrays: Mapping[str, Array]
    texts: tuple[str, ...]  # keys of the metadata

    def read(self, path: Path, class_names: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Arrays and metadata of the file, for exactly `class_names`. Raises `ArtifactError` naming what is wrong."""
        arrays, metadata = read_tensors(path, self.stage)
        if metadata.get("format") != self.name:
            raise ArtifactError(f"{path} has the format {metadata.get('format')}, expected {self.name}")
        if metadata.get("classes") != class_digest(class_names):
            raise ArtifactError(
                f"{path} was made for another label set (digest {metadata.get('classes')}) than the "
                f"{len(class_names)} classes here (digest {class_digest(class_names)}): run {self.stage} again"
            )
        fault = self._fault(arrays, metadata, len(class_names))
        if fault:
            raise ArtifactError(f"{path}: {fault}: run {self.stage} again")
        check_finite(path, arrays, self.stage)
        check_digest(path, arrays, metadata, self.stage)
        return arrays, metadata

    def _fault(self, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], class_count: int) -> str | None:
        import numpy as np

        if wrong := sorted(arrays.keys() ^ self.arrays.keys()):
            return f"{wrong[0]} is {'missing' if wrong[0] in self.arrays else 'not an array of this format'}"
        if lacking := [key for key in self.texts if not metadata.get(key)]:
            return f"{lacking[0]} is missing in the metadata"
        sizes = {"C": class_count, "V": len(DIMENSIONS)}
        for name, declared in self.arrays.items():
            array = arrays[name]
            if len(array.shape) == len(declared.shape):
                for letter, size in zip(declared.shape, array.shape, strict=True):
                    sizes.setdefault(letter, size)
            expected = tuple(sizes.get(letter, letter) for letter in declared.shape)
            if array.shape != expected or 0 in array.shape:
                return f"{name} has the shape {array.shape}, expected {str(expected).replace(chr(39), '')}"
            if array.dtype != declared.dtype:
                return f"{name} is {array.dtype}, expected {declared.dtype}"
            high = sizes[declared.high] - 1 if isinstance(declared.high, str) else declared.high
            if array.min() < declared.low - TOLERANCE or array.max() > high + TOLERANCE:
                return (
                    f"{name} has values from {array.min():g} to {array.max():g}, expected {declared.low:g} to {high:g}"
                )
            if declared.sums:
                terms = (
                    array if declared.sums == "plain" else {"exp": np.exp, "squares": np.square}[declared.sums](array)
                )
                if np.abs(terms.sum(axis=-1, dtype=np.float64) - 1).max() > TOLERANCE * 10:
                    return f"{name} is not normalised"
        return None


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """`arrays` and `metadata` as a safetensors file.

    The bytes are those of the library, but for its order of the metadata, which changes; and the arrays are written
    from where they are, without the copies that it makes.
    """
    import numpy as np

    metadata = dict(metadata) | {DIGEST: content_digest(arrays, metadata)}
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    order, end = list(DTYPES), 0
    names = sorted(sorted(arrays), key=lambda name: -order.index(arrays[name].dtype.name))
    for name in names:
        start, end = end, end + arrays[name].nbytes
        dtype, shape = DTYPES[arrays[name].dtype.name], list(arrays[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in names:
            file.write(np.ascontiguousarray(arrays[name]).data)


def read_tensors(path: Path, stage: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All arrays and the metadata of a safetensors file that `stage` wrote; its content is not checked."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise ArtifactError(f"{path} is missing: run {stage} first")
    if not path.is_file():
        raise ArtifactError(f"{path} is not a file: run {stage} again")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, TypeError, ValueError, AttributeError) as error:  # also a dtype NumPy lacks
        raise ArtifactError(
            f"{path} is not a readable safetensors file ({one_line(error)}): run {stage} again"
        ) from None


def content_digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Of names, dtypes, shapes, values and metadata."""
    import numpy as np

    digest = hashlib.sha256()
    for key, value in sorted(metadata.items()):
        if key != DIGEST:
            digest.update(f"{key}\0{value}\0".encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name}\0{array.dtype}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def check_finite(path: Path, arrays: Mapping[str, np.ndarray], stage: str) -> None:
    """Raises `ArtifactError` that names the first array with a value that is not finite."""
    import numpy as np

    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ArtifactError(f"{path}: {name} holds values that are not finite: run {stage} again")


def check_digest(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], stage: str) -> None:
    """Raises `ArtifactError` if the content is not what `stage` wrote."""
    if metadata.get(DIGEST) != content_digest(arrays, metadata):
        raise ArtifactError(f"{path} was changed after {stage} wrote it: run {stage} again")


FEATURES = TensorFormat(
    "mdpr-features/1",
    "encode",
    {"sentences_CVd": Array("CVd"), "summary_Cd": Array("Cd"), "prior_CV": Array("CV", -1, 1)},
    ("fingerprint", "knowledge_digest"),
)
CONFUSION = "confusion_CC"
PROBE = TensorFormat(
    "mdpr-probe/1",
    "probe",
    {
        CONFUSION: Array("CC", 0, 1, sums="plain"),
        "rival_C": Array("C", 0, "C", dtype="int64"),
        "zero_shot_C": Array("C", 0, 1),
        "log_prior_C": Array("C", high=0, sums="exp"),
        "text_Cd": Array("Cd", -1, 1, sums="squares"),
        "image_Cd": Array("Cd", -1, 1, sums="squares"),
        "train_images_C": Array("C", 1, dtype="int64"),
    },
    ("fingerprint", "logit_scale"),
)
LOGIT_SCALE_MAX = 1000.0  # CLIP's own bound is 100


@dataclass(frozen=True)
class Features:
    """The knowledge base in the backbone's joint space.

    sentences_CVd   P, one feature per sentence
    summary_Cd      m, the mean of a class's sentences
    prior_CV        M, cosine of the plain class name with each of the class's sentences
    """

    sentences_CVd: np.ndarray
    summary_Cd: np.ndarray
    prior_CV: np.ndarray
    fingerprint: str
    knowledge_digest: str


def write_features(features: Path, content: Features, class_names: Sequence[str]) -> None:
    """features/knowledge.safetensors, for the label set `class_names`."""
    metadata = {
        "format": FEATURES.name,
        "fingerprint": content.fingerprint,
        "knowledge_digest": content.knowledge_digest,
        "classes": class_digest(class_names),
    }
    arrays = {name: getattr(content, name) for name in FEATURES.arrays}
    write_tensors(features / "knowledge.safetensors", arrays, metadata)


def read_features(features: Path, class_names: Sequence[str]) -> Features:
    """features/knowledge.safetensors; raises `ArtifactError` as `TensorFormat.read` does."""
    arrays, metadata = FEATURES.read(features / "knowledge.safetensors", class_names)
    return Features(**arrays, fingerprint=metadata["fingerprint"], knowledge_digest=metadata["knowledge_digest"])


@dataclass(frozen=True)
class Probe:
    """The frozen CLIP's reading of the training images, before anything is tuned.

    rival_C            int64, the class that c is most confused with
    zero_shot_C        accuracy per class, 0..1
    log_prior_C        log of the estimated pre-training prior (METHOD: hidden bias), sums to 1 after exp
    text_Cd            unit-length class features of the zero-shot classifier (an ensemble of templates)
    image_Cd           unit-length mean of the frozen features of each class's training images
    train_images_C     number of each class's training images
    logit_scale        exp of CLIP's own temperature parameter
    fingerprint        of the backbone
    """

    rival_C: np.ndarray
    zero_shot_C: np.ndarray
    log_prior_C: np.ndarray
    text_Cd: np.ndarray
    image_Cd: np.ndarray
    train_images_C: np.ndarray
    logit_scale: float
    fingerprint: str


def write_probe(probe: Path, content: Probe, confusion_CC: np.ndarray, class_names: Sequence[str]) -> None:
    """probe.safetensors for the next stages, zero_shot.csv for people.

    `confusion_CC`, row c: share of class c's images predicted as each class (rows sum to 1). Only the file keeps it.
    """
    import numpy as np
    import pandas as pd

    metadata = {
        "format": PROBE.name,
        "fingerprint": content.fingerprint,
        "logit_scale": repr(content.logit_scale),
        "classes": class_digest(class_names),
    }
    arrays = {name: getattr(content, name) for name in PROBE.arrays if name != CONFUSION} | {CONFUSION: confusion_CC}
    write_tensors(probe / "probe.safetensors", arrays, metadata)
    table = pd.DataFrame(
        {
            "index": range(len(class_names)),
            "class": list(class_names),
            "zero_shot_accuracy": content.zero_shot_C,
            "rival": [class_names[index] for index in content.rival_C],
            "hidden_prior": np.exp(content.log_prior_C),
        }
    )
    write_csv(probe / "zero_shot.csv", table, float_format="%.6f")


def read_probe(probe: Path, class_names: Sequence[str]) -> Probe:
    """probe/probe.safetensors; raises `ArtifactError` as `TensorFormat.read` does."""
    path = probe / "probe.safetensors"
    arrays, metadata = PROBE.read(path, class_names)
    del arrays[CONFUSION]  # no stage needs it, and of many classes it is large
    try:
        logit_scale = float(metadata["logit_scale"])
    except ValueError:
        logit_scale = 0.0
    if not 0 < logit_scale <= LOGIT_SCALE_MAX:
        raise ArtifactError(
            f"{path}: logit_scale = {metadata['logit_scale'][:40]!r}, expected a number above 0 and at most "
            f"{LOGIT_SCALE_MAX:g}: run probe again"
        )
    return Probe(**arrays, logit_scale=logit_scale, fingerprint=metadata["fingerprint"])


LOGISTIC_FILE = "logistic.safetensors"
LOGISTIC_FORMAT = "mdpr-logistic/1"


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier on unit-length image features; `inverse_penalty` as chosen on validation, if it has one."""

    weight_Cd: np.ndarray
    bias_C: np.ndarray
    inverse_penalty: float = 0.0

    def logits(self, image_Nd: np.ndarray) -> np.ndarray:
        """(N, C)."""
        logits_NC: np.ndarray = image_Nd @ self.weight_Cd.T + self.bias_C
        return logits_NC


def write_logistic(probe: Path, head: LinearHead) -> None:
    """probe/logistic.safetensors."""
    arrays = {"weight_Cd": head.weight_Cd, "bias_C": head.bias_C}
    metadata = {"format": LOGISTIC_FORMAT, "inverse_penalty": repr(head.inverse_penalty)}
    write_tensors(probe / LOGISTIC_FILE, arrays, metadata)


def read_logistic(probe: Path, classes: int) -> LinearHead | None:
    """The logistic regression of a probe; None if it was left out. Raises `ArtifactError` if it is damaged."""
    path = probe / LOGISTIC_FILE
    if not path.exists():
        return None
    arrays, metadata = read_tensors(path, "probe")
    shapes = {name: array.shape[:1] for name, array in arrays.items()}
    if metadata.get("format") != LOGISTIC_FORMAT or shapes != {"weight_Cd": (classes,), "bias_C": (classes,)}:
        raise ArtifactError(f"{path} is no classifier of {classes} classes ({LOGISTIC_FORMAT}): run probe again")
    check_finite(path, arrays, "probe")
    check_digest(path, arrays, metadata, "probe")
    try:
        return LinearHead(**arrays, inverse_penalty=float(metadata["inverse_penalty"]))
    except (KeyError, ValueError):
        raise ArtifactError(f"{path}: inverse_penalty is not a number: run probe again") from None


def read_baselines(probe: Path, content: Probe) -> Mapping[str, LinearHead]:
    """The simple classifiers of a probe by name: `nearest_mean`, and `logistic` if it was not left out.

    `nearest_mean` is the cosine to the mean feature of each class's training images. Raises as `read_logistic` does.
    """
    import numpy as np

    is_known_C = np.abs(content.image_Cd).sum(axis=1) > 0
    never_C = np.where(is_known_C, 0.0, -2.0).astype(np.float32)  # below every cosine
    logistic = read_logistic(probe, len(content.image_Cd))
    return {"nearest_mean": LinearHead(content.image_Cd, never_C)} | ({"logistic": logistic} if logistic else {})
