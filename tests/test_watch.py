"""Watch channels: readers wake on every change, skip what they missed, and leave nothing behind."""

import asyncio
import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.watch import KeyWatch, ValueWatch, Watch


def live_futures() -> int:
    """Return how many futures exist in the process."""
    gc.collect()
    return sum(isinstance(one, asyncio.Future) for one in gc.get_objects())


async def start_reader(watch: Watch, seen: int) -> asyncio.Task[bool]:
    """Start a task that waits for a version newer than ``seen``."""
    task = asyncio.create_task(watch.changed(seen))
    await asyncio.sleep(0)
    return task


async def test_notify_wakes_every_reader() -> None:
    """All readers of the current version return after one change."""
    watch = Watch()
    readers = [await start_reader(watch, 0) for _ in range(3)]
    assert not any(reader.done() for reader in readers)
    watch.notify()
    assert await asyncio.gather(*readers) == [True] * 3


async def test_reader_with_an_older_version_does_not_wait() -> None:
    """A reader that missed changes returns at once."""
    watch = Watch()
    for _ in range(3):
        watch.notify()
    for seen in range(-1, 3):
        assert (await start_reader(watch, seen)).done()
    assert not (last := await start_reader(watch, 3)).done()
    watch.notify()
    assert await last


async def test_reader_ahead_of_the_channel_waits_until_it_is_passed() -> None:
    """A wake-up alone is no newer version."""
    watch = Watch()
    reader = await start_reader(watch, 1)
    watch.notify()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not reader.done()
    watch.notify()
    assert await reader


async def test_reader_skips_values_in_between() -> None:
    """Several values sent while a reader was away are one change, to the latest of them."""
    watch = ValueWatch("a")
    reader = await start_reader(watch, watch.version)
    for value in "bcd":
        watch.send(value)
    assert await reader
    assert (watch.value, watch.version) == ("d", 3)


async def test_close_wakes_every_reader() -> None:
    """Waiting readers and later ones learn that no version follows."""
    watch = Watch()
    reader = await start_reader(watch, 0)
    watch.close()
    assert not await reader
    assert not await watch.changed(0)


async def test_version_before_the_end_is_still_read() -> None:
    """A reader gets the last version first, then the end."""
    watch = ValueWatch("a")
    watch.send("b")
    watch.close(ValueError("no more"))
    assert await watch.changed(0)
    with pytest.raises(ValueError, match="no more"):
        await watch.changed(1)


async def test_close_with_an_error_raises_it_in_every_reader() -> None:
    """The error of the first ``close`` counts."""
    watch = Watch()
    readers = [await start_reader(watch, 0) for _ in range(2)]
    watch.close(ValueError("broken"))
    watch.close()
    for reader in readers:
        with pytest.raises(ValueError, match="broken"):
            await reader


async def test_closed_channel_ignores_changes() -> None:
    """Neither version nor value nor keys change after the end."""
    values, keys = ValueWatch("a"), KeyWatch[str]()
    for watch in (values, keys):
        watch.close()
        watch.notify()
    values.send("b")
    keys.mark("b")
    assert (values.value, values.version) == ("a", 0)
    assert (keys.since(-1), keys.version) == ([], 0)


async def test_cancelled_readers_leave_nothing_behind() -> None:
    """Readers that time out while nothing changes do not pile up, and the others are woken all the same."""
    watch = Watch()
    staying = await start_reader(watch, 0)

    async def time_out(times: int) -> int:
        for _ in range(times):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await watch.changed(0)
        return live_futures()

    assert await time_out(10) == await time_out(100)
    watch.notify()
    assert await staying


async def test_woken_readers_leave_nothing_behind() -> None:
    """A reader that waits for one change after the other does not grow the channel."""
    watch = Watch()

    async def wait_and_notify(times: int) -> int:
        for _ in range(times):
            reader = await start_reader(watch, watch.version)
            watch.notify()
            assert await reader
        return live_futures()

    assert await wait_and_notify(10) == await wait_and_notify(100)


@given(st.lists(st.integers(0, 4), max_size=30), st.lists(st.integers(0, 4), max_size=30))
def test_since_returns_each_changed_key_once(before: list[int], after: list[int]) -> None:
    """Only keys changed after the version come, each with its last version, oldest first."""
    watch = KeyWatch[int](version=7)
    for key in before:
        watch.mark(key)
    seen = watch.version
    for key in after:
        watch.mark(key)
    last = {key: seen + number for number, key in enumerate(after, start=1)}
    assert watch.since(seen) == sorted(last.items(), key=lambda change: change[1])
    assert watch.version == 7 + len(before) + len(after)
    assert watch.since(watch.version) == []
