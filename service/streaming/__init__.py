"""Streams archives: prefetch, budgets, admission and receipts. asyncio, but no HTTP."""
