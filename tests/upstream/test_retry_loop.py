"""The retry loop: how many attempts it makes, and what it reports."""

import pytest

from service.model import Failure, Reason
from service.upstream.retry import AttemptFailed
from service.upstream.retry_loop import RetryLoop

BUSY = Failure(Reason.UPSTREAM_ERROR, "the upstream responded with status 503", 503)


class Script:
    """An operation that raises its failures in order, and then succeeds."""

    def __init__(self, *failures: AttemptFailed) -> None:
        self._failures = list(failures)
        self.calls = 0
        self.reported: list[tuple[AttemptFailed, int]] = []

    async def attempt(self) -> str:
        """Make one attempt."""
        self.calls += 1
        if self._failures:
            raise self._failures.pop(0)
        return "done"

    def on_retry(self, error: AttemptFailed, attempts: int) -> None:
        """Record a report."""
        self.reported.append((error, attempts))


def without_jitter(max_attempts: int) -> RetryLoop:
    """Return a loop that does not pause."""
    return RetryLoop(max_attempts, chance=lambda: 0.0)


async def test_loop_returns_the_first_success() -> None:
    """Failures before it are reported with the number of attempts made."""
    first, second = AttemptFailed(BUSY), AttemptFailed(BUSY)
    script = Script(first, second)
    assert await without_jitter(3).run(script.attempt, script.on_retry) == "done"
    assert script.calls == 3
    assert script.reported == [(first, 1), (second, 2)]


async def test_loop_raises_the_last_failure() -> None:
    """The last of all attempts raises its own failure, which is not reported as retried."""
    failures = [AttemptFailed(BUSY) for _ in range(3)]
    script = Script(*failures)
    with pytest.raises(AttemptFailed) as caught:
        await without_jitter(2).run(script.attempt, script.on_retry)
    assert caught.value is failures[1]
    assert script.reported == [(failures[0], 1)]


async def test_loop_does_not_retry_a_final_failure() -> None:
    """A failure that is not retryable is raised at once."""
    script = Script(AttemptFailed(BUSY, retryable=False))
    with pytest.raises(AttemptFailed):
        await without_jitter(5).run(script.attempt, script.on_retry)
    assert (script.calls, script.reported) == (1, [])


def test_free_attempt_is_not_counted() -> None:
    """Attempts that are not consumed pause as after the first, and never end the loop."""
    loop = RetryLoop(2, chance=lambda: 0.5)
    failed = AttemptFailed(BUSY)
    pauses = [loop.pause_seconds(failed, consumes_attempt=False) for _ in range(3)]
    assert pauses == [loop.pause_seconds(failed)] * 3
    assert loop.pause_seconds(failed) is None


def test_pause_respects_retry_after() -> None:
    """Retry-After is the least pause."""
    assert without_jitter(2).pause_seconds(AttemptFailed(BUSY, retry_after_seconds=3.0)) == 3.0
