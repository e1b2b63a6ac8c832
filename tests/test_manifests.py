"""The manifests for Kubernetes and the compose file: valid, and in agreement with the configuration."""

from __future__ import annotations

import copy
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from tests.support.daemon import ROOT
from workerd.config import reader
from workerd.config.build import build
from workerd.config.model import Config
from workerd.config.reader import ConfigErrors
from workerd.document_types import HandlerStats, Stats
from workerd.gateway import openapi

MANIFESTS = ROOT / "packaging" / "kubernetes"
COMPOSE = ROOT / "packaging" / "compose"
VERSION = "1.32"
NOT_KUBERNETES = (
    "kustomization.yaml", "servicemonitor.yaml", "scaledobject.yaml", "authentication.yaml",
)  # fmt: skip
"""Read by kustomize, the Prometheus operator and KEDA: no package has their schemas that lets pytest be."""
KEDA = MANIFESTS / "keda"
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


def test_the_scaler_reads_a_figure_of_a_configured_handler(tmp_path: Path) -> None:
    """With the token of its own secret."""
    authentication, given = load(KEDA / "authentication.yaml"), load(KEDA / "secret.yaml")
    config = configuration(tmp_path)
    for trigger in load(KEDA / "scaledobject.yaml")["spec"]["triggers"]:
        part, handler, figure = trigger["metadata"]["valueLocation"].split(".")
        assert part in Stats.__struct_fields__
        assert handler in config.handlers
        assert figure in HandlerStats.__struct_fields__
        assert urlsplit(trigger["metadata"]["url"]).path in {op.path for op in openapi.OPERATIONS}
        assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    (secret,) = authentication["spec"]["secretTargetRef"]
    assert secret["name"] == given["metadata"]["name"]
    assert secret["key"] in given["stringData"]


@pytest.mark.parametrize("base", ["base", "statefulset"])
def test_the_scaler_is_a_component_of_both_kinds_of_pods(base: str, tmp_path: Path) -> None:
    """And sets the number of pods alone."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl, which has kustomize, is not installed")
    shutil.copytree(MANIFESTS, tmp_path / "kubernetes")
    folder = tmp_path / "kubernetes" / "mine"
    folder.mkdir()
    made = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"../{base}"],
        "components": ["../keda"],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(made))
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=True)
    found = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout)}
    assert ("ScaledObject", "workerd") in found
    kind = "Deployment" if base == "base" else "StatefulSet"
    assert "replicas" not in found[kind, "workerd"]["spec"]


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
