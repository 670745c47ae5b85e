"""Two emulated hosts at once: needs QEMU, at the first time the network, and a build."""

import json
import os
import re
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

_LAB = Path(__file__).resolve().parents[1]
_TOOL = str(_LAB / "continuo-lab")
_PROGRAM = _LAB.parent / "build" / "continuo-crosshost"
_HOST_DIED = 122
_BOOTS_MAX = 3


def _why_not() -> str:
    if shutil.which("qemu-system-x86_64") is None and os.geteuid() != 0:
        return "no qemu-system-x86_64, and only root can install it"
    return "" if _PROGRAM.is_file() else f"{_PROGRAM} is not built"


@unittest.skipIf(_why_not(), f"SKIPPED: {_why_not()}")
class Pair(unittest.TestCase):
    def pair(self, *arguments, died_as_asked=False):
        """What `pair --json` prints. Once more, and said so, where QEMU's TCG lost a host."""
        for _ in range(_BOOTS_MAX):
            done = subprocess.run(
                [_TOOL, "pair", "--json", "--quiet", *arguments], capture_output=True, check=False
            )
            found = json.loads(done.stdout)
            self.assertEqual(found["exit_code"], done.returncode, done.stderr)
            if done.returncode != _HOST_DIED or died_as_asked:
                break
            print(f"a host died; {' '.join(arguments)!r}: {done.stderr}", file=sys.stderr)
        return found, done.stderr.decode()

    def test_network_clocks_counters_and_exit_codes(self):
        # b's word crosses the network by a's name; then the clocks, seen at one instant: at the
        # meeting that ends each pairing.
        said = "date +%s; adjtimex | grep maxerror; adjtimex | grep status"
        paired = f"{_PROGRAM} pairing --count 3 --pause-ms 300"
        found, told = self.pair(
            *("--realtime-offset", "-3600.5", "--maxerror-a", "0.25", "--unsynchronised-b"),
            *("--file", str(_PROGRAM)),
            *("--", "sh", "-c", f"nc -l -p 7000; {paired}; {said}; hostname; exit 3"),
            *("--", "sh", "-c", f"until echo word of $CONTINUO_LAB_NAME | nc a 7000; do sleep 0.2;"
              f" done; {paired}; {said}; hostname; exit 0"),
        )  # fmt: skip
        a, b = (found["hosts"][name]["stdout"].splitlines() for name in "ab")
        self.assertEqual(found["exit_code"], 3, told)
        self.assertEqual([found["hosts"][name]["exit_code"] for name in "ab"], [3, 0])
        self.assertEqual((a[0], a[-1], b[-1]), ("word of b", "a", "b"))

        pairings = [json.loads(line) for line in b if line.startswith("{")]
        self.assertEqual(len(pairings), 3)
        least = max(pairing["difference_least"] for pairing in pairings)
        most = min(pairing["difference_most"] for pairing in pairings)
        self.assertLessEqual(least, most, "the two counters do not run at one rate")

        clock_a, clock_b = (
            int(next(line for line in lines if re.fullmatch(r"\d+", line))) for lines in (a, b)
        )
        self.assertTrue(-3605 < clock_b - clock_a < -3590, clock_b - clock_a)
        error_a, error_b = (
            int(next(line for line in lines if "maxerror" in line).split()[-1]) for lines in (a, b)
        )
        self.assertTrue(250_000 <= error_a < 350_000, error_a)
        self.assertEqual(error_b, 16_000_000)
        self.assertIn("UNSYNC", next(line for line in b if "status" in line))
        self.assertNotIn("UNSYNC", next(line for line in a if "status" in line))

    def test_a_host_that_dies_ends_the_other(self):
        found, _ = self.pair(
            *("--", "sh", "-c", "echo a is here; sleep 300"),
            *("--", "sh", "-c", "echo last; sleep 2; echo c >/proc/sysrq-trigger; sleep 60"),
            died_as_asked=True,
        )
        a, b = found["hosts"]["a"], found["hosts"]["b"]
        self.assertEqual(found["exit_code"], _HOST_DIED)
        self.assertEqual((a["exit_code"], b["exit_code"]), (None, None))
        self.assertIn("because host b died", a["error"])
        self.assertEqual((a["stdout"], b["stdout"]), ("a is here\n", "last\n"))

    def test_frequencies_and_a_program_that_never_ends(self):
        show = "dmesg | grep -o 'tsc: Detected .* MHz' | tail -n 1; sleep 300"
        found, _ = self.pair(
            *("--timeout", "5", "--icount-b", "--tsc-khz-a", "2000000"),
            *("--", "sh", "-c", show),
        )
        a, b = found["hosts"]["a"], found["hosts"]["b"]
        self.assertEqual(found["exit_code"], 124)
        self.assertEqual(a["stdout"], "tsc: Detected 2000.000 MHz\n")
        self.assertEqual(b["stdout"], "tsc: Detected 1000.000 MHz\n")
        for name, host in (("a", a), ("b", b)):
            self.assertIn(f"host {name} did not end within 5 s", host["error"])


if __name__ == "__main__":
    unittest.main()
