"""continuo inspect: every field of every page, its readings, and what is said of bytes that are none."""

import json
import os
import pathlib
import random
import struct
import tempfile
import unittest

from continuo_program import BAD_INPUT, DOES_NOT_HOLD, KERNEL, ROOT, USAGE, document, error_of, json_of, run

M64 = 2**64 - 1

PVCLOCK = struct.Struct("<IIQQIbBBB")
PVCLOCK_FIELDS = ["version", "pad0", "tsc_timestamp", "system_time", "tsc_to_system_mul", "tsc_shift", "flags", "pad"]
GOOD_PVCLOCK = dict(version=4, pad0=0, tsc_timestamp=2**63 + 5, system_time=2**63 - 1, tsc_to_system_mul=0xccccccd0,
                    tsc_shift=-1, flags=1, pad=[0, 0])

VMCLOCK = struct.Struct("<IIHBBIQQ2sBBhBBQQQQQQQQQ")
VMCLOCK_FIELDS = ["magic", "size", "version", "counter_id", "time_type", "seq_count", "disruption_marker", "flags",
                  "pad", "clock_status", "leap_second_smearing_hint", "tai_offset_sec", "leap_indicator",
                  "counter_period_shift", "counter_value", "counter_period_frac_sec",
                  "counter_period_esterror_rate_frac_sec", "counter_period_maxerror_rate_frac_sec", "time_sec",
                  "time_frac_sec", "time_esterror_nanosec", "time_maxerror_nanosec", "vm_generation_counter"]
PERIOD = 2**(64 + 31) // 2_500_000_000  # 2.5 GHz with shift 31
GOOD_VMCLOCK = dict(magic=0x4b4c4356, size=4096, version=1, counter_id=1, time_type=1, seq_count=2,
                    disruption_marker=M64, flags=0x1e9, pad=[0, 0], clock_status=2, leap_second_smearing_hint=0,
                    tai_offset_sec=-37, leap_indicator=0, counter_period_shift=31, counter_value=10**15,
                    counter_period_frac_sec=PERIOD, counter_period_esterror_rate_frac_sec=3,
                    counter_period_maxerror_rate_frac_sec=0, time_sec=1_763_624_204, time_frac_sec=2**63 + 1,
                    time_esterror_nanosec=50, time_maxerror_nanosec=5000, vm_generation_counter=M64 - 1)


def pvclock(**changes):
    page = {**GOOD_PVCLOCK, **changes}
    return PVCLOCK.pack(*[page[name] for name in PVCLOCK_FIELDS[:-1]], *page["pad"])


def vmclock(**changes):
    page = {**GOOD_VMCLOCK, **changes}
    return VMCLOCK.pack(*[bytes(page[name]) if name == "pad" else page[name] for name in VMCLOCK_FIELDS])


def fields(findings):
    return [finding["field"] for finding in findings]


def inspect(kind, page, *options, code=0):
    return json_of("inspect", kind, "-", *options, stdin=page, code=code)


