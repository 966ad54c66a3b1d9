"""Server-side HTTP: connections, bodies, streaming responses, problems. The only user of aiohttp's server internals."""
