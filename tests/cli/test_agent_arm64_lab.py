"""How soon REALTIME is right again in a Linux guest whose clocks were frozen, in a file and for more than half a second:
with continuo-agent, within 10 ms of the guest's time. An arm64 guest, told by vmclock, on an emulated host whose time goes
on by 1 ns with each instruction, as on a CPU of 1 GHz, so that the emulator's speed is not in the figure."""

import json
import pathlib
import re
import subprocess
import tempfile
import unittest

import linux_guest
from linux_guest import documents

ROOT = linux_guest.ROOT
PROGRAM, AGENT = ROOT / "build-arm64/continuo", ROOT / "build-arm64/continuo-agent"
KERNEL = "7.2"  # its driver wakes who waits on vmclock

GUEST = """
guest_probe set-host-clock
mkfifo /tmp/ask
guest_probe <>/tmp/ask &
continuo-agent --daemon=none &
sleep 1
echo "guest: ready"
while read -r line; do
    case $line in
    off) poweroff -f ;;
    *) echo "$line" >/tmp/ask ;;
    esac
done
"""

HOST = """
cd "$1"
export TMPDIR=$1
tell() {{ cat printed* >&2; exit $1; }}
await() {{  # text, how often
    tries=0
    while [ "$(cat printed* | grep -c "$1")" -lt "$2" ]; do
        kill -0 $vm || tell 99
        tries=$((tries + 1))
        [ $tries -lt 150 ] || tell 97
        sleep 0.2
    done
}}
$1/guest_probe set-host-clock
mkfifo typed1 typed2 typed3 typed4
touch printed1 printed2 printed3 printed4
{program} vm run --kernel vmlinuz --initrd initrd.gz --cpus 2 --memory 192M --input typed1 --control to1 --json \\
    --append 'console=ttyS0 panic=-1 quiet' >run.json 2>printed1 &
vm=$!
await 'guest: ready' 1
await 'probe: ready' 1
for number in 1 2 3; do
    # As an NTP daemon does: else the kernel's maxerror grows by 500 us a second, and vmclock's bound with it.
    $1/guest_probe set-host-clock
    sleep 1
    next=$((number + 1))
    {program} vm snapshot --stop --control to$number --output snapshot$next --json >save$next.json || tell 98
    kill -9 $vm
    sleep 0.5
    {program} vm restore --from snapshot$next --policy freeze --input typed$next --control to$next --json \\
        >restore$next.json 2>printed$next &
    vm=$!
    await 'probe: disruption' $number
done
echo off >typed4
wait $vm
cat printed* >&2
cat restore2.json restore3.json restore4.json
"""


@unittest.skipUnless(PROGRAM.exists() and AGENT.exists(), "build-arm64/ is not built: make arm64")
class AgentOnArm64(unittest.TestCase):
    def test_realtime_is_right_within_ten_milliseconds_of_the_guests_time(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            probe = folder / "guest_probe"
            subprocess.run([linux_guest.ARM64.compiler, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static",
                            f"-I{ROOT}/src/guest/include", "-o", str(probe), str(ROOT / "lab/agent/guest_probe.c")], check=True)
            linux_guest.kernel(folder / "vmlinuz", KERNEL, linux_guest.ARM64)
            linux_guest.initrd(folder / "initrd.gz", GUEST, [probe, AGENT], linux_guest.ARM64)
            (folder / "inside.sh").write_text(HOST.format(program=PROGRAM))
            files = [folder / "vmlinuz", folder / "initrd.gz", folder / "inside.sh", probe, PROGRAM]
            done = subprocess.run(
                [str(ROOT / "lab/continuo-lab"), "run", "--host", "arm64-vhe", "--kernel", KERNEL, "--json", "--quiet",
                 "--timeout", "600", "--icount", "0", *[word for file in files for word in ("--file", str(file))], "--",
                 "sh", str(folder / "inside.sh"), str(folder)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=900)
        answer = json.loads(done.stdout)
        printed = answer.get("stderr", "")
        self.assertEqual(done.returncode, 0, (answer.get("error"), printed[-6000:]))
        seen = [tuple(map(int, found)) for found in re.findall(
            r"probe: disruption (\d+) stepped (-?\d+) repaired_within (\d+) cancelled (\d+) unsync (\d) maxerror_us (\d+)",
            printed)]
        known_to = [round(float(found) * 1e9) for found in re.findall(r"REALTIME stepped by \S+ s, known to (\S+) s", printed)]
        certificates = [document["certificate"] for document in documents(answer["stdout"])]
        self.assertEqual([found[0] for found in seen], [1, 2, 3], printed[-6000:])
        self.assertEqual((len(known_to), len(certificates)), (3, 3), printed[-6000:])
        for (marker, stepped, within, cancelled, unsync, maxerror_us), bound, certificate in zip(seen, known_to, certificates):
            with self.subTest(gap=marker):
                self.assertTrue(certificate["holds"], certificate)
                gap = certificate["gap"]
                print(f"gap {marker}: {gap['ns']} ns, stepped by {stepped - gap['ns']:+d} ns more (bound {bound} ns), right after "
                      f"{within / 1e6:.3f} ms of the guest's time")
                self.assertLess(within, 10_000_000)
                self.assertEqual((cancelled >= 1, unsync, maxerror_us), (True, 1, 16_000_000))
                # The probe reads two clocks one after the other, before the gap and after the step.
                self.assertLessEqual(abs(stepped - gap["ns"]), bound + gap["bound_ns"] + 100_000)
                self.assertGreater(stepped, 500_000_000)


if __name__ == "__main__":
    unittest.main()
