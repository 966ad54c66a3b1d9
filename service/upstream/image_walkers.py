"""Finds where an image ends inside its own file, without decoding it.

Each walker is fed the bytes of one file, in order and in chunks of any size. It skips segments, chunks and boxes
by their declared lengths, and keeps at most a few bytes of the previous chunk. Bytes behind the end change nothing:
phones append videos, encoders pad.
"""

import re

from service.upstream.image_formats import AVIF, JPEG, JXL_CONTAINER, PNG, WEBP, ImageFormat

# A skip that no file reaches the end of: what follows cannot be walked.
_NEVER = 1 << 64


class Walker:
    """Walks a file whose format has no detectable end, such as a bare JPEG XL codestream."""

    def __init__(self, ended: bool | None = None) -> None:  # noqa: FBT001 - one value, named as what it is
        self._ended = ended
        self._skip = 0
        self._carry = b""

    def has_ended(self) -> bool | None:
        """Whether the image's own end has been seen; ``None`` if its format cannot show it."""
        return self._ended

    def feed(self, chunk: bytes) -> None:
        """Process the next bytes of the file."""
        if self._ended is not False:
            return
        if self._skip >= len(chunk):
            self._skip -= len(chunk)
            return
        data = self._carry + chunk if self._carry else chunk
        at, self._skip, self._carry = self._skip, 0, b""
        while at < len(data) and self._ended is False:
            following = self._read(data, at)
            if following is None:
                self._carry = data[at:]
                return
            at = following
        self._skip = max(0, at - len(data))

    def _read(self, data: bytes, at: int) -> int | None:
        """Return the offset behind the item at ``at``, also beyond ``data``; ``None`` if more bytes are needed.

        ``data`` is then kept from ``at`` on: at most a header.
        """
        del at
        return len(data)


class _JpegWalker(Walker):
    """ITU-T T.81 B.1.1: segments declare their length; scan data has no marker but RSTn, because FF is stuffed as FF00.

    The thumbnail of an EXIF segment, an image of its own with its own end, is skipped with the segment.

    Searching all of the scan data costs 0.8 ms per MiB, seven times its CRC-32. So a large chunk whose last FFs are all
    stuffed, but for an end of image behind them, counts as scan data up to there. Were there an earlier end of image in
    it, nothing behind that would stuff its FFs, unless it is another JPEG, which has an end too.
    """

    # Markers without a length (TEM, RSTn, SOI), stuffed and fill bytes are no marker to stop at.
    _MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
    _START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
    _STUFFED = frozenset(bytes([code]) for code in (0, *range(0xD0, 0xD8)))
    _LARGE_CHUNK_BYTES, _SAMPLED_FFS = 16 * 1024, 8

    def __init__(self) -> None:
        super().__init__(ended=False)
        self._scanned = False

    def _skip_scan(self, data: bytes, at: int) -> int:
        """Return up to where a sample of large ``data`` shows only scan data: to its end, or to an end of image."""
        if not self._scanned or len(data) - at < self._LARGE_CHUNK_BYTES:
            return at
        scan_end = sampled = len(data)
        for _ in range(self._SAMPLED_FFS):
            sampled = data.rfind(b"\xff", at, sampled)
            if sampled < 0:
                return scan_end  # there are no others
            code = data[sampled + 1 : sampled + 2]
            if code == b"\xd9" and scan_end == len(data):
                scan_end = sampled
            elif code not in self._STUFFED:
                return at
        return scan_end

    def _read(self, data: bytes, at: int) -> int | None:
        at = self._skip_scan(data, at)
        if at == len(data):
            return at
        found = self._MARKER.search(data, at)
        if found is None:
            # The last byte may be the first half of a marker.
            end = len(data) - data.endswith(b"\xff")
            return end if end > at else None
        start, code = found.start(), data[found.start() + 1]
        if code == self._END_OF_IMAGE:
            self._ended = self._scanned
            return start + 2
        length = data[start + 2 : start + 4]
        if len(length) < 2:  # noqa: PLR2004 - the field's own size
            return start if start > at else None
        self._scanned = self._scanned or code == self._START_OF_SCAN
        return start + 2 + max(len(length), int.from_bytes(length))


