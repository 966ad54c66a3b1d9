"""The number of downloads at a time: grows by one, halves, and stays within its bounds."""

from hypothesis import given
from hypothesis import strategies as st

from service.streaming.window import DownloadWindow


def test_grows_by_one_for_each_image_that_left_nothing_to_send() -> None:
    """Until the maximum; an image that ends while others are buffered changes nothing."""
    window = DownloadWindow(2, 4)
    sizes = []
    for starved in (True, False, True, True):
        window.image_ended(starved=starved)
        sizes.append(window.size)
    assert sizes == [3, 3, 4, 4]


def test_halves_once_for_each_generation() -> None:
    """Downloads that ran together report the same congestion; one that began after it reports another."""
    window = DownloadWindow(8, 8)
    before = window.generation
    window.congested(before)
    window.congested(before)
    assert window.size == 4
    window.congested(window.generation)
    assert window.size == 2


def test_one_download_may_always_run() -> None:
    """An upstream that is congested is still tried."""
    window = DownloadWindow(1, 8)
    for _ in range(3):
        window.congested(window.generation)
    assert window.size == 1
    window.image_ended(starved=True)
    assert window.size == 2


def test_initial_size_is_allowed_whatever_the_maximum() -> None:
    """``IMAGES_IN_FLIGHT`` above ``MAX_IMAGES_IN_FLIGHT`` is a window that does not grow."""
    window = DownloadWindow(8, 4)
    window.image_ended(starved=True)
    assert window.size == 8


@given(st.integers(1, 64), st.integers(1, 256), st.lists(st.sampled_from(["starved", "fed", "old", "new"])))
def test_size_stays_within_its_bounds(initial: int, maximum: int, events: list[str]) -> None:
    """Whatever happens, at least one download and at most the maximum."""
    window = DownloadWindow(initial, maximum)
    for event in events:
        if event in {"starved", "fed"}:
            window.image_ended(starved=event == "starved")
        else:
            window.congested(window.generation - (event == "old"))
        assert 1 <= window.size <= max(initial, maximum)
