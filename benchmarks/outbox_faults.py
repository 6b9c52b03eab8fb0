"""Items for MLflow that are damaged, foreign or half written: one that lies beside a good item stops no other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.trial_project import Figures, Project, tell
from mdpr.mlops.publishing import Item, create_run, open_box, publish_outbox
from mdpr.mlops.store import Store, connect
from mdpr.progress import track

Damage = Callable[[Path], object]  # of an item's folder


def rewrite(content: bytes) -> Damage:
    return lambda folder: (folder / "item.json").write_bytes(content)


def edit(**changes: object) -> Damage:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "item.json").read_text())
        (folder / "item.json").write_text(json.dumps(content | changes))

    return apply


def plant(name: str, target: str) -> Damage:
    """A link among the item's files."""

    def apply(folder: Path) -> None:
        (folder / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "files" / name).symlink_to(target)

    return apply


def fifo(name: str) -> Damage:
    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).parent.mkdir(exist_ok=True)
        os.mkfifo(folder / name)

    return apply


BAD_ITEMS: dict[str, Damage] = {
    "null": rewrite(b"null"),
    "number": rewrite(b"5"),
    "list": rewrite(b'[2,"metrics","abc"]'),
    "empty": rewrite(b""),
    "half": rewrite(b'{"format": "mdpr-outbox/1", "sto'),
    "bytes": rewrite(b"\x00\xff"),
    "nested": rewrite(b"[" * 100_000),
    "no run": rewrite(b'{"format": "mdpr-outbox/1", "store": "x"}'),
    "other format": edit(format="mdpr-outbox/2"),
    "unknown key": edit(extra=1),
    "number for an id": edit(run={"format": "mdpr-run/1", "run_id": 5, "experiment": "e"}),
    "path for an id": edit(run={"format": "mdpr-run/1", "run_id": "../../x", "experiment": "e"}),
    "text for metrics": edit(metrics="abc"),
    "metric without a step": edit(metrics=[["a", 1.0, 5]]),
    "text for a metric": edit(metrics=[["a", "x", 5, 0]]),
    "name that MLflow refuses": edit(metrics=[["a[b]", 1.0, 5, 0]]),
    "dataset": edit(datasets=[{"name": "n", "context": "c"}]),
    "status": edit(status="DONE"),
    "link to a file": plant("evaluation/x", "/etc/hostname"),
    "link to a folder": plant("x", "/etc"),
    "dead link": plant("x", "nowhere"),
    "fifo for a file": fifo("files/x"),
    "fifo for the item": fifo("item.json"),
}


def put(outbox: Path, item: Item, kind: str = "history", files: Mapping[str, Path] | None = None) -> Path:
    """The folder of a new item in `outbox`."""
    with open_box(outbox, item, kind, files) as box:
        return box.folder


def isolate(name: str, store: Store, outbox: Path) -> str:
    """What is wrong after a bad item and a good one of a run are published; empty if the bad one alone stays, aside."""
    run = create_run(store, "outbox", name, {})
    item = Item(store=store.address, run=run, metrics=[("good", 1.0, 5, 0)])
    bad = put(outbox, item.model_copy(update={"metrics": [("bad", 1.0, 5, 0)]}), "a")
    put(outbox, item, "b")
    BAD_ITEMS[name](bad)
    published, left = publish_outbox(store, outbox), sorted(path.name for path in outbox.iterdir())
    metrics = store.client.get_run(run.run_id).data.metrics
    files = [item.path for item in store.client.list_artifacts(run.run_id)]
    right = published == 1 and left == [f"{bad.name}.refused"] and "good" in metrics and files == []
    again = publish_outbox(store, outbox)
    return "" if right and again == 0 else f"{published} published, {left} left, {metrics}, {files}, {again} afterwards"


def outbox(project: Project, seed: int) -> Figures:
    """Each bad item beside a good one, published to a real store."""
    isolated, store = 0, connect()
    for name in track(list(BAD_ITEMS), "outbox"):
        with TemporaryDirectory() as folder:
            fault = isolate(name, store, Path(folder) / "outbox")
        isolated += not fault
        if fault:
            tell("outbox item, %s: %s", name, fault)
    return {"spool_bad_items_isolated": isolated, "spool_bad_items": len(BAD_ITEMS)}
