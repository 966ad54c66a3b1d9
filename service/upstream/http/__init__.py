"""The HTTP client side: redirects, connections and one HTTP/1.1 exchange. Uses internals of aiohttp."""
