"""The edge before guarded servers: names, ports, probes and times of the Kubernetes examples agree with each other."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from checkweigh.guard.app import _ADMIN, _GETS, _SERVED
from checkweigh.guard.guard_policy import PRIORITY_TIERS, GuardPolicy
from checkweigh.guard.http.listener import _KEEPALIVE_S

FOLDER = Path(__file__).resolve().parents[3] / "workflows/kubernetes"
POLICY = GuardPolicy()
LONGEST_S = POLICY.timeouts.total_s + max(
    POLICY.admission.tiers.of(tier).deadline_s for tier in PRIORITY_TIERS
)


def documents(text: str) -> dict[str, dict[str, Any]]:
    """By kind."""
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def arm(name: str) -> dict[str, dict[str, Any]]:
    """serving.yaml, or what the command in gateway.yaml makes of it for the candidate."""
    if name == "baseline":
        return documents((FOLDER / "serving.yaml").read_text())
    (script,) = re.findall(r"sed '([^']+)' serving\.yaml", (FOLDER / "gateway.yaml").read_text())
    done = subprocess.run(
        ["sed", script, "serving.yaml"], cwd=FOLDER, capture_output=True, text=True, check=True
    )
    return documents(done.stdout)


def services() -> dict[str, set[int]]:
    """Name -> ports."""
    found = [arm(name)["Service"] for name in ("baseline", "candidate")]
    return {one["metadata"]["name"]: {port["port"] for port in one["spec"]["ports"]} for one in found}


def seconds(text: str) -> float:
    assert re.fullmatch(r"\d+s", text)
    return float(text[:-1])


def keys(value: Any) -> Iterator[str]:
    """Every key at any depth."""
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from keys(inner)
    if isinstance(value, dict):
        yield from value


@pytest.mark.parametrize("name", ["baseline", "candidate"])
def test_the_server_is_one_that_the_guard_can_be(name: str) -> None:
    found = arm(name)
    deployment, service = found["Deployment"]["spec"], found["Service"]
    pod = deployment["template"]
    (guard,) = pod["spec"]["containers"]
    assert found["Deployment"]["metadata"]["name"] == service["metadata"]["name"] == f"model-{name}"
    assert service["spec"]["selector"] == deployment["selector"]["matchLabels"] == pod["metadata"]["labels"]
    (port,) = guard["ports"]
    assert f"--port={port['containerPort']}" in guard["args"]
    assert [p["targetPort"] for p in service["spec"]["ports"]] == [port["name"]]
    probes = {kind: guard[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz"
    }  # fmt: skip
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    assert {probe["path"] for probe in probes.values()} <= set(_GETS)
    own = POLICY.supervision
    assert pod["spec"]["terminationGracePeriodSeconds"] > own.drain_s + own.kill_s
    patience = guard["startupProbe"]["periodSeconds"] * guard["startupProbe"]["failureThreshold"]
    assert patience > own.start_s + POLICY.warmup.timeout_s
    assert guard["resources"]["requests"]["memory"] == guard["resources"]["limits"]["memory"]
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in guard["volumeMounts"]} == volumes
    maps = [volume["configMap"]["name"] for volume in pod["spec"]["volumes"] if "configMap" in volume]
    assert maps == ["checkweigh-admission" + ("" if name == "baseline" else "-candidate")]


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = documents((FOLDER / "gateway.yaml").read_text())["HTTPRoute"]["spec"][
        "rules"
    ]
    return found


def test_the_route_belongs_to_the_gateway() -> None:
    found = documents((FOLDER / "gateway.yaml").read_text())
    gateway, route = found["Gateway"], found["HTTPRoute"]
    (listener,), (parent,) = gateway["spec"]["listeners"], route["spec"]["parentRefs"]
    assert (parent["name"], parent["sectionName"]) == (gateway["metadata"]["name"], listener["name"])
    assert route["spec"]["hostnames"] == [listener["hostname"]]


def test_every_rule_sends_generations_alone_to_services_that_exist_once_and_waits_for_the_guard() -> None:
    for rule in rules():
        assert [match["path"] for match in rule["matches"]] == [{"type": "PathPrefix", "value": "/v1"}]
        for ref in rule["backendRefs"]:
            assert ref["port"] in services()[ref["name"]]
        assert rule["retry"] == {"attempts": 0}
        assert seconds(rule["timeouts"]["request"]) >= seconds(rule["timeouts"]["backendRequest"]) > LONGEST_S
    assert all(path.startswith("/v1/") for path in _SERVED)
    assert not any(path.startswith("/v1") for path in (*_ADMIN, "/metrics", "/readyz", "/healthz"))


def test_the_header_sends_to_the_candidate_and_the_rest_is_split() -> None:
    named, split = rules()
    (match,) = named["matches"]
    assert match["headers"] == [{"type": "Exact", "name": "x-model-arm", "value": "candidate"}]
    assert [ref["name"] for ref in named["backendRefs"]] == ["model-candidate"]
    assert {ref["name"]: ref["weight"] for ref in split["backendRefs"]} == {
        "model-baseline": 95,
        "model-candidate": 5,
    }


def test_envoy_does_the_same() -> None:
    text = yaml.safe_load((FOLDER / "envoy.yaml").read_text())
    (listener,) = text["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    named, split = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert "retry_policy" not in set(keys(text)), "Envoy retries what it is told to, and nothing else"
    for route in (named, split):
        assert route["match"]["prefix"] == "/v1/"
        assert seconds(route["route"]["timeout"]) > LONGEST_S
    assert seconds(manager["stream_idle_timeout"]) > LONGEST_S
    by_header = [(h["name"], h["string_match"]["exact"]) for h in named["match"]["headers"]]
    wanted = [(h["name"], h["value"]) for h in rules()[0]["matches"][0]["headers"]]
    assert (by_header, named["route"]["cluster"]) == (wanted, "model-candidate")
    assert {c["name"]: c["weight"] for c in split["route"]["weighted_clusters"]["clusters"]} == {
        ref["name"]: ref["weight"] for ref in rules()[1]["backendRefs"]
    }
    clusters = {cluster["name"]: cluster for cluster in text["static_resources"]["clusters"]}
    assert set(clusters) == set(services())
    for name, cluster in clusters.items():
        (lines,) = cluster["load_assignment"]["endpoints"]
        (endpoint,) = lines["lb_endpoints"]
        address = endpoint["endpoint"]["address"]["socket_address"]
        assert address["address"] == cluster["load_assignment"]["cluster_name"] == name
        assert address["port_value"] in services()[name]
        (connections,) = cluster["typed_extension_protocol_options"].values()
        assert seconds(connections["common_http_protocol_options"]["idle_timeout"]) < _KEEPALIVE_S
        assert [check["http_health_check"]["path"] for check in cluster["health_checks"]] == ["/readyz"]
