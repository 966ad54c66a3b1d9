"""W3C Trace Context: joins the trace of an incoming request and passes it on to the upstream.

https://www.w3.org/TR/trace-context/. The service exports no spans of its own: the trace id goes into every log line and
every request to the API, so that logs on both sides can be joined.
"""

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import structlog

# Section 3.2. A later version may add fields, behind a dash.
_TRACEPARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace_id>[0-9a-f]{32})-(?P<parent_id>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
_SAMPLED = 0x01  # the one flag that the standard defines; the others are not passed on


@dataclass(frozen=True, slots=True)
class Trace:
    """The distributed trace that a request belongs to."""

    trace_id: str
    sampled: bool


# Bound to a request as its log fields are, and read where requests go out.
_trace: ContextVar[Trace | None] = ContextVar("trace", default=None)


def read_traceparent(values: Sequence[str]) -> Trace | None:
    """Parse the ``traceparent`` header fields of a request; ``None`` unless they are exactly one valid field."""
    match = _TRACEPARENT.fullmatch(values[0]) if len(values) == 1 else None
    if match is None or match["version"] == "ff" or (match["version"] == "00" and match["more"]):
        return None
    if not match["trace_id"].strip("0") or not match["parent_id"].strip("0"):
        return None
    return Trace(match["trace_id"], bool(int(match["flags"], 16) & _SAMPLED))


def outgoing_traceparent() -> str | None:
    """Return the ``traceparent`` for an upstream request: the current trace, a new span; ``None`` without a trace."""
    trace = _trace.get()
    return None if trace is None else traceparent_of(trace)


def current_trace() -> Trace | None:
    """Return the trace of the current request, if it has one."""
    return _trace.get()


def traceparent_of(trace: Trace) -> str:
    """Return a ``traceparent`` within a trace, with a new span."""
    return f"00-{trace.trace_id}-{random.getrandbits(64) or 1:016x}-{int(trace.sampled):02x}"


@contextmanager
def request_context(request_id: str, trace: Trace | None) -> Iterator[None]:
    """Bind the request id and the trace to every log line and upstream request made inside."""
    fields = {"request_id": request_id, **({"trace_id": trace.trace_id} if trace else {})}
    token = _trace.set(trace)
    structlog.contextvars.bind_contextvars(**fields)
    try:
        yield
    finally:
        structlog.contextvars.clear_contextvars()  # the connection's next request has its own
        _trace.reset(token)
