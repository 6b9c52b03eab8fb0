"""submit and schedule against a loopback server that plays a Kubeflow Pipelines API: the real client, real HTTP."""

from __future__ import annotations

import io
import json
import ssl
import sys
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from tests.contract.kfp_server import DROP, OPERATIONS, Api, request_faults, serving

from mdpr.cli import main

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def serve() -> Iterator[Any]:
    """Start servers that are gone when the test ends; a request that is not as published fails the test."""
    with ExitStack() as servers:
        yield lambda *states, **options: servers.enter_context(serving(Api(list(states), **options)))


@dataclass(frozen=True)
class Result:
    exit_code: int
    output: str


@pytest.fixture(autouse=True)
def _project_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)


def mdpr(*arguments: str) -> Result:
    """The command line as a user has it, its two streams together."""
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(output):
        patch.setattr(sys, "argv", ["mdpr", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return Result(int(ended.value.code or 0), output.getvalue())


def run(api: Api, *options: str) -> Result:
    return mdpr("pipeline", "submit", "--host", api.host, "--poll-s", "0.01", *options)


@pytest.mark.parametrize(("last", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("CANCELED", 1), ("SKIPPED", 1)])
def test_waiting_ends_with_the_run(serve: Any, last: str, code: int) -> None:
    api = serve("PENDING", "RUNNING", last)
    result = run(api, "--wait", "--set", "tune.epochs=3")
    assert result.exit_code == code, result.output
    assert [line for line in result.output.splitlines() if line.startswith("state")] == [
        "state: PENDING",
        "state: RUNNING",
        f"state: {last}",
    ]
    assert api.runs[0]["runtime_config"]["parameters"] == {"recipe": "", "overrides": "tune:\n  epochs: 3\n"}
    assert f"{api.host}/#/runs/details/r1" in result.output
    assert api.runs[0]["pipeline_version_reference"] == {"pipeline_id": "p1", "pipeline_version_id": "v1"}


def test_the_same_pipeline_is_not_uploaded_twice(serve: Any) -> None:
    api = serve("SUCCEEDED")
    assert run(api).exit_code == 0
    assert run(api).exit_code == 0
    assert len(api.versions) == 1
    assert len(api.runs) == 2


@pytest.mark.parametrize("count", [19, 99, 101, 450])
def test_a_pipeline_of_any_number_of_versions_is_found_among_any_number_of_pipelines(serve: Any, count: int) -> None:
    api = serve("SUCCEEDED")
    api.pipelines = [
        {"pipeline_id": f"x{n}", "name": f"other-{n}", "display_name": "mdpr-training"} for n in range(count)
    ]
    assert run(api).exit_code == 0
    pipeline_id, version = api.pipelines[-1]["pipeline_id"], api.versions[0]
    assert api.pipelines[-1]["name"] == "mdpr-training"
    old = [{"pipeline_id": pipeline_id, "pipeline_version_id": f"o{n}", "name": f"old-{n}"} for n in range(count)]
    api.versions = [*({**item, "display_name": item["name"]} for item in old), version]
    result = run(api)
    assert result.exit_code == 0, result.output
    assert (len(api.packages), len(api.pipelines)) == (1, count + 1)
    assert api.runs[1]["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]


def test_on_a_shared_cluster_every_request_names_the_namespace(serve: Any) -> None:
    api = serve("SUCCEEDED", namespace="team")
    result = run(api, "--namespace", "team")
    assert result.exit_code == 0, result.output
    assert api.pipelines[0]["namespace"] == "team"
    assert run(api, "--namespace", "team").exit_code == 0
    assert len(api.pipelines) == 1
    missing, other = run(api), run(api, "--namespace", "other")
    assert (missing.exit_code, other.exit_code) == (2, 2)
    assert "--namespace" in missing.output
    assert "status 400" in other.output


def test_where_a_run_writes_and_as_whom(serve: Any, tmp_path: Path) -> None:
    profile = tmp_path / "cluster.yaml"
    profile.write_text("pipeline_root: s3://bucket/runs\nservice_account: runner\n", "utf-8")
    api = serve("SUCCEEDED")
    assert run(api, "--cluster", str(profile)).exit_code == 0
    assert run(api, "--cluster", str(profile), "--service-account", "me", "--pipeline-root", "s3://mine").exit_code == 0
    assert [item["service_account"] for item in api.runs] == ["runner", "me"]
    assert [item["runtime_config"]["pipeline_root"] for item in api.runs] == ["s3://bucket/runs", "s3://mine"]


def test_the_login_is_in_every_request(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("of the pod\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    for options, header, value in (
        (["--token", "mine"], "Authorization", "Bearer mine"),
        (["--cookies", "session=1"], "Cookie", "session=1"),
        ([], "Authorization", "Bearer of the pod"),
    ):
        api = serve("SUCCEEDED")
        assert run(api, *options).exit_code == 0
        assert {headers.get(header) for headers in api.headers} == {value}


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody but its owner trusts, and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder / "ca.pem", folder / "key.pem"


def test_a_server_with_a_certificate_of_its_own_is_trusted_by_its_file(serve: Any, tmp_path: Path) -> None:
    api, (ca, key) = serve("RUNNING", "SUCCEEDED"), certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca, key)
    api.socket = context.wrap_socket(api.socket, server_side=True)
    submit = ("pipeline", "submit", "--host", f"https://127.0.0.1:{api.server_port}", "--poll-s", "0.01", "--wait")
    unknown, missing = mdpr(*submit), mdpr(*submit, "--ca-file", "no/such.pem")
    assert (unknown.exit_code, missing.exit_code, api.runs) == (2, 2, [])
    assert "check --ca-file" in unknown.output
    assert "no/such.pem does not exist" in missing.output
    trusted = mdpr(*submit, "--ca-file", str(ca))
    assert trusted.exit_code == 0, trusted.output


def test_a_page_for_browsers_is_no_api(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api = serve("SUCCEEDED")
    monkeypatch.setattr(api, "play", lambda *request: (200, ["a login page"]))
    result = run(api)
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1)
    assert "log in" in result.output


@pytest.mark.parametrize(("tag", "old"), [("2.14.3", True), ("v1.8.5", True), ("2.15.0", False), ("unknown", False)])
def test_a_backend_that_is_too_old_is_named_before_anything_is_sent(serve: Any, tag: str, old: bool) -> None:
    api = serve("SUCCEEDED", tag=tag)
    result = run(api)
    assert result.exit_code == (2 if old else 0)
    assert (f"{tag}: the pipelines need 2.15" in result.output) is old
    assert bool(api.packages) is not old


def test_waiting_is_bounded(serve: Any) -> None:
    result = run(serve("RUNNING"), "--wait", "--timeout-s", "0.2")
    assert (result.exit_code, "did not end in" in result.output) == (1, True)


@pytest.mark.parametrize(
    ("status", "hint", "at"),
    [
        (401, "--token", None),
        (403, "--namespace", None),
        (409, "another name", None),
        (500, "ml-pipeline", None),
        (401, "--token", ("GET", "/pipelines")),
        (409, "another name", ("POST", "/pipelines")),
        (500, "ml-pipeline", ("POST", "/runs")),
    ],
)
def test_a_refusal_is_one_line(serve: Any, status: int, hint: str, at: tuple[str, str] | None) -> None:
    result = run(serve("SUCCEEDED", refuse={at: status}))
    assert result.exit_code == 2
    (line,) = (line for line in result.output.splitlines() if "details" not in line)  # links that are there by then
    assert str(status) in line
    assert hint in line
    assert "(refused)" in line  # the server's own word


def test_a_host_that_is_away_is_one_line(serve: Any) -> None:
    api = serve("SUCCEEDED")
    api.server_close()
    result = run(api)
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1)
    assert "does not answer" in result.output


def test_a_wrong_setting_is_told_before_the_host_is_asked(serve: Any) -> None:
    api = serve("SUCCEEDED")
    assert run(api, "--set", "tune.epochs=0").exit_code == 2
    assert api.requests == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--recipe", "cifar"], "no recipe cifar"),
        (["--set", "tune.epoch=3"], "tune.epoch is not a setting"),
        (["--cluster", "no/such.yaml"], "no/such.yaml does not exist"),
    ],
)
def test_a_mistake_is_one_line_before_the_host_is_asked(serve: Any, options: list[str], named: str) -> None:
    api = serve("SUCCEEDED")
    result = run(api, *options)
    assert (result.exit_code, api.requests, len(result.output.strip().splitlines())) == (2, [], 1), result.output
    assert named in result.output


