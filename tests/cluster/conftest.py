"""A cluster per test: its S3 store is moto's server, its pods are processes in namespaces of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from tests.cluster.engine import Cluster
from tests.cluster.pod import unavailable
from tests.integration.conftest import start_server  # noqa: F401 - a fixture

BUCKET = "mlpipeline"
NewCluster = Callable[..., Cluster]


@pytest.fixture(scope="session")
def client() -> Iterator[Any]:
    """A client of an S3 server with the bucket that artifacts go to."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    login = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    made = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **login)
    made.create_bucket(Bucket=BUCKET)
    yield made
    server.stop()


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
