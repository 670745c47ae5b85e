"""What `capture`, `vm` and `demo` say where nothing can be done; no KVM is needed for it."""

import os
import pathlib
import socket
import tempfile
import threading
import unittest

from continuo_program import BAD_INPUT, KERNEL, PEER, USAGE, error_of, run

# What a peer on the control socket may answer, and what becomes of it.
ANSWERS = [(b"", PEER), (b"{", PEER), (b"{}", PEER), (b"{\n", BAD_INPUT), (b"[]\n", BAD_INPUT), (b"\xff\xff\n", BAD_INPUT),
           (b"{}\n", PEER), (b'{"record": 1, "paused_ns": 2}\n', BAD_INPUT),
           (b'{"record": {"schema": "continuo/record/9"}, "paused_ns": 2}\n', BAD_INPUT),
           (b'{"error": {"code": "kernel", "what": "no luck"}}\n', KERNEL),
           (b'{"error": {"code": 7, "what": [], "errno": "x"}}\n', PEER),
           (b'{"error": 3}\n', PEER)]


class FakeVm:
    """Listens on a control socket and gives every client the same answer."""

    def __init__(self, path, answer):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.answer = answer
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        client, _ = self.listener.accept()
        with client:
            client.recv(4096)
            client.sendall(self.answer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.thread.join()
        self.listener.close()


class Control(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "vm.sock"

    def test_nobody_listens(self):
        for command in [("capture",), ("vm", "send", "--to", "unix:/tmp/x"), ("vm", "stop"), ("vm", "resume")]:
            error = error_of(*command, "--control", self.path, code=PEER)
            self.assertIn("no VM listens there", error["what"])
            self.assertIn("continuo vm run", error["advice"])

    def test_a_path_that_is_no_socket(self):
        self.path.write_text("")
        error_of("capture", "--control", self.path, code=PEER)
        error_of("capture", "--control", "/" + "x" * 200, code=USAGE)

    def test_hostile_answers(self):
        for answer, code in ANSWERS:
            with self.subTest(answer=answer):
                self.path.unlink(missing_ok=True)
                with FakeVm(self.path, answer):
                    error_of("capture", "--control", self.path, code=code)


class Usage(unittest.TestCase):
    def test_addresses(self):
        for to in ["", "here", "unix:", "tcp:", "tcp:host", "http://x", "unix:" + "x" * 200]:
            with self.subTest(to=to):
                error_of("vm", "send", "--control", "/tmp/none", f"--to={to}", code=USAGE)
                error_of("vm", "receive", f"--listen={to}", code=USAGE)

    def test_limits_of_a_migration(self):
        for words in [("--downtime-limit", "0ms"), ("--downtime-limit", "25h"), ("--downtime-limit", "soon"),
                      ("--rounds", "0"), ("--rounds", "901"), ("--rounds", "x")]:
            error_of("vm", "send", "--control", "/tmp/none", "--to", "unix:/tmp/x", *words, code=USAGE)

    def test_shapes(self):
        for words in [("--vcpus", "0"), ("--vcpus", "65"), ("--memory", "3"), ("--memory", "65537"), ("--memory", "65G"),
                      ("--dirty-rate", "x"), ("--for", "forever")]:
            error_of("vm", "run", *words, code=USAGE)

    def test_policies_and_hosts(self):
        error_of("vm", "receive", "--listen", "unix:/tmp/x", "--policy", "none", code=USAGE)
        error_of("demo", "--policy", "none", code=USAGE)
        error_of("demo", "--host", "moon", code=USAGE)
        error_of("demo", "--transport", "pigeon", code=USAGE)


class Demo(unittest.TestCase):
    def demo(self, **environment):
        saved = dict(os.environ)
        try:
            os.environ.update(environment)
            return run("demo", "--host", "emulated", "--policy", "freeze", "--json")
        finally:
            os.environ.clear()
            os.environ.update(saved)

    def test_an_emulated_host_is_the_lab_with_this_program_in_it(self):
        with tempfile.TemporaryDirectory() as folder:
            lab = pathlib.Path(folder) / "lab"
            lab.write_text("#!/bin/sh\necho \"$@\"\nexit 9\n")
            lab.chmod(0o755)
            done = self.demo(CONTINUO_LAB=str(lab))
        self.assertEqual(done.returncode, 9)
        words = done.stdout.decode().split()
        inside = words[words.index("--") + 1:]
        self.assertEqual(words[0], "run")
        self.assertEqual(inside[1:4], ["demo", "--host", "local"])
        self.assertTrue(inside[0].endswith("/continuo"), inside)
        self.assertIn("--json", inside)
        self.assertEqual(inside[inside.index("--policy") + 1], "freeze")

    def test_without_the_lab(self):
        done = self.demo(CONTINUO_LAB="/no/such/lab")
        self.assertEqual(done.returncode, 5)
        self.assertIn(b"CONTINUO_LAB", done.stderr)

    def test_no_emulation_within_emulation(self):
        done = self.demo(CONTINUO_LAB_HOST="x86-svm")
        self.assertEqual(done.returncode, 5)
        self.assertIn(b"emulated host already", done.stderr)


if __name__ == "__main__":
    unittest.main()
