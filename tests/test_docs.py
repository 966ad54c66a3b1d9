"""The documents match the code: links, paths, commands, samples and hand-written tables are checked against it.

The generated tables have a test of their own, beside their generator.
"""

import ast
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from yarl import URL

from service.archive.report import MANIFEST_NAME
from service.errors import concrete_errors
from service.sandbox import DEMO_ORDER_ID, Kind
from service.settings import Settings, describe_settings
from service.web.openapi.document import openapi_document
from tests.archives import download

ROOT = Path(__file__).parents[1]
# Every document of the project by its path, in the order of README's map. Vendored and bundled files have their own.
DOCUMENTS = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        "README.md",
        "service/web/API.md",
        "service/README.md",
        "CONTRIBUTING.md",
        *sorted(one.relative_to(ROOT).as_posix() for one in (ROOT / "deploy").rglob("*.md")),
        "CHANGELOG.md",
    )
}
README, API = DOCUMENTS["README.md"], DOCUMENTS["service/web/API.md"]
# README is read by everyone: what needs more room has a document of its own.
README_LINES = 360
EXAMPLE_ENVIRONMENT = (ROOT / ".env.example").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
# The documents' address of the service; the commands are run against another port.
DOCUMENTED_ADDRESS = "localhost:8000"
NOT_RUN = "<!-- not run:"
STARTING_SECONDS = 30
COMMAND_SECONDS = 60

# Different in each download, or drawn by whatever version of Pillow is installed.
_VOLATILE = frozenset({"archive_id", "created_at", "bytes", "size", "crc32", "sha256"})


class Block(NamedTuple):
    """A fenced block of a document: its language, its text, and whether the test runs it."""

    language: str
    text: str
    run: bool


def blocks_of(document: str) -> list[Block]:
    """Return the fenced blocks of a document in their order."""
    found = re.finditer(
        r"^(?P<note><!-- [^\n]*\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", document, re.MULTILINE | re.DOTALL
    )
    return [Block(one["language"], one["text"], not (one["note"] or "").startswith(NOT_RUN)) for one in found]


def prose_of(document: str) -> str:
    """Return a document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", document, flags=re.MULTILINE | re.DOTALL)


def table(first_heading: str, document: str) -> dict[str, list[str]]:
    """Return the table whose first column has this heading: the other cells of each row by its first, bare."""
    match = re.search(rf"^\| {first_heading} \|.*\n\| ---.*\n((?:\|.*\n)+)", document, re.MULTILINE)
    assert match, f"there is no table of {first_heading}"
    rows = [[cell.strip().strip("`") for cell in line.strip("| \n").split(" | ")] for line in match[1].splitlines()]
    assert len(rows) == len({row[0] for row in rows}), "a row is there twice"
    return {row[0]: row[1:] for row in rows}


def test_settings_of_the_example_environment(tmp_path: Path) -> None:
    """.env.example has every setting with its default, and sets only the key."""
    lines = re.findall(r"^(# )?([A-Z][A-Z_]+)=(.*)$", EXAMPLE_ENVIRONMENT, re.MULTILINE)
    defaults = {name: "" if default == "(none)" else default for name, default, _ in describe_settings()}
    key = {name: value for off, name, value in lines if not off}
    assert list(key) == ["AUTOENHANCE_API_KEY"]
    assert sorted(name for _, name, _ in lines) == sorted(defaults)
    assert {name: value for off, name, value in lines if off} == {
        name: default for name, default in defaults.items() if name not in key
    }
    everything_on = tmp_path / ".env"
    everything_on.write_text("".join(f"{name}={value}\n" for _, name, value in lines), encoding="utf-8")
    with_file = Settings(_env_file=everything_on).model_dump(exclude={"autoenhance_api_key"})
    assert with_file == Settings().model_dump(exclude={"autoenhance_api_key"})


def test_settings_have_a_comment_in_the_example_environment() -> None:
    """Each setting of .env.example has a comment above it."""
    paragraphs = [one for one in EXAMPLE_ENVIRONMENT.split("\n\n") if re.search(r"^(# )?[A-Z_]+=", one, re.MULTILINE)]
    assert all(re.match(r"# [A-Z*a-z].*\n(# )?[A-Z_]+=.*\n?\Z", one) for one in paragraphs)


def test_readme_is_short() -> None:
    """README stays short enough to be read at once."""
    assert len(README.splitlines()) <= README_LINES


def test_readme_lists_every_document() -> None:
    """README's map of the documents has every document."""
    assert set(re.findall(r"^\| \[([\w./]+\.md)\]", README, re.MULTILINE)) == set(DOCUMENTS) - {"README.md"}


