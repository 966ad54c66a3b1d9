"""The shipped deployments: valid for the tools of their formats, and consistent with the code."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from service.cli.main import EXIT_SETTINGS
from service.settings import MIB, Settings
from service.streaming.receipts import MAX_ENDED_IMAGES
from service.web.downloads.context import MAX_EVENT_STREAMS
from tests.deploy.shipped import DEPLOY, load, require_tool

ROOT = DEPLOY.parent
BIN = Path(sys.executable).parent
KUBERNETES = DEPLOY / "kubernetes"
MANIFESTS = sorted(KUBERNETES.glob("*.yaml"))
COMPOSE, RENDER = DEPLOY / "compose.yaml", DEPLOY / "render.yaml"
UNIT = DEPLOY / "systemd" / "autoenhance-batch.service"
# The oldest maintained version of Kubernetes, and the newest whose schema is available.
KUBERNETES_VERSIONS = ("1.33", "1.36")
# Not an object of Kubernetes: checked by kubectl.
KUSTOMIZATION = KUBERNETES / "kustomization.yaml"
SERVICE_MONITOR_SCHEMA = Path(__file__).parent / "servicemonitor.schema.json"
SETTINGS = {name.upper() for name in Settings.model_fields}
# Below this systemd calls a service "OK": https://www.freedesktop.org/software/systemd/man/systemd-analyze.html
GREATEST_EXPOSURE = 20


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a tool that must succeed; return its output."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# The image.


def test_dockerfile_has_no_findings() -> None:
    """Hadolint has no findings in the Dockerfile."""
    assert run(BIN / "hadolint", "Dockerfile") == ""


def test_dockerignore_admits_copied_files_only() -> None:
    """Each file that the Dockerfile copies is excepted in .dockerignore, and nothing else."""
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    let_in = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE)
    assert sorted(let_in) == sorted(name for names in copied for name in names.split())
    assert all((ROOT / name).exists() for name in let_in)


def test_versions_are_those_of_the_project() -> None:
    """The label of the image and the tag in Kubernetes have the version of pyproject.toml."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    label = re.findall(r'image\.version="(.+?)"', (ROOT / "Dockerfile").read_text("utf-8"))
    assert [*label, *(one["newTag"] for one in manifest("kustomization.yaml")["images"])] == [version] * 2


def test_the_image_is_built_with_the_locked_tools() -> None:
    """The builder of the image is that of the development environment."""
    build, development = (
        dict(re.findall(r"^(\S+)==(\S+)", (DEPLOY / f"requirements{kind}.lock").read_text("utf-8"), re.MULTILINE))
        for kind in ("-build", "-dev")
    )
    assert build.items() <= development.items()


# Compose.


def test_compose_file_fits_its_schema() -> None:
    """The file fits the schema of compose files."""
    run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_compose_mounts_existing_files() -> None:
    """Every mounted file and folder is in the repository; only the proxy publishes a port to the network."""
    services = load(COMPOSE)["services"]
    mounted = [volume.split(":")[0] for one in services.values() for volume in one.get("volumes", ())]
    assert all((DEPLOY / path).exists() for path in mounted if path.startswith("."))
    published = {name: one.get("ports", []) for name, one in services.items()}
    assert published["batch-1"] == published["batch-2"] == []
    assert all(port.startswith("127.0.0.1:") for name in ("prometheus", "grafana") for port in published[name])
    run(require_tool("promtool"), "check", "config", DEPLOY / "prometheus" / "prometheus.compose.yml")


def test_compose_names_every_replica() -> None:
    """Each replica has its own name in nginx and Prometheus: replicas with a shared name are not hashed."""
    services = load(COMPOSE)["services"]
    replicas = [name for name, one in services.items() if "build" in one]
    assert len(replicas) > 1
    each = int(services[replicas[0]]["environment"]["UPSTREAM_REQUESTS_PER_SECOND"])
    assert len(replicas) * each <= Settings().upstream_requests_per_second, "they share one address"
    assert not any("replicas" in one.get("deploy", {}) for one in services.values())
    text = (DEPLOY / "nginx" / "nginx.conf").read_text("utf-8")
    upstreams = re.findall(r"upstream \w+ \{(.*?)\n    \}", text, re.DOTALL)
    assert len(upstreams) == 2
    for upstream in upstreams:
        assert re.findall(r"^ +server ([\w-]+):8000 ", upstream, re.MULTILINE) == replicas
    (scraped,) = load(DEPLOY / "prometheus" / "prometheus.compose.yml")["scrape_configs"]
    (found,) = scraped["dns_sd_configs"]
    assert found["names"] == replicas
    assert {str(found["port"])} == {services[one]["environment"]["METRICS_PORT"] for one in replicas}
    assert list(services["proxy"]["depends_on"]) == replicas


