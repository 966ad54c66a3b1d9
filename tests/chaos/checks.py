"""Check one transfer against what was requested and offered. Pure, no I/O.

No statement of the service is trusted. An entry belongs to the image whose content it has; names, manifest, report,
headers and trailers are then compared with that.
"""

import hashlib
import io
import json
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from service.archive.report import MANIFEST_NAME, REPORT_NAME
from service.model import Reason
from tests.chaos.model import CheckResult, Ending, ExpectedArchive, ExpectedImage, Finding, Flaw, Outcome, Transfer

_REPORT_COUNTS = re.compile(r"^(\d+) of (\d+) images are in this archive\.$", re.MULTILINE)
# What zipfile raises for invalid archives: its own error, or one that wrong numbers lead to.
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, IndexError, RuntimeError,
)  # fmt: skip
_NEEDS_NO_FAULT = Reason.UPSTREAM_UNAVAILABLE  # faults of other images cause it


def check_transfer(expected: ExpectedArchive, transfer: Transfer) -> CheckResult:
    """Return the outcome of a transfer and all of its flaws."""
    match transfer.ending:
        case Ending.LEFT:
            return CheckResult(Outcome.LEFT)
        case Ending.HUNG:
            return CheckResult(Outcome.FAILED, findings=(Finding(Flaw.HUNG, f"{len(transfer.body)} bytes received"),))
        case Ending.BROKEN:
            return _broken(expected, transfer)
        case Ending.CLEAN if transfer.status == 200:
            return _ArchiveCheck(expected, transfer).result()
        case _:
            return _ProblemCheck(expected, transfer).result()


def _broken(expected: ExpectedArchive, transfer: Transfer) -> CheckResult:
    if expected.abort and transfer.status == 200 and any(image.causes for image in expected.images):
        return CheckResult(Outcome.ABORTED)
    flaw = Finding(Flaw.BROKEN, f"status {transfer.status}, {len(transfer.body)} bytes, {transfer.detail}")
    return CheckResult(Outcome.FAILED, findings=(flaw,))


class _Check:
    """Collects reported images and findings of one response."""

    def __init__(self, expected: ExpectedArchive, transfer: Transfer) -> None:
        self.expected = expected
        self.transfer = transfer
        self.images = {image.image_id: image for image in expected.images}
        self.reported: dict[str, str] = {}
        self.findings: list[Finding] = []

    def find(self, flaw: Flaw, detail: str, image_id: str = "") -> None:
        self.findings.append(Finding(flaw, detail, image_id))

    def report(self, image_id: str, reason: str) -> None:
        """Record that an image was reported missing."""
        if image_id in self.reported:
            self.find(Flaw.CONTRADICTION, "reported twice", image_id)
        self.reported[image_id] = reason
        image = self.images.get(image_id)
        if image is None:
            self.find(Flaw.CONTRADICTION, "reported, but not requested", image_id)
        elif not image.causes and reason != _NEEDS_NO_FAULT:
            self.find(Flaw.UNJUSTIFIED, f"reported as {reason} though nothing went wrong", image_id)
        if reason not in list(Reason):
            self.find(Flaw.REASON, f"there is no reason {reason!r}", image_id)


