"""More clients than there are slots, clients that read slowly or not at all, and clients that leave."""

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_writer import StreamWriter
from structlog.testing import capture_logs

from service.app import create_app
from service.errors import ClientStalled
from service.sandbox import ANY_IMAGE, DEMO_ORDER_ID, Fault, Kind, Sandbox, SandboxImage, SandboxOrder
from service.settings import MIB, Settings
from service.upstream import retry
from service.web.downloads.context import DOWNLOADS, DownloadsContext
from service.web.downloads.record import ArchiveRecord
from service.web.http import streaming_response as archive_response
from service.web.http.streaming_response import WRITE_BUFFER_BYTES, StreamingResponse
from tests.archives import add_order, download, entries, images_url, jpeg
from tests.conftest import StartService
from tests.fakes.downloads import CheckedBudget

NOT_THERE = "00000000-0000-4000-8000-000000000000"
OPS_PATHS = ("/health", "/health/live", "/health/ready", "/metrics")
# More than the kernel's buffers on both sides can ever hold, so that an archive of it must wait for its reader.
ENDLESS_BYTES = 512 * MIB
# An archive of 128 MiB, and the most of it that may be under way: the kernel's send buffer (tcp(7), tcp_wmem: 4 MiB),
# the images in flight (5 MiB), the read-ahead (1 MiB), the client's receive buffers, and a reserve. Measured: 10 MiB.
PAUSED_IMAGES = 128
PAUSED_LIMIT_BYTES = 32 * MIB
LAST_CHUNK = b"\r\n0\r\n"


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> Callable[[], DownloadsContext]:
    """Return a function that returns the context of the service that was started last, with its counters."""
    apps: list[web.Application] = []

    def create(settings: Settings, *, demo_order_id: str | None) -> web.Application:
        apps.append(create_app(settings, demo_order_id=demo_order_id))
        return apps[-1]

    monkeypatch.setattr("service.server.run.create_app", create)
    return lambda: apps[-1][DOWNLOADS]


Inside = Callable[[], DownloadsContext]


def count_of(context: DownloadsContext, outcome: str) -> float:
    """Return how many archives ended in this way."""
    return context.metrics.registry.get_sample_value("batch_archives_total", {"outcome": outcome}) or 0


def all_at_rest(sandbox: Sandbox) -> Callable[[], bool]:
    """Return the condition that neither origin of the sandbox works on anything."""
    return lambda: not any(sandbox.log.running.values())


def add_endless_order(sandbox: Sandbox, images: int = 1) -> SandboxOrder:
    """Add an order whose archive fills every buffer on the way to a client that does not read."""
    return sandbox.add_order([SandboxImage(f"{n}.jpg", size_bytes=ENDLESS_BYTES) for n in range(images)])