class _PngWalker(Walker):
    """PNG section 5.3: a signature of 8 bytes, then chunks of length, type, data and CRC up to IEND."""

    _IEND = b"\0\0\0\0IEND\xaeB`\x82"

    def __init__(self) -> None:
        super().__init__(ended=False)
        self._skip = 8

    def _read(self, data: bytes, at: int) -> int | None:
        start = data[at : at + len(self._IEND)]
        if self._IEND.startswith(start):
            self._ended = start == self._IEND
            return at + len(start) if self._ended else None
        length = start[:4]
        return at + len(self._IEND) + int.from_bytes(length) if len(length) == 4 else None  # noqa: PLR2004


class _WebpWalker(Walker):
    """RFC 9649 section 2.3: the RIFF header declares the size of all that follows its first 8 bytes."""

    _HEADER_BYTES = 8
    # With the form type and one chunk header. Writers that do not know the size yet leave a zero.
    _LEAST_BYTES = 20

    def __init__(self) -> None:
        super().__init__(ended=False)
        self._is_last_byte = False

    def _read(self, data: bytes, at: int) -> int | None:
        if self._is_last_byte:
            self._ended = True
            return at + 1
        header = data[at : at + self._HEADER_BYTES]
        if len(header) < self._HEADER_BYTES:
            return None
        size = int.from_bytes(header[4:], "little") + self._HEADER_BYTES
        if size < self._LEAST_BYTES:
            self._ended = None
        self._is_last_byte = True
        return at + size - 1


class _BoxWalker(Walker):
    """ISO/IEC 14496-12 section 4.2: boxes of size, type and payload; here those at the top level of a file.

    The image is complete with the last byte of its data, if its description is complete too. The boxes listed here
    may follow, and then must be complete as well; anything else is behind the end. AVIF has both its data (``mdat``)
    and its description (``meta``, of a sequence ``moov``) in boxes; JPEG XL (ISO/IEC 18181-2 section 9) has its
    codestream in ``jxlc``, or in several ``jxlp`` of which the last is marked as such.
    """

    _AVIF = frozenset({b"mdat", b"meta", b"moov", b"moof", b"mfra", b"sidx", b"free", b"skip", b"uuid", b"mpvd"})
    _JXL = frozenset({b"jxlc", b"jxlp", b"jxll", b"jxli", b"jbrd", b"jumb", b"Exif", b"xml ", b"brob"})
    _BOXES = _AVIF | _JXL
    _TO_THE_END, _LARGE = 0, 1  # sizes with a meaning of their own

    def __init__(self) -> None:
        super().__init__(ended=False)
        self._described = self._has_data = False

    def has_ended(self) -> bool | None:
        """Whether data and description are complete, and no box is incomplete."""
        if self._ended is False:
            return self._described and self._has_data and not self._skip
        return self._ended

    def _read(self, data: bytes, at: int) -> int | None:
        header = data[at : at + 8]
        if len(header) < 8:  # noqa: PLR2004 - size and type
            return None
        size, box_type, payload = int.from_bytes(header[:4]), header[4:], at + 8
        if size == self._LARGE:
            payload += 8
            if len(data) < payload:
                return None
            size = int.from_bytes(data[at + 8 : payload])
        is_box = at + size >= payload or size == self._TO_THE_END
        if self._described and self._has_data and not (is_box and box_type in self._BOXES):
            self._ended = True
            return len(data)
        if box_type == b"jxlp" and len(data) <= payload:
            return None
        self._record_box(box_type, data[payload : payload + 1])
        if is_box and size == self._TO_THE_END and self._described and self._has_data:
            self._ended = None
        return at + size if is_box and size != self._TO_THE_END else at + _NEVER

    def _record_box(self, box_type: bytes, first: bytes) -> None:
        self._described |= box_type in {b"meta", b"moov", b"jxlc", b"jxlp"}
        # The first bit of a part's number marks the last one.
        self._has_data |= box_type in {b"mdat", b"jxlc"} or (box_type == b"jxlp" and first >= b"\x80")


def new_walker(image_format: ImageFormat, start: bytes) -> Walker:
    """Return a walker for a file of this format that starts with ``start``. It has not been fed these bytes yet."""
    if image_format is JPEG:
        return _JpegWalker()
    if image_format is PNG:
        return _PngWalker()
    if image_format is WEBP:
        return _WebpWalker()
    if image_format is AVIF or start.startswith(JXL_CONTAINER):
        return _BoxWalker()
    return Walker()