def test_a_poll_that_gets_no_answer_is_repeated(serve: Any) -> None:
    result = run(serve("RUNNING", DROP, DROP, "SUCCEEDED"), "--wait")
    assert result.exit_code == 0, result.output
    assert [line for line in result.output.splitlines() if line.startswith("state")] == [
        "state: RUNNING",
        "state: SUCCEEDED",
    ]


def test_a_server_in_trouble_is_asked_again(serve: Any) -> None:
    result = run(serve("RUNNING", 500, 503, "SUCCEEDED"), "--wait")
    assert result.exit_code == 0, result.output


def test_a_login_that_ends_while_the_run_goes_on_is_told_at_once(serve: Any) -> None:
    api = serve("RUNNING", 401, "SUCCEEDED")
    result = run(api, "--wait")
    assert result.exit_code == 2
    last = result.output.strip().splitlines()[-1]
    assert "--token" in last
    assert f"the run goes on: follow it at {api.host}/#/runs/details/r1" in last
    assert api.states == ["SUCCEEDED"]


def test_a_server_that_goes_away_for_good_is_one_line(serve: Any) -> None:
    result = run(serve("RUNNING", DROP), "--wait")
    assert result.exit_code == 2
    assert "does not answer" in result.output.strip().splitlines()[-1]