class Pvclock(unittest.TestCase):
    def test_all_fields_exact(self):
        answer = inspect("pvclock", pvclock())
        self.assertEqual({name: answer[name] for name in PVCLOCK_FIELDS}, GOOD_PVCLOCK)
        self.assertEqual((answer["ns"], answer["at_tsc"], answer["inconsistencies"]), (None, None, []))

    def test_any_bytes_decode(self):
        random.seed(3)
        for _ in range(30):
            page = random.randbytes(32)
            answer = inspect("pvclock", page)
            self.assertEqual(pvclock(**{name: answer[name] for name in PVCLOCK_FIELDS}), page)

    def reading(self, page, tsc):
        delta = (tsc - page["tsc_timestamp"]) & M64
        shift = page["tsc_shift"]
        delta = delta << shift & M64 if shift >= 0 else delta >> -shift
        return (page["system_time"] + (delta * page["tsc_to_system_mul"] >> 32)) & M64

    def test_reading(self):
        random.seed(4)
        for _ in range(60):
            page = dict(GOOD_PVCLOCK, tsc_timestamp=random.getrandbits(64), system_time=random.getrandbits(60),
                        tsc_to_system_mul=random.getrandbits(32) | 2**31, tsc_shift=random.randint(-34, 31))
            tsc = (page["tsc_timestamp"] + random.getrandbits(random.randint(1, 63))) & M64
            answer = inspect("pvclock", pvclock(**page), "--at-tsc", tsc)
            self.assertEqual(answer["ns"], self.reading(page, tsc), (page, tsc))
            self.assertEqual(answer["at_tsc"], tsc)

    def test_reading_before_the_timestamp_is_told(self):
        # 1 GHz: 2 ticks before the timestamp, 2 ns before system_time; a guest would read 2^64 - 2 ticks after it.
        page = pvclock(tsc_timestamp=1000, system_time=500, tsc_to_system_mul=2**31, tsc_shift=1)
        answer = inspect("pvclock", page, "--at-tsc", 998)
        self.assertEqual(answer["ns"], 498)
        self.assertEqual(fields(answer["inconsistencies"]), ["tsc_timestamp"])
        self.assertIn("2 ticks after", answer["inconsistencies"][0]["text"])

    def test_inconsistencies(self):
        for change, field in [(dict(version=5), "version"), (dict(version=0), "version"), (dict(pad0=1), "pad0"),
                              (dict(tsc_to_system_mul=0), "tsc_to_system_mul"), (dict(tsc_shift=32), "tsc_shift"),
                              (dict(tsc_shift=-128), "tsc_shift"), (dict(flags=0x80), "flags"),
                              (dict(pad=[0, 1]), "pad"), (dict(system_time=2**63), "system_time")]:
            with self.subTest(change=change):
                answer = inspect("pvclock", pvclock(**change))
                self.assertIn(field, fields(answer["inconsistencies"]))

    def test_a_scale_that_cannot_be_read(self):
        self.assertIsNone(inspect("pvclock", pvclock(tsc_shift=64), "--at-tsc", 2**63 + 9)["ns"])

    def test_check_makes_it_the_exit_code(self):
        self.assertEqual(run("inspect", "pvclock", "-", "--check", stdin=pvclock()).returncode, 0)
        inspect("pvclock", pvclock(version=5), "--check", code=DOES_NOT_HOLD)

    def test_text_says_what_json_says(self):
        done = run("inspect", "pvclock", "-", "--at-tsc", 2**63 + 2**40, stdin=pvclock(version=7))
        page = dict(GOOD_PVCLOCK, version=7)
        for value in [2**63 + 5, 2**63 - 1, 0xccccccd0, self.reading(page, 2**63 + 2**40), "TSC_STABLE",
                      "7 is odd"]:
            self.assertIn(str(value), done.stdout.decode())


class Wallclock(unittest.TestCase):
    def test_fields(self):
        answer = inspect("wallclock", struct.pack("<III", 2, 2**32 - 1, 999_999_999))
        self.assertEqual(answer, {"kind": "wallclock", "version": 2, "sec": 2**32 - 1, "nsec": 999_999_999,
                                  "inconsistencies": []})

    def test_inconsistent(self):
        answer = inspect("wallclock", struct.pack("<III", 3, 0, 10**9))
        self.assertEqual(fields(answer["inconsistencies"]), ["version", "sec", "nsec"])


