"""Entry and archive names that are safe, unique and readable on Linux, macOS and Windows.

A name depends only on the names before it in the order, never on which download finishes first.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote

from pathvalidate import FileNameSanitizer

# Leaves room for a folder within Windows' 260 characters. Common file systems allow 255 bytes.
MAX_NAME_BYTES = 200
MAX_EXTENSION_BYTES = len(".jpeg")
MAX_STEM_BYTES = MAX_NAME_BYTES - MAX_EXTENSION_BYTES
# A stem is shortened by this much before it is numbered, for any number: stems that become equal when shortened then
# share one counter, and numbering stays linear.
_NUMBER_BYTES = len("_99999")

FALLBACK_STEM = "image"
# The archive's own entries. Their extensions differ from any image's, but equal stems would confuse.
RESERVED_STEMS = ("_download_report", "_manifest")

_ARCHIVE_SUFFIX = "_images.zip"

_IMAGE_EXTENSION = re.compile(
    r"\.(jpe?g|jpe|jfif|png|webp|avif|jxl|hei[cf]|tiff?|gif|bmp|dng|raw"
    r"|cr[23w]|nef|nrw|arw|sr[2fw]|raf|rw2|orf|pef|rwl|3fr|fff|iiq|x3f|insp)$",
    re.IGNORECASE,
)

_ZWJ = "\N{ZERO WIDTH JOINER}"
_EMOJI = "\u2190-\u2bff\U0001f000-\U0001faff"
_EMOJI_ZWJ = re.compile(f"(?<=[{_EMOJI}\ufe0f]){_ZWJ}(?=[{_EMOJI}])")
_SKIN_TONES = frozenset("\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff")
# Invisible, yet letters or marks by their Unicode category: the grapheme joiner and the Hangul fillers.
_BLANK = frozenset("\u034f\u115f\u1160\u3164\uffa0")

# pathvalidate knows what Windows and macOS forbid. The encoding is explicit because its default is the machine's. The
# length limit is the widest because ours, which respects graphemes, is applied first.
_PORTABLE = FileNameSanitizer(
    max_len=255,
    fs_encoding="utf-8",
    platform="universal",
    additional_reserved_names=("CONIN$", "CONOUT$"),
)


# UAX #15 section 13 (stream-safe text): no language needs more marks on a letter. Normalisation sorts the marks of a
# letter in quadratic time.
MAX_MARKS_IN_A_ROW = 30

# Fast path: names like these, the most common, pass every rule unchanged. It costs 2 µs a name, all rules cost 50 µs,
# and the 2,000 names of an order must not delay other downloads.
_PLAIN_STEM = re.compile(
    r"(?!(?:con|prn|aux|nul|com[0-9]|lpt[0-9])$)[a-z0-9_](?:[a-z0-9_ ()+,-]*[a-z0-9_()+,-])?", re.ASCII | re.IGNORECASE
)


def entry_stems(names: Sequence[str]) -> list[str]:
    """Assign every name a unique stem (a file name without extension), in the same order.

    The stems differ even on file systems that ignore case and Unicode normalisation. A name that repeats an earlier one
    is numbered ``_2``, ``_3``, … with the lowest number that is free at its position.
    """
    used = {_identity(stem) for stem in RESERVED_STEMS}
    next_number: dict[str, int] = {}
    return [_unique(_image_stem(name), used, next_number) for name in names]


def entry_name(stem: str, extension: str) -> str:
    """Join a stem of ``entry_stems`` and the extension (no dot) of the image's real type."""
    return f"{stem}.{extension}"


def archive_filename(order_name: str, order_id: str) -> str:
    """Name the archive after its order, or after the order's id if nothing of the name is readable."""
    limit = MAX_NAME_BYTES - len(_ARCHIVE_SUFFIX)
    # An order's name is a title, not a path: in "12/14 High Street" the slash becomes "_", and nothing is dropped.
    stem = _portable_stem(visible(order_name), limit)
    if not stem.strip("_-. "):
        stem = _portable_stem(f"order_{visible(order_id)}", limit)
    return stem + _ARCHIVE_SUFFIX


def content_disposition(filename: str) -> str:
    """Build a ``Content-Disposition`` header value for old and new browsers (RFC 6266 section 4.3)."""
    name = visible(filename)
    # Without "%", which some browsers decode inside the quoted form (RFC 6266 appendix D), and without ";", at which
    # some clients split despite the quotes.
    fallback = re.sub(r"[^ !#$&-:<-\[\]-~]+", "_", _without_accents(name))
    encoded = quote(name, safe="!#$&+-.^_`|~")  # the attr-char of RFC 8187 section 3.2.1
    return f"attachment; filename=\"{fallback}\"; filename*=UTF-8''{encoded}"


