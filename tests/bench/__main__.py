"""``make bench``: throughput, CPU and memory of the service, compared with a bare relay of the same stack.

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
from pathlib import Path

from tests.bench.measure import GIB, MIB, Server, Transfer, fetch, server_process
from tests.bench.origin import ORDER_ID, Load, Origin, running_origin, write_files

ARCHIVE = f"orders/{ORDER_ID}/images"
LARGE_IMAGES, SMALL_IMAGES = Load(50, 4 * MIB), Load(200, 300_000)
LATENT_IMAGES, LATENCY_SECONDS = Load(40, 300_000), 0.1
QUARTER_GIB, FOUR_GIB = Load(64, 4 * MIB), Load(1024, 4 * MIB)
SLOW_CLIENTS, SLOW_LOAD, SLOW_BYTES_PER_SECOND = 32, Load(8, 4 * MIB), "8M"


@asynccontextmanager
async def service(origin: Origin, **environment: str) -> AsyncIterator[Server]:
    """Start the service with the origin as its upstream."""
    values = {
        "AUTOENHANCE_API_BASE": origin.api_base,
        "AUTOENHANCE_API_KEY": "benchmark",
        "ALLOW_PRIVATE_UPSTREAM": "true",
        "HOST": "127.0.0.1",
        "PORT": "0",
        "UPSTREAM_REQUESTS_PER_SECOND": "100000",
        **origin.environment,
        **environment,
    }
    async with server_process(["-m", "service", "serve"], values) as server:
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
    """Return the median of the pairwise ratios of speed."""
    pairs = zip(numerator, denominator, strict=True)
    return statistics.median(one.bytes_per_second / other.bytes_per_second for one, other in pairs)


async def against_passthrough(
    folder: Path, load: Load, rounds: int, name: str, *, tls: bool = False, **environment: str
) -> list[str]:
    """Compare an archive with a bare relay of one body of the same size, as it comes and with the service's heap."""
    write_files(folder, load)
    async with (
        running_origin(folder, tls=tls) as origin,
        service(origin, **environment) as ours,
        server_process(["-m", "tests.bench.passthrough", origin.whole_url], origin.environment) as relay,
        server_process(
            ["-m", "tests.bench.passthrough", origin.whole_url, "--keep-heap"], origin.environment
        ) as tuned_relay,
    ):
        await fetch(relay)
        await fetch(tuned_relay)
        archives, bodies, tuned = await in_turn(
            rounds, lambda: fetch(ours, ARCHIVE), lambda: fetch(relay), lambda: fetch(tuned_relay)
        )
        return [
            name,
            f"{median(archives, lambda one: one.bytes_per_second) / MIB:.0f} MiB/s",
            f"{median(bodies, lambda one: one.bytes_per_second) / MIB:.0f} MiB/s",
            f"{ratio(archives, bodies):.2f}",
            f"{ratio(archives, tuned):.2f}",
            " / ".join(f"{median(one, lambda one: one.cpu_seconds_per_gib):.2f}" for one in (archives, bodies)),
            f"{ours.memory_bytes('VmHWM') / MIB:.0f} MiB",
        ]


async def layouts(folder: Path, rounds: int) -> list[str]:
    """Compare the two layouts of an archive."""
    write_files(folder, LARGE_IMAGES)
    async with running_origin(folder) as origin, service(origin) as ours:
        streamable, stored = await in_turn(
            rounds, *(functools.partial(fetch, ours, f"{ARCHIVE}?layout={one}") for one in ("streamable", "stored"))
        )
        speeds = [f"{median(one, lambda one: one.bytes_per_second) / MIB:.0f} MiB/s" for one in (streamable, stored)]
        return ["50 x 4 MiB", *speeds, f"{ratio(streamable, stored):.2f}"]


async def against_serial(folder: Path, rounds: int) -> list[str]:
    """Compare five images in flight with one after the other, each with a delay before its first byte."""
    write_files(folder, LATENT_IMAGES)
    async with (
        running_origin(folder, delay_seconds=LATENCY_SECONDS) as origin,
        service(origin) as parallel,
        service(origin, IMAGES_IN_FLIGHT="1") as serial,
    ):
        ours, theirs = await in_turn(rounds, lambda: fetch(parallel, ARCHIVE), lambda: fetch(serial, ARCHIVE))
        return [
            "40 x 300 KB, 100 ms to each first byte, 5 in flight",
            f"{median(ours, lambda one: one.seconds):.2f} s",
            f"{median(theirs, lambda one: one.seconds):.2f} s one by one",
            f"{ratio(ours, theirs):.2f}",
        ]


