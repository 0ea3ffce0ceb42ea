"""The manifests say what is true of this server: its port, its probes, its times, its user."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from server.settings import ENV_PREFIX, Settings, load_settings
from tests.server.wire import app_of, call

ROOT = Path(__file__).parents[2]
PLAIN = ROOT / "deploy/kubernetes/causerie.yaml"
KUBERAY = ROOT / "deploy/kubernetes/ray_service.yaml"
RAY = ROOT / "deploy/ray_serve.yaml"
DEFAULTS = load_settings([])
SOCKETS = {"host", "port", "header_timeout", "body_timeout", "max_connections", "send_timeout", "config"}


def documents(path: Path) -> dict[str, dict[str, Any]]:
    """Kind → manifest; each kind once."""
    found = [one for one in yaml.safe_load_all(path.read_text()) if one is not None]
    kinds = [one["kind"] for one in found]
    assert len(kinds) == len(set(kinds))
    return dict(zip(kinds, found, strict=True))


def pod() -> dict[str, Any]:
    found: dict[str, Any] = documents(PLAIN)["Deployment"]["spec"]["template"]["spec"]
    return found


def container() -> dict[str, Any]:
    (only,) = pod()["containers"]
    assert isinstance(only, dict)
    return only


def serve_configs() -> dict[str, dict[str, Any]]:
    """Both Serve configs: the file of its own, and the one inside the RayService."""
    inside = documents(KUBERAY)["RayService"]["spec"]["serveConfigV2"]
    return {"file": yaml.safe_load(RAY.read_text()), "kuberay": yaml.safe_load(inside)}


def ray_pods() -> list[dict[str, Any]]:
    cluster = documents(KUBERAY)["RayService"]["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def seconds_of_pre_stop(spec: dict[str, Any]) -> int:
    name, seconds = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert name == "sleep"
    return int(seconds)


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_ask_routes_that_need_no_key(probe: str) -> None:
    get = container()[probe]["httpGet"]
    assert get["path"] == ("/live" if probe == "livenessProbe" else "/ready")
    assert get["port"] == "http"
    assert call(app_of(api_key="secret"), get["path"]).status in (200, 503)


def test_the_port_is_the_servers() -> None:
    assert container()["ports"] == [{"name": "http", "containerPort": DEFAULTS.port}]
    (port,) = documents(PLAIN)["Service"]["spec"]["ports"]
    assert port["targetPort"] == "http"
    for config in serve_configs().values():
        assert config["http_options"]["port"] == DEFAULTS.port


def test_a_pod_is_given_the_time_to_drain() -> None:
    assert pod()["terminationGracePeriodSeconds"] >= seconds_of_pre_stop(pod()) + DEFAULTS.drain_timeout + 10
    for spec in ray_pods():
        drain = serve_configs()["kuberay"]["applications"][0]["args"]["drain-timeout"]
        assert spec["terminationGracePeriodSeconds"] > seconds_of_pre_stop(spec) + drain + 10


def test_a_liveness_probe_gives_up_later_than_a_health_check_notices() -> None:
    live = container()["livenessProbe"]
    assert (
        live["periodSeconds"] * live["failureThreshold"] >= 30
    )  # a stall ends by itself more often than not


def test_the_pods_user_is_the_images() -> None:
    (uid, gid) = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[-1]
    security = pod()["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"]) == (int(uid), int(gid))


def test_pods_may_do_nothing_they_need_not() -> None:
    for spec in (pod(), *ray_pods()):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in spec["containers"]:
            assert one["securityContext"]["allowPrivilegeEscalation"] is False
            assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(one["resources"]["requests"])
            assert "memory" in one["resources"]["limits"] and "cpu" not in one["resources"]["limits"]
    assert container()["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod()["automountServiceAccountToken"] is False


def test_variables_of_services_do_not_become_options() -> None:
    """A service named causerie would set CAUSERIE_PORT=tcp://10.0.0.1:80 in every pod."""
    assert f"{ENV_PREFIX}PORT" == "CAUSERIE_PORT"
    assert all(spec["enableServiceLinks"] is False for spec in (pod(), *ray_pods()))


def test_options_exist() -> None:
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    assert {one["name"] for one in container()["env"]} <= known
    for config in serve_configs().values():
        (app,) = config["applications"]
        options = {name.replace("-", "_") for name in app["args"]}
        assert options <= set(Settings.model_fields) - SOCKETS
        given = load_settings([f"--{name}={value}" for name, value in app["args"].items()])
        assert given.drain_timeout == DEFAULTS.drain_timeout


def test_keys_come_from_a_secret_and_others_may_not_read_them() -> None:
    for spec in (pod(), *ray_pods()):
        (keys,) = [one["secret"] for one in spec["volumes"] if one["name"] == "keys"]
        assert keys["defaultMode"] & 0o007 == 0
        (mount,) = [one for one in spec["containers"][0]["volumeMounts"] if one["name"] == "keys"]
        assert mount["readOnly"] is True
    (variable,) = [one["value"] for one in container()["env"] if one["name"] == "CAUSERIE_API_KEY_FILE"]
    assert variable.startswith("/keys/")
    assert serve_configs()["kuberay"]["applications"][0]["args"]["api-key-file"].startswith("/keys/")


def test_a_server_that_others_reach_has_keys() -> None:
    for config in serve_configs().values():
        is_local = config["http_options"]["host"] == "127.0.0.1"
        assert is_local or "api-key-file" in config["applications"][0]["args"]


def test_both_serve_configs_deploy_the_same() -> None:
    file, kuberay = (config["applications"][0] for config in serve_configs().values())
    assert file["import_path"] == kuberay["import_path"]
    assert file["deployments"] == kuberay["deployments"]
    module, _, name = file["import_path"].partition(":")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert f"def {name}(" in source and f'name="{file["deployments"][0]["name"]}"' in source
    router = file["deployments"][0]["request_router_config"]["request_router_class"]
    module, _, name = router.partition(":")
    assert f"class {name}(" in (ROOT / f"{module.replace('.', '/')}.py").read_text()


def test_a_replica_is_asked_for_no_more_than_it_runs_together() -> None:
    for config in serve_configs().values():
        (app,) = config["applications"]
        scale = app["deployments"][0]["autoscaling_config"]
        assert scale["target_ongoing_requests"] == app["args"]["max-num-seqs"]


def test_the_version_of_ray_is_the_tested_one() -> None:
    tested = re.search(r"ray\[serve\]>=(\d+\.\d+)", (ROOT / "tests/deploy/ray/requirements.txt").read_text())
    assert tested is not None
    version = documents(KUBERAY)["RayService"]["spec"]["rayClusterConfig"]["rayVersion"]
    image = (ROOT / "deploy/kubernetes/ray.Dockerfile").read_text()
    assert version.startswith(tested[1] + ".") and f"rayproject/ray:{version}-" in image


def test_the_document_names_what_is_there() -> None:
    text = (ROOT / "docs/deploy.md").read_text()
    named = set(re.findall(r"`((?:deploy|docs|tests)/[\w./]+)`", text)) | set(
        re.findall(r"(?:run|-f) (deploy/[\w./]+)", text)
    )
    assert len(named) > 8
    assert [path for path in named if not (ROOT / path).exists()] == []
    flags = set(re.findall(r"`--([a-z-]+)`", text)) | set(re.findall(r"`([a-z]+-[a-z-]+)`", text))
    words = {"x-session-id", "x-replica"}
    assert {flag.replace("-", "_") for flag in flags - words} <= set(Settings.model_fields)
