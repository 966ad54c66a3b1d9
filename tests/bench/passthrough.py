"""The baseline: an aiohttp server that relays one body and does nothing else.

Run with ``python -m tests.bench.passthrough URL``; prints its address. With ``--keep-heap`` it tunes malloc as the
service does.
"""

import asyncio
import sys

import aiohttp
from aiohttp import web

from service.server.runtime import tune_malloc


async def main(url: str) -> None:
    """Serve the body at ``url`` until killed."""
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        async def relay(request: web.Request) -> web.StreamResponse:
            async with session.get(url) as upstream:
                response = web.StreamResponse()
                await response.prepare(request)
                async for chunk in upstream.content.iter_any():
                    await response.write(chunk)
                await response.write_eof()
                return response

        app = web.Application()
        app.router.add_get("/", relay)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        sys.stdout.write(f"http://127.0.0.1:{runner.addresses[0][1]}/\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    if "--keep-heap" in sys.argv:
        tune_malloc()
    asyncio.run(main(sys.argv[1]))