async def first_byte(folder: Path, rounds: int) -> list[str]:
    """Compare the first byte of the ZIP with the first byte of the same requests sent directly to the upstream."""
    write_files(folder, SMALL_IMAGES)
    async with running_origin(folder) as origin, service(origin) as ours:
        api = Server(origin.api_base, ours.pid)

        async def upstream() -> Transfer:
            order = await fetch(api, f"orders/{ORDER_ID}")
            image = await fetch(api, "images/image-0/enhanced", "-L")
            return Transfer(1, order.first_byte_seconds + image.first_byte_seconds, 1, 0)

        archives, bare = await in_turn(rounds * 4, lambda: fetch(ours, ARCHIVE), upstream)
        mine = median(archives, lambda one: one.first_byte_seconds) * 1000
        own = median(bare, lambda one: one.first_byte_seconds) * 1000
        return ["first byte", f"{mine:.1f} ms", f"{own:.1f} ms upstream alone", f"+{mine - own:.1f} ms"]


async def memory_of_one(folder: Path, load: Load) -> tuple[float, float]:
    """Return the idle and the peak memory of a new process, in MiB, for one archive."""
    write_files(folder, load)
    async with running_origin(folder) as origin:
        values = {"AUTOENHANCE_API_BASE": origin.api_base, "AUTOENHANCE_API_KEY": "benchmark", "HOST": "127.0.0.1"}
        values |= {"ALLOW_PRIVATE_UPSTREAM": "true", "PORT": "0"}
        async with server_process(["-m", "service", "serve"], values) as server:
            await fetch(server, "health")
            idle = server.memory_bytes("VmRSS")
            await fetch(server, ARCHIVE)
            return idle / MIB, server.memory_bytes("VmHWM") / MIB


async def slow_clients(folder: Path) -> list[str]:
    """Let many slow clients download at once."""
    write_files(folder, SLOW_LOAD)
    async with running_origin(folder) as origin:
        values = {"AUTOENHANCE_API_BASE": origin.api_base, "AUTOENHANCE_API_KEY": "benchmark", "HOST": "127.0.0.1"}
        values |= {"ALLOW_PRIVATE_UPSTREAM": "true", "PORT": "0"}
        async with server_process(["-m", "service", "serve"], values) as server:
            await fetch(server, "health")
            idle = server.memory_bytes("VmRSS")
            rate = ("--limit-rate", SLOW_BYTES_PER_SECOND)
            transfers = await asyncio.gather(*(fetch(server, ARCHIVE, *rate) for _ in range(SLOW_CLIENTS)))
            above = (server.memory_bytes("VmHWM") - idle) / MIB
    slowest = max(one.seconds for one in transfers)
    fastest = min(one.seconds for one in transfers)
    return [
        f"{SLOW_CLIENTS} clients at 8 MiB/s each, 32 MiB each",
        f"+{above:.0f} MiB above idle",
        f"bound {64 + 2 * SLOW_CLIENTS} MiB",
        f"fastest {fastest:.1f} s, slowest {slowest:.1f} s",
    ]


async def run(rounds: int, *, quick: bool) -> None:
    """Measure everything and print the tables."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)  # noqa: PTH101, S103 - nginx's workers are another user
        folder = Path(name)
        rows = [
            await against_passthrough(folder, LARGE_IMAGES, rounds, "50 x 4 MiB"),
            await against_passthrough(folder, SMALL_IMAGES, rounds, "200 x 300 KB"),
            *(
                [
                    await against_passthrough(
                        folder, LARGE_IMAGES, rounds, "50 x 4 MiB, TLS to the upstream", tls=True
                    ),
                    await against_passthrough(folder, SMALL_IMAGES, rounds, "200 x 300 KB, TLS", tls=True),
                ]
                if shutil.which("nginx")
                else []
            ),
        ]
        _table(
            ["case", "service", "pass-through", "ratio", "ratio if it keeps its heap", "CPU s/GiB", "peak memory"], rows
        )
        _table(["layout", "streamable", "stored", "ratio"], [await layouts(folder, rounds)])
        _table(["latency", "service", "compared", "ratio"], [await against_serial(folder, rounds)])
        _table(["start", "service", "compared", "difference"], [await first_byte(folder, rounds)])
        loads = [QUARTER_GIB] if quick else [QUARTER_GIB, FOUR_GIB]
        memory = [(load, await memory_of_one(folder, load)) for load in loads]
        _table(
            ["memory of one archive", "idle", "most", "above idle"],
            [
                [f"{load.total_bytes / GIB:g} GiB", f"{idle:.0f} MiB", f"{most:.0f} MiB", f"+{most - idle:.0f} MiB"]
                for load, (idle, most) in memory
            ],
        )
        _table(["many slow clients", "memory", "bound", "fairness"], [await slow_clients(folder)])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    lines = [header, ["---"] * len(header), *rows]
    sys.stdout.write("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="leave out the archive of 4 GiB")
    options = parser.parse_args()
    asyncio.run(run(options.rounds, quick=options.quick))
