"""The frequency of this machine's TSC, which is what TCG's guests have for theirs.

A guest's kernel measures its TSC against emulated timers at boot. On a busy machine the emulator
does not get to run when those tick, and the kernel then believes a frequency that is off by parts
in a thousand, or by a factor of three (seen): all its clocks run at that wrong rate. Here it is
measured against CLOCK_MONOTONIC_RAW, where a lost time slice does no harm.
"""

import ctypes
import mmap
import platform
import time
from typing import Callable, Optional, Tuple

# rdtsc; shl rdx, 32; or rax, rdx; ret
_CODE = bytes.fromhex("0f31 48c1e220 4809d0 c3")
_SECONDS = 0.25
_BRACKETS = 64


def machine_tsc_khz() -> Optional[int]:
    """Good to some ppm; takes a quarter of a second. None where the machine has no TSC."""
    if platform.machine() != "x86_64":
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a hardened machine: no page that is written and run
        return None
    page.write(_CODE)
    held = ctypes.c_char.from_buffer(page)
    try:
        read_tsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(held))
        return _measure(read_tsc)
    finally:
        del held
        page.close()


def _measure(read_tsc: Callable[[], int]) -> int:
    first_tsc, first_ns = _together(read_tsc)
    time.sleep(_SECONDS)
    last_tsc, last_ns = _together(read_tsc)
    return round((last_tsc - first_tsc) * 10**6 / (last_ns - first_ns))


def _together(read_tsc: Callable[[], int]) -> Tuple[int, int]:
    """Both at one instant: the narrowest of several brackets."""
    best = None
    for _ in range(_BRACKETS):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        tsc = read_tsc()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        if best is None or after - before < best[0]:
            best = (after - before, tsc, (before + after) // 2)
    assert best is not None
    return best[1], best[2]
