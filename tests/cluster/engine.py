"""Kubeflow Pipelines' driver and launcher, and Argo below them: what runs a compiled pipeline, as its tasks see it.

Sources: kubeflow/pipelines 2.17.0 (`v2` is backend/src/v2) and argoproj/argo-workflows v4.0.5, which it installs.
Every rule names the function that it is from. Pods are those of `pod`, artifacts lie in an S3 store.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tests.cluster.pod import EMPTY_DIRS, Ended, run_pod

WORKSPACE = "/kfp-workspace"
PLACEHOLDERS = {"{{$.workspace_path}}": WORKSPACE}
LOGS = "executor-logs"
Started = Callable[[str, int, "subprocess.Popen[bytes]", Path], object]


class Refused(Exception):
    """Something that a cluster never runs: the pod waits for ever, or the driver fails."""


@dataclass
class Artifact:
    """A record of the metadata store."""

    id: int
    uri: str
    type: Mapping[str, str]
    metadata: dict[str, Any]

    def as_input(self) -> dict[str, Any]:
        return {"name": str(self.id), "uri": self.uri, "type": dict(self.type), "metadata": self.metadata}


@dataclass
class Outputs:
    parameters: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)  # name -> Artifact, or a list of them from a loop


@dataclass
class Attempt:
    """One container of a task."""

    ended: Ended
    downloaded_bytes: int
    environment: Mapping[str, str]
    mounts: tuple[str, ...]


@dataclass
class Task:
    """What became of one task of a run. `state`: COMPLETE, CACHED, FAILED, or RUNNING if nobody wrote its end."""

    name: str
    state: str = "RUNNING"
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def log(self) -> str:
        return "\n".join(attempt.ended.log for attempt in self.attempts)


@dataclass
class Run:
    id: str
    root: str
    workspace: Path
    tasks: dict[str, Task] = field(default_factory=dict)
    outputs: dict[str, Outputs] = field(default_factory=dict)
    succeeded: bool = True


class Cluster:
    """A namespace with its store, secrets, claims and cache. `hours` is what a test says an attempt took."""

    def __init__(self, client: Any, bucket: str, image: Path, folder: Path, scheme: str = "s3") -> None:
        self.client, self.bucket, self.image, self.folder, self.scheme = client, bucket, image, folder, scheme
        self.secrets: dict[str, dict[str, str]] = {}
        self.claims: dict[str, Path] = {}
        self.cache: dict[str, Outputs] = {}
        self.hours: dict[str, float] = {}
        self.started: Started = lambda task, attempt, process, workspace: None
        self.plugin: Callable[[str, str], dict[str, str]] = lambda run, task: {}  # RetrieveUserContainerEnvVars
        self._ids = itertools.count(1)
        self._runs = itertools.count(1)

    def run(self, compiled: Path, **parameters: Any) -> Run:
        """Run a compiled pipeline of two documents to its end."""
        graph, platform = yaml.safe_load_all(compiled.read_text("utf-8"))
        number = next(self._runs)
        workspace = self.folder / f"workspace-{number}"
        name = f"run-{self.folder.name}-{number}"
        run = Run(name, f"{self.scheme}://{self.bucket}/{graph['pipelineInfo']['name']}/{name}", workspace)
        workspace.mkdir(parents=True)
        workspace.chmod(0o777)
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            driver = _Driver(self, run, graph, platform["platforms"]["kubernetes"], Path(scratch))
            inputs = driver.given(graph["root"], Outputs(dict(parameters)))
            run.succeeded = driver.dag(graph["root"], inputs, "").state in ("COMPLETE", "CACHED")
        if run.succeeded:  # argo workflow/controller/operator.go deletePVCs: after a failure the claim stays
            shutil.rmtree(workspace)
        return run

    def next_id(self) -> int:
        return next(self._ids)

    def keys(self, uri: str) -> dict[str, int]:
        """v2/objectstore DownloadBlob: the key itself, and keys below it, with their sizes."""
        prefix = uri.removeprefix(f"{self.scheme}://{self.bucket}/")
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        found = {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", ())}
        return {key: size for key, size in found.items() if key == prefix or key.startswith(f"{prefix}/")}


class _Driver:
    def __init__(self, cluster: Cluster, run: Run, graph: Any, platform: Any, scratch: Path) -> None:
        self.cluster, self.run, self.graph, self.platform, self.scratch = cluster, run, graph, platform, scratch
        self._attempts = itertools.count()

    def given(self, component: Mapping[str, Any], inputs: Outputs) -> Outputs:
        """`inputs` with the component's defaults; whole numbers stay whole (8.0 arrives as 8)."""
        defined = component.get("inputDefinitions", {}).get("parameters", {})
        values = {name: spec["defaultValue"] for name, spec in defined.items() if "defaultValue" in spec}
        values |= inputs.parameters
        for name, value in values.items():
            kind = defined.get(name, {}).get("parameterType")
            if kind == "NUMBER_INTEGER":
                values[name] = int(value)
            elif kind == "STRING" and not isinstance(value, str):  # v2/driver/resolve.go: any value, as JSON text
                values[name] = json.dumps(value)
        return Outputs(values, dict(inputs.artifacts))

    # --- control flow (v2/compiler/argocompiler/dag.go) ------------------------------------------------------

    def dag(self, component: Mapping[str, Any], inputs: Outputs, at: str) -> Task:
        """All tasks of a graph, each when what it depends on has succeeded; after a failure nothing new starts."""
        tasks, outputs = component["dag"]["tasks"], {}
        whole, done = Task(at or "root", "COMPLETE"), dict[str, Task]()
        exits = {name for name, task in tasks.items() if task.get("triggerPolicy", {}).get("strategy")}
        waiting = [name for name in tasks if name not in exits]
        while ready := [name for name in waiting if done.keys() >= set(tasks[name].get("dependentTasks", ()))]:
            if whole.state != "COMPLETE":  # argo failFast
                break
            name = ready[0]
            waiting.remove(name)
            done[name], outputs[name] = self.task(name, tasks[name], inputs, outputs, done, at)
            if done[name].state not in ("COMPLETE", "CACHED", "SKIPPED"):
                whole.state = done[name].state
        for name in sorted(exits):  # common.go addExitTask: after success, failure or kill
            done[name], outputs[name] = self.task(name, tasks[name], inputs, outputs, done, at)
        for name, spec in component["dag"].get("outputs", {}).get("artifacts", {}).items():
            (chosen,) = spec["artifactSelectors"]
            made = outputs.get(chosen["producerSubtask"], Outputs()).artifacts
            self.run.outputs.setdefault(at, Outputs()).artifacts[name] = made.get(chosen["outputArtifactKey"])
        return whole

    def task(
        self, name: str, task: Any, inputs: Outputs, outputs: Mapping[str, Outputs], done: Mapping[str, Task], at: str
    ) -> tuple[Task, Outputs]:
        label = task["componentRef"]["name"]
        component, here = self.graph["components"][label], f"{at}/{name}".strip("/")
        resolved = self.resolve(task, inputs, outputs, done)
        if condition := task.get("triggerPolicy", {}).get("condition"):
            # v2/driver/container.go: the driver evaluates it; a task that it rules out is skipped, the run goes on
            left, _, right = condition.partition(" == ")
            key = left.removeprefix("inputs.parameter_values['").removesuffix("']")
            if str(resolved.parameters[key]) != right.strip("'"):
                return Task(here, "SKIPPED"), Outputs()
        if "parameterIterator" in task:
            return self.loop(task["parameterIterator"], component, resolved, here)
        if "dag" in component:
            ended = self.dag(component, self.given(component, resolved), here)
            return ended, self.run.outputs.get(here, Outputs())
        return self.container(here, task, component, resolved)

    def loop(self, iterator: Any, component: Any, resolved: Outputs, at: str) -> tuple[Task, Outputs]:
        """iteratorTask: a graph per item; what they make is collected in order of the index."""
        items = resolved.parameters[iterator["items"]["inputParameter"]]
        items = json.loads(items) if isinstance(items, str) else items
        if not items:
            raise Refused(f"{at}: the collector of an empty loop fails")
        whole, collected = Task(at, "COMPLETE"), Outputs()
        for index, item in enumerate(items):
            own = Outputs({**resolved.parameters, iterator["itemInput"]: item}, resolved.artifacts)
            ended = self.dag(component, self.given(component, own), f"{at}/{index}")
            if ended.state != "COMPLETE":
                whole.state = ended.state
                break
            for name, artifact in self.run.outputs.get(f"{at}/{index}", Outputs()).artifacts.items():
                collected.artifacts.setdefault(name, []).append(artifact)
        self.run.outputs[at] = collected
        return whole, collected

    def resolve(self, task: Any, inputs: Outputs, outputs: Mapping[str, Outputs], done: Mapping[str, Task]) -> Outputs:
        """v2/driver/resolve.go resolveInputs."""
        found, given = Outputs(), task.get("inputs", {})
        for name, spec in given.get("parameters", {}).items():
            if "componentInputParameter" in spec:
                if spec["componentInputParameter"] not in inputs.parameters:
                    continue
                value = inputs.parameters[spec["componentInputParameter"]]
            elif "taskOutputParameter" in spec:
                source = spec["taskOutputParameter"]
                value = outputs[source["producerTask"]].parameters[source["outputParameterKey"]]
            elif "taskFinalStatus" in spec:
                producer = spec["taskFinalStatus"]["producerTask"]
                value = {
                    "state": done[producer].state,
                    "error": {},
                    "pipelineJobResourceName": self.run.id,
                    "pipelineTaskName": producer,
                }
            else:
                value = spec["runtimeValue"]["constant"]
                for placeholder, text in PLACEHOLDERS.items():
                    value = value.replace(placeholder, text) if isinstance(value, str) else value
            found.parameters[name] = value
        for name, spec in given.get("artifacts", {}).items():
            if "componentInputArtifact" in spec:
                found.artifacts[name] = inputs.artifacts[spec["componentInputArtifact"]]
            else:
                source = spec["taskOutputArtifact"]
                found.artifacts[name] = outputs[source["producerTask"]].artifacts[source["outputArtifactKey"]]
        return found

    # --- one container (v2/driver/container.go, v2/driver/k8s.go) ---------------------------------------------

    def container(self, at: str, task: Any, component: Any, inputs: Outputs) -> tuple[Task, Outputs]:
        label, record = component["executorLabel"], self.run.tasks.setdefault(at, Task(at))
        container = self.graph["deploymentSpec"]["executors"][label]["container"]
        pod = self.platform["deploymentSpec"]["executors"].get(label, {})
        defined = component.get("outputDefinitions", {})
        key = fingerprint(inputs, defined, container, pod)
        cached = task.get("cachingOptions", {}).get("enableCache") and self.cluster.cache.get(key)
        if cached:  # reuseCachedOutputs: ids and addresses are the older run's
            record.state = "CACHED"
            return record, cached
        inputs = self.given(component, inputs)
        # provisionOutputs: the driver runs once, so that all attempts of a task write to the same addresses
        made = hashlib.sha256(f"{self.run.root}/{at}".encode()).hexdigest()[:12]
        root = f"{self.run.root}/{at}/{made}"
        artifacts = {
            name: Artifact(self.cluster.next_id(), f"{root}/{name}", spec["artifactType"], {})
            for name, spec in defined.get("artifacts", {}).items()
        }
        environment, mounts = self.environment(at, container, pod), self.mounts(pod, inputs)
        retries, now_s = task.get("retryPolicy", {}), 0.0
        for number in range(int(retries.get("maxRetryCount", 0)) + 1):
            started_s, timeout_s = now_s, float(pod.get("activeDeadlineSeconds", 0)) or None
            now_s += 3600 * self.cluster.hours.get(at.rpartition("/")[2], 0.0)
            if timeout_s and now_s - started_s > timeout_s:
                raise ValueError(f"{at}: an attempt of {now_s - started_s} s exceeds its own time-out")
            outputs = Outputs(artifacts=artifacts)
            retry = {"KFP_RETRY_INDEX": str(number)} if retries else {}
            record.state = self.launch(record, container, inputs, outputs, root, environment | retry, mounts, timeout_s)
            if record.state == "COMPLETE":
                self.cluster.cache[key] = outputs
                return record, outputs
            # argo processNodeRetries: the window is counted from the start of the first attempt
            now_s += seconds(retries.get("backoffDuration")) * float(retries.get("backoffFactor", 1)) ** number
            if retries and now_s > seconds(retries["backoffMaxDuration"]):
                break
        return record, Outputs()

    def environment(self, at: str, container: Any, pod: Any) -> dict[str, str]:
        """initPodSpecPatch, extendPodSpecPatch: the component's variables, the plugins', secrets, fields of the pod."""
        values = {item["name"]: item.get("value", "") for item in container.get("env", ())}
        values |= {"KFP_POD_NAME": "pod", "KFP_POD_UID": "uid", **self.cluster.plugin(self.run.id, at)}
        for secret in pod.get("secretAsEnv", ()):
            name, content = secret["secretName"], self.cluster.secrets.get(secret["secretName"])
            for item in secret["keyToEnv"]:
                if content is None or item["secretKey"] not in content:
                    if not secret.get("optional"):
                        raise Refused(f"CreateContainerConfigError: secret {name} has no key {item['secretKey']}")
                    continue
                if item["envVar"] in values:
                    raise Refused(f"{item['envVar']} has a value and a secret: the pod is invalid")
                values[item["envVar"]] = content[item["secretKey"]]
        for item in pod.get("fieldPathAsEnv", ()):
            values[item["name"]] = {"metadata.labels['pipeline/runid']": self.run.id}[item["fieldPath"]]
        if clash := [name for name in values if name.startswith("AWS_")]:
            # createS3BucketSession: the launcher runs in this container, and the AWS SDK reads these for its own store
            raise Refused(f"{clash[0]} redirects the launcher's own transfers")
        return values

    def mounts(self, pod: Any, inputs: Outputs) -> dict[str, Path]:
        """makeVolumeMountPatch: the claims of the YAML; needsWorkspaceMount: the workspace, where a text names it."""
        found = {}
        for mount in pod.get("pvcMount", ()):
            claim = mount.get("constant") or mount["pvcNameParameter"]["runtimeValue"]["constant"]
            if claim not in self.cluster.claims:
                raise Refused(f"claim {claim} does not exist: the pod is never scheduled")
            found[mount["mountPath"]] = self.cluster.claims[claim]
        if any(isinstance(value, str) and WORKSPACE in value for value in inputs.parameters.values()):
            found[WORKSPACE] = self.run.workspace
        return found

    # --- the launcher (v2/component/launcher_v2.go) -------------------------------------------------------------

    def launch(
        self,
        record: Task,
        container: Any,
        inputs: Outputs,
        outputs: Outputs,
        root: str,
        environment: Mapping[str, str],
        mounts: Mapping[str, Path],
        timeout_s: float | None,
    ) -> str:
        """One attempt in a new pod; the state that it leaves in the metadata store."""
        number, scratch = len(record.attempts), self.scratch / str(next(self._attempts))
        folders = {path: scratch / "emptydir" / path.strip("/.") for path in EMPTY_DIRS}
        for folder in folders.values():
            folder.mkdir(parents=True)
        (scratch / "pod").mkdir()
        place = _Places(self.cluster, folders[f"/{self.cluster.scheme}"])
        fetched = sum(place.download(artifact.uri) for artifact in flat(inputs.artifacts.values()))
        for artifact in outputs.artifacts.values():  # prepareOutputFolders: parents only
            place.of(artifact.uri).parent.mkdir(parents=True, exist_ok=True)
        message = {
            "inputs": {
                "parameterValues": inputs.parameters,
                "artifacts": {
                    name: {"artifacts": [item.as_input() for item in flat([value])]}
                    for name, value in inputs.artifacts.items()
                },
            },
            "outputs": {
                "parameters": {},
                "artifacts": {name: {"artifacts": [item.as_input()]} for name, item in outputs.artifacts.items()},
                "outputFile": "/tmp/kfp_outputs/output_metadata.json",  # noqa: S108
            },
        }
        text = json.dumps(message)
        if len(text.encode()) > 128 * 1024:
            raise Refused(f"{record.name}: Linux takes no argument above 128 KiB")
        command = [*container["command"], *(part.replace("{{$}}", text) for part in container["args"])]

        def begun(process: subprocess.Popen[bytes]) -> None:
            threading.Thread(
                target=self.cluster.started, args=(record.name, number, process, self.run.workspace), daemon=True
            ).start()

        ended = run_pod(
            command,
            environment,
            {**folders, **mounts},
            scratch / "pod",
            self.cluster.image,
            timeout_s=timeout_s,
            memory=container.get("resources", {}).get("resourceMemoryLimit", ""),
            started=begun,
        )
        record.attempts.append(Attempt(ended, fetched, environment, tuple(mounts)))
        if ended.code == -signal.SIGKILL or ended.timed_out or ended.oom_killed:
            return record.state  # nobody is left who could upload, or write the state
        place.upload_text(f"{root}/{LOGS}-{number}", ended.log)
        if ended.code != 0:
            return "FAILED"  # executeV2: of a failed command only the log
        file = scratch / "pod/layer/tmp/kfp_outputs/output_metadata.json"
        answer = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        outputs.parameters.update(answer.get("parameterValues", {}))
        for name, artifact in outputs.artifacts.items():
            for merged in answer.get("artifacts", {}).get(name, {}).get("artifacts", ())[:1]:
                artifact.metadata.update(merged.get("metadata", {}))
            place.upload(artifact.uri)
        return "COMPLETE"


