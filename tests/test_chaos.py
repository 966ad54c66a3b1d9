"""The chaos run, short and seeded; and its judge, shown every flaw there is."""

import hashlib
import io
import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from service.archive.report import MANIFEST_NAME, REPORT_NAME
from service.sandbox import Kind
from tests.archives import jpeg
from tests.chaos.checks import judge
from tests.chaos.evidence import Arrived, Asked, Ending, Expected, Finding, Flaw, Outcome, Verdict
from tests.chaos.run import Plan, run
from tests.chaos.scenario import Scenario, make_scenario
from tests.chaos.second_reader import complaint_of, find_unzip
from tests.chaos.tally import Tally

FORMATS = ["avif", "jpeg", "jxl", "png", "webp"]


async def test_nothing_is_lost_in_chaos(nothing_left_behind: None) -> None:
    """Whatever goes wrong, each image is delivered bit-exact or reported, and every way to recover is used."""
    del nothing_left_behind
    tally = await run(Plan(seed=4, seconds=60, archives=32, clients=8))
    assert tally.flaws == {}, tally.table()
    assert sum(tally.outcomes.values()) == 32
    assert min(tally.outcomes[outcome] for outcome in (Outcome.COMPLETE, Outcome.PARTIAL, Outcome.REFUSED)) > 0
    assert tally.images["delivered"] > 100
    for step in ("tried again from the start", "resumed by range", "resumed by replay", "rolled back"):
        assert tally.recoveries[step] > 0, tally.table()
    missing = {kind.value for kind in Kind} - tally.faults.keys()
    assert len(missing) <= 3, missing


# The scenarios


def test_scenarios_can_be_repeated() -> None:
    """The same seed and number give the same scenario, another number or seed another one."""

    def comparable(scenario: Scenario) -> str:
        # A gate is a new object each time, and shows its address.
        return re.sub(r" at 0x[0-9a-f]+", "", repr(scenario))

    assert comparable(make_scenario(1, 5, FORMATS)) == comparable(make_scenario(1, 5, FORMATS))
    ids = {make_scenario(seed, number, FORMATS).order_id for seed in range(3) for number in range(20)}
    assert len(ids) == 60


def test_scenarios_hold_every_kind_of_fault() -> None:
    """Every kind is drawn at every hop where the sandbox knows it, and so are all the ways to ask and to read."""
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
    assert any(scenario.manners.leave_after_bytes is not None for scenario in scenarios)
    assert any(scenario.changes for scenario in scenarios)


# The judge


