"""The wire contract: names, messages, settings and codecs that two processes share.

No module in here does I/O or knows asyncio. Section numbers in docstrings are those of protocol.md.
"""
