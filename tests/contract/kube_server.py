"""A loopback server that plays the part of the Kubernetes API that a task with a TrainJob needs, and keeps its state.

It admits what the role beside the component allows and nothing else, checks a TrainJob against the models that Kubeflow
Trainer publishes, and leaves what becomes of it to `controller`.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from email.message import Message
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob
from tests.contract.kfp_server import DROP, Handler

ROLE = Path(__file__).resolve().parents[2] / "components/trainjob/role.yaml"
NAMESPACE, TOKEN, POD, RUN_ID = "team", "of-the-pod", "run-1-trainjob-7", "1f0c"
WORKFLOW = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "run-1", "uid": "u-1", "controller": True}
PATHS = re.compile(
    r"/api(?:s/(?P<group>[\w.]+))?/v1(?:alpha1)?/namespaces/(?P<namespace>\w+)/(?P<plural>\w+)"
    r"(?:/(?P<name>[\w-]+))?(?:/(?P<sub>log))?$"
)
VERBS = {"POST": "create", "DELETE": "delete"}


class Kubernetes(ThreadingHTTPServer):
    """A namespace with the pod of the task, whose volume of the run is mounted at `workspace`.

    controller   called with each new TrainJob in a thread of its own; says by `ends` and `pod` what became of it
    refuse       what the next requests get instead of an answer: a status, or DROP
    counts       verb and resource -> requests that were answered
    faults       fields of a TrainJob that the API would drop
    """

    daemon_threads = True

    def __init__(self, workspace: Path, controller: Callable[[Kubernetes, dict[str, Any]], object]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.controller = controller
        self.rules = next(yaml.safe_load_all(ROLE.read_text("utf-8")))["rules"]
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.refuse: list[int | str] = []
        self.counts: Counter[str] = Counter()
        self.headers: list[Message] = []
        self.faults: list[str] = []
        self._lock = threading.Lock()
        self.pods[POD] = {
            "metadata": {"name": POD, "ownerReferences": [WORKFLOW]},
            "spec": {
                "containers": [
                    {"name": "main", "volumeMounts": [{"name": "kfp-workspace", "mountPath": str(workspace)}]},
                ],
                "volumes": [
                    {"name": "kfp-workspace", "persistentVolumeClaim": {"claimName": "run-1-kfp-workspace"}},
                ],
            },
        }

    def environment(self, folder: Path) -> dict[str, str]:
        """What the task's container has."""
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.server_port}"}}
        login = {"name": "u", "user": {"token": TOKEN}}
        context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
        content = {"clusters": [cluster], "users": [login], "contexts": [context], "current-context": "x"}
        file = folder / "kubeconfig"
        file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **content}), "utf-8")
        names = {"KFP_NAMESPACE": NAMESPACE, "KFP_POD_NAME": POD, "KFP_RUN_ID": RUN_ID}
        return {"KUBECONFIG": str(file), **names}

    # --- what a controller does ------------------------------------------------------------------------------

    def ends(self, name: str, kind: str, reason: str = "JobsCompleted", message: str = "done") -> None:
        """The condition that a TrainJob keeps."""
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        with self._lock:
            self.jobs[name]["status"] = {"conditions": [{**condition, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}

    def pod(self, job: str, node: int, phase: str, waits: str = "", log: str | None = None) -> None:
        """A pod of a TrainJob, as the Job of its JobSet names and labels it."""
        name = f"{job}-node-0-{node}"
        labels = {"jobset.sigs.k8s.io/jobset-name": job, "batch.kubernetes.io/job-completion-index": str(node)}
        status: dict[str, Any] = {"phase": phase}
        if waits:
            state = {"waiting": {"reason": waits}}
            told = {"name": "node", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
            status["containerStatuses"] = [told]
        pod = {"metadata": {"name": name, "labels": labels}, "spec": {"containers": [{"name": "node"}]}}
        with self._lock:
            self.pods[name] = {**pod, "status": status}
            if log is not None:
                self.logs[name] = log

    # --- the API ---------------------------------------------------------------------------------------------

    def play(self, method: str, target: str, body: bytes) -> tuple[int, Any] | None:
        """Status and content of the answer to a request; None if the connection is to be dropped."""
        with self._lock:
            if self.refuse:
                refused = self.refuse.pop(0)
                return None if refused == DROP else failure(int(refused), "not now")
            parts = urlsplit(target)
            found = PATHS.match(parts.path)
            if found is None:
                return failure(404, "the server could not find the requested resource")
            group, plural, name, sub = (found[key] for key in ("group", "plural", "name", "sub"))
            resource = f"{plural}/{sub}" if sub else plural
            verb = VERBS.get(method, "get" if name else "list")
            if self.headers[-1].get("Authorization") != f"Bearer {TOKEN}":
                return failure(401, "Unauthorized")
            if found["namespace"] != NAMESPACE or not self._may(verb, group or "", resource):
                return failure(403, f"cannot {verb} resource {resource} in the namespace {found['namespace']}")
            self.counts[f"{verb} {resource}"] += 1
            if plural == "pods":
                return self._pods(name, sub, parse_qs(parts.query))
            return self._jobs(verb, name, json.loads(body) if verb == "create" else {})

    def _may(self, verb: str, group: str, resource: str) -> bool:
        return any(
            verb in rule["verbs"] and resource in rule["resources"] and group in rule["apiGroups"]
            for rule in self.rules
        )

    def _pods(self, name: str | None, sub: str | None, query: dict[str, list[str]]) -> tuple[int, Any]:
        if name is None:
            label, _, value = query["labelSelector"][0].partition("=")
            items = [pod for pod in self.pods.values() if pod["metadata"].get("labels", {}).get(label) == value]
            return 200, {"apiVersion": "v1", "kind": "PodList", "items": items}
        if name not in self.pods or (sub and name not in self.logs):
            return failure(404, f"pods {name} not found")
        if not sub:
            return 200, self.pods[name]
        lines = self.logs[name].splitlines(keepends=True)
        return 200, "".join(lines[-int(query["tailLines"][0]) :])

    def _jobs(self, verb: str, name: str | None, sent: dict[str, Any]) -> tuple[int, Any]:
        if verb == "create":
            return self._create(sent)
        job = self.jobs.get(name or "")
        if job is None:
            return failure(404, f"trainjobs {name} not found")
        if verb == "delete":  # in the foreground: it stays until its pods have ended
            job["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        elif "deletionTimestamp" in job["metadata"]:
            del self.jobs[str(name)]
            self.pods = {key: pod for key, pod in self.pods.items() if not key.startswith(f"{name}-")}
        return 200, job

    def _create(self, sent: dict[str, Any]) -> tuple[int, Any]:
        """As the schema of the resource has it (trainer: pkg/apis/trainer/v1alpha1/trainjob_types.go)."""
        name, spec = sent["metadata"]["name"], sent.get("spec", {})
        if name in self.jobs:
            return failure(409, f"trainjobs {name} already exists")
        try:
            known = TrainerV1alpha1TrainJob.from_dict(sent)
        except ValueError as error:
            return failure(422, str(error))
        if known is None or known.to_dict() != sent:
            self.faults.append(f"the API drops fields of {sent}")
        names = [item["name"] for item in spec["trainer"]["env"]]
        if not spec["runtimeRef"].get("name") or len(names) != len(set(names)):
            return failure(422, "spec.runtimeRef.name is required, names of spec.trainer.env are unique")
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name):
            return failure(422, f"metadata.name: Invalid value {name}")
        job = {**sent, "metadata": {**sent["metadata"], "uid": f"u-{name}", "namespace": NAMESPACE}}
        self.jobs[name] = job
        threading.Thread(target=self.controller, args=(self, job), daemon=True).start()
        return 201, job


def failure(code: int, message: str) -> tuple[int, dict[str, Any]]:
    return code, {"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": message, "code": code}
