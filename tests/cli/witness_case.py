"""What tests with running witness VMs begin with."""

import json
import pathlib
import socket
import tempfile
import time
import unittest

from continuo_program import HAS_KVM, NO_KVM, json_of, start


@unittest.skipUnless(HAS_KVM, NO_KVM)
class WitnessCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.verdict = json_of("doctor")["verdict"]

    def spawn(self, *arguments):
        process = start(*arguments)
        self.addCleanup(self.end, process)
        return process

    @staticmethod
    def end(process):
        process.kill()
        process.communicate()

    def runs(self, name, *options):
        """A running witness VM, and its control socket."""
        control = self.folder / name
        process = self.spawn("vm", "run", "--vcpus", 2, "--memory", 16, "--control", control, "--json", *options)
        self.await_witness(control)
        return process, control

    def status(self, control):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(control))
            client.sendall(b'{"command": "status"}\n')
            return json.loads(client.makefile().readline())

    def await_witness(self, control, loops=2000):
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                if self.status(control)["witness"]["loops"] >= loops:
                    return
            except (FileNotFoundError, ConnectionRefusedError):
                pass
            time.sleep(0.02)
        self.fail("the witness does not run")

    def loops_go_on(self, control):
        self.await_witness(control, self.status(control)["witness"]["loops"] + 1000)
