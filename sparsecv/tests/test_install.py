# SPDX-License-Identifier: GPL-3.0-or-later
"""How the engine is installed and called: a virtual environment, conda, or a command of the user's."""

import glob
import os
import shutil
import subprocess
import sys
import tarfile

import mrcfile
import numpy as np
from pwem.protocols import ProtImportVolumes

from sparsecv import Plugin, __version__
from sparsecv.protocols import SparseCvProtPostprocess
from sparsecv.tests.data import PIXEL_SIZE
from sparsecv.tests.project import SparseCvTest, plugin_variables

# A conda that is a shell function, as the real one is. Its environments are plain ones, which see pip and the packages
# of the engine that is there, so that hardly anything has to be fetched. It refuses what would lead the real one to
# packages of Scipion's.
CONDA = """
conda() {
    if [ -n "$PYTHONPATH$PYTHONHOME" ]; then echo "conda: Scipion's packages are in the way" >&2; return 1; fi
    echo "$*" >> "%(root)s/said"
    case "$1" in
    create)
        rm -rf "%(root)s/envs/$4" && "%(python)s" -m venv --without-pip "%(root)s/envs/$4" &&
        for packages in "%(root)s/envs/$4"/lib/python3*/site-packages; do
            echo "%(packages)s" > "$packages/engine.pth"
        done ;;
    activate)
        if [ ! -d "%(root)s/envs/$2" ]; then
            echo "EnvironmentNameNotFound: Could not find conda environment: $2" >&2
            return 1
        fi
        CONDA_PREFIX="%(root)s/envs/$2" PATH="%(root)s/envs/$2/bin:$PATH"
        export CONDA_PREFIX PATH ;;
    *) return 1 ;;
    esac
}
"""


class Recorder:
    """Takes the place of Scipion's installer, and keeps what it is told."""

    def addPackage(self, name, **values):
        self.name, self.values = name, values


