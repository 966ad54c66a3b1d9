"""The client of the Autoenhance API and its storage: the only outbound requests of the service.

aiohttp's errors and the API's payloads do not leave this folder.
"""
