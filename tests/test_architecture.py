"""Import rules, library borders, purity and module length, checked on the syntax tree.

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

BASE = {"errors", "model"}
# Every feature of the web layer may import these, and no other feature.
FEATURE = {"web.http", "web.auth", "streaming", "upstream", "archive", "monitoring", *BASE}
FEATURES = {"web.downloads", "web.orders", "web.uploads", "web.operations", "web.site"}
# What joins the features.
WEB_FRONT = {"web.routes", "web.middleware"}
# What each part of the service may import of the others; everything else is forbidden. A part is a file or a folder;
# the longest matching name counts.
#
#     cli ──▶ server ──▶ app ──▶ contexts, web.routes, web.middleware ──▶ web.<feature> ──▶ web.auth ──▶ web.http
#                                                                              │
#                                                   archive ◀── streaming ◀────┴──▶ upstream
MAY_IMPORT: dict[str, set[str]] = {
    "__main__": {"cli"},
    "cli": {"server", "settings", "sandbox", "archive", "monitoring", *BASE},
    "server": {"app", "settings", "streaming", "web.http", "web.auth", *FEATURES, "monitoring", *BASE},
    "app": {"contexts", "settings", "upstream", "web.auth", "web.http", *FEATURES, *WEB_FRONT, "monitoring", *BASE},
    "contexts": {
        "settings",
        "streaming",
        "streaming.archive_stream",
        "streaming.interfaces",
        "upstream",
        "web.auth",
        "web.http",
        *FEATURES,
        "monitoring",
        *BASE,
    },
    "web": set(),
    "web.routes": {"web.auth", "web.http", *FEATURES},
    "web.middleware": {"web.auth", "web.http", "monitoring", *BASE},
    "web.downloads": {*FEATURE, "streaming.archive_stream", "streaming.interfaces"},
    "web.orders": FEATURE,
    "web.uploads": FEATURE,
    "web.operations": FEATURE,
    "web.site": {*FEATURE, "web.openapi"},
    "web.openapi": {*FEATURE, *FEATURES - {"web.site"}},
    "web.auth": {"web.http", "streaming", "archive", *BASE},
    "web.http": {"monitoring", *BASE},
    "streaming": {"watch", *BASE},
    "streaming.archive_stream": {"streaming", "streaming.interfaces", "archive", *BASE},
    "streaming.interfaces": {"streaming", "archive", *BASE},
    "upstream": {"watch", "monitoring", *BASE},
    "archive": BASE,
    "monitoring": BASE,
    "settings": BASE,
    "sandbox": set(),
    "watch": set(),
    "errors": {"model"},
    "model": set(),
}
WHY = {
    "archive": "it is pure: outcomes in, bytes out",
    "streaming": "it knows no HTTP, and only archive_stream and its interfaces know archives",
    "streaming.archive_stream": "it streams from any source of images, so that a test can pass a list of bytes",
    "upstream": "it knows the API, not what is made of its images",
    "sandbox": "it stands in for the upstream and must share no mistake with what it tests",
    "web.http": "every feature uses it, so it uses none",
    "web.auth": "every feature uses it, so it uses none",
    **dict.fromkeys(FEATURES, "features are independent: settings are read at the root, shared parts are passed in"),
}
# Libraries that stay behind one border: where they may be imported.
BORDERS = {
    "aiohttp": (
        "service/upstream/",
        "service/web/",
        "service/sandbox/",
        "service/app.py",
        "service/contexts.py",
        "service/server/run.py",
        "service/cli/service_client.py",
    ),
    # Submodules are below aiohttp's public API.
    "aiohttp.abc": ("service/upstream/http/", "service/web/http/", "service/sandbox/"),
    "aiohttp.http": ("service/upstream/http/", "service/web/http/"),
    "zipstream": ("service/archive/zipstream_adapter.py",),
    "itsdangerous": ("service/web/auth/tokens.py",),
    "PIL": ("service/sandbox/",),
    "pydantic_settings": ("service/settings.py",),
    "sentry_sdk": ("service/monitoring/sentry.py",),
    "prometheus_client": ("service/monitoring/metrics.py", "service/web/operations/metrics.py"),
}
# Decisions without I/O: no coroutine, and nothing that waits, reads the clock or is random.
PURE = (
    "service/archive/",
    "service/model.py",
    "service/errors/",
    "service/streaming/window.py",
    "service/upstream/url_policy.py",
    "service/upstream/health.py",
    "service/upstream/http/headers.py",
    "service/upstream/http/response_reader.py",
    "service/upstream/image_formats.py",
    "service/upstream/image_transfer.py",
    "service/upstream/image_walkers.py",
    "service/upstream/payloads.py",
    "service/upstream/resume.py",
    "service/upstream/retry.py",
    "service/web/auth/credentials.py",
    "service/web/auth/rate_limit.py",
    "service/web/auth/tokens.py",
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


def _dotted(module: Path) -> str:
    """Return a module's dotted name; a package's is that of its folder."""
    parts = module.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _part(dotted: str) -> str | None:
    """Return the part that a dotted module name belongs to, by the longest name in ``MAY_IMPORT``."""
    name = dotted.removeprefix("service.")
    while name not in MAY_IMPORT:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return None
    return name


def _imports(module: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and dotted name of everything imported."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                yield node.lineno, "." * node.level + (node.module or "")
            elif node.module.split(".")[0] == "service":
                # The name may be a submodule: "from service.web import routes".
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


def _is_below(name: str, library: str) -> bool:
    return name == library or name.startswith(f"{library}.")


@pytest.mark.parametrize("module", MODULES, ids=_name)
def test_part_imports_only_what_it_may(module: Path) -> None:
    """Each part of the service imports only the parts of its rule."""
    if module == ROOT / "service" / "__init__.py":
        assert list(_imports(module)) == [], "the package itself imports nothing"
        return
    part = _part(_dotted(module))
    assert part is not None, f"{_name(module)}: add its part to MAY_IMPORT"
    wrong = []
    for line, name in _imports(module):
        if name.startswith("."):
            wrong.append(f"{_name(module)}:{line}: imports {name} relatively; imports are absolute")
        elif _is_below(name, "service") and _part(name) not in {part, *MAY_IMPORT[part]}:
            allowed = ", ".join(sorted(MAY_IMPORT[part])) or "nothing of ours"
            why = f" ({WHY[part]})" if part in WHY else ""
            wrong.append(f"{_name(module)}:{line}: imports {name}, but {part} may import only {allowed}{why}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_rules_have_no_cycle() -> None:
    """The import rules form a directed acyclic graph."""
    done: set[str] = set()
    while ready := {part for part, allowed in MAY_IMPORT.items() if part not in done and allowed <= done}:
        done |= ready
    assert done == set(MAY_IMPORT)


def test_rules_name_existing_parts() -> None:
    """Each part of the rules exists: a renamed module does not void a rule."""
    paths = [ROOT / "service" / part.replace(".", "/") for part in MAY_IMPORT]
    assert [str(path) for path in paths if not path.is_dir() and not path.with_suffix(".py").is_file()] == []
    assert set(WHY) <= set(MAY_IMPORT)


@pytest.mark.parametrize("library", BORDERS)
def test_library_is_imported_behind_its_border(library: str) -> None:
    """A wrapped library is imported by its wrapper only."""
    wrong = [
        f"{_name(module)}:{line}: imports {name}; {library} is for {', '.join(BORDERS[library])} only"
        for module in MODULES
        for line, name in _imports(module)
        if _is_below(name, library) and not _name(module).startswith(BORDERS[library])
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_borders_exist() -> None:
    """Each library of the table is imported, and each path exists: a renamed file does not void a rule."""
    imported = {name for module in MODULES for _, name in _imports(module)}
    assert [library for library in BORDERS if not any(_is_below(name, library) for name in imported)] == []
    assert [path for paths in (*BORDERS.values(), PURE) for path in paths if not (ROOT / path).exists()] == []


def test_app_keys_are_defined_in_context_modules() -> None:
    """Each feature keeps its ``AppKey`` and dataclass in ``context.py``, and nowhere else."""
    modules = [
        _name(module)
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "AppKey"
        if not _name(module).startswith("service/sandbox/")
    ]
    parts = {*FEATURES, "web.auth", "web.http"}
    assert sorted(modules) == sorted(f"service/{part.replace('.', '/')}/context.py" for part in parts)


@pytest.mark.parametrize("module", [m for m in MODULES if _name(m).startswith(PURE)], ids=_name)
def test_pure_module_does_no_io(module: Path) -> None:
    """Pure modules neither wait nor do I/O: every edge case is a row of a table."""
    wrong = [
        f"{_name(module)}:{line}: imports {name}, which does I/O, waits, reads the clock or is random"
        for line, name in _imports(module)
        if name in IMPURE_MODULES or name.split(".")[0] in IMPURE_MODULES
    ]
    wrong += [
        f"{_name(module)}:{node.lineno}: {type(node).__name__}; nothing here is asynchronous"
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_sandbox_is_imported_by_the_command_line_only() -> None:
    """The sandbox is imported inside a function of the command line: no production start loads it."""
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


def test_modules_are_short() -> None:
    """A module above 400 lines becomes a folder, or has two reasons to change."""
    long = {_name(module): lines for module in MODULES if (lines := len(module.read_text().splitlines())) > MAX_LINES}
    assert long == {}


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        pytest.param("service.archive.plan, service.archive.writer, service.archive.report", "aiohttp", id="archive"),
        pytest.param("service.streaming.prefetch", "aiohttp", id="prefetch"),
        pytest.param("service.streaming.archive_stream", "aiohttp", id="archive_stream"),
        pytest.param("service.upstream.api", "service.archive", id="upstream"),
        pytest.param("service.web.downloads.archive", "service.settings", id="web"),
        pytest.param("service.cli.main", "PIL", id="cli_without_the_extra"),
        pytest.param("service.sandbox", "service.model", id="sandbox"),
    ],
)
def test_part_can_be_imported_alone(modules: str, absent: str) -> None:
    """In a fresh interpreter each part can be imported first, and does not load what it must not import."""
    code = f"import sys; import {modules}; sys.exit({absent!r} in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr or f"{modules} loads {absent}"
    assert (done.stdout, done.stderr) == ("", "")
