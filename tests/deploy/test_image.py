"""The steps of the Dockerfile, run in a folder, because not every machine has a container engine.

The commands of the build stage are run; the result is started as in the image: by an unnamed user, from read-only
files, with the image's environment. The base image itself is not tested.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from service.sandbox import DEMO_ORDER_ID, Sandbox
from tests.archives import download, images_url
from tests.deploy.shipped import DEPLOY

ROOT = DEPLOY.parent
# The image's paths, as they are below the tree.
TOPS = ("/opt/", "/build")
BUILD_SECONDS = 300


@dataclass
class Stage:
    """The instructions of one stage of the Dockerfile."""

    steps: list[tuple[str, str]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def last(self, instruction: str) -> str:
        """Return the arguments of the last instruction of a kind."""
        return [words for name, words in self.steps if name == instruction][-1]


def stages() -> list[Stage]:
    """Read the Dockerfile."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text("utf-8"))
    found: list[Stage] = []
    for line in text.splitlines():
        name, _, words = line.strip().partition(" ")
        if name == "FROM":
            found.append(Stage())
        elif name == "ENV":
            found[-1].environment |= dict(one.split("=", 1) for one in shlex.split(words))
        elif name and not name.startswith("#"):
            found[-1].steps.append((name, words))
    return found


def below(tree: Path, text: str) -> str:
    """Return a text with the image's paths below the tree."""
    for top in TOPS:
        text = re.sub(rf"(?<![\w/.]){top}", f"{tree}{top}", text)
    return text


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """A read-only tree in which the build stage has been run."""
    if not os.environ.get("CI"):
        pytest.skip("installs every package; runs with CI set")
    folder = Path(tempfile.mkdtemp(prefix="image-"))  # readable by other users, unlike pytest's folders
    folder.chmod(0o755)
    try:
        _build(folder, stages()[0])
        subprocess.run(["chmod", "-R", "a-w", str(folder)], check=True, timeout=60)
        yield folder
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True, timeout=60)
        shutil.rmtree(folder)


def _build(tree: Path, stage: Stage) -> None:
    directory = tree
    commands = tree / "commands"
    commands.mkdir()
    (commands / "python").symlink_to(_interpreter())
    path = f"{commands}:{os.environ['PATH']}"
    for name, words in stage.steps:
        if name == "WORKDIR":
            directory = Path(below(tree, words))
            directory.mkdir(parents=True)
        elif name == "COPY":
            *sources, target = words.split()
            for source in sources:
                _copy(ROOT / source, directory / target / (Path(source).name if target == "./" else ""))
        else:
            assert name == "RUN", f"this test does not know {name}"
            command = below(tree, words)
            environment = {**os.environ, **stage.environment, "PATH": path}
            subprocess.run(["sh", "-euc", command], cwd=directory, env=environment, check=True, timeout=BUILD_SECONDS)


def _interpreter() -> Path:
    """Return a python in place of the image's: the distribution's, as ours may be in a private folder."""
    shipped = Path("/usr/bin/python3")
    fits = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
    if shipped.exists() and subprocess.run([shipped, "-c", fits], check=False, timeout=20).returncode == 0:
        return shipped
    return Path(sys.executable).resolve()


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


@pytest.fixture
def environment(tree: Path, sandbox: Sandbox) -> dict[str, str]:
    """The environment of the image, and the variables that its operator sets."""
    given = {name: below(tree, value) for name, value in stages()[1].environment.items()}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    return {
        **given,
        "PATH": given["PATH"].replace("$PATH", os.environ["PATH"]),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "AUTOENHANCE_API_BASE": sandbox.api_base,
        "AUTOENHANCE_API_KEY": sandbox.api_key,
        "ALLOW_PRIVATE_UPSTREAM": "true",
    }


@pytest.fixture
async def container(tree: Path, environment: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """The entry point, started by the image's user if the tests run as root."""
    stage = stages()[1]
    command = [*json.loads(stage.last("ENTRYPOINT")), *json.loads(stage.last("CMD"))]
    user, group = map(int, stage.last("USER").split(":"))
    unnamed = {"user": user, "group": group, "extra_groups": []} if os.geteuid() == 0 else {}
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        cwd=tree,
        stdout=asyncio.subprocess.PIPE,
        **unnamed,  # type: ignore[arg-type]
    )
    assert process.stdout is not None
    line = await process.stdout.readline()
    assert b"service.started" in line, line
    draining = asyncio.create_task(process.stdout.read())
    yield process
    if process.returncode is None:
        process.kill()
    await draining
    await process.wait()


async def test_image_serves_archives(
    environment: dict[str, str],
    container: asyncio.subprocess.Process,
    client: aiohttp.ClientSession,
) -> None:
    """The built service passes its health check, serves an archive, and exits with 0 on its stop signal."""
    stage = stages()[1]
    service = f"http://127.0.0.1:{environment['PORT']}"
    assert len(await download(client, images_url(service, DEMO_ORDER_ID))) == 14
    check = json.loads(re.findall(r"CMD (\[.+\])", stage.last("HEALTHCHECK"))[0])
    checking = await asyncio.create_subprocess_exec(*check, env=environment, stdout=asyncio.subprocess.DEVNULL)
    assert await checking.wait() == 0
    async with client.get(service) as response:
        assert response.status == 200, "the page is in the package"
    container.send_signal(signal.Signals[stage.last("STOPSIGNAL")])
    assert await container.wait() == 0
    checking = await asyncio.create_subprocess_exec(
        *check, env=environment, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    assert await checking.wait() == 1


def test_image_has_no_build_tools(tree: Path) -> None:
    """The final stage has neither the package manager nor the builder."""
    installed = packages_in(tree / "opt" / "batch")
    assert "autoenhance_batch" in installed
    assert installed & {"pip", "setuptools", "hatchling", "pytest", "pillow"} == set()
    assert [words for name, words in stages()[1].steps if name == "COPY"] == ["--from=build /opt/batch /opt/batch"]


def test_image_removes_the_package_manager_of_its_base(tmp_path: Path) -> None:
    """The final stage removes the package manager of the base image."""
    base = tmp_path / "base"
    subprocess.run([_interpreter(), "-m", "venv", str(base)], check=True, timeout=60)
    assert "pip" in packages_in(base)
    commands = [words for name, words in stages()[1].steps if name == "RUN"]
    for command in commands:
        environment = {**os.environ, "PATH": f"{base}/bin:{os.environ['PATH']}"}
        subprocess.run(["sh", "-euc", command], env=environment, check=True, capture_output=True, timeout=60)
    assert packages_in(base) == set()


def packages_in(environment: Path) -> set[str]:
    """Return the names of the packages of a virtual environment."""
    found = environment.glob("lib/python*/site-packages/*.dist-info")
    return {path.name.split("-")[0].lower() for path in found}