def test_compose_passes_trailers() -> None:
    """The proxy's version can pass trailers, and nginx.conf includes the file that enables it."""
    proxy = load(COMPOSE)["services"]["proxy"]
    version = re.findall(r":(\d+)\.(\d+)", proxy["image"])[0]
    assert tuple(map(int, version)) >= (1, 28)
    assert "./nginx/since-1.27.2:/etc/nginx/newer:ro" in proxy["volumes"]
    assert "include newer/*.conf;" in (DEPLOY / "nginx" / "nginx.conf").read_text("utf-8")
    (line,) = re.findall(r"^[^#\n].*$", (DEPLOY / "nginx/since-1.27.2/trailers.conf").read_text("utf-8"), re.MULTILINE)
    assert line == "proxy_pass_trailers on;"


def test_stop_timeouts_allow_draining() -> None:
    """Every deployment allows DRAIN_SECONDS between SIGTERM and SIGKILL."""
    drain_seconds = Settings().drain_seconds
    pod = manifest("deployment.yaml")["spec"]["template"]["spec"]
    (render,) = load(RENDER)["services"]
    seconds = {
        "compose": int(load(COMPOSE)["services"]["batch-1"]["stop_grace_period"].removesuffix("s")),
        "render": render["maxShutdownDelaySeconds"],
        "systemd": int(unit_values("TimeoutStopSec")[0]),
        "kubernetes": pod["terminationGracePeriodSeconds"] - 5,
    }
    assert all(drain_seconds + 5 <= one <= drain_seconds + 30 for one in seconds.values()), seconds


# Kubernetes.


def validate(loaded: dict[str, Any], version: str) -> None:
    """Validate an object by the schema of its kind; unknown fields are errors."""
    if loaded["kind"] == "ServiceMonitor":  # the Prometheus operator's
        jsonschema.validate(loaded, json.loads(SERVICE_MONITOR_SCHEMA.read_text("utf-8")))
    else:
        kubernetes_validate.validate(loaded, version, strict=True)


def manifest(name: str) -> dict[str, Any]:
    """Return one object."""
    loaded: dict[str, Any] = load(KUBERNETES / name)
    return loaded


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("path", [one for one in MANIFESTS if one != KUSTOMIZATION], ids=lambda path: path.stem)
def test_kubernetes_object_fits_its_schema(path: Path, version: str) -> None:
    """Each object fits the schema of its kind; an unknown field is an error."""
    validate(load(path), version)
    with pytest.raises((kubernetes_validate.ValidationError, jsonschema.ValidationError)):
        validate({**load(path), "speck": {}}, version)


def test_kustomization_lists_every_object() -> None:
    """The kustomization has every object but the one for the ingress controller."""
    apart = {"kustomization.yaml", "controller-snippet.yaml"}
    assert sorted(manifest("kustomization.yaml")["resources"]) == sorted({path.name for path in MANIFESTS} - apart)


def test_kubectl_renders_the_kustomization() -> None:
    """Kubectl renders the folder, and the result fits the schemas."""
    if (kubectl := shutil.which("kubectl")) is None:
        pytest.skip("kubectl is not installed, and Debian has none that is new enough")
    rendered = list(yaml.safe_load_all(run(kubectl, "kustomize", KUBERNETES)))
    assert {one["kind"] for one in rendered} == {
        "ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Ingress",
        "NetworkPolicy", "ServiceMonitor",
    }  # fmt: skip
    for one in rendered:
        validate(one, KUBERNETES_VERSIONS[-1])