class _ProblemCheck(_Check):
    """Checks a response other than 200."""

    def result(self) -> CheckResult:
        try:
            document = json.loads(self.transfer.body)
            status, kind = document["status"], document["type"].rpartition("/")[2]
            failures = [(one["image_id"], one["reason"]) for one in document.get("failures", ())]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self.find(Flaw.UNREADABLE, f"problem document with status {self.transfer.status}: {error!r}")
            return CheckResult(Outcome.FAILED, findings=tuple(self.findings))
        if status != self.transfer.status:
            self.find(Flaw.COUNTS, f"the problem document says {status}, the response {self.transfer.status}")
        for failure in failures:
            self.report(*failure)
        self._check_causes(kind)
        outcome = Outcome.FAILED if self.findings else Outcome.REFUSED
        return CheckResult(outcome, reported=self.reported, findings=tuple(self.findings))

    def _check_causes(self, kind: str) -> None:
        if kind == "no-images-available":
            if not self.reported:
                self.find(Flaw.UNJUSTIFIED, "no images available, and none reported")
            for image_id in () if self.expected.abort else self.images.keys() - self.reported.keys():
                self.find(Flaw.LOST, "not in the problem document", image_id)
        elif kind == "first-byte-timeout":
            for image in self.expected.images:
                if image.requests and not image.causes:
                    self.find(Flaw.UNJUSTIFIED, "first byte timeout, though no fault delayed it", image.image_id)
        elif self.transfer.status == 500 or not self.expected.order_causes:
            self.find(Flaw.UNJUSTIFIED, f"status {self.transfer.status} ({kind}) though nothing went wrong")


