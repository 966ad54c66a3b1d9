"""The upstream's health, by its consecutive failures: a circuit breaker that reports and stops nothing.

It informs readiness and a metric. Orders are still tried, which is how the end of an outage is noticed. A pure
decision; the clock is passed in.
"""

from collections.abc import Callable

# The 5 images that one archive has in flight fail 15 times before each is given up (3 attempts). With a lower
# threshold, one archive's bad moment would take the whole instance out of the proxy's list.
FAILURE_THRESHOLD = 20
# How long after the last failure: a few health checks of a proxy, so that it notices. Then traffic returns even if
# nothing was tried in between.
FAILING_SECONDS = 30.0


class UpstreamHealth:
    """Counts consecutive failures of the process's requests to API and asset server.

    States: healthy, then failing after ``FAILURE_THRESHOLD`` failures. Healthy again after any success, or
    ``FAILING_SECONDS`` after the last failure.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._consecutive_failures = 0
        self._failing_until = 0.0

    def record_success(self) -> None:
        """Record a response other than 5xx."""
        self._consecutive_failures = 0

    def record_failure(self) -> None:
        """Record a failure: no connection, a timeout, or a 5xx response."""
        self._consecutive_failures += 1
        self._failing_until = self._clock() + FAILING_SECONDS

    @property
    def is_failing(self) -> bool:
        """Whether the upstream counts as failing now."""
        return self._consecutive_failures >= FAILURE_THRESHOLD and self._clock() < self._failing_until
