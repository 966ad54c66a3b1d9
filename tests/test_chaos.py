"""A short, seeded chaos run; and its checks, given every flaw there is."""

import hashlib
import io
import json
import os
import re
import shutil
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from service.archive.report import MANIFEST_NAME, REPORT_NAME
from service.sandbox import Kind
from tests.archives import jpeg
from tests.chaos.checks import check_transfer
from tests.chaos.model import CheckResult, Ending, ExpectedArchive, ExpectedImage, Finding, Flaw, Outcome, Transfer
from tests.chaos.run import chaos
from tests.chaos.scenario import Scenario, make_scenario
from tests.chaos.tally import Tally, events_of
from tests.chaos.unzip_check import find_unzip, unzip_error
from tests.deploy.observer import observing
from tests.deploy.totals import ReceivedTotals, check_numbers, wait_for_archives

FORMATS = ["avif", "jpeg", "jxl", "png", "webp"]
CHAOS_SEED, CHAOS_ARCHIVES, CHAOS_CLIENTS = 4, 32, 8
# Counted and logged at the same moment: event and method of the log, query of the metric.
COUNTED_AND_LOGGED = {
    ("image.retried", ""): "sum(batch_image_retries_total)",
    ("image.resumed", "range"): 'sum(batch_image_resumes_total{method="range"})',
    ("image.resumed", "replay"): 'sum(batch_image_resumes_total{method="replay"})',
    ("image.rolled_back", ""): "sum(batch_image_rollbacks_total)",
    ("archive.finished", ""): "sum(batch_archives_total)",
}


async def test_chaos_loses_no_image(client: aiohttp.ClientSession, tmp_path: Path) -> None:
    """Under random faults each image arrives bit-exact or is reported, every recovery is used, and all numbers match.

    The archives that a client receives to the end come first, because Prometheus's numbers can be compared with
    those. Then come those that are aborted or left.
    """
    totals = ReceivedTotals()
    async with AsyncExitStack() as stack:
        runner = await stack.enter_async_context(chaos(CHAOS_SEED, CHAOS_CLIENTS))
        observer = None
        if shutil.which("prometheus") or os.environ.get("CI"):
            observer = await stack.enter_async_context(observing(client, runner.service.url, tmp_path))
            await observer.scrapes.next()
        scenarios = [runner.scenario(number) for number in range(1, CHAOS_ARCHIVES + 1)]
        complete = [one for one in scenarios if not one.abort and one.behaviour.leave_after_bytes is None]
        for transfer in await runner.run_all(complete):
            totals.add(transfer.status, bytes(transfer.body))
        if observer is not None:
            await check_numbers(totals, observer)
        await runner.run_all(one for one in scenarios if one not in complete)
        counted = {}
        if observer is not None:
            await wait_for_archives(observer, CHAOS_ARCHIVES)
            counted = {event: await observer.query(query) for event, query in COUNTED_AND_LOGGED.items()}
    tally = runner.tally
    assert tally.flaws == {}, tally.table()
    assert sum(tally.outcomes.values()) == CHAOS_ARCHIVES
    assert min(tally.outcomes[outcome] for outcome in (Outcome.COMPLETE, Outcome.PARTIAL, Outcome.REFUSED)) > 0
    assert tally.images["delivered"] > 100
    for step in ("tried again from the start", "resumed by range", "resumed by replay", "rolled back"):
        assert tally.recoveries[step] > 0, tally.table()
    missing = {kind.value for kind in Kind} - tally.faults.keys()
    assert len(missing) <= 3, missing
    assert len(totals.images) >= 5, totals.images
    assert totals.archives.keys() >= {"complete", "partial", "rejected"}, totals.archives
    if observer is not None:
        logged = Counter((str(one["event"]), str(one.get("method", ""))) for one in events_of(runner.service.lines))
        assert counted == {event: {(): logged[event]} for event in COUNTED_AND_LOGGED}
        assert all(logged[event] for event in COUNTED_AND_LOGGED)


# The scenarios


def test_scenarios_are_reproducible() -> None:
    """The same seed and number give the same scenario, other ones give another."""

    def comparable(scenario: Scenario) -> str:
        # A gate is a new object each time; its repr has its address.
        return re.sub(r" at 0x[0-9a-f]+", "", repr(scenario))

    assert comparable(make_scenario(1, 5, FORMATS)) == comparable(make_scenario(1, 5, FORMATS))
    ids = {make_scenario(seed, number, FORMATS).order_id for seed in range(3) for number in range(20)}
    assert len(ids) == 60