def test_commonest_problems() -> None:
    """The problems that README shows exist, with the status it gives them."""
    statuses = {error.slug: str(error.status) for error in concrete_errors()}
    for status, (slugs, _) in table("Status", README).items():
        assert {statuses[slug] for slug in re.findall(r"[a-z-]+", slugs)} == set(status.split(", "))


def test_routes() -> None:
    """API.md lists the routes that /openapi.json describes, the two pages, and no other."""
    described = {
        f"{method.upper()} {path}" for path, methods in openapi_document("0")["paths"].items() for method in methods
    }
    listed = set(re.findall(r"(?:GET|HEAD|POST|PUT|DELETE) /[^`,\s]*", " ".join(table("Route", API))))
    assert listed == described | {"GET /", "GET /docs"}


def test_faults() -> None:
    """The table of faults covers every fault that the sandbox can inject."""
    named = [kind.strip() for kinds in re.findall(r"<!-- kinds: (.*?) -->", API) for kind in kinds.split(",")]
    assert sorted(named) == sorted(kind.value for kind in Kind)


def anchors_of(document: str) -> set[str]:
    """Return the anchors which headings get: lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", prose_of(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links(name: str) -> None:
    """Every relative link leads to a file that exists, and every anchor to a heading."""
    document, folder = DOCUMENTS[name], (ROOT / name).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(document)):
        path, _, anchor = target.partition("#")
        if path.startswith(("https://", "http://")):
            continue
        assert not path or (folder / path).exists(), target
        if anchor:
            assert anchor in anchors_of(document if not path else (folder / path).read_text(encoding="utf-8")), target


@pytest.mark.parametrize("name", [*DOCUMENTS, ".env.example", ".pre-commit-config.yaml"])
def test_make_targets(name: str) -> None:
    """Every make target that is mentioned exists and has a line in ``make``'s own help."""
    document = (ROOT / name).read_text(encoding="utf-8")
    code = [*re.findall(r"`([^`\n]+)`", prose_of(document)), *(block.text for block in blocks_of(document))]
    helped = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
    mentioned = {target for text in code for target in re.findall(r"^(?:\S+=\S* )*make ([a-z-]+)", text, re.MULTILINE)}
    assert mentioned <= helped


def paths_in(document: str) -> list[str]:
    """Return the files and folders of the project that a document names in code spans."""
    code = re.findall(r"`([^`\n]+)`", prose_of(document))
    paths = [one for one in code if re.fullmatch(r"[\w./-]+(\.(py|md|toml|lock|yaml|example)|(?<=\w)/)", one)]
    return [path for path in paths if path != "/problems/"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files(name: str) -> None:
    """Every file and folder of the project that is named exists, from the root or from beside the document."""
    paths = paths_in(DOCUMENTS[name])
    assert [path for path in paths if not any((at / path).exists() for at in (ROOT, (ROOT / name).parent))] == []


def test_files_are_found() -> None:
    """The pattern for paths finds them: an empty list would prove nothing."""
    assert all(len(paths_in(DOCUMENTS[name])) > 5 for name in ("service/README.md", "CONTRIBUTING.md"))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_samples_parse(name: str) -> None:
    """Every JSON, Python and shell block is well-formed."""
    for block in blocks_of(DOCUMENTS[name]):
        assert block.language in {"sh", "text", "json", "python", "nginx"}
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "python":
            ast.parse(block.text)
        elif block.language == "sh":
            subprocess.run(["sh", "-n"], input=block.text.encode(), check=True)


@pytest.fixture(scope="module")
def sandboxed_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The host and port of a service started with its sandbox, as ``make sandbox`` does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--sandbox", "--port", "0"],
        stdout=subprocess.PIPE,
        cwd=tmp_path_factory.mktemp("service"),
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOST": "127.0.0.1", "LOG_FORMAT": "json"},
    )
    started: queue.Queue[str] = queue.Queue()
    # The log is read all the time: a full pipe would stop the process.
    reading = threading.Thread(target=_read_log, args=(process, started))
    reading.start()
    try:
        yield started.get(timeout=STARTING_SECONDS)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        reading.join()


