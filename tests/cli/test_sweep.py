"""continuo-sweep ($CONTINUO_SWEEP), four ranks on this machine, beside continuo compare."""

import json
import os
import shutil
import subprocess
import unittest

from continuo_program import DONE, ROOT, run

FEW = [ROOT / "tests/scenarios/same-frequency-move.toml", ROOT / "tests/scenarios/same-host-pause.toml"]
SWEEP = os.environ.get("CONTINUO_SWEEP", "")


@unittest.skipUnless(SWEEP and shutil.which("mpirun"), "continuo-sweep is not built: no MPI")
class Sweep(unittest.TestCase):
    def mpirun(self, *words, ranks=4):
        command = ["mpirun", "-n", str(ranks), "--allow-run-as-root", "--oversubscribe", SWEEP, *map(str, words)]
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=300)

    def test_four_ranks_say_what_one_process_says(self):
        words = ["--scenarios", *FEW, "--seeds", "11..500", "--json"]
        alone = run("compare", *words, timeout=300)
        ranks = self.mpirun(*words)
        self.assertEqual((ranks.returncode, ranks.stderr), (DONE, b""))
        self.assertEqual(json.loads(ranks.stdout), json.loads(alone.stdout))
        self.assertEqual(ranks.stdout, alone.stdout)

    def test_every_rank_ends_where_rank_0_reads_no_scenario(self):
        done = self.mpirun("--scenarios", "/no/such/file.toml", "--json")
        self.assertEqual(json.loads(done.stdout)["error"]["code"], "io")
        self.assertNotEqual(done.returncode, 0)


if __name__ == "__main__":
    unittest.main()
