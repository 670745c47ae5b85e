"""What is compared: data, no behaviour."""

from dataclasses import dataclass
from typing import Dict, Tuple

ADVANCE = "advance"  # the clocks go on as if the guest had never stopped
FREEZE = "freeze"  # they go on from their values at the stop


@dataclass(frozen=True)
class Column:
    name: str
    title: str
    about: str
    promise: str  # what its clocks are held to: ADVANCE or FREEZE
    policy: str = ""  # of `continuo vm receive`; empty: QEMU
    machine: Tuple[str, ...] = ()  # arguments of QEMU
    append: str = ""  # to the guest's command line
    services: Tuple[str, ...] = ()  # what runs in the guest beside the clock loop
    observe_s: float = 1.0  # after each move, at most, until REALTIME is right
    moves_max: int = 0  # 0: as many as asked for

    @property
    def is_qemu(self) -> bool:
        return not self.policy


_QEMU = ("-machine", "q35,accel=kvm")
# What libvirt writes for a KVM guest, and what QEMU's documentation asks for where clocks matter:
# the host's CPU model, an invariant TSC of a stated frequency (without one such a guest does not
# migrate at all), a PIT that catches up by delaying, no HPET. {khz} is the host's.
_QEMU_BEST = (
    *("-machine", "q35,accel=kvm,hpet=off"),
    *("-cpu", "host,migratable=on,+invtsc,tsc-frequency={hz}"),
    *("-global", "kvm-pit.lost_tick_policy=delay"),
    *("-rtc", "base=utc,clock=host,driftfix=slew"),
)
_TSC = "clocksource=tsc tsc=reliable"

COLUMNS: Dict[str, Column] = {
    column.name: column
    for column in (
        Column("qemu", "QEMU", "as it is started without a word about clocks", FREEZE, machine=_QEMU),
        Column(
            "qemu-best", "QEMU, best", "with what its documentation and libvirt set", FREEZE,
            machine=_QEMU_BEST,
        ),
        Column(
            "qemu-ntp", "QEMU, best, chronyd",
            "the same, and chronyd in the guest on the host's clock (ptp_kvm)", FREEZE,
            machine=_QEMU_BEST, services=("chronyd",), observe_s=60.0, moves_max=5,
        ),
        Column("advance", "advance", "Continuo, as if never stopped", ADVANCE, "advance"),
        Column("freeze", "freeze", "Continuo, on from the value at the stop", FREEZE, "freeze"),
        Column(
            "freeze-and-notify", "freeze-and-notify",
            "the same; continuo-agent in the guest repairs REALTIME", FREEZE, "freeze-and-notify",
            services=("agent",), observe_s=10.0,
        ),
        Column(
            "advance-and-notify", "advance-and-notify",
            "as if never stopped, and the agent is told", ADVANCE, "advance-and-notify",
            services=("agent",),
        ),
        Column(
            "qemu-tsc", "QEMU, best, tsc", "the guest's clocksource is the TSC", FREEZE,
            machine=_QEMU_BEST, append=_TSC, moves_max=5,
        ),
        Column(
            "advance-tsc", "advance, tsc", "the guest's clocksource is the TSC", ADVANCE, "advance",
            append=_TSC, moves_max=5,
        ),
        Column(
            "freeze-tsc", "freeze, tsc", "the guest's clocksource is the TSC", FREEZE, "freeze",
            append=_TSC, moves_max=5,
        ),
    )
}  # fmt: skip
