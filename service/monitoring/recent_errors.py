"""The last things that went wrong, for the operator who looks at ``/api/stats``."""

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

# Enough to see what a bad night was about; more is the log's business.
ERRORS_KEPT = 50
# A detail is a sentence; what is longer is cut.
MAX_DETAIL_CHARACTERS = 500


class RecentErrors:
    """The last faults of the service and of its upstream, with every secret taken out by ``clean``."""

    def __init__(self, clean: Callable[[str], str]) -> None:
        self._clean = clean
        self._errors: deque[dict[str, str]] = deque(maxlen=ERRORS_KEPT)

    def note(self, event: str, detail: str, request_id: str) -> None:
        """Remember a fault, and forget the oldest beyond ``ERRORS_KEPT``."""
        self._errors.append(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "request_id": request_id,
                "event": event,
                "detail": self._clean(detail)[:MAX_DETAIL_CHARACTERS],
            }
        )

    def newest_first(self) -> list[dict[str, str]]:
        """Return what is remembered."""
        return list(reversed(self._errors))
