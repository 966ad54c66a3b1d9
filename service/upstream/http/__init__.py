"""The HTTP client: redirects, the connection pool, HTTP/1.1. The only client-side use of aiohttp's internals."""
