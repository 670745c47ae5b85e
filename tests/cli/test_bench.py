"""continuo bench without a KVM, and what it refuses."""

import unittest

from continuo_program import UNSUPPORTED, USAGE, error_of, run


class Refusals(unittest.TestCase):
    def test_no_kvm(self):
        error = error_of("bench", "counter", "--device", "/nowhere/kvm", code=UNSUPPORTED)
        self.assertEqual(error["code"], "unsupported")
        self.assertIn("/nowhere/kvm", error["where"])
        self.assertTrue(error["advice"])

    def test_reads_outside_their_domain(self):
        for text in ["0", "-1", "1000001", "18446744073709551616", "many", "1e4"]:
            with self.subTest(text=text):
                error = error_of("bench", "counter", f"--reads={text}", code=USAGE)
                self.assertEqual((error["code"], error["where"]), ("invalid_argument", "--reads"))

    def test_it_wants_to_know_what(self):
        error_of("bench", code=USAGE)
        error_of("bench", "everything", code=USAGE)

    def test_help_has_an_example(self):
        done = run("bench", "counter", "--help")
        self.assertEqual(done.returncode, 0)
        self.assertIn(b"$ continuo bench counter", done.stdout)


if __name__ == "__main__":
    unittest.main()
