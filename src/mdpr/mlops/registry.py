"""The MLflow model registry: versions, their tags and cards, the aliases, and what tables show of them.

Aliases: `challenger` (by default) is the version registered last, `champion` the one that serves, `previous`
the champion before it. An alias points to one version, so there is never more than one champion; who may move it is
decided by the promotion log (see `mdpr.mlops.promotions`).
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mdpr.errors import TrackingError
from mdpr.mlops.publishing import create_run
from mdpr.mlops.store import Refused, Store, StoreError, connect, translate_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
PREVIOUS = "previous"
RUNS, MODELS = "runs:/", "models:/"  # addresses of MLflow

# Tags of a version.
DIGEST_TAG = "mdpr.model_digest"
ORIGIN_TAG = "mdpr.origin"  # JSON: the classes, digests of data, knowledge and backbone, commit, version of mdpr
TEST_SET_TAG = "mdpr.test_sha256"
RESULTS_RUN_TAG = "mdpr.results_run_id"  # the run whose artifacts hold the files that the gate reads
FIGURES_TAG = "mdpr.test.percent"  # JSON: figure of the model's answer -> percent (nll: nats)
GATE_INPUTS_TAG = "mdpr.gate.inputs"  # JSON: file -> sha256
ANSWERS_TAG = "mdpr.gate.answers"  # JSON: digest of the test images -> sha256 of the file of answers
DECISION_TAG = "mdpr.gate.decision"
CHECKS_TAG = "mdpr.gate.checks"  # JSON: the gate's checks
ROLLED_BACK_TAG = "mdpr.rolled_back"  # the version that serves in its place

VERSIONS_TAG = "mlflow.modelVersions"  # of a logged model: MLflow's own list of its versions
PROMOTION_LOG_TAG = "mdpr.promotion_log_run_id"  # of the registered model
PROMOTION_LOG_EXPERIMENT = "mdpr promotion logs"  # apart from the experiments that people look at
PROMOTION_LOG_NOTE = "Every change of champion, in order: a parameter is written once. Do not delete this run."
MODEL_DESCRIPTION = (
    "CLIP tuned by MDPR for long-tailed data. `champion` serves, `previous` served before it, `challenger` was "
    "registered last. Each version's description holds its results, its data and the gate's decision."
)
LOCK_TIMEOUT_S = 300.0
LOCK_POLL_S = 0.05
ALIAS_ATTEMPTS = 5


@dataclass(frozen=True)
class Version:
    """A registered version as this project sees it; `number` is text, as every MLflow store takes it."""

    name: str
    number: str
    run_id: str
    source: str
    card: str
    created_ms: int
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{MODELS}{self.name}/{self.number}"

    @property
    def results_run_id(self) -> str:
        """The run that holds what this version scored last; the model's own if `register` was killed before it said."""
        return self.tags.get(RESULTS_RUN_TAG, self.run_id)

    def json_tag(self, tag: str) -> dict[str, Any]:
        """The JSON object in a tag; empty if the version has none, or a person edited it."""
        try:
            content = json.loads(self.tags.get(tag, "{}"))
        except ValueError:
            return {}
        return content if isinstance(content, dict) else {}

    def figures(self) -> dict[str, float]:
        """Figure -> percent (nll: nats) of the model's answer to its test set; what is no number is left out."""
        found = self.json_tag(FIGURES_TAG)
        return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


