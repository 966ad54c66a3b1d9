"""The baseline: an aiohttp server that relays the images of the order by aiohttp's client, over the same three hops.

It looks the order up, fetches five images at a time, and sends their bytes one after the other, as they came: no ZIP,
no verification, no retry, no log. Run with ``python -m tests.bench.relay API_BASE``; prints its address.
"""

import asyncio
import sys

import aiohttp
from aiohttp import web

IMAGES_IN_FLIGHT = 5
HEADERS = {"x-api-key": "benchmark", "x-api-version": "2025-05-08"}


async def main(api_base: str) -> None:
    """Serve until killed."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False, headers=HEADERS) as session:

        async def fetch(image_id: str, chunks: "asyncio.Queue[bytes | None]") -> None:
            async with session.get(f"{api_base}/images/{image_id}/enhanced?preview=true&format=jpeg") as upstream:
                async for chunk in upstream.content.iter_any():
                    await chunks.put(chunk)
            await chunks.put(None)

        async def relay(request: web.Request) -> web.StreamResponse:
            async with session.get(f"{api_base}/orders/{request.match_info['order']}") as upstream:
                order = await upstream.json(content_type=None)
            response = web.StreamResponse()
            await response.prepare(request)
            waiting = [image["image_id"] for image in reversed(order["images"])]
            running: list[tuple[asyncio.Task[None], asyncio.Queue[bytes | None]]] = []
            while waiting or running:
                while waiting and len(running) < IMAGES_IN_FLIGHT:
                    chunks: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=16)
                    running.append((asyncio.create_task(fetch(waiting.pop(), chunks)), chunks))
                task, chunks = running.pop(0)
                while (chunk := await chunks.get()) is not None:
                    await response.write(chunk)
                await task
            await response.write_eof()
            return response

        app = web.Application()
        app.router.add_get("/orders/{order}/images", relay)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        sys.stdout.write(f"http://127.0.0.1:{runner.addresses[0][1]}/\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
