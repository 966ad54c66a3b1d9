"""Generated tables: the documents match the code, and the catalogues behind them are complete."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import NotConfigured, ServiceError, concrete_errors, explanation, problem_meaning
from service.errors.reasons import CAUSES
from service.model import ArchiveOutcome, Hop, Reason, ResumeMethod
from service.monitoring.events import EVENTS
from service.monitoring.metric_notes import METRIC_NOTES
from service.monitoring.metrics import Metrics
from tests.docs.generate import ROOT, documents, generated_names, render
from tests.docs.tables import TABLES, markdown_table

LOG_METHODS = frozenset({"debug", "info", "warning", "error", "exception", "critical"})


@pytest.mark.parametrize("path", [*documents()], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_document_is_up_to_date(path: Path) -> None:
    """A document is what ``make docs`` would write."""
    text = path.read_text(encoding="utf-8")
    assert text == render(text), "run 'make docs'"


def test_every_table_is_in_a_document() -> None:
    """No table is generated for nothing."""
    found = {name for path in documents() for name in generated_names(path.read_text(encoding="utf-8"))}
    assert found == set(TABLES)


def test_render_replaces_only_the_tables() -> None:
    """The text around the markers stays."""
    text = "before\n<!-- begin generated: parameters -->\nold\n<!-- end generated: parameters -->\nafter\n"
    table = TABLES["parameters"]()
    assert render(text) == (
        f"before\n<!-- begin generated: parameters -->\n{table}<!-- end generated: parameters -->\nafter\n"
    )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        pytest.param("<!-- begin generated: none -->\n<!-- end generated: none -->\n", KeyError, id="unknown"),
        pytest.param("<!-- begin generated: events -->\n", ValueError, id="not_ended"),
        pytest.param("<!-- end generated: events -->\n", ValueError, id="not_begun"),
    ],
)
def test_render_rejects_wrong_markers(text: str, error: type[Exception]) -> None:
    """A misspelt marker does not leave a stale table."""
    with pytest.raises(error):
        render(text)


@pytest.mark.parametrize("name", TABLES)
def test_table_is_well_formed(name: str) -> None:
    """Each row has as many cells as the heading, no key twice, and a meaning."""
    rows = [line.strip("|\n").split(" | ") for line in TABLES[name]().splitlines()]
    assert {len(row) for row in rows} == {len(rows[0])}
    keys = [row[0] for row in rows]
    assert len(keys) == len(set(keys))
    meaning = [cell.strip() for cell in rows[0]].index("Meaning")
    assert all(row[meaning].strip() for row in rows)


def test_markdown_table_escapes_bars() -> None:
    """A bar in a cell does not split it."""
    assert markdown_table(["a"], [["x|y"]]) == "| a |\n| --- |\n| x&#124;y |\n"


def test_every_reason_has_a_cause() -> None:
    """The table of reasons has no gap."""
    assert set(CAUSES) == set(Reason)


@pytest.mark.parametrize("error", concrete_errors(), ids=lambda error: error.slug)
def test_problem_explains_itself(error: type[ServiceError]) -> None:
    """Each problem class has its own title, meaning, advice and example."""
    own = vars(error)
    assert all(own.get(name) for name in ("slug", "title", "advice", "example_detail", "__doc__"))
    assert problem_meaning(error)[0].isupper() or problem_meaning(error)[0] == "`"
    for text in (problem_meaning(error), error.advice, error.example_detail):
        assert text.endswith(".")
    for text in (error.title, error.advice, error.example_detail):
        assert text in explanation(error)


def test_features_that_are_not_configured_respond_alike() -> None:
    """One rule: status 503 and the slug ``<feature>-not-configured``."""
    by_slug = {error for error in concrete_errors() if error.slug.endswith("-not-configured")}
    assert by_slug == set(concrete_errors(NotConfigured))
    assert {error.status for error in by_slug} == {503}


def test_metric_notes_match_the_registry() -> None:
    """Each metric has a note, and each note a metric."""
    names = {
        f"{family.name}_total" if family.type == "counter" else family.name for family in Metrics().registry.collect()
    }
    assert set(METRIC_NOTES) == names
    plain = {name for name in names if name.startswith("batch_") and not METRIC_NOTES[name]}
    assert plain == {"batch_upload_bytes_total"}


@pytest.mark.parametrize(
    ("metric", "values"),
    [
        ("batch_archives_total", ArchiveOutcome),
        ("batch_image_resumes_total", ResumeMethod),
        ("batch_upstream_requests_total", Hop),
    ],
)
def test_metric_note_explains_label_values(metric: str, values: type[ArchiveOutcome | ResumeMethod | Hop]) -> None:
    """The values of a label are all explained."""
    assert {value.value for value in values} <= set(re.findall(r"`([^`]+)`", METRIC_NOTES[metric]))


class LogCall:
    """A logging call of the service: its event, level and fields."""

    def __init__(self, call: ast.Call, function: ast.AST) -> None:
        assert isinstance(call.func, ast.Attribute)
        assert isinstance(call.args[0], ast.Constant), f"line {call.lineno}: an event's name must be a literal"
        self.event = str(call.args[0].value)
        self.level = "error" if call.func.attr == "exception" else call.func.attr
        names = {keyword.arg for keyword in call.keywords if keyword.arg is not None}
        shared = {ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg is None}
        for name in shared:
            names |= _keys_of(name, function)
        has_traceback = call.func.attr == "exception" or "exc_info" in names
        self.fields = (names - {"exc_info"}) | ({"exception"} if has_traceback else set())


def _keys_of(name: str, function: ast.AST) -> set[str]:
    """Return the literal keys of the dictionary that a function assigns to a variable."""
    (keys,) = [
        {str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)}
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and ast.unparse(node.targets[0]) == name
    ]
    return keys


def log_calls() -> Iterator[LogCall]:
    """Yield every logging call in the service's sources."""
    for path in sorted((ROOT / "service").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                logger = ast.unparse(node.func.value)
                if node.func.attr in LOG_METHODS and re.search(r"\b_?log(ger)?$", logger):
                    yield LogCall(node, function)


def test_events_match_the_logging_calls() -> None:
    """Each event is logged with its levels and fields, and no other event is."""
    logged: dict[str, tuple[set[str], set[str]]] = {}
    for call in log_calls():
        levels, fields = logged.setdefault(call.event, (set(), set()))
        levels.add(call.level)
        fields |= call.fields
    assert {name: (set(event.levels), set(event.fields)) for name, event in EVENTS.items()} == logged


def test_log_call_reads_shared_fields() -> None:
    """Fields that several calls share by a dictionary are found."""
    source = "def f():\n    facts = {'a': 1}\n    log.info('x.y', **facts, b=2)\n    log.exception('x.z')\n"
    function = ast.parse(source).body[0]
    first, second = [LogCall(node, function) for node in ast.walk(function) if isinstance(node, ast.Call)]
    assert (first.event, first.level, first.fields) == ("x.y", "info", {"a", "b"})
    assert (second.level, second.fields) == ("error", {"exception"})


def test_meaning_is_the_first_paragraph() -> None:
    """Details for maintainers stay in the code."""
    for error in concrete_errors():
        assert "\n" not in problem_meaning(error)
        assert len(problem_meaning(error)) <= len(inspect.getdoc(error) or "")


@pytest.mark.parametrize("path", [*documents()], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_metrics_and_events_in_prose_exist(path: Path) -> None:
    """A metric or event that a document names is one of the code's."""
    named = re.findall(r"`([a-z]+[._][a-z_]+)`", path.read_text(encoding="utf-8"))
    events = {name.partition(".")[0] for name in EVENTS}
    assert {name for name in named if name.startswith("batch_")} <= set(METRIC_NOTES)
    found = {name for name in named if "." in name and name.partition(".")[0] in events}
    assert {name for name in found if not name.endswith((".py", ".js"))} <= set(EVENTS)
