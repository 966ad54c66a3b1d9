"""Whether the upstream as a whole counts as failing. A pure decision; the clock is passed in.

It informs readiness and a metric and stops nothing: orders are still tried, which is how its end is noticed.
"""

from collections.abc import Callable

# The 5 images that one archive has in flight fail 15 times before each is given up (3 tries): with fewer than that, the
# bad moment of one archive would take the whole instance out of the proxy's list.
OPEN_AFTER_FAILURES = 20
# How long after the last failure: a few health checks of a proxy, so that it notices, and then traffic returns even
# if nothing was tried in between.
OPEN_SECONDS = 30.0


class UpstreamHealth:
    """Counts the failures in a row of the process's requests to API and asset server.

    States: closed, then open after ``OPEN_AFTER_FAILURES``; closed again by any success, or ``OPEN_SECONDS`` after
    the last failure.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures_in_row = 0
        self._open_until = 0.0

    def succeeded(self) -> None:
        """Note that the upstream does its part."""
        self._failures_in_row = 0

    def failed(self) -> None:
        """Note a failure: no connection, a time-out, or an answer of 5xx."""
        self._failures_in_row += 1
        self._open_until = self._clock() + OPEN_SECONDS

    @property
    def is_open(self) -> bool:
        """Whether the upstream counts as failing now."""
        return self._failures_in_row >= OPEN_AFTER_FAILURES and self._clock() < self._open_until
