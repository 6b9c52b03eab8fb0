"""The splits of a prepared data set as MLflow's datasets: name, digest, size. The images stay where they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdpr.artifacts import Split, read_card

CONTEXTS: dict[Split, str] = {"train": "training", "val": "validation", "test": "testing"}
DIGEST_LENGTH = 36  # characters that MLflow keeps; the whole sha256 is in the profile


def split_inputs(prepared: Path, splits: Sequence[Split]) -> list[dict[str, Any]]:
    """One entry a split for `open_run` and `add_results`; raises `ArtifactError` where card.json is missing."""
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.data.sources import LocalArtifactDatasetSource

    card, inputs = read_card(prepared), []
    for split in splits:
        path = prepared / f"{split}.parquet"
        digest = card.sha256[path.name]
        source = LocalArtifactDatasetSource(str(path.absolute()))
        dataset = MetaDataset(source, name=f"{card.source}-{split}", digest=digest[:DIGEST_LENGTH]).to_dict()
        profile = {"images": card.images[split], "classes": len(card.images_per_class[split]), "sha256": digest}
        dataset["profile"] = json.dumps(profile)
        dataset.pop("schema", None)
        inputs.append({"dataset": dataset, "context": CONTEXTS[split]})
    return inputs
