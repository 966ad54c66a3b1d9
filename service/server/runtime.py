"""What the process is told once, before it serves: how it is to manage its memory.

Both settings are for throughput, and neither changes how much memory is needed at most.
"""

import ctypes
import gc
from contextlib import suppress

# mallopt(3) of the GNU C library. By its defaults, a buffer for one read of a socket (256 KiB) is given back to the
# kernel soon after, and the next one faults all its pages in again: that was 340 of the 440 µs of receiving an
# image of 300 KB. Blocks up to this size come from the heap, which keeps so much free at its end.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_HEAP_BLOCK_BYTES = 1024 * 1024
_HEAP_GROWTH_BYTES = 1024 * 1024
_HEAP_KEPT_BYTES = 16 * 1024 * 1024

# Python looks for cycles after every 700 new objects by default: one image makes that many, and hardly any cycle.
_GC_THRESHOLDS = (10_000, 20, 20)


def tune_malloc() -> None:
    """Keep freed buffers for the next reads. Does nothing where the C library is another one."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _HEAP_BLOCK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _HEAP_KEPT_BYTES)
        mallopt(_M_TOP_PAD, _HEAP_GROWTH_BYTES)


def tune_gc() -> None:
    """Let the garbage collector leave alone what is there now, and look less often at the rest."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
