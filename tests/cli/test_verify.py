"""Verification of downloaded archives."""

from pathlib import Path

import aiohttp
import pytest

from service.cli.verify import ArchiveDamaged, verify_archive
from service.sandbox import Sandbox
from tests.archives import add_order


@pytest.mark.parametrize("offset", [100, 1500])
async def test_verify_finds_a_flipped_bit(
    offset: int, sandbox: Sandbox, service: str, client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """One wrong bit anywhere in an image fails the verification."""
    order = add_order(sandbox, [1000, 2000])
    async with client.get(f"{service}/orders/{order.order_id}/images?layout=stored&manifest=always") as response:
        archive = bytearray(await response.read())
    (tmp_path / "a.zip").write_bytes(archive)
    assert len(verify_archive(tmp_path / "a.zip").images) == 2
    archive[offset] ^= 1
    (tmp_path / "a.zip").write_bytes(archive)
    with pytest.raises(ArchiveDamaged):
        verify_archive(tmp_path / "a.zip")