def test_scenarios_cover_every_fault() -> None:
    """Every kind of fault is drawn at every hop that supports it, and so is every option and client behaviour."""
    scenarios = [make_scenario(1, number, FORMATS) for number in range(200)]
    images = [image for scenario in scenarios for image in scenario.images]
    at_storage = {fault.kind for image in images for fault in image.storage if fault is not None}
    at_api = {fault.kind for image in images for fault in image.api if fault is not None}
    at_look_up = {fault.kind for scenario in scenarios for fault in scenario.look_ups if fault is not None}
    assert at_storage | at_look_up == set(Kind)
    assert at_storage == set(Kind) - {Kind.NOT_JSON, Kind.WRONG_SHAPE}
    assert at_api == {
        Kind.STATUS, Kind.RESET, Kind.STALL, Kind.PAUSE, Kind.SLOW_START, Kind.HTML, Kind.JSON,
        Kind.REDIRECT_LOOP, Kind.REDIRECT_MANY, Kind.REDIRECT_TO, Kind.REFUSED, Kind.CLOSE_REUSED,
    }  # fmt: skip
    assert {scenario.abort for scenario in scenarios} == {True, False}
    assert {scenario.rendering.get("format") for scenario in scenarios} == {None, *FORMATS}
    assert any(scenario.behaviour.leave_after_bytes is not None for scenario in scenarios)
    assert any(scenario.changes for scenario in scenarios)


# The checks


@dataclass
class Case:
    """A correct archive of three images, of which the last may be missing; tests then introduce a flaw."""

    missing: bool = False
    bodies: list[bytes] = field(default_factory=lambda: [jpeg(400, n) for n in range(3)])
    entries: list[tuple[str, bytes]] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    total: str = "3"
    report: str = ""
    expected: ExpectedArchive = field(default_factory=lambda: ExpectedArchive(()))
    change_zip: Callable[[bytes], bytes] = bytes

    def __post_init__(self) -> None:
        here = self.bodies[:2] if self.missing else self.bodies
        causes = [(), (), ("storage: stall",) if self.missing else ()]
        self.expected = ExpectedArchive(
            tuple(
                ExpectedImage(f"id{n}", f"room {n}", frozenset({_sha256(body), f"changed {n}"}), causes[n])
                for n, body in enumerate(self.bodies)
            ),
            manifest_always=True,
        )
        self.entries = [(f"room {n}.jpg", body) for n, body in enumerate(here)]
        failed = len(self.bodies) - len(here)
        self.trailers = {"x-downloaded": str(len(here)), "x-failed": str(failed)}
        self.report = f"{len(here)} of 3 images are in this archive."
        images = [_downloaded(n, body) for n, body in enumerate(here)]
        images += [_failed(n) for n in range(len(here), 3)]
        self.manifest = {
            "counts": {"total": 3, "downloaded": len(here), "failed": failed, "bytes": 400 * len(here)},
            "missing": ["id2"] if self.missing else [],
            "retry_urls": ["http://127.0.0.1/"] if self.missing else [],
            "images": images,
        }

    def result(self) -> CheckResult:
        """Return the result of the checks."""
        extra = [(REPORT_NAME, self.report.encode())] if self.report else []
        extra += [(MANIFEST_NAME, json.dumps(self.manifest).encode())] if self.manifest else []
        body = self.change_zip(_zip([*self.entries, *extra]))
        headers = {"x-total-images": self.total}
        return check_transfer(self.expected, Transfer(Ending.CLEAN, 200, headers, bytearray(body), self.trailers))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _downloaded(n: int, body: bytes) -> dict[str, Any]:
    sums = {"size": len(body), "crc32": f"{zlib.crc32(body):08x}", "sha256": _sha256(body)}
    return {"image_id": f"id{n}", "outcome": "downloaded", "entry": f"room {n}.jpg", "reason": None, **sums}


def _failed(n: int) -> dict[str, Any]:
    return {"image_id": f"id{n}", "outcome": "failed", "entry": None, "reason": "timeout"}


