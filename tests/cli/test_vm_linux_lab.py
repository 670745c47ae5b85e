"""`continuo vm run --kernel` on an emulated host: an unmodified Linux of Debian's, with two CPUs, told what to do through
its serial console."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

import linux_guest
from continuo_program import PROGRAM, ROOT

GUEST = """
clocks=/sys/devices/system/clocksource/clocksource0
echo "guest: linux $(uname -r)"
echo "guest: clocksource $(cat $clocks/current_clocksource)"
echo "guest: available $(cat $clocks/available_clocksource)"
echo "guest: online $(cat /sys/devices/system/cpu/online)"
echo "guest: serial interrupts $(awk '/IO-APIC.*ttyS0/ {print $2 + $3}' /proc/interrupts)"
echo "guest: ready"
while read -r line; do
    case $line in
    reset) reboot -f ;;
    off) poweroff -f ;;
    *) echo "guest: heard $line" ;;
    esac
done
"""

# Tells the guest three lines, each when it is ready for it. What the guest prints is on stderr.
HOST = """
cd "$1"
mkfifo typed
{program} vm run --kernel vmlinuz --initrd initrd.gz --cpus 2 --memory 256M --input typed --json \\
    --append 'console=ttyS0 tsc=reliable panic=-1 quiet' >result 2>printed &
vm=$!
await() {{  # text, how often
    while [ "$(grep -c "$1" printed)" -lt "$2" ]; do
        kill -0 $vm || {{ cat printed >&2; exit 99; }}
        sleep 0.2
    done
}}
await 'guest: ready' 1
echo 'how do you do' >typed
await 'guest: heard how do you do' 1
echo reset >typed
await 'guest: ready' 2
echo off >typed
wait $vm
code=$?
cat printed >&2
cat result
exit $code
"""


class LinuxGuest(unittest.TestCase):
    def test_boots_listens_resets_and_switches_off(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            linux_guest.kernel(folder / "vmlinuz")
            linux_guest.initrd(folder / "initrd.gz", GUEST)
            program = os.path.realpath(PROGRAM)
            (folder / "inside.sh").write_text(HOST.format(program=program))
            files = [folder / "vmlinuz", folder / "initrd.gz", folder / "inside.sh", program]
            done = subprocess.run(
                [str(ROOT / "lab/continuo-lab"), "run", "--host", "x86-svm", "--kernel", "6.12", "--json", "--quiet",
                 "--timeout", "500", *[word for file in files for word in ("--file", str(file))], "--",
                 "sh", str(folder / "inside.sh"), str(folder)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=900)
        answer = json.loads(done.stdout)
        printed = answer.get("stderr", "")
        self.assertEqual(done.returncode, 0, (answer.get("error"), printed[-5000:]))
        result = json.loads(answer["stdout"])
        self.assertEqual((result["ended_by"], result["resets"], result["exit_code"]), ("power-off", 1, None))
        lines = [line.strip() for line in printed.splitlines() if line.startswith("guest: ")]
        boot = ["guest: linux " + answer["kernel"], "guest: clocksource kvm-clock", "guest: available kvm-clock tsc",
                "guest: online 0-1"]
        self.assertEqual(lines[0:4], boot, printed[-5000:])
        self.assertRegex(lines[4], r"^guest: serial interrupts [1-9][0-9]*$")
        self.assertEqual(lines[5:7], ["guest: ready", "guest: heard how do you do"])
        self.assertEqual(lines[7:11], boot, "and again after the reset")
        self.assertIn("started again, time 1", printed)


if __name__ == "__main__":
    unittest.main()
