"""The HTTP server side: connections, bodies and streaming responses. Uses internals of aiohttp."""
