"""One chaos run: several callers at once, the real service process, and a sandbox that misbehaves."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from service.sandbox import Sandbox
from tests.archives import images_url
from tests.chaos.checks import judge
from tests.chaos.client import download
from tests.chaos.environment import Stage
from tests.chaos.evidence import Arrived, Ending, Finding, Flaw, Outcome, Verdict
from tests.chaos.scenario import Scenario, make_scenario
from tests.chaos.second_reader import complaint_of, find_unzip
from tests.chaos.tally import Tally, events_of
from tests.server.test_process import RunningService, service_process

# Short waits, so that silence costs little; many tries, so that most images arrive; little room, so that it is full.
SERVICE_SETTINGS = {
    "IMAGE_TIMEOUT_SECONDS": "0.6",
    "IMAGE_ATTEMPTS": "5",
    "FIRST_BYTE_SECONDS": "20",
    "READ_AHEAD_BYTES": str(1024 * 1024),
    "READ_AHEAD_TOTAL_BYTES": str(3 * 1024 * 1024),
}
# The service gives open connections 5 s.
STOPPING_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much chaos. The run ends with whichever bound comes first; archives which were begun are finished."""

    seed: int
    seconds: float
    archives: int
    clients: int
    only: int | None = None


async def run(plan: Plan) -> Tally:
    """Run the chaos and return what came of it."""
    started = time.monotonic()
    unzip = find_unzip()
    tally = Tally(plan.seed, clients=plan.clients, unzip=unzip is not None)
    async with Sandbox(rate_limit=None) as sandbox, service_process(sandbox, **SERVICE_SETTINGS) as service:
        theatre = Theatre(sandbox, service.url, tally, unzip)
        numbers = iter([plan.only] if plan.only is not None else range(1, plan.archives + 1))
        in_time = itertools.takewhile(lambda _: time.monotonic() < started + plan.seconds, numbers)
        async with asyncio.TaskGroup() as callers:
            for _ in range(plan.clients):
                callers.create_task(_call(theatre, plan.seed, in_time))
        tally.add_run(_end_of_sandbox(sandbox))
        tally.add_run(await _end_of_service(service, sandbox.api_key))
        tally.faults.update({kind.value: count for kind, count in sandbox.faults.injected.items()})
        tally.add_log(events_of(service.lines))
    tally.seconds = time.monotonic() - started
    return tally


async def _call(theatre: "Theatre", seed: int, numbers: Iterator[int]) -> None:
    for number in numbers:
        await theatre.play(make_scenario(seed, number, sorted(theatre.sandbox.formats)))


class Theatre:
    """Plays scenarios, several at once."""

    def __init__(self, sandbox: Sandbox, service: str, tally: Tally, unzip: str | None) -> None:
        self.sandbox = sandbox
        self._service = service
        self._tally = tally
        self._unzip = unzip
        self._limits: Counter[int] = Counter()

    async def play(self, scenario: Scenario) -> Arrived:
        """Download the archive of one scenario, judge it and count it; return what came."""
        stage = Stage(self.sandbox, scenario)
        with stage.standing(), self._limited(scenario.rate_limit):
            url = images_url(self._service, scenario.order_id).with_query(scenario.query)
            arrived = await download(url, scenario.manners, stage.progress)
            running = await stage.still_running()
            asked = stage.asked()
            leaks = stage.leaks()
        verdict = judge(asked, arrived)
        late = [Finding(Flaw.STILL_RUNNING, one.path, one.image_id or "") for one in running]
        complaint = await self._second_opinion(arrived)
        self._tally.bytes_received += len(arrived.body)
        self._tally.add(scenario, asked, _with(verdict, [*late, *leaks, *complaint]))
        return arrived

    async def _second_opinion(self, arrived: Arrived) -> list[Finding]:
        if self._unzip is None or arrived.ending is not Ending.CLEAN or arrived.status != 200:
            return []
        complaint = await complaint_of(self._unzip, arrived.body)
        return [] if complaint is None else [Finding(Flaw.UNREADABLE, f"Info-ZIP: {complaint}")]

    @contextmanager
    def _limited(self, limit: int | None) -> Iterator[None]:
        """Lower the sandbox's rate limit; of several limits the lowest holds."""
        if limit is None:
            yield
            return
        self._limits[limit] += 1
        self.sandbox.rate_limit = min(+self._limits)
        try:
            yield
        finally:
            self._limits[limit] -= 1
            self.sandbox.rate_limit = min(+self._limits, default=None)


def _with(verdict: Verdict, findings: list[Finding]) -> Verdict:
    if not findings:
        return verdict
    return replace(verdict, outcome=Outcome.FAILED, findings=(*verdict.findings, *findings))


def _end_of_sandbox(sandbox: Sandbox) -> Iterator[Finding]:
    if sandbox.active_requests:
        yield Finding(Flaw.STILL_RUNNING, f"{sandbox.active_requests} requests to the storage after the last archive")
    if sandbox.reused_targets:
        yield Finding(Flaw.TARGET_REUSED, f"{sandbox.reused_targets} redirect targets were used twice")
    if sandbox.key_leaks:
        yield Finding(Flaw.KEY_LEAKED, f"to the storage, in {len(sandbox.key_leaks)} requests")


async def _end_of_service(service: RunningService, api_key: str) -> list[Finding]:
    """Stop the service and return what its exit and its log have to be blamed for."""
    findings = []
    try:
        async with asyncio.timeout(STOPPING_SECONDS):
            if (code := await service.stop()) != 0:
                findings.append(Finding(Flaw.SERVICE, f"exit code {code}"))
    except TimeoutError:
        findings.append(Finding(Flaw.SERVICE, f"it has not stopped within {STOPPING_SECONDS:g} s"))
    secrets = [line for line in service.lines if api_key in line or "Signature" in line]
    errors = [event for event in events_of(service.lines) if _is_error(event)]
    findings += [Finding(Flaw.SERVICE, f"a secret in the log: {line.strip()}") for line in secrets]
    findings += [Finding(Flaw.SERVICE, f"an error in the log: {event}") for event in errors]
    return findings


def _is_error(event: Mapping[str, object]) -> bool:
    return event["event"] == "request.failed" or event.get("level") in {"error", "critical"}
