"""Which run shows which requirement: data, no behaviour.

A requirement is a line of what the five threads of the design ask for; its number is how tests and
documents name it. Evidence is what a run on a real kernel says of it: a check of `continuo doctor`,
a test case (a pattern over Suite.Case), the migration of `continuo demo`, the counter benchmark, a Linux
guest, or a command that has a host of its own. Where no run on a kernel can show it, `elsewhere` says why.
"""

from dataclasses import dataclass
from typing import Tuple


@dataclass(frozen=True)
class Evidence:
    job: str  # a key of matrix.jobs_of()
    pattern: str  # of what that job names: check ids, Suite.Case, policies, rows


@dataclass(frozen=True)
class Requirement:
    number: str
    title: str
    evidence: Tuple[Evidence, ...] = ()
    elsewhere: str = ""  # why no run here shows it
    architecture: str = ""  # "x86" or "arm64": there is no such thing on the other


def _doctor(*checks: str) -> Tuple[Evidence, ...]:
    return tuple(Evidence("doctor", check) for check in checks)


def _tests(*patterns: str) -> Tuple[Evidence, ...]:
    return tuple(Evidence("tests", pattern) for pattern in patterns)


def _demo(policy: str) -> Tuple[Evidence, ...]:
    return (Evidence("demo", policy),)


# Random sequences of every control of x86-64's clocks, held against the model.
_MODELLED = (Evidence("differential", "model"),)

_AGENT = "not looked at in a guest: lab/agent/run shows the agent on a kernel of its own, the simulator the rest"
_MODEL = "no kernel has it: a strategy of the simulator (continuo compare)"
_DEVICE = "needs the notice device in the VMM, which is not built yet; its page and both ends of it are tested"

