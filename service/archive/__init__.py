"""The archive itself: which entries, what they are called, their ZIP framing and the report on them.

No I/O and no async in this folder; time and randomness are passed in. So every edge case is a table test.
"""
