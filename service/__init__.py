"""Streams every enhanced image of an Autoenhance.ai order into one ZIP while the images arrive.

Start reading at ``app.py`` (what exists), then ``pipeline.py`` (what happens).
"""
