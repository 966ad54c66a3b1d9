"""deploy/OBSERVABILITY.md and the code agree, both ways: every metric, every label, every event, every field."""

import ast
import re
from pathlib import Path

import pytest

from service.model import ArchiveOutcome, Hop, ResumeMethod
from service.monitoring.metrics import Metrics
from tests.test_docs import ROOT

LOG_METHODS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})
DOCUMENT = (ROOT / "deploy" / "OBSERVABILITY.md").read_text(encoding="utf-8")
# Fields that a helper of the code adds, so that they do not stand in the call.
ADDED_FIELDS = {
    "image.downloaded": {"image_id", "position", "attempts", "seconds"},
    "image.failed": {"image_id", "position", "attempts", "seconds"},
    "image.retried": {"image_id"},
    "image.resumed": {"image_id"},
    "request.failed": {"exception"},
    "log.record_unreadable": {"exception"},
    "python.unraisable": {"exception"},
}


def rows(first_heading: str) -> dict[str, list[str]]:
    """Return the rows of all tables whose first column has this heading: the other cells by the first, bare."""
    found: dict[str, list[str]] = {}
    for match in re.finditer(rf"^\| {first_heading} \|.*\n\| ---.*\n((?:\|.*\n)+)", DOCUMENT, re.MULTILINE):
        for line in match[1].splitlines():
            first, *others = [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split(" | ")]
            assert first not in found, f"{first} stands there twice"
            found[first.strip("`")] = others
    return found


def words(cell: str) -> set[str]:
    """Return what stands in a cell in code spans."""
    return set(re.findall(r"`([^`]+)`", cell))


def log_events() -> dict[str, set[str]]:
    """Return the names of all events that the service's code logs, with their levels."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "service").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in LOG_METHODS and re.search(r"\b_?log(ger)?$", ast.unparse(node.func.value)):
                name = node.args[0]
                assert isinstance(name, ast.Constant), f"{path}:{node.lineno}: an event's name must be a literal"
                level = "error" if node.func.attr == "exception" else node.func.attr
                found.setdefault(str(name.value), set()).add(level)
    return found


def test_metrics() -> None:
    """Every metric of the registry is there with its type and labels, and no other."""
    expected = {}
    for family in Metrics().registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        expected[name] = (family.type, labels)
    found = {name: (row[0], words(row[1])) for name, row in rows("Metric").items()}
    assert found == expected


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("batch_archives_total", ArchiveOutcome),
        ("batch_image_resumes_total", ResumeMethod),
        ("batch_upstream_requests_total", Hop),
    ],
)
def test_label_values(metric: str, values: type[ArchiveOutcome | ResumeMethod | Hop]) -> None:
    """The values of a label are all explained."""
    assert {value.value for value in values} <= words(rows("Metric")[metric][2])


def test_every_metric_is_explained() -> None:
    """Each has a meaning; ours also say what to make of them, but for plain limits."""
    table = rows("Metric")
    assert all(row[2] for row in table.values())
    silent = [name for name, row in table.items() if name.startswith("batch_") and len(row) < 4]
    assert silent in ([], ["batch_read_ahead_limit_bytes"])


def test_events() -> None:
    """Every event that the code logs is there with its level, or all of them if there are several, and no other."""
    assert {name: set(row[0].split(", ")) for name, row in rows("Event").items()} == log_events()


def test_fields() -> None:
    """The fields of each event are those that the code logs."""
    logged = _logged_fields()
    assert {name: words(row[1]) for name, row in rows("Event").items()} == logged


def _logged_fields() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in sorted(Path(ROOT / "service").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr in LOG_METHODS and re.search(r"\b_?log$", ast.unparse(node.func.value)):
                assert isinstance(node.args[0], ast.Constant)
                name = str(node.args[0].value)
                fields = {one.arg for one in node.keywords if one.arg is not None} - {"exc_info"}
                found[name] = found.get(name, set()) | fields | ADDED_FIELDS.get(name, set())
    return found


def test_questions_name_what_exists() -> None:
    """The metrics and events that the table of questions points to exist."""
    known = set(rows("Metric")) | set(rows("Event"))
    named = {word for row in rows("Question").values() for word in words(row[0])}
    assert {word for word in named if word.startswith(("batch_", "process_", "archive."))} <= known
