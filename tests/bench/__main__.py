"""``make bench``: throughput, CPU and memory of the service, beside a relay of the same three hops without a ZIP.

Absolute times depend on the machine, hence the ratios. The cases are measured alternately, several rounds each, and
medians are shown.
"""

import argparse
import asyncio
import functools
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.measure import GIB, MIB, Server, Transfer, fetch, server_process
from tests.bench.origin import ORDER_ID, Load, Origin, running_origin, write_files

ARCHIVE = f"orders/{ORDER_ID}/images"
QUARTER_GIB, FOUR_GIB = Load(64, 4 * MIB), Load(1024, 4 * MIB)
LATENT_IMAGES, LATENCY_SECONDS = Load(200, 100_000), 0.1
SLOW_CLIENTS, SLOW_LOAD, SLOW_BYTES_PER_SECOND = 24, Load(8, 4 * MIB), "8M"


@dataclass(frozen=True)
class Case:
    """A load, how many clients download it at a time, and the ratio to the relay that is wanted, if one is."""

    name: str
    load: Load
    clients: int = 1
    target: float | None = None
    tls: bool = False


CASES = (
    Case("50 x 4 MiB", Load(50, 4 * MIB), target=1.0),
    Case("200 x 300 KB", Load(200, 300_000), target=1.5),
    Case("1000 x 40 KB", Load(1000, 40_000), target=1.75),
    Case("8 clients, 50 x 1 MiB each", Load(50, MIB), clients=8),
    Case("64 clients, 20 x 300 KB each", Load(20, 300_000), clients=64),
    Case("50 x 4 MiB, TLS to the upstream", Load(50, 4 * MIB), tls=True),
    Case("200 x 300 KB, TLS to the upstream", Load(200, 300_000), tls=True),
)


def environment_for(origin: Origin, **environment: str) -> dict[str, str]:
    """Return the environment of a service with the origin as its upstream."""
    return {
        "AUTOENHANCE_API_BASE": origin.api_base,
        "AUTOENHANCE_API_KEY": "benchmark",
        "ALLOW_PRIVATE_UPSTREAM": "true",
        "HOST": "127.0.0.1",
        "PORT": "0",
        "UPSTREAM_REQUESTS_PER_SECOND": "100000",
        **origin.environment,
        **environment,
    }


@asynccontextmanager
async def service(origin: Origin, **environment: str) -> AsyncIterator[Server]:
    """Start the service with the origin as its upstream."""
    async with server_process(["-m", "service", "serve"], environment_for(origin, **environment)) as server:
        await fetch(server, ARCHIVE)  # warm
        yield server


@asynccontextmanager
async def fresh_service(origin: Origin) -> AsyncIterator[Server]:
    """Start the service, and let it do nothing but report its health."""
    async with server_process(["-m", "service", "serve"], environment_for(origin)) as server:
        await fetch(server, "health")
        yield server


@asynccontextmanager
async def relay(origin: Origin) -> AsyncIterator[Server]:
    """Start the relay with the origin as its upstream."""
    async with server_process(["-m", "tests.bench.relay", origin.api_base], origin.environment) as server:
        await fetch(server, ARCHIVE)  # warm
        yield server


