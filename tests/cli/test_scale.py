"""continuo scale against integers without limit."""

import fractions
import random
import unittest

from continuo_program import USAGE, error_of, json_of, run

EDGES = [1, 2, 999, 10**9 - 1, 10**9, 10**9 + 1, 2 * 10**9, 2 * 10**9 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
         2**32 + 1, 4 * 10**9, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def pvclock_scale(hz):
    """The factors by their definition: ticks brought into (10^9, 2*10^9] by shifting, dropping bits to the right;
    mul is what is left of 10^9 / ticks, in units of 2^-32."""
    shift = 0
    ticks = hz
    while ticks > 2 * 10**9:
        ticks, shift = ticks // 2, shift - 1
    while ticks <= 10**9:
        ticks, shift = ticks * 2, shift + 1
    return (10**9 * 2**32) // ticks, shift


def exact_error_ppb(hz, mul, shift):
    ns_a_tick = fractions.Fraction(mul, 2**32) * fractions.Fraction(2) ** shift
    return (ns_a_tick * hz / 10**9 - 1) * 10**9


class Pvclock(unittest.TestCase):
    def check(self, hz, spelling=None):
        answer = json_of("scale", "--hz", spelling or hz)
        self.assertEqual(list(answer), ["mul", "shift", "error_ppb"])
        mul, shift = pvclock_scale(hz)
        self.assertEqual((answer["mul"], answer["shift"]), (mul, shift), hz)
        # float() of a fraction is the nearest double: nothing may be lost on the way.
        self.assertEqual(answer["error_ppb"], float(exact_error_ppb(hz, mul, shift)), hz)

    def test_edges(self):
        for hz in EDGES:
            with self.subTest(hz=hz):
                self.check(hz)

    def test_random_frequencies(self):
        random.seed(1)
        for _ in range(200):
            self.check(random.getrandbits(random.randint(1, 64)) or 1)

    def test_known_scales(self):
        # 2.5 GHz is halved once: mul = 10^9 / 1.25*10^9 * 2^32 = 0.8 * 2^32, truncated from ...836.8
        answer = json_of("scale", "--hz", 2_500_000_000)
        self.assertEqual((answer["mul"], answer["shift"]), (3435973836, -1))
        self.assertAlmostEqual(answer["error_ppb"], -0.8 / 3435973836.8 * 1e9, places=9)
        self.assertEqual(json_of("scale", "--hz", 10**9), {"mul": 2**31, "shift": 1, "error_ppb": 0.0})

    def test_hexadecimal(self):
        self.check(0xffffffffffffffff, "0xffffffffffffffff")
        self.check(0xABC, "0XabC")

    def test_leading_zeroes_are_decimal(self):
        self.check(10, "010")

    def test_what_is_no_frequency(self):
        for text in ["0", "0x0", "-1", "18446744073709551616", "0x10000000000000000", "1e9", "1.5", "2500MHz", "0x", "+1",
                     " 1", "1 ", "nan"]:
            with self.subTest(text=text):
                error = error_of("scale", f"--hz={text}", code=USAGE)
                self.assertEqual((error["code"], error["where"]), ("invalid_argument", "--hz"))

    def test_text(self):
        done = run("scale", "--hz", 2_500_000_000)
        self.assertIn(b"3435973836", done.stdout)
        self.assertEqual((done.returncode, done.stderr), (0, b""))


class Tsc(unittest.TestCase):
    def check(self, guest, host, bits, host_tsc):
        answer = json_of("scale", "--guest-khz", guest, "--host-khz", host, "--frac-bits", bits, "--host-tsc", host_tsc)
        ratio = (guest << bits) // host
        self.assertEqual(answer, {"ratio": ratio, "guest_tsc": (host_tsc * ratio >> bits) % 2**64})

    def test_ratios(self):
        for bits in (32, 48):
            for guest, host in [(1_500_000, 3_000_000), (3_000_000, 3_000_000), (2_999_999, 3_000_000), (1, 2**32 - 1),
                                (255, 1), (2_100_000, 3_699_987)]:
                if bits == 32 and guest * 2**32 < host:
                    continue
                for host_tsc in [0, 1, 2**31, 2**32, 2**63, 2**64 - 1]:
                    with self.subTest(bits=bits, guest=guest, host=host, host_tsc=host_tsc):
                        self.check(guest, host, bits, host_tsc)

    def test_random(self):
        random.seed(2)
        for _ in range(100):
            self.check(random.randint(10**5, 10**7), random.randint(10**5, 10**7), random.choice((32, 48)),
                       random.getrandbits(64))

    def test_without_a_host_tsc(self):
        answer = json_of("scale", "--guest-khz", 1, "--host-khz", 1, "--frac-bits", 48)
        self.assertEqual(answer, {"ratio": 2**48, "guest_tsc": None})

    def test_the_window_of_250_ppm_is_not_applied(self):
        answer = json_of("scale", "--guest-khz", 3_000_001, "--host-khz", 3_000_000, "--frac-bits", 48)
        self.assertEqual(answer["ratio"], (3_000_001 << 48) // 3_000_000)

    def test_ratios_that_kvm_refuses(self):
        # 8.32 bits on SVM, 16.48 on VMX; a ratio of 0 on neither
        for guest, host, bits in [(256, 1, 32), (2**32 - 1, 1, 32), (65536, 1, 48)]:
            with self.subTest(guest=guest, host=host, bits=bits):
                error = error_of("scale", "--guest-khz", guest, "--host-khz", host, "--frac-bits", bits, code=USAGE)
                self.assertIn(str(guest), error["what"])

    def test_what_is_no_question(self):
        good = {"--guest-khz": "1", "--host-khz": "1", "--frac-bits": "48"}
        for change in [{"--frac-bits": "47"}, {"--guest-khz": "0"}, {"--host-khz": "0"}, {"--host-khz": "4294967296"},
                       {"--host-tsc": "-1"}, {"--host-tsc": "x"}, {"--hz": "1"}]:
            with self.subTest(change=change):
                words = [f"{key}={value}" for key, value in {**good, **change}.items()]
                error_of("scale", *words, code=USAGE)
        for missing in good:
            words = [f"{key}={value}" for key, value in good.items() if key != missing]
            error_of("scale", *words, code=USAGE)
        error_of("scale", code=USAGE)


if __name__ == "__main__":
    unittest.main()
