"""Logs: one pipeline for all records, no secret in any of them, and one line each."""

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from yarl import URL

from service.monitoring.logs import MASK, Redactor, configure_logs

KEY = "sk-hush-hush"
SIGNED = "https://files.example.com/a.jpg?X-Amz-Signature=hush-hush&X-Amz-Date=1"

Logs = Callable[..., io.StringIO]


@pytest.fixture
def logs() -> Iterator[Logs]:
    """Return a function that configures logs into a text; afterwards everything is as it was."""
    root, zipstream = logging.getLogger(), logging.getLogger("zipstream.ng")
    before = root.handlers, root.level, zipstream.level

    def configure(log_format: str = "json", level: str = "debug") -> io.StringIO:
        stream = io.StringIO()
        configure_logs(log_format=log_format, level=level, secrets=[KEY, ""], stream=stream)
        return stream

    yield configure
    root.handlers = before[0]
    root.setLevel(before[1])
    zipstream.setLevel(before[2])
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """Parse every line as JSON, which each must be."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


class Opaque:
    """An object whose words hold a secret."""

    def __repr__(self) -> str:
        return f"<Opaque {KEY}>"


@pytest.mark.parametrize(
    ("fields", "logged"),
    [
        pytest.param({"detail": f"key {KEY}!"}, {"detail": f"key {MASK}!"}, id="known_secret"),
        pytest.param({"detail": KEY * 2}, {"detail": MASK * 2}, id="known_secret_twice"),
        pytest.param({"detail": f"https://h.example/{KEY}/a"}, {"detail": f"https://h.example/{MASK}/a"}, id="in_path"),
        pytest.param({"api_key": "other"}, {"api_key": MASK}, id="api_key"),
        pytest.param({"x-api-key": "other"}, {"x-api-key": MASK}, id="x_api_key_header"),
        pytest.param({"Authorization": "Bearer other"}, {"Authorization": MASK}, id="authorization"),
        pytest.param({"admin_token": "other"}, {"admin_token": MASK}, id="token"),
        pytest.param({"Set-Cookie": "a=b"}, {"Set-Cookie": MASK}, id="cookie"),
        pytest.param({"PASSWORD": "other"}, {"PASSWORD": MASK}, id="password"),
        pytest.param({"client_secret": 7}, {"client_secret": MASK}, id="secret_number"),
        pytest.param({"token": ["a", "b"]}, {"token": MASK}, id="secret_list"),
        pytest.param({"api_key_configured": True}, {"api_key_configured": True}, id="flag_is_no_secret"),
        pytest.param({"url": SIGNED}, {"url": f"https://files.example.com/a.jpg?{MASK}"}, id="signed_url"),
        pytest.param({"url": "http://h/a?b=1#c"}, {"url": f"http://h/a?{MASK}"}, id="query_and_fragment"),
        pytest.param({"url": "https://h/a#b"}, {"url": "https://h/a#b"}, id="no_query"),
        pytest.param(
            {"detail": f"from {SIGNED} to '{SIGNED}'"},
            {"detail": f"from https://files.example.com/a.jpg?{MASK} to 'https://files.example.com/a.jpg?{MASK}'"},
            id="urls_in_a_sentence",
        ),
        pytest.param({"detail": "why? because"}, {"detail": "why? because"}, id="question"),
        pytest.param({"a": {"b": {"token": "x", "c": KEY}}}, {"a": {"b": {"token": MASK, "c": MASK}}}, id="nested"),
        pytest.param(
            {"a": [KEY, {"cookie": "x"}, (SIGNED[:31], 5)]},
            {"a": [MASK, {"cookie": MASK}, [SIGNED[:31], 5]]},
            id="list",
        ),
        pytest.param({"a": None, "b": 1.5, "c": False}, {"a": None, "b": 1.5, "c": False}, id="plain_values"),
        pytest.param({"error": ValueError(KEY)}, {"error": f"ValueError('{MASK}')"}, id="exception_as_value"),
        pytest.param({"thing": Opaque()}, {"thing": f"<Opaque {MASK}>"}, id="object"),
        pytest.param({"body": KEY.encode()}, {"body": f"b'{MASK}'"}, id="bytes"),
        pytest.param({"hosts": {KEY}}, {"hosts": f"{{'{MASK}'}}"}, id="set"),
        pytest.param({"a": {KEY: 1}}, {"a": {MASK: 1}}, id="secret_as_key"),
        pytest.param({"url": URL(SIGNED)}, {"url": f"URL('https://files.example.com/a.jpg?{MASK}')"}, id="url_object"),
        pytest.param({"url": "HTTPS://h/a?b=1"}, {"url": f"HTTPS://h/a?{MASK}"}, id="scheme_in_capitals"),
    ],
)
def test_redaction(fields: dict[str, Any], logged: dict[str, Any], logs: Logs) -> None:
    """Known secrets, what is called a secret, and signed query strings are masked wherever they stand."""
    stream = logs()
    structlog.get_logger("service.test").info("test.event", **fields)

    (line,) = lines(stream)
    assert {name: line[name] for name in fields} == logged
    assert "hush" not in stream.getvalue()


def test_longest_secret_first() -> None:
    """A secret that contains another is masked whole."""
    assert Redactor(["abc", "abcdef", ""]).clean("xabcdefx abc") == f"x{MASK}x {MASK}"


def test_empty_secret_masks_nothing() -> None:
    """A secret that is not set is no secret."""
    assert Redactor([""]).clean("abc") == "abc"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_secrets_in_exceptions(log_format: str, logs: Logs) -> None:
    """Tracebacks of our own records and the libraries' are masked too, causes included."""

    def fail() -> None:
        raise RuntimeError(f"no response from {SIGNED}") from ValueError(f"bad key {KEY}")

    stream = logs(log_format)
    for log in (structlog.get_logger("service.test").exception, logging.getLogger("aiohttp.server").exception):
        try:
            fail()
        except RuntimeError:
            log("test.failed")

    text = stream.getvalue()
    assert text.count("RuntimeError: no response from") == 2
    assert text.count("ValueError: bad key") == 2
    assert "hush" not in text


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_library_records_take_the_same_way(log_format: str, logs: Logs) -> None:
    """What aiohttp and others log is masked and written like our own, with the arguments put in."""
    stream = logs(log_format)
    logging.getLogger("aiohttp.client").warning("key %s for %s", KEY, URL(SIGNED))
    logging.getLogger("other").info("plain", extra={"token": "x"})

    assert "hush" not in stream.getvalue()
    assert f"key {MASK} for https://files.example.com/a.jpg?{MASK}" in stream.getvalue()
    if log_format == "json":
        first, second = lines(stream)
        assert (first["logger"], first["level"]) == ("aiohttp.client", "warning")
        assert (second["logger"], second["level"], second["event"]) == ("other", "info", "plain")


