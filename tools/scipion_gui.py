# SPDX-License-Identifier: GPL-3.0-or-later
"""Drive Scipion's own windows through the plugin, and save a picture of each: to be looked at.

    Xvfb :77 -screen 0 1600x1000x24 & DISPLAY=:77 openbox &
    DISPLAY=:77 SPARSECV_HOME=$PWD/.venv .scipion/python3/bin/python tools/scipion_gui.py FOLDER

Simulates a small data set, runs the protocols of the RELION template on it, opens the project, the form of each
protocol and each button of its Analyze Results. Needs xvfb, openbox and ImageMagick.
"""

import importlib
import os
import subprocess
import sys
import time

os.environ["MPLBACKEND"] = "TkAgg"
importlib.import_module("sparsecv.tests.conftest")  # sets Scipion's variables, before it is imported

import matplotlib.pyplot as plt
import pyworkflow as pw
from pwem.protocols import ProtImportParticles, ProtImportPdb, ProtImportVolumes
from pyworkflow.gui.project import ProjectWindow
from pyworkflow.project import Manager

from sparsecv import protocols, viewers
from sparsecv.tests.data import particle_set, simulated

NAME, PIXEL_SIZE = "SparsecvPictures", 3.0
DRAWN = 2500  # ms until a window is on the screen


def make_project(folder):
    """A project in which everything has been run, now or by an earlier call with the same SCIPION_HOME."""
    pw.Config.getDomain().getPlugins()
    if Manager().hasProject(NAME):
        project = Manager().loadProject(NAME)
        os.chdir(project.path)
        kinds = [getattr(protocols, name) for name in protocols.__all__]
        return project.path, [run for run in project.getRuns() if type(run) in kinds]
    project = Manager().createProject(NAME)
    os.chdir(project.path)
    data = simulated(os.path.join(folder, "data"), particles=900, box=64, pixel_size=PIXEL_SIZE, snr=0.15)
    particle_set(os.path.join(folder, "particles.sqlite"), os.path.join(data, "truth.star"), PIXEL_SIZE).close()
    subprocess.run([os.path.join(os.environ["SPARSECV_HOME"], "bin", "python"), "-c", MODEL,
                    os.path.join(folder, "model.cif")], check=True)  # fmt: skip

    def run(kind, label, **values):
        made = project.newProtocol(kind, **values)
        made.setObjLabel(label)
        project.launchProtocol(made, wait=True)
        print(label, made.getStatus(), made.getErrorMessage(), flush=True)
        return made

    particles = run(ProtImportParticles, "import particles", importFrom=ProtImportParticles.IMPORT_FROM_SCIPION,
                    sqliteFile=os.path.join(folder, "particles.sqlite"), magnification=50000,
                    samplingRate=PIXEL_SIZE)  # fmt: skip
    reference = run(ProtImportVolumes, "starting map", filesPath=os.path.join(data, "reference.mrc"),
                    samplingRate=PIXEL_SIZE)  # fmt: skip
    model = run(ProtImportPdb, "model", inputPdbData=1, pdbFile=os.path.join(folder, "model.cif"))
    made = []
    for kind, label in ((protocols.SparseCvProtRefine, "sparse + TV"),
                        (protocols.SparseCvProtNonUniform, "non-uniform")):  # fmt: skip
        refined = run(kind, label, inputParticles=particles.outputParticles, referenceVolume=reference.outputVolume,
                      localSearches=True, initialLowPass=30, iterations=6, useGpu=False, numberOfThreads=2)  # fmt: skip
        made += [refined, run(protocols.SparseCvProtPostprocess, "post-processing, " + label,
                              inputVolume=refined.outputVolume)]  # fmt: skip
    made.append(run(protocols.SparseCvProtNuFilter, "filter", inputVolume=made[0].outputVolume, useGpu=False))
    made.append(run(protocols.SparseCvProtModelFsc, "validation", inputVolume=made[1].outputVolume, fit=1, frame=2,
                    versusVolume=made[3].outputVolume, atomStruct=model.outputPdb))  # fmt: skip
    return project.path, made


# the simulator's protein as a model, where the simulator puts it
MODEL = """
import sys
sys.path.insert(0, "{tests}")
from models import structure_of
from sparsecv.engine.io.models import write_structure
from sparsecv.engine.simulate.phantom import membrane_protein
atoms, _ = membrane_protein(3, "C1")
write_structure(sys.argv[1], structure_of(atoms, sorted(set(atoms.chains.tolist()))))
""".format(tests=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests"))


class Pictures:
    """Windows of one protocol, one after the other; the process ends with them, as Scipion's windows keep threads."""

    def __init__(self, path, protocol, folder):
        self.window = ProjectWindow(path)
        self.protocol, self.folder, self.count = protocol, folder, 0

    def take(self, name):
        """Save what the screen shows."""
        self.window.root.update()
        self.count += 1
        path = os.path.join(self.folder, f"{self.count:02d}_{name}.png")
        subprocess.run(["import", "-window", "root", path], check=True)
        print(path, flush=True)

    def close_others(self):
        """Close everything but the project."""
        plt.close("all")
        for child in self.window.root.winfo_children():
            if child.winfo_class() == "Toplevel":
                child.destroy()

    def opened(self, show, *then):
        """Open a window that holds the program until it is closed; what comes ``then`` is done while it is open."""

        def while_open():
            try:
                for step in then:
                    step()
            finally:
                self.close_others()
                self.window.root.quit()  # of the loop that the window has begun

        self.window.root.after(DRAWN, while_open)
        show()

    def press(self, viewer, name, button, show):
        """Press a button of Analyze Results."""
        for one in show(None):
            one.show(block=False) if hasattr(one, "figure") else one.show()
        end = time.time() + 1.0
        while time.time() < end:
            self.window.root.update()
        self.take(f"{name}_{button}")
        plt.close("all")

    def run(self):
        """The form of a protocol, and each button of its results."""
        view, protocol = self.window.viewWidget, self.protocol
        name = f"{protocol.getObjId()}_{type(protocol).__name__}"
        self.opened(lambda: view._openProtocolForm(protocol, disableRunMode=True), lambda: self.take(name + "_form"))
        kinds = [getattr(viewers, one) for one in viewers.__all__]
        kind = next(one for one in kinds if type(protocol) in one._targets)
        viewer = kind(project=self.window.project, protocol=protocol, parent=self.window)

        def press_all():
            self.take(name + "_results")
            for button, show in viewer._getVisualizeDict().items():
                if hasattr(viewer, button) and button not in ("doShowPage", "doShowChimera"):
                    self.press(viewer, name, button, show)

        self.opened(lambda: viewer.visualize(protocol, windows=self.window), press_all, self.finish)

    @staticmethod
    def finish():
        """Scipion's windows keep threads: nothing is closed, the process ends."""
        os._exit(0)


def main():
    """Everything, into a folder."""
    folder = os.path.abspath(sys.argv[1])
    os.makedirs(folder, exist_ok=True)
    path, made = make_project(folder)
    if len(sys.argv) == 2:  # a process for each protocol
        for protocol in made:
            subprocess.run([sys.executable, __file__, folder, str(protocol.getObjId())], timeout=120, check=False)
        return
    pictures = Pictures(path, next(one for one in made if one.getObjId() == int(sys.argv[2])), folder)
    pictures.window.root.after(4000, pictures.run)
    pictures.window.show()


if __name__ == "__main__":
    main()