def test_kubernetes_objects_find_each_other() -> None:
    """Selectors, ports, paths and metrics name existing objects."""
    pod = manifest("deployment.yaml")["spec"]["template"]
    labels, (container,) = pod["metadata"]["labels"], pod["spec"]["containers"]
    service, policy = manifest("service.yaml"), manifest("networkpolicy.yaml")["spec"]
    assert service["spec"]["selector"] == labels
    assert manifest("poddisruptionbudget.yaml")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("deployment.yaml")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("servicemonitor.yaml")["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == labels
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    settings = dict(one.split("=") for one in manifest("kustomization.yaml")["configMapGenerator"][0]["literals"])
    assert ports == {"http": int(settings["PORT"]), "metrics": int(settings["METRICS_PORT"])}
    assert [port["targetPort"] for port in service["spec"]["ports"]] == list(ports)
    assert [rule["ports"][0]["port"] for rule in policy["ingress"]] == list(ports)
    probes = {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    # While the API is down the pods stay in the Service: page, receipts and problem documents need no API.
    assert probes == {"/health/live", "/health/ready?upstream=ignore"}
    scaler = manifest("horizontalpodautoscaler.yaml")["spec"]
    assert scaler["metrics"][0]["pods"]["metric"]["name"] == "batch_archives_in_progress"
    ingresses = [manifest(name)["spec"] for name in ("ingress.yaml", "ingress-inside.yaml")]
    assert len({ingress["rules"][0]["host"] for ingress in ingresses}) == 1
    for ingress in ingresses:
        (backend,) = ingress["rules"][0]["http"]["paths"]
        assert backend["backend"]["service"] == {"name": service["metadata"]["name"], "port": {"name": "http"}}


def test_metrics_are_not_public() -> None:
    """No proxy exposes metrics to the network, and egress is limited to named destinations."""
    inside = manifest("ingress-inside.yaml")
    assert inside["metadata"]["annotations"]["nginx.ingress.kubernetes.io/whitelist-source-range"] == "127.0.0.1/32"
    (path,) = inside["spec"]["rules"][0]["http"]["paths"]
    assert (path["path"], path["pathType"]) == ("/metrics", "Exact")
    for rule in manifest("networkpolicy.yaml")["spec"]["egress"]:
        assert rule["to"], "nothing may be reached everywhere"


def test_kubernetes_shares_the_rate_limit() -> None:
    """All replicas that may run together, one more during a roll-out, stay below the API's limit for one address."""
    settings = dict(one.split("=") for one in manifest("kustomization.yaml")["configMapGenerator"][0]["literals"])
    surge = manifest("deployment.yaml")["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    replicas = manifest("horizontalpodautoscaler.yaml")["spec"]["maxReplicas"] + surge
    assert replicas * int(settings["UPSTREAM_REQUESTS_PER_SECOND"]) <= 300


def test_pod_has_the_restricted_profile() -> None:
    """Not root, only /tmp writable, no privilege escalation: the restricted profile of Kubernetes."""
    spec = manifest("deployment.yaml")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]  # noqa: S108 - in the container


def test_proxies_hash_by_the_same_key() -> None:
    """The ingress controller has the map, the timeouts and the retry conditions of nginx.conf."""
    nginx = (DEPLOY / "nginx" / "nginx.conf").read_text("utf-8")
    snippet = manifest("controller-snippet.yaml")["data"]["http-snippet"]
    assert "".join(snippet.split()) in "".join(nginx.split())
    annotations = manifest("ingress.yaml")["metadata"]["annotations"]
    given = {name.rpartition("/")[2]: value for name, value in annotations.items()}
    assert f"hash {given['upstream-hash-by']} consistent;" in nginx
    for name in ("proxy-read-timeout", "proxy-send-timeout", "proxy-connect-timeout"):
        assert f"{name.replace('-', '_')} {given[name]}s;" in nginx
    assert f"proxy_next_upstream {given['proxy-next-upstream']};" in nginx
    idle_seconds = Settings().wait_max_seconds + Settings().first_byte_seconds
    assert idle_seconds < int(given["proxy-read-timeout"])


def test_readme_quotes_the_shipped_file() -> None:
    """Every line of nginx's configuration in README stands in the file."""
    quoted = re.findall(r"```nginx\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    shipped = {line.strip() for line in (DEPLOY / "nginx" / "nginx.conf").read_text("utf-8").splitlines()}
    assert {line.strip() for text in quoted for line in text.splitlines()} <= shipped


# systemd and Render.


def unit_values(name: str) -> list[str]:
    """Return the values of a key of the systemd unit."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE)


def test_systemd_unit_permits_what_the_service_needs() -> None:
    """The metrics can read /proc/stat, uploads are stored on disk, and invalid settings cause no restart loop."""
    assert unit_values("ProcSubset") == []
    assert unit_values("Environment") == ["TMPDIR=/var/tmp"]
    assert unit_values("PrivateTmp") == ["yes"]  # which is /var/tmp too
    assert unit_values("RestartPreventExitStatus") == [str(EXIT_SETTINGS)]


def test_systemd_unit_is_hardened(tmp_path: Path) -> None:
    """systemd-analyze accepts the unit, with an exposure level below its "OK"."""
    analyze = require_tool("systemd-analyze")
    program = tmp_path / "autoenhance-batch"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text("utf-8").replace("/opt/batch/bin/autoenhance-batch", str(program)), "utf-8")
    run(analyze, "verify", "--man=no", unit)
    run(analyze, "security", "--offline=true", f"--threshold={GREATEST_EXPOSURE}", unit)


def test_render_blueprint() -> None:
    """The blueprint builds the image, checks liveness only, and waits no longer than Render's proxy."""
    (service,) = load(RENDER)["services"]
    assert (ROOT / service["dockerfilePath"]).is_file()
    assert service["healthCheckPath"] == "/health/live"
    values = {one["key"]: one.get("value") for one in service["envVars"]}
    assert int(values["WAIT_MAX_SECONDS"]) + Settings().first_byte_seconds < 100


# All of them.


def memory_mib() -> int:
    """Return the memory of one replica with the defaults according to SCALING.md, after checking its sum."""
    text = (DEPLOY / "SCALING.md").read_text("utf-8")
    idle, ahead, each, archives, total = map(
        int, re.findall(r"^ +(\d+) MiB \+ (\d+) MiB \+ (\d+) MiB . (\d+) = (\d+) MiB", text, re.MULTILINE)[0]
    )
    assert (ahead * MIB, archives) == (Settings().read_ahead_total_bytes, Settings().max_archives)
    assert idle + ahead + each * archives == total
    return total


def test_memory_limits_leave_room() -> None:
    """Every memory limit is above the sum of SCALING.md, the longest orders, receipts, and a /tmp in memory."""
    # About 1 KiB an image, as SCALING.md says; an order of that length in each slot, and the bound of the receipts.
    images = Settings().max_archives * Settings().max_images_per_order + MAX_ENDED_IMAGES
    needed = memory_mib() + images * 1024 // MIB
    pod = manifest("deployment.yaml")["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
    compose = load(COMPOSE)["services"]["batch-1"]
    (size,) = re.findall(r"size=(\d+)m", compose["tmpfs"][0])
    uploads = Settings().max_concurrent_uploads * Settings().max_upload_bytes // MIB
    assert uploads <= int(size)
    assert needed <= int(pod.removesuffix("Mi"))
    assert needed <= int(unit_values("MemoryMax")[0].removesuffix("M"))
    assert compose["deploy"]["resources"]["limits"]["memory"] == "1g"
    assert needed + uploads <= 1024


def test_scaling_document_has_the_defaults() -> None:
    """The numbers of settings in SCALING.md are the defaults."""
    text = " ".join((DEPLOY / "SCALING.md").read_text("utf-8").split())
    rate = int(Settings().upstream_requests_per_second)
    for statement in (
        f"`UPSTREAM_REQUESTS_PER_SECOND` = {rate} for one address",
        f"at most {rate // 2} images a second",
        f"`MAX_CONCURRENT_DOWNLOADS` ({Settings().max_concurrent_downloads}; at least one)",
        f"each watcher of events one (at most {MAX_EVENT_STREAMS})",
        f"receipts (at most {MAX_ENDED_IMAGES:,} images)",
        f"`MAX_ARCHIVES` = {Settings().max_archives} needs",
        f"= {Settings().max_concurrent_uploads * Settings().max_upload_bytes // MIB} MiB at most",
    ):
        assert statement in text, statement


def environments() -> Iterator[tuple[str, str]]:
    """Yield each variable that a deployment sets for the service, and where."""
    for name in load(COMPOSE)["services"]["batch-1"]["environment"]:
        yield "compose", name
    for one in load(RENDER)["services"][0]["envVars"]:
        yield "render", one["key"]
    for one in manifest("kustomization.yaml")["configMapGenerator"][0]["literals"]:
        yield "kubernetes", one.partition("=")[0]
    for one in re.findall(r"--from-literal=([A-Z_]+)=", (KUBERNETES / "kustomization.yaml").read_text("utf-8")):
        yield "kubernetes secrets", one
    for one in re.findall(r"^ENV (.+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE):
        for name in re.findall(r"([A-Z_]+)=", one):
            if not name.startswith(("PYTHON", "PIP_", "PATH")):
                yield "image", name


@pytest.mark.parametrize(("where", "name"), sorted(environments()))
def test_settings_exist(where: str, name: str) -> None:
    """Every variable that a deployment sets is a setting of the service."""
    assert name in SETTINGS, where
