"""The champion's side of the gate: its answers to the test images of today, and its latency.

A version keeps the answers that it was registered with. If the test set has changed since, its weights come out of the
registry and answer the images that are there now. Such answers are kept in the run of the version's results, under a
digest of the images, so that the next challenger of the same test set does not wait for them; a tag of the version has
the digest of each file, as `register` records one of every other file that the gate reads.

Models are timed in turn, in one process, so that what else the machine does hits all alike.

Shapes: N test images, B images in a batch, C classes, R requests, M models.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from mdpr.artifacts import (
    check_digest,
    image_digests,
    read_class_names,
    read_images,
    read_predictions,
    read_seen,
    read_tensors,
    sha256,
    write_tensors,
)
from mdpr.errors import ArtifactError, MdprError, TrackingError
from mdpr.evaluation.predictions import final_branch
from mdpr.mlops.gate import Candidate, in_order
from mdpr.mlops.registry import ANSWERS_TAG, CHAMPION, DIGEST_TAG, GATE_INPUTS_TAG, Version
from mdpr.mlops.releases import changed_input, gate_inputs_folder
from mdpr.mlops.store import Store

logger = logging.getLogger(__name__)

ANSWERS_FOLDER = "gate/answers"
ANSWERS_FORMAT = "mdpr-answers/1"
CHECKPOINT_FILE = "state.safetensors"
KEY_LENGTH = 12
BATCH_IMAGES = 64
WARM_UP, REQUESTS = 5, 100  # of each model that is timed
IMAGE_SIDE_PX = 224


@dataclass(frozen=True)
class TestSet:
    """The test images of a challenger: its table of predictions, and where the images are."""

    __test__ = False  # no class of tests
    predictions: pd.DataFrame
    prepared: Path

    @property
    def image_N(self) -> np.ndarray:
        """Digests in order of index."""
        image_N: np.ndarray = in_order(self.predictions)["image"].to_numpy()
        return image_N

    @property
    def key(self) -> str:
        return hashlib.sha256(self.image_N.tobytes()).hexdigest()[:KEY_LENGTH]


def load_champion(store: Store, champion: Version, test: TestSet, checkpoint: Path | None) -> Candidate:
    """The champion with its answers to the images of `test`, in order of their index.

    `checkpoint` is a folder for answers that no store has yet; None if nothing may be written, there or in the store.
    Raises `TrackingError` if the registry lacks the champion's results, `ArtifactError` if `test.prepared` holds other
    images than the challenger answered.
    """
    with TemporaryDirectory(prefix="mdpr-") as scratch:
        folder = _download_inputs(store, champion, Path(scratch))
        answers = find_answers(read_predictions(folder), test)
        if answers is None:
            answers = _answers_of_today(store, champion, test, Path(scratch), checkpoint)
        label = in_order(test.predictions)[["index", "label", "image"]]
        return Candidate(label.assign(**answers), read_class_names(folder), read_seen(folder, "evaluate"))


def find_answers(kept: pd.DataFrame, test: TestSet) -> dict[str, np.ndarray] | None:
    """The answers to the images of `test`, by their digests, among those that were `kept`; None if one is missing."""
    kept = in_order(kept).drop_duplicates("image").set_index("image")
    if not np.isin(test.image_N, kept.index).all():
        return None
    answers, final = kept.loc[test.image_N], final_branch(kept)
    return {f"base_{name}": answers[f"{final}_{name}"].to_numpy() for name in ("top1", "probability")}


def _download_inputs(store: Store, champion: Version, scratch: Path) -> Path:
    """The files that the champion was registered with."""
    run_id = champion.results_run_id
    try:
        stored = gate_inputs_folder(champion.tags.get(GATE_INPUTS_TAG, ""))
        folder = Path(store.client.download_artifacts(run_id, stored, str(scratch)))
        if changed := changed_input(champion, folder):
            raise TrackingError(f"{changed} is not what it was registered with")
    except TrackingError as error:
        raise TrackingError(
            f"the results of champion version {champion.number} cannot be used from run {run_id} "
            f"({error}): register that model again, or remove its alias {CHAMPION}"
        ) from None
    return folder


def _answers_of_today(
    store: Store, champion: Version, test: TestSet, scratch: Path, checkpoint: Path | None
) -> dict[str, np.ndarray]:
    """From the store, else from the checkpoint, else from the model itself; then the store gets them, too."""
    key = test.key
    metadata = {"format": ANSWERS_FORMAT, "images": key, "model": champion.tags.get(DIGEST_TAG, champion.source)}
    if (stored := _from_store(store, champion, key, scratch)) is not None:
        return stored
    local = (checkpoint or scratch) / CHECKPOINT_FILE
    answers = _read_answers(local, metadata)
    if answers is None:
        answers = _score(champion, test)
        local.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(local, answers, metadata)  # on the disk before the next request to the store
    if checkpoint is not None:
        named = scratch / f"{key}.safetensors"
        named.write_bytes(local.read_bytes())
        try:
            store.client.log_artifact(champion.results_run_id, str(named), ANSWERS_FOLDER)
            known = json.dumps(champion.json_tag(ANSWERS_TAG) | {key: sha256(named)})
            store.client.set_model_version_tag(champion.name, champion.number, ANSWERS_TAG, known)
        except TrackingError as error:  # the next challenger scores it again
            logger.warning("the answers of version %s are not kept: %s", champion.number, error)
    return answers


def _from_store(store: Store, champion: Version, key: str, scratch: Path) -> dict[str, np.ndarray] | None:
    expected = champion.json_tag(ANSWERS_TAG).get(key)
    if expected is None:
        return None
    kept = f"{ANSWERS_FOLDER}/{key}.safetensors"
    try:
        path = store.client.download_artifacts(champion.results_run_id, kept, str(scratch))
    except TrackingError as error:
        logger.warning("the kept answers of version %s cannot be read, it is scored again: %s", champion.number, error)
        return None
    return read_tensors(Path(path), "promote")[0] if sha256(Path(path)) == expected else None


def _read_answers(path: Path, metadata: dict[str, str]) -> dict[str, np.ndarray] | None:
    """The answers that an interrupted promote left, if they are of this model and these images."""
    try:
        answers, found = read_tensors(path, "promote")
        check_digest(path, answers, found, "promote")
    except ArtifactError:
        return None
    return answers if metadata.items() <= found.items() else None


def _score(champion: Version, test: TestSet) -> dict[str, np.ndarray]:
    """The champion's answers to the images of `test`. The model scales and normalises images for itself."""
    images = read_images(test.prepared / "test.parquet")
    if not np.array_equal(image_digests(images), test.image_N):
        raise ArtifactError(
            f"{test.prepared} holds other test images than were evaluated: run evaluate and register again"
        )
    from mdpr.evaluation.scoring import score_images
    from mdpr.model.inference import Classifier

    logger.info("version %s, the champion, is scored on the %d test images of today", champion.number, len(images))
    try:
        classifier = Classifier.load(champion.address)
    except MdprError as error:
        raise TrackingError(
            f"champion version {champion.number} cannot be scored on today's test images ({error}): register that "
            f"model again, or remove its alias {CHAMPION}"
        ) from None
    top1_N, probability_N = score_images(classifier, images, BATCH_IMAGES)
    return {"base_top1": top1_N, "base_probability": probability_N}


