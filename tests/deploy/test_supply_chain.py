"""The packages of a deployment: locked, listed with their licences, and in a bill of materials."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.shipped import DEPLOY

ROOT = DEPLOY.parent
LOCKS = sorted(DEPLOY.glob("*.lock"))


def locked(path: Path) -> dict[str, str]:
    """Return the packages of a lock file that are installed on this machine, with their versions."""
    lines = re.findall(r"^([a-z0-9._-]+)==([^\s;]+)(?: ; (.+?))? \\$", path.read_text("utf-8"), re.MULTILINE)
    return {name: number for name, number, marker in lines if not marker or Marker(marker).evaluate()}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_locked_packages_have_hashes(path: Path) -> None:
    """Every package has hashes, and the file has no address of an index."""
    text = path.read_text("utf-8")
    blocks = re.split(r"\n(?=[a-z])", text.strip())
    assert all("--hash=sha256:" in block and "==" in block for block in blocks)
    assert not re.search(r"https?://|file:|--index|--find-links", text)


def resolved(requirements: list[str]) -> set[str]:
    """Return the packages that these requirements install on this machine, with their dependencies."""
    found: set[str] = set()
    waiting = [(Requirement(one), "") for one in requirements]
    while waiting:
        requirement, of_extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": of_extra}):
            continue
        name = canonicalize_name(requirement.name)
        known = name in found
        found.add(name)
        if not known or requirement.extras:
            below = [Requirement(one) for one in requires(name) or ()]
            waiting += [(one, extra) for one in below for extra in ("", *requirement.extras)]
    return found


def test_lock_is_fresh() -> None:
    """The lock files have exactly what pyproject.toml needs."""
    loaded = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    project = loaded["project"]
    locked_requirements = {
        "requirements-build.lock": loaded["dependency-groups"]["build"],
        "requirements.lock": [*project["dependencies"], *project["optional-dependencies"]["sentry"]],
        "requirements-dev.lock": [
            *project["dependencies"],
            *project["optional-dependencies"]["sandbox"],
            *project["optional-dependencies"]["dev"],
        ],
    }
    for name, requirements in locked_requirements.items():
        packages = locked(DEPLOY / name)
        for requirement in map(Requirement, requirements):
            assert requirement.specifier.contains(packages[requirement.name]), requirement
        assert set(packages) == resolved(requirements), name


def test_installed_versions_are_locked_versions() -> None:
    """The tests run with the versions that a deployment gets."""
    packages = locked(DEPLOY / "requirements.lock")
    assert {name: version(name) for name in packages} == packages


def test_licences() -> None:
    """The list has every package of a deployment in its locked version, and a licence for each."""
    text = (DEPLOY / "LICENCES.md").read_text("utf-8")
    rows = re.findall(r"^\| (\S+) +\| (\S+) +\| (.+?) +\| ", text, re.MULTILINE)[1:]
    listed = {name.lower().replace("_", "-"): number for name, number, _ in rows}
    assert listed == locked(DEPLOY / "requirements.lock")
    assert all("UNKNOWN" not in licence for _, _, licence in rows)


def test_bill_of_materials(tmp_path: Path) -> None:
    """`make sbom` lists every locked package with its version."""
    make = shutil.which("make")
    assert make is not None
    subprocess.run(
        [make, "sbom", f"BIN={Path(sys.executable).parent}", "STAMP=/dev/null", f"DIST={tmp_path}"],
        cwd=ROOT, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    components = json.loads((tmp_path / "sbom.json").read_text("utf-8"))["components"]
    found = {one["name"]: one["version"] for one in components}
    assert found.items() >= locked(DEPLOY / "requirements.lock").items()
