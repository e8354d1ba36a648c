"""Domain-free asyncio helpers."""
