"""Watch channels: one writer, many readers, only the latest state (tokio's ``sync::watch``).

Every change has the next version. A reader keeps the version that it has seen and waits for a newer one. It skips what
lay in between, so a slow reader holds up neither the writer nor the other readers, and there is no queue to bound.

Knows asyncio only. Not for use across threads.
"""

import asyncio
from collections.abc import Hashable
from itertools import takewhile
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")
KeyT = TypeVar("KeyT", bound=Hashable)


class Watch:
    """Announces changes of a state that its owner keeps. ``version`` counts them.

    States: open, then closed for good, with an error or without one.
    """

    def __init__(self) -> None:
        self.version = 0
        self.closed = False
        self._error: BaseException | None = None
        # Set and cleared in one step: an ``asyncio.Event`` forgets cancelled waiters without our help.
        self._change = asyncio.Event()

    def notify(self) -> None:
        """Advance the version and wake every reader. Does nothing once closed."""
        if not self.closed:
            self.version += 1
            self._wake()

    def close(self, error: BaseException | None = None) -> None:
        """End the channel: no version follows. The first call decides about ``error``."""
        if not self.closed:
            self.closed = True
            self._error = error
            self._wake()

    async def changed(self, seen: int) -> bool:
        """Wait for a version newer than ``seen``; return false if the channel was closed without one.

        Raises:
            BaseException: the error that the channel was closed with, if no newer version precedes it.
        """
        while self.version <= seen and not self.closed:
            await self._change.wait()
        if self.version > seen:
            return True
        if self._error is not None:
            raise self._error
        return False

    def _wake(self) -> None:
        self._change.set()
        self._change.clear()


class ValueWatch(Watch, Generic[ValueT]):
    """Holds the latest value."""

    def __init__(self, value: ValueT) -> None:
        super().__init__()
        self.value = value

    def send(self, value: ValueT) -> None:
        """Replace the value and wake every reader. Does nothing once closed."""
        if not self.closed:
            self.value = value
            self.notify()


class KeyWatch(Watch, Generic[KeyT]):
    """Records which parts of a state have changed, each under a key.

    A reconnecting reader gets the current state of everything changed since its version.
    """

    def __init__(self, version: int = 0) -> None:
        super().__init__()
        self.version = version
        self._versions: dict[KeyT, int] = {}  # of each key's last change, oldest first

    def mark(self, key: KeyT) -> None:
        """Record a change of ``key`` and wake every reader. Does nothing once closed."""
        if not self.closed:
            self._versions.pop(key, None)  # a dict keeps the order of insertion
            self._versions[key] = self.version + 1
            self.notify()

    def since(self, version: int) -> list[tuple[KeyT, int]]:
        """Return the keys changed after ``version`` with their last versions, oldest first."""
        newest_first = takewhile(lambda change: change[1] > version, reversed(self._versions.items()))
        return list(newest_first)[::-1]
