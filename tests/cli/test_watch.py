"""`continuo watch` on whatever machine this is, for a moment: what it reads, and what it refuses."""

import json
import pathlib
import struct
import tempfile
import time
import unittest

from continuo_program import BAD_INPUT, DONE, KERNEL, USAGE, error_of, json_of, run, start


def notice_page(sequence):
    """A notice page by docs/formats/time-travel.md."""
    return struct.pack("<IIH6xQQQQQQQ", 0x56525454, 4096, 1, sequence, 0, 0, 0, 0, 0, 0).ljust(4096, b"\0")


class Watch(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name)

    def test_reads_every_clock_of_this_machine(self):
        page, again = self.folder / "page.html", self.folder / "again.html"
        report = json_of("watch", "--for", "500ms", "--html", page)
        self.assertEqual(report["schema"], "continuo/watch/1")
        self.assertIsNone(report["setup"]["notice"])
        readings = {row["clock"]: row["readings"] for row in report["clocks"]}
        for clock in ("CLOCK_MONOTONIC", "CLOCK_MONOTONIC_RAW", "CLOCK_BOOTTIME", "CLOCK_REALTIME", "CLOCK_TAI"):
            self.assertGreater(readings[clock], 10, clock)
        self.assertIn("continuo/watch/1", page.read_text())
        (self.folder / "report.json").write_text(json.dumps(report))
        done = run("watch", "--from", self.folder / "report.json", "--html", again)
        self.assertEqual((done.returncode, again.read_text()), (DONE, page.read_text()), done.stderr)

    def test_a_notice_in_the_page_is_an_event(self):
        page = self.folder / "notice"
        page.write_bytes(b"\0" * 4096 + notice_page(0))
        with start("watch", "--for", "60s", "--hole", "10s", "--json", "--notice", f"{page}@0x1000") as watching:
            maps = pathlib.Path(f"/proc/{watching.pid}/maps")
            while watching.poll() is None and str(page) not in maps.read_text():
                time.sleep(0.02)
            time.sleep(1.5)
            with open(page, "r+b") as file:
                file.seek(4096)
                file.write(notice_page(1))
                file.flush()
                time.sleep(0.5)
                file.seek(4096)
                file.write(notice_page(2))  # an answer is none
            live = ""
            for line in watching.stderr:  # to its end, where there is no such event
                live += line
                if "notice" in line:
                    break
            watching.terminate()
            said, rest = watching.communicate(timeout=60)
        live += rest
        self.assertEqual(watching.returncode, 0, live)
        report = json.loads(said)
        self.assertEqual(report["setup"]["notice"], f"{page}@0x1000")
        told = [event for event in report["events"] if "notice" in event["reasons"]]
        self.assertEqual(len(told), 1, live)
        self.assertIn("notice", live)

    def test_a_page_that_is_none_is_refused_by_name(self):
        (self.folder / "zeroes").write_bytes(b"\0" * 4096)
        (self.folder / "short").write_bytes(notice_page(0)[:100])
        for name, why in (("zeroes", "it is no notice page"), ("short", "the notice page could not be mapped"),
                          ("absent", "the notice page could not be mapped")):
            with self.subTest(page=name):
                error = error_of("watch", "--for", "1s", "--notice", self.folder / name, code=KERNEL)
                self.assertIn(why, error["what"])
                self.assertIn(name, error["where"])

    def test_wrong_options_are_refused(self):
        for option, value, code in (("--rate", "0", USAGE), ("--window", "x", USAGE), ("--notice", "f@5", USAGE),
                                    ("--from", "/dev/null", USAGE)):
            with self.subTest(option=option):
                self.assertEqual(error_of("watch", "--for", "1s", option, value, code=code)["where"], option)
        error_of("watch", "--from", "/dev/null", "--html", self.folder / "page", code=BAD_INPUT)


if __name__ == "__main__":
    unittest.main()