# --- latency ------------------------------------------------------------------------------------------------


def time_versions(addresses: Sequence[str]) -> np.ndarray:
    """Milliseconds for one image, (R, M), of the models at these addresses of the registry.

    Raises `MdprError` if one of them cannot be loaded.
    """
    from PIL import Image

    from mdpr.model.inference import Classifier

    image = Image.new("RGB", (IMAGE_SIDE_PX, IMAGE_SIDE_PX), "gray")
    models = [Classifier.load(address) for address in addresses]
    return time_in_turn([lambda model=model: model.predict(image) for model in models])  # type: ignore[misc]


def time_in_turn(
    requests: Sequence[Callable[[], object]], clock_s: Callable[[], float] = time.perf_counter
) -> np.ndarray:
    """Milliseconds of R = `REQUESTS` calls of each of `requests`, (R, M), after a few that do not count.

    A row holds calls that followed each other; every other row is made in the opposite order.
    """
    ms_RM = np.empty((WARM_UP + REQUESTS, len(requests)))
    for row, ms_M in enumerate(ms_RM):
        for column in range(len(requests))[:: 1 if row % 2 else -1]:
            started_s = clock_s()
            requests[column]()
            ms_M[column] = 1000 * (clock_s() - started_s)
    return ms_RM[WARM_UP:]