def visible(text: str) -> str:
    """Remove invisible characters; return one line in Unicode's composed form (NFC).

    White space becomes a plain space. Control, bidi and zero-width characters are removed, except the joiners inside
    emoji. Characters that cannot be encoded or are not assigned become ``_``. A letter keeps its first
    ``MAX_MARKS_IN_A_ROW`` marks.
    """
    # A surrogate pair is one character; a lone surrogate cannot be written to a file name.
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    emoji_joiners = {match.start() for match in _EMOJI_ZWJ.finditer(whole)}
    pieces = (_ZWJ if at in emoji_joiners else _visible_char(char) for at, char in enumerate(whole))
    # Last, because a removed character may have separated a letter from its accent.
    return unicodedata.normalize("NFC", "".join(_with_few_marks(pieces)))


def _with_few_marks(chars: Iterable[str]) -> Iterator[str]:
    marks = 0
    for char in filter(None, chars):
        marks = marks + 1 if unicodedata.category(char).startswith("M") else 0
        if marks <= MAX_MARKS_IN_A_ROW:
            yield char


def _visible_char(char: str) -> str:
    if char.isspace():
        return " "
    category = unicodedata.category(char)
    if char == "\N{REPLACEMENT CHARACTER}" or category == "Cn":
        return "_"
    return "" if category in {"Cc", "Cf"} or char in _BLANK else char


def _image_stem(name: str) -> str:
    plain = _IMAGE_EXTENSION.sub("", name)
    if len(plain) <= MAX_STEM_BYTES and _PLAIN_STEM.fullmatch(plain):
        return plain
    return _sanitized_stem(name)


def _sanitized_stem(name: str) -> str:
    stem = _IMAGE_EXTENSION.sub("", _last_part(visible(name)).rstrip(" ."))
    return _portable_stem(stem, MAX_STEM_BYTES) or FALLBACK_STEM


def _last_part(path: str) -> str:
    parts = [part for part in re.split(r"[/\\]", path) if part.strip(" .")]
    return re.sub(r"^[A-Za-z]:", "", parts[-1]) if parts else ""


def _portable_stem(text: str, limit: int) -> str:
    # A leading dot hides a file, and a leading space confuses. Windows drops spaces and dots at the end, and reads
    # "CON .x" as the device CON: so no space before the first dot either.
    stem = re.sub(r"^([^.]*?) +\.", r"\1.", _shorten(text.lstrip(" ."), limit))
    # Shortened again: a reserved name has grown by an underscore, which this does not cut off.
    return _shorten(_PORTABLE.sanitize(stem, "_"), limit)


def _shorten(text: str, limit: int) -> str:
    """Cut to ``limit`` bytes of UTF-8, if possible not between a letter and its marks, never after " " or "."."""
    fitting = text.encode()[:limit].decode(errors="ignore")
    end = len(fitting)
    while 0 < end < len(text) and _belong_together(text[end - 1], text[end]):
        end -= 1
    return (text[:end] or fitting).rstrip(" .")


def _belong_together(left: str, right: str) -> bool:
    return _ZWJ in (left, right) or right in _SKIN_TONES or unicodedata.category(right).startswith("M")


def _unique(stem: str, used: set[str], next_number: dict[str, int]) -> str:
    if (identity := _identity(stem)) not in used:
        used.add(identity)
        return stem
    base = _shorten(stem, MAX_STEM_BYTES - _NUMBER_BYTES)
    identity = _identity(base)
    # Names are only added, so a used number stays used.
    number = next_number.get(identity, 2)
    while f"{identity}_{number}" in used:
        number += 1
    next_number[identity] = number + 1
    used.add(f"{identity}_{number}")
    return f"{base}_{number}"


def _identity(stem: str) -> str:
    """Map names that some file system treats as equal to one string (Unicode D145, canonical caseless match)."""
    return stem.lower() if stem.isascii() else _decomposed(_decomposed(stem).casefold())


def _decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def _without_accents(text: str) -> str:
    # Compatibility forms: "ﬁ" becomes "fi". A full-width quotation mark becomes a real one, so escaping comes later.
    letters = unicodedata.normalize("NFKD", text)
    return "".join(char for char in letters if not unicodedata.combining(char))
