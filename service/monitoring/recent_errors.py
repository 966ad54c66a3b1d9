"""Ring buffer of recent errors, shown to operators by ``/api/stats``."""

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

# A sample for a first diagnosis; the log has them all.
ERRORS_KEPT = 50
# A detail is usually one sentence; longer ones are cut.
MAX_DETAIL_CHARACTERS = 500


class RecentErrors:
    """The last errors of the service and of its upstream; ``clean`` redacts the secrets in them."""

    def __init__(self, clean: Callable[[str], str]) -> None:
        self._clean = clean
        self._errors: deque[dict[str, str]] = deque(maxlen=ERRORS_KEPT)

    def note(self, event: str, detail: str, request_id: str) -> None:
        """Add an error, and drop the oldest beyond ``ERRORS_KEPT``."""
        self._errors.append(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "request_id": request_id,
                "event": event,
                "detail": self._clean(detail)[:MAX_DETAIL_CHARACTERS],
            }
        )

    def newest_first(self) -> list[dict[str, str]]:
        """Return the recorded errors."""
        return list(reversed(self._errors))
