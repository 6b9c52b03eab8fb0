"""Trouble of the Kubernetes API at moments that tests/contract/test_train_jobs.py does not reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.contract.kfp_server import DROP, serving
from tests.contract.kube_server import Kubernetes

from mdpr.kubeflow import train_jobs
from mdpr.kubeflow.train_jobs import Cluster

NAME = "tune-1"
MANIFEST = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "TrainJob",
    "metadata": {"name": NAME},
    "spec": {"runtimeRef": {"name": "torch-distributed"}, "trainer": {"numNodes": 2, "env": []}},
}


class Flaky(Kubernetes):
    """Answers the first requests after a deletion with errors, or not at all."""

    def _jobs(self, verb: str, name: str | None, sent: dict[str, Any]) -> tuple[int, Any]:
        if verb == "delete":
            self.refuse = [500, DROP, 503, 429]
        return super()._jobs(verb, name, sent)


def test_a_failed_job_is_replaced_although_the_api_is_in_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_jobs, "POLL_S", 0.01)
    with serving(Flaky(tmp_path, lambda kubernetes, job: kubernetes.ends(NAME, "Complete"))) as kubernetes:
        for name, value in kubernetes.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        kubernetes.jobs[NAME] = {"metadata": {"name": NAME}}
        kubernetes.ends(NAME, "Failed")
        Cluster.connect().run(NAME, MANIFEST)
        assert kubernetes.refuse == []
        assert (kubernetes.counts["delete trainjobs"], kubernetes.counts["create trainjobs"]) == (1, 1)