def _read_log(process: subprocess.Popen[bytes], started: queue.Queue[str]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "service.started":
                started.put(event["url"].removeprefix("http://"))


def runnable(document: str) -> list[tuple[str, str | None]]:
    """Return a document's commands that use the service, each with the output that the document shows after it."""
    blocks = blocks_of(document)
    next_blocks = [*blocks[1:], Block("", "", run=False)][: len(blocks)]
    return [
        (block.text, behind.text if behind.language == "text" else None)
        for block, behind in zip(blocks, next_blocks, strict=True)
        if block.language == "sh" and block.run and re.search(r"^(curl|autoenhance-batch) ", block.text, re.MULTILINE)
    ]


def test_few_blocks_are_not_run() -> None:
    """Only what needs a real key is marked as not to be run."""
    marked = [block.text for document in DOCUMENTS.values() for block in blocks_of(document) if not block.run]
    assert marked == ["AUTOENHANCE_API_KEY=... make run\n"]
    assert sum(document.count(f"\n{NOT_RUN}") for document in DOCUMENTS.values()) == 1


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_is_checked(name: str) -> None:
    """What is not run is a make target, which ``test_make_targets`` checks, or installs what CI installs too."""
    installed = {"make", *re.findall(r"[\w.-]+", re.findall(r"^tools=\((.*?)\)", CI, re.MULTILINE | re.DOTALL)[0])}
    commands_run = {command for command, _ in runnable(DOCUMENTS[name])}
    for block in blocks_of(DOCUMENTS[name]):
        if block.language != "sh" or block.text in commands_run:
            continue
        for line in block.text.splitlines():
            if line.startswith("apt-get install "):
                assert set(line.split()[2:]) <= installed
            else:
                assert re.fullmatch(r"([A-Z_]+=\S+ )*make [a-z-]+", line), line


@pytest.mark.parametrize(
    ("command", "output"),
    [
        pytest.param(*one, id=f"{name}-{n}")
        for name, document in DOCUMENTS.items()
        for n, one in enumerate(runnable(document))
    ],
)
def test_commands(command: str, output: str | None, sandboxed_service: str, tmp_path: Path) -> None:
    """The commands of the documents work as written, and give the output shown."""
    _require_tools(command)
    for photo in (ROOT / "service" / "web" / "uploads" / "samples").glob("*.jpg"):  # which the uploads send
        shutil.copy(photo, tmp_path)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.replace(DOCUMENTED_ADDRESS, sandboxed_service)],
        capture_output=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "ORDER_ID": DEMO_ORDER_ID,
            "BATCH_SERVICE_URL": f"http://{sandboxed_service}",
        },
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    if output is not None:
        pattern = re.escape(output).replace("…", ".+")
        assert re.fullmatch(pattern, done.stdout.decode().replace("\r\n", "\n")), done.stdout.decode()


def _require_tools(command: str) -> None:
    for tool in ("curl", "unzip"):
        if tool not in command or shutil.which(tool) is not None:
            continue
        if os.environ.get("CI"):
            pytest.fail(f"{tool} is not installed")
        pytest.skip(f"{tool} is not installed")


def sample_manifest() -> Any:
    """Return the manifest that API.md shows."""
    (sample,) = (json.loads(block.text) for block in blocks_of(API) if block.language == "json")
    return sample


async def test_sample_manifest(sandboxed_service: str, client: aiohttp.ClientSession) -> None:
    """API.md's manifest is what its command returns, except for what differs from download to download."""
    (command,) = (text for text, _ in runnable(API) if MANIFEST_NAME in text)
    (address,) = re.findall(r'"(http://.+?)"', command)
    found = await download(client, URL(address.replace(DOCUMENTED_ADDRESS, sandboxed_service), encoded=True))
    real = json.loads(found[MANIFEST_NAME].decode().replace(sandboxed_service, DOCUMENTED_ADDRESS))
    assert _shape(sample_manifest()) == _shape(real)


def _shape(value: Any) -> Any:
    """Return a JSON value with the order of its keys, and only the type of what is volatile."""
    if isinstance(value, Mapping):
        return [(key, type(one).__name__ if key in _VOLATILE else _shape(one)) for key, one in value.items()]
    return [_shape(one) for one in value] if isinstance(value, list) else value


def test_manifest_keys_are_explained() -> None:
    """API.md's table of the manifest names keys that exist."""
    sample = sample_manifest()
    for row in table("Key", API):
        for key in row.replace("`", "").split(", "):
            part = sample["images"][0] if "images[]" in row else sample
            assert key.removeprefix("images[].") in part
