"""The upstream of the benchmark: order and images as static files, served by nginx where it is installed.

nginx is the fastest origin, so the service is what is measured. The redirects are those of the real API:
API → asset server → storage. With a delay, or without nginx, an aiohttp server is used instead.
"""

import asyncio
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trustme
from aiohttp import web

ORDER_ID = "be9c0000-0000-4000-8000-000000000001"
# An empty segment starts a scan, and its end is marked. An FF between them would be another marker.
JPEG_START, JPEG_END = b"\xff\xd8\xff\xda\0\x02", b"\xff\xd9"
IMAGE, WHOLE = "image.jpg", "whole.bin"

_NGINX = """
daemon off; worker_processes 1; error_log stderr crit; pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; types {{ }} default_type image/jpeg;
  {certificate}
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{api_port}{tls};
    location ~ ^/v3/orders/ {{ default_type application/json; alias {folder}/order.json; }}
    location /v3/images/ {{ return 302 /asset$request_uri; }}
    location /asset/ {{ return 302 {scheme}://127.0.0.1:{storage_port}/{image}?of=$request_uri; }}
  }}
  server {{ listen 127.0.0.1:{storage_port}{tls}; root {folder}; }}
}}
"""


@dataclass(frozen=True)
class Origin:
    """A running origin: the API's base address, and the address of one body as large as all images together.

    ``environment`` has what a client needs to trust its certificate.
    """

    api_base: str
    whole_url: str
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """The images of the order: their number and the bytes of each."""

    images: int
    image_bytes: int

    @property
    def total_bytes(self) -> int:
        """Bytes of all images."""
        return self.images * self.image_bytes


def write_files(folder: Path, load: Load) -> None:
    """Write the order, the one file that serves as all of its images, and a sparse body of their total size."""
    images = [{"image_id": f"image-{n}", "image_name": f"{n}.jpg", "status": "processed"} for n in range(load.images)]
    order = {"order_id": ORDER_ID, "name": "Benchmark", "images": images}
    (folder / "order.json").write_text(json.dumps(order), encoding="ascii")
    filling = os.urandom(load.image_bytes - len(JPEG_START) - len(JPEG_END)).replace(b"\xff", b"\xfe")
    (folder / IMAGE).write_bytes(JPEG_START + filling + JPEG_END)
    with (folder / WHOLE).open("wb") as whole:
        whole.truncate(load.total_bytes)


@asynccontextmanager
async def running_origin(folder: Path, *, delay_seconds: float = 0.0, tls: bool = False) -> AsyncIterator[Origin]:
    """Serve the files of ``folder``; ``delay_seconds`` pass before the first byte of each image. TLS needs nginx."""
    if delay_seconds or shutil.which("nginx") is None:
        async with _aiohttp_origin(folder, delay_seconds) as origin:
            yield origin
        return
    api_port, storage_port = _free_ports(2)
    config = folder / "nginx.conf"
    scheme, listen, certificate, environment = _secured(folder) if tls else ("http", "", "", {})
    config.write_text(
        _NGINX.format(
            folder=folder, api_port=api_port, storage_port=storage_port, image=IMAGE,
            scheme=scheme, tls=listen, certificate=certificate,
        )
    )  # fmt: skip
    process = await asyncio.create_subprocess_exec("nginx", "-c", str(config), "-p", str(folder))
    try:
        await _listening(storage_port)
        yield _origin(api_port, storage_port, scheme, environment)
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def _aiohttp_origin(folder: Path, delay_seconds: float) -> AsyncIterator[Origin]:
    api_port, storage_port = _free_ports(2)

    async def order(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=(folder / "order.json").read_bytes(), content_type="application/json")

    async def enhanced(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": f"/asset{request.raw_path}"})

    async def asset(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": f"http://127.0.0.1:{storage_port}/{IMAGE}"})

    async def stored(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(delay_seconds)
        return web.FileResponse(folder / request.match_info["name"], headers={"Content-Type": "image/jpeg"})

    api, storage = web.Application(), web.Application()
    api.router.add_get("/v3/orders/{order}", order)
    api.router.add_get("/v3/images/{image}/enhanced", enhanced)
    api.router.add_get("/asset/{tail:.*}", asset)
    storage.router.add_get("/{name}", stored)
    runners = [web.AppRunner(app, access_log=None) for app in (api, storage)]
    for runner, port in zip(runners, (api_port, storage_port), strict=True):
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield _origin(api_port, storage_port, "http", {})
    finally:
        for runner in runners:
            await runner.cleanup()


def _origin(api_port: int, storage_port: int, scheme: str, environment: dict[str, str]) -> Origin:
    return Origin(f"{scheme}://127.0.0.1:{api_port}/v3", f"{scheme}://127.0.0.1:{storage_port}/{WHOLE}", environment)


def _secured(folder: Path) -> tuple[str, str, str, dict[str, str]]:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    certificate.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    file = folder / "server.pem"
    lines = f"ssl_certificate {file}; ssl_certificate_key {file};"
    return "https", " ssl", lines, {"SSL_CERT_FILE": str(folder / "authority.pem")}


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


async def _listening(port: int) -> None:
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
            continue
        writer.close()
        return
    raise TimeoutError("the origin does not listen")
