"""The shipped files for operators as data: rules, their tests, the dashboard, the runbook."""

import functools
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
RULES = DEPLOY / "prometheus" / "rules"
RULE_TESTS = RULES / "tests"
RUNBOOK = DEPLOY / "RUNBOOK.md"
DASHBOARD = DEPLOY / "grafana" / "dashboard.json"

# Values for Grafana's variables.
_VARIABLES = {"$__rate_interval": "1m", "$__interval": "15s", "$__range": "5m", "$instance": ".*"}

_STRING = re.compile(r'"[^"]*"')
_MATCHERS = re.compile(r'\{(?:[^"{}]|"[^"]*")*\}')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_RANGE = re.compile(r"\[[^\]]*\]")
_SELECTOR = re.compile(r'\b(?P<name>[A-Za-z_:][\w:]*+)(?!\s*\()\s*(?P<matchers>\{(?:[^"{}]|"[^"]*")*\})?')
_WORDS = frozenset({"and", "or", "unless", "bool", "offset", "Inf", "NaN"})


def require_tool(name: str) -> str:
    """Return the path of a program; without it the test fails in CI and is skipped elsewhere."""
    if (path := shutil.which(name)) is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return path


@functools.cache
def load(path: Path) -> Any:
    """Return a YAML file's content."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@functools.cache
def rules(kind: str) -> dict[str, dict[str, Any]]:
    """Return all rules of a kind ("alert" or "record") by name; names are unique."""
    found = [
        rule
        for path in sorted(RULES.glob("*.yml"))
        for group in load(path)["groups"]
        for rule in group["rules"]
        if kind in rule
    ]
    by_name = {str(rule[kind]): rule for rule in found}
    assert len(by_name) == len(found)
    return by_name


@functools.cache
def dashboard_queries() -> dict[str, str]:
    """Return the dashboard's expressions, with values for its variables, by "row / panel / number"."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    found, row = {}, ""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        for number, target in enumerate(panel.get("targets", ())):
            found[f"{row} / {panel['title']} / {number}"] = filled_in(target["expr"])
    for number, annotation in enumerate(dashboard["annotations"]["list"]):
        found[f"annotation / {annotation['name']} / {number}"] = filled_in(annotation["expr"])
    return found


def filled_in(expression: str) -> str:
    """Return a dashboard's expression as Grafana would send it."""
    for variable, value in _VARIABLES.items():
        expression = re.sub(rf"{re.escape(variable)}\b", value, expression)
    assert "$" not in expression, expression
    return expression


def selectors(expression: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the label matchers of every series that an expression selects."""
    bare = _RANGE.sub(" ", _GROUPING.sub(" ", _hide_strings_outside_matchers(expression)))
    for match in _SELECTOR.finditer(bare):
        if match["name"] not in _WORDS:
            yield match["name"], match["matchers"] or ""


def _hide_strings_outside_matchers(expression: str) -> str:
    # Strings inside braces are matchers and stay; the others are arguments, of label_replace() for example.
    kept, position = [], 0
    for match in _MATCHERS.finditer(expression):
        kept += [_STRING.sub(" ", expression[position : match.start()]), match[0]]
        position = match.end()
    return "".join([*kept, _STRING.sub(" ", expression[position:])])
