"""The shipped rules, dashboard and runbook: valid, complete, and with existing metrics only."""

import functools
import json
import re
import subprocess
import sys
from typing import Any

import pytest
from prometheus_client import generate_latest

from service.monitoring.metrics import ARCHIVE_ROUTE, ARCHIVE_STATUSES, Metrics
from tests.deploy.shipped import (
    CONFIG,
    DASHBOARD,
    DEPLOY,
    RULE_TESTS,
    RULES,
    RUNBOOK,
    dashboard_queries,
    filled_in,
    load,
    require_tool,
    rules,
    selectors,
)

# What Prometheus itself adds to every target.
OWN_SERIES = frozenset({"up"})
# The least that a paragraph needs for meaning, confirmation and action.
LEAST_WORDS = 40
SEVERITIES = frozenset({"critical", "warning"})


@functools.cache
def exposed_names() -> set[str]:
    """Return the names of all series that the service can expose, whether they have a sample yet or not."""
    text = generate_latest(Metrics().registry).decode()
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
    return names


@functools.cache
def expressions() -> dict[str, str]:
    """Return every shipped expression by its position."""
    found = {f"{kind} {name}": str(rule["expr"]) for kind in ("alert", "record") for name, rule in rules(kind).items()}
    return {**found, **dashboard_queries()}