class _ArchiveCheck(_Check):
    """Checks an archive whose transfer ended cleanly."""

    def __init__(self, expected: ExpectedArchive, transfer: Transfer) -> None:
        super().__init__(expected, transfer)
        self.entries: dict[str, bytes] = {}
        self.owners: dict[str, str] = {}
        self.delivered: Counter[str] = Counter()
        self.corrupt: set[str] = set()

    def result(self) -> CheckResult:
        if self._open():
            self._match_entries()
            self._read_manifest()
            self._check_each_image()
            self._check_numbers()
        outcome = Outcome.PARTIAL if self.reported else Outcome.COMPLETE
        if self.findings:
            outcome = Outcome.FAILED
        return CheckResult(outcome, frozenset(self.delivered), self.reported, tuple(self.findings))

    def _open(self) -> bool:
        try:
            with zipfile.ZipFile(io.BytesIO(self.transfer.body)) as archive:
                damaged = archive.testzip()
                repeated = [name for name, times in Counter(archive.namelist()).items() if times > 1]
                # Reading checks the CRC: what testzip() calls damaged raises here.
                self.entries = {name: archive.read(name) for name in archive.namelist()}
        except _UNREADABLE as error:
            self.find(Flaw.UNREADABLE, f"Python's zipfile: {error!r}")
            return False
        if damaged is not None:
            self.find(Flaw.UNREADABLE, f"Python's zipfile: {damaged!r} is damaged")
        for name in repeated:
            self.find(Flaw.TWICE, f"two entries are named {name!r}")
        return True

    @property
    def _images_in(self) -> dict[str, bytes]:
        return {name: data for name, data in self.entries.items() if name not in {REPORT_NAME, MANIFEST_NAME}}

    def _match_entries(self) -> None:
        by_content = {version: image for image in self.expected.images for version in image.versions}
        by_stem = {image.stem: image for image in self.expected.images}
        for name, data in self._images_in.items():
            namesake = by_stem.get(name.rpartition(".")[0])
            owner = by_content.get(hashlib.sha256(data).hexdigest())
            if owner is None:
                self._corrupt(name, data, namesake)
                continue
            self.owners[name] = owner.image_id
            self.delivered[owner.image_id] += 1
            if namesake is not owner:
                self.find(Flaw.MISNAMED, f"its content is in the entry {name!r}", owner.image_id)

    def _corrupt(self, name: str, data: bytes, namesake: ExpectedImage | None) -> None:
        image_id = namesake.image_id if namesake else ""
        self.corrupt.add(image_id)
        self.find(Flaw.CORRUPT, f"entry {name!r} of {len(data)} bytes is no version that was offered", image_id)

    def _read_manifest(self) -> None:
        if MANIFEST_NAME not in self.entries:
            if self.expected.manifest_always:
                self.find(Flaw.COUNTS, "the manifest that was requested is missing")
            if REPORT_NAME in self.entries:
                self.find(Flaw.COUNTS, "there is a report but no manifest")
            return
        try:
            document = json.loads(self.entries[MANIFEST_NAME])
            for image in document["images"]:
                self._read_manifest_image(image)
            self._check_manifest_counts(document)
        except (ValueError, TypeError, KeyError) as error:
            self.find(Flaw.UNREADABLE, f"the manifest: {error!r}")

    def _read_manifest_image(self, image: Mapping[str, Any]) -> None:
        image_id, name = image["image_id"], image["entry"]
        if image["outcome"] == "failed":
            self.report(image_id, image["reason"])
            if name is not None:
                self.find(Flaw.CONTRADICTION, f"failed, with the entry {name!r}", image_id)
        elif name not in self._images_in:
            self.find(Flaw.LOST, f"the manifest names an entry that is not there: {name!r}", image_id)
        else:
            if self.owners.get(name, image_id) != image_id:
                self.find(Flaw.MISNAMED, f"the manifest says it is {name!r}, which is another image", image_id)
            self._check_sums(image, self.entries[name])

    def _check_sums(self, image: Mapping[str, Any], data: bytes) -> None:
        sha256 = hashlib.sha256(data).hexdigest() if self.expected.manifest_always else None
        truth = {"size": len(data), "crc32": f"{zlib.crc32(data):08x}", "sha256": sha256}
        for name, value in truth.items():
            if image[name] != value:
                self.find(Flaw.CHECKSUM, f"{name} is {value}, the manifest says {image[name]}", image["image_id"])

    def _check_manifest_counts(self, document: Mapping[str, Any]) -> None:
        truth = {
            "total": len(self.images),
            "downloaded": len(self._images_in),
            "failed": len(self.reported),
            "bytes": sum(map(len, self._images_in.values())),
        }
        if document["counts"] != truth:
            self.find(Flaw.COUNTS, f"the manifest counts {document['counts']}, right is {truth}")
        listed = [image["image_id"] for image in document["images"]]
        if listed != [image.image_id for image in self.expected.images]:
            self.find(Flaw.COUNTS, "the manifest does not list each image once, in the order's order")
        if document["missing"] != [image_id for image_id in listed if image_id in self.reported]:
            self.find(Flaw.COUNTS, "the manifest's 'missing' does not list the failed images")
        if bool(document["retry_urls"]) is not bool(self.reported):
            self.find(Flaw.COUNTS, f"with {len(self.reported)} missing there are {document['retry_urls']}")

    def _check_each_image(self) -> None:
        for image_id in self.images:
            times = self.delivered[image_id]
            if times > 1:
                self.find(Flaw.TWICE, f"it is in {times} entries", image_id)
            if times and image_id in self.reported:
                self.find(Flaw.CONTRADICTION, f"delivered, and reported as {self.reported[image_id]}", image_id)
            if not times and image_id not in self.reported and image_id not in self.corrupt:
                self.find(Flaw.LOST, "neither delivered nor reported", image_id)
        self.delivered += Counter()  # reading a missing key has added a zero
        if self.expected.abort and self.reported:
            self.find(Flaw.ABORT_IGNORED, f"a clean end with {len(self.reported)} images missing")

    def _check_numbers(self) -> None:
        images, failed, total = len(self._images_in), len(self.reported), len(self.images)
        trailers = {"x-downloaded": str(images), "x-failed": str(failed)}
        if self.transfer.trailers != trailers:
            self.find(Flaw.COUNTS, f"the trailers are {self.transfer.trailers}, right is {trailers}")
        if self.transfer.headers.get("x-total-images") != str(total):
            self.find(Flaw.COUNTS, f"X-Total-Images is not {total}")
        report = self.entries.get(REPORT_NAME)
        stated = _REPORT_COUNTS.search(report.decode("utf-8", "replace")) if report is not None else None
        if MANIFEST_NAME in self.entries and (stated is None or stated.groups() != (str(images), str(total))):
            self.find(Flaw.COUNTS, f"the report does not say {images} of {total}")