def _zip(entries: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile warns of a repeated name
        for name, data in entries:
            archive.writestr(name, data)
    return file.getvalue()


def _flaws(result: CheckResult) -> set[Flaw]:
    return {finding.flaw for finding in result.findings}


def test_checks_accept_a_complete_archive() -> None:
    """A correct archive has no findings."""
    assert Case().result() == CheckResult(Outcome.COMPLETE, frozenset({"id0", "id1", "id2"}))


def test_checks_accept_a_partial_archive() -> None:
    """A reported missing image with a cause is no flaw."""
    assert Case(missing=True).result() == CheckResult(Outcome.PARTIAL, frozenset({"id0", "id1"}), {"id2": "timeout"})


def test_checks_accept_any_offered_version() -> None:
    """An image that the storage has changed may arrive in either version."""
    case = Case()
    other = jpeg(400, 99)
    images = case.expected.images
    both = replace(images[1], versions=images[1].versions | {_sha256(other)})
    case.expected = replace(case.expected, images=(images[0], both, images[2]))
    case.entries[1] = ("room 1.jpg", other)
    case.manifest["images"][1] = _downloaded(1, other)
    assert case.result().outcome is Outcome.COMPLETE


def lose_silently(case: Case) -> None:
    """An unreported loss: no entry, no report, and consistent numbers."""
    case.entries.pop()
    case.report, case.manifest = "", {}
    case.expected = replace(case.expected, manifest_always=False)
    case.trailers = {"x-downloaded": "2", "x-failed": "0"}


def lose_in_trailers(case: Case) -> None:
    lose_silently(case)
    case.trailers = {"x-downloaded": "3", "x-failed": "0"}


def lose_the_entry(case: Case) -> None:
    case.entries.pop()


def lose_from_manifest(case: Case) -> None:
    case.manifest["images"].pop()


def flip_a_byte(case: Case) -> None:
    name, body = case.entries[1]
    case.entries[1] = (name, body[:200] + b"X" + body[201:])


def truncate(case: Case) -> None:
    name, body = case.entries[1]
    case.entries[1] = (name, body[:-1])


def mix_versions(case: Case) -> None:
    """Half of one version and half of the other, both offered."""
    other = jpeg(400, 99)
    image = case.expected.images[1]
    both = replace(image, versions=image.versions | {_sha256(other)})
    case.expected = replace(case.expected, images=(case.expected.images[0], both, case.expected.images[2]))
    case.entries[1] = ("room 1.jpg", case.bodies[1][:200] + other[200:])


def empty_an_entry(case: Case) -> None:
    case.entries[1] = ("room 1.jpg", b"")


def foreign_image(case: Case) -> None:
    case.entries.append(("room 9.jpg", jpeg(400, 9)))


def same_name_twice(case: Case) -> None:
    case.entries[2] = ("room 1.jpg", case.entries[2][1])


def same_image_twice(case: Case) -> None:
    case.entries.append(("room 1_2.jpg", case.entries[1][1]))


def swap_two(case: Case) -> None:
    (one, first), (two, second), *rest = case.entries
    case.entries = [(one, second), (two, first), *rest]


def reported_too(case: Case) -> None:
    case.manifest["images"][2] = _failed(2)


def reported_twice(case: Case) -> None:
    case.manifest["images"].append(_failed(2))


def report_unrequested(case: Case) -> None:
    case.manifest["images"].append(_failed(7))


def failed_with_an_entry(case: Case) -> None:
    case.manifest["images"][2] |= {"outcome": "failed", "reason": "timeout"}


def damage_the_zip(case: Case) -> None:
    case.change_zip = lambda data: data.replace(case.bodies[1], case.bodies[0])


def cut_the_zip(case: Case) -> None:
    case.change_zip = lambda data: data[:-30]


def manifest_is_no_json(case: Case) -> None:
    case.manifest = {"images": None}


def no_manifest(case: Case) -> None:
    case.manifest, case.report = {}, ""


def wrong_size(case: Case) -> None:
    case.manifest["images"][0]["size"] = 401


def wrong_crc(case: Case) -> None:
    case.manifest["images"][0]["crc32"] = "00000000"


def wrong_sha(case: Case) -> None:
    case.manifest["images"][0]["sha256"] = _sha256(b"")


def wrong_count(case: Case) -> None:
    case.manifest["counts"]["downloaded"] += 1


def wrong_bytes(case: Case) -> None:
    case.manifest["counts"]["bytes"] -= 1


def wrong_missing(case: Case) -> None:
    case.manifest["missing"] = ["id1"]


def wrong_order(case: Case) -> None:
    case.manifest["images"].reverse()


def wrong_trailers(case: Case) -> None:
    case.trailers["x-failed"] = "1"


def no_trailers(case: Case) -> None:
    case.trailers = {}


def wrong_total(case: Case) -> None:
    case.total = "4"


def wrong_report(case: Case) -> None:
    case.report = "2 of 3 images are in this archive."


def unknown_reason(case: Case) -> None:
    case.manifest["images"][2] |= {"outcome": "failed", "reason": "bad luck", "entry": None}


def retry_urls_for_nothing(case: Case) -> None:
    case.manifest["retry_urls"] = ["http://127.0.0.1/"]


@pytest.mark.parametrize(
    ("change", "flaw"),
    [
        (lose_silently, Flaw.LOST),
        (lose_in_trailers, Flaw.LOST),
        (lose_in_trailers, Flaw.COUNTS),
        (lose_the_entry, Flaw.LOST),
        (lose_from_manifest, Flaw.COUNTS),
        (flip_a_byte, Flaw.CORRUPT),
        (flip_a_byte, Flaw.CHECKSUM),
        (truncate, Flaw.CORRUPT),
        (mix_versions, Flaw.CORRUPT),
        (empty_an_entry, Flaw.CORRUPT),
        (foreign_image, Flaw.CORRUPT),
        (same_name_twice, Flaw.TWICE),
        (same_image_twice, Flaw.TWICE),
        (swap_two, Flaw.MISNAMED),
        (reported_too, Flaw.CONTRADICTION),
        (reported_too, Flaw.UNJUSTIFIED),
        (reported_twice, Flaw.CONTRADICTION),
        (report_unrequested, Flaw.CONTRADICTION),
        (failed_with_an_entry, Flaw.CONTRADICTION),
        (damage_the_zip, Flaw.UNREADABLE),
        (cut_the_zip, Flaw.UNREADABLE),
        (manifest_is_no_json, Flaw.UNREADABLE),
        (no_manifest, Flaw.COUNTS),
        (wrong_size, Flaw.CHECKSUM),
        (wrong_crc, Flaw.CHECKSUM),
        (wrong_sha, Flaw.CHECKSUM),
        (wrong_count, Flaw.COUNTS),
        (wrong_bytes, Flaw.COUNTS),
        (wrong_missing, Flaw.COUNTS),
        (wrong_order, Flaw.COUNTS),
        (wrong_trailers, Flaw.COUNTS),
        (no_trailers, Flaw.COUNTS),
        (wrong_total, Flaw.COUNTS),
        (wrong_report, Flaw.COUNTS),
        (unknown_reason, Flaw.REASON),
        (retry_urls_for_nothing, Flaw.COUNTS),
    ],
)
def test_checks_find_flaw(change: Callable[[Case], None], flaw: Flaw) -> None:
    """Each flaw of an archive is found and fails the check."""
    case = Case()
    change(case)
    result = case.result()
    assert flaw in _flaws(result)
    assert result.outcome is Outcome.FAILED


def test_checks_find_a_clean_end_with_abort() -> None:
    """With on_error=abort a partial archive must not end cleanly."""
    case = Case(missing=True)
    case.expected = replace(case.expected, abort=True)
    assert _flaws(case.result()) == {Flaw.ABORT_IGNORED}


GOOD = ExpectedImage("a", "a", frozenset())
POOR = ExpectedImage("b", "b", frozenset(), ("storage: reset",), "[storage: reset]")
FAILED_B = [{"image_id": "b", "reason": "timeout"}]


@pytest.mark.parametrize(
    ("expected", "ending", "flaws"),
    [
        pytest.param(ExpectedArchive((POOR,)), Ending.BROKEN, {Flaw.BROKEN}, id="abort not requested"),
        pytest.param(ExpectedArchive((POOR,), abort=True), Ending.BROKEN, set(), id="abort"),
        pytest.param(ExpectedArchive((GOOD,), abort=True), Ending.BROKEN, {Flaw.BROKEN}, id="abort without cause"),
        pytest.param(ExpectedArchive((GOOD,)), Ending.HUNG, {Flaw.HUNG}, id="hung"),
        pytest.param(ExpectedArchive((GOOD,)), Ending.LEFT, set(), id="left"),
    ],
)
def test_checks_of_incomplete_transfers(expected: ExpectedArchive, ending: Ending, flaws: set[Flaw]) -> None:
    """A transfer may be aborted only with on_error=abort and a fault."""
    assert _flaws(check_transfer(expected, Transfer(ending, 200))) == flaws


@pytest.mark.parametrize(
    ("expected", "status", "slug", "failures", "flaws"),
    [
        pytest.param(ExpectedArchive((POOR,)), 422, "no-images-available", FAILED_B, set(), id="all failed"),
        pytest.param(
            ExpectedArchive((POOR, GOOD)), 422, "no-images-available", FAILED_B, {Flaw.LOST}, id="one left out"
        ),
        pytest.param(
            ExpectedArchive((POOR, GOOD), abort=True), 422, "no-images-available", FAILED_B, set(), id="abort"
        ),
        pytest.param(
            ExpectedArchive((POOR,), abort=True), 422, "no-images-available", [], {Flaw.UNJUSTIFIED}, id="none named"
        ),
        pytest.param(
            ExpectedArchive((replace(POOR, causes=()),)),
            422,
            "no-images-available",
            FAILED_B,
            {Flaw.UNJUSTIFIED},
            id="nothing wrong",
        ),
        pytest.param(ExpectedArchive((POOR,)), 504, "first-byte-timeout", [], set(), id="late"),
        pytest.param(
            ExpectedArchive((POOR, replace(GOOD, requests="[x]"))),
            504,
            "first-byte-timeout",
            [],
            {Flaw.UNJUSTIFIED},
            id="late without need",
        ),
        pytest.param(ExpectedArchive((), order_causes=("reset",)), 502, "upstream-failed", [], set(), id="order"),
        pytest.param(ExpectedArchive(()), 502, "upstream-failed", [], {Flaw.UNJUSTIFIED}, id="order without cause"),
        pytest.param(
            ExpectedArchive((), order_causes=("x",)), 500, "internal-error", [], {Flaw.UNJUSTIFIED}, id="own fault"
        ),
    ],
)
def test_checks_of_problem_documents(
    expected: ExpectedArchive, status: int, slug: str, failures: list[dict[str, str]], flaws: set[Flaw]
) -> None:
    """A problem needs a cause and must list every image concerned."""
    document = {"status": status, "type": f"/problems/{slug}", "failures": failures}
    body = bytearray(json.dumps(document).encode())
    assert _flaws(check_transfer(expected, Transfer(Ending.CLEAN, status, body=body))) == flaws


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"status": 502, "type": 7}'])
def test_checks_of_malformed_problem_documents(body: bytes) -> None:
    """An error response that is no valid problem document is a flaw."""
    assert _flaws(check_transfer(ExpectedArchive(()), Transfer(Ending.CLEAN, 502, body=bytearray(body)))) == {
        Flaw.UNREADABLE
    }


