"""Fixed-window rate limit of failed authentications, one window for each client address."""

from collections import OrderedDict
from collections.abc import Callable

# How long failures count, and how many addresses are remembered: a flood of addresses evicts the oldest.
FAILURE_WINDOW_SECONDS = 60.0
MAX_ADDRESSES = 10_000


class AuthFailureLimit:
    """Counts failed authentications by address, against brute force. ``clock`` counts seconds."""

    def __init__(self, max_per_window: int, clock: Callable[[], float]) -> None:
        self._max_per_window = max_per_window
        self._clock = clock
        # By address: when its window began, and the failures in it; the oldest window first.
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def retry_after_seconds(self, address: str) -> float:
        """Return how long an address is locked out; 0 if it is not."""
        began, count = self._failures.get(address, (0.0, 0))
        left = began + FAILURE_WINDOW_SECONDS - self._clock()
        return left if count >= self._max_per_window and left > 0 else 0.0

    def record_failure(self, address: str) -> None:
        """Count a failure."""
        now = self._clock()
        began, count = self._failures.get(address, (now, 0))
        if now >= began + FAILURE_WINDOW_SECONDS:
            began, count = now, 0
            self._failures.pop(address, None)
        self._failures[address] = began, count + 1
        while len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)
