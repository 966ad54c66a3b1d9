"""Structured logs: one pipeline for our events and for the libraries', with secrets taken out.

The rule of this file: nothing reaches the output except through ``redact``.
"""

import logging
import re
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

MASK = "[secret]"
# Query strings of signed URLs (S3's X-Amz-*, our own tokens) are secrets as much as keys are: whoever has them
# has the image. Logs never need the query of an upstream URL, so all of it goes.
_URL_QUERY = re.compile(r"(?i)(https?://[^\s?#'\"]+)\?[^\s'\"]*")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROLS_BUT_BLANKS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")
_SECRET_NAMES = re.compile(r"(?i)api[-_]?key|authorization|authentication|token|secret|cookie|password|signature")


class Redactor:
    """A structlog processor that masks known secret values, secret-named fields and signed query strings."""

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        self._secrets = tuple(sorted((s for s in secrets if s), key=len, reverse=True))

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:  # noqa: D102 - structlog's
        return {self.clean(key): self._field(key, value) for key, value in event.items()}

    def _field(self, key: str, value: Any) -> Any:
        # Booleans such as api_key_configured say nothing secret.
        if _SECRET_NAMES.search(key) and not isinstance(value, bool):
            return MASK
        return self.clean(value)

    def clean(self, value: Any) -> Any:
        """Return the value with every secret in it masked, through lists and dictionaries."""
        if isinstance(value, str):
            for secret in self._secrets:
                value = value.replace(secret, MASK)
            return _URL_QUERY.sub(rf"\1?{MASK}", value)
        if isinstance(value, dict):
            return {self.clean(str(key)): self._field(str(key), item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.clean(item) for item in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        return self.clean(repr(value))  # whatever it is, only its words are written, and they are cleaned


def configure_logs(*, log_format: str, level: str, secrets: Sequence[str] = (), stream: TextIO | None = None) -> None:
    """Send structlog's and the standard library's records to ``stream`` (standard output) in one format."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_rendering(log_format, secrets))
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # It warns about each entry whose size was not known before; the writer knows why that is right.
    logging.getLogger("zipstream.ng").setLevel(logging.ERROR)


def _rendering(log_format: str, secrets: Sequence[str]) -> list[Processor]:
    """Exceptions become text before redaction, so that a secret in a traceback is masked as well."""
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    )
    return [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        Redactor(secrets),
        *([] if log_format == "json" else [_escape_controls]),
        renderer,
    ]


def _escape_controls(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Keep values from breaking their line or commanding the terminal; tracebacks keep their line breaks."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            # The renderer quotes values with line breaks and tabs, but not the message itself.
            pattern = _CONTROLS if key == "event" else _CONTROLS_BUT_BLANKS
            event[key] = pattern.sub(lambda match: f"\\x{ord(match[0]):02x}", value)
    return event
