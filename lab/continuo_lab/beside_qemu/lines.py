"""The clocks of a guest as lines, in integers: from the host's TSC to the guest's nanoseconds.

host TSC -> guest TSC by the vCPU's offset; guest TSC -> kvmclock by the page that KVM publishes;
either of the two -> MONOTONIC, REALTIME, TAI by the line that the guest's kernel keeps for its
vDSO. Nothing here is sampled: whoever knows the three knows every clock at every instant.
"""

import struct
from dataclasses import dataclass
from typing import Sequence, Tuple

_U64 = (1 << 64) - 1
NS_PER_S = 10**9

# Numbers of clock_gettime(2), which the vDSO's data is indexed by.
REALTIME, MONOTONIC, BOOTTIME, TAI = 0, 1, 7, 11
RIGHT_NS = 10**6  # REALTIME is right where it is no further than this from where it was
CLOCKSOURCES = {1: "tsc", 2: "kvm-clock"}  # VDSO_CLOCKMODE_*


class NotALine(Exception):
    """Bytes that no kernel writes."""


def guest_tsc(host_tsc: int, offset: int) -> int:
    """`offset` as KVM has it, modulo 2^64; there is no scaling."""
    return (host_tsc + offset) & _U64


def signed(value: int) -> int:
    value &= _U64
    return value - (1 << 64) if value >> 63 else value


@dataclass(frozen=True)
class Pvclock:
    """What stands in a pvclock page (32 bytes), whose rate is that of the guest's TSC."""

    version: int
    tsc_timestamp: int
    system_time: int
    mul: int
    shift: int
    flags: int

    @staticmethod
    def parse(data: bytes) -> "Pvclock":
        version, _, tsc, time, mul, shift, flags = struct.unpack_from("<IIQQIbB", data)
        if mul == 0 or not -32 < shift < 32:
            raise NotALine(f"a pvclock page with factor {mul} and shift {shift}")
        return Pvclock(version, tsc, time, mul, shift, flags)

    def at(self, tsc: int) -> int:
        """ns; also before the page's own instant, where the line goes on."""
        return self.system_time + self.ns_of(signed(tsc - self.tsc_timestamp))

    def ns_of(self, ticks: int) -> int:
        """Rounded down, as a guest does it."""
        scaled = ticks << self.shift if self.shift >= 0 else ticks >> -self.shift
        return (scaled * self.mul) >> 32


@dataclass(frozen=True)
class Timekeeper:
    """`struct vdso_data` of Linux 6.1 to 6.12, of the high-resolution clocks."""

    sequence: int
    mode: int
    cycle_last: int
    mult: int
    shift: int
    bases: Tuple[Tuple[int, int], ...]  # seconds, nanoseconds << shift

    @staticmethod
    def parse(data: bytes) -> "Timekeeper":
        sequence, mode, cycle_last, first = struct.unpack_from("<IiQQ", data)
        # 6.12 has the largest safe difference before the mask; a mask has all bits set.
        at = 24 if first == _U64 else 32
        (mask,) = struct.unpack_from("<Q", data, at - 8)
        mult, shift = struct.unpack_from("<II", data, at)
        if mask != _U64 or mult == 0 or shift > 32:
            raise NotALine("vDSO data that is laid out otherwise than in Linux 6.1 to 6.12")
        numbers = struct.unpack_from("<24Q", data, at + 8)
        return Timekeeper(sequence, mode, cycle_last, mult, shift,
                          tuple(zip(numbers[::2], numbers[1::2])))  # fmt: skip

    @property
    def clocksource(self) -> str:
        return CLOCKSOURCES.get(self.mode, "")

    def realtime_ahead(self) -> int:
        """Of MONOTONIC, in ns: it changes where somebody sets REALTIME, and not where it is slewed."""
        (seconds, base), (other_seconds, other_base) = self.bases[REALTIME], self.bases[MONOTONIC]
        return (seconds - other_seconds) * NS_PER_S + ((base - other_base) >> self.shift)

    def at(self, clock: int, cycles: int) -> int:
        """ns of that clock where the clocksource reads `cycles`."""
        seconds, base = self.bases[clock]
        return seconds * NS_PER_S + ((base + signed(cycles - self.cycle_last) * self.mult) >> self.shift)


@dataclass(frozen=True)
class Machine:
    """Everything that a guest's clocks depend on, on one side of a move."""

    offsets: Tuple[int, ...]  # of each vCPU
    pages: Tuple[Pvclock, ...]  # of each vCPU
    timekeeper: Timekeeper

    def tsc(self, vcpu: int, host: int) -> int:
        return guest_tsc(host, self.offsets[vcpu])

    def kvmclock(self, vcpu: int, host: int) -> int:
        return self.pages[vcpu].at(self.tsc(vcpu, host))

    def clock(self, number: int, host: int) -> int:
        """By vCPU 0, whose page the vDSO reads on every vCPU."""
        by_tsc = self.timekeeper.clocksource == "tsc"
        cycles = self.tsc(0, host) if by_tsc else self.kvmclock(0, host)
        return self.timekeeper.at(number, cycles)


def skew(offsets: Sequence[int]) -> int:
    """Ticks that the vCPUs' counters are apart at one instant."""
    values = [signed(offset - offsets[0]) for offset in offsets]
    return max(values) - min(values)
