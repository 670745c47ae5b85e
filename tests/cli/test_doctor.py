"""continuo doctor where there is no KVM."""

import unittest

from continuo_program import UNSUPPORTED, USAGE, error_of, json_of, run

class WithoutKvm(unittest.TestCase):
    def test_a_device_that_is_missing(self):
        answer = json_of("doctor", "--device", "/no/such/kvm", code=UNSUPPORTED)
        self.assertEqual((answer["verdict"], answer["checks"], answer["destination"]), ("no-kvm", [], None))
        self.assertIn("/no/such/kvm", answer["reason"])

    def test_a_device_that_is_something_else(self):
        answer = json_of("doctor", "--device", "/dev/null", code=UNSUPPORTED)
        self.assertEqual(answer["verdict"], "no-kvm")
        self.assertIn("KVM_GET_API_VERSION", answer["reason"])

    def test_text_says_what_to_do(self):
        done = run("doctor", "--device", "/no/such/kvm")
        self.assertEqual(done.returncode, UNSUPPORTED)
        self.assertIn(b"emulated host", done.stdout)

    def test_usage(self):
        error_of("doctor", "--time-limit=-1s", code=USAGE)
        error_of("doctor", "--time-limit=soon", code=USAGE)


if __name__ == "__main__":
    unittest.main()
