"""What `mdpr pipeline run` checks before a task starts: the engine (played here), its images, a GPU, a key."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from components.images import IMAGE_CPU, IMAGE_GPU
from pipelines.docker import check_engine, docker_runner
from pipelines.options import Request, arguments, read_params
from pipelines.run import run_locally

from mdpr.errors import BackboneError, ConfigError, KnowledgeError

docker = pytest.importorskip("docker")


class Engine(BaseHTTPRequestHandler):
    """A Docker engine that has the cpu image and no other."""

    def do_GET(self) -> None:
        missing = "/images/" in self.path and IMAGE_CPU not in self.path
        content = {"message": f"No such image: {self.path}"} if missing else {"ApiVersion": "1.41", "Id": "sha256:1"}
        self.send_response(404 if missing else 200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


def request(*settings: str) -> Request:
    return Request("training", arguments(read_params(), "", settings))


def test_an_image_that_is_not_there(engine: None) -> None:
    check_engine([IMAGE_CPU])
    with pytest.raises(ConfigError, match=f"^the image {IMAGE_GPU} is missing: build it"):
        check_engine([IMAGE_CPU, IMAGE_GPU])


def test_no_task_starts_without_its_image(engine: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=IMAGE_GPU):
        run_locally("docker", tmp_path, request())
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"^no Docker engine answers: start one, or use --runner subprocess$"):
        check_engine([IMAGE_CPU])


@pytest.mark.parametrize("runner", ["subprocess", "docker"])
def test_a_key_that_is_missing(runner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(KnowledgeError, match=r"^the environment variable OPENAI_API_KEY is not set"):
        run_locally(runner, tmp_path / "runs", request("describe.provider=llm", "describe.llm.model=m"))
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_missing(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackboneError, match=r"^backbone\.device = cuda: no CUDA GPU is visible"):
        run_locally("subprocess", tmp_path / "runs", request("backbone.device=cuda"))
    assert list(tmp_path.iterdir()) == []


def test_containers_get_the_keys_of_a_cluster_s_secrets_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = {"MDPR_GIT_PASSWORD", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "MLFLOW_TRACKING_PASSWORD"}
    for name in (*needed, "KFP_TOKEN"):
        monkeypatch.setenv(name, "hidden")
    given = docker_runner(tmp_path).container_run_args["environment"]
    assert {name for name, value in given.items() if value == "hidden"} == needed
