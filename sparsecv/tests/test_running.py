# SPDX-License-Identifier: GPL-3.0-or-later
"""How runs are started, stopped and continued: queues, Stop, Continue after a kill."""

import os
import signal
import time

from sparsecv.tests.project import SparseCvTest

HOSTS = """[localhost]
PARALLEL_COMMAND = mpirun -np %%_(JOB_NODES)d %%_(COMMAND)s
NAME = FAKE
MANDATORY = False
SUBMIT_COMMAND = %(submit)s %%_(JOB_SCRIPT)s
SUBMIT_TEMPLATE = #!/bin/sh
    %%_(JOB_COMMAND)s
CANCEL_COMMAND = kill %%_(JOB_ID)s
CHECK_COMMAND = ps -p %%_(JOB_ID)s || echo NOTHERE
JOB_DONE_REGEX = NOTHERE
QUEUES = {"main": [["JOB_TIME", "1", "Time", "hours"]]}
"""


class TestSparseCvRunning(SparseCvTest):
    """A batch system of shell scripts, and processes that are killed."""

    def test_a_killed_refinement_goes_on(self):
        """SIGKILL in the middle, then Continue: the same result as without."""
        whole = self.refinement(objLabel="undisturbed", iterations=5)
        self.launchProtocol(whole)
        killed = self.refinement(objLabel="killed", iterations=5)
        self.proj.launchProtocol(killed)
        folder = os.path.abspath(killed._getExtraPath())
        self.wait_for(lambda: os.path.exists(os.path.join(folder, "run_it002_checkpoint.npz")))
        for number in self.engines(folder):
            os.kill(number, signal.SIGKILL)
        self.wait_for(lambda: self.updated(killed).isFailed())
        self.assertEqual(self.engines(folder), [])
        from pyworkflow.protocol import MODE_RESUME

        killed.runMode.set(MODE_RESUME)
        self.launchProtocol(killed)
        self.assertIn("going on after iteration", "\n".join(killed.getLogsLastLines(200, logFile=0)))
        for name in ("run_class001.mrc", "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc"):
            with open(whole._getExtraPath(name), "rb") as first, open(killed._getExtraPath(name), "rb") as second:
                self.assertEqual(first.read(), second.read(), name)

    def queue(self, mode):
        """A batch system of two shell scripts: what is submitted runs at once, in the background."""
        from pyworkflow.config import Config

        submit = os.path.abspath("submit.sh")
        with open(submit, "w") as out:
            out.write("#!/bin/sh\nnohup sh \"$1\" > \"$1.log\" 2>&1 &\necho \"Submitted batch job $!\"\n")
        os.chmod(submit, 0o755)
        with open(Config.SCIPION_HOSTS, "w") as out:
            out.write(HOSTS % {"submit": submit})
        made = self.refinement(iterations=2, objLabel="queue, %s" % mode)
        made._useQueue.set(True)
        made.setQueueParams(["main", {"JOB_TIME": "1", "QUEUE_FOR_JOBS": mode}])
        return made

    def test_queues(self):
        """The whole protocol as a job, and each program as a job."""
        import pyworkflow as pw
        from pyworkflow.protocol import HostConfig

        before = open(pw.Config.SCIPION_HOSTS).read()
        try:
            for mode in ("N", "Y"):
                made = self.queue(mode)
                self.proj._hosts = HostConfig.load(pw.Config.SCIPION_HOSTS)
                self.proj.launchProtocol(made, wait=False)
                log = os.path.join(made.getWorkingDir(), "logs", "run.stdout")

                def is_over(path=log):
                    text = open(path, errors="replace").read() if os.path.exists(path) else ""
                    self.assertNotIn("PROTOCOL FAILED", text)
                    return "PROTOCOL FINISHED" in text

                self.wait_for(is_over, 150, 0.5)
                self.assertTrue(os.path.exists(made._getExtraPath("run_class001.mrc")), mode)
        finally:
            with open(pw.Config.SCIPION_HOSTS, "w") as out:
                out.write(before)

    def test_stop_leaves_no_process(self):
        made = self.refinement(iterations=20)
        self.proj.launchProtocol(made)
        folder = os.path.abspath(made._getExtraPath())
        self.wait_for(lambda: self.engines(folder))
        self.proj.stopProtocol(made)
        self.wait_for(lambda: not self.engines(folder), 30)
        time.sleep(1)
        self.assertEqual(self.engines(folder), [])
