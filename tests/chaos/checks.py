"""Judges one archive: what was asked for and offered, against what arrived. Pure.

The one rule: nothing the service says is believed. An entry belongs to the image whose content it holds; names,
manifest, report, headers and trailers are then compared with that.
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
from tests.chaos.evidence import Arrived, Asked, Ending, Expected, Finding, Flaw, Outcome, Verdict

_REPORT_COUNTS = re.compile(r"^(\d+) of (\d+) images are in this archive\.$", re.MULTILINE)
# What zipfile raises for archives that are none: besides its own error whatever their wrong numbers lead to.
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, IndexError, RuntimeError,
)  # fmt: skip
_NO_FAULT_NEEDED = Reason.UPSTREAM_UNAVAILABLE  # other images' faults are enough


def judge(asked: Asked, arrived: Arrived) -> Verdict:
    """Return what became of an archive and everything that is wrong with it."""
    match arrived.ending:
        case Ending.LEFT:
            return Verdict(Outcome.LEFT)
        case Ending.HUNG:
            return Verdict(Outcome.FAILED, findings=(Finding(Flaw.HUNG, f"{len(arrived.body)} bytes came"),))
        case Ending.BROKEN:
            return _broken(asked, arrived)
        case Ending.CLEAN if arrived.status == 200:
            return _Archive(asked, arrived).verdict()
        case _:
            return _Problem(asked, arrived).verdict()


def _broken(asked: Asked, arrived: Arrived) -> Verdict:
    if asked.abort and arrived.status == 200 and any(image.grounds for image in asked.images):
        return Verdict(Outcome.ABORTED)
    flaw = Finding(Flaw.BROKEN, f"status {arrived.status}, {len(arrived.body)} bytes, {arrived.detail}")
    return Verdict(Outcome.FAILED, findings=(flaw,))


class _Case:
    """What both kinds of answer have in common: images reported, and findings."""

    def __init__(self, asked: Asked, arrived: Arrived) -> None:
        self.asked = asked
        self.arrived = arrived
        self.images = {image.image_id: image for image in asked.images}
        self.reported: dict[str, str] = {}
        self.findings: list[Finding] = []

    def find(self, flaw: Flaw, detail: str, image_id: str = "") -> None:
        self.findings.append(Finding(flaw, detail, image_id))

    def report(self, image_id: str, reason: str) -> None:
        """Take note that an image was reported missing."""
        if image_id in self.reported:
            self.find(Flaw.CONTRADICTION, "reported twice", image_id)
        self.reported[image_id] = reason
        image = self.images.get(image_id)
        if image is None:
            self.find(Flaw.CONTRADICTION, "reported, but not asked for", image_id)
        elif not image.grounds and reason != _NO_FAULT_NEEDED:
            self.find(Flaw.GROUNDLESS, f"reported as {reason} though nothing went wrong", image_id)
        if reason not in list(Reason):
            self.find(Flaw.REASON, f"there is no reason {reason!r}", image_id)


class _Problem(_Case):
    """An answer other than 200."""

    def verdict(self) -> Verdict:
        try:
            document = json.loads(self.arrived.body)
            status, kind = document["status"], document["type"].rpartition("/")[2]
            failures = [(one["image_id"], one["reason"]) for one in document.get("failures", ())]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self.find(Flaw.UNREADABLE, f"problem document with status {self.arrived.status}: {error!r}")
            return Verdict(Outcome.FAILED, findings=tuple(self.findings))
        if status != self.arrived.status:
            self.find(Flaw.COUNTS, f"the problem document says {status}, the response {self.arrived.status}")
        for failure in failures:
            self.report(*failure)
        self._check_grounds(kind)
        outcome = Outcome.FAILED if self.findings else Outcome.REFUSED
        return Verdict(outcome, reported=self.reported, findings=tuple(self.findings))

    def _check_grounds(self, kind: str) -> None:
        if kind == "no-images-available":
            if not self.reported:
                self.find(Flaw.GROUNDLESS, "nothing to deliver, and nothing reported")
            for image_id in () if self.asked.abort else self.images.keys() - self.reported.keys():
                self.find(Flaw.LOST, "not in the problem document", image_id)
        elif kind == "first-byte-timeout":
            for image in self.asked.images:
                if image.seen and not image.grounds:
                    self.find(Flaw.GROUNDLESS, "no first byte, though it was asked for undisturbed", image.image_id)
        elif self.arrived.status == 500 or not self.asked.order_grounds:
            self.find(Flaw.GROUNDLESS, f"status {self.arrived.status} ({kind}) though nothing went wrong")


class _Archive(_Case):
    """A transfer with a clean end."""

    def __init__(self, asked: Asked, arrived: Arrived) -> None:
        super().__init__(asked, arrived)
        self.entries: dict[str, bytes] = {}
        self.owners: dict[str, str] = {}
        self.delivered: Counter[str] = Counter()
        self.corrupt: set[str] = set()

    def verdict(self) -> Verdict:
        if self._open():
            self._match_entries()
            self._read_manifest()
            self._check_each_image()
            self._check_numbers()
        outcome = Outcome.PARTIAL if self.reported else Outcome.COMPLETE
        if self.findings:
            outcome = Outcome.FAILED
        return Verdict(outcome, frozenset(self.delivered), self.reported, tuple(self.findings))

    def _open(self) -> bool:
        try:
            with zipfile.ZipFile(io.BytesIO(self.arrived.body)) as archive:
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
        by_content = {version: image for image in self.asked.images for version in image.versions}
        by_stem = {image.stem: image for image in self.asked.images}
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

    def _corrupt(self, name: str, data: bytes, namesake: Expected | None) -> None:
        image_id = namesake.image_id if namesake else ""
        self.corrupt.add(image_id)
        self.find(Flaw.CORRUPT, f"entry {name!r} of {len(data)} bytes is no version that was offered", image_id)

    def _read_manifest(self) -> None:
        if MANIFEST_NAME not in self.entries:
            if self.asked.manifest_always:
                self.find(Flaw.COUNTS, "there is no manifest though it was asked for")
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
        sha256 = hashlib.sha256(data).hexdigest() if self.asked.manifest_always else None
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
        if listed != [image.image_id for image in self.asked.images]:
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
        self.delivered += Counter()  # asking for an image has put a zero there
        if self.asked.abort and self.reported:
            self.find(Flaw.ABORT_IGNORED, f"a clean end with {len(self.reported)} images missing")

    def _check_numbers(self) -> None:
        images, failed, total = len(self._images_in), len(self.reported), len(self.images)
        trailers = {"x-downloaded": str(images), "x-failed": str(failed)}
        if self.arrived.trailers != trailers:
            self.find(Flaw.COUNTS, f"the trailers are {self.arrived.trailers}, right is {trailers}")
        if self.arrived.headers.get("x-total-images") != str(total):
            self.find(Flaw.COUNTS, f"X-Total-Images is not {total}")
        report = self.entries.get(REPORT_NAME)
        stated = _REPORT_COUNTS.search(report.decode("utf-8", "replace")) if report is not None else None
        if MANIFEST_NAME in self.entries and (stated is None or stated.groups() != (str(images), str(total))):
            self.find(Flaw.COUNTS, f"the report does not say {images} of {total}")
