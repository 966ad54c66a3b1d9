"""Vocabulary: code, tests and documents use the terms of HTTP, asyncio and operations, and none of a private dialect.

``.ci/banned-words.txt`` lists the words without a legitimate use, for codespell too (``make lint``). This file also
finds them as parts of identifiers, and words and phrases that depend on their context.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKED = ("service", "tests", "deploy", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Dockerfile", "Makefile",
           ".env.example", ".pre-commit-config.yaml", "pyproject.toml")  # fmt: skip
SUFFIXES = {
    "",
    ".conf",
    ".css",
    ".example",
    ".html",
    ".js",
    ".json",
    ".md",
    ".py",
    ".service",
    ".toml",
    ".yaml",
    ".yml",
}
# Texts of others, and this file.
UNCHECKED = re.compile(r"/static/vendor/|/__pycache__/|deploy/LICENCES\.md$|tests/test_language\.py$|\.schema\.json$")

# Words that are banned beside those of .ci/banned-words.txt, with the term to use instead.
WORDS = {
    "answer": "response", "answers": "responses", "answered": "responded", "answering": "responding",
    "ask": "request", "asks": "requests", "asking": "requesting",
    "caller": "client", "callers": "clients",
    "question": "request", "questions": "requests",
    "silence": "idle timeout, stall", "silent": "idle, stalled",
    "tell": "notify, send", "tells": "notifies, sends", "telling": "notifying",
    "wants": "needs, requires",
}  # fmt: skip
# Phrases. A blank stands for any white space or underscores, also across the lines of a comment.
PHRASES = {
    r"at hand": "buffered, available",
    r"by (itself|themselves)": "automatically",
    r"for ever": "forever, indefinitely",
    r"(hold|holds|held|holding) back": "pause, delay; backpressure",
    r"look(s|ed|ing)? at": "poll, request, inspect",
    r"takes? no bytes?": "does not read",
    r"what is so now": "the current state",
    r"(?<!'s\s)worth": "state the value",
    # A slot of MAX_ARCHIVES or MAX_CONCURRENT_UPLOADS.
    r"(all|free|more|most|no|of the|\d+|MAX_ARCHIVES`?) places": "slots",
    r"places? (is|are|was|were) (free|taken|left)": "slots",
    r"(free|hold|holds|held|keep|keeps|has|have|leaves?) (a|one|its|their|another|no) (free )?place(?! in)": "slot",
    r"(a|the|one|last) free place": "slot",
    r"places (taken|in use|free)": "slots in use",
    # The header section of a message (RFC 9110 section 6.3).
    r"(request|response)('s)? heads?": "header section",
    r"heads? of (a|an|the|its|their|each|that)( (first|next|later))? (request|response)s?": "header section",
}  # fmt: skip
# Legitimate uses: path, the text around the hit, and the reason.
ALLOWED = (
    (r".*", r"\.tell\(\)", "the method of file objects"),
    (r".*", r"--silent", "the option of curl"),
    (r"deploy/systemd/.*\.service", r"^Wants=", "the directive of systemd"),
    (r"tests/monitoring/test_logs\.py", r"id=\"question\"", "a question mark"),
)

# Parts of identifiers count as words: snake_case, CamelCase, kebab-case.
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_BLANK = r"(?:[\s_]|(?<=\n)\s*(?:#|//|\*)\s*)+"


def _dictionary() -> dict[str, str]:
    lines = (ROOT / ".ci/banned-words.txt").read_text().splitlines()
    return {word: terms.rstrip(",") for word, _, terms in (line.partition("->") for line in lines)}


_WORDS = _dictionary() | WORDS
_PHRASES = [
    (re.compile(rf"(?<![A-Za-z]){phrase.replace(' ', _BLANK)}(?![A-Za-z])", re.IGNORECASE), instead)
    for phrase, instead in PHRASES.items()
]


def _hits(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield offset, banned text and the term to use instead."""
    for match in _WORD.finditer(text):
        if (instead := _WORDS.get(match[0].lower())) is not None:
            yield match.start(), match[0], instead
    for pattern, instead in _PHRASES:
        for match in pattern.finditer(text):
            yield match.start(), " ".join(match[0].split()), instead


def banned(path: str, text: str) -> list[str]:
    """Return ``path:line: text`` of every hit that is not allowed."""
    lines = text.splitlines()
    found = []
    for offset, hit, instead in sorted(_hits(text)):
        number = text.count("\n", 0, offset)
        if not any(re.fullmatch(where, path) and re.search(around, lines[number]) for where, around, _ in ALLOWED):
            found.append(f"{path}:{number + 1}: {hit!r}; use: {instead}")
    return found


def _files() -> Iterator[Path]:
    for name in CHECKED:
        path = ROOT / name
        candidates = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (one for one in candidates if one.is_file() and one.suffix in SUFFIXES)


def test_vocabulary_is_standard() -> None:
    """No banned word or phrase is in any checked file, nor in its path."""
    hits = []
    for file in _files():
        path = file.relative_to(ROOT).as_posix()
        if UNCHECKED.search(f"/{path}") is None:
            hits += banned(path, path) + banned(path, file.read_text())
    files = sorted({hit.split(":")[0] for hit in hits})
    assert not hits, f"\n{len(hits)} hits in {len(files)} files\n" + "\n".join(hits)


@pytest.mark.parametrize(
    ("text", "hits"),
    [
        ("def caller_of():", ["caller"]),
        ("class AnswerBody:", ["Answer"]),
        ("MAX_ANSWER_BYTES = 1", ["ANSWER"]),
        ("`key-silence`", ["silence"]),
        ("It waits for\n    # ever.", ["for # ever"]),
        ("bytes_held_back", ["held_back"]),
        ("It looked\nat the order, by itself.", ["looked at", "by itself"]),
        ("All places are taken.", ["All places", "places are taken"]),
        ("64 places, and the head of its first request", ["64 places", "head of its first request"]),
        # Standard words that contain or resemble banned ones.
        ("task, mask, basket, amendment, foretell, answerable, callers_", ["callers"]),
        ("a HEAD request, head-of-line blocking, the queue's head, in place of, one place in code", []),
        ("silently, one window's worth, position = file.tell()", []),
    ],
)
def test_check_finds_banned_words(text: str, hits: list[str]) -> None:
    """The check finds words, parts of identifiers and phrases across lines, and no others."""
    assert [hit.split("'")[1] for hit in banned("a.py", text)] == hits


@pytest.mark.parametrize("word", _dictionary())
def test_check_finds_each_word_of_the_dictionary(word: str) -> None:
    """Words of the dictionary are found in prose and in every style of identifiers."""
    text = f"As {word}.\n{word}_once = Not{word.title()}(CONST_{word.upper()})"
    assert [hit.split(":")[1] for hit in banned("a.py", text)] == ["1", "2", "2", "2"]
