"""`vm snapshot` and `vm restore` on this machine's KVM: one VM, its file, and the VMs made of it, side by side."""

import json
import os
import resource
import signal
import socket
import stat
import time
import unittest

from continuo_program import BAD_INPUT, DONE, KERNEL, PEER, REFUSED, USAGE, error_of, json_of, start
from witness_case import WitnessCase


def counter_at(record, vcpu, host_counter):
    """A vCPU's TSC at a value of the host's: unscaled, a constant apart."""
    return record["vcpus"][vcpu]["counter"] + host_counter - record["anchor"]["counter"]


def kvmclock_at(record, host_counter):
    """By the line, in integers without limit, as the guest computes it."""
    line = record["kvmclock"]
    delta = counter_at(record, 0, host_counter) - line["tsc_timestamp"]
    shifted = delta << line["shift"] if line["shift"] >= 0 else delta >> -line["shift"]
    return line["system_time"] + (shifted * line["mul"] >> 32)


class Snapshot(WitnessCase):
    def setUp(self):
        super().setUp()
        self.file = self.folder / "vm.snapshot"

    def take(self, control, *options):
        return json_of("vm", "snapshot", "--control", control, "--output", self.file, *options)

    def restores(self, name, *options):
        """A VM made of the snapshot, running, and its control socket."""
        control = self.folder / name
        process = self.spawn("vm", "restore", "--from", self.file, "--control", control, "--json", *options)
        return process, control

    def answer_of(self, process):
        """What a restored VM's process said in the end, once it was told to end."""
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, DONE, errors)
        return json.loads(output)

    def expect_no_file(self):
        self.assertEqual([name for name in os.listdir(self.folder) if name.startswith("vm.snapshot")], [])

    def test_a_vm_is_written_and_goes_on(self):
        _, control = self.runs("a", "--dirty-rate", 2000)
        taken = self.take(control)
        self.assertTrue(taken["running"])
        self.assertGreater(taken["pages"], 20)
        info = self.file.stat()
        self.assertEqual((stat.S_IMODE(info.st_mode), info.st_size), (0o600, taken["bytes"]))
        self.assertLess(info.st_size, 4 << 20, "what is zero of 16 MiB is not in the file")
        self.loops_go_on(control)
        again = self.take(control)
        self.assertNotEqual(again["id"], taken["id"])
        self.assertEqual(os.listdir(self.folder).count("vm.snapshot"), 1)
        self.assertEqual(self.status(control)["witness"]["backward_steps"], 0)

    def test_many_restores_side_by_side(self):
        """Under `advance` all of them, and the VM itself, have the same clocks, at any counter value."""
        _, original = self.runs("a", "--dirty-rate", 2000)
        taken = self.take(original)
        vms = [self.restores(f"r{i}") for i in range(3)]
        controls = [original] + [control for _, control in vms]
        for control in controls:
            self.await_witness(control)
            self.loops_go_on(control)
        records = [json_of("capture", "--control", control) for control in controls]
        at = max(record["anchor"]["counter"] for record in records)
        for record in records[1:]:
            for vcpu in range(2):
                self.assertEqual(counter_at(record, vcpu, at), counter_at(records[0], vcpu, at))
            self.assertLessEqual(abs(kvmclock_at(record, at) - kvmclock_at(records[0], at)), 2)
        seen = [self.status(control)["witness"] for control in controls]
        self.assertEqual([witness["backward_steps"] for witness in seen], [0] * 4)
        answers = [self.answer_of(process) for process, _ in vms]
        self.assertEqual({answer["snapshot"]["id"] for answer in answers}, {taken["id"]})
        self.assertEqual(len({answer["generation"] for answer in answers}), 3)
        # What each guest itself has found: 0 where it was never restored.
        self.assertEqual([witness["generation"] for witness in seen],
                         [0] + [answer["generation_counter"] for answer in answers])
        self.assertEqual(len({witness["generation"] for witness in seen}), 4)
        self.assertEqual(len({answer["certificate"]["gap"]["ns"] for answer in answers}), 3)
        for answer in answers:
            self.assertTrue(answer["certificate"]["holds"])
            self.assertEqual([row["backward_steps"] for row in answer["certificate"]["observed"]], [0, 0])

    def test_a_gap_is_from_the_snapshot_to_the_restore(self):
        _, control = self.runs("a")
        self.take(control, "--stop")
        before = time.monotonic_ns()
        time.sleep(1)
        shortest = time.monotonic_ns() - before
        process, restored = self.restores("b", "--policy", "advance-and-notify")
        self.await_witness(restored)
        longest = time.monotonic_ns() - before + 2_000_000_000
        heard = self.status(restored)["witness"]["notice"]
        certificate = self.answer_of(process)["certificate"]
        self.assertLess(shortest, certificate["gap"]["ns"])
        self.assertLess(certificate["gap"]["ns"], longest)
        self.assertEqual((heard["answers"], heard["told_gap_ns"]), (1, certificate["notice"]["gap_ns"]))

    def test_freezing_holds_or_is_refused(self):
        _, control = self.runs("a")
        self.take(control)
        if self.verdict == "fixed-tsc":
            error = error_of("vm", "restore", "--from", self.file, "--policy", "freeze", code=REFUSED)
            self.assertEqual(error["code"], "refused")
            self.assertIn("vm.snapshot", error["where"])
            return
        process, restored = self.restores("b", "--policy", "freeze")
        self.await_witness(restored)
        self.assertTrue(self.answer_of(process)["certificate"]["holds"])

    def test_a_gap_over_the_limit_is_refused(self):
        _, control = self.runs("a")
        self.take(control)
        error = error_of("vm", "restore", "--from", self.file, "--gap-limit", "1ms", code=REFUSED)
        self.assertIn("gap", error["what"])

    def test_one_that_is_left_standing_still(self):
        _, control = self.runs("a")
        self.assertFalse(self.take(control, "--stop")["running"])
        loops = self.status(control)["witness"]["loops"]
        error = error_of("vm", "snapshot", "--control", control, "--output", self.folder / "second", code=KERNEL)
        self.assertEqual(error["code"], "busy")
        status = self.status(control)
        self.assertEqual((status["running"], status["witness"]["loops"]), (False, loops))
        json_of("vm", "resume", "--control", control)
        self.loops_go_on(control)

    def test_a_restored_vm_is_saved_again(self):
        _, control = self.runs("a", "--dirty-rate", 500)
        # How many pages it has dirtied by when is up to the machine's load; none of them is lost.
        until = time.monotonic() + 30
        while (pages := self.take(control)["pages"]) <= 20:
            self.assertLess(time.monotonic(), until, f"{pages} pages")
        generations = set()
        for number in range(3):
            taken = self.take(control)
            _, control = self.restores(f"r{number}")
            self.await_witness(control)
            self.loops_go_on(control)
            self.assertGreaterEqual(taken["pages"], pages)
            pages = taken["pages"]
            generations.add(self.status(control)["witness"]["generation"])
        self.assertEqual(len(generations), 3)
        self.assertEqual(self.status(control)["witness"]["backward_steps"], 0)

    def test_damaged_files_are_named(self):
        _, control = self.runs("a")
        self.take(control)
        whole = self.file.read_bytes()
        damaged = self.folder / "damaged"
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 0x10
        newer = bytearray(whole)
        newer[4] += 1
        for content, code in ((whole[:-1], "truncated"), (whole[:len(whole) // 2], "truncated"), (b"", "truncated"),
                              (flipped, "integrity"), (newer, "version"), (whole + b"\0", "malformed"),
                              (b"not a snapshot" * 9, "malformed")):
            damaged.write_bytes(content)
            error = error_of("vm", "restore", "--from", damaged, code=BAD_INPUT)
            self.assertEqual(error["code"], code)
            self.assertIn("damaged, byte", error["where"])
        self.assertEqual(error_of("vm", "restore", "--from", self.folder, code=USAGE)["code"], "invalid_argument")
        self.assertEqual(error_of("vm", "restore", "--from", self.folder / "none", code=KERNEL)["code"], "io")
        self.assertEqual(self.file.read_bytes(), whole)

    def test_a_file_that_may_not_grow_loses_nothing(self):
        process, control = self.runs("a")
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
        self.file.write_bytes(b"the one before")
        for options in ([], ["--stop"]):
            error = error_of("vm", "snapshot", "--control", control, "--output", self.file, *options, code=KERNEL)
            self.assertEqual((error["code"], error["where"]), ("io", "byte 50000"))
            self.loops_go_on(control)
        self.assertEqual(self.file.read_bytes(), b"the one before")
        self.assertEqual(sorted(os.listdir(self.folder)), ["a", "vm.snapshot"])

    def test_a_client_that_is_ended_leaves_no_file(self):
        process, control = self.runs("a")
        process.send_signal(signal.SIGSTOP)
        client = start("vm", "snapshot", "--control", control, "--output", self.file)
        self.addCleanup(self.end, client)
        until = time.monotonic() + 20
        while not any(name.startswith("vm.snapshot.part-") for name in os.listdir(self.folder)):
            self.assertLess(time.monotonic(), until)
            time.sleep(0.01)
        time.sleep(0.2)
        client.send_signal(signal.SIGTERM)
        self.assertEqual(client.wait(timeout=20), -signal.SIGTERM)
        self.expect_no_file()
        process.send_signal(signal.SIGCONT)
        self.loops_go_on(control)

    def test_a_vm_that_dies_meanwhile_leaves_no_file(self):
        process, control = self.runs("a")
        process.send_signal(signal.SIGSTOP)
        client = start("vm", "snapshot", "--control", control, "--output", self.file, "--json")
        self.addCleanup(self.end, client)
        time.sleep(0.3)
        process.kill()
        output, _ = client.communicate(timeout=20)
        self.assertEqual((client.returncode, json.loads(output)["error"]["code"]), (PEER, "peer"))
        self.expect_no_file()

    def test_what_is_no_file_is_not_written_into(self):
        _, control = self.runs("a")
        self.assertEqual(error_of("vm", "snapshot", "--control", control, "--output", "/dev/null", code=USAGE)["code"],
                         "invalid_argument")
        error_of("vm", "snapshot", "--control", control, "--output", self.folder / "none" / "x", code=KERNEL)
        ends = os.pipe()
        self.addCleanup(lambda: [os.close(end) for end in ends])
        for files in ([], [ends[1]], [ends[1], ends[0]]):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(control))
                socket.send_fds(client, [b'{"command": "snapshot"}\n'], files)
                answer = json.loads(client.makefile().readline())
            self.assertEqual(answer["error"]["code"], "invalid_argument")
        self.loops_go_on(control)


if __name__ == "__main__":
    unittest.main()