@asynccontextmanager
async def stalled_client(service: str, order: SandboxOrder) -> AsyncIterator[socket.socket]:
    """Request an archive and read nothing of it; yield the socket."""
    host, port = service.removeprefix("http://").split(":")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (host, int(port)))
        path = images_url(service, order.order_id).raw_path
        await loop.sock_sendall(sock, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        yield sock


async def read_to_the_end(sock: socket.socket) -> bytes:
    """Return the last bytes of a connection that the service has ended, or that its kernel has given up."""
    tail = b""
    loop = asyncio.get_running_loop()
    with suppress(ConnectionResetError):
        while data := await loop.sock_recv(sock, MIB):
            tail = (tail + data)[-1000:]
    return tail


# Admission.


async def test_full_house(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession, inside: Inside
) -> None:
    """When all slots are in use the next request is rejected at once, but not the operator's; a free slot is used."""
    service = await start_service(max_archives=1)
    order = add_order(sandbox, [3000])
    gate = sandbox.faults.pause(order.images[0].image_id, after_bytes=1000)
    async with client.get(images_url(service, order.order_id)) as first:
        await first.content.readexactly(500)
        requests = len(sandbox.requests)
        for method in ("GET", "HEAD"):
            async with client.request(method, images_url(service, DEMO_ORDER_ID)) as rejected:
                assert rejected.status == 503
                assert int(rejected.headers["Retry-After"]) > 0
                assert rejected.content_type == "application/problem+json"
                if method == "GET":
                    assert (await rejected.json(content_type=None))["type"] == "/problems/at-capacity"
        for path in OPS_PATHS:
            async with client.get(service + path) as response:
                assert response.status == 200
        assert len(sandbox.requests) == requests
        gate.release()
        await first.read()
    await inside().admission.wait_until_idle()
    assert len(await download(client, images_url(service, DEMO_ORDER_ID))) == 14


async def test_bad_request_needs_no_slot(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """What is wrong with a request is said also when there is no room for it."""
    service = await start_service(max_archives=1)
    order = add_order(sandbox, [3000])
    sandbox.faults.pause(order.images[0].image_id, after_bytes=1000)
    async with client.get(images_url(service, order.order_id)) as first:
        await first.content.readexactly(500)
        async with client.get(images_url(service, DEMO_ORDER_ID, "?previw=false")) as rejected:
            assert rejected.status == 400
        first.close()


async def _leave(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    order = add_order(sandbox, [3000])
    sandbox.faults.pause(order.images[0].image_id, after_bytes=1000)
    response = await client.get(images_url(service, order.order_id))
    await response.content.readexactly(500)
    response.close()


async def _request_an_unknown_order(_: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    async with client.get(images_url(service, NOT_THERE)) as response:
        assert response.status == 404


async def _fail_to_be_looked_up(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    sandbox.faults.order(DEMO_ORDER_ID, [Fault(Kind.NOT_JSON)])
    async with client.get(images_url(service, DEMO_ORDER_ID)) as response:
        assert response.status == 502


async def _get_nothing(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    order = add_order(sandbox, [3000])
    sandbox.faults.always(order.images[0].image_id, Fault(Kind.STATUS, status=404), origin="api")
    async with client.get(images_url(service, order.order_id)) as response:
        assert response.status == 422


async def _get_a_broken_archive(sandbox: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    order = add_order(sandbox, [3000] * 2)
    first = sandbox.faults.pause(order.images[0].image_id, after_bytes=1000)
    second = sandbox.faults.pause(order.images[1].image_id, origin="api")
    async with client.get(images_url(service, order.order_id, "?on_error=abort")) as response:
        await response.content.readexactly(500)
        await second.reached.wait()
        sandbox.set_status(order.images[1].image_id, "expired")
        second.release()
        first.release()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def _send_a_head_request(_: Sandbox, service: str, client: aiohttp.ClientSession) -> None:
    async with client.head(images_url(service, DEMO_ORDER_ID)) as response:
        assert response.status == 200


Ending = Callable[[Sandbox, str, aiohttp.ClientSession], Awaitable[None]]
ENDINGS: list[Ending] = [
    _leave,
    _request_an_unknown_order,
    _fail_to_be_looked_up,
    _get_nothing,
    _get_a_broken_archive,
    _send_a_head_request,
]


@pytest.mark.parametrize("end", ENDINGS, ids=lambda end: end.__name__.strip("_"))
async def test_every_end_frees_its_slot(
    end: Ending, sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession, inside: Inside
) -> None:
    """However an archive ends, the next can use its slot."""
    service = await start_service(max_archives=1)
    for _ in range(3):
        await end(sandbox, service, client)
        await inside().admission.wait_until_idle()
        assert len(await download(client, images_url(service, DEMO_ORDER_ID))) == 14
        await inside().admission.wait_until_idle()


# Clients that do not read.


async def test_client_that_reads_nothing_is_cut_off(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession, inside: Inside
) -> None:
    """A stalled client loses its connection, in mid-archive, and everything that was done for it ends."""
    service = await start_service(client_stall_seconds=0.2, max_archives=1)
    order = add_endless_order(sandbox, images=3)
    async with stalled_client(service, order) as sock:
        await sandbox.wait_until(lambda: sandbox.active_requests > 0)
        await inside().admission.wait_until_idle()
        await sandbox.wait_until(all_at_rest(sandbox))
        assert count_of(inside(), "client_gone") == 1
        assert inside().total_budget.held_bytes == 0
        assert len(await download(client, images_url(service, DEMO_ORDER_ID))) == 14
        assert LAST_CHUNK not in await read_to_the_end(sock)
    assert max(one.bytes_sent for one in sandbox.requests if one.origin == "storage") < ENDLESS_BYTES


class Transport:
    """A connection, and a client that takes so many bytes between two measurements, until it takes all."""

    def __init__(self, waiting_bytes: int, takes: Iterable[int], sock: socket.socket | None = None) -> None:
        self.waiting_bytes = waiting_bytes
        self.looks = 0
        self.takes_all: Callable[[], None] = lambda: None
        self._takes = iter(takes)
        self._sock = sock

    def get_write_buffer_size(self) -> int:
        """Return what waits here, the kernel's share not included."""
        self.looks += 1
        taken = next(self._takes, None)
        if taken is None:
            self.takes_all()
        self.waiting_bytes -= taken or 0
        return self.waiting_bytes

    def get_extra_info(self, _name: str) -> socket.socket | None:
        """Return the socket: nothing else is requested."""
        return self._sock

    def write(self, _data: bytes) -> None:
        """Take it into the buffer; the test says how much is in there."""

    def is_closing(self) -> bool:
        """Say that the connection is good."""
        return False


def response_to(transport: Transport) -> StreamingResponse:
    """Return a response, with aiohttp's own writer, to a client which has let the buffers run full.

    A stall period is over in the next turn of the event loop, so they are counted and not waited for.
    """
    loop = asyncio.get_running_loop()
    protocol = BaseProtocol(loop)
    writer = StreamWriter(protocol, loop)
    writer.enable_chunking()
    response = StreamingResponse({}, dict, stall_seconds=0)
    below: Any = protocol, response
    below[0].transport = transport
    below[1]._payload_writer, below[1]._req = writer, SimpleNamespace(transport=transport)
    transport.takes_all = below[1]._resume
    return response


async def send(response: StreamingResponse) -> None:
    """Send a piece, and wait until more may be sent.

    Raises:
        ClientStalled: the client does not read.
    """
    writable = asyncio.get_running_loop().create_future()
    response.attach(lambda: writable.set_result(None), writable.set_exception)
    response.send([b"piece"])
    response.flush()
    if not response.send([]):
        await writable


FULL = WRITE_BUFFER_BYTES + 1000


async def test_client_that_takes_a_byte_now_and_then_is_kept() -> None:
    """Any number of stall periods may pass as long as something is taken in each."""
    transport = Transport(FULL, [0] + [1] * 500)
    await send(response_to(transport))
    assert transport.looks == 502


async def test_client_that_stops_taking_is_given_up() -> None:
    """What a client took before does not help it in a period in which it takes nothing."""
    transport = Transport(FULL, [0, 0, 1, 1, 0, 1, 1])
    with pytest.raises(ClientStalled):
        await send(response_to(transport))
    assert transport.looks == 5


async def test_slow_client_is_sent_more_afterwards() -> None:
    """A wait of several periods leaves the connection as good as it was."""
    transport = Transport(FULL, [0, 0, 1, 1, 1])
    response = response_to(transport)
    await send(response)
    transport.waiting_bytes = 0
    await send(response)
    await response.write_eof()


async def test_quick_client_is_not_waited_for() -> None:
    """A piece that finds room is not drained for."""
    transport = Transport(WRITE_BUFFER_BYTES, [0] * 500)
    await send(response_to(transport))
    assert transport.looks == 1


async def test_last_chunk_has_its_limit_too() -> None:
    """A client that stops reading right before the end does not keep its slot indefinitely."""
    with pytest.raises(ClientStalled):
        await response_to(Transport(WRITE_BUFFER_BYTES + 1, [0] * 500)).write_eof()


async def test_time_blocked_by_a_stalled_client_is_counted() -> None:
    """The time for which a client was waited for is known, also of one that was given up."""
    response = response_to(Transport(FULL, [0] * 500))
    with pytest.raises(ClientStalled):
        await send(response)
    assert response.blocked_seconds > 0


@contextmanager
def full_connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give both ends of a connection, the first with as much written to it as the kernel takes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
    with closing(near), closing(far):
        near.setblocking(False)
        far.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                near.send(bytes(MIB))
        yield near, far


def untaken_bytes(sock: socket.socket) -> int:
    """Return the bytes which the kernel holds for the other end (tcp(7), SIOCOUTQ)."""
    count: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    return count


def take_from_kernel(near: socket.socket, far: socket.socket) -> None:
    """Read until the kernel of the other end knows of it."""
    before = untaken_bytes(near)
    while untaken_bytes(near) == before:
        with suppress(BlockingIOError):
            far.recv(4096)


async def test_client_that_takes_from_the_kernel_is_kept() -> None:
    """The kernel's share counts: it gets smaller long before the kernel takes more."""

    def takes() -> Iterator[int]:
        yield 0
        for _ in range(3):
            take_from_kernel(near, far)
            yield 0

    with full_connection() as (near, far):
        transport = Transport(FULL, takes(), near)
        await send(response_to(transport))
        assert transport.looks == 5
        with pytest.raises(ClientStalled):
            await send(response_to(Transport(FULL, [0] * 500, near)))


async def test_slow_client_gets_its_archive(
    sandbox: Sandbox, start_service: StartService, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that takes a little in each of many stall periods is served to the end."""
    service = await start_service(client_stall_seconds=0.02)
    order = sandbox.add_order([SandboxImage("0.jpg", size_bytes=16 * MIB)])
    looks = 0
    enough = asyncio.Event()
    async with stalled_client(service, order) as sock:

        def look(transport: asyncio.Transport) -> int:
            nonlocal looks
            looks += 1
            left_bytes = untaken(transport)
            if looks < 30:
                take_from_kernel(transport.get_extra_info("socket"), sock)
            else:
                enough.set()
            return left_bytes

        untaken = archive_response._untaken_bytes
        monkeypatch.setattr(archive_response, "_untaken_bytes", look)
        await enough.wait()
        tail = b""
        while not tail.endswith(b"X-Failed: 0\r\n\r\n"):
            tail = (tail + await asyncio.get_running_loop().sock_recv(sock, MIB))[-1000:]
    assert tail.endswith(b"\r\n0\r\nX-Downloaded: 1\r\nX-Failed: 0\r\n\r\n")
    await inside().admission.wait_until_idle()
    assert count_of(inside(), "complete") == 1


# What is held for clients that do not read.


class Scarce(CheckedBudget):
    """A budget that sets an event when it is used up."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self.exhausted = asyncio.Event()

    def reserve(self, size: int) -> bool:
        """Reserve bytes."""
        is_reserved = super().reserve(size)
        if not is_reserved:
            self.exhausted.set()
        return is_reserved


def sent_by_storage(sandbox: Sandbox, orders: list[SandboxOrder]) -> int:
    """Return how many bytes the storage has sent for these orders."""
    ids = {image.image_id for order in orders for image in order.images}
    return sum(one.bytes_sent for one in sandbox.requests if one.origin == "storage" and one.image_id in ids)


async def test_stalled_clients_hold_no_more_than_allowed(
    sandbox: Sandbox,
    start_service: StartService,
    client: aiohttp.ClientSession,
    inside: Inside,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Archives of stalled clients hold the whole budget, never more; others are served; in the end all is returned."""
    monkeypatch.setattr("service.web.downloads.context.MemoryBudget", Scarce)
    service = await start_service(read_ahead_bytes=MIB, read_ahead_total_bytes=2 * MIB, images_in_flight=3)
    orders = [add_endless_order(sandbox, images=3) for _ in range(4)]
    small = add_order(sandbox, [100_000] * 12)
    budget = inside().total_budget
    assert isinstance(budget, Scarce)
    async with AsyncExitStack() as stack:
        for order in orders:
            await stack.enter_async_context(stalled_client(service, order))
        await budget.exhausted.wait()
        # While downloads beside them go on, the stalled ones come to rest: no more is read for them.
        sent, before = sent_by_storage(sandbox, orders), -1
        while sent != before:
            found = await download(client, images_url(service, small.order_id))
            assert found == {f"{n}.jpg": jpeg(100_000, n) for n in range(12)}
            sent, before = sent_by_storage(sandbox, orders), sent
        assert sent < ENDLESS_BYTES
        assert 0 < budget.held_bytes <= 2 * MIB
        assert inside().admission.active == 4
    await inside().admission.wait_until_idle()
    await sandbox.wait_until(all_at_rest(sandbox))
    budget.check()
    assert count_of(inside(), "client_gone") == 4


async def test_paused_client_pauses_the_upstream(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Backpressure reaches the upstream on every Python version; the archive is whole once it is read.

    ``transport.writelines`` of CPython 3.12.0 to 3.12.8, 3.13.0 and 3.13.1 applies none (CVE-2024-12254).
    """
    sandbox.rate_limit = None
    service = await start_service(read_ahead_bytes=MIB)
    order = sandbox.add_order([SandboxImage(f"{n}.jpg", size_bytes=MIB) for n in range(PAUSED_IMAGES)])
    small = add_order(sandbox, [100_000] * 12)
    async with client.get(images_url(service, order.order_id)) as paused:
        # Other downloads are the clock: the archive rests when the upstream has sent nothing for it during one of them.
        sent, before = sent_by_storage(sandbox, [order]), -1
        while sent != before:
            assert len(await download(client, images_url(service, small.order_id))) == 12
            sent, before = sent_by_storage(sandbox, [order]), sent
        assert MIB <= sent <= PAUSED_LIMIT_BYTES
        found = entries(await paused.read())
    assert {name: len(body) for name, body in found.items()} == {f"{n}.jpg": MIB for n in range(PAUSED_IMAGES)}


# Shares of the upstream.


async def until_at_storage(sandbox: Sandbox, order: SandboxOrder, number: int, *, finished: bool) -> None:
    """Wait until the storage is working on so many images of an order, or has finished them."""

    def holds() -> bool:
        records = (record for image in order.images for record in sandbox.requests_for(image.image_id, "storage"))
        return sum(record.finished is finished for record in records) == number

    await sandbox.wait_until(holds)


def images_requested(sandbox: Sandbox, order: SandboxOrder) -> int:
    """Return how many images of an order were requested, at any origin."""
    return sum(bool(sandbox.requests_for(image.image_id)) for image in order.images)


async def test_connections_are_shared(
    sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession
) -> None:
    """Each archive has its share of the connections, and at least one; what came first shrinks to it."""
    service = await start_service(max_concurrent_downloads=4, images_in_flight=4)
    orders = [add_order(sandbox, [500] * 6) for _ in range(5)]
    gates = [[sandbox.faults.pause(image.image_id) for image in order.images] for order in orders]
    shares = [4, 2, 1, 1, 1]  # of four connections among one, two, three archives and more
    downloads = []
    for order, share in zip(orders, shares, strict=True):
        downloads.append(asyncio.create_task(download(client, images_url(service, order.order_id))))
        await until_at_storage(sandbox, order, share, finished=False)
    assert [images_requested(sandbox, order) for order in orders] == shares
    # The first archive had all four: the next image is not requested before the last of these has ended.
    for ended, gate in enumerate(gates[0][:4], start=1):
        assert images_requested(sandbox, orders[0]) == 4
        gate.release()
        await until_at_storage(sandbox, orders[0], ended, finished=True)
    await until_at_storage(sandbox, orders[0], 1, finished=False)
    assert [images_requested(sandbox, order) for order in orders] == [5, 2, 1, 1, 1]
    sandbox.faults.release_all()
    for found in await asyncio.gather(*downloads):
        assert found == {f"{n}.jpg": jpeg(500, n) for n in range(6)}


# Clients that leave while nothing is written to them.


Wait = Callable[[Sandbox, SandboxOrder, pytest.MonkeyPatch], asyncio.Event]


def _order_look_up(sandbox: Sandbox, order: SandboxOrder, _: pytest.MonkeyPatch) -> asyncio.Event:
    return sandbox.faults.pause_order(order.order_id).reached


def _redirect(sandbox: Sandbox, order: SandboxOrder, _: pytest.MonkeyPatch) -> asyncio.Event:
    return sandbox.faults.pause(order.images[0].image_id, origin="api").reached


def _first_byte(sandbox: Sandbox, order: SandboxOrder, _: pytest.MonkeyPatch) -> asyncio.Event:
    return sandbox.faults.pause(order.images[0].image_id).reached


def _next_byte(sandbox: Sandbox, order: SandboxOrder, _: pytest.MonkeyPatch) -> asyncio.Event:
    return sandbox.faults.pause(order.images[0].image_id, after_bytes=1000).reached


def _retry(sandbox: Sandbox, order: SandboxOrder, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    sandbox.faults.always(order.images[0].image_id, Fault(Kind.STATUS, status=503, retry_after=3600), origin="api")
    begun, backoff_seconds = asyncio.Event(), retry.backoff_seconds

    def watched(tries: int, retry_after: float | None, chance: float) -> float:
        begun.set()
        return backoff_seconds(tries, retry_after, chance)

    monkeypatch.setattr(retry, "backoff_seconds", watched)
    return begun


WAITS: list[Wait] = [_order_look_up, _redirect, _first_byte, _next_byte, _retry]


@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: wait.__name__.strip("_"))
async def test_client_that_leaves_while_the_upstream_is_waited_for(
    wait: Wait, sandbox: Sandbox, start_service: StartService, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the archive waits for, it ends when its client has gone, and nothing more is requested for it."""
    service = await start_service()
    order = add_order(sandbox, [400_000])
    waiting = wait(sandbox, order, monkeypatch)
    async with stalled_client(service, order):
        await waiting.wait()
        requests = len(sandbox.requests)
        assert inside().admission.active == 1
    await inside().admission.wait_until_idle()
    await sandbox.wait_until(all_at_rest(sandbox))
    assert len(sandbox.requests) == requests
    assert inside().total_budget.held_bytes == 0
    assert count_of(inside(), "client_gone") == 1


# What a client that has gone leaves behind, and what a fault of our own does.


def service_timers() -> set[str]:
    """Return the timers of the service's objects that are scheduled in the event loop, by their callbacks."""
    scheduled: Any = asyncio.get_running_loop()
    callbacks = [handle._callback for handle in scheduled._scheduled if not handle.cancelled()]
    return {one.__qualname__ for one in callbacks if (getattr(one, "__module__", "") or "").startswith("service.")}


# Idle connections to the API are kept, and closed by this timer.
KEPT_TIMERS = {"ConnectionPool._sweep"}


@pytest.mark.parametrize("state", ["blocked", "streaming", "waiting", "backing off"])
async def test_client_that_leaves_leaves_nothing_behind(
    state: str, sandbox: Sandbox, start_service: StartService, client: aiohttp.ClientSession, inside: Inside
) -> None:
    """No download, no timer, no bytes and no requests for bytes, no share and no connection to the storage."""
    service = await start_service(
        read_ahead_bytes=2 * MIB, read_ahead_total_bytes=MIB, images_in_flight=3, max_images_in_flight=3
    )
    order = add_order(sandbox, [400_000] * 6) if state != "blocked" else add_endless_order(sandbox, images=6)
    reached = [
        sandbox.faults.pause(image.image_id, after_bytes=1000 if state == "streaming" else None).reached
        for image in order.images[:3]
        if state in {"streaming", "waiting"}
    ]
    if state == "backing off":
        sandbox.faults.always(ANY_IMAGE, Fault(Kind.STATUS, status=503, retry_after=3600), origin="api")
    async with stalled_client(service, order):
        if state == "blocked":
            await sandbox.wait_until(lambda: sent_by_storage(sandbox, [order]) > 0)
            sent, before = 0, -1
            while sent != before:  # a download beside it is the clock
                await download(client, images_url(service, DEMO_ORDER_ID))
                sent, before = sent_by_storage(sandbox, [order]), sent
            assert inside().total_budget.queue_length > 0
        for event in reached:
            await event.wait()
        if state == "backing off":
            await sandbox.wait_until(lambda: sum(one.status == 503 and one.finished for one in sandbox.requests) == 3)
            async with client.get(f"{service}/health/live") as response:
                assert response.status == 200
        assert service_timers() - KEPT_TIMERS
    await inside().admission.wait_until_idle()
    await sandbox.wait_until(all_at_rest(sandbox))
    requests = len(sandbox.requests)
    for _ in range(50):
        await asyncio.sleep(0)
    assert service_timers() <= KEPT_TIMERS
    assert (inside().total_budget.held_bytes, inside().total_budget.queue_length) == (0, 0)
    assert inside().connections.archives == 0
    assert state == "blocked" or sandbox.open_connections == 0  # there another download has left idle ones
    assert len(sandbox.requests) == requests
    assert count_of(inside(), "client_gone") == 1


@pytest.mark.parametrize(
    ("method", "outcome"), [("image_granted", "failed"), ("entry_opened", "aborted"), ("image_finished", "aborted")]
)
async def test_fault_in_a_callback_breaks_the_archive(
    method: str,
    outcome: str,
    sandbox: Sandbox,
    start_service: StartService,
    client: aiohttp.ClientSession,
    inside: Inside,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An observer that raises is not just logged, and not taken for a failure of the upstream that may be retried."""

    def fail(*_: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(ArchiveRecord, method, fail)
    service = await start_service(images_in_flight=1, max_images_in_flight=1)
    order = add_order(sandbox, [3000, 3000])
    with capture_logs() as lines:
        response = await client.get(images_url(service, order.order_id))
        if outcome == "failed":
            assert response.status == 500
        else:
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        await inside().admission.wait_until_idle()
    (failed,) = [line for line in lines if line["event"] == "request.failed"]
    assert str(failed["exc_info"]) == "a fault"
    assert len(sandbox.requests_for(order.images[0].image_id, "api")) == 1
    assert inside().total_budget.held_bytes == 0
    assert count_of(inside(), outcome) == 1
