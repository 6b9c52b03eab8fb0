"""Files of a finished run, each changed in one way: what `benchmarks.faults` and the tests give to the stages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from benchmarks.trial_project import Figures, Project, tell
from mdpr.artifacts.tensors import content_digest
from mdpr.progress import track

Arrays = dict[str, np.ndarray]
Change = Callable[[Path], object]


@dataclass(frozen=True)
class Tampered:
    """One file below the folder of a run, what is done to it, and the stage or command that must refuse it."""

    name: str
    file: str
    change: Change
    reader: str


def tampered_files() -> Iterator[Tampered]:
    """All of them."""
    for file, reader, changes in CASES:
        for name, change in changes.items():
            yield Tampered(f"{file}: {name}", file, change, reader)


def tensors(change: Callable[[Arrays, dict[str, str]], object], *, keep_digest: bool = False) -> Change:
    """Rewrite a safetensors file after `change` of its arrays and metadata; the digest fits them again, so that what
    is behind it is checked, unless it is kept."""

    def rewrite(path: Path) -> None:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118 - not a dict
        change(arrays, metadata)
        if not keep_digest:
            metadata["sha256"] = content_digest(arrays, metadata)
        save_file(arrays, path, metadata)

    return rewrite


def document(change: Callable[[Any], object]) -> Change:
    """Rewrite a JSON file after `change` of its content, or with what `change` returns."""

    def rewrite(path: Path) -> None:
        content = json.loads(path.read_text())
        changed = change(content)
        path.write_text(json.dumps(content if changed is None else changed))

    return rewrite


def parquet(change: Callable[[Any], Any]) -> Change:
    """Rewrite a Parquet file with the table that `change` returns."""

    def rewrite(path: Path) -> None:
        import pyarrow.parquet as pq

        changed = change(pq.read_table(path))
        pq.write_table(changed, path, compression="none", use_dictionary=False)

    return rewrite


def text(content: bytes | str) -> Change:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def replace(old: str, new: str) -> Change:
    return lambda path: path.write_text(path.read_text().replace(old, new))


def flip(path: Path) -> None:
    """Another value of the last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Change] = {
    "missing": Path.unlink,
    "empty": text(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "garbage": text(b"\xff\xfe\x00garbage"),
    "a folder": become_folder,
}


def every(value: float) -> Change:
    return tensors(lambda arrays, _: arrays.update({key: np.full_like(arrays[key], value) for key in floats(arrays)}))


def floats(arrays: Arrays) -> list[str]:
    return [key for key, value in arrays.items() if value.dtype.kind == "f"]


def put(name: str, value: Any, *, keep_digest: bool = False) -> Change:
    """The first value of an array replaced."""
    return tensors(lambda arrays, _: arrays[name].flat.__setitem__(0, value), keep_digest=keep_digest)


def array(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Change:
    return tensors(lambda arrays, _: arrays.update({name: np.ascontiguousarray(make(arrays[name]))}))


def rows(count: int) -> Change:
    return tensors(lambda arrays, _: arrays.update({key: value[:count].copy() for key, value in arrays.items()}))


def without(key: str) -> Change:
    return tensors(lambda arrays, metadata: (arrays.pop(key, None), metadata.pop(key, None)))


def note(key: str, value: str) -> Change:
    return tensors(lambda _, metadata: metadata.update({key: value}))


def label(value: int) -> Callable[[Any], Any]:
    """The last image given the class `value`."""

    def change(table: Any) -> Any:
        import pyarrow as pa

        labels = [*table["label"].to_pylist()[:-1], value]
        return table.set_column(table.schema.get_field_index("label"), "label", pa.array(labels, pa.int64()))

    return change


def column(name: str, value: Any) -> Change:
    """The first cell of a column replaced."""

    def change(table: Any) -> Any:
        import pyarrow as pa

        place = table.schema.get_field_index(name)
        cells = [value, *table[name].to_pylist()[1:]]
        return table.set_column(place, name, pa.array(cells, table.schema.field(name).type))

    return parquet(change)


def pickled_weights(path: Path) -> None:
    """The backbone's weights become a pickle that would write a file if it ran."""
    bad = path.parent / "weights.pt"
    bad.write_bytes(b"cos\nsystem\n(S'touch " + str(path.parent / "ran").encode() + b"'\ntR.")
    document(lambda config: config["backbone"].update(weights=str(bad)))(path)


def weights(value: str) -> Change:
    return document(lambda config: config["backbone"].update(weights=value))


def figure(branch: str, key: str, value: Any) -> Change:
    return document(lambda metrics: metrics[branch].update({key: value}))


FEATURES: dict[str, Change] = {
    **DAMAGE,
    "without summary_Cd": without("summary_Cd"),
    "with another array": tensors(lambda arrays, _: arrays.update(zz=np.zeros(3, np.float32))),
    "without fingerprint": without("fingerprint"),
    "without knowledge_digest": without("knowledge_digest"),
    "of another format": note("format", "mdpr-features/9"),
    "of another label set": note("classes", "0" * 16),
    "of another backbone": note("fingerprint", "other"),
    "two rows": rows(2),
    "no rows": rows(0),
    "one array cut": array("prior_CV", lambda value: value[:2]),
    "a row more": array("summary_Cd", lambda value: np.concatenate([value, value[:1]])),
    "another width": array("sentences_CVd", lambda value: value[..., :7]),
    "a scalar": array("prior_CV", lambda value: value.sum()),
    "a dimension less": array("sentences_CVd", lambda value: value[:, 0]),
    "float64": array("summary_Cd", lambda value: value.astype(np.float64)),
    "whole numbers": array("summary_Cd", lambda value: value.astype(np.int64)),
    "all NaN": every(float("nan")),
    "one NaN": put("sentences_CVd", float("nan")),
    "one infinity": put("summary_Cd", float("inf")),
    "a cosine of 2": put("prior_CV", 2.0),
    "another value": put("summary_Cd", 0.25, keep_digest=True),
    "another bit": flip,
}
PROBE: dict[str, Change] = {
    **DAMAGE,
    "without confusion_CC": without("confusion_CC"),
    "one row": rows(1),
    "all NaN": every(float("nan")),
    "rival 10": put("rival_C", 10),
    "rival -1": put("rival_C", -1),
    "rivals as float": array("rival_C", lambda value: value.astype(np.float32)),
    "confusion not square": array("confusion_CC", lambda value: value[:, :-1]),
    "rows that do not sum to 1": array("confusion_CC", lambda value: value / 2),
    "a negative share": put("confusion_CC", -0.5),
    "a prior above 1": put("log_prior_C", 1.0),
    "text of length 2": array("text_Cd", lambda value: value * 2),
    "logit_scale abc": note("logit_scale", "abc"),
    "logit_scale nan": note("logit_scale", "nan"),
    "logit_scale -1": note("logit_scale", "-1"),
    "logit_scale 1e9": note("logit_scale", "1e9"),
    "without logit_scale": without("logit_scale"),
}
WEIGHTS: dict[str, Change] = {
    **DAMAGE,
    "all NaN": every(float("nan")),
    "an array less": tensors(lambda arrays, _: arrays.pop(min(arrays))),
    "an array more": tensors(lambda arrays, _: arrays.update(zz=np.zeros(3, np.float32))),
    "another shape": tensors(lambda arrays, _: arrays.update({min(arrays): np.zeros((1, 1), np.float32)})),
    "float16": tensors(
        lambda arrays, _: arrays.update({key: value.astype(np.float16) for key, value in arrays.items()})
    ),
    "another bit": flip,
}
CONFIG: dict[str, Change] = {
    **DAMAGE,
    "a list": text("[]"),
    "nested": text("[" * 100_000),
    "a key less": document(lambda config: config.pop("fingerprint")),
    "a key more": document(lambda config: config.update(extra=1)),
    "a class less": document(lambda config: config["class_names"].pop()),
    "text for a number": document(lambda config: config.update(selected_epoch="3")),
    "weights that are text": weights("/etc/hostname"),
    "weights that are a folder": weights("/etc/"),
    "weights that are missing": weights("/nowhere/weights.pt"),
    "weights that are a pickle": pickled_weights,
}
METRICS: dict[str, Change] = {
    **DAMAGE,
    "numbers for branches": text('{"zero_shot": 1, "base": 2, "fused": "x"}'),
    "a list": text("[1]"),
    "no fused": document(lambda metrics: metrics.pop("fused")),
    "text": figure("fused", "all", "abc"),
    "a calibration error of text": figure("fused", "ece", "abc"),
    "a calibration error of -1": figure("fused", "ece", -1),
    "a calibration error of 2": figure("fused", "ece", 2),
    "a switch": figure("fused", "ece", True),
    "NaN": replace('"ece": 0', '"ece": NaN, "x": 0'),
    "too large": replace('"nll": ', '"nll": 1e999, "x": '),
    "base without few": document(lambda metrics: metrics["base"].pop("few")),
}
TABLE: dict[str, Change] = {**DAMAGE, "another table": text("a\n1\n"), "a head only": lambda path: first_line(path)}


def first_line(path: Path) -> None:
    path.write_text(path.read_text().partition("\n")[0] + "\n")


CASES: list[tuple[str, str, dict[str, Change]]] = [
    ("features/knowledge.safetensors", "tune", FEATURES),
    ("probe/probe.safetensors", "tune", PROBE),
    ("model/model.safetensors", "evaluate", WEIGHTS),
    ("model/config.json", "evaluate", CONFIG),
    ("evaluation/metrics.json", "report", METRICS),
    ("evaluation/per_class.csv", "report", {**TABLE, "no class names": replace("class,", "klass,")}),
    ("evaluation/reliability.csv", "report", TABLE),
    ("model/history.csv", "report", {**TABLE, "no numbers": replace("0.", "zero.")}),
    ("evaluation/lineage.json", "report", {**DAMAGE, "a list": text("[1]"), "numbers": text('{"a": 1}')}),
    (
        "evaluation/intervals.json",
        "report",
        {**DAMAGE, "text for a number": document(lambda content: content.update(level="0.95"))},
    ),
    ("evaluation/biases.json", "report", {**DAMAGE, "no seed": document(lambda content: content.pop("seed"))}),
    (
        "evaluation/predictions.parquet",
        "report",
        {
            **DAMAGE,
            "no labels": parquet(lambda table: table.drop_columns(["label"])),
            "no rows": parquet(lambda table: table.slice(0, 0)),
            "label -1": column("label", -1),
            "label 99": column("label", 99),
            "an empty cell": column("base_top1", None),
            "a probability of 2": column("base_probability", 2.0),
            "another format": parquet(lambda table: table.replace_schema_metadata({"format": "x"})),
        },
    ),
    (
        "prepared/classes.json",
        "probe",
        {**DAMAGE, "a gap": document(lambda content: content["classes"].pop(0))},
    ),
    (
        "prepared/train.parquet",
        "probe",
        {
            **DAMAGE,
            "label 99": lambda path: parquet(label(99))(path),
            "label -1": lambda path: parquet(label(-1))(path),
        },
    ),
    (
        "knowledge/knowledge.json",
        "encode",
        {
            **DAMAGE,
            "a sentence less": document(lambda content: content["classes"][0]["sentences"].popitem()),
            "a number for a sentence": document(
                lambda content: content["classes"][0]["sentences"].update(functionality=1)
            ),
            "nested": text("[" * 100_000),
        },
    ),
    (
        "evaluation/run.json",
        "register",
        {**DAMAGE, "a path for a run": document(lambda run: run.update(run_id="../../x"))},
    ),
    ("registration.json", "promote", {**DAMAGE, "a list": text("[]")}),
]


def tampered(project: Project, seed: int) -> Figures:
    """Each changed file given to the stage or command that reads it: refused in one line."""
    refused, cases, runs = 0, list(tampered_files()), project.root / "runs"
    for case in track(cases, "tampered"):
        shutil.rmtree(runs / "changed", ignore_errors=True)
        shutil.copytree(runs / "first", runs / "changed")
        case.change(runs / "changed" / case.file)
        end = project.call(
            ["report", "render", "--data", "runs/changed", "--output", "page.html"]
            if case.reader == "report"
            else project.arguments(case.reader, "changed", "unused")
        )
        refused += end.is_one_line
        if not end.is_one_line:
            tell("%s: exit code %d: %s", case.name, end.code, end.text[-300:])
        shutil.rmtree(runs / "unused", ignore_errors=True)
    return {"tampered_refused": refused, "tampered_tried": len(cases)}
