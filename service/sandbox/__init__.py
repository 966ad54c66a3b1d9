"""Test double of the Autoenhance.ai API on loopback, for tests, demo and benchmark; never for production.

It imports nothing else of the service, so that it cannot share the service's mistakes. Start reading at ``server.py``
(the parts), then ``api.py`` and ``storage.py`` (the requests of a download).
"""

from service.sandbox.faults import ANY_IMAGE, Fault, FaultPlan, Gate, Kind, Origin
from service.sandbox.image_bodies import SandboxUnavailableError
from service.sandbox.orders import (
    DEMO_ORDER_ID,
    EMPTY_ORDER_ID,
    LARGE_ORDER_ID,
    LIVE_ORDER_ID,
    MERGING_ORDER_ID,
    PARTIAL_ORDER_ID,
)
from service.sandbox.records import RequestRecord
from service.sandbox.server import Sandbox
from service.sandbox.state import SandboxImage, SandboxOrder

__all__ = [
    "ANY_IMAGE",
    "DEMO_ORDER_ID",
    "EMPTY_ORDER_ID",
    "LARGE_ORDER_ID",
    "LIVE_ORDER_ID",
    "MERGING_ORDER_ID",
    "PARTIAL_ORDER_ID",
    "Fault",
    "FaultPlan",
    "Gate",
    "Kind",
    "Origin",
    "RequestRecord",
    "Sandbox",
    "SandboxImage",
    "SandboxOrder",
    "SandboxUnavailableError",
]
