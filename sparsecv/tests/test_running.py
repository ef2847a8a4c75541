# SPDX-License-Identifier: GPL-3.0-or-later
"""How runs are started, stopped and continued: queues, Stop, Continue after a kill."""

import os
import signal
import subprocess
import time
from contextlib import contextmanager

from pyworkflow.config import Config
from pyworkflow.protocol import MODE_RESUME, HostConfig

from sparsecv import Plugin
from sparsecv.tests.project import SparseCvTest, plugin_variables

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
# several processes by Open MPI, where tests run as root and on few cores
MPI = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_rmaps_base_oversubscribe": "1"}


class TestSparseCvRunning(SparseCvTest):
    """A batch system of shell scripts, and processes that are killed."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for name, value in MPI.items():
            os.environ.setdefault(name, value)

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
        killed.runMode.set(MODE_RESUME)
        self.launchProtocol(killed)
        self.assertIn("going on after iteration", "\n".join(killed.getLogsLastLines(200, logFile=0)))
        for name in ("run_class001.mrc", "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc"):
            with open(whole._getExtraPath(name), "rb") as first, open(killed._getExtraPath(name), "rb") as second:
                self.assertEqual(first.read(), second.read(), name)

    @contextmanager
    def queue(self, command):
        """A batch system that starts jobs by a shell command and tells the number of the last process."""
        before = open(Config.SCIPION_HOSTS).read()
        submit = os.path.abspath("submit.sh")
        with open(submit, "w") as out:
            out.write("#!/bin/sh\n%s &\necho \"Submitted batch job $!\"\n" % command)
        os.chmod(submit, 0o755)
        with open(Config.SCIPION_HOSTS, "w") as out:
            out.write(HOSTS % {"submit": submit})
        try:
            self.proj._hosts = HostConfig.load(Config.SCIPION_HOSTS)
            yield
        finally:
            with open(Config.SCIPION_HOSTS, "w") as out:
                out.write(before)

    def queued(self, mode, **values):
        """A refinement that goes through the batch system: as one job (N), or each of its programs as a job (Y)."""
        made = self.refinement(iterations=2, **values)
        made._useQueue.set(True)
        made.setQueueParams(["main", {"JOB_TIME": "1", "QUEUE_FOR_JOBS": mode}])
        return made

    def over(self, protocol):
        """Wait for the end of a protocol that nothing else waits for; return what it has said."""
        log = os.path.join(protocol.getWorkingDir(), "logs", "run.stdout")

        def said():
            return open(log, errors="replace").read() if os.path.exists(log) else ""

        self.wait_for(lambda: "PROTOCOL FINISHED" in said() or "PROTOCOL FAILED" in said(), 150, 0.5)
        return said()

    def test_queues(self):
        """The whole protocol as a job, and each program as a job."""
        with self.queue('nohup sh "$1" > "$1.log" 2>&1'):
            for mode in ("N", "Y"):
                made = self.queued(mode, objLabel="queue, %s" % mode)
                if mode == "Y":  # a job of two processes
                    made.numberOfMpi.set(2)
                    made.numberOfThreads.set(1)
                self.proj.launchProtocol(made, wait=False)
                self.assertIn("PROTOCOL FINISHED", self.over(made))
                self.assertTrue(os.path.exists(made._getExtraPath("run_class001.mrc")), mode)
                folder = os.path.join(made.getWorkingDir(), "logs")  # jobs have logs of their own
                said = "".join(open(os.path.join(folder, name), errors="replace").read() for name in os.listdir(folder))
                self.assertEqual("in each of 2 processes" in said, mode == "Y")

    def test_a_job_that_is_lost_is_noticed(self):
        """Scipion does not see the exit status of a job; the files of an earlier run may still be there."""
        made = self.refinement(iterations=2, objLabel="finished, then lost")
        self.launchProtocol(made)
        made.iterations.set(3)
        with self.queue("true"):  # a job that is lost
            made._useQueue.set(True)
            made.setQueueParams(["main", {"JOB_TIME": "1", "QUEUE_FOR_JOBS": "Y"}])
            made.runMode.set(MODE_RESUME)
            self.proj.launchProtocol(made, wait=False)
            self.wait_for(lambda: self.updated(made).isFailed(), 60)
        self.assertIn("The engine has not finished", self.updated(made).getErrorMessage())

    def test_processes_of_a_run_and_their_gpus(self):
        """What mpirun starts: the engine behind its activation, on the GPUs that Scipion has chosen."""
        made = self.refinement()
        os.makedirs(made._getExtraPath(), exist_ok=True)
        with plugin_variables(SPARSECV_ENV_ACTIVATION="sparsecv() { echo \"$CUDA_VISIBLE_DEVICES\" \"$@\"; }"):
            for picks_gpu, words, expected in ((True, ["0 1", "refine", "a b"], "0,1 refine a b"),
                                               (False, ["refine", "x"], "refine x")):  # fmt: skip
                launcher = made._launcher(picks_gpu)
                done = subprocess.run([launcher] + words, stdout=subprocess.PIPE, check=True, env=Plugin.getEnviron())
                self.assertEqual(done.stdout.decode().strip(), expected)

    def test_stop_leaves_no_process(self):
        made = self.refinement(iterations=20)
        self.proj.launchProtocol(made)
        folder = os.path.abspath(made._getExtraPath())
        self.wait_for(lambda: self.engines(folder))
        self.proj.stopProtocol(made)
        self.wait_for(lambda: not self.engines(folder), 30)
        time.sleep(1)
        self.assertEqual(self.engines(folder), [])
