"""Structured logging: one structlog pipeline for our events and the libraries', with secrets redacted.

The rule of this file: nothing reaches the output except through ``Redactor``.
"""

import functools
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO, cast

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from service.monitoring.log_writer import LogWriter

log = structlog.get_logger(__name__)

MASK = "[secret]"
# Query strings of signed URLs (S3's X-Amz-*, our own tokens) are bearer secrets: they alone give access to the image.
# Logs never need the query of an upstream URL, so all of it is masked.
_URL_QUERY = re.compile(r"(?i)(https?://[^\s?#'\"]+)\?[^\s'\"]*")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROLS_BUT_BLANKS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")
_SECRET_NAMES = re.compile(r"(?i)api[-_]?key|authorization|authentication|token|secret|cookie|password|signature")


@functools.lru_cache(maxsize=1024)  # several times as many as our events have field names
def _names_a_secret(key: str) -> bool:
    return _SECRET_NAMES.search(key) is not None


class Redactor:
    """A structlog processor that masks known secret values, secret-named fields and signed query strings."""

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        self._secrets = tuple(sorted((s for s in secrets if s), key=len, reverse=True))

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:  # noqa: D102 - structlog's
        return {self.clean(key): self._field(key, value) for key, value in event.items()}

    def _field(self, key: str, value: Any) -> Any:
        # Booleans such as api_key_configured are not secret.
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
        return self.clean(repr(value))  # the renderer gets no object of an unknown type, only its redacted repr


class _Handler(logging.StreamHandler[TextIO]):
    """Writes the libraries' log records; one that cannot be formatted is reported in the log, not on standard error."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's
        """Log the formatting error: standard error may be a pipe that is not read."""
        log.error("log.record_unreadable", source=record.name, exc_info=True)  # noqa: LOG014 - in emit's handler


class _NamedLogger(structlog.WriteLogger):
    """Writes rendered lines; ``name`` is the module they come from."""

    def __init__(self, stream: TextIO, name: str) -> None:
        super().__init__(stream)
        self.name = name


def configure_logs(
    *, log_format: str, level: str, secrets: Sequence[str] = (), stream: TextIO | LogWriter | None = None
) -> None:
    """Send structlog's and the standard library's records to ``stream`` (standard output) in one format.

    Our own events bypass the standard library's loggers, which take three times as long per event; there is at least
    one event for every image.
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
    # zipstream-ng warns about each entry of unknown size; archive/writer.py handles those on purpose.
    logging.getLogger("zipstream.ng").setLevel(logging.ERROR)


@contextmanager
def stderr_captured() -> Iterator[None]:
    """Redirect Python's own standard error output to the log: warnings and unraisable exceptions.

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
    """Format exceptions before redaction, so that a secret in a traceback is masked too."""
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer(serializer=_to_json)
        return [structlog.processors.format_exc_info, Redactor(secrets), renderer]
    console = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    return [structlog.processors.format_exc_info, Redactor(secrets), _escape_controls, console]


def _to_json(event: EventDict, *, default: Callable[[Any], Any]) -> str:
    """Serialize an event as ASCII: some viewers take U+0085 or U+2028 for the end of a line.

    orjson takes a fifth of the time of the standard library, but escapes nothing.
    """
    try:
        text = orjson.dumps(event, default=default).decode()
    except TypeError:  # lone surrogates and integers of more than 64 bits
        text = ""
    return text if text and text.isascii() else json.dumps(event, default=default)


def _escape_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape control characters: no value breaks its line or drives the terminal; tracebacks keep line breaks."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            # The renderer quotes values with line breaks and tabs, but not the message itself.
            pattern = _CONTROLS if key == "event" else _CONTROLS_BUT_BLANKS
            event[key] = pattern.sub(lambda match: f"\\x{ord(match[0]):02x}", value)
    return event
