"""Structured logs: one pipeline for our events and for the libraries', with secrets taken out.

The rule of this file: nothing reaches the output except through ``redact``.
"""

import functools
import logging
import random
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from service.monitoring.log_writer import LogWriter

log = structlog.get_logger(__name__)

MASK = "[secret]"
# Query strings of signed URLs (S3's X-Amz-*, our own tokens) are secrets as much as keys are: whoever has them
# has the image. Logs never need the query of an upstream URL, so all of it goes.
_URL_QUERY = re.compile(r"(?i)(https?://[^\s?#'\"]+)\?[^\s'\"]*")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROLS_BUT_BLANKS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")
_SECRET_NAMES = re.compile(r"(?i)api[-_]?key|authorization|authentication|token|secret|cookie|password|signature")

# https://www.w3.org/TR/trace-context/#traceparent-header-field-values; what a later version adds stands behind a dash.
_TRACEPARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace_id>[0-9a-f]{32})-(?P<parent_id>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
_SAMPLED = 0x01  # the one flag that the standard knows; the others are not passed on


@dataclass(frozen=True, slots=True)
class Trace:
    """The distributed trace that a request belongs to."""

    trace_id: str
    sampled: bool


# Bound to a request like its log fields, and read where requests go out.
_trace: ContextVar[Trace | None] = ContextVar("trace", default=None)


def read_traceparent(values: Sequence[str]) -> Trace | None:
    """Return the trace that a request's ``traceparent`` fields name, or ``None`` if they are not one valid field."""
    match = _TRACEPARENT.fullmatch(values[0]) if len(values) == 1 else None
    if match is None or match["version"] == "ff" or (match["version"] == "00" and match["more"]):
        return None
    if not match["trace_id"].strip("0") or not match["parent_id"].strip("0"):
        return None
    return Trace(match["trace_id"], bool(int(match["flags"], 16) & _SAMPLED))


@contextmanager
def request_context(request_id: str, trace: Trace | None) -> Iterator[None]:
    """Put the request's id, its trace's if it has one, and whatever is bound inside, into every line written inside."""
    fields = {"request_id": request_id, **({"trace_id": trace.trace_id} if trace else {})}
    token = _trace.set(trace)
    structlog.contextvars.bind_contextvars(**fields)
    try:
        yield
    finally:
        structlog.contextvars.clear_contextvars()  # the connection's next request is another
        _trace.reset(token)


def outgoing_traceparent() -> str | None:
    """Return the ``traceparent`` of a request made on behalf of the current one: same trace, a new span."""
    trace = _trace.get()
    if trace is None:
        return None
    return f"00-{trace.trace_id}-{random.getrandbits(64) or 1:016x}-{int(trace.sampled):02x}"


@functools.lru_cache(maxsize=1024)  # the fields of our own events many times over
def _names_a_secret(key: str) -> bool:
    return _SECRET_NAMES.search(key) is not None


class Redactor:
    """A structlog processor that masks known secret values, secret-named fields and signed query strings."""

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        self._secrets = tuple(sorted((s for s in secrets if s), key=len, reverse=True))

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:  # noqa: D102 - structlog's
        return {self.clean(key): self._field(key, value) for key, value in event.items()}

    def _field(self, key: str, value: Any) -> Any:
        # Booleans such as api_key_configured say nothing secret.
        if _names_a_secret(key) and not isinstance(value, bool):
            return MASK
        return self.clean(value)

    def clean(self, value: Any) -> Any:
        """Return the value with every secret in it masked, through lists and dictionaries."""
        if isinstance(value, str):
            for secret in self._secrets:
                value = value.replace(secret, MASK)
            return _URL_QUERY.sub(rf"\1?{MASK}", value) if "?" in value else value
        if isinstance(value, dict):
            return {self.clean(str(key)): self._field(str(key), item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.clean(item) for item in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        return self.clean(repr(value))  # whatever it is, only its words are written, and they are cleaned


class _Handler(logging.StreamHandler[TextIO]):
    """Writes the libraries' records; one that cannot be formatted is reported in the log, not on standard error."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's
        """Log the fault: standard error may be a pipe that is not read."""
        log.error("log.record_unreadable", source=record.name, exc_info=True)  # noqa: LOG014 - in emit's handler


class _NamedLogger(structlog.WriteLogger):
    """Writes finished lines; ``name`` says which module they come from."""

    def __init__(self, stream: TextIO, name: str) -> None:
        super().__init__(stream)
        self.name = name


def configure_logs(
    *, log_format: str, level: str, secrets: Sequence[str] = (), stream: TextIO | LogWriter | None = None
) -> None:
    """Send structlog's and the standard library's records to ``stream`` (standard output) in one format.

    Our own events go straight to the stream: by way of the standard library's loggers each would take three times
    as long, and there is at least one for every image.
    """
    output = cast("TextIO", stream or sys.stdout)  # of a stream, ``write`` and ``flush`` are used
    stamps: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering = _rendering(log_format, secrets)
    structlog.configure(
        processors=[*stamps, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda name="service", *_: _NamedLogger(output, name),
        cache_logger_on_first_use=False,
    )
    handler = _Handler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*stamps, structlog.stdlib.PositionalArgumentsFormatter()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # It warns about each entry whose size was not known before; the writer knows why that is right.
    logging.getLogger("zipstream.ng").setLevel(logging.ERROR)


@contextmanager
def stderr_captured() -> Iterator[None]:
    """Log what Python itself would write to standard error: warnings, and errors that no code can handle.

    Standard error is often the same pipe as the log: a write to it could block the event loop.
    """
    logging.captureWarnings(True)
    before, sys.unraisablehook = sys.unraisablehook, _log_unraisable
    try:
        yield
    finally:
        sys.unraisablehook = before
        logging.captureWarnings(False)


def _log_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    error = unraisable.exc_value
    info = (unraisable.exc_type, error, unraisable.exc_traceback) if error is not None else None
    log.error("python.unraisable", source=repr(unraisable.object), exc_info=info)


def _rendering(log_format: str, secrets: Sequence[str]) -> list[Processor]:
    """Exceptions become text before redaction, so that a secret in a traceback is masked as well."""
    if log_format == "json":
        return [structlog.processors.format_exc_info, Redactor(secrets), structlog.processors.JSONRenderer()]
    console = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    return [structlog.processors.format_exc_info, Redactor(secrets), _escape_controls, console]


def _escape_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Keep values from breaking their line or commanding the terminal; tracebacks keep their line breaks."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            # The renderer quotes values with line breaks and tabs, but not the message itself.
            pattern = _CONTROLS if key == "event" else _CONTROLS_BUT_BLANKS
            event[key] = pattern.sub(lambda match: f"\\x{ord(match[0]):02x}", value)
    return event
