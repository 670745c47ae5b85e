"""Runs on a real emulated host: needs QEMU, gcc, and at the first time the network."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOOL = str(HERE.parent / "continuo-lab")
HOST_DIED = 122
BOOTS_MAX = 3


def _why_not() -> str:
    """Root installs what is missing, and the tool must then be seen to do it."""
    if shutil.which("gcc") is None:
        return "no gcc"
    if shutil.which("qemu-system-x86_64") is None and os.geteuid() != 0:
        return "no qemu-system-x86_64, and only root can install it"
    return ""


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _children(pid: int):
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _console(stderr: bytes) -> bytes:
    """The console's log of which the tool's stderr tells, the last one; empty if of none."""
    found = re.findall(rb"console's log: (.+)", stderr)
    return Path(os.fsdecode(found[-1])).read_bytes() if found else b""


def _end(tool: subprocess.Popen) -> None:
    tool.kill()
    tool.wait(10)
    tool.stdout.close()


@unittest.skipIf(_why_not(), f"SKIPPED: {_why_not()}")
class EndToEnd(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.scratch.cleanup)
        cls.probe = os.path.join(cls.scratch.name, "kvm probe")
        source = str(HERE / "kvm_probe.c")
        flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-static"]
        subprocess.run(["gcc", *flags, "-o", cls.probe, source], check=True)

    def tool(self, *arguments, **options):
        """Once more, and said so, where QEMU's TCG lost the host after the program began: the tool
        reports that, as it must, and it says nothing about what is tested here."""
        for _ in range(BOOTS_MAX):
            done = subprocess.run([TOOL, *arguments], capture_output=True, check=False, **options)
            if done.returncode != HOST_DIED or b"sysrq triggered" in _console(done.stderr):
                break
            print(f"the host died; {' '.join(arguments)!r}: {done.stderr}", file=sys.stderr)
        return done

    def start(self, script, first_line):
        """A run whose program has printed its first line; its QEMU's process id."""
        for _ in range(BOOTS_MAX):
            said = tempfile.TemporaryFile()
            self.addCleanup(said.close)
            tool = subprocess.Popen(
                [TOOL, "run", "--quiet", "--", "sh", "-c", script],
                stdout=subprocess.PIPE,
                stderr=said,
            )
            self.addCleanup(_end, tool)
            line = tool.stdout.readline()
            if line == first_line:
                (qemu,) = _children(tool.pid)
                return tool, qemu
            _end(tool)
            said.seek(0)
            what = f"first line {line}, status {tool.returncode}, stderr: {said.read().decode()}"
            if line or tool.returncode != HOST_DIED:
                break
            print(f"the host died; {what}", file=sys.stderr)
        return self.fail(what)

    def assert_ends(self, pid):
        deadline = time.monotonic() + 10
        while _alive(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertFalse(_alive(pid), "QEMU outlived the tool")

    def test_streams_arguments_exit_code_and_kvm(self):
        pattern = bytes((i ^ (i >> 8)) & 0xFF for i in range(1 << 16))
        arguments = ["", "two words", "it's", "$(id)\n\\", os.fsdecode(bytes(range(1, 256))), "--"]
        done = self.tool("run", "--quiet", "--", self.probe, *arguments)
        self.assertEqual(done.returncode, 37, done.stderr)
        argv = b"".join(os.fsencode(text) + b"\0" for text in [self.probe, *arguments])
        self.assertEqual(done.stdout, pattern * 8 + argv)
        self.assertEqual(done.stderr, b"api 12, vm made\n" + bytes(range(255, -1, -1)))

    def test_json_result_files_and_a_dynamic_program(self):
        file = Path(self.scratch.name, "data")
        file.write_bytes(b"\x00\xffcarried")
        done = self.tool(
            "run", "--json", "--quiet", "--smp", "1", "--file", f"{file}:/data/there",
            "--", "/usr/bin/od", "-An", "-c", "/data/there",
        )  # fmt: skip
        result = json.loads(done.stdout)
        self.assertEqual(result["exit_code"], 0, done.stderr)
        self.assertIn(result["boots"], (1, 2, 3))
        self.assertEqual(result["stdout"].split(), ["\\0", "377", *"carried"])
        self.assertEqual(result["stderr"], "")
        self.assertRegex(result["kernel"], r"^6\.12\.")
        self.assertLess(result["up_seconds"], result["first_output_seconds"])

    def test_timeout_keeps_what_came_before_and_the_console(self):
        program = ("sh", "-c", "echo before; sleep 300")
        done = self.tool("run", "--quiet", "--timeout", "2", "--", *program)
        self.assertEqual(done.returncode, 124, done.stderr)
        self.assertEqual(done.stdout, b"before\n", done.stderr)
        self.assertIn(b"qemu-system-x86_64", _console(done.stderr))

    def test_what_the_program_leaves_running_does_not_hold_up_the_end(self):
        done = self.tool("run", "--quiet", "--", "sh", "-c", "sleep 300 & echo done", timeout=120)
        self.assertEqual((done.returncode, done.stdout), (0, b"done\n"), done.stderr)

    def test_a_kernel_that_dies_is_told_from_a_program_that_fails(self):
        crash = "echo last; sleep 0.3; echo c >/proc/sysrq-trigger; sleep 60"
        done = self.tool("run", "--quiet", "--", "sh", "-c", crash)
        self.assertEqual(done.returncode, HOST_DIED, done.stderr)
        self.assertEqual(done.stdout, b"last\n", done.stderr)
        self.assertIn(b"sysrq triggered crash", _console(done.stderr))

    def test_arm64_with_commands_for_its_shell(self):
        commands = (
            "uname -m; cat /proc/cmdline; date +%s; test -c /dev/kvm && echo kvm\n"
            "dmesg | grep -o 'Hyp nVHE mode initialized'\n"
            "cat /carried; exit 7\n"
        )
        carried = Path(self.scratch.name, "carried")
        carried.write_text("here\n")
        done = self.tool(
            "up", "--quiet", "--host", "arm64-nvhe", "--append", "lab.x=1", "--append", "lab.y",
            "--realtime-offset=-86400", "--file", f"{carried}:/carried", input=commands.encode(),
        )  # fmt: skip
        self.assertEqual(done.returncode, 7, done.stderr)
        machine, line, seconds, *rest = done.stdout.decode().splitlines()
        self.assertEqual(machine, "aarch64")
        self.assertTrue(line.endswith("kvm-arm.mode=nvhe lab.x=1 lab.y"), line)
        self.assertTrue(-86400 - 5 < int(seconds) - time.time() < -86400 + 5, seconds)
        self.assertEqual(rest, ["kvm", "Hyp nVHE mode initialized", "here"])

    def test_a_shell_on_a_terminal(self):
        for _ in range(BOOTS_MAX):
            code, seen = self.at_a_terminal([b"tty; echo $((6 * 7)); exit 3\r"])
            if code == 3:
                break
            print(f"the host died: {seen!r}", file=sys.stderr)
        self.assertEqual(code, 3, seen)
        self.assertIn(b"/dev/ttyAMA0\n42\n", seen.replace(b"\r", b""))

    def at_a_terminal(self, lines):
        """(exit code, output) of a shell that gets `lines` typed in after its first prompt."""
        child, terminal = pty.fork()
        if child == 0:
            os.execv(TOOL, [TOOL, "up", "--quiet", "--host", "arm64-vhe"])
        seen = b""
        with contextlib.suppress(OSError):  # how the end of a terminal's other side shows
            while data := os.read(terminal, 4096):
                seen += data
                if b"# " in seen and lines:
                    os.write(terminal, lines.pop(0))
        os.close(terminal)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), seen

    def test_newest_kernel_with_time_by_instructions(self):
        done = self.tool(
            "run", "--json", "--quiet", "--kernel", "newest", "--icount", "4", "--",
            "sh", "-c", "dmesg | grep -o 'tsc: .* calibration: [0-9.]* MHz'; test -c /dev/kvm",
        )  # fmt: skip
        result = json.loads(done.stdout)
        self.assertEqual(result["exit_code"], 0, done.stdout)
        self.assertRegex(result["kernel"], r"^([7-9]|[1-9][0-9])\.")
        # 1 GHz by definition; the kernel's own measurement of it is good to a kHz.
        self.assertRegex(result["stdout"], r"(999\.999|1000\.000|1000\.001) MHz")

    def test_sigterm_ends_qemu(self):
        tool, qemu = self.start("echo on; sleep 300", b"on\n")
        tool.send_signal(signal.SIGTERM)
        self.assertEqual(tool.wait(10), 143)
        self.assert_ends(qemu)

    def test_death_of_the_tool_ends_qemu(self):
        tool, qemu = self.start("echo on; sleep 300", b"on\n")
        tool.kill()
        tool.wait(10)
        self.assert_ends(qemu)

    def test_closed_output_ends_the_run(self):
        tool, qemu = self.start("while :; do echo more; done", b"more\n")
        tool.stdout.close()
        self.assertEqual(tool.wait(30), 141)
        self.assert_ends(qemu)


if __name__ == "__main__":
    unittest.main()
