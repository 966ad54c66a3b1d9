"""Who may import whom, and how long a module may be: the layout's arrows, checked on the syntax tree.

Imports inside functions count like any others.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "service").rglob("*.py"))
MAX_LINES = 400

LEAVES = {"errors", "log_writer", "logs", "metrics", "model"}
# What each part of the service may import of the others; what is not listed is forbidden.
#
#     cli → server, app → web → pipeline → readahead
#                 │        │        └──→ archive
#                 └────────┴──→ upstream, archive, receipts
MAY_IMPORT: dict[str, set[str]] = {
    "__main__": {"cli"},
    "cli": {"cli_order", "remote", "server", "app", "settings", "sandbox", *LEAVES},
    "cli_order": {"archive", "cli_progress", "remote", "verify", "server", "settings", *LEAVES},
    "cli_progress": {"remote"},
    "remote": set(),
    "verify": set(),
    "server": {"app", "web", "settings", "process", *LEAVES},
    "process": set(),
    "app": {"web", "sentry", "pipeline", "shares", "upstream", "archive", "receipts", "settings", *LEAVES},
    "web": {"pipeline", "shares", "upstream", "archive", "receipts", *LEAVES},
    "pipeline": {"readahead", "shares", "archive", *LEAVES},
    "readahead": {"shares", "model", "errors"},
    "shares": set(),
    "receipts": {"model", "errors"},
    "archive": {"model", "errors"},
    "upstream": {"model", "errors", "logs", "metrics"},
    "errors": {"model"},
    "model": {"errors"},
    "log_writer": set(),
    "logs": {"errors", "log_writer", "model"},
    "metrics": {"errors", "model"},
    "sentry": {"logs"},
    "settings": {"errors", "model"},
    "sandbox": set(),
}
WHY = {
    "pipeline": "it takes any source of images, so that a test can pass a list of bytes",
    "archive": "it is pure: outcomes in, bytes out",
    "upstream": "it knows the outside, not what is made of it",
    "sandbox": "it stands in for the upstream and must share no mistake with what it tests",
    "web": "settings are read at the root, parts receive plain values",
    "readahead": "it bounds any downloads and knows no HTTP",
}
# Libraries that stay behind one border: where they may be imported.
BORDERS = {
    "aiohttp": (
        "service/upstream/",
        "service/web/",
        "service/sandbox/",
        "service/app.py",
        "service/server/run.py",
        "service/cli/service_client.py",
    ),
    "zipstream": ("service/archive/zipstream_adapter.py",),
    "httptools": ("service/upstream/http/http1.py",),
    "PIL": ("service/sandbox/",),
    "pydantic_settings": ("service/settings.py",),
    "sentry_sdk": ("service/monitoring/sentry.py",),
    "prometheus_client": ("service/monitoring/metrics.py", "service/web/"),
}
# Decisions without I/O: no coroutine, and nothing that could wait, look at the clock or roll dice.
PURE = (
    "service/archive/",
    "service/model.py",
    "service/errors/",
    "service/upstream/url_policy.py",
    "service/upstream/health.py",
    "service/upstream/image_walkers.py",
    "service/upstream/image_formats.py",
    "service/upstream/payloads.py",
    "service/upstream/retry.py",
)
IMPURE_MODULES = {
    "asyncio",
    "aiohttp",
    "http.client",
    "os",
    "random",
    "secrets",
    "socket",
    "subprocess",
    "time",
    "urllib.request",
}


def _name(module: Path) -> str:
    return module.relative_to(ROOT).as_posix()


def _part(module: str) -> str:
    """Return the part of the service that a dotted module name belongs to."""
    return module.split(".")[1] if "." in module else ""


def _imports(module: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and dotted name of everything imported."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                yield node.lineno, "." * node.level + (node.module or "")
            elif node.module == "service":
                yield from ((node.lineno, f"service.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


@pytest.mark.parametrize("module", MODULES, ids=_name)
def test_imports_follow_the_arrows(module: Path) -> None:
    """No part of the service imports one that it should not know of."""
    part = module.relative_to(ROOT / "service").parts[0].removesuffix(".py")
    if part == "__init__":
        assert list(_imports(module)) == [], "the package itself imports nothing"
        return
    assert part in MAY_IMPORT, f"{_name(module)}: say in MAY_IMPORT what the new part {part!r} may import"
    wrong = []
    for line, name in _imports(module):
        if name.startswith("."):
            wrong.append(f"{_name(module)}:{line}: imports {name} relatively; imports are absolute")
        elif name.split(".")[0] == "service" and _part(name) not in {part, *MAY_IMPORT[part]}:
            allowed = ", ".join(sorted(MAY_IMPORT[part])) or "nothing of ours"
            why = f" ({WHY[part]})" if part in WHY else ""
            wrong.append(f"{_name(module)}:{line}: imports {name}, but {part} may import only {allowed}{why}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_arrows_have_no_circle() -> None:
    """The rules themselves have a direction; only the two files of nouns and errors may know each other."""
    done = {"model", "errors"}
    while ready := {part for part, allowed in MAY_IMPORT.items() if part not in done and allowed <= done}:
        done |= ready
    assert done == set(MAY_IMPORT)


@pytest.mark.parametrize("library", BORDERS)
def test_libraries_stay_behind_their_border(library: str) -> None:
    """A library that is wrapped is known to its wrapper only."""
    wrong = [
        f"{_name(module)}:{line}: imports {name}; {library} is for {', '.join(BORDERS[library])} only"
        for module in MODULES
        for line, name in _imports(module)
        if name.split(".")[0] == library and not _name(module).startswith(BORDERS[library])
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_borders_are_where_they_are_said_to_be() -> None:
    """Each library of the table is really used, and each place exists: a renamed file does not void a rule."""
    used = {name.split(".")[0] for module in MODULES for _, name in _imports(module)}
    assert set(BORDERS) <= used
    assert [place for places in (*BORDERS.values(), PURE) for place in places if not (ROOT / place).exists()] == []


@pytest.mark.parametrize("module", [m for m in MODULES if _name(m).startswith(PURE)], ids=_name)
def test_decisions_are_pure(module: Path) -> None:
    """What decides neither waits nor looks around: every edge case stays a table."""
    wrong = [
        f"{_name(module)}:{line}: imports {name}, which can do I/O, wait, tell the time or roll dice"
        for line, name in _imports(module)
        if name in IMPURE_MODULES or name.split(".")[0] in IMPURE_MODULES
    ]
    wrong += [
        f"{_name(module)}:{node.lineno}: {type(node).__name__}; nothing here is asynchronous"
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_sandbox_is_started_by_the_command_line_only() -> None:
    """The stand-in is imported where it is asked for, inside a function: no production start loads it."""
    importers, at_top = set(), set()
    for module in MODULES:
        if _name(module).startswith("service/sandbox/"):
            continue
        tree = ast.parse(module.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("service.sandbox"):
                importers.add(_name(module))
                if node in tree.body:
                    at_top.add(f"{_name(module)}:{node.lineno}")
    assert (importers, at_top) == ({"service/cli/main.py"}, set())


def test_no_module_is_too_long() -> None:
    """A module above 400 lines becomes a folder, or has two reasons to change."""
    long = {_name(module): lines for module in MODULES if (lines := len(module.read_text().splitlines())) > MAX_LINES}
    assert long == {}


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        pytest.param("service.archive.plan, service.archive.writer, service.archive.report", "aiohttp", id="archive"),
        pytest.param("service.streaming.prefetch", "aiohttp", id="readahead"),
        pytest.param("service.streaming.archive_stream", "aiohttp", id="pipeline"),
        pytest.param("service.upstream.api", "service.archive", id="upstream"),
        pytest.param("service.web.downloads.archive", "service.settings", id="web"),
        pytest.param("service.cli.main", "PIL", id="cli_without_the_extra"),
        pytest.param("service.sandbox", "service.model", id="sandbox"),
    ],
)
def test_part_can_be_imported_alone(modules: str, absent: str) -> None:
    """In a fresh interpreter each part imports without the others' help, and does not drag in what it must not know."""
    code = f"import sys; import {modules}; sys.exit({absent!r} in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr or f"{modules} loads {absent}"
    assert (done.stdout, done.stderr) == ("", "")