REQUIREMENTS = (
    Requirement(
        "S0.1", "the migration in six steps",
        _tests("MigrationOnKvm.*") + _demo("*") + (Evidence("linux", "moves*"),),
    ),
    Requirement(
        "S0.2", "a snapshot of counter, clocks and clocksource at one instant",
        _tests("MachineContract.AnchorLies*", "MachineContract.TwoAnchors*"),
    ),
    Requirement("S0.3", "an L1 on kvmclock gives its L2 a stable kvmclock",
                elsewhere="no kernel has it: a switch of the model (continuo_model_test, Nest*)",
                architecture="x86"),
    Requirement("S0.4", "a clocksource change reaches every masterclock", _tests("*Clocksource*"),
                architecture="x86"),
    Requirement(
        "S0.5", "a move to another TSC frequency: scaled, or refused",
        _doctor("tsc_scaling") + _tests("*AFrequencyThatTheHostCannotGive*")
        + (Evidence("scaling", "S0.5*"),),
    ),
    Requirement("S0.6", "an L1 that scales under an L2 that scales",
                (Evidence("scaling", "S0.6*"),),
                architecture="x86"),
    Requirement("S1.1", "KVM_KVMCLOCK_CTRL: GUEST_STOPPED is seen and not lost",
                _doctor("kvmclock_ctrl") + _tests("*GuestStopped*"),
                architecture="x86"),
    Requirement("S1.2", "the notice carries delta_REALTIME by an interrupt", elsewhere=_DEVICE),
    Requirement("S1.3", "the migration sequence; a second move while odd loses nothing",
                _tests("*NotifiedGuest*")),
    Requirement("S1.4", "the counter is not advanced, MONOTONIC does not count the gap",
                _tests("MachineContract.FreezeGoesOn*") + _demo("freeze")),
    Requirement("S1.5", "the opposite design is measured", elsewhere=_MODEL),
    Requirement("S1.6", "advance and notify", _tests("*NotifiedGuest*")),
    Requirement("S1.7", "NTP is told to throw the book out", elsewhere=_AGENT),
    Requirement("S1.8", "TFD_TIMER_CANCEL_ON_SET timers are cancelled", elsewhere=_AGENT),
    Requirement("S1.9", "a quiesced move and a forced one", elsewhere=_AGENT),
    Requirement("S2.1", "kvmclock, realtime and host_tsc as one instant",
                _doctor("clock_triple", "kvmclock_trim", "ptp_call") + _tests("*ClockTriple*") + _MODELLED),
    Requirement(
        "S2.2", "the vCPU's TSC offset: get, set, idempotent",
        _doctor("tsc_offset", "tsc_offset_honoured")
        + _tests("MachineContract.EveryOffset*", "MachineContract.AnOffsetIsIdempotent*"),
        architecture="x86",
    ),
    Requirement("S2.3", "with the kernel's TSC synchronisation heuristics, old and new",
                _doctor("tsc_first_write") + _tests("QuirkOnThisKernel.*", "RestoreOnThisKernel.*")
                + _MODELLED,
                architecture="x86"),
    Requirement("S2.4", "arm64: the virtual counter's offset",
                _doctor("counter_*") + (Evidence("linux", "*"),), architecture="arm64"),
    Requirement("S2.5", "arm64: the physical counter's offset, by trap or CNTPOFF",
                _doctor("physical_*"), architecture="arm64"),
    Requirement("S2.6", "the contract of a machine, held by the real one",
                _tests("MachineContract.*")),
    Requirement("S2.7", "the counter benchmark", (Evidence("bench", "*"),)),
    Requirement("S3.1", "TSC and TSC_ADJUST per vCPU, before the first entry",
                _doctor("tsc_write", "tsc_deadline") + _demo("advance"),
                architecture="x86"),
    Requirement("S3.2", "host writes of TSC and TSC_ADJUST without heuristics",
                _doctor("tsc_second_write"),
                architecture="x86"),
    Requirement("S3.3", "the heuristics as the kernel has them",
                _tests("QuirkOnThisKernel.*", "RestoreOnThisKernel.*") + _MODELLED,
                architecture="x86"),
    Requirement("S3.4", "the masterclock: held, lost, back",
                _doctor("masterclock") + _tests("MachineContract.EqualOffsets*") + _MODELLED,
                architecture="x86"),
    Requirement("S3.5", "the pvclock reader", _tests("WitnessOnKvm.Watches*"),
                architecture="x86"),
    Requirement("S3.6", "TSC_ADJUST", _doctor("tsc_adjust") + _tests("MachineContract.TscAdjust*"),
                architecture="x86"),
    Requirement("S3.7", "vm-stop and vm-cont: both clocks alike",
                _tests("MachineContract.CaptureTwice*", "WitnessOnKvm.ManyStops*")),
    Requirement("S3.8", "no window between setting the TSC and the first entry",
                _tests("WitnessOnKvm.AllVcpusEnterAtTheGate") + _demo("*")),
    Requirement("S3.9", "no move without equal frequency, scaling or tolerance",
                _doctor("tsc_khz", "cntfrq") + _tests("*AFrequencyThatTheHostCannotGive*")),
    Requirement("S3.10", "nanoseconds since 1970 to the year 2554",
                elsewhere="arithmetic: unit tests show it, and no kernel is needed"),
    Requirement("S4.1", "the system-time MSR written as often as the guest likes",
                _tests("*SystemTimeMsr*", "MigrationOnKvm.AGuestThatScribbles*") + _MODELLED,
                architecture="x86"),
    Requirement("S4.2", "COUNTS_FROM_ZERO", elsewhere=_MODEL,
                architecture="x86"),
    Requirement("S4.3", "the guest's offset for the scheduler's clock", elsewhere=_AGENT),
    Requirement("S4.4", "vCPU 0 unplugged and plugged again",
                elsewhere="not tried in a Linux guest yet; the model and the simulator have it",
                architecture="x86"),
    Requirement("S4.5", "stability lost while running: monotonic all the same",
                elsewhere="not tried in a guest with the reader's fallback yet, which the model and"
                " continuo explore have; raw pages go back (S0.4's test prints by how much)",
                architecture="x86"),
)
