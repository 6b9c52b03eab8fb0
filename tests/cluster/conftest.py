"""A cluster per test: its S3 store is moto's server, its pods are processes in namespaces of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from tests.cluster.engine import Cluster
from tests.cluster.pod import unavailable
from tests.integration.conftest import s3, start_server  # noqa: F401 - fixtures

BUCKET = "mlpipeline"
NewCluster = Callable[..., Cluster]


@pytest.fixture(scope="session")
def client(s3: str) -> Any:  # noqa: F811 - the fixture
    """A client of an S3 server with the bucket that artifacts go to."""
    login = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    made = boto3.client("s3", endpoint_url=s3, **login)
    made.create_bucket(Bucket=BUCKET)
    return made


@pytest.fixture(scope="session")
def new_cluster(client: Any, project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> NewCluster:
    if reason := unavailable():
        pytest.skip(reason)

    def make(scheme: str = "s3") -> Cluster:
        return Cluster(client, BUCKET, project_root, tmp_path_factory.mktemp("cluster"), scheme)

    return make


@pytest.fixture
def cluster(new_cluster: NewCluster) -> Cluster:
    return new_cluster()