@dataclass
class Case:
    """An archive of three images, of which the last may be missing, told as it should be; tests then spoil it."""

    missing: bool = False
    bodies: list[bytes] = field(default_factory=lambda: [jpeg(400, n) for n in range(3)])
    entries: list[tuple[str, bytes]] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    total: str = "3"
    report: str = ""
    asked: Asked = field(default_factory=lambda: Asked(()))
    spoil_zip: Callable[[bytes], bytes] = bytes

    def __post_init__(self) -> None:
        here = self.bodies[:2] if self.missing else self.bodies
        grounds = [(), (), ("storage: silence",) if self.missing else ()]
        self.asked = Asked(
            tuple(
                Expected(f"id{n}", f"room {n}", frozenset({_sha256(body), f"changed {n}"}), grounds[n])
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

    def verdict(self) -> Verdict:
        """Let the judge see it."""
        told = [(REPORT_NAME, self.report.encode())] if self.report else []
        told += [(MANIFEST_NAME, json.dumps(self.manifest).encode())] if self.manifest else []
        body = self.spoil_zip(_zip([*self.entries, *told]))
        headers = {"x-total-images": self.total}
        return judge(self.asked, Arrived(Ending.CLEAN, 200, headers, bytearray(body), self.trailers))


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
        warnings.simplefilter("ignore")  # zipfile does not like a name twice either
        for name, data in entries:
            archive.writestr(name, data)
    return file.getvalue()


def _flaws(verdict: Verdict) -> set[Flaw]:
    return {finding.flaw for finding in verdict.findings}


def test_judge_accepts_a_complete_archive() -> None:
    """Nothing is found in an archive that is right."""
    assert Case().verdict() == Verdict(Outcome.COMPLETE, frozenset({"id0", "id1", "id2"}))


def test_judge_accepts_a_partial_archive() -> None:
    """A missing image which is reported, with grounds, is no flaw."""
    assert Case(missing=True).verdict() == Verdict(Outcome.PARTIAL, frozenset({"id0", "id1"}), {"id2": "timeout"})


def test_judge_accepts_any_version_that_was_offered() -> None:
    """An image which the storage has changed may arrive as either version."""
    case = Case()
    other = jpeg(400, 99)
    images = case.asked.images
    both = replace(images[1], versions=images[1].versions | {_sha256(other)})
    case.asked = replace(case.asked, images=(images[0], both, images[2]))
    case.entries[1] = ("room 1.jpg", other)
    case.manifest["images"][1] = _downloaded(1, other)
    assert case.verdict().outcome is Outcome.COMPLETE


def lose_silently(case: Case) -> None:
    """The plainest loss: no entry, no word, and numbers that fit."""
    case.entries.pop()
    case.report, case.manifest = "", {}
    case.asked = replace(case.asked, manifest_always=False)
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
    image = case.asked.images[1]
    both = replace(image, versions=image.versions | {_sha256(other)})
    case.asked = replace(case.asked, images=(case.asked.images[0], both, case.asked.images[2]))
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


def reported_unasked(case: Case) -> None:
    case.manifest["images"].append(_failed(7))


def failed_with_an_entry(case: Case) -> None:
    case.manifest["images"][2] |= {"outcome": "failed", "reason": "timeout"}


def damage_the_zip(case: Case) -> None:
    case.spoil_zip = lambda data: data.replace(case.bodies[1], case.bodies[0])


def cut_the_zip(case: Case) -> None:
    case.spoil_zip = lambda data: data[:-30]


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
    ("spoil", "flaw"),
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
        (reported_too, Flaw.GROUNDLESS),
        (reported_twice, Flaw.CONTRADICTION),
        (reported_unasked, Flaw.CONTRADICTION),
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
def test_judge_finds(spoil: Callable[[Case], None], flaw: Flaw) -> None:
    """Each way in which an archive can be wrong is found, and makes it a failure."""
    case = Case()
    spoil(case)
    verdict = case.verdict()
    assert flaw in _flaws(verdict)
    assert verdict.outcome is Outcome.FAILED


def test_judge_finds_a_clean_end_instead_of_a_break() -> None:
    """When all or nothing was asked for, a partial archive must not end cleanly."""
    case = Case(missing=True)
    case.asked = replace(case.asked, abort=True)
    assert _flaws(case.verdict()) == {Flaw.ABORT_IGNORED}


GOOD = Expected("a", "a", frozenset())
POOR = Expected("b", "b", frozenset(), ("storage: reset",), "[storage: reset]")
FAILED_B = [{"image_id": "b", "reason": "timeout"}]


@pytest.mark.parametrize(
    ("asked", "ending", "flaws"),
    [
        pytest.param(Asked((POOR,)), Ending.BROKEN, {Flaw.BROKEN}, id="no abort was asked for"),
        pytest.param(Asked((POOR,), abort=True), Ending.BROKEN, set(), id="abort"),
        pytest.param(Asked((GOOD,), abort=True), Ending.BROKEN, {Flaw.BROKEN}, id="abort without grounds"),
        pytest.param(Asked((GOOD,)), Ending.HUNG, {Flaw.HUNG}, id="hung"),
        pytest.param(Asked((GOOD,)), Ending.LEFT, set(), id="left"),
    ],
)
def test_judge_of_transfers_without_an_end(asked: Asked, ending: Ending, flaws: set[Flaw]) -> None:
    """A transfer may break only where the caller has asked for that and something went wrong."""
    assert _flaws(judge(asked, Arrived(ending, 200))) == flaws


@pytest.mark.parametrize(
    ("asked", "status", "slug", "failures", "flaws"),
    [
        pytest.param(Asked((POOR,)), 422, "no-images-available", FAILED_B, set(), id="all failed"),
        pytest.param(Asked((POOR, GOOD)), 422, "no-images-available", FAILED_B, {Flaw.LOST}, id="one left out"),
        pytest.param(Asked((POOR, GOOD), abort=True), 422, "no-images-available", FAILED_B, set(), id="abort"),
        pytest.param(Asked((POOR,), abort=True), 422, "no-images-available", [], {Flaw.GROUNDLESS}, id="none named"),
        pytest.param(Asked((replace(POOR, grounds=()),)), 422, "no-images-available", FAILED_B, {Flaw.GROUNDLESS},
                     id="nothing wrong"),
        pytest.param(Asked((POOR,)), 504, "first-byte-timeout", [], set(), id="late"),
        pytest.param(Asked((POOR, replace(GOOD, seen="[x]"))), 504, "first-byte-timeout", [], {Flaw.GROUNDLESS},
                     id="late without need"),
        pytest.param(Asked((), order_grounds=("reset",)), 502, "upstream-failed", [], set(), id="order"),
        pytest.param(Asked(()), 502, "upstream-failed", [], {Flaw.GROUNDLESS}, id="order without grounds"),
        pytest.param(Asked((), order_grounds=("x",)), 500, "internal-error", [], {Flaw.GROUNDLESS}, id="own fault"),
    ],
)  # fmt: skip
def test_judge_of_problem_documents(
    asked: Asked, status: int, slug: str, failures: list[dict[str, str]], flaws: set[Flaw]
) -> None:
    """A refusal needs grounds, and must name every image it concerns."""
    document = {"status": status, "type": f"/problems/{slug}", "failures": failures}
    body = bytearray(json.dumps(document).encode())
    assert _flaws(judge(asked, Arrived(Ending.CLEAN, status, body=body))) == flaws


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"status": 502, "type": 7}'])
def test_judge_of_answers_that_are_no_problem_documents(body: bytes) -> None:
    """An error that is not in the documented shape is a flaw."""
    assert _flaws(judge(Asked(()), Arrived(Ending.CLEAN, 502, body=bytearray(body)))) == {Flaw.UNREADABLE}


async def test_second_reader_complains() -> None:
    """Info-ZIP accepts a good archive and refuses a damaged one."""
    if (unzip := find_unzip()) is None:
        pytest.skip("unzip is not installed")
    good = _zip([("1.jpg", jpeg(400, 1))])
    assert await complaint_of(unzip, good) is None
    assert "CRC" in str(await complaint_of(unzip, good.replace(jpeg(400, 1), jpeg(400, 2))))


# The table


def test_findings_can_be_reproduced_from_the_table() -> None:
    """A finding's line names archive, order and image, how to repeat it, and what the storage saw."""
    scenario = make_scenario(3, 8, FORMATS)
    tally = Tally(seed=3)
    asked = Asked((Expected("a", "a", frozenset(), seen="[storage: reset 200]"),))
    verdict = Verdict(Outcome.FAILED, findings=(Finding(Flaw.LOST, "neither delivered nor reported", "a"),))
    tally.add(scenario, asked, verdict)
    *_, line, seen = tally.table().splitlines()
    assert line == (
        f"lost: neither delivered nor reported (archive 8, order {scenario.order_id}, image a; --seed 3 --only 8)"
    )
    assert seen.strip() == "[storage: reset 200]"
    assert tally.flaws == {Flaw.LOST: 1}
