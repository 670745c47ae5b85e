"""A Linux guest of two CPUs on an emulated host: it is written into a file while both CPUs read their clocks, goes on,
and two more are made of the file, side by side."""

import pathlib
import re
import unittest

from linux_guest import documents
from test_snapshot_kvm import counter_at, kvmclock_at
from test_vm_linux_lab import in_lab

# The guest's shell hands a line to the loop, which answers for it, or says how often its kernel has heard that it is
# another life of a snapshot.
GUEST = """
mkfifo /tmp/ask
clock_loop </tmp/ask &
exec 3>/tmp/ask
echo "guest: ready"
while read -r line; do
    case $line in
    off) poweroff -f ;;
    lives) echo "guest: forks $(dmesg | grep -c 'crng reseeded due to virtual machine fork')" ;;
    *) echo ask >&3 ;;
    esac
done
"""

HOST = """
cd "$1"
export TMPDIR=$1
await() {{  # text, where
    until grep -q "$1" $2; do
        kill -0 $vm || {{ cat printed* >&2; exit 99; }}
        sleep 0.2
    done
}}
mkfifo typed1 typed2 typed3
touch printed1 printed2 printed3
{program} vm run --kernel vmlinuz --initrd initrd.gz --cpus 2 --memory 128M --input typed1 --control control1 --json \\
    --append 'console=ttyS0 panic=-1 quiet' >ended1 2>printed1 &
vm=$!
await 'guest: ready' printed1
sleep 1
{program} vm snapshot --control control1 --output linux.snapshot --json >taken || {{ cat taken printed1 >&2; exit 98; }}
for number in 2 3; do
    {program} vm restore --from linux.snapshot --policy advance --input typed$number --control control$number --json \\
        >restored$number 2>printed$number &
    vm=$!
    await '^}}' restored$number
done
sleep 1
for number in 1 2 3; do
    echo ask >typed$number
    await 'clocks:' printed$number
    echo lives >typed$number
    await 'guest: forks' printed$number
done
for number in 1 2 3; do
    {program} capture --control control$number --json >record$number || exit 97
done
for number in 1 2 3; do
    echo off >typed$number
done
wait
cat printed* >&2
cat taken restored2 restored3 record1 record2 record3
"""


class LinuxSnapshot(unittest.TestCase):
    def test_two_are_made_of_one_that_goes_on(self):
        code, answer = in_lab(GUEST, HOST, [pathlib.Path(__file__).parent / "clock_loop.c"])
        printed = answer.get("stderr", "")
        self.assertEqual(code, 0, (answer.get("error"), printed[-5000:]))
        taken, *restored, of_first, of_second, of_third = documents(answer["stdout"])
        self.assertGreater(taken["pages"], 1000)
        self.assertLess(taken["bytes"], 128 << 20, "memory that was never touched is not in the file")
        self.assertEqual({each["snapshot"]["id"] for each in restored}, {taken["id"]})
        self.assertEqual(len({each["generation"] for each in restored}), 2)
        self.assertEqual([each["generation_told"] for each in restored], [True, True])
        self.assertEqual(re.findall(r"guest: forks (\d+)", printed), ["0", "1", "1"], printed[-5000:])
        for each in restored:
            certificate = each["certificate"]
            self.assertTrue(certificate["holds"])
            self.assertEqual([row["seam"] for row in certificate["clocks"] if row["clock"] == "tsc"], [0, 0])
        told = re.findall(r"clocks: loops (\d+) backward (\d+) forward_ns (\d+)", printed)
        self.assertEqual(len(told), 3, printed[-5000:])
        self.assertEqual([int(backward) for _, backward, _ in told], [0, 0, 0], "steps back")
        for each, (_, _, forward) in zip(restored, told[1:]):
            gap = each["certificate"]["gap"]
            self.assertGreaterEqual(int(forward), gap["ns"] - gap["bound_ns"])
        # By the lines that the kernel and the guests' own pages have: the three clocks are one.
        at = max(record["anchor"]["counter"] for record in (of_first, of_second, of_third))
        for record in (of_second, of_third):
            for vcpu in range(2):
                self.assertEqual(counter_at(record, vcpu, at), counter_at(of_first, vcpu, at))
            self.assertLessEqual(abs(kvmclock_at(record, at) - kvmclock_at(of_first, at)), 2)


if __name__ == "__main__":
    unittest.main()
