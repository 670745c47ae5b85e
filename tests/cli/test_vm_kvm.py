"""`vm`, `capture` and `demo` on this machine's KVM: real VMs, real migrations between processes."""

import json
import os
import signal
import socket
import time
import unittest

from continuo_program import DONE, KERNEL, PEER, REFUSED, ROOT, document, error_of, json_of, run
from witness_case import WitnessCase


class Vm(WitnessCase):
    def receives(self, *options, address=None):
        address = address or f"unix:{self.folder / 'migration'}"
        process = self.spawn("vm", "receive", "--listen", address, "--json", *options)
        for line in process.stderr:
            if "listening on" in line:
                return process, line.split()[-1]
        self.fail("it does not listen")

    def test_run_for_a_time(self):
        answer = json_of("vm", "run", "--vcpus", 2, "--memory", 16, "--for", "500ms")
        self.assertEqual(answer["ended_by"], "time")
        self.assertGreater(answer["witness"]["loops"], 0)
        self.assertEqual(answer["witness"]["backward_steps"], 0)

    def test_signals_end_it_in_order(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            process, control = self.runs("a")
            process.send_signal(number)
            output, _ = process.communicate(timeout=20)
            self.assertEqual((process.returncode, json.loads(output)["ended_by"]), (DONE, "signal"))
            self.assertFalse(control.exists())

    def test_capture(self):
        process, control = self.runs("a")
        blob = self.folder / "r.bin"
        record = json_of("capture", "--control", control, "--output", blob)
        self.assertEqual(len(record["vcpus"]), 2)
        self.assertIn(b"vCPU", run("capture", "--control", control).stdout)
        written = json_of("inspect", "record", blob)
        written.pop("inconsistencies")
        self.assertEqual(written, record)
        self.loops_go_on(control)
        planned = run("plan", "--record", blob, "--destination", ROOT / "docs/formats/destination.example.json")
        self.assertIn(planned.returncode, (DONE, REFUSED))
        self.assertEqual(json_of("vm", "stop", "--control", control)["vcpus"], 2)
        output, _ = process.communicate(timeout=20)
        self.assertEqual(json.loads(output)["ended_by"], "stopped")

    def test_two_vms_on_one_control_socket(self):
        _, control = self.runs("a")
        error = error_of("vm", "run", "--control", control, "--for", "1s", code=KERNEL)
        self.assertEqual(error["code"], "busy")
        self.assertIn(str(control), error["where"])
        self.loops_go_on(control)

    def test_clients_that_break_off_or_talk_nonsense(self):
        _, control = self.runs("a")
        for line in [b"", b"{", b"\n", b"[]\n", b"\xff\n", b'{"command": "fly"}\n', b'{"command": 7}\n',
                     b'{"command": "send"}\n', b'{"command": "send", "to": "moon"}\n']:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(control))
                client.sendall(line)
                client.shutdown(socket.SHUT_WR)
                self.assertIn("error", json.loads(client.makefile().readline()))
        self.loops_go_on(control)

    def moved(self, address=None):
        source, control = self.runs("a", "--dirty-rate", 2000)
        there = self.folder / "b"
        destination, at = self.receives("--control", there, address=address)
        answer = json_of("vm", "send", "--control", control, "--to", at)
        self.assertEqual(answer["outcome"], "moved")
        self.assertGreater(answer["migration"]["rounds"], 0)
        self.assertEqual([each["round"] for each in answer["passes"]], list(range(1, answer["migration"]["rounds"] + 1)))
        for each in answer["passes"]:
            self.assertEqual(each["pages_done"], each["pages"])
        # It did not give up, so what was left fitted the limit.
        self.assertLessEqual(answer["migration"]["expected_downtime_ns"], 50_000_000)
        output, _ = source.communicate(timeout=20)
        self.assertEqual((source.returncode, json.loads(output)["ended_by"]), (DONE, "moved"))
        self.await_witness(there)
        self.loops_go_on(there)
        destination.send_signal(signal.SIGTERM)
        output, errors = destination.communicate(timeout=20)
        self.assertEqual(destination.returncode, DONE, errors)
        certificate = json.loads(output)["certificate"]
        self.assertTrue(certificate["holds"])
        self.assertEqual({row["vcpu"] for row in certificate["observed"]}, {0, 1})
        self.assertEqual([row["backward_steps"] for row in certificate["observed"]], [0, 0])
        for row in certificate["observed"]:
            self.assertGreaterEqual(row["after_resume_ns"], 0)
        for row in certificate["clocks"]:
            self.assertLessEqual(abs(row["seam"]), row["seam_bound"])

    def test_over_a_unix_socket(self):
        self.moved()

    def test_over_tcp(self):
        self.moved("tcp:127.0.0.1:0")

    def test_a_destination_that_nobody_runs_leaves_the_vm_where_it_is(self):
        _, control = self.runs("a")
        error_of("vm", "send", "--control", control, "--to", f"unix:{self.folder / 'none'}", code=PEER)
        self.loops_go_on(control)

    def test_a_destination_that_refuses_leaves_the_vm_where_it_is(self):
        if self.verdict != "fixed-tsc":
            self.skipTest("this host can freeze a guest's clocks")
        _, control = self.runs("a")
        destination, at = self.receives("--policy", "freeze")
        error = error_of("vm", "send", "--control", control, "--to", at, code=PEER)
        self.assertIn("goes on here", error["what"])
        output, _ = destination.communicate(timeout=20)
        self.assertEqual(destination.returncode, REFUSED)
        self.assertEqual(json.loads(output)["error"]["code"], "refused")
        self.loops_go_on(control)

    def test_a_peer_that_is_no_destination(self):
        _, control = self.runs("a")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.folder / "fake"))
            listener.listen()
            sending = self.spawn("vm", "send", "--control", control, "--to", f"unix:{self.folder / 'fake'}", "--json")
            client, _ = listener.accept()
            client.recv(10)
            client.sendall(b"HTTP/1.0 400 no\r\n\r\n" + bytes(100))
            client.close()
        output, _ = sending.communicate(timeout=60)
        self.assertEqual(json.loads(output)["error"]["what"].count("goes on here"), 1)
        self.loops_go_on(control)

    def test_a_destination_killed_while_it_receives(self):
        _, control = self.runs("a", "--dirty-rate", 20000)
        destination, at = self.receives()
        sending = self.spawn("vm", "send", "--control", control, "--to", at, "--json")
        time.sleep(0.05)
        destination.kill()
        output, _ = sending.communicate(timeout=60)
        if sending.returncode == DONE:  # it was faster: the VM moved, and died with its process
            self.assertEqual(json.loads(output)["outcome"], "moved")
            return
        self.loops_go_on(control)

    def test_demo_here(self):
        done = run("demo", "--host", "local", "--policy", "advance", "--vcpus", 2, "--json")
        self.assertEqual(done.returncode, DONE, done.stderr)
        answer = document(done)
        self.assertTrue(answer["certificate"]["holds"])
        self.assertEqual(answer["host"]["verdict"], self.verdict)
        leg, = answer["runs"]
        self.assertEqual(leg["witness"]["backward_steps"], 0)
        self.assertGreater(leg["pages_verified"], 0)
        self.assertGreater(leg["first_read_ns_max"], 0)
        self.assertEqual(leg["by_value"]["policy"], "advance")

    def test_a_notice_reaches_the_guest(self):
        done = run("demo", "--host", "local", "--policy", "advance-and-notify", "--vcpus", 2, "--json")
        self.assertEqual(done.returncode, DONE, done.stderr)
        leg, = document(done)["runs"]
        told = leg["certificate"]["notice"]
        self.assertEqual(told["gap_ns"], leg["certificate"]["gap"]["ns"])
        heard = leg["witness"]["notice"]
        self.assertEqual((heard["sequence"] % 2, heard["answers"]), (0, 1))
        self.assertEqual((heard["told_gap_ns"], heard["told_delta_realtime_ns"]),
                         (told["gap_ns"], told["delta_realtime_ns"]))

    def test_demo_as_text(self):
        done = run("demo", "--host", "local", "--vcpus", 2, "--transport", "tcp")
        text = done.stdout.decode()
        self.assertEqual(done.returncode, DONE, done.stderr)
        for word in ["== advance", "== freeze", "blackout", "first guest read", "it holds", "Seams:"]:
            self.assertIn(word, text)
        self.assertIn(b"migrating it live", done.stderr)
        self.assertEqual(os.listdir(self.folder), [])


if __name__ == "__main__":
    unittest.main()
