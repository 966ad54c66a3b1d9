"""The archive: its plan, entry names, ZIP framing and report. No I/O and no async.

Time and randomness are passed in, so every edge case is a table test.
"""
