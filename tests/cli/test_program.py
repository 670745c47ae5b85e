"""The program as a whole: help, exit codes, output that cannot be written, one binary that needs nothing."""

import json
import pathlib
import re
import struct
import subprocess
import unittest

from continuo_program import KERNEL, PROGRAM, ROOT, USAGE, document, error_of, json_of, run

COMMANDS = [("scale",), ("inspect",), ("inspect", "pvclock"), ("inspect", "wallclock"), ("inspect", "vmclock"),
            ("inspect", "record"), ("plan",), ("version",), ("doctor",), ("capture",),
            ("demo",), ("vm",), ("vm", "run"), ("vm", "send"), ("vm", "receive"), ("vm", "resume"), ("vm", "stop")]


class Help(unittest.TestCase):
    def test_every_command_has_help_with_an_example(self):
        for command in COMMANDS:
            with self.subTest(command=command):
                done = run(*command, "--help")
                self.assertEqual((done.returncode, done.stderr), (0, b""))
                self.assertIn(b"Example:\n", done.stdout)
                self.assertIn(("$ continuo " + " ".join(command)).encode(), done.stdout)

    def test_the_program_lists_commands_and_exit_codes(self):
        text = run("--help").stdout.decode()
        for command in COMMANDS:
            self.assertIn(f"\n  {command[0]} ", text)
        documented = re.findall(r"^\| (\d) \|", (ROOT / "docs/cli.md").read_text(), re.M)
        self.assertEqual(re.findall(r"^  (\d)  ", text, re.M), documented)
        self.assertEqual(documented, list("012345678"))

    def test_no_line_of_help_is_too_long_for_a_terminal(self):
        for command in [()] + COMMANDS:
            for line in run(*command, "--help").stdout.decode().splitlines():
                self.assertLessEqual(len(line), 110, line)

    def test_examples_of_scale_are_real(self):
        text = run("scale", "--help").stdout.decode()
        command, output = re.search(r"\$ continuo (.* --json)\n  (\{.*\})", text).groups()
        self.assertEqual(document(run(*command.split())), json.loads(output))


class Errors(unittest.TestCase):
    def test_usage(self):
        for words in [(), ("bogus",), ("scale", "--bogus"), ("inspect",), ("inspect", "pvclock"), ("plan",),
                      ("version", "extra")]:
            with self.subTest(words=words):
                error = error_of(*words, code=USAGE)
                self.assertIn("--help`", error["advice"])
                done = run(*words)
                self.assertEqual((done.returncode, done.stdout), (USAGE, b""))

    def test_output_that_cannot_be_written(self):
        with open("/dev/full", "wb") as full:
            done = run("version", stdout=full)
        self.assertEqual(done.returncode, KERNEL)
        self.assertIn(b"No space left", done.stderr)

    def test_closed_standard_streams(self):
        done = subprocess.run(["sh", "-c", f"'{PROGRAM}' version >&-"], stderr=subprocess.PIPE, timeout=60)
        self.assertEqual(done.returncode, KERNEL)
        done = subprocess.run(["sh", "-c", f"'{PROGRAM}' inspect record - <&-"], stderr=subprocess.PIPE, timeout=60)
        self.assertEqual(done.returncode, KERNEL)


PT_INTERP = 3  # an ELF program header that names the loader of shared libraries


def program_header_types(path):
    """The p_type of each program header of a 64-bit little-endian ELF file."""
    image = pathlib.Path(path).read_bytes()
    table, = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    return [struct.unpack_from("<I", image, table + i * size)[0] for i in range(count)]


class Version(unittest.TestCase):
    def test_version(self):
        answer = json_of("version")
        project = re.search(r"project\(continuo VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text())[1]
        self.assertEqual((answer["version"], answer["record_format"]), (project, 1))
        self.assertIn(project, run("--version").stdout.decode())

    def test_the_program_needs_no_library(self):
        # but where sanitizers are in it, which come as shared libraries
        has_loader = PT_INTERP in program_header_types(PROGRAM)
        self.assertEqual(has_loader, json_of("version")["sanitizers"] != "")


if __name__ == "__main__":
    unittest.main()
