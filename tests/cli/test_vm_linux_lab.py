"""An unmodified Linux of Debian's, with two CPUs, in VMs on an emulated host: it boots, listens to its serial console,
resets and switches itself off; and it moves live, with memory below and above the devices' addresses, while both CPUs
read their clocks and are kept busy with what a move could break."""

import json
import os
import pathlib
import re
import subprocess
import tempfile
import unittest

import linux_guest
from linux_guest import documents
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
: >printed
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


# The guest's shell hands each line to the two programs, which answer for it.
MOVING_GUEST = """
mkfifo /tmp/ask_clocks /tmp/ask_load
clock_loop </tmp/ask_clocks &
exec 3>/tmp/ask_clocks
guest_load </tmp/ask_load &
exec 4>/tmp/ask_load
echo "guest: ready with $(awk '/MemTotal/ {print $2}' /proc/meminfo) kB"
while read -r line; do
    case $line in
    off) poweroff -f ;;
    reset) reboot -f ;;
    *) echo ask >&3; echo ask >&4 ;;
    esac
done
"""

# Moves the VM to a second process under one policy, and on to a third under another, which also has its kernel: there it
# resets itself.
MOVING_HOST = """
cd "$1"
export TMPDIR=$1
await() {{  # text, how often, where
    while [ "$(grep -c "$1" $3)" -lt "$2" ]; do
        kill -0 $vm || {{ cat printed* >&2; exit 99; }}
        sleep 0.2
    done
}}
mkfifo typed1 typed2 typed3
touch printed1 printed2 printed3
{program} vm run --kernel vmlinuz --initrd initrd.gz --cpus 2 --memory 5G --input typed1 --control one --json \\
    --append 'console=ttyS0 panic=-1 quiet' >run.json 2>printed1 &
vm=$!
await 'guest: ready' 1 printed1
sleep 1
echo ask >typed1
await 'load:' 1 printed1
number=1
from=one
for policy in advance freeze; do
    number=$((number + 1))
    kernel=
    [ $policy = freeze ] && kernel='--kernel vmlinuz --initrd initrd.gz --append console=ttyS0'
    {program} vm receive --listen unix:migration$number --policy $policy $kernel --input typed$number --control to$number --json \\
        >receive$number.json 2>printed$number &
    vm=$!
    await 'listening' 1 printed$number
    {program} vm send --control $from --to unix:migration$number --rounds 6 --force --json >send$number.json || {{ cat printed* >&2; exit 98; }}
    from=to$number
    sleep 1
    echo ask >typed$number
    await 'load:' 1 printed$number
done
echo reset >typed3
await 'guest: ready' 1 printed3
echo off >typed3
wait $vm
code=$?
cat printed* >&2
cat run.json send2.json receive2.json send3.json receive3.json
exit $code
"""


def in_lab(guest, host, programs=()):
    """What `host`, a script, did and said on an emulated host, with `guest` as the guest's script: (exit code, answer of
    continuo-lab). The host has one CPU: with more, TCG loses a guest that patches its code (docs/lab.md)."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        linux_guest.kernel(folder / "vmlinuz")
        built = [linux_guest.compiled(source, folder / source.stem) for source in programs]
        linux_guest.initrd(folder / "initrd.gz", guest, built)
        program = os.path.realpath(PROGRAM)
        (folder / "inside.sh").write_text(host.format(program=program))
        files = [folder / "vmlinuz", folder / "initrd.gz", folder / "inside.sh", program]
        done = subprocess.run(
            [str(ROOT / "lab/continuo-lab"), "run", "--host", "x86-svm", "--kernel", "6.12", "--json", "--quiet",
             "--timeout", "600", "--memory", "1536", "--smp", "1", *[word for file in files for word in ("--file", str(file))], "--",
             "sh", str(folder / "inside.sh"), str(folder)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=900)
        return done.returncode, json.loads(done.stdout)


class LinuxGuest(unittest.TestCase):
    def test_boots_listens_resets_and_switches_off(self):
        code, answer = in_lab(GUEST, HOST)
        printed = answer.get("stderr", "")
        self.assertEqual(code, 0, (answer.get("error"), printed[-5000:]))
        result, = documents(answer["stdout"])
        self.assertEqual((result["ended_by"], result["resets"], result["exit_code"]), ("power-off", 1, None))
        lines = [line.strip() for line in printed.splitlines() if line.startswith("guest: ")]
        boot = ["guest: linux " + answer["kernel"], "guest: clocksource kvm-clock", "guest: available kvm-clock tsc",
                "guest: online 0-1"]
        self.assertEqual(lines[0:4], boot, printed[-5000:])
        self.assertRegex(lines[4], r"^guest: serial interrupts [1-9][0-9]*$")
        self.assertEqual(lines[5:7], ["guest: ready", "guest: heard how do you do"])
        self.assertEqual(lines[7:11], boot, "and again after the reset")
        self.assertIn("started again, time 1", printed)

    def test_moves_live_while_both_cpus_read_their_clocks(self):
        here = pathlib.Path(__file__).parent
        code, answer = in_lab(MOVING_GUEST, MOVING_HOST, [here / "clock_loop.c", here / "guest_load.c"])
        printed = answer.get("stderr", "")
        self.assertEqual(code, 0, (answer.get("error"), printed[-5000:]))
        ran, sent_first, first, sent_again, second = documents(answer["stdout"])
        self.assertEqual(ran["ended_by"], "moved")
        for sent, received, policy in ((sent_first, first, "advance"), (sent_again, second, "freeze")):
            self.assertEqual(sent["outcome"], "moved")
            self.assertEqual([each["round"] for each in sent["passes"]], list(range(1, sent["migration"]["rounds"] + 1)))
            self.assertGreater(sent["passes"][0]["bytes_a_second"], 0)
            certificate = received["certificate"]
            self.assertEqual(certificate["policy"], policy)
            self.assertTrue(certificate["holds"])
            seams = [row["seam"] for row in certificate["clocks"] if row["clock"] == "tsc"]
            self.assertEqual(seams, [0, 0])
            kvmclock, = [row["seam"] for row in certificate["clocks"] if row["clock"] == "kvmclock"]
            self.assertLessEqual(abs(kvmclock), 2)
        told = re.findall(r"clocks: loops (\d+) backward (\d+) forward_ns (\d+) monotonic_ns (\d+)", printed)
        self.assertEqual(len(told), 3, printed[-5000:])
        before, advanced, frozen = [tuple(map(int, line)) for line in told]
        self.assertEqual([line[1] for line in (before, advanced, frozen)], [0, 0, 0], "steps back")
        self.assertLess(before[0], advanced[0])
        self.assertLess(advanced[0], frozen[0])
        # The gap of the advancing move is in the guest's clock, that of the freezing one is not.
        self.assertGreaterEqual(advanced[2], first["migration"]["downtime_ns"] // 2)
        loads = re.findall(r"load: vectors \w+ checks (\d+) .* wrong (\d+)", printed)
        self.assertEqual(len(loads), 3, printed[-5000:])
        self.assertEqual([wrong for _, wrong in loads], ["0", "0", "0"], printed[-5000:])
        self.assertLess(int(loads[0][0]), int(loads[2][0]))
        # Its memory lies on both sides of the devices; and the second arrival had a kernel to start it again from.
        ready = re.findall(r"guest: ready with (\d+) kB", printed)
        self.assertEqual(len(ready), 2, printed[-5000:])
        for kilobytes in ready:
            self.assertGreater(int(kilobytes), 4_500_000)
        self.assertIn("started again, time 1", printed)


if __name__ == "__main__":
    unittest.main()
