"""`continuo demo` on an emulated host: a real Linux with real KVM, where TSC offsets are honoured."""

import unittest

from continuo_program import DONE, document, run


class Emulated(unittest.TestCase):
    def test_both_policies_are_exact(self):
        done = run("demo", "--host", "emulated", "--json", timeout=500)
        self.assertEqual(done.returncode, DONE, done.stderr.decode()[-3000:])
        answer = document(done)
        self.assertEqual((answer["host"]["verdict"], answer["host"]["emulated"]), ("exact", True))
        self.assertEqual([leg["policy"] for leg in answer["runs"]], ["advance", "freeze"])
        for leg in answer["runs"]:
            certificate = leg["certificate"]
            self.assertTrue(certificate["holds"])
            seams = [row["seam"] for row in certificate["clocks"] if row["clock"] == "tsc"]
            self.assertEqual(seams, [0, 0, 0, 0])
            kvmclock, = [row["seam"] for row in certificate["clocks"] if row["clock"] == "kvmclock"]
            self.assertLessEqual(abs(kvmclock), 2)
            self.assertEqual(leg["witness"]["backward_steps"], 0)
            self.assertEqual(len(certificate["observed"]), 4)
            for row in certificate["observed"]:
                self.assertGreaterEqual(row["after_resume_ns"], 0)
            by_value = [abs(row["seam"]) for row in leg["by_value"]["clocks"] if row["clock"] == "tsc"]
            self.assertGreater(min(by_value), 0)


if __name__ == "__main__":
    unittest.main()