def test_a_profile_of_its_own_is_uploaded(serve: Any, tmp_path: Path) -> None:
    profile = tmp_path / "cluster.yaml"
    profile.write_text(yaml.safe_dump({"image_gpu": "registry.example.org/gpu:7", "data_claim": "image-sets"}), "utf-8")
    api = serve("SUCCEEDED")
    assert run(api, "--cluster", str(profile)).exit_code == 0
    assert b"registry.example.org/gpu:7" in api.packages[0]
    assert b"image-sets" in api.packages[0]


def test_more_processes_than_images_of_a_step_are_told_before_the_host_is_asked(serve: Any, tmp_path: Path) -> None:
    profile = tmp_path / "cluster.yaml"
    content = {"workspace_access": "ReadWriteMany", "tasks": {"tune": {"nodes": 9, "gpus": 4}}}
    profile.write_text(yaml.safe_dump(content), "utf-8")
    api = serve("SUCCEEDED")
    result = run(api, "--cluster", str(profile))
    assert (result.exit_code, api.requests) == (2, [])
    assert "tune.batch_size = 32 is less than the 36 processes" in result.output


def test_schedule_hands_over_cron_parameters_and_version(serve: Any) -> None:
    api = serve()
    result = mdpr("pipeline", "schedule", "--host", api.host, "--cron", "0 3 * * 1", "--recipe", "cifar100-lt")
    assert result.exit_code == 0, result.output
    (sent,) = api.schedules
    assert sent["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}
    assert (sent["max_concurrency"], sent["no_catchup"], sent["mode"]) == (1, True, "ENABLE")
    assert sent["runtime_config"]["parameters"] == {"recipe": "cifar100-lt", "overrides": ""}
    assert sent["pipeline_version_reference"] == {"pipeline_id": "p1", "pipeline_version_id": "v1"}


@pytest.mark.parametrize("cron", ["", "daily", "0 3 * *", "0 0 0 3 * * 1"])
def test_a_wrong_cron_expression_is_told_before_the_host_is_asked(serve: Any, cron: str) -> None:
    api = serve()
    result = mdpr("pipeline", "schedule", "--host", api.host, "--cron", cron)
    assert (result.exit_code, api.requests) == (2, [])
    assert "minute hour day month weekday" in result.output


def test_the_server_knows_a_request_that_is_not_as_published() -> None:
    """What the other tests rely on: each rule finds its fault."""
    by_name = {(item.method, item.path.removeprefix("/apis/v2beta1")): item for item in OPERATIONS}
    start, listing, upload = (
        by_name[key] for key in (("POST", "/runs"), ("GET", "/pipelines"), ("POST", "/pipelines/upload"))
    )
    sent = {"display_name": "a", "experiment_id": "e1", "runtime_config": {"parameters": {"epochs": 3}}}

    def faults(**changes: Any) -> list[str]:
        return list(request_faults(start, {}, json.dumps(sent | changes).encode()))

    assert faults() == []
    assert faults(experiment_id=1) == ["V2beta1Run.experiment_id = 1 is not of type str"]
    assert faults(display_name=None) == ["POST /apis/v2beta1/runs needs V2beta1Run.display_name"]
    assert faults(name="b") == ["V2beta1Run has no field name"]
    assert faults(runtime_config={"parameters": [1]}) == ["V2beta1Run.runtime_config.parameters = [1] is not a dict"]
    assert "is none of" in faults(state="DONE")[0]
    assert list(request_faults(start, {}, b"{")) == ["POST /apis/v2beta1/runs: the body is not JSON"]
    assert "takes no query parameter pagesize" in next(request_faults(listing, {"pagesize": ["1"]}, b""))
    assert "is no whole number" in next(request_faults(listing, {"page_size": ["many"]}, b""))
    assert list(request_faults(listing, {}, b"x")) == ["GET /apis/v2beta1/pipelines takes no body"]
    assert list(request_faults(upload, {}, b"x")) == ["POST /apis/v2beta1/pipelines/upload has no file uploadfile"]


def test_outside_a_project_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    result = mdpr("pipeline", "compile")
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1)
    assert "--output" in result.output
