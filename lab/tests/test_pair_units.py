"""Two hosts at once, without any: the command line, what the QEMUs get, how failures count."""

import socket
import sys
import threading
import time
import unittest
from fractions import Fraction
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from continuo_lab import cli, errors, machine_tsc, pair  # noqa: E402
from continuo_lab.catalog import HOSTS  # noqa: E402
from continuo_lab.emulator import Outcome  # noqa: E402
from continuo_lab.errors import LabError  # noqa: E402
from continuo_lab.pair import Ended, HostRequest, HostResult, PairResult  # noqa: E402
from continuo_lab.payload import Payload, program_script  # noqa: E402
from continuo_lab.streams import Memory, Prefixed  # noqa: E402

HOST = HOSTS["x86-svm"]


def request(**changes) -> HostRequest:
    return HostRequest("6.12", ["true"], 2, 1024, **changes)


class CommandLine(unittest.TestCase):
    def test_one_program_is_for_both_and_two_are_for_one_each(self):
        self.assertEqual(cli._programs_of_pair(["p", "1"]), {"a": ["p", "1"], "b": ["p", "1"]})
        self.assertEqual(
            cli._programs_of_pair(["p", "--", "q", "-x"]), {"a": ["p"], "b": ["q", "-x"]}
        )

    def test_none_an_empty_one_and_three_are_refused(self):
        for command in (None, [], ["--", "q"], ["p", "--"], ["p", "--", "q", "--", "r"]):
            with self.assertRaises(LabError, msg=str(command)) as refused:
                cli._programs_of_pair(command)
            self.assertEqual(refused.exception.exit_code, errors.BAD_REQUEST)

    def test_an_offset_is_exact_to_the_nanosecond(self):
        options = cli._parser().parse_args(["pair", "--realtime-offset", "-7.000000001"])
        self.assertEqual(options.realtime_offset, Fraction(-7_000_000_001, 10**9))
        for bad in ("x", "1/0", ""):
            with mock.patch("sys.stderr"), self.assertRaises(SystemExit) as refused:
                cli._parser().parse_args(["pair", f"--realtime-offset={bad}"])
            self.assertEqual(refused.exception.code, errors.BAD_REQUEST)

    def test_options_of_one_host_do_not_reach_the_other(self):
        options = cli._parser().parse_args(
            ["pair", "--icount-b", "--kernel-b=6.1", "--maxerror-a=0.25", "--unsynchronised-b"]
        )
        a = cli._host_request(options, "a", ["p"])
        b = cli._host_request(options, "b", ["q"])
        self.assertEqual((a.icount, a.kernel, a.maxerror_us, a.synchronised),
                         (False, "6.12", 250_000, True))
        self.assertEqual((b.icount, b.kernel, b.maxerror_us, b.synchronised),
                         (True, "6.1", None, False))


class WhatTheQemusGet(unittest.TestCase):
    def test_the_kernel_is_told_the_machines_frequency_unless_asked_otherwise(self):
        self.assertIn("tsc_early_khz=2500000 ", pair.kernel_parameters(request(), 2_500_000))
        asked = request(tsc_khz=2_500_500, append=["quiet", "nosmp"])
        self.assertEqual(
            pair.kernel_parameters(asked, 2_500_000),
            "tsc_early_khz=2500500 hpet=disable pmtmr=0 quiet nosmp",
        )
        self.assertIn("=1000000 ", pair.kernel_parameters(request(icount=True), 2_500_000))
        self.assertEqual(pair.kernel_parameters(request(), None), "")

    def test_icount_runs_in_one_thread(self):
        words = pair.emulated_host(HOST, True).qemu_arguments
        self.assertIn("-icount", words)
        self.assertNotIn("multi", " ".join(words))
        self.assertIs(pair.emulated_host(HOST, False), HOST)

    def test_the_program_does_not_get_the_control_port(self):
        payload = Payload(["prog", "it's"], "/", HOST, pair._prologue("a"), pair._EPILOGUE)
        lines = program_script(payload).splitlines()
        at = lines.index("prog 'it'\"'\"'s' 4>&-")
        self.assertLess(lines.index("read -r go <&4"), at)
        self.assertEqual(lines[at + 1:], ["code=$?", *pair._EPILOGUE, "exit $code"])

    @unittest.skipUnless(machine_tsc.machine_tsc_khz(), "this machine has no TSC")
    def test_the_machines_frequency_is_measured_to_some_ppm(self):
        first, second = machine_tsc.machine_tsc_khz(), machine_tsc.machine_tsc_khz()
        self.assertLess(abs(first - second), first * 50e-6)
        self.assertTrue(300_000 < first < 20_000_000, first)