class Vmclock(unittest.TestCase):
    def test_all_fields_exact(self):
        answer = inspect("vmclock", vmclock())
        self.assertEqual({name: answer[name] for name in VMCLOCK_FIELDS}, GOOD_VMCLOCK)
        self.assertIsNone(answer["seconds"])
        self.assertIsNone(answer["frac"])

    def test_any_bytes_decode(self):
        random.seed(5)
        for _ in range(30):
            page = random.randbytes(112)
            answer = inspect("vmclock", page)
            self.assertEqual(vmclock(**{name: answer[name] for name in VMCLOCK_FIELDS}), page)

    def test_reading(self):
        random.seed(6)
        for _ in range(60):
            page = dict(GOOD_VMCLOCK, counter_value=random.getrandbits(62), counter_period_shift=random.randint(0, 70),
                        counter_period_frac_sec=random.getrandbits(64), time_frac_sec=random.getrandbits(64))
            tsc = page["counter_value"] + random.getrandbits(random.randint(1, 62))
            answer = inspect("vmclock", vmclock(**page), "--at-tsc", hex(tsc))
            at = (page["time_sec"] << 64) + page["time_frac_sec"] + (
                (tsc - page["counter_value"]) * page["counter_period_frac_sec"] >> page["counter_period_shift"])
            self.assertEqual((answer["seconds"], answer["frac"]), (at >> 64 & M64, at & M64))

    def test_the_page_that_it_stands_in(self):
        answer = inspect("vmclock", vmclock().ljust(4096, b"\0"))
        self.assertEqual(answer["time_sec"], GOOD_VMCLOCK["time_sec"])

    def test_inconsistencies(self):
        for change, field in [(dict(magic=0), "magic"), (dict(size=100), "size"), (dict(version=2), "version"),
                              (dict(counter_id=7), "counter_id"), (dict(time_type=3), "time_type"),
                              (dict(seq_count=1), "seq_count"), (dict(flags=1 << 63), "flags"),
                              (dict(clock_status=4), "clock_status"), (dict(time_type=0), "tai_offset_sec"),
                              (dict(counter_period_frac_sec=0), "counter_period_frac_sec")]:
            with self.subTest(change=change):
                self.assertIn(field, fields(inspect("vmclock", vmclock(**change))["inconsistencies"]))

    def test_a_page_that_cannot_be_read_has_no_time(self):
        answer = inspect("vmclock", vmclock(clock_status=4), "--at-tsc", 10**15)
        self.assertEqual((answer["seconds"], answer["frac"]), (None, None))

    def test_before_the_counter_value_is_told(self):
        answer = inspect("vmclock", vmclock(), "--at-tsc", 10**15 - 7)
        self.assertIn("7 ticks after", answer["inconsistencies"][-1]["text"])


class Sizes(unittest.TestCase):
    def test_truncated(self):
        for kind, page in [("pvclock", pvclock()), ("wallclock", bytes(12)), ("vmclock", vmclock())]:
            for length in range(len(page)):
                error = error_of("inspect", kind, "-", stdin=page[:length], code=BAD_INPUT)
                self.assertEqual(error["code"], "truncated")
                self.assertIn(f"{length} bytes", error["what"])
                self.assertIn(f"{len(page)} bytes", error["what"])

    def test_oversized(self):
        for kind, page, length in [("pvclock", pvclock(), 33), ("pvclock", pvclock(), 4096),
                                   ("wallclock", bytes(12), 13), ("vmclock", vmclock(), 113),
                                   ("vmclock", vmclock(), 4097)]:
            error = error_of("inspect", kind, "-", stdin=page.ljust(length, b"\0"), code=BAD_INPUT)
            self.assertEqual(error["code"], "too_large")
            self.assertIn(f"{length} bytes", error["what"])

    def test_absurd(self):
        error = error_of("inspect", "vmclock", "/dev/zero", code=BAD_INPUT)
        self.assertEqual(error["code"], "too_large")


