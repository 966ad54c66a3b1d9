"""Markdown tables of the documents, made of the code's own facts."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le

from service.archive.parameters import QUERY_SCHEMAS, ArchiveParameters, allowed_values
from service.archive.report import PLAIN_WORDS, Retry
from service.errors import concrete_errors, problem_meaning
from service.errors.reasons import CAUSES
from service.model import Reason
from service.monitoring.events import EVENTS
from service.monitoring.metric_notes import METRIC_NOTES
from service.monitoring.metrics import Metrics
from service.settings import Settings, describe_settings

NOTHING = "\N{EN DASH}"
# Those that most deployments set.
COMMON_SETTINGS = (
    "AUTOENHANCE_API_KEY",
    "SERVICE_API_KEYS",
    "ALLOW_FULL_QUALITY",
    "ADMIN_TOKEN",
    "SIGNING_KEYS",
    "WEBHOOK_SECRET",
    "PUBLIC_URL",
    "TRUSTED_PROXY_HOPS",
    "ALLOWED_ORIGINS",
    "PORT",
    "METRICS_PORT",
    "MAX_ARCHIVES",
    "READ_AHEAD_TOTAL_BYTES",
    "SENTRY_DSN",
)
_RETRY = {Retry.NOW: "yes", Retry.LATER: "later", Retry.POINTLESS: "no"}
_CODE_NAME = re.compile(r"(?<![`\w])([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+|PORT|x-api-version)(?![`\w])")


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


def code(text: str) -> str:
    """Return text as a code span."""
    return f"`{text}`"


def codes(texts: Iterable[str]) -> str:
    """Return texts as code spans with commas between."""
    return ", ".join(code(text) for text in texts) or NOTHING


def settings_table() -> str:
    """Return the table of all settings."""
    return _settings(describe_settings())


def common_settings_table() -> str:
    """Return the table of the settings that most deployments set."""
    described = {row[0]: row for row in describe_settings()}
    return _settings(described[name] for name in COMMON_SETTINGS)


def _settings(described: Iterable[tuple[str, str, str]]) -> str:
    rows = [
        [code(name), "none" if default == "(none)" else code(default), _allowed(name), _CODE_NAME.sub(r"`\1`", meaning)]
        for name, default, meaning in described
    ]
    return markdown_table(["Setting", "Default", "Allowed", "Meaning"], rows)


def _allowed(name: str) -> str:
    field = Settings.model_fields[name.lower()]
    annotation: Any = field.annotation
    if get_origin(annotation) is Literal:
        return codes(get_args(annotation))
    if annotation is bool:
        return codes(["true", "false"])
    low = [f"{one.ge:g}" for one in field.metadata if isinstance(one, Ge)]
    above = [f"{one.gt:g}" for one in field.metadata if isinstance(one, Gt)]
    high = [f"{one.le:g}" for one in field.metadata if isinstance(one, Le)]
    match low, above, high:
        case [bottom], [], [top]:
            return f"{bottom} to {top}"
        case [bottom], [], []:
            return f"from {bottom}"
        case [], [bottom], []:
            return f"above {bottom}"
    return NOTHING


def parameters_table() -> str:
    """Return the table of the query parameters of a download."""
    rows = [
        [
            code(name),
            "all" if schema["type"] == "array" else _default(schema),
            codes(schema["enum"]) if "enum" in schema else allowed_values(name),
            ArchiveParameters.model_fields[name].description or "",
        ]
        for name, schema in QUERY_SCHEMAS.items()
    ]
    return markdown_table(["Parameter", "Default", "Allowed", "Meaning"], rows)


def _default(schema: Mapping[str, Any]) -> str:
    if "default" not in schema:
        return "none"
    default = schema["default"]
    return code(str(default).lower() if isinstance(default, bool) else str(default))


def problems_table() -> str:
    """Return the table of all problem types, by status."""
    errors = sorted(concrete_errors(), key=lambda error: error.status)
    rows = [[code(error.slug), str(error.status), problem_meaning(error), error.advice] for error in errors]
    return markdown_table(["Slug", "Status", "Meaning", "What to do"], rows)


def reasons_table() -> str:
    """Return the table of the reasons of failed images."""
    rows = [[code(one.value), PLAIN_WORDS[one][0], CAUSES[one], _RETRY[PLAIN_WORDS[one][1]]] for one in Reason]
    return markdown_table(["Reason", "Meaning", "Cause", "Retry helps"], rows)


def metrics_table() -> str:
    """Return the table of all metrics."""
    rows = []
    for family in Metrics().registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")
        rows.append([code(name), family.type, codes(labels), family.documentation, METRIC_NOTES.get(name, "")])
    return markdown_table(["Metric", "Type", "Labels", "Meaning", "How to read it"], rows)


def events_table() -> str:
    """Return the table of all log events."""
    rows = [[code(name), ", ".join(event.levels), codes(event.fields), event.meaning] for name, event in EVENTS.items()]
    return markdown_table(["Event", "Level", "Fields", "Meaning"], rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "settings": settings_table,
    "settings-common": common_settings_table,
    "parameters": parameters_table,
    "problems": problems_table,
    "reasons": reasons_table,
    "metrics": metrics_table,
    "events": events_table,
}