class HowItEnds(unittest.TestCase):
    @staticmethod
    def result(a, b) -> int:
        def one(end):
            host = HostResult(mock.Mock(), (Memory(), Memory()))
            if isinstance(end, LabError):
                host.failure = end
            else:
                host.outcome = Outcome(exit_code=end)
            return host

        return PairResult({"a": one(a), "b": one(b)}, 1).exit_code()

    def test_the_first_failure_counts_and_one_that_only_followed_does_not(self):
        died = LabError(errors.HOST_DIED, "died")
        late = LabError(errors.TIMED_OUT, "late")
        self.assertEqual(self.result(0, 0), 0)
        self.assertEqual(self.result(0, 3), 3)
        self.assertEqual(self.result(2, 3), 2)
        self.assertEqual(self.result(Ended("b failed"), 3), 3)
        self.assertEqual(self.result(0, died), errors.HOST_DIED)
        self.assertEqual(self.result(5, late), errors.TIMED_OUT)
        self.assertEqual(self.result(late, Ended("a died")), errors.TIMED_OUT)


class Lines(unittest.TestCase):
    def test_each_line_has_its_writers_prefix_however_it_came(self):
        shared = Memory()
        a, b = Prefixed(shared, b"a| "), Prefixed(shared, b"b| ")
        a.put(b"on")
        b.put(b"x\n\ny")
        a.put(b"e\ntwo")
        a.finish()
        b.finish()
        self.assertEqual(bytes(shared.content), b"b| x\nb| \na| one\na| two\nb| y\n")

    def test_a_line_without_an_end_is_not_kept_for_ever(self):
        shared = Memory()
        a = Prefixed(shared, b"a| ")
        for _ in range(3):
            a.put(b"x" * (1 << 20))
        self.assertGreater(len(shared.content), 1 << 20)


class BothTogether(unittest.TestCase):
    """The coordinator with threads in the place of QEMUs."""

    def hosts(self, linger_s=0.2, timeout_s=0.0):
        running = pair._Pair.__new__(pair._Pair)
        running._request = mock.Mock(linger_s=linger_s, timeout_s=timeout_s)
        running._progress = mock.Mock()
        running._went_at = time.monotonic()
        running._failed_at = None
        running._shared_sinks = None
        running._hosts = [self.host(name) for name in pair.NAMES]
        for host in running._hosts:
            host.thread = threading.Thread(target=pair._run_host, args=(host,), daemon=True)
            host.thread.start()
        return running

    def host(self, name):
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        ours.setblocking(False)
        emulator = FakeEmulator(theirs)
        result = HostResult(mock.Mock(), (Memory(), Memory()))
        return pair._Running(name, emulator, result, ours, threading.Event())

    def test_a_host_stays_up_until_the_other_program_has_ended(self):
        both = self.hosts()
        a, b = both._hosts
        a.emulator.end_program(0)
        b.emulator.end_program(0, after=0.3)
        both._until_all_over()
        self.assertEqual([host.result.outcome.exit_code for host in (a, b)], [0, 0])
        self.assertGreater(a.emulator.over_at - a.emulator.ended_at, 0.2)

    def test_a_host_that_dies_ends_the_other(self):
        both = self.hosts(linger_s=60)
        a, b = both._hosts
        b.emulator.cancel(LabError(errors.HOST_DIED, "died"))
        with mock.patch.object(pair, "keep_console", lambda _: "here"):
            both._until_all_over()
        self.assertIsInstance(a.result.failure, Ended)
        self.assertIn("console's log: here", str(b.result.failure))

    def test_a_program_that_fails_ends_the_other_after_a_while(self):
        both = self.hosts(linger_s=0.3)
        a, b = both._hosts
        a.emulator.end_program(7)
        began = time.monotonic()
        both._until_all_over()
        self.assertGreater(time.monotonic() - began, 0.25)
        self.assertEqual(a.result.outcome.exit_code, 7)
        self.assertIn("host a failed (7)", str(b.result.failure))

    def test_the_program_that_is_late_is_named(self):
        both = self.hosts(timeout_s=0.3)
        a, b = both._hosts
        a.emulator.end_program(0)
        with mock.patch.object(pair, "keep_console", lambda _: "here"):
            both._until_all_over()
        self.assertEqual(a.result.outcome.exit_code, 0)
        self.assertEqual(b.result.failure.exit_code, errors.TIMED_OUT)
        self.assertIn("host b", str(b.result.failure))


class FakeEmulator:
    """Ends when it is cancelled, or when its program has ended and it was told `over`."""

    def __init__(self, control):
        self._control = control
        self._cancelled = None
        self._code = None
        self.command = []
        self.ended_at = self.over_at = 0.0

    def end_program(self, code, after=0.0):
        def end():
            self._code = code
            self.ended_at = time.monotonic()
            self._control.send(b"ended %d\n" % code)

        timer = threading.Timer(after, end)
        timer.daemon = True
        timer.start()

    def cancel(self, why):
        self._cancelled = why

    def run(self):
        self._control.settimeout(0.02)
        while self._cancelled is None:
            try:
                if b"over" in self._control.recv(100) and self._code is not None:
                    self.over_at = time.monotonic()
                    return Outcome(exit_code=self._code)
            except TimeoutError:
                pass
        raise self._cancelled