class Sources(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def decoded(self, source, stdin=b""):
        answer = json_of("inspect", "pvclock", source, stdin=stdin)
        self.assertEqual(answer["tsc_timestamp"], GOOD_PVCLOCK["tsc_timestamp"])
        return answer

    def test_spellings_of_hexadecimal(self):
        digits = pvclock().hex()
        words = [digits[i:i + 2] for i in range(0, 64, 2)]
        for text in [digits, digits.upper(), "0x" + digits, " ".join(words), ":".join(words), "0x" + " 0x".join(words),
                     "0x" + ",0x".join(words), "\n".join(words) + "\n"]:
            with self.subTest(text=text):
                self.decoded(text)
                self.decoded("-", stdin=text.encode())

    def test_files(self):
        binary, text = self.folder / "page.bin", self.folder / "page.txt"
        binary.write_bytes(pvclock())
        text.write_text(pvclock().hex() + "\n")
        self.decoded(binary)
        self.decoded(text)

    def test_a_file_wins_over_digits_of_the_same_name(self):
        other = pvclock(version=2, tsc_timestamp=1).hex()
        (self.folder / other).write_bytes(pvclock())
        here = os.getcwd()
        try:
            os.chdir(self.folder)
            self.decoded(other)
        finally:
            os.chdir(here)

    def test_bytes_of_the_right_size_are_not_taken_for_digits(self):
        page = b"0123456789abcdef" * 2  # 32 bytes that happen to be digits
        answer = json_of("inspect", "pvclock", "-", stdin=page)
        self.assertEqual(answer["version"], int.from_bytes(b"0123", "little"))

    def test_what_is_neither(self):
        error = error_of("inspect", "pvclock", "no/such/page.bin", code=BAD_INPUT)
        self.assertIn("neither a file that exists nor hexadecimal digits", error["what"])
        error = error_of("inspect", "pvclock", "012", code=BAD_INPUT)
        self.assertIn("two digits", error["what"])
        error = error_of("inspect", "pvclock", self.folder, code=KERNEL)
        self.assertEqual(error["code"], "io")
        self.assertNotEqual(error["errno"], 0)

    def test_terminal_controls_are_not_passed_on(self):
        done = run("inspect", "pvclock", "\x1b[2Jevil")
        self.assertNotIn(b"\x1b", done.stderr)

    def test_at_tsc(self):
        for text in ["-1", "2.0", str(2**64), ""]:
            if text:
                error_of("inspect", "pvclock", "00", f"--at-tsc={text}", code=USAGE)


GOLDEN = ROOT / "tests" / "golden"


class Record(unittest.TestCase):
    def test_every_golden_blob_is_its_json(self):
        blobs = sorted(GOLDEN.glob("record-v*.bin"))
        self.assertGreater(len(blobs), 0)
        decoded = 0
        for blob in blobs:
            expected = json.loads(blob.with_suffix(".json").read_text())
            done = run("inspect", "record", blob, "--json")
            if "error" in expected:
                self.assertEqual(done.returncode, BAD_INPUT)
                self.assertEqual(document(done)["error"]["code"], expected["error"]["code"])
                continue
            answer = document(done)
            self.assertIsInstance(answer.pop("inconsistencies"), list)
            # What the release that wrote it did not know is unknown.
            expected["anchor"].setdefault("rate_bound_ppb", 500_000)
            expected["anchor"].setdefault("suspended_ns", None)
            self.assertEqual(answer, expected, blob)
            decoded += 1
        self.assertGreater(decoded, 2)

    def test_json_and_digits(self):
        blob = GOLDEN / "record-v1-two-vcpus.bin"
        answer = json_of("inspect", "record", blob)
        self.assertEqual(json_of("inspect", "record", "-", stdin=blob.read_bytes().hex().encode()), answer)
        self.assertEqual(json_of("inspect", "record", blob.with_suffix(".json")), answer)
        self.assertEqual(json_of("inspect", "record", "-", stdin=json.dumps(answer).encode()), answer)

    def test_every_truncation_and_every_flipped_byte_is_refused(self):
        blob = (GOLDEN / "record-v1-two-vcpus.bin").read_bytes()
        for length in range(0, len(blob), 7):
            error_of("inspect", "record", "-", stdin=blob[:length], code=BAD_INPUT)
        for at in range(0, len(blob), 5):
            broken = bytearray(blob)
            broken[at] ^= 0x40
            error_of("inspect", "record", "-", stdin=bytes(broken), code=BAD_INPUT)

    def record(self, **changes):
        record = json.loads((ROOT / "docs/formats/record.example.json").read_text())
        record.update(changes)
        return record

    def findings(self, record):
        return fields(json_of("inspect", "record", "-", stdin=json.dumps(record).encode())["inconsistencies"])

    def test_inconsistencies(self):
        self.assertEqual(self.findings(self.record()), [])
        self.assertEqual(self.findings(self.record(notice_sequence=3)), ["/notice_sequence"])
        record = self.record()
        record["anchor"]["synchronised"] = False
        record["anchor"]["tai_offset_sec"] = 0
        self.assertEqual(self.findings(record), ["/anchor/synchronised", "/anchor/tai_offset_sec"])
        record = self.record()
        record["vcpus"][1]["counter"] += 5  # against its own offset, and against vCPU 0 under one masterclock
        self.assertEqual(self.findings(record), ["/vcpus/1/counter"] * 2)
        record["vcpus"][1]["counter_bound_ticks"] = 5
        self.assertEqual(self.findings(record), [])
        record = self.record()
        record["kvmclock"]["tsc_timestamp"] = record["vcpus"][0]["counter"] + 1
        self.assertEqual(self.findings(record), ["/kvmclock/tsc_timestamp"])

    def test_errors_name_the_place(self):
        record = self.record()
        record["vcpus"][1]["counter"] = -1
        error = error_of("inspect", "record", "-", stdin=json.dumps(record).encode(), code=BAD_INPUT)
        self.assertIn("/vcpus/1/counter", error["where"])
        self.assertIn("stdin", error["where"])


if __name__ == "__main__":
    unittest.main()
