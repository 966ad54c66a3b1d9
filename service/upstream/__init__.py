"""The border to the Autoenhance API and its storage: the only place that talks to the outside.

aiohttp's errors and the API's payloads do not leave this folder.
"""
