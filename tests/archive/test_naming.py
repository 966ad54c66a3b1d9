"""Entry and archive names: a table of uploaders' names, and the properties of any name."""

import re
import unicodedata
from collections.abc import Sequence
from email.message import Message
from email.utils import collapse_rfc2231_value
from string import printable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pathvalidate import validate_filename

from service.archive import naming
from service.archive.naming import (
    FALLBACK_STEM,
    MAX_NAME_BYTES,
    RESERVED_STEMS,
    archive_filename,
    content_disposition,
    entry_name,
    entry_stems,
    visible,
)

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"

# Random names, and building blocks that meet the rules' corner cases far more often than random text does.
CORNERS = [
    "CON",
    "aux",
    "com¹",
    ".",
    " ",
    "_2",
    "_",
    "/",
    "\\",
    "C:",
    "é",
    "e\u0301",
    "ß",
    "SS",
    "A",
    "a",
    ".jpg",
    "\0",
]
CORNERS += ["\u200d", "\u202e", "\ud800", "\n", "x" * 200, "\u0301" * 90, FAMILY, "_manifest", "İ", "ǆ", "\ufffe"]
names = st.one_of(
    st.text(st.characters(codec=None), max_size=300),
    st.lists(st.sampled_from(CORNERS), max_size=6).map("".join),
)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        pytest.param("kitchen.jpg", "kitchen", id="plain"),
        pytest.param("kitchen.HEIC", "kitchen", id="extension_any_case"),
        pytest.param("scan.CR2.jpg", "scan.CR2", id="one_extension_only"),
        pytest.param("kitchen.jpg ", "kitchen", id="space_after_extension"),
        pytest.param("St. John's kitchen", "St. John's kitchen", id="no_extension"),
        pytest.param("v1.final", "v1.final", id="unknown_extension"),
        pytest.param("", FALLBACK_STEM, id="empty"),
        pytest.param(".jpg", FALLBACK_STEM, id="extension_alone"),
        pytest.param("..", FALLBACK_STEM, id="parent"),
        pytest.param(" . ", FALLBACK_STEM, id="dots_and_spaces"),
        pytest.param("\u200b\u202e\0", FALLBACK_STEM, id="invisible"),
        pytest.param("../../etc/passwd", "passwd", id="traversal"),
        pytest.param("..\\..\\boot.png", "boot", id="traversal_windows"),
        pytest.param("rooms/kitchen/", "kitchen", id="trailing_slash"),
        pytest.param("C:\\Users\\me\\DSC_1.NEF", "DSC_1", id="windows_path"),
        pytest.param("C:DSC_1.NEF", "DSC_1", id="drive"),
        pytest.param(".hidden.png", "hidden", id="hidden"),
        pytest.param("a\nb\tc.jpg", "a b c", id="white_space"),
        pytest.param("a\0b\x1b[31mc.jpg", "ab[31mc", id="control"),
        pytest.param("photo\u202egpj.exe", "photogpj.exe", id="bidi"),
        pytest.param('ab:c*d?e"f<g>h|i.jpg', "ab_c_d_e_f_g_h_i", id="forbidden_on_windows"),
        pytest.param("con.jpg", "con_", id="device"),
        pytest.param("NUL.old.jpg", "NUL_.old", id="device_with_extension"),
        pytest.param("CON .jpg", "CON_", id="device_with_space"),
        pytest.param("aux .b.jpg", "aux_.b", id="device_space_extension"),
        pytest.param("CON" + " " * 300 + "x", "CON_", id="device_after_cut"),
        pytest.param("COM¹", "COM¹_", id="device_superscript"),
        pytest.param("conin$", "conin$_", id="device_console"),
        pytest.param("CONTACT.jpg", "CONTACT", id="device_as_beginning"),
        pytest.param("e\u200b\u0301.jpg", "é", id="composed_after_removal"),
        pytest.param(f"{FAMILY}.jpg", FAMILY, id="joiner_inside_emoji"),
        pytest.param("a\u200db.jpg", "ab", id="joiner_elsewhere"),
        pytest.param("\ud83d\ude00.jpg", "\U0001f600", id="surrogate_pair"),
        pytest.param("a\ud800.jpg", "a_", id="lone_surrogate"),
        pytest.param("_manifest.jpg", "_manifest_2", id="reserved_for_the_archive"),
        pytest.param("_DOWNLOAD_report", "_DOWNLOAD_report_2", id="reserved_any_case"),
    ],
)
def test_name_becomes_a_portable_stem(name: str, stem: str) -> None:
    """Any uploader's name becomes a stem that every system can write and people still recognise."""
    assert entry_stems([name]) == [stem]


