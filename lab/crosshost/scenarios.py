"""What is moved under which clocks, and what must come of it: data."""

from dataclasses import dataclass
from typing import Dict, Tuple

SECOND = 10**9
HOUR = 3600 * SECOND
_UNSYNCHRONISED_US = 16_000_000  # what a kernel says with STA_UNSYNC

MOVED, REFUSED, CAUGHT = "moved", "refused", "caught"


@dataclass(frozen=True)
class Scenario:
    """One step of both hosts (README.md) and what is expected of its moves."""

    name: str
    moves: int
    policy: str = "advance"
    offset_ns: int = 0
    exchange: bool = False
    admits_a_us: int = 1_000  # maxerror; negative: STA_UNSYNC
    admits_b_us: int = 1_000
    frequency_b_ppb: int = 0
    tai_offset_a_sec: int = 0
    expect: str = MOVED  # CAUGHT: what the hosts say is false, and the judge must find it
    elapsed_by: str = "tai"
    told: Tuple[str, ...] = ()  # words that must be in the certificate's notes, or in the refusal
    rate_on_b: str = "equal"  # on a, where the VM was made, it always is
    told_on_b: Tuple[str, ...] = ()
    bound_at_least_ns: int = 0

    def step(self) -> Dict:
        return {
            "name": self.name,
            "moves": self.moves,
            "policy": self.policy,
            "offset_ns": self.offset_ns,
            "exchange": self.exchange,
            "synchronised_a": self.admits_a_us >= 0,
            "synchronised_b": self.admits_b_us >= 0,
            "maxerror_us_a": _maxerror(self.admits_a_us),
            "maxerror_us_b": _maxerror(self.admits_b_us),
            "frequency_ppb_a": 0,
            "frequency_ppb_b": self.frequency_b_ppb,
            "tai_offset_sec_a": self.tai_offset_a_sec,
            "tai_offset_sec_b": 0,
        }


def _maxerror(admits_us: int) -> int:
    return admits_us if admits_us >= 0 else _UNSYNCHRONISED_US


@dataclass(frozen=True)
class Boot:
    """One boot of the pair. Scenarios follow each other in it; the VM stays where it came to."""

    name: str
    scenarios: Tuple[Scenario, ...]
    tsc_ppm_b: int = 0  # how far off the truth b's kernel believes its TSC to be
    icount_b: bool = False
    kernel_b: str = ""  # another than a's


UNSYNC = -1
_EXCHANGED = {"exchange": True, "elapsed_by": "exchange"}
_TOLERATED = {
    "rate_on_b": "tolerated",
    "told_on_b": ("within 250 ppm",),
    "frequency_b_ppb": 250_000,
}
_WRONG = ("is wrong by at least",)
_UNSYNC_TOLD = ("STA_UNSYNC",)

# Clocks that say what they are: the bound is what they admit.
_RIGHT = Scenario("clocks right", 2)
_OFF = Scenario("0.3 s off and admitted", 2, offset_ns=3 * SECOND // 10, admits_b_us=301_000)
_BEHIND = Scenario(
    "-7 s and admitted", 2, policy="freeze-and-notify", offset_ns=-7 * SECOND,
    admits_b_us=7_001_000,
)  # fmt: skip
_UNSYNC_B = Scenario(
    "-7 s, b says STA_UNSYNC", 2, offset_ns=-7 * SECOND, admits_b_us=UNSYNC, told=_UNSYNC_TOLD,
    bound_at_least_ns=16 * SECOND,
)  # fmt: skip
# What no clock has to be right for.
_EXCHANGE = Scenario(
    "1 s admitted, exchange", 2, admits_a_us=1_000_000, admits_b_us=1_000_000, **_EXCHANGED
)
_HOURS = Scenario("+5 h and denied, exchange", 2, offset_ns=5 * HOUR, told=_WRONG, **_EXCHANGED)
_HOURS_BY_TAI = Scenario(
    "-2 h and denied", 1, offset_ns=-2 * HOUR, expect=REFUSED, told=("before it stopped",)
)
# From a, where b's clock is ahead: the other way round it would be refused.
_LIE = Scenario("0.3 s off and denied", 1, offset_ns=3 * SECOND // 10, expect=CAUGHT)

FAST = (
    Boot(
        "two hosts of one frequency",
        (_RIGHT, _OFF, _UNSYNC_B, _EXCHANGE, _HOURS, _HOURS_BY_TAI, _LIE),
    ),
)


def _more(scenario: Scenario, moves: int, **changes) -> Scenario:
    return Scenario(**{**scenario.__dict__, "moves": moves, **changes})


FULL = (
    Boot(
        "two hosts of one frequency",
        (
            _more(_RIGHT, 4),
            _more(_OFF, 4),
            _more(_OFF, 2, name="0.3 s off and admitted, frozen", policy="freeze"),
            _more(_BEHIND, 4),
            _UNSYNC_B,
            Scenario(
                "both say STA_UNSYNC", 2, policy="advance-and-notify", admits_a_us=UNSYNC,
                admits_b_us=UNSYNC, told=_UNSYNC_TOLD, bound_at_least_ns=32 * SECOND,
            ),
            Scenario("only a was told of TAI - UTC", 4, tai_offset_a_sec=37, told=("never told",)),
            _more(_EXCHANGE, 8),
            Scenario(
                "0.3 s off and denied, exchange", 6, offset_ns=3 * SECOND // 10, told=_WRONG,
                **_EXCHANGED,
            ),
            Scenario(
                "-7 s and admitted, exchange", 4, policy="advance-and-notify",
                offset_ns=-7 * SECOND, admits_b_us=7_001_000, **_EXCHANGED,
            ),
            Scenario(
                "-7 s, both say STA_UNSYNC, exchange", 4, offset_ns=-7 * SECOND,
                admits_a_us=UNSYNC, admits_b_us=UNSYNC, told=_UNSYNC_TOLD, **_EXCHANGED,
            ),
            _more(_HOURS, 4),
            Scenario(
                "-2 h and denied, exchange", 4, policy="freeze-and-notify", offset_ns=-2 * HOUR,
                told=_WRONG, **_EXCHANGED,
            ),
            _HOURS_BY_TAI,
            _LIE,
        ),
    ),
    # NTP on b has found out, and corrects it: the clock is right, the frequency is not.
    Boot(
        "b's kernel believes in a TSC 250 ppm faster, the most that KVM leaves unscaled",
        (
            _more(_RIGHT, 2, **_TOLERATED),
            _more(_BEHIND, 2, **_TOLERATED),
            _more(_EXCHANGE, 4, **_TOLERATED),
        ),
        tsc_ppm_b=250,
    ),
    Boot(
        "b's kernel believes in a TSC 260 ppm faster, and nothing scales",
        (Scenario("too far off", 1, frequency_b_ppb=260_000, expect=REFUSED,
                  told=("cannot scale",)),),
        tsc_ppm_b=260,
    ),
    Boot(
        "from Linux 6.12 to 6.1 and back",
        (_RIGHT, _more(_BEHIND, 2), _more(_EXCHANGE, 2), _more(_HOURS, 2)),
        kernel_b="6.1",
    ),
    Boot(
        "b's TSC runs at 1 GHz, and nothing scales",
        # Its clock drifts by tenths of a second, and it says so; else that is refused before.
        (Scenario("no such frequency", 1, admits_b_us=UNSYNC, expect=REFUSED,
                  told=("cannot scale",)),),
        icount_b=True,
    ),
)  # fmt: skip
