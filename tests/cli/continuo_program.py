"""Runs the program under test ($CONTINUO) and reads what it says."""

import json
import os
import pathlib
import subprocess

PROGRAM = os.environ.get("CONTINUO", "build/continuo")
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

HAS_KVM = os.access("/dev/kvm", os.R_OK | os.W_OK)
NO_KVM = "no usable /dev/kvm"

DONE, DOES_NOT_HOLD, USAGE, BAD_INPUT, REFUSED, UNSUPPORTED, KERNEL, PEER = range(8)


def run(*arguments, stdin=b"", timeout=60, stdout=subprocess.PIPE):
    """The finished process; its output as bytes."""
    words = [PROGRAM] + [str(argument) for argument in arguments]
    return subprocess.run(words, input=stdin, stdout=stdout, stderr=subprocess.PIPE, timeout=timeout)


def start(*arguments):
    """The process, running; its output as text."""
    words = [PROGRAM] + [str(argument) for argument in arguments]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def unique_keys(pairs):
    keys = [key for key, _ in pairs]
    assert len(keys) == len(set(keys)), f"a key stands twice: {keys}"
    return dict(pairs)


def document(done):
    """The one JSON document on stdout."""
    return json.loads(done.stdout.decode("utf-8"), object_pairs_hook=unique_keys)


def json_of(*arguments, stdin=b"", code=DONE, timeout=60):
    done = run(*arguments, "--json", stdin=stdin, timeout=timeout)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return document(done)


def error_of(*arguments, stdin=b"", code, timeout=60):
    """The JSON error of a command that must fail with this code, and that says the same on stderr."""
    done = run(*arguments, "--json", stdin=stdin, timeout=timeout)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    error = document(done)["error"]
    assert set(error) == {"code", "where", "what", "advice", "errno"}, error
    assert error["what"], error
    # What a command that shows its progress says before stands on lines of their own.
    last = done.stderr.decode()
    last = last[max(last.find("continuo: error: "), 0):]
    told = " ".join(last.split())
    assert told.startswith("continuo: error: " + " ".join(error["what"].split())), (told, error)
    return error