@pytest.mark.parametrize(
    ("given_names", "stems"),
    [
        pytest.param(["a.jpg", "a.jpg", "a.png"], ["a", "a_2", "a_3"], id="equal"),
        pytest.param(["a.jpg", "A.JPG"], ["a", "A_2"], id="case"),
        pytest.param(["é", "e\u0301"], ["é", "é_2"], id="normalisation"),
        pytest.param(["straße", "STRASSE"], ["straße", "STRASSE_2"], id="case_folding"),
        pytest.param(["a", "a", "a_2"], ["a", "a_2", "a_2_2"], id="natural_name_dodges"),
        pytest.param(["a_2", "a", "a", "a"], ["a_2", "a", "a_3", "a_4"], id="number_dodges"),
        pytest.param(["a_3", "a", "a", "a"], ["a_3", "a", "a_2", "a_4"], id="lowest_free"),
        pytest.param(["", "???", ""], ["image", "___", "image_2"], id="fallbacks"),
    ],
)
def test_equal_names_are_numbered(given_names: list[str], stems: list[str]) -> None:
    """Names that some file system treats as equal are numbered in the order's order."""
    assert entry_stems(given_names) == stems


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        pytest.param("é" * 150, "é" * 97, id="no_half_character"),
        pytest.param("a" * 194 + "e\u0308\u0323", "a" * 194, id="no_letter_without_its_marks"),
        pytest.param("a" * 190 + FAMILY, "a" * 190, id="no_half_emoji"),
        pytest.param("a" * 194 + " b", "a" * 194, id="no_space_at_the_end"),
    ],
)
def test_long_name_is_cut_between_characters(name: str, kept: str) -> None:
    """A cut leaves no half of a character, of a letter with marks, or of an emoji."""
    assert entry_stems([name]) == [kept]


@given(st.lists(names, max_size=12))
def test_stems_are_unique_on_every_file_system(given_names: list[str]) -> None:
    """No two stems are equal without case and normalisation, and none equals the archive's own."""
    stems = [*entry_stems(given_names), *RESERVED_STEMS]

    assert len({_folded(stem) for stem in stems}) == len(given_names) + len(RESERVED_STEMS)


@given(st.lists(names, max_size=6))
def test_entry_names_are_portable(given_names: list[str]) -> None:
    """Every entry name is valid on all systems, composed, visible, and within the byte bound."""
    for stem in entry_stems(given_names):
        name = entry_name(stem, "jpeg")
        validate_filename(name, platform="universal", max_len=MAX_NAME_BYTES, fs_encoding="utf-8")
        validate_filename(stem, platform="universal", fs_encoding="utf-8")
        assert not stem.startswith((".", " "))
        assert unicodedata.is_normalized("NFC", name)
        assert visible(name) == name


@given(st.lists(names, max_size=8), st.integers(0, 8))
def test_stem_depends_only_on_earlier_names(given_names: list[str], length: int) -> None:
    """Adding images to an order's end renames no earlier image."""
    assert entry_stems(given_names[:length]) == entry_stems(given_names)[:length]


MANY = 40_000


@pytest.mark.parametrize(
    "given_names",
    [
        pytest.param(["a.jpg"] * MANY, id="equal"),
        pytest.param([f"{'x' * 300}{number}" for number in range(2000)], id="equal_when_cut"),
        pytest.param([f"{'x' * 190}{number % 1000:03}" for number in range(MANY)], id="equal_when_numbered"),
    ],
)
@pytest.mark.timeout(60)  # linear time takes seconds, quadratic time minutes
def test_numbering_takes_linear_time(given_names: Sequence[str]) -> None:
    """Very many names that are equal, from the start or once shortened, are numbered in one pass."""
    assert len(set(entry_stems(given_names))) == len(given_names)


@pytest.mark.parametrize(
    ("order_name", "filename"),
    [
        pytest.param("Villa Rosa", "Villa Rosa_images.zip", id="plain"),
        pytest.param("12/14 High Street", "12_14 High Street_images.zip", id="slash_in_a_title"),
        pytest.param("Villa.jpg", "Villa.jpg_images.zip", id="looks_like_a_file"),
        pytest.param("日本", "日本_images.zip", id="not_ascii"),
        pytest.param("", "order_77_images.zip", id="empty"),
        pytest.param("../..", "order_77_images.zip", id="only_path"),
        pytest.param("???", "order_77_images.zip", id="nothing_readable"),
    ],
)
def test_archive_is_named_after_its_order(order_name: str, filename: str) -> None:
    """The archive has its order's name, or the order's id if nothing of the name is readable."""
    assert archive_filename(order_name, "77") == filename


