"""The account of a TrainJob's pods; tests/contract/test_trainjob.py has the rest of the manifest."""

from __future__ import annotations

from typing import Any

import pytest
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob
from pipelines.cluster import ClusterProfile
from pipelines.nodes import train_job


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    (patch,) = job["spec"]["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod: dict[str, Any] = node["template"]["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("account", ["", "runner"])
def test_the_nodes_run_under_the_account_of_the_profile(account: str) -> None:
    job = train_job("tune-1", 2, ClusterProfile(service_account=account))
    assert pod_of(job).get("serviceAccountName", "") == account
    known = TrainerV1alpha1TrainJob.from_dict(job)
    assert known is not None
    assert known.to_dict() == job
