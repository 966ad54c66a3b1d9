"""A chaos run: concurrent clients, the real service process, and a sandbox that injects faults."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from service.sandbox import Sandbox
from tests.archives import images_url
from tests.chaos.checks import check_transfer
from tests.chaos.client import download
from tests.chaos.environment import ChaosOrder
from tests.chaos.model import CheckResult, Ending, Finding, Flaw, Outcome, Transfer
from tests.chaos.scenario import Scenario, make_scenario
from tests.chaos.tally import Tally, events_of
from tests.chaos.unzip_check import find_unzip, unzip_error
from tests.server.test_process import RunningService, service_process

# Short timeouts, so that a stall takes little time; many attempts, so that most images arrive; small buffers, so that
# they fill up.
SERVICE_SETTINGS = {
    "IMAGE_TIMEOUT_SECONDS": "0.6",
    "IMAGE_ATTEMPTS": "5",
    "FIRST_BYTE_SECONDS": "20",
    "READ_AHEAD_BYTES": str(1024 * 1024),
    "READ_AHEAD_TOTAL_BYTES": str(3 * 1024 * 1024),
}
# The service closes open connections after 5 s.
STOP_TIMEOUT_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The bounds of a run; the first one that is reached ends it. Archives in progress are completed."""

    seed: int
    seconds: float
    archives: int
    clients: int
    only: int | None = None


async def run(plan: Plan) -> Tally:
    """Download archives as planned and return the totals."""
    started = time.monotonic()
    numbers = iter([plan.only] if plan.only is not None else range(1, plan.archives + 1))
    in_time = itertools.takewhile(lambda _: time.monotonic() < started + plan.seconds, numbers)
    async with chaos(plan.seed, plan.clients) as runner:
        await runner.run_all(runner.scenario(number) for number in in_time)
    return runner.tally


@asynccontextmanager
async def chaos(seed: int, clients: int) -> AsyncIterator["ScenarioRunner"]:
    """Start a sandbox and a service; at the end stop them and complete the totals."""
    started = time.monotonic()
    tally = Tally(seed, clients=clients, unzip=find_unzip() is not None)
    async with Sandbox(rate_limit=None) as sandbox, service_process(sandbox, **SERVICE_SETTINGS) as service:
        yield ScenarioRunner(sandbox, service, tally)
        tally.add_run(_end_of_sandbox(sandbox))
        tally.add_run(await _end_of_service(service, sandbox.api_key))
        tally.faults.update({kind.value: count for kind, count in sandbox.faults.injected.items()})
        tally.add_log(events_of(service.lines))
    tally.seconds = time.monotonic() - started


class ScenarioRunner:
    """Runs scenarios concurrently against one sandbox and service."""

    def __init__(self, sandbox: Sandbox, service: RunningService, tally: Tally) -> None:
        self.service = service
        self.tally = tally
        self._sandbox = sandbox
        self._unzip = find_unzip()
        self._limits: Counter[int] = Counter()

    def scenario(self, number: int) -> Scenario:
        """Return the scenario with this number."""
        return make_scenario(self.tally.seed, number, sorted(self._sandbox.formats))

    async def run_all(self, scenarios: Iterable[Scenario]) -> list[Transfer]:
        """Run the scenarios, as many at once as there are clients; return the transfers."""
        waiting, transfers = iter(scenarios), []

        async def client() -> None:
            for scenario in waiting:
                transfers.append(await self.run(scenario))  # noqa: PERF401 - shared by the clients

        async with asyncio.TaskGroup() as clients:
            for _ in range(self.tally.clients):
                clients.create_task(client())
        return transfers

    async def run(self, scenario: Scenario) -> Transfer:
        """Download the archive of one scenario, check and count it; return the transfer."""
        order = ChaosOrder(self._sandbox, scenario)
        with order.installed(), self._limited(scenario.rate_limit):
            url = images_url(self.service.url, scenario.order_id).with_query(scenario.query)
            transfer = await download(url, scenario.behaviour, order.progress)
            running = await order.still_running()
            expected = order.expected()
            key_leaks = order.key_leaks()
        result = check_transfer(expected, transfer)
        late = [Finding(Flaw.STILL_RUNNING, one.path, one.image_id or "") for one in running]
        error = await self._check_with_unzip(transfer)
        self.tally.bytes_received += len(transfer.body)
        self.tally.add(scenario, expected, _with(result, [*late, *key_leaks, *error]))
        return transfer

    async def _check_with_unzip(self, transfer: Transfer) -> list[Finding]:
        if self._unzip is None or transfer.ending is not Ending.CLEAN or transfer.status != 200:
            return []
        error = await unzip_error(self._unzip, transfer.body)
        return [] if error is None else [Finding(Flaw.UNREADABLE, f"Info-ZIP: {error}")]

    @contextmanager
    def _limited(self, limit: int | None) -> Iterator[None]:
        """Lower the sandbox's rate limit; the lowest of several limits applies."""
        if limit is None:
            yield
            return
        self._limits[limit] += 1
        self._sandbox.rate_limit = min(+self._limits)
        try:
            yield
        finally:
            self._limits[limit] -= 1
            self._sandbox.rate_limit = min(+self._limits, default=None)


def _with(result: CheckResult, findings: list[Finding]) -> CheckResult:
    if not findings:
        return result
    return replace(result, outcome=Outcome.FAILED, findings=(*result.findings, *findings))


def _end_of_sandbox(sandbox: Sandbox) -> Iterator[Finding]:
    if sandbox.active_requests:
        yield Finding(Flaw.STILL_RUNNING, f"{sandbox.active_requests} requests to the storage after the last archive")
    if sandbox.reused_targets:
        yield Finding(Flaw.TARGET_REUSED, f"{sandbox.reused_targets} redirect targets were requested twice")
    if sandbox.key_leaks:
        yield Finding(Flaw.KEY_LEAKED, f"to the storage, in {len(sandbox.key_leaks)} requests")


async def _end_of_service(service: RunningService, api_key: str) -> list[Finding]:
    """Stop the service and return the flaws of its exit and its log."""
    findings = []
    try:
        async with asyncio.timeout(STOP_TIMEOUT_SECONDS):
            if (code := await service.stop()) != 0:
                findings.append(Finding(Flaw.SERVICE, f"exit code {code}"))
    except TimeoutError:
        findings.append(Finding(Flaw.SERVICE, f"did not stop within {STOP_TIMEOUT_SECONDS:g} s"))
    secrets = [line for line in service.lines if api_key in line or "Signature" in line]
    errors = [event for event in events_of(service.lines) if _is_error(event)]
    findings += [Finding(Flaw.SERVICE, f"a secret in the log: {line.strip()}") for line in secrets]
    findings += [Finding(Flaw.SERVICE, f"an error in the log: {event}") for event in errors]
    return findings


def _is_error(event: Mapping[str, object]) -> bool:
    return event["event"] == "request.failed" or event.get("level") in {"error", "critical"}