@dataclass(frozen=True)
class Registry:
    """One registered model's versions in one store. Every method raises `TrackingError`."""

    store: Store
    name: str

    def get(self, number: str) -> Version:
        """The version `number`, which must be there."""
        found = self._find("get_model_version", self.name, number)
        if found is None:
            raise TrackingError(
                f"version {number} of {self.name} is not in this MLflow registry: "
                "run register again (dvc repro --force --single-item register)"
            )
        return found

    def get_by_alias(self, alias: str) -> Version | None:
        """The version that `alias` points to, if it points to any."""
        return self._find("get_model_version_by_alias", self.name, alias)

    def find_by_digest(self, digest: str) -> Version | None:
        """The first version of the model with this digest, if there is one."""
        query = f"name = '{self.name}' and tags.`{DIGEST_TAG}` = '{digest}'"
        found = self.store.client.search_model_versions(query)
        return min(map(_as_version, found), key=lambda version: int(version.number), default=None)

    def versions(self) -> list[Version]:
        """Every version, the newest first; none if the model is not there."""
        found = self.store.client.search_model_versions(f"name = '{self.name}'")
        return sorted(map(_as_version, found), key=lambda version: -int(version.number))

    def aliases(self) -> dict[str, str]:
        """Alias -> number of the version that it points to; none if the model is not there."""
        found = self.store.client.search_registered_models(f"name = '{self.name}'")
        return {alias: str(number) for alias, number in found[0].aliases.items()} if found else {}

    def ensure_model(self) -> None:
        """The registered model with its promotion log, made if either is missing."""
        client = self.store.client
        found = client.search_registered_models(f"name = '{self.name}'")
        if found and PROMOTION_LOG_TAG in found[0].tags:
            return
        tags = {"mlflow.note.content": PROMOTION_LOG_NOTE, "mdpr.promotion_log_of": self.name}
        log_id = create_run(self.store, PROMOTION_LOG_EXPERIMENT, f"champions of {self.name}", tags).run_id
        client.set_terminated(log_id)
        if found:  # made by hand, without one
            client.set_registered_model_tag(self.name, PROMOTION_LOG_TAG, log_id)
            return
        try:
            client.create_registered_model(self.name, {PROMOTION_LOG_TAG: log_id}, MODEL_DESCRIPTION)
        except Refused as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise
            client.delete_run(log_id)  # someone else's first version was faster, and theirs is the log

    def create(self, model_id: str, digest: str, tags: Mapping[str, str]) -> Version:
        """A new version of a logged model, or the one that someone else made of the same digest meanwhile."""
        from mlflow import register_model

        self.ensure_model()
        with translate_errors(self.store.uri), redirect_stderr(io.StringIO()):  # it prints what it does
            made = register_model(f"models:/{model_id}", self.name, tags={**tags, DIGEST_TAG: digest})
        first = self.find_by_digest(digest) or _as_version(made)
        if first.number != str(made.version):
            self.store.client.delete_model_version(self.name, str(made.version))
        return first

    def link(self, version: Version) -> None:
        """The version on the page of its logged model, if a process that was killed left it out."""
        client, model_id = self.store.client, version.source.removeprefix("models:/")
        linked = json.loads(client.get_logged_model(model_id).tags.get(VERSIONS_TAG, "[]"))
        if not any(item.get("name") == self.name and str(item.get("version")) == version.number for item in linked):
            linked.append({"name": self.name, "version": int(version.number)})
            client.set_logged_model_tags(model_id, {VERSIONS_TAG: json.dumps(linked)})

    def annotate(self, number: str, tags: Mapping[str, str], card: str) -> None:
        """Set tags and the description of a version."""
        for key, value in tags.items():
            self.store.client.set_model_version_tag(self.name, number, key, value)
        self.store.client.update_model_version(self.name, number, card)

    def set_alias(self, alias: str, number: str) -> None:
        """Point `alias` to this version."""
        for attempt in range(ALIAS_ATTEMPTS):
            try:
                self.store.client.set_registered_model_alias(self.name, alias, number)
                return
            except StoreError as error:
                # A server that reads, then inserts, answers so if another process set the same alias in between.
                if error.code != "BAD_REQUEST" or attempt == ALIAS_ATTEMPTS - 1:
                    raise

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the registry if the store is a local file; a server offers no lock."""
        if self.store.file is None:
            yield
            return
        import fcntl

        lock = self.store.file.with_name(f"{self.store.file.name}.lock")
        deadline_s = time.monotonic() + LOCK_TIMEOUT_S
        with lock.open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline_s:
                        raise TrackingError(f"{lock} is held by another process: let it finish") from None
                    time.sleep(LOCK_POLL_S)
            yield  # closing the file gives the lock back

    def _find(self, method: str, *arguments: str) -> Version | None:
        """One version; None if MLflow has no such model, version or alias."""
        try:
            return _as_version(getattr(self.store.client, method)(*arguments))
        except Refused:  # a missing model or version is one code of MLflow's, a missing alias another
            return None


def _as_version(found: ModelVersion) -> Version:
    return Version(
        name=found.name,
        number=str(found.version),
        run_id=found.run_id or "",
        source=found.source,
        card=found.description or "",
        created_ms=int(found.creation_timestamp),
        tags=dict(found.tags),
    )


FIGURES = ("all", "few", "ece")  # of `registry_rows`, in percent


def registry_rows(registry: Registry) -> list[dict[str, Any]]:
    """One row per version, the newest first; a figure that was not recorded is None. Raises `TrackingError`."""
    aliases = registry.aliases()
    rows = []
    for version in registry.versions():
        figures = version.figures()
        rows.append(
            {
                "version": version.number,
                "aliases": sorted(alias for alias, number in aliases.items() if number == version.number),
                "registered": datetime.fromtimestamp(version.created_ms / 1000, UTC).isoformat(timespec="seconds"),
                **{key: figures.get(key) for key in FIGURES},
                "gate": version.tags.get(DECISION_TAG),
                "run_id": version.run_id,
            }
        )
    return rows


def find_champion(model_name: str) -> Version | None:
    """The version of `model_name` that serves now, if there is one. Raises `TrackingError`."""
    return Registry(connect(), model_name).get_by_alias(CHAMPION)


def resolve(address: str) -> Version:
    """The version at models:/NAME/NUMBER or models:/NAME@ALIAS; raises `TrackingError` if there is none."""
    path = address.removeprefix(MODELS)
    if "/" in path:
        name, _, number = path.partition("/")
        return Registry(connect(), name).get(number)
    name, _, alias = path.partition("@")
    version = Registry(connect(), name).get_by_alias(alias)
    if version is None:
        raise TrackingError(f"{name} has no version with the alias {alias}: run promote, or name another alias")
    return version