@functools.cache
def runbook_paragraphs() -> dict[str, str]:
    """Return the runbook's paragraphs by their heading."""
    parts = re.split(r"^### (.+)\n", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {heading: text.partition("\n## ")[0] for heading, text in zip(parts[1::2], parts[2::2], strict=True)}


@functools.cache
def alert_cases() -> dict[str, list[Any]]:
    """Return what the rules' tests expect of each alert: a list of expected alerts for every case."""
    cases: dict[str, list[Any]] = {}
    for path in RULE_TESTS.glob("*.yml"):
        for test in load(path)["tests"]:
            for case in test.get("alert_rule_test", ()):
                cases.setdefault(case["alertname"], []).append(case["exp_alerts"])
    return cases


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["check", "config", str(CONFIG)], id="config"),
        pytest.param(["check", "rules", *map(str, sorted(RULES.glob("*.yml")))], id="rules"),
        pytest.param(["test", "rules", *map(str, sorted(RULE_TESTS.glob("*.yml")))], id="tests"),
    ],
)
def test_promtool(arguments: list[str]) -> None:
    """Promtool accepts the files, and the rules pass their tests."""
    done = subprocess.run([require_tool("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rule_files_are_found() -> None:
    """The configuration names every file of rules, and none of their tests."""
    (pattern,) = load(CONFIG)["rule_files"]
    assert set(CONFIG.parent.glob(pattern)) == set(RULES.glob("*.yml"))
    assert {path.stem for path in RULES.glob("*.yml")} == {"alerts", "recording"}


@pytest.mark.parametrize("name", rules("alert"))
def test_alert_is_complete(name: str) -> None:
    """An alert has a severity, a summary, a description, and a paragraph of the runbook."""
    rule = rules("alert")[name]
    assert rule["labels"]["severity"] in SEVERITIES
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert DEPLOY.parent / path == RUNBOOK
    assert anchor == name.lower()
    assert len(runbook_paragraphs()[name].split()) >= LEAST_WORDS


def test_runbook_has_no_more() -> None:
    """No paragraph of the runbook is about an alert that does not exist."""
    assert set(runbook_paragraphs()) == set(rules("alert"))


@pytest.mark.parametrize("name", rules("alert"))
def test_alert_is_tested(name: str) -> None:
    """An alert has a case in which it fires and one in which it must not."""
    assert {bool(expected) for expected in alert_cases()[name]} == {True, False}


@pytest.mark.parametrize("name", rules("record"))
def test_recorded_series_is_tested_and_used(name: str) -> None:
    """A recorded series has a tested value, and an alert or panel that queries it."""
    tests = load(RULE_TESTS / "recording.yml")["tests"]
    tested = [one["expr"] for test in tests for one in test["promql_expr_test"] if one["exp_samples"]]
    assert any(name in expression for expression in tested)
    users = [where for where, expression in expressions().items() if name in dict(selectors(expression))]
    assert users != []


@pytest.mark.parametrize("where", expressions())
def test_metrics_exist(where: str) -> None:
    """Every queried series is exposed by the service or recorded by a rule."""
    names = {name for name, _ in selectors(expressions()[where])}
    if not sys.platform.startswith("linux"):
        names = {name for name in names if not name.startswith("process_")}  # the client library reads /proc
    assert names
    assert names - exposed_names() - OWN_SERIES - set(rules("record")) == set()


def test_queried_statuses_are_exposed_from_the_start() -> None:
    """The statuses of archive requests that rules query are exposed from the start, as 0."""
    pattern = rf'route="{re.escape(ARCHIVE_ROUTE)}", status=~?"([^"]+)"'
    queried = {one for found in re.findall(pattern, " ".join(expressions().values())) for one in found.split("|")}
    assert "503" in queried
    assert queried <= {str(status) for status in ARCHIVE_STATUSES}


def test_metrics_of_the_runbook_exist() -> None:
    """Every metric that the runbook names exists."""
    named = set(re.findall(r"\b(?:batch|process|python_gc)_[a-z_]+", RUNBOOK.read_text(encoding="utf-8")))
    histograms = {name.removesuffix("_sum") for name in exposed_names() if name.endswith("_sum")}
    assert named - exposed_names() - histograms == set()


def test_every_metric_is_shown() -> None:
    """Every metric of the service is shown by a panel, directly or through a recorded series."""
    shown = {name for expression in dashboard_queries().values() for name, _ in selectors(expression)}
    shown |= {name for series in shown & set(rules("record")) for name, _ in selectors(rules("record")[series]["expr"])}
    own = {name for name in exposed_names() if name.startswith("batch_")}
    assert {_family(name) for name in own} - {_family(name) for name in shown} == set()


def _family(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


def test_dashboard() -> None:
    """Every panel has a unique id and position, a title, and the selected data source."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert all(panel["title"] and panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    rows = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert rows == ["Overview", "Archives", "Images", "Upstream", "Clients", "Resources", "Money", "Uploads"]
    sources = {panel["datasource"]["uid"] for panel in panels if panel["type"] != "row"}
    assert sources == {"${datasource}"}
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "instance"}


@pytest.mark.parametrize(
    "path", sorted((DEPLOY / "grafana" / "provisioning").rglob("*.yml")), ids=lambda path: path.stem
)
def test_provisioning(path: Any) -> None:
    """Grafana's provisioning files are well-formed and of the version that it reads."""
    assert load(path)["apiVersion"] == 1


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        pytest.param("a_total", [("a_total", "")], id="bare"),
        pytest.param('a{x="1", y=~"b|c"} > 5', [("a", '{x="1", y=~"b|c"}')], id="matchers"),
        pytest.param('rate(a{r="/o/{id}/i"}[5m])', [("a", '{r="/o/{id}/i"}')], id="braces in a string"),
        pytest.param("sum by (job, le) (rate(a_bucket[5m]))", [("a_bucket", "")], id="grouping"),
        pytest.param("a / on (job) group_left () b", [("a", ""), ("b", "")], id="matching"),
        pytest.param("x:a:rate5m and b offset 6h", [("x:a:rate5m", ""), ("b", "")], id="recorded, offset"),
        pytest.param('label_replace(a, "x", "$1", "y", "(.*)") * 1024', [("a", "")], id="strings, numbers"),
    ],
)
def test_selectors(expression: str, expected: list[tuple[str, str]]) -> None:
    """Exactly the series of an expression are found."""
    assert list(selectors(expression)) == expected


def test_variables_are_filled_in() -> None:
    """Grafana's variables are replaced by values that Prometheus understands."""
    assert filled_in('a{i=~"$instance"}[$__rate_interval]') == 'a{i=~".*"}[1m]'
