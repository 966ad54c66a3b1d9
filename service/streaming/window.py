"""How many images of one archive are fetched at a time: grows while the upstream is slow to respond. Pure.

Additive increase, multiplicative decrease, as TCP's congestion window (RFC 5681): where each image costs some round
trips, many at a time hide the latency; where images are large, a few fill the line, and more would only cost memory.
"""


class DownloadWindow:
    """The number of downloads at a time, from 1 to ``maximum``.

    ``generation`` counts the decreases: a download that began before one says nothing about the size after it.
    """

    def __init__(self, initial: int, maximum: int) -> None:
        self.size = initial
        self.maximum = max(initial, maximum)
        self.generation = 0

    def image_ended(self, *, starved: bool) -> None:
        """Take the end of a download; ``starved`` if nothing was left to send, and the client would have taken it."""
        if starved and self.size < self.maximum:
            self.size += 1

    def congested(self, generation: int) -> None:
        """Halve after a 429, a time-out or a broken connection, once for all downloads of a generation."""
        if generation == self.generation:
            self.size = max(1, self.size // 2)
            self.generation += 1
