"""One GET through its redirects, pushed into a sink without a task for any chunk.

States, and what owns what meanwhile::

    queued ──turn at the rate limit──▶ connecting ──▶ awaiting ──headers──▶ streaming ──▶ done
      ▲  (a task waits)                (a task dials)     │
      │                                                   └─ redirect ─▶ redirecting ─▶ queued, one hop further
      └── the same hop once more on a fresh connection, if a reused one was closed before the first byte

A fetch owns at most one task (queued, connecting) or one connection (awaiting, streaming, redirecting), and one timer:
it measures time spent waiting for the upstream, never time in which reading is paused. Aborting ends all three. The
rest of a response that the sink refuses is read by a ``_Discard``, which then owns the connection.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context
from enum import Enum
from http import HTTPStatus
from typing import Protocol

from service.model import Failure, Hop, Reason
from service.upstream.http.connection import UpstreamConnection
from service.upstream.http.response_reader import ResponseStarted
from service.upstream.retry import AttemptFailed
from service.upstream.url_policy import REDIRECT_STATUSES, Target, UrlRejected

# The rest of a response that is not needed is read up to this, so that its connection can be used again.
MAX_DISCARDED_BYTES = 64 * 1024
# How long such a rest may take to come: longer than that, a new connection is cheaper.
DISCARD_SECONDS = 5.0


class FetchSink(Protocol):
    """Takes the response at the end of the redirects. The calls come from the event loop.

    The first three may raise ``AttemptFailed``: the response is of no use, and the fetch ends with ``fetch_failed``.
    """

    def response_started(self, response: ResponseStarted, *, from_api: bool) -> None:
        """Take status and headers; ``from_api`` if they are the API's own, not its storage's."""
        ...

    def body_received(self, chunk: bytes) -> None:
        """Take bytes of the body."""
        ...

    def response_ended(self) -> None:
        """Take the clean end of the body."""
        ...

    def fetch_failed(self, error: AttemptFailed) -> None:
        """Take the failure; nothing follows."""
        ...

    def fetch_crashed(self, error: BaseException) -> None:
        """Take a fault of our own, raised by the sink itself; nothing follows."""
        ...


class FetchEnvironment(Protocol):
    """What a fetch needs of the process; ``fetcher.Fetcher`` is it, and documents each method."""

    loop: asyncio.AbstractEventLoop
    idle_timeout_seconds: float

    def try_acquire_turn(self, target: Target) -> bool: ...  # noqa: D102
    async def acquire_turn(self, target: Target) -> None: ...  # noqa: D102
    def take_connection(self, target: Target) -> UpstreamConnection | None: ...  # noqa: D102
    async def dial(self, target: Target) -> UpstreamConnection: ...  # noqa: D102
    def redirect(self, current: Target, location: str | None, hops: int) -> Target: ...  # noqa: D102
    def record_response(self, hop: Hop, status: int, headers: Mapping[str, str], seconds: float) -> None: ...  # noqa: D102
    def record_failure(self, hop: Hop, failure: Failure) -> None: ...  # noqa: D102
    def record_repeat(self, target: Target) -> None: ...  # noqa: D102


class _State(Enum):
    QUEUED = "queued"
    CONNECTING = "connecting"
    AWAITING = "awaiting"
    STREAMING = "streaming"
    REDIRECTING = "redirecting"
    DONE = "done"


class Fetch:
    """One GET; ``start`` it once. ``encode`` returns the request for a target.

    ``granted`` is called when the API itself agrees to deliver: with a success, or a redirect to where the thing is.
    """

    __slots__ = (
        "_connection",
        "_discarded_bytes",
        "_encode",
        "_environment",
        "_granted",
        "_hops",
        "_is_reused",
        "_last_activity",
        "_location",
        "_paused_since",
        "_repeated_hop",
        "_sent_at",
        "_sink",
        "_state",
        "_target",
        "_task",
        "_timer",
        "longest_pause_seconds",
    )

    def __init__(
        self,
        environment: FetchEnvironment,
        target: Target,
        encode: Callable[[Target], bytes],
        sink: FetchSink,
        granted: Callable[[], None] | None = None,
    ) -> None:
        self._environment = environment
        self._target = target
        self._encode = encode
        self._sink = sink
        self._granted = granted
        self._state = _State.QUEUED
        self._hops = 0
        self._connection: UpstreamConnection | None = None
        self._is_reused = False
        self._repeated_hop = False
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sent_at = 0.0
        self._last_activity = 0.0
        self._location: str | None = None
        self._discarded_bytes = 0
        self._paused_since: float | None = None
        self.longest_pause_seconds = 0.0

    def start(self) -> None:
        """Begin with the first hop."""
        self._start_hop()

    def pause(self) -> None:
        """Stop reading: TCP stops the upstream, and the idle timeout does not run."""
        if self._state is _State.STREAMING and self._paused_since is None and self._connection is not None:
            self._paused_since = self._environment.loop.time()
            self._connection.pause()

    def resume(self) -> None:
        """Go on reading."""
        if self._paused_since is not None:
            now = self._environment.loop.time()
            self.longest_pause_seconds = max(self.longest_pause_seconds, now - self._paused_since)
            self._paused_since, self._last_activity = None, now
            if self._connection is not None:
                self._connection.resume()

    def abort(self) -> None:
        """End the fetch now; the sink hears nothing more."""
        self._state = _State.DONE
        self._release()

    # One hop

    def _start_hop(self) -> None:
        self._state = _State.QUEUED
        try:
            if self._environment.try_acquire_turn(self._target):
                self._connect()
            else:
                self._run(self._await_turn())
        except Exception as error:  # noqa: BLE001 - a fault of our own must reach the archive, not asyncio's log
            self._crash(error)

    async def _await_turn(self) -> None:
        await self._environment.acquire_turn(self._target)
        self._connect()

    def _connect(self) -> None:
        self._state = _State.CONNECTING
        connection = None if self._repeated_hop else self._environment.take_connection(self._target)
        if connection is not None:
            self._send(connection)
        else:
            self._run(self._dial())

    async def _dial(self) -> None:
        self._sent_at = self._environment.loop.time()
        try:
            connection = await self._environment.dial(self._target)
        except AttemptFailed as error:
            self._fail(error)
            return
        self._send(connection)

    def _send(self, connection: UpstreamConnection) -> None:
        self._state = _State.AWAITING
        self._connection, self._is_reused = connection, connection.requests > 0
        loop = self._environment.loop
        self._sent_at = self._last_activity = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._environment.idle_timeout_seconds, self._check_idle)
        connection.start(self._encode(self._target), self)

    # connection.ResponseHandler

    def response_started(self, response: ResponseStarted) -> None:
        """Take status and headers of one hop."""
        environment, from_api = self._environment, self._target.origin.is_api
        now = self._last_activity = environment.loop.time()
        hop = hop_of(self._hops, is_api=from_api, status=response.status)
        environment.record_response(hop, response.status, response.headers, now - self._sent_at)
        if not self._hops and response.status < HTTPStatus.BAD_REQUEST and self._granted is not None:
            granted, self._granted = self._granted, None
            granted()
        if response.status in REDIRECT_STATUSES:
            self._location = response.headers.get("location")
            self._state, self._discarded_bytes = _State.REDIRECTING, 0
            return
        self._state = _State.STREAMING
        try:
            self._sink.response_started(response, from_api=from_api)
        except AttemptFailed as error:
            if self._state is not _State.DONE:
                self._discard(error)
        except Exception as error:  # noqa: BLE001 - as above
            self._crash(error)

    def body_received(self, chunk: bytes) -> None:
        """Take bytes of one hop's body."""
        if self._state is _State.STREAMING:
            self._last_activity = self._environment.loop.time()
            try:
                self._sink.body_received(chunk)
            except AttemptFailed as error:
                self._fail_attempt(error)
            except Exception as error:  # noqa: BLE001 - as above
                self._crash(error)
            return
        self._discarded_bytes += len(chunk)
        if self._discarded_bytes > MAX_DISCARDED_BYTES:
            self._end_hop()

    def response_ended(self) -> None:
        """Take the end of one hop's response."""
        self._connection = None
        if self._state is _State.REDIRECTING:
            self._end_hop()
            return
        self.resume()
        self._state = _State.DONE
        self._release()
        try:
            self._sink.response_ended()
        except AttemptFailed as error:
            self._sink.fetch_failed(error)
        except Exception as error:  # noqa: BLE001 - as above
            self._sink.fetch_crashed(error)

    def response_failed(self, failure: Failure, *, is_unanswered: bool) -> None:
        """Take the failure of one hop."""
        self._connection = None
        if self._state is _State.REDIRECTING:
            self._end_hop()
        elif is_unanswered and self._is_reused and not self._repeated_hop:
            # An idle connection that the server closed just then (RFC 9112 section 9.3.1).
            self._repeated_hop = True
            self._environment.record_repeat(self._target)
            self._start_hop()
        elif self._state is _State.AWAITING:
            self._fail(AttemptFailed(failure))
        else:
            self.resume()
            self._fail_attempt(AttemptFailed(failure))

    def _end_hop(self) -> None:
        """Follow a redirect: the rest of its response has been read, or is given up."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        try:
            self._target = self._environment.redirect(self._target, self._location, self._hops)
        except UrlRejected as error:
            self._fail_attempt(AttemptFailed(Failure(Reason.REDIRECT_REFUSED, str(error))))
            return
        self._hops += 1
        self._repeated_hop = False
        self._start_hop()

    # Ends

    def _discard(self, error: AttemptFailed) -> None:
        """Fail, but read the rest of the response if it is short: its connection can then be used again."""
        connection, self._connection = self._connection, None
        self.abort()
        if connection is not None:
            connection.handler = _Discard(connection, self._environment.loop)
        self._sink.fetch_failed(error)

    def _fail(self, error: AttemptFailed) -> None:
        """Fail for want of a response."""
        hop = hop_of(self._hops, is_api=self._target.origin.is_api, status=None)
        self._environment.record_failure(hop, error.failure)
        self._fail_attempt(error)

    def _fail_attempt(self, error: AttemptFailed) -> None:
        if self._state is not _State.DONE:
            self.abort()
            self._sink.fetch_failed(error)

    def _crash(self, error: BaseException) -> None:
        if self._state is not _State.DONE:
            self.abort()
            self._sink.fetch_crashed(error)

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        task, self._task = self._task, None
        if task is not None and not task.done() and task is not asyncio.current_task():
            task.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def _run(self, work: Coroutine[None, None, None]) -> None:
        # A context of its own: connections outlive the request for which they were opened.
        self._task = self._environment.loop.create_task(work, context=Context())
        self._task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crash(error)

    def _check_idle(self) -> None:
        """Fail if the upstream is being waited for too long; otherwise set the timer to when that can next be so."""
        environment = self._environment
        waited_seconds = environment.loop.time() - self._last_activity
        is_waiting = self._connection is not None and self._paused_since is None
        if not is_waiting:
            waited_seconds = 0.0
        if waited_seconds < environment.idle_timeout_seconds:
            delay_seconds = environment.idle_timeout_seconds - waited_seconds
            self._timer = environment.loop.call_later(delay_seconds, self._check_idle)
            return
        self._timer = None
        seconds = f"{environment.idle_timeout_seconds:g}"
        error = AttemptFailed(Failure(Reason.TIMEOUT, f"no data from the upstream for {seconds} s"))
        if self._state is _State.AWAITING:
            self._fail(error)
        elif self._state is _State.REDIRECTING:
            self._end_hop()
        else:
            self._fail_attempt(error)


class _Discard:
    """Reads the rest of a response that is of no use, within ``MAX_DISCARDED_BYTES`` and ``DISCARD_SECONDS``."""

    def __init__(self, connection: UpstreamConnection, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._left_bytes = MAX_DISCARDED_BYTES
        self._timer = loop.call_later(DISCARD_SECONDS, connection.abort)

    def response_started(self, response: ResponseStarted) -> None:
        """Never called: the headers have been read."""

    def body_received(self, chunk: bytes) -> None:
        """Count, and give up what is long."""
        self._left_bytes -= len(chunk)
        if self._left_bytes < 0:
            self._timer.cancel()
            self._connection.abort()

    def response_ended(self) -> None:
        """Leave the connection to the pool."""
        self._timer.cancel()

    def response_failed(self, failure: Failure, *, is_unanswered: bool) -> None:
        """Leave the connection, which is closed."""
        del failure, is_unanswered
        self._timer.cancel()


def hop_of(hops: int, *, is_api: bool, status: int | None) -> Hop:
    """Return which server responded after ``hops`` redirects, or did not.

    The API comes first. Behind it, what is at its own origin or points elsewhere is an asset server; the end of the
    redirects is the storage.
    """
    if hops == 0:
        return Hop.API
    return Hop.ASSET if is_api or status in REDIRECT_STATUSES else Hop.STORAGE