async def in_turn(rounds: int, *runs: Callable[[], Awaitable[Transfer]]) -> list[list[Transfer]]:
    """Run each in turn, ``rounds`` times, so that a change of the machine's speed affects all."""
    results: list[list[Transfer]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, result in zip(runs, results, strict=True):
            result.append(await run())
    return results


def median(transfers: Sequence[Transfer], figure: Callable[[Transfer], float]) -> float:
    """Return the median of a figure."""
    return statistics.median(map(figure, transfers))


def ratio(numerator: Sequence[Transfer], denominator: Sequence[Transfer]) -> float:
    """Return the median of the pairwise ratios of the time taken, the denominator's by the numerator's."""
    pairs = zip(numerator, denominator, strict=True)
    return statistics.median(other.seconds / one.seconds for one, other in pairs)


async def downloads(server: Server, clients: int) -> Transfer:
    """Download by several clients at once: all that was transferred, until the last of them was done."""
    before = server.cpu_seconds()
    transfers = await asyncio.gather(*(fetch(server, ARCHIVE) for _ in range(clients)))
    return Transfer(
        seconds=max(one.seconds for one in transfers),
        first_byte_seconds=max(one.first_byte_seconds for one in transfers),
        transferred_bytes=sum(one.transferred_bytes for one in transfers),
        cpu_seconds=server.cpu_seconds() - before,
    )


async def beside_the_relay(folder: Path, case: Case, rounds: int) -> list[str]:
    """Compare archives with the relay of the same images."""
    write_files(folder, case.load)
    async with running_origin(folder, tls=case.tls) as origin, service(origin) as ours, relay(origin) as theirs:
        archives, relayed = await in_turn(
            rounds, *(functools.partial(downloads, server, case.clients) for server in (ours, theirs))
        )
        images = case.load.images * case.clients
        return [
            case.name,
            *(f"{median(one, lambda one: one.bytes_per_second) / MIB:.0f} MiB/s" for one in (archives, relayed)),
            f"{ratio(archives, relayed):.2f}",
            "" if case.target is None else f"{case.target:g}",
            *(f"{median(one, lambda one: one.cpu_seconds) / images * 1e6:.0f}" for one in (archives, relayed)),
            f"{ours.memory_bytes('VmHWM') / MIB:.0f} MiB",
        ]


async def layouts(folder: Path, rounds: int) -> list[str]:
    """Compare the two layouts of an archive."""
    write_files(folder, CASES[0].load)
    async with running_origin(folder) as origin, service(origin) as ours:
        streamable, stored = await in_turn(
            rounds, *(functools.partial(fetch, ours, f"{ARCHIVE}?layout={one}") for one in ("streamable", "stored"))
        )
        speeds = [f"{median(one, lambda one: one.bytes_per_second) / MIB:.0f} MiB/s" for one in (streamable, stored)]
        return [CASES[0].name, *speeds, f"{ratio(streamable, stored):.2f}"]


async def against_serial(folder: Path) -> list[str]:
    """Compare the adaptive window with one image after the other, each with a delay before its first byte."""
    write_files(folder, LATENT_IMAGES)
    async with (
        running_origin(folder, delay_seconds=LATENCY_SECONDS) as origin,
        service(origin) as adaptive,
        service(origin, IMAGES_IN_FLIGHT="1", MAX_IMAGES_IN_FLIGHT="1") as serial,
    ):
        ours, theirs = await in_turn(1, lambda: fetch(adaptive, ARCHIVE), lambda: fetch(serial, ARCHIVE))
        return [
            "200 x 100 KB, 100 ms to each first byte",
            f"{median(ours, lambda one: one.seconds):.2f} s",
            f"{median(theirs, lambda one: one.seconds):.2f} s one by one",
            f"{ratio(ours, theirs):.1f} (target 15)",
        ]


async def first_byte(folder: Path, rounds: int) -> list[str]:
    """Compare the first byte of the ZIP with the first byte that the same requests give a client directly."""
    write_files(folder, CASES[1].load)
    async with running_origin(folder) as origin, service(origin) as ours:
        api = Server(origin.api_base, ours.pid)

        async def upstream() -> Transfer:
            order = await fetch(api, f"orders/{ORDER_ID}")
            image = await fetch(api, "images/image-0/enhanced", "-L")
            return Transfer(1, order.first_byte_seconds + image.first_byte_seconds, 1, 0)

        archives, bare = await in_turn(rounds * 4, lambda: fetch(ours, ARCHIVE), upstream)
        mine = median(archives, lambda one: one.first_byte_seconds) * 1000
        own = median(bare, lambda one: one.first_byte_seconds) * 1000
        return ["first byte", f"{mine:.1f} ms", f"{own:.1f} ms upstream alone", f"+{mine - own:.1f} ms (target 5)"]


async def memory_of_one(folder: Path, load: Load) -> tuple[float, float]:
    """Return the idle and the peak memory of a new process, in MiB, for one archive."""
    write_files(folder, load)
    async with running_origin(folder) as origin, fresh_service(origin) as server:
        idle = server.memory_bytes("VmRSS")
        await fetch(server, ARCHIVE)
        return idle / MIB, server.memory_bytes("VmHWM") / MIB


async def slow_clients(folder: Path) -> list[str]:
    """Let many slow clients download at once."""
    write_files(folder, SLOW_LOAD)
    async with running_origin(folder) as origin, fresh_service(origin) as server:
        idle = server.memory_bytes("VmRSS")
        rate = ("--limit-rate", SLOW_BYTES_PER_SECOND)
        transfers = await asyncio.gather(*(fetch(server, ARCHIVE, *rate) for _ in range(SLOW_CLIENTS)))
        above = (server.memory_bytes("VmHWM") - idle) / MIB
    slowest = max(one.seconds for one in transfers)
    fastest = min(one.seconds for one in transfers)
    return [
        f"{SLOW_CLIENTS} clients at 8 MiB/s each, 32 MiB each",
        f"+{above:.0f} MiB above idle",
        "target 128 MiB",
        f"fastest {fastest:.1f} s, slowest {slowest:.1f} s",
    ]


async def run(rounds: int, *, quick: bool) -> None:
    """Measure everything and print the tables."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)  # noqa: PTH101, S103 - nginx's workers are another user
        folder = Path(name)
        cases = [case for case in CASES if shutil.which("nginx") or not case.tls]
        _table(
            ["case", "service", "relay", "ratio", "target", "CPU µs/image", "relay's", "peak memory"],
            [await beside_the_relay(folder, case, rounds) for case in cases],
        )
        _table(["layout", "streamable", "stored", "ratio"], [await layouts(folder, rounds)])
        _table(["latency", "service", "compared", "ratio"], [await against_serial(folder)])
        _table(["start", "service", "compared", "difference"], [await first_byte(folder, rounds)])
        loads = [QUARTER_GIB] if quick else [QUARTER_GIB, FOUR_GIB]
        memory = [(load, await memory_of_one(folder, load)) for load in loads]
        _table(
            ["memory of one archive", "idle", "most", "above idle (target 32 MiB)"],
            [
                [f"{load.total_bytes / GIB:g} GiB", f"{idle:.0f} MiB", f"{most:.0f} MiB", f"+{most - idle:.0f} MiB"]
                for load, (idle, most) in memory
            ],
        )
        _table(["many slow clients", "memory", "target", "fairness"], [await slow_clients(folder)])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [head, ["---"] * len(head), *rows]
    sys.stdout.write("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="leave out the archive of 4 GiB")
    options = parser.parse_args()
    asyncio.run(run(options.rounds, quick=options.quick))
