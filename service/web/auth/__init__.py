"""Authentication and authorization: API keys, sessions, signed links, rate limit."""
