"""The log line of one image."""

from structlog.typing import FilteringBoundLogger

from service.model import Outcome


def log_outcome(log: FilteringBoundLogger, outcome: Outcome, seconds: float | None) -> None:
    """Log what became of one image; ``seconds`` is how long it was fetched."""
    facts = {
        "image_id": outcome.image.image_id,
        "position": outcome.position,
        "attempts": outcome.attempts,
        "seconds": None if seconds is None else round(seconds, 3),
    }
    if outcome.entry is not None:
        log.info("image.downloaded", **facts, bytes=outcome.entry.size, entry=outcome.entry.name)
    elif outcome.failure is not None:
        reason, detail = outcome.failure.reason.value, outcome.failure.detail
        status = outcome.failure.upstream_status
        log.warning("image.failed", **facts, reason=reason, detail=detail, upstream_status=status)
