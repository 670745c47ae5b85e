"""Of the host that Bochs emulates, what needs no emulated host. What does is lab/scaling/run."""

import importlib.machinery
import importlib.util
import os
import pty
import struct
import sys
import time
import tty
import unittest
from pathlib import Path
from unittest import mock

LAB = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(LAB))

from continuo_lab import bochs, cli, errors, iso, matrix  # noqa: E402
from continuo_lab.catalog import HOSTS, KERNELS  # noqa: E402
from continuo_lab.emulator import kernel_line  # noqa: E402
from continuo_lab.errors import LabError  # noqa: E402
from continuo_lab.evidence import REQUIREMENTS  # noqa: E402

HOST = HOSTS["x86-vmx-scaling"]
SECTOR = 2048


class Disc(unittest.TestCase):
    """An independent reader of the formats: ISO 9660 and El Torito."""

    LOADER = bytes(range(256)) * 9 + b"odd"
    FILES = {"KERNEL": os.urandom(5000), "INITRD": b"", "ISOLINUX.CFG": b"DEFAULT lab\n"}

    def setUp(self):
        self.disc = iso.image(self.LOADER, self.FILES)

    def sector(self, number, count=1):
        return self.disc[number * SECTOR:(number + count) * SECTOR]

    def number32(self, data, at):
        """Both byte orders of it must agree."""
        (little,) = struct.unpack_from("<I", data, at)
        (big,) = struct.unpack_from(">I", data, at + 4)
        self.assertEqual(little, big)
        return little

    def folder(self):
        """name -> (sector, bytes)"""
        root = self.sector(16)[156:190]
        self.assertEqual(root[0], 34)
        data = self.sector(self.number32(root, 2), self.number32(root, 10) // SECTOR)
        found, at = {}, 0
        while data[at]:
            entry = data[at:at + data[at]]
            name = entry[33:33 + entry[32]]
            found[name] = (self.number32(entry, 2), self.number32(entry, 10))
            at += data[at]
        return found

    def file(self, name):
        at, size = self.folder()[name]
        return self.disc[at * SECTOR:at * SECTOR + size]

    def test_volume(self):
        self.assertEqual(len(self.disc) % SECTOR, 0)
        volume = self.sector(16)
        self.assertEqual(volume[:7], b"\x01CD001\x01")
        self.assertEqual(self.number32(volume, 80) * SECTOR, len(self.disc))
        self.assertEqual(struct.unpack_from("<H", volume, 128), (SECTOR,))
        self.assertEqual(self.sector(18)[:7], b"\xffCD001\x01")
        for order, at in (("<", 140), (">", 148)):
            (table,) = struct.unpack_from(f"{order}I", volume, at)
            (root,) = struct.unpack_from(f"{order}I", self.sector(table), 2)
            self.assertEqual(root, self.number32(volume, 158))

    def test_every_file_is_there(self):
        self.assertEqual(self.file(b"KERNEL.;1"), self.FILES["KERNEL"])
        self.assertEqual(self.file(b"INITRD.;1"), b"")
        self.assertEqual(self.file(b"ISOLINUX.CFG;1"), b"DEFAULT lab\n")
        names = list(self.folder())
        self.assertEqual(names[:2], [b"\0", b"\1"])
        self.assertEqual(names[2:], sorted(names[2:]))

    def test_the_bios_finds_the_loader(self):
        record = self.sector(17)
        self.assertEqual(record[:30], b"\0CD001\x01EL TORITO SPECIFICATION")
        (catalog,) = struct.unpack_from("<I", record, 71)
        check, entry = self.sector(catalog)[:32], self.sector(catalog)[32:64]
        self.assertEqual(sum(struct.unpack("<16H", check)) & 0xFFFF, 0)
        self.assertEqual((check[0], check[30:]), (1, b"\x55\xaa"))
        self.assertEqual((entry[0], entry[1]), (0x88, 0))
        (at,) = struct.unpack_from("<I", entry, 8)
        self.assertEqual(at, self.folder()[b"ISOLINUX.BIN;1"][0])

    def test_the_loader_is_told_where_it_lies(self):
        loader = self.file(b"ISOLINUX.BIN;1")
        volume, at, size, total = struct.unpack_from("<IIII", loader, 8)
        self.assertEqual((volume, at), (16, self.folder()[b"ISOLINUX.BIN;1"][0]))
        self.assertEqual(size, len(self.LOADER))
        words = self.LOADER[64:] + b"\0" * (-len(self.LOADER) % 4)
        self.assertEqual(
            total, sum(struct.unpack(f"<{len(words) // 4}I", words)) & 0xFFFFFFFF
        )
        self.assertEqual((loader[:8], loader[64:]), (self.LOADER[:8], self.LOADER[64:]))

    def test_too_many_files(self):
        with self.assertRaises(ValueError):
            iso.image(b"x" * 100, {f"F{i}": b"" for i in range(60)})


class Configuration(unittest.TestCase):
    def test_each_stream_has_a_port_of_its_own(self):
        boot = mock.Mock(memory_mib=512)
        ports = {"stdout": 11, "stderr": 12, "status": 13, "console": 14}
        lines = bochs.configuration(boot, ports, 15).decode().splitlines()
        self.assertEqual(len(lines), len(set(lines)))
        for number, descriptor in ((1, 14), (2, 11), (3, 12), (4, 13)):
            self.assertIn(f"com{number}: enabled=1, mode=file, dev=/dev/fd/{descriptor}", lines)
        self.assertIn("ata0-master: type=cdrom, path=/dev/fd/15, status=inserted", lines)
        self.assertIn("memory: guest=512, host=512", lines)

    def test_the_kernel_is_told_of_the_ports_and_how_to_die(self):
        words = kernel_line(HOST).split()
        self.assertIn("lab_port=/dev/ttyS", words)
        self.assertIn("console=ttyS0,115200", words)
        self.assertIn("reboot=triple", words)

    def test_what_does_not_fit_is_refused(self):
        for kernel, cpus in (("newest", None), ("6.12", 2)):
            with self.assertRaises(LabError) as caught:
                cli._check_fits(HOST, KERNELS[kernel], cpus)
            self.assertEqual(caught.exception.exit_code, errors.BAD_REQUEST)
        cli._check_fits(HOST, KERNELS["6.1"], None)
        self.assertEqual(cli.cpus_of(HOST, None), 1)
        self.assertEqual(cli.cpus_of(HOSTS["x86-svm"], None), 2)


class Screen(unittest.TestCase):
    def test_is_read_away(self):
        """More than a terminal holds can be shown, and nothing comes back as typed."""
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        screen = bochs.Screen()
        console = b"some words\n"
        screen.look(console)
        console += b'Bochs connected to screen "' + os.ttyname(theirs).encode() + b'"\n'
        screen.look(console)
        deadline = time.monotonic() + 10
        while tty.tcgetattr(theirs)[3] & tty.ECHO and time.monotonic() < deadline:
            time.sleep(0.01)
        os.close(theirs)
        os.set_blocking(ours, False)
        left = 1 << 20
        while left and time.monotonic() < deadline:
            try:
                left -= os.write(ours, b"x" * min(left, 4096))
            except BlockingIOError:
                time.sleep(0.001)
        self.assertEqual(left, 0, "nobody reads the screen")
        with self.assertRaises(BlockingIOError):
            os.read(ours, 1)

    def test_a_screen_that_is_gone_is_no_failure(self):
        bochs.Screen().look(b'Bochs connected to screen "/dev/pts/999999"\n')


def _runner():
    """lab/scaling/run, which has no .py."""
    loader = importlib.machinery.SourceFileLoader("scaling_run", str(LAB / "scaling/run"))
    spec = importlib.util.spec_from_loader("scaling_run", loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling_run"] = module
    loader.exec_module(module)
    return module


class Runner(unittest.TestCase):
    """What lab/scaling/run makes of the output: nothing that is missing may pass."""

    TESTS = (
        "[==========] Running 2 tests from 1 test suite.\n"
        "[ RUN      ] Nested.A\nfigure: 1 tick\n[       OK ] Nested.A (3 ms)\n"
        "[ RUN      ] Nested.B\n[       OK ] Nested.B (3 ms)\n"
    )

    def setUp(self):
        self.run = _runner()
        self.outcome = self.run.Outcome("6.12")

    def test_parts(self):
        text = "== a\none\ntwo\n== a ended with 0\n== b\n== b ended with 3\n== c\nnever\n"
        self.assertEqual(self.run.parts_of(text), {"a": (0, "one\ntwo\n"), "b": (3, "")})

    def test_all_passed(self):
        self.run.take_tests(self.outcome, "scaling", 0, self.TESTS)
        self.assertEqual((len(self.outcome.passed), self.outcome.failed), (3, []))
        keys = [(found["job"], found["key"], found["state"]) for found in self.outcome.findings]
        self.assertEqual(keys[0], ("scaling", "S0.6 Nested.A", "works"))

    def test_the_evidence_is_named_as_the_matrix_wants_it(self):
        self.assertEqual(
            self.run.evidence_of("kvm", "Kvm/MachineContract.NowNeverGoesBack/kvm"),
            ("tests", "MachineContract.NowNeverGoesBack/kvm"),
        )
        for group, (number, _) in self.run.REQUIREMENTS.items():
            key = f"{number} {group}.Any"
            self.assertEqual(self.run.evidence_of("scaling", f"{group}.Any"), ("scaling", key))
            column = matrix.Results(matrix.Column("x86-vmx-scaling", "6.12"))
            column.findings.append(matrix.Finding("scaling", key, matrix.WORKS))
            (wanted,) = [one for one in REQUIREMENTS if one.number == number]
            self.assertEqual(matrix.cell(wanted, column), (matrix.WORKS, ""))

    def test_what_failed_is_in_no_cell_that_works(self):
        failing = self.TESTS.replace("[       OK ] Nested.B", "[  FAILED  ] Nested.B")
        self.run.take_tests(self.outcome, "scaling", 1, failing)
        states = {found["key"]: found["state"] for found in self.outcome.findings}
        self.assertEqual(states, {"S0.6 Nested.A": "works", "S0.6 Nested.B": "FAILED"})

    def test_a_test_that_never_ended_is_a_failure(self):
        self.run.take_tests(self.outcome, "scaling", 0, self.TESTS.rsplit("[       OK", 1)[0])
        self.assertEqual(len(self.outcome.failed), 1)

    def test_so_is_a_program_that_crashes_after_its_tests_or_has_none(self):
        self.run.take_tests(self.outcome, "scaling", 139, self.TESTS)
        self.run.take_tests(self.outcome, "kvm", 0, "")
        self.assertEqual(len(self.outcome.failed), 2)

    def test_so_is_a_skip_among_the_proofs_and_a_missing_group(self):
        skipped = self.TESTS.replace("[       OK ] Nested.B", "why\n[  SKIPPED ] Nested.B")
        self.run.take_tests(self.outcome, "scaling", 0, skipped)
        self.assertEqual(self.outcome.skipped, [("scaling: Nested.B", "why")])
        self.run.take_scaling(self.outcome, skipped)
        self.assertEqual(len(self.outcome.failed), 2)
        self.assertEqual(self.outcome.figures, ["1 tick"])

    def test_doctor_must_say_all_three(self):
        self.run.take_doctor(self.outcome, 0, '{"verdict": "by-value", "checks": []}')
        self.assertEqual(len(self.outcome.failed), 3)
        self.run.take_doctor(self.outcome, 1, "no KVM")
        self.assertEqual(len(self.outcome.failed), 6)


if __name__ == "__main__":
    unittest.main()
