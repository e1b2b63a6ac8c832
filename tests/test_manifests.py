"""The manifests for Kubernetes and the compose file: valid, and in agreement with the configuration."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support.daemon import ROOT
from workerd.config import reader
from workerd.config.build import build
from workerd.config.model import Config
from workerd.config.reader import ConfigErrors

MANIFESTS = ROOT / "packaging" / "kubernetes"
COMPOSE = ROOT / "packaging" / "compose"
VERSION = "1.32"
NOT_KUBERNETES = ("kustomization.yaml", "servicemonitor.yaml")
"""Read by kustomize and by the Prometheus operator, whose schemas are not in the package."""
FILES = sorted(path for path in MANIFESTS.rglob("*.yaml") if path.name not in NOT_KUBERNETES)


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """What kustomize adds: the label that selectors need."""
    made = copy.deepcopy(document)
    label = {"app.kubernetes.io/name": "workerd"}
    spec = made.get("spec", {})
    if "template" in spec:
        spec["selector"] = {"matchLabels": label}
        spec["template"]["metadata"]["labels"] = label
    return made


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(MANIFESTS)))
def test_a_manifest_is_what_kubernetes_accepts(path: Path) -> None:
    """By its schema, without unknown fields."""
    kubernetes_validate.validate(complete(load(path)), VERSION, strict=True)


def test_every_manifest_is_listed() -> None:
    """A file that no kustomization names is not applied."""
    for folder in (path for path in MANIFESTS.iterdir() if path.is_dir()):
        named = set(load(folder / "kustomization.yaml")["resources"]) - {"../base"}
        assert named == {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}


def pod(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = load(MANIFESTS / name)["spec"]["template"]["spec"]
    return spec


def test_both_kinds_of_pods_are_alike() -> None:
    """But for the disk of the spool."""
    deployed, stateful = pod("base/deployment.yaml"), pod("statefulset/statefulset.yaml")
    deployed["volumes"] = [volume for volume in deployed["volumes"] if volume["name"] != "state"]
    assert deployed == stateful


def configuration(tmp_path: Path) -> Config:
    path = tmp_path / "workerd.toml"
    path.write_text(load(MANIFESTS / "base" / "configmap.yaml")["data"]["workerd.toml"])
    errors = ConfigErrors()
    return build(reader.read(path, {}, errors), errors)


def test_the_configuration_is_valid_and_ends_before_the_pod_is_killed(tmp_path: Path) -> None:
    """Kubernetes kills what has not ended within the grace period."""
    assert (
        configuration(tmp_path).shutdown.drain < pod("base/deployment.yaml")["terminationGracePeriodSeconds"]
    )


def test_a_slow_database_restarts_no_pod() -> None:
    """Only readiness asks for the store."""
    (container,) = pod("base/deployment.yaml")["containers"]
    assert container["startupProbe"]["httpGet"]["path"] == "/heartbeat"
    assert container["livenessProbe"]["httpGet"]["path"] == "/heartbeat"
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"


def test_pods_are_restricted() -> None:
    """As the Pod Security Standard of that name asks."""
    spec = pod("base/deployment.yaml")
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    for container in (*spec["initContainers"], *spec["containers"]):
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not container["securityContext"]["allowPrivilegeEscalation"]
        assert container["securityContext"]["readOnlyRootFilesystem"]


def test_compose_mounts_files_that_exist() -> None:
    """And its services name only services and secrets that it has."""
    document = load(COMPOSE / "compose.yaml")
    for service in document["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in document["volumes"] or (COMPOSE / source).exists(), volume
        assert set(service.get("secrets", ())) <= set(document["secrets"])
        assert set(service.get("depends_on", ())) <= set(document["services"])
    made = document["services"]["workerd"]["build"]
    assert (COMPOSE / made["context"] / made["dockerfile"]).exists()


def test_compose_configures_workerd(tmp_path: Path) -> None:
    """Its variables are keys of the configuration; it stops no sooner than the drain ends."""
    service = load(COMPOSE / "compose.yaml")["services"]["workerd"]
    errors = ConfigErrors()
    example = ROOT / "packaging" / "container" / "example" / "workerd.toml"
    config = build(reader.read(example, service["environment"], errors), errors)
    assert config.gateway.listen == "0.0.0.0:8020"
    assert float(service["stop_grace_period"].removesuffix("s")) > config.shutdown.drain
