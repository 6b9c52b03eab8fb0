"""A stage on several nodes, inside a pipeline: the task starts a TrainJob of Kubeflow Trainer and follows it.

The volume of the run is mounted at the same path in the task's pod and in the nodes' pods. The task copies the inputs
onto it, the nodes write the output there, the task hands it on. A second attempt of the task goes on where the first
one was: it follows the TrainJob that runs, starts another if that one failed, and starts none if the output is there.

Source: the API trainer.kubeflow.org/v1alpha1 of kubeflow/trainer; pods carry the labels of JobSet.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client, config  # type: ignore[import-untyped]
from kubernetes.client.exceptions import ApiException  # type: ignore[import-untyped]

from mdpr.errors import ConfigError, MdprError
from mdpr.kubeflow.components import (
    TRAIN_JOB,
    Artifact,
    keep_state,
    one_line_errors,
    read_sections,
    state_folder,
    summarise,
)
from mdpr.params import dump_yaml, parse_params, parse_yaml
from mdpr.stages.outputs import whole_or_not_at_all
from mdpr.stages.stage import load_stage

logger = logging.getLogger(__name__)

RESOURCE = {"group": "trainer.kubeflow.org", "version": "v1alpha1", "plural": "trainjobs"}
PODS = "jobset.sigs.k8s.io/jobset-name"  # label of a TrainJob's pods
INDEX = "batch.kubernetes.io/job-completion-index"  # label: the number of the node; the first one writes
NODE = "node"  # container
ENDED = ("Complete", "Failed")  # conditions
VOLUME = "workspace"
ROLE = "components/trainjob/role.yaml"
PARAMS_FILE = "params.yaml"
POLL_S = 10.0
REQUEST_TIMEOUT_S = 30
LOST_POLLS = 60  # polls in a row that may go unanswered
GONE_TIMEOUT_S = 600  # until the pods of a deleted TrainJob have ended
TAIL_LINES = 100


def run_on_nodes(stage_name: str, params: str, workspace: str, job: str, /, **ports: Artifact) -> None:
    """`run_component` on several nodes. `job`: a TrainJob as YAML text, without its name, volume and paths.

    A TrainJob that fails ends the process with one line on stderr: the reason that Kubeflow Trainer gives, and the last
    line of each pod that failed; more of their logs is above it.
    """
    with one_line_errors():
        stage = load_stage(stage_name)
        paths = {port: Path(artifact.path) for port, artifact in ports.items()}
        own = state_folder(Path(workspace), paths[stage.outputs[0]])
        shared = {port: own / port for port in stage.ports}
        if not all(shared[port].exists() for port in stage.outputs):
            sections = keep_state(parse_params(read_sections(params, "params")), own)
            (own / PARAMS_FILE).write_text(dump_yaml(sections.dump(stage.sections.values())), encoding="utf-8")
            for port in stage.inputs:
                if not shared[port].exists():
                    _copy(port, paths[port], shared[port])
            name, cluster = f"{stage_name}-{own.name}", Cluster.connect()
            (own / TRAIN_JOB).write_text(name, encoding="utf-8")
            arguments = [part for port in stage.ports for part in (f"--{port}", str(shared[port]))]
            arguments += ["--params", str(own / PARAMS_FILE)]
            cluster.run(name, cluster.complete(parse_yaml(job, "job"), name, workspace, arguments))
            if missing := [port for port in stage.outputs if not shared[port].exists()]:
                raise MdprError(
                    f"TrainJob {name} is complete, but {shared[missing[0]]} does not exist: its pods must mount the "
                    "volume of the run, with access mode ReadWriteMany"
                )
        for port in stage.outputs:
            _copy(port, shared[port], paths[port])
            ports[port].metadata.update(summarise(paths[port]))


def _copy(port: str, source: Path, target: Path) -> None:
    with whole_or_not_at_all({port: target}, {f"source of {port}": source}) as (partial,):
        if source.is_dir():
            shutil.copytree(source, partial, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(source, partial)


def stop_jobs(workspace: Path) -> None:
    """Delete the TrainJobs of the run that go on; a cluster that refuses is a warning."""
    for file in sorted(workspace.glob(f"*/{TRAIN_JOB}")):
        name = file.read_text("utf-8")
        try:
            cluster = Cluster.connect()
            if (found := cluster.get(name)) and not condition(found):
                cluster.delete(name)
                logger.info("TrainJob %s was still running: deleted", name)
        except MdprError as error:
            logger.warning("%s; TrainJob %s may go on until its time-out", error, name)


def condition(job: Mapping[str, Any]) -> Mapping[str, str] | None:
    """The condition in which the TrainJob ended, Complete or Failed; None while it goes on."""
    conditions = job.get("status", {}).get("conditions", ())
    return next((item for item in conditions if item["type"] in ENDED and item["status"] == "True"), None)


@dataclass(frozen=True)
class Cluster:
    """The Kubernetes API, as the account of this pod may use it, in the pod's own namespace."""

    api: client.ApiClient
    namespace: str

    @classmethod
    def connect(cls) -> Cluster:
        """As the account of this pod, or of the file that KUBECONFIG names; raises `ConfigError`."""
        try:
            if file := os.environ.get("KUBECONFIG"):
                config.load_kube_config(file)
            else:
                config.load_incluster_config()
        except config.ConfigException as error:
            raise ConfigError(f"there is no Kubernetes API to start a TrainJob with ({error})") from None
        return cls(client.ApiClient(), os.environ["KFP_NAMESPACE"])

    def _call(self, request: str, api: type, method: str, **arguments: Any) -> Any:
        """The answer of the API, in a bounded time. `request`: verb and resource, as in a role."""
        with translate_errors(request):
            call = getattr(api(self.api), method)
            return call(namespace=self.namespace, **arguments, _request_timeout=REQUEST_TIMEOUT_S)

    def _call_jobs(self, verb: str, **arguments: Any) -> Any:
        method = f"{verb}_namespaced_custom_object"
        return self._call(f"{verb} trainjobs", client.CustomObjectsApi, method, **RESOURCE, **arguments)

    def complete(self, job: dict[str, Any], name: str, workspace: str, arguments: Sequence[str]) -> dict[str, Any]:
        """`job` with its name, its owner, the volume of the run and the arguments of the stage."""
        pod = self._call("get pods", client.CoreV1Api, "read_namespaced_pod", name=os.environ["KFP_POD_NAME"])
        spec = job["spec"]
        (patch,) = spec["runtimePatches"]
        (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        nodes = node["template"]["spec"]["template"]["spec"]
        claim = {"claimName": _claim_at(workspace, pod)}
        nodes["volumes"].append({"name": VOLUME, "persistentVolumeClaim": claim})
        nodes["containers"][0]["volumeMounts"].append({"name": VOLUME, "mountPath": workspace})
        spec["trainer"]["args"] += arguments
        spec["trainer"]["env"].append({"name": "KFP_RUN_ID", "value": os.environ["KFP_RUN_ID"]})
        # The run's workflow owns it, not this pod: it outlives the pod, and goes when the run is deleted.
        owners = [
            {"apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid}
            for owner in pod.metadata.owner_references or ()
        ]
        return {**job, "metadata": {"name": name, "ownerReferences": owners}}

    def run(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Start the TrainJob, unless it runs already, and follow it to its end; raises `MdprError` if it fails."""
        found = self.get(name)
        if found and ((condition(found) or {}).get("type") == "Failed" or found["metadata"].get("deletionTimestamp")):
            logger.info("TrainJob %s failed in an earlier attempt: starting it anew", name)
            self.delete(name)
            self._wait_until_gone(name)
            found = None
        if found:
            logger.info("TrainJob %s was started by an earlier attempt: following it", name)
        else:
            self._call_jobs("create", body=manifest)
            logger.info("TrainJob %s started on %s nodes", name, manifest["spec"]["trainer"]["numNodes"])
        end = self._follow(name)
        pods = self._pods(name)
        if end["type"] == "Complete":
            self._show(pod for pod in pods if pod.metadata.labels.get(INDEX) == "0")
            return
        lines = self._show(pod for pod in pods if pod.status.phase == "Failed")
        raise MdprError("; ".join([f"TrainJob {name} failed ({end['reason']}): {end['message']}", *lines]))

    def get(self, name: str) -> dict[str, Any] | None:
        """The TrainJob as it is now, None if there is none."""
        try:
            found: dict[str, Any] = self._call_jobs("get", name=name)
        except NotFound:
            return None
        return found

    def delete(self, name: str) -> None:
        """Delete the TrainJob, which goes when its pods have ended."""
        self._call_jobs("delete", name=name, propagation_policy="Foreground")

    def _polled(self, name: str) -> Iterator[tuple[dict[str, Any] | None, str]]:
        """The TrainJob and the phases of its pods, every `POLL_S`; a poll without an answer is repeated."""
        lost = 0
        while True:
            try:
                seen = self.get(name), ", ".join(map(_phase, self._pods(name)))
            except NotAnswered:
                lost += 1
                if lost > LOST_POLLS:
                    raise
            else:
                lost = 0
                yield seen
            time.sleep(POLL_S)

    def _wait_until_gone(self, name: str) -> None:
        deadline = time.monotonic() + GONE_TIMEOUT_S
        for job, _ in self._polled(name):
            if job is None:
                return
            if time.monotonic() > deadline:
                raise MdprError(f"TrainJob {name} was deleted and is still there after {GONE_TIMEOUT_S} s")

    def _follow(self, name: str) -> Mapping[str, str]:
        """Its condition once it has ended; a change of its pods is a line of the log."""
        shown = ""
        for job, pods in self._polled(name):
            if job is None:
                break
            if pods != shown:
                logger.info("TrainJob %s: %s", name, pods)
                shown = pods
            if end := condition(job):
                return end
        raise MdprError(f"TrainJob {name} was deleted while it ran")

    def _pods(self, name: str) -> list[Any]:
        labels = f"{PODS}={name}"
        found = self._call("list pods", client.CoreV1Api, "list_namespaced_pod", label_selector=labels)
        return sorted(found.items, key=lambda pod: str(pod.metadata.name))

    def _show(self, pods: Iterator[Any]) -> list[str]:
        """Print the ends of the pods' logs; returns one line of each: its error, or else its last."""
        found = []
        for pod in pods:
            try:
                answer = self._call(
                    "get pods/log",
                    client.CoreV1Api,
                    "read_namespaced_pod_log",
                    name=pod.metadata.name,
                    container=NODE,
                    tail_lines=TAIL_LINES,
                    _preload_content=False,  # the client takes a log that looks like JSON to pieces
                )
                text = answer.data.decode("utf-8", "replace")
            except (MdprError, urllib3.exceptions.HTTPError):  # of a pod on a node that is lost
                found.append(f"{_node(pod)}: its log cannot be read")
                continue
            lines = [line for line in text.splitlines() if line.strip()]
            print(f"--- the log of {_node(pod)}, up to {TAIL_LINES} lines", *lines, sep="\n", file=sys.stderr)
            # torchrun's own report comes after the line of the process that failed.
            errors = [line for line in lines if line.startswith("error:")]
            found.append(f"{_node(pod)}: {(errors or lines or ['no log'])[-1]}")
        return found


def _claim_at(workspace: str, pod: Any) -> str:
    """The claim that `pod` has mounted at `workspace`; raises `ConfigError`."""
    volumes = {volume.name: volume.persistent_volume_claim for volume in pod.spec.volumes or ()}
    for container in pod.spec.containers:
        for mount in container.volume_mounts or ():
            if mount.mount_path == workspace and volumes.get(mount.name):
                return str(volumes[mount.name].claim_name)
    raise ConfigError(f"{pod.metadata.name} has no claim mounted at {workspace}: set workspace_size in the profile")


def _phase(pod: Any) -> str:
    """Number and phase of a node's pod, and why a container of it waits."""
    states = [status.state for status in pod.status.container_statuses or ()]
    reasons = [state.waiting.reason for state in states if state and state.waiting]
    return f"{_node(pod)} {pod.status.phase}{f' ({reasons[0]})' if reasons else ''}"


def _node(pod: Any) -> str:
    return f"node {pod.metadata.labels.get(INDEX, pod.metadata.name)}"


class NotAnswered(MdprError):
    """The API did not answer, or could not: it may soon."""


class NotFound(ConfigError):
    """The object or its kind is not there."""


@contextmanager
def translate_errors(request: str) -> Iterator[None]:
    """An error of the API as one line. `request`: verb and resource, as in a role."""
    try:
        yield
    except ApiException as error:
        try:
            words = json.loads(error.body)["message"]
        except (TypeError, ValueError, KeyError):
            words = error.reason
        if error.status >= 500 or error.status == 429:
            raise NotAnswered(f"the Kubernetes API could not {request} ({error.status}: {words})") from None
        hints = {403: f": kubectl apply -f {ROLE}", 404: ": install Kubeflow Trainer, 2.3 or later"}
        kind = NotFound if error.status == 404 else ConfigError
        hint = hints.get(error.status, "")
        raise kind(f"the Kubernetes API refused to {request} ({error.status}: {words}){hint}") from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise NotAnswered(f"the Kubernetes API does not answer ({reason})") from None