async def test_unzip_rejects_a_damaged_archive() -> None:
    """Info-ZIP accepts a valid archive and rejects a damaged one."""
    if (unzip := find_unzip()) is None:
        pytest.skip("unzip is not installed")
    good = _zip([("1.jpg", jpeg(400, 1))])
    assert await unzip_error(unzip, good) is None
    assert "CRC" in str(await unzip_error(unzip, good.replace(jpeg(400, 1), jpeg(400, 2))))


# The table


def test_findings_can_be_reproduced_from_the_table() -> None:
    """The line of a finding has archive, order, image, the options to reproduce it, and the requests to the storage."""
    scenario = make_scenario(3, 8, FORMATS)
    tally = Tally(seed=3)
    expected = ExpectedArchive((ExpectedImage("a", "a", frozenset(), requests="[storage: reset 200]"),))
    result = CheckResult(Outcome.FAILED, findings=(Finding(Flaw.LOST, "neither delivered nor reported", "a"),))
    tally.add(scenario, expected, result)
    *_, line, requests = tally.table().splitlines()
    assert line == (
        f"lost: neither delivered nor reported (archive 8, order {scenario.order_id}, image a; --seed 3 --only 8)"
    )
    assert requests.strip() == "[storage: reset 200]"
    assert tally.flaws == {Flaw.LOST: 1}