def test_shape_of_a_line(logs: Logs) -> None:
    """A JSON line holds the event, its level, logger, time in UTC, and what is bound to the request."""
    stream = logs()
    structlog.contextvars.bind_contextvars(request_id="r-1", session_cookie="x")
    structlog.get_logger("service.test").warning("image.failed", reason="timeout", name="Küche 日本 \U0001f600")

    (line,) = lines(stream)
    moment = line.pop("timestamp")
    assert moment.endswith("Z")
    assert line == {
        "event": "image.failed",
        "level": "warning",
        "logger": "service.test",
        "request_id": "r-1",
        "session_cookie": MASK,
        "reason": "timeout",
        "name": "Küche 日本 \U0001f600",
    }


HOSTILE = [
    'a\n{"event": "forged"}',
    "a\r\nforged",
    "a\rforged",
    'a", "event": "forged',
    "a\x1b[2J\x1b[31mforged",
    "a\x00forged",
    "a\x85forged",
    "a\u2028forged",
    "a\ud800forged",
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_text_forges_a_json_line(text: str, logs: Logs) -> None:
    """Whatever a name or a library's message holds, one record is one line, and can be read back."""
    stream = logs()
    structlog.get_logger("service.test").info("image.failed", name=text)
    logging.getLogger("other").error("broken: %s", text)

    written = stream.getvalue()
    assert written.count("\n") == 2
    assert written.isascii()
    assert [json.loads(line).get("name") for line in written.split("\n")[:2]] == [text, None]
    assert json.loads(written.split("\n")[1])["event"] == f"broken: {text}"


@pytest.mark.parametrize("text", HOSTILE[:3], ids=ascii)
def test_no_value_forges_a_console_line(text: str, logs: Logs) -> None:
    """A line break in a value is shown as such, also in the text for people."""
    stream = logs("console")
    structlog.get_logger("service.test").info("image.failed", name=text)

    assert len(stream.getvalue().splitlines()) == 1
    assert repr(text) in stream.getvalue()


@pytest.mark.parametrize("text", ["a\nforged", "a\x1b[2Jforged"], ids=ascii)
def test_no_message_reaches_the_terminal_raw(text: str, logs: Logs) -> None:
    """A library's message neither breaks its line nor commands the terminal."""
    stream = logs("console")
    logging.getLogger("other").error("broken: %s", text)
    structlog.get_logger("service.test").info("image.failed", name=text)

    assert len(stream.getvalue().splitlines()) == 2
    assert "\x1b" not in stream.getvalue()


def test_console_has_no_colours(logs: Logs) -> None:
    """Text for people can go to a file as well."""
    stream = logs("console")
    structlog.get_logger("service.test").error("service.started", url="http://127.0.0.1:8000", count=3)

    (line,) = stream.getvalue().splitlines()
    assert "\x1b" not in line
    for part in ("[error", "service.started", "url=http://127.0.0.1:8000", "count=3"):
        assert part in line


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_level(level: str, shown: int, logs: Logs) -> None:
    """Only what is at least as grave as the level is written, ours and the libraries' alike."""
    stream = logs(level=level)
    for log in (structlog.get_logger("service.test"), logging.getLogger("other")):
        log.debug("d")
        log.info("i")
        log.warning("w")
        log.error("e")

    assert len(lines(stream)) == 2 * shown


def test_warnings_of_unsized_entries_are_not_logged(logs: Logs) -> None:
    """zipstream-ng warns of every entry of untold size; only its errors are of interest."""
    stream = logs()
    logging.getLogger("zipstream.ng").warning("size differs")
    logging.getLogger("zipstream.ng").error("broken")

    assert [line["event"] for line in lines(stream)] == ["broken"]


def test_configured_twice_is_written_once(logs: Logs) -> None:
    """The last configuration counts."""
    first, second = logs(), logs("console")
    structlog.get_logger("service.test").info("service.started")

    assert first.getvalue() == ""
    assert second.getvalue().count("service.started") == 1


async def test_what_is_bound_stays_with_its_task(logs: Logs) -> None:
    """Two requests at a time do not get into each other's lines."""
    stream = logs()

    async def request(number: int) -> None:
        structlog.contextvars.bind_contextvars(request_id=number)
        await asyncio.sleep(0)
        structlog.get_logger("service.test").info("request.done", number=number)

    await asyncio.gather(*(asyncio.create_task(request(number)) for number in range(3)))
    assert [(line["request_id"], line["number"]) for line in lines(stream)] == [(0, 0), (1, 1), (2, 2)]
