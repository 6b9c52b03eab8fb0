"""The manifests of a team's server hold together. Parsed and compared field by field: kubectl is not needed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

KUBERNETES = Path(__file__).resolve().parents[3] / "mlflow" / "kubernetes"
COMPOSE = KUBERNETES.parent / "compose.yaml"
DOCKERFILE = KUBERNETES.parent / "Dockerfile"
SECRET = "mlflow-secrets"  # noqa: S105 - a name


def documents(path: Path) -> list[dict[str, Any]]:
    return [item for item in yaml.safe_load_all(path.read_text("utf-8")) if item]


@pytest.fixture(scope="module")
def kustomization() -> dict[str, Any]:
    return documents(KUBERNETES / "kustomization.yaml")[0]


@pytest.fixture(scope="module")
def resources(kustomization: dict[str, Any]) -> list[dict[str, Any]]:
    return [item for name in kustomization["resources"] for item in documents(KUBERNETES / name)]


def pods(resources: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """(workload, pod template, container) of every container that serves."""
    for item in resources:
        template = item.get("spec", {}).get("template")
        for container in template["spec"]["containers"] if template else ():
            yield item, template, container


def containers(resources: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every container, those that prepare something included."""
    for _, template, container in pods(resources):
        yield from (*template["spec"].get("initContainers", ()), container)


def test_every_file_is_listed_and_every_listed_file_is_there(kustomization: dict[str, Any]) -> None:
    others = {"kustomization.yaml", "inference-service.yaml"}  # the service of the model has its own life
    assert set(kustomization["resources"]) == {path.name for path in KUBERNETES.glob("*.yaml")} - others


def test_every_object_says_what_it_is(resources: list[dict[str, Any]]) -> None:
    names = [(item["kind"], item["metadata"]["name"]) for item in resources if item["apiVersion"]]
    assert len(names) == len(set(names)) == len(resources)
    assert {kind for kind, _ in names} == {"Namespace", "Service", "StatefulSet", "Deployment"}


def test_everything_can_be_applied_again_after_a_secret_or_an_image_changed(resources: list[dict[str, Any]]) -> None:
    """A new secret has a new name (its digest is part of it), and the pods of a Job never change."""
    assert "Job" not in {item["kind"] for item in resources}
    (bucket,) = (item for item in containers(resources) if item["name"] == "bucket")
    assert "head-bucket" in bucket["args"][0]  # made once, found from then on


def test_services_reach_a_port_of_a_pod(resources: list[dict[str, Any]]) -> None:
    services = [item for item in resources if item["kind"] == "Service"]
    assert services
    for service in services:
        selector = service["spec"]["selector"].items()
        ports = {
            port["name"]: port["containerPort"]
            for _, template, container in pods(resources)
            if selector <= template["metadata"]["labels"].items()
            for port in container.get("ports", ())
        }
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"], service["metadata"]["name"]


def test_workloads_select_their_own_pods(resources: list[dict[str, Any]]) -> None:
    services = {item["metadata"]["name"] for item in resources if item["kind"] == "Service"}
    for item, template, _ in pods(resources):
        assert item["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        if item["kind"] == "StatefulSet":
            assert item["spec"]["serviceName"] in services


def test_secrets_come_from_the_one_file_and_none_is_written_here(
    resources: list[dict[str, Any]], kustomization: dict[str, Any]
) -> None:
    lines = (KUBERNETES / "secrets.env.example").read_text("utf-8").split()
    keys = {line.partition("=")[0] for line in lines}
    references = [
        variable["valueFrom"]["secretKeyRef"]
        for container in containers(resources)
        for variable in container.get("env", ())
        if "valueFrom" in variable
    ]
    assert (
        {reference["name"] for reference in references}
        == {SECRET}
        == {item["name"] for item in kustomization["secretGenerator"]}
    )
    assert {reference["key"] for reference in references} == keys
    assert set(re.findall(r"\$\{(\w+):\?", COMPOSE.read_text("utf-8"))) == keys  # compose asks for the same


def test_what_is_stored_is_on_a_volume_and_what_serves_is_probed(resources: list[dict[str, Any]]) -> None:
    for item, template, container in pods(resources):
        claims = {claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", ())}
        volumes = claims | {volume["name"] for volume in template["spec"].get("volumes", ())}
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
        if item["kind"] == "StatefulSet":
            assert claims
        assert "readinessProbe" in container
    assert all("memory" in container["resources"]["limits"] for container in containers(resources))


def test_cluster_and_compose_start_the_same_server(resources: list[dict[str, Any]]) -> None:
    (command,) = [container["args"][0] for item, _, container in pods(resources) if item["kind"] == "Deployment"]
    asked = documents(COMPOSE)[0]["services"]["mlflow"]["command"]
    assert {flag.partition("=")[0] for flag in asked if flag.startswith("--")} == set(re.findall(r"--[\w-]+", command))
    assert "--app-name=basic-auth" in command
    images = {container["name"]: container["image"] for container in containers(resources)}
    services = documents(COMPOSE)[0]["services"]
    assert {name: services[name]["image"] for name in ("postgres", "s3", "bucket")}.items() <= images.items()


def test_compose_checks_the_health_of_what_others_wait_for() -> None:
    compose = documents(COMPOSE)[0]
    services = compose["services"]
    for service in services.values():
        for name, condition in service.get("depends_on", {}).items():
            assert condition["condition"] == "service_completed_successfully" or "healthcheck" in services[name]
        for mount in service.get("volumes", ()):
            assert mount.partition(":")[0] in compose["volumes"]
    assert all(port.startswith("${MLFLOW_BIND:-127.0.0.1}") for port in services["mlflow"]["ports"])


def test_compose_says_which_version_it_needs() -> None:
    inline = [item for item in documents(COMPOSE)[0]["configs"].values() if "content" in item]
    assert inline
    readme = (COMPOSE.parent / "README.md").read_text("utf-8")
    assert "2.23.1" in readme  # the first with `content`
    assert "2.23.1" in COMPOSE.read_text("utf-8")


def test_kserve_asks_the_port_that_the_image_serves() -> None:
    (service,) = documents(KUBERNETES / "inference-service.yaml")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert service["metadata"]["annotations"] == {"serving.kserve.io/deploymentMode": "Standard"}
    (container,) = service["spec"]["predictor"]["containers"]
    (port,) = container["ports"]
    (last,) = re.findall(r"^CMD (.*)$", DOCKERFILE.read_text("utf-8"), re.MULTILINE)
    command = json.loads(last)
    assert int(command[command.index("--port") + 1]) == port["containerPort"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/ping", "port": port["containerPort"]}
    assert f"EXPOSE {port['containerPort']}" in DOCKERFILE.read_text("utf-8")