@given(names)
def test_archive_filename_is_portable(order_name: str) -> None:
    """Any order name makes an archive name that every system can write."""
    filename = archive_filename(order_name, "77")

    validate_filename(filename, platform="universal", max_len=MAX_NAME_BYTES, fs_encoding="utf-8")
    assert filename.endswith("_images.zip")


@pytest.mark.parametrize(
    ("filename", "fallback", "encoded"),
    [
        pytest.param("a b.zip", "a b.zip", "a%20b.zip", id="ascii"),
        pytest.param("Küche.zip", "Kuche.zip", "K%C3%BCche.zip", id="accent"),
        pytest.param("日本.zip", "_.zip", "%E6%97%A5%E6%9C%AC.zip", id="no_ascii_likeness"),
        pytest.param('a"; b\\c.zip', "a_ b_c.zip", "a%22%3B%20b%5Cc.zip", id="quote_and_backslash"),
        pytest.param("\uff02\uff3c.zip", "_.zip", "%EF%BC%82%EF%BC%BC.zip", id="becomes_quote_and_backslash"),
        pytest.param("a\r\nX: y.zip", "a  X: y.zip", "a%20%20X%3A%20y.zip", id="header_injection"),
        pytest.param("100%41.zip", "100_41.zip", "100%2541.zip", id="percent"),
        pytest.param("it's.zip", "it's.zip", "it%27s.zip", id="apostrophe"),
    ],
)
def test_content_disposition_has_both_forms_of_the_name(filename: str, fallback: str, encoded: str) -> None:
    """Neither form can break out of its quotes or parameter."""
    expected = f"attachment; filename=\"{fallback}\"; filename*=UTF-8''{encoded}"

    assert content_disposition(filename) == expected


@given(names)
def test_content_disposition_can_be_parsed(filename: str) -> None:
    """Any name makes one line of printable ASCII from which a standard parser reads the visible name."""
    value = content_disposition(filename)
    message = Message()
    message["Content-Disposition"] = re.sub(r' filename="[^"]*";', "", value)

    assert set(value) <= set(printable) - set("\r\n\t\x0b\x0c")
    assert value.count('"') == 2
    read = message.get_param("filename", header="Content-Disposition")
    assert isinstance(read, tuple)
    assert collapse_rfc2231_value(read) == visible(filename)


def _folded(stem: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())


@given(
    st.from_regex(r"[A-Za-z0-9_ ()+,.-]{0,12}(\.jpg|\.JPEG|\.cr2)?", fullmatch=True)
    | st.sampled_from(["con", "COM1.jpg", "lpt9", "nul.jpg", "aux ", "prn.x", "com10", "a" * 195, "a" * 196])
)
def test_fast_path_for_plain_names_changes_no_stem(name: str) -> None:
    """A plain name has the stem that all rules together give it: a name with a slash does not take the fast path."""
    assert entry_stems([name]) == entry_stems([f"/{name}"])


# Marks of different classes in the wrong order, and one that decomposes into two such marks.
MARKS = ["\u0301\u0323", "\u0301", "\u0f73", "\u0f73\u200b\u0301"]


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.timeout(30)  # sorting all marks takes minutes
def test_name_of_marks_is_shortened(marks: str) -> None:
    """A name of any length becomes a short one: the first marks of a letter stay, the others are removed."""
    name = "a" + marks * 200_000
    most = 1 + 2 * naming.MAX_MARKS_IN_A_ROW
    assert 1 < len(unicodedata.normalize("NFD", visible(name))) <= most
    (stem,) = entry_stems([name])
    assert 1 < len(unicodedata.normalize("NFD", stem)) <= most
    assert len(archive_filename(name, "order").encode()) <= MAX_NAME_BYTES
    assert content_disposition(archive_filename(name, "order")).isascii()


@given(st.text(st.sampled_from("a \u0301\u0323\u0f73\u200b\u200d\u0903\ufe0f\U0001f469"), max_size=400))
def test_letter_keeps_a_limited_number_of_marks(text: str) -> None:
    """No letter keeps more marks, also with invisible characters between them."""
    kept = "".join("M" if unicodedata.category(char).startswith("M") else "x" for char in visible(text))
    assert max(map(len, kept.split("x"))) <= 2 * naming.MAX_MARKS_IN_A_ROW
