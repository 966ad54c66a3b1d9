"""One connection to an upstream server, and the pool of idle ones.

States of a connection::

    idle ──start──▶ active ──end of the response──▶ idle (in the pool)
                      └──abort, failure, bytes behind the end──▶ closed

Ownership: a connection belongs to the pool while it is idle, and to the handler of its response while it is active.
The handler bounds the time of a response, the pool's only timer that of idleness.

An idle connection that receives anything, even a response, is out of step and is closed. Before one is used again its
socket is examined, because the event loop may not have noticed yet what has come.
"""

import asyncio
from collections import deque
from typing import Protocol

from service.model import Failure, Reason
from service.upstream.http.connector import is_readable
from service.upstream.http.dial import Dialer
from service.upstream.http.response_reader import END, Event, ResponseFailed, ResponseReader, ResponseStarted
from service.upstream.url_policy import Origin

# Below the idle time-outs of common servers: the shortest are 5 s (Node.js) and 60 s (ELB).
IDLE_SECONDS = 30.0
# As many idle connections are kept for one origin as downloads run at a time by default.
MAX_IDLE_PER_ORIGIN = 64


class ResponseHandler(Protocol):
    """Takes the parts of one response, in this order; one of the last two ends it."""

    def response_started(self, response: ResponseStarted) -> None:
        """Take status and headers. The handler may abort the connection in any of its calls."""
        ...

    def body_received(self, chunk: bytes) -> None:
        """Take bytes of the body."""
        ...

    def response_ended(self) -> None:
        """Take the clean end of the response. The connection is no longer this handler's."""
        ...

    def response_failed(self, failure: Failure, *, is_unanswered: bool) -> None:
        """Take the failure of the response; ``is_unanswered`` if not one byte of it came. The connection is closed."""
        ...


class UpstreamConnection(asyncio.Protocol):
    """One HTTP/1.1 connection; ``requests`` counts what was sent on it, ``handler`` takes the response being read."""

    __slots__ = ("_is_paused", "_pool", "_reader", "_transport", "handler", "idle_since", "origin", "requests")

    def __init__(self, origin: Origin, pool: "ConnectionPool") -> None:
        self.origin = origin
        self.requests = 0
        self.idle_since = 0.0
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self.handler: ResponseHandler | None = None
        self._reader: ResponseReader | None = None  # of the response that is being read
        self._is_paused = False

    @property
    def is_usable(self) -> bool:
        """Whether a request may be sent: nothing has come since the last response, and the peer has not closed."""
        transport = self._transport
        return transport is not None and not transport.is_closing() and not is_readable(transport)

    def start(self, request: bytes, handler: ResponseHandler) -> None:
        """Send a request; its response goes to the handler."""
        transport = self._transport
        if transport is None or self._reader is not None:
            raise RuntimeError("the connection is not idle")
        self.requests += 1
        self.handler, self._reader = handler, ResponseReader()
        transport.write(request)

    def pause(self) -> None:
        """Stop reading: TCP stops the peer."""
        if not self._is_paused and self._transport is not None and self._reader is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Go on reading."""
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def abort(self) -> None:
        """Close the connection now. The peer learns it by a reset, and stops sending."""
        self.handler = self._reader = None
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("the transport is no stream")
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Read the response, or close a connection that is idle."""
        reader = self._reader
        if reader is None:
            self.abort()
            return
        for event in reader.feed(data):
            self._dispatch(event)
            if self._reader is not reader:
                return

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end of the connection, which may be that of the body."""
        self._transport = None
        self._pool.remove(self)
        reader = self._reader
        if reader is None:
            return
        if exc is not None:
            self._fail(Failure(Reason.CONNECTION_LOST, "the connection broke"), is_unanswered=reader.is_empty)
        elif reader.is_empty:
            detail = "the connection was closed before a response"
            self._fail(Failure(Reason.CONNECTION_LOST, detail), is_unanswered=True)
        elif (event := reader.feed_eof()) is not None:
            self._dispatch(event)

    def _dispatch(self, event: Event) -> None:
        handler = self.handler
        if handler is None:
            return
        if isinstance(event, bytes):
            handler.body_received(event)
        elif event is END:
            self._end_response()
            handler.response_ended()
        elif isinstance(event, ResponseStarted):
            handler.response_started(event)
        elif isinstance(event, ResponseFailed):
            reason = Reason.TRUNCATED if event.is_truncated else Reason.CONNECTION_LOST
            self._fail(Failure(reason, event.detail), is_unanswered=False)

    def _end_response(self) -> None:
        """Return the connection to the pool if it can be used again."""
        reader, self.handler, self._reader = self._reader, None, None
        self.resume()
        if reader is not None and reader.keep_alive and self._transport is not None:
            self._pool.put(self)
        else:
            self.abort()

    def _fail(self, failure: Failure, *, is_unanswered: bool) -> None:
        handler = self.handler
        self.abort()
        if handler is not None:
            handler.response_failed(failure, is_unanswered=is_unanswered)


class ConnectionPool:
    """The upstream connections of the process: idle ones by origin, newest first. Close it.

    ``dialer`` opens fresh ones. One timer closes those that were idle too long.
    """

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._loop = asyncio.get_running_loop()
        self._idle: dict[Origin, deque[UpstreamConnection]] = {}
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def take(self, origin: Origin) -> UpstreamConnection | None:
        """Return an idle connection that can be used, and remove it; close those that cannot."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.is_usable:
                return connection
            connection.abort()
        return None

    async def dial(self, origin: Origin) -> UpstreamConnection:
        """Return a fresh connection.

        Raises:
            AttemptFailed: there is none.
        """
        return await self._dialer.connect(origin, lambda: UpstreamConnection(origin, self))

    def put(self, connection: UpstreamConnection) -> None:
        """Keep a connection whose response has ended."""
        idle = self._idle.setdefault(connection.origin, deque())
        if self._is_closed or len(idle) >= MAX_IDLE_PER_ORIGIN:
            connection.abort()
            return
        connection.idle_since = self._loop.time()
        idle.append(connection)
        self._schedule_sweep()

    def remove(self, connection: UpstreamConnection) -> None:
        """Forget a connection that was lost."""
        idle = self._idle.get(connection.origin)
        if idle is not None:
            if connection in idle:
                idle.remove(connection)
            if not idle:
                del self._idle[connection.origin]

    def close(self) -> None:
        """Close the idle connections, and open no others."""
        self._is_closed = True
        self._dialer.close()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        for connection in self._all():
            connection.abort()

    def _all(self) -> list[UpstreamConnection]:
        return [connection for idle in self._idle.values() for connection in idle]

    def _schedule_sweep(self) -> None:
        if self._sweep_timer is None and not self._is_closed:
            self._sweep_timer = self._loop.call_later(IDLE_SECONDS, self._sweep)

    def _sweep(self) -> None:
        self._sweep_timer = None
        oldest = self._loop.time() - IDLE_SECONDS
        for connection in self._all():
            if connection.idle_since <= oldest:
                connection.abort()  # connection_lost removes it
            else:
                self._schedule_sweep()
