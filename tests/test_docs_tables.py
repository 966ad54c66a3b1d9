"""The tables that ``make docs`` is to write hold what the code holds."""

import re
from dataclasses import fields
from typing import Any

from service.archive.plan import PARAMETERS, ArchiveOptions
from service.archive.report import PLAIN_WORDS, Retry
from service.errors import concrete_errors
from service.model import ImageOptions, Reason
from service.settings import describe_settings
from tests.test_docs import API, DOCUMENTS, README, table

AGAIN = {Retry.NOW: "yes", Retry.LATER: "later", Retry.POINTLESS: "no"}
MARKED = {
    "README.md": {"parameters", "settings-common"},
    "service/web/API.md": {"parameters", "problems", "reasons"},
    "deploy/SETTINGS.md": {"settings"},
    "deploy/OBSERVABILITY.md": {"metrics", "events"},
}


def test_markers() -> None:
    """Each generated table has one pair of markers in each document that shows it."""
    for name, document in DOCUMENTS.items():
        found = re.findall(
            r"^<!-- begin generated: ([a-z-]+) -->\n(?:\|.*\n)+<!-- end generated: \1 -->$", document, re.MULTILINE
        )
        assert sorted(found) == sorted(MARKED.get(name, ()))


def test_settings() -> None:
    """SETTINGS.md lists every setting with its default, and no other; README some of them."""
    expected = {name: "none" if default == "(none)" else default for name, default, _ in describe_settings()}
    assert {name: row[0] for name, row in table("Setting", DOCUMENTS["deploy/SETTINGS.md"]).items()} == expected
    assert {name: row[0] for name, row in table("Setting", README).items()}.items() <= expected.items()


def test_parameters() -> None:
    """README and API.md list every query parameter with its default, and no other."""
    values: dict[str, Any] = {}
    for options in (ArchiveOptions(), ImageOptions()):
        values |= {one.name: getattr(options, one.name) for one in fields(options)}
    written = {name: _as_written(values[name]) for name in PARAMETERS}
    for document in (README, API):
        assert {name: row[0] for name, row in table("Parameter", document).items()} == {**written, "only": "all"}


def _as_written(value: object) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_problems() -> None:
    """API.md lists every problem type with its status, and no other."""
    expected = {error.slug: str(error.status) for error in concrete_errors()}
    assert {slug: row[0] for slug, row in table("Slug", API).items()} == expected


def test_reasons() -> None:
    """API.md lists every reason, and whether a retry helps as the report says it."""
    expected = {reason.value: AGAIN[PLAIN_WORDS[reason][1]] for reason in Reason}
    assert {reason: row[1] for reason, row in table("Reason", API).items()} == expected
