"""Write the generated tables into the documents, between their markers."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.docs.tables import TABLES

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(
    r"^<!-- begin generated: (?P<name>\S+) -->\n(?P<body>.*?)^<!-- end generated: (?P=name) -->$",
    re.MULTILINE | re.DOTALL,
)
_MARKER = re.compile(r"^<!-- (?:begin|end) generated: \S+ -->$", re.MULTILINE)


def documents() -> Iterator[Path]:
    """Yield every document that may have generated tables."""
    for pattern in ("*.md", "service/*.md", "service/web/*.md", "deploy/**/*.md"):
        yield from sorted(ROOT.glob(pattern))


def generated_names(text: str) -> list[str]:
    """Return the names of the generated tables of a document.

    Raises:
        ValueError: a marker has no counterpart.
    """
    names = [match["name"] for match in _BLOCK.finditer(text)]
    if len(_MARKER.findall(text)) != 2 * len(names):
        raise ValueError("each '<!-- begin generated: NAME -->' needs an '<!-- end generated: NAME -->' after it")
    return names


def render(text: str) -> str:
    """Return a document with its generated tables up to date.

    Raises:
        KeyError: there is no table of that name.
        ValueError: a marker has no counterpart.
    """
    generated_names(text)
    return _BLOCK.sub(
        lambda match: (
            f"<!-- begin generated: {match['name']} -->\n{TABLES[match['name']]()}"
            f"<!-- end generated: {match['name']} -->"
        ),
        text,
    )