class TestSparseCvInstall(SparseCvTest):
    """Commands as a user would run them, with a conda made of a shell function."""

    def conda(self):
        """Make the function; returns the command that defines it, and the folder with its environments."""
        root, home = os.path.abspath("conda"), os.path.abspath(Plugin.getHome())
        shutil.rmtree(root, ignore_errors=True)  # Scipion keeps the projects of earlier tests
        os.makedirs(root)
        path = os.path.join(root, "conda.sh")
        with open(path, "w") as out:
            out.write(CONDA % {"root": root, "python": os.path.join(home, "bin", "python"),
                               "packages": glob.glob(os.path.join(home, "lib", "python3*", "site-packages"))[0]})
        return ". '%s'" % path, root

    @staticmethod
    def offered():
        """What ``defineBinaries`` tells the installer."""
        recorder = Recorder()
        Plugin.defineBinaries(recorder)
        return recorder.values

    def test_nothing_is_run_before_the_installation(self):
        """Not even to look for a driver: the first program on the path would leave a trace."""
        folder = os.path.abspath("traps")
        os.makedirs(folder, exist_ok=True)
        for name in ("nvidia-smi", "conda", "sh", "bash", "python3"):
            with open(os.path.join(folder, name), "w") as out:
                out.write("#!/bin/sh\ntouch '%s/sprung'\n" % folder)
            os.chmod(os.path.join(folder, name), 0o755)
        for way in ("venv", "conda"):
            with plugin_variables(SPARSECV_INSTALL=way, PATH=folder + ":" + os.environ["PATH"]):
                self.assertEqual(len(self.offered()["commands"]), 1)
        self.assertFalse(os.path.exists(os.path.join(folder, "sprung")))

    def test_a_virtual_environment_is_the_default(self):
        (command, done), = self.offered()["commands"]
        self.assertIn("-m sparsecv.environment . --extras engine,mpi --cuda auto --source", command)
        self.assertEqual(done, "sparsecv.installed")
        self.assertTrue(Plugin.getProgram().endswith("/bin/sparsecv"))

    def test_a_word_that_is_not_known(self):
        with plugin_variables(SPARSECV_INSTALL="docker"):
            self.assertEqual(Plugin.validateInstallation(),
                             ["SPARSECV_INSTALL must be one of venv, conda, and is 'docker'."])  # fmt: skip
            (command, _), = self.offered()["commands"]
            done = subprocess.run(command, shell=True, stderr=subprocess.PIPE)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(b"SPARSECV_INSTALL must be one of venv, conda", done.stderr)

    def test_conda_from_installation_to_result(self):
        """By ``scipion installb``, then a protocol that starts the engine through the environment."""
        hook, root = self.conda()
        software = os.path.abspath("software")
        shutil.rmtree(software, ignore_errors=True)
        os.makedirs(os.path.join(software, "em"), exist_ok=True)
        with tarfile.open(os.path.join(software, "em", "void.tgz"), "w:gz"):
            pass  # Scipion would fetch an empty archive
        halves = self.halves()
        with plugin_variables(SPARSECV_INSTALL="conda", CONDA_ACTIVATION_CMD=hook, SPARSECV_HOME="/nowhere",
                              SPARSECV_CUDA="none", SCIPION_SOFTWARE=software,
                              EM_ROOT=os.path.join(software, "em")):  # fmt: skip
            before = "\n".join(Plugin.validateInstallation())
            self.assertIn("Could not find conda environment: sparsecv-%s" % __version__, before)
            self.assertIn("scipion3 installb sparsecv", before)
            done = subprocess.run([sys.executable, "-m", "scipion", "installb", "sparsecv"], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT)  # fmt: skip
            said = done.stdout.decode("utf-8", "replace")
            self.assertEqual(done.returncode, 0, said)
            self.assertTrue(glob.glob(os.path.join(software, "em", "sparsecv-*", "sparsecv-conda.installed")), said)
            with open(os.path.join(root, "said")) as text:
                self.assertIn("create -y -n sparsecv-%s -c conda-forge python=3.11 pip\n" % __version__, text.read())
            self.assertEqual(Plugin.validateInstallation(), [])
            made = self.newProtocol(SparseCvProtPostprocess, inputVolume=halves.outputVolume, numberOfThreads=2)
            self.launchProtocol(made)
            self.assertIn("conda activate sparsecv-%s && sparsecv postprocess" % __version__,
                          "\n".join(made.getLogsLastLines(200, logFile=0)))  # fmt: skip
            self.assertTrue(os.path.exists(made.outputVolume.getFileName()))
            # what a user sets by hand goes before
            with plugin_variables(SPARSECV_ENV_ACTIVATION="conda activate another"):
                self.assertIn("conda activate another && sparsecv", Plugin.getProgram())
                said = "\n".join(Plugin.validateInstallation())
                self.assertIn("Could not find conda environment: another", said)
                self.assertIn("Correct SPARSECV_ENV_ACTIVATION", said)

    def test_conda_that_is_not_there(self):
        with plugin_variables(SPARSECV_INSTALL="conda", CONDA_ACTIVATION_CMD=""):
            self.assertEqual(self.offered()["neededProgs"], ["conda"])
            said = "\n".join(Plugin.validateInstallation())
            self.assertIn("conda", said.splitlines()[0])
            self.assertIn("CONDA_ACTIVATION_CMD", said)

    def test_the_choice_of_a_gpu_reaches_the_engine(self):
        """Behind an activation, too, which is a command of its own."""
        folder = os.path.abspath("bin")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "sparsecv"), "w") as out:
            out.write("#!/bin/sh\necho \"GPU <$CUDA_VISIBLE_DEVICES>\"\n")
        os.chmod(os.path.join(folder, "sparsecv"), 0o755)
        for values in ({"SPARSECV_ENV_ACTIVATION": "export PATH=%s:$PATH" % folder},
                       {"SPARSECV_HOME": os.path.dirname(folder)}):  # fmt: skip
            with plugin_variables(**values):
                self.assertEqual(Plugin.validateInstallation(), [])
                for shell in ("sh", "bash"):
                    said = subprocess.check_output([shell, "-c", Plugin.getProgram("CUDA_VISIBLE_DEVICES=3")])
                    self.assertEqual(said, b"GPU <3>\n")

    def halves(self):
        """An imported map with half maps: the starting map and noise."""
        with mrcfile.open(os.path.join(self.data, "reference.mrc"), permissive=True) as opened:
            density = np.array(opened.data)
        rng = np.random.RandomState(4)
        for name, noise in (("whole", 0), ("half1", 1), ("half2", 1)):
            with mrcfile.new(name + ".mrc", overwrite=True) as out:
                noisy = density + noise * 0.3 * density.std() * rng.normal(size=density.shape)
                out.set_data(noisy.astype(np.float32))
                out.voxel_size = PIXEL_SIZE
        return self.imported(ProtImportVolumes, filesPath=os.path.abspath("whole.mrc"), samplingRate=PIXEL_SIZE,
                             setHalfMaps=True, half1map=os.path.abspath("half1.mrc"),
                             half2map=os.path.abspath("half2.mrc"))  # fmt: skip
