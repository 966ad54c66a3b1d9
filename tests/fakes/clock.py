"""A monotonic clock that tests control."""


class FakeClock:
    """A clock that moves only by ``sleep``; calling it returns the time in seconds."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Move the clock, and record by how much."""
        self.slept.append(seconds)
        self.now += seconds