@dataclass
class _Places:
    """Where addresses of the store lie in the pod, and what is copied between the two."""

    cluster: Cluster
    folder: Path

    def of(self, uri: str) -> Path:
        """v2/component/launcher_v2.go LocalPathForURI: s3://X is /s3/X, minio://X is /minio/X."""
        return self.folder / uri.removeprefix(f"{self.cluster.scheme}://")

    def download(self, uri: str) -> int:
        """downloadArtifacts: whole, whether the command needs it or not; nothing found is no error. Bytes copied."""
        keys = self.cluster.keys(uri)
        for key in keys:
            target = self.folder / self.cluster.bucket / key
            target.parent.mkdir(parents=True, exist_ok=True)
            self.cluster.client.download_file(self.cluster.bucket, key, str(target))
        return sum(keys.values())

    def upload(self, uri: str) -> None:
        """UploadBlob: a file to its key, a folder file by file; empty folders are lost, a link to a folder fails."""
        path, key = self.of(uri), uri.removeprefix(f"{self.cluster.scheme}://{self.cluster.bucket}/")
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_symlink() and file.is_dir():
                raise Refused(f"{uri}: a link to a folder cannot be uploaded")
            if file.is_file():
                name = key if file == path else f"{key}/{file.relative_to(path).as_posix()}"
                self.cluster.client.upload_file(str(file), self.cluster.bucket, name)

    def upload_text(self, uri: str, text: str) -> None:
        key = uri.removeprefix(f"{self.cluster.scheme}://{self.cluster.bucket}/")
        self.cluster.client.put_object(Bucket=self.cluster.bucket, Key=key, Body=text.encode())


def fingerprint(inputs: Outputs, defined: Any, container: Any, pod: Any) -> str:
    """v2/driver/cache.go getFingerPrint: ids of artifacts, not their addresses or content; no secrets, no limits."""
    ids = {name: [item.id for item in flat([value])] for name, value in inputs.artifacts.items()}
    workspace = any(isinstance(value, str) and WORKSPACE in value for value in inputs.parameters.values())
    parts = [
        inputs.parameters,
        ids,
        defined,
        container["command"],
        container["args"],
        container["image"],
        [mount["mountPath"] for mount in pod.get("pvcMount", ())],
        os.urandom(8).hex() if workspace else "",  # the claim's name holds the run's: never a hit
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def flat(values: Any) -> Iterator[Artifact]:
    """Artifacts of a mapping's values, lists of a loop included."""
    for value in values:
        if isinstance(value, list):
            yield from value
        elif value is not None:
            yield value


def seconds(duration: str | None) -> float:
    return float(duration.removesuffix("s")) if duration else 0.0
