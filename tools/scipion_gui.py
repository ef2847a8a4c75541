# SPDX-License-Identifier: GPL-3.0-or-later
"""Use the plugin as a user does, in Scipion's own windows with the mouse, and save a picture of each: to be looked at.

    Xvfb :77 -screen 0 1600x1200x24 & DISPLAY=:77 openbox &
    DISPLAY=:77 SPARSECV_HOME=$PWD/.venv .scipion/python3/bin/python tools/scipion_gui.py FOLDER [RUN]

Simulates a small data set, imports the RELION template as a workflow, with a filter and CTF refinement besides, and
then for each protocol: opens the form and its pages, presses each wizard, presses Execute, waits for the run, presses
Analyze Results and each button there. ChimeraX and the browser are scripts that note what they are given; the notes
are checked. Ends with status 1 if anything was not as it should be.
With the number of a run, only that one is done again, in the folder of an earlier call, unless others have its results.
Needs xvfb, openbox, xdotool, ImageMagick and scipion-em-relion.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import time
import tkinter as tk
import traceback

os.environ["MPLBACKEND"] = "TkAgg"
FOLDER = os.path.abspath(sys.argv[1])
# what has to stand before Scipion is imported: all that it writes is in the folder
os.makedirs(os.path.join(FOLDER, "scipion"), exist_ok=True)
os.environ.update(SCIPION_HOME=os.path.join(FOLDER, "scipion"), EM_ROOT=os.path.join(FOLDER, "em"),
                  SCIPION_USER_DATA=os.path.join(FOLDER, "scipion", "data"))  # fmt: skip
importlib.import_module("sparsecv.tests.conftest")

import matplotlib.pyplot as plt
import numpy as np
import pyworkflow as pw
from pwem.viewers.viewer_chimera import Chimera
from pyworkflow.gui.project import ProjectWindow
from pyworkflow.project import Manager
from pyworkflow.template import LocalTemplate

import sparsecv
from sparsecv import protocols
from sparsecv.star import read_star, write_star
from sparsecv.tests.data import simulated

NAME, PIXEL_SIZE, MICROGRAPHS = "SparsecvPictures", 3.0, 8
TEMPLATE = os.path.join(os.path.dirname(sparsecv.__file__), "templates", "sparsecv_relion.json.template")
NOTES = os.path.join(FOLDER, "chimerax.txt")
LONGEST = 400  # s that a protocol may take
SLOWEST = 30  # s that a window may take
WHOLE = "1000x1140+300+25"  # place of a form on the screen with nothing to be scrolled
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


# ------------------------------------------------------------------------------------------------- before the windows
def make_data():
    """Simulate what the template asks for; returns the JSON of the workflow, with what it has not besides."""
    data = simulated(os.path.join(FOLDER, "data"), particles=900, box=64, pixel_size=PIXEL_SIZE, snr=0.15,
                     particles_per_micrograph=1, astigmatism=0.0)  # fmt: skip
    model = os.path.join(FOLDER, "model.cif")
    subprocess.run([os.path.join(os.environ["SPARSECV_HOME"], "bin", "python"), "-c", MODEL, model], check=True)
    template = LocalTemplate("sparsecv", TEMPLATE)
    template.replaceEnvVariables()
    template.parseContent()
    values = {"particles": tilted(os.path.join(data, "truth.star")), "reference": os.path.join(data, "reference.mrc"),
              "model": model, "sampling": PIXEL_SIZE, "refsampling": PIXEL_SIZE, "lowpass": 30, "local": True,
              "gpu": False, "iterations": 5, "threads": 2, "fit": 1}  # fmt: skip
    for alias, value in values.items():
        if not template.setParamValue(alias, str(value)):
            raise SystemExit(f"the template has no {alias}")
    with open(template.createTemplateFile()) as made:
        workflow = json.load(made)
    workflow.append({"object.className": "SparseCvProtNuFilter", "object.id": "40", "object.label": "filter",
                     "object.comment": "", "inputVolume": "10.outputVolume", "useGpu": "False"})  # fmt: skip
    workflow.append({"object.className": "SparseCvProtCtfRefine", "object.id": "41", "object.label": "CTF refinement",
                     "object.comment": "", "inputParticles": "10.outputParticles", "inputVolume": "10.outputVolume",
                     "maskVolume": "10.outputMask", "numberOfThreads": 2})  # fmt: skip
    return json.dumps(workflow, indent=1)


def tilted(truth):
    """Write the particles as of tilted specimens, with one defocus for each micrograph; returns the new STAR file.

    Particles of like defocus make a micrograph, and stand in it where their defocus puts them: CTF refinement has
    something to find, and its viewer to show.
    """
    tables = read_star(truth)
    rows, rng = tables["particles"], np.random.RandomState(5)
    defoci = np.array([float(row["rlnDefocusU"]) for row in rows])
    for number, here in enumerate(np.array_split(np.argsort(defoci), MICROGRAPHS), 1):
        mean, ends = defoci[here].mean(), (defoci[here].min(), defoci[here].max())
        for k in here:
            across = np.interp(defoci[k], ends, (200, 3800))
            rows[k].update(rlnMicrographName=f"tilted{number}.mrc", rlnDefocusU=f"{mean:.2f}",
                           rlnDefocusV=f"{mean:.2f}", rlnCoordinateX=f"{across:.1f}",
                           rlnCoordinateY=f"{rng.uniform(200, 3800):.1f}")  # fmt: skip
    given = truth.replace("truth", "given")
    write_star(given, tables.items())
    return given


def make_chimerax():
    """Put a program where pwem looks for ChimeraX; it notes its arguments, one a line."""
    program = os.path.join(Chimera.getHome(), "bin", "ChimeraX")
    os.makedirs(os.path.dirname(program), exist_ok=True)
    with open(program, "w") as out:
        out.write(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >> '{NOTES}'\n")
    os.chmod(program, 0o755)
    open(NOTES, "w").close()


# -------------------------------------------------------------------------------------------------------- the windows
class Missing(Exception):
    """A window or button that should be there is not."""


class User:
    """Does one thing after the other with the mouse; what is done is a generator that yields how long to wait, in s.

    Windows and dialogs hold the program in loops of their own; the user's turns come by Tk's timer in whichever runs.
    """

    def __init__(self, window, actions):
        self.window, self.root, self.count = window, window.root, 0
        self.actions = actions(self)
        self.code = 1
        self.root.after(4000, self.turn)

    def turn(self):
        """The next action; at the end the process ends, as Scipion's windows keep threads."""
        try:
            pause = next(self.actions)
        except StopIteration:
            self.code = 0
        except Exception:
            traceback.print_exc()
            self.take("failed")
        else:
            self.root.after(int(1000 * pause), self.turn)
            return
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self.code)

    def take(self, name):
        """Save what the screen shows."""
        self.root.update_idletasks()
        self.count += 1
        stage = sys.argv[2] if len(sys.argv) > 2 else "0"
        path = os.path.join(FOLDER, f"{int(stage):04d}_{self.count:02d}_{name}.png")
        subprocess.run(["import", "-window", "root", path], check=True)
        print(path, flush=True)

    def click(self, widget, times=1):
        """Press the left button on the middle of a widget."""
        widget.update_idletasks()
        if not widget.winfo_viewable():
            raise Missing(f"{widget} cannot be seen")
        x, y = widget.winfo_rootx() + widget.winfo_width() // 2, widget.winfo_rooty() + widget.winfo_height() // 2
        subprocess.run(["xdotool", "mousemove", str(x), str(y)], check=True)
        subprocess.run(["xdotool", "click", "--repeat", str(times), "--delay", "60", "1"], check=True)

    def walk(self, widget=None):
        """All widgets below one, those of the newest windows last."""
        for child in (widget or self.root).winfo_children():
            yield child
            yield from self.walk(child)

    def windows(self):
        """Windows besides the project's, oldest first."""
        return [one for one in self.walk() if isinstance(one, tk.Toplevel) and one.winfo_viewable()]

    def buttons(self, window, text="", command=""):
        """Buttons of a window with a label, or with a method behind them."""
        return [one for one in self.walk(window) if one.winfo_class() == "Button" and one.winfo_viewable()
                and (not text or str(one.cget("text")).strip() == text)
                and (not command or str(one.cget("command")).endswith(command))]  # fmt: skip

    def press(self, window, text="", command=""):
        """Press the only button like that."""
        found = self.buttons(window, text, command)
        if len(found) != 1:
            there = [str(one.cget("text")) for one in self.buttons(window)]
            raise Missing(f"{len(found)} buttons {text or command} among {there}")
        self.click(found[0])

    def answers(self, form, question):
        """The radio buttons of a question of a form by what they say, {} if it is not asked."""
        labels = [one for one in self.walk(form) if one.winfo_class() == "Label" and one.winfo_viewable()
                  and one.cget("text") == question]  # fmt: skip
        rows = [one for label in labels for one in label.master.grid_slaves(row=label.grid_info()["row"])]
        found = [one for row in rows for one in self.walk(row)]
        return {one.cget("text"): one for one in found if one.winfo_class() == "Radiobutton"}

    def new_windows(self, before):
        """Those that have come since ``before`` (a list of windows)."""
        return [one for one in self.windows() if one not in before]

    def opened(self, before):
        """Wait for a window that has come since ``before``; is its value when it has been drawn."""
        end = time.time() + SLOWEST
        while not self.new_windows(before):
            if time.time() > end:
                raise Missing("no window has opened")
            yield 0.3
        yield 1.5
        return self.new_windows(before)[-1]


def import_workflow(user):
    """Project, Import workflow: the file is chosen in the browser."""
    yield 0
    before = user.windows()
    user.root.after(1, user.window.onImportWorkflow)
    browser = yield from user.opened(before)
    tree = next(one for one in user.walk(browser) if one.winfo_class() == "Treeview")
    item = next(one for one in tree.get_children() if tree.item(one)["text"] == "workflow.json")
    tree.see(item)
    yield 0.5
    x, y, _, height = tree.bbox(item)
    subprocess.run(["xdotool", "mousemove", str(tree.winfo_rootx() + x + 60),
                    str(tree.winfo_rooty() + y + height // 2), "click", "1"], check=True)  # fmt: skip
    yield 1
    user.take("import_workflow")
    user.press(browser, text="Import")
    yield 8
    user.take("workflow")


def run_protocol(user, number):
    """The form with its wizards, Execute, Analyze Results."""
    view, project = user.window.viewWidget, user.window.project
    protocol = project.getProtocol(number)
    name = type(protocol).__name__
    view._selectItemProtocol(protocol)
    view._selection[:] = [number]
    view._updateSelection()
    yield 1
    before = user.windows()
    user.root.after(1, lambda: view._openProtocolForm(protocol))
    form = yield from user.opened(before)
    user.take(name + "_form")
    if name in protocols.__all__:
        yield from press_wizards(user, form, name)
        yield from other_tabs(user, form, name)
    user.press(form, text="Execute")
    yield 2
    while user.new_windows(before):
        dialog = user.new_windows(before)[-1]
        user.take(name + "_says")
        # warnings are confirmed, and that what follows is not run yet; errors are not
        user.press(dialog, text="Single" if user.buttons(dialog, text="Single") else "Yes")
        yield 2
    end = time.time() + LONGEST
    while not protocol.isFinished():
        if protocol.isFailed() or protocol.isAborted() or time.time() > end:
            raise Missing(f"{name} did not finish: {protocol.getErrorMessage()}")
        yield 2
        project._updateProtocol(protocol)
    view.refreshRuns(checkPids=True)
    yield 3
    user.take(name + "_finished")
    if name in protocols.__all__:
        yield from analyse(user, name, protocol)


def press_wizards(user, form, name):
    """Each wizard that can be seen; what it proposes is taken."""
    for wizard in user.buttons(form, command="_showWizard"):
        before = user.windows()
        user.click(wizard)
        dialog = yield from user.opened(before)
        title = re.sub(r"\W+", "_", dialog.title()).lower()
        tree = next((one for one in user.walk(dialog) if one.winfo_class() == "Treeview"), None)
        if tree is not None and tree.get_children():
            tree.selection_set(tree.get_children()[0])
        yield 1
        user.take(f"{name}_wizard_{title}")
        user.press(dialog, text="Select" if user.buttons(dialog, text="Select") else "OK")
        yield 2
        if user.new_windows(before):
            raise Missing(f"the wizard {title} did not close")


def other_tabs(user, form, name):
    """Pictures of the other pages of a form, and of all with everything that experts can set, as high as it is."""
    book = next(one for one in user.walk(form) if one.winfo_class() == "TNotebook")
    levels = {one.cget("text"): one for one in user.walk(form) if one.winfo_class() == "Radiobutton"}
    usual = form.geometry()
    for level in ("Normal", "Advanced"):
        user.click(levels[level])
        yield 1
        if level == "Advanced":
            form.geometry(WHOLE)
            yield 1
        for index in range(level == "Normal", len(book.tabs())):
            book.select(index)
            yield 1
            user.take(f"{name}_form_{level}_{index}".lower())
            if level == "Advanced" and index:
                yield from press_wizards(user, form, name)
        book.select(0)
        yield 1
    yield from ask_for_ewald(user, form, name)
    form.geometry(usual)
    yield 1
    user.click(levels["Normal"])
    yield 1


def ask_for_ewald(user, form, name):
    """The correction brings a question of its own; neither is left in the form."""
    buttons = user.answers(form, "Correct for the Ewald sphere?")
    if not buttons:
        return
    for answer in ("Yes", "No"):
        user.click(buttons[answer])
        yield 1
        if bool(user.answers(form, "Hand of the curvature")) != (answer == "Yes"):
            raise Missing("the hand of the curvature is asked for at the wrong time")
        user.take(f"{name}_form_ewald_{answer}".lower())


def analyse(user, name, protocol):
    """Analyze Results, its wizard, and each of its buttons."""
    before = user.windows()
    user.click(user.window.viewWidget.btnAnalyze)
    results = yield from user.opened(before)
    user.take(name + "_results")
    yield from press_wizards(user, results, name)
    browser = os.environ["BROWSER_NOTES"]
    for number, button in enumerate(user.buttons(results, command="_visualizeVar")):
        seen, noted, paged = plt.get_fignums(), read(NOTES), read(browser)
        before = user.windows()
        user.click(button)
        yield 3
        if user.new_windows(before):
            user.take(f"{name}_results_{number}_says")
            raise Missing(f"button {number} of {name} complains")
        if plt.get_fignums() == seen:
            given = [line for line in read(NOTES)[len(noted) :] + read(browser)[len(paged) :] if line]
            print(f"{name}, button {number}: handed over {given}", flush=True)
            check_handed_over(given, protocol)
            continue
        user.take(f"{name}_results_{number}")
        plt.close("all")
        yield 1


def read(path):
    """Lines of a file of notes."""
    with open(path) as text:
        return text.read().split("\n")[:-1]


def check_handed_over(given, protocol):
    """One file that is there, of this protocol; and of a script all that it opens is there."""
    if len(given) != 1:
        raise Missing(f"a button has neither drawn anything nor handed over one file: {given}")
    path = given[0].replace("file://", "")
    folder = os.path.abspath(protocol._getExtraPath())
    if not (os.path.isabs(path) and os.path.isfile(path) and os.path.dirname(path) == folder):
        raise Missing(f"{path} is no file of {folder}")
    if path.endswith(".cxc"):
        opened = re.findall(r'^open\s+"?([^"\s]+)"?', open(path).read(), re.M)
        lost = [one for one in opened if not os.path.isfile(os.path.join(folder, one))]
        if not opened or lost:
            raise Missing(f"{path} opens {opened}, of which {lost} are not there")


# -------------------------------------------------------------------------------------------------------------- stages
def make_browser():
    """A browser that notes the address, for the page of the validation."""
    program, notes = os.path.join(FOLDER, "browser"), os.path.join(FOLDER, "browser.txt")
    with open(program, "w") as out:
        out.write(f"#!/bin/sh\nprintf '%s\\n' \"$@\" >> '{notes}'\n")
    os.chmod(program, 0o755)
    open(notes, "a").close()
    os.environ.update(BROWSER=program, BROWSER_NOTES=notes)


def main():
    """Without a number: everything, in a process for each protocol. With one: 0 imports the workflow, else a run."""
    pw.Config.getDomain().getPlugins()
    make_browser()
    if len(sys.argv) == 2:
        make_chimerax()
        workflow = make_data()
        project = Manager().createProject(NAME)
        with open(os.path.join(project.path, "workflow.json"), "w") as out:
            out.write(workflow)
        project.closeMapper()
        codes = [stage(0)]
        os.chdir(project.path)
        project = Manager().loadProject(NAME)
        numbers = [run.getObjId() for run in project.getRuns()]
        project.closeMapper()
        codes += [stage(number) for number in numbers]
        print(f"{len(codes) - sum(codes)} of {len(codes)} parts were as they should be")
        sys.exit(1 if any(codes) else 0)
    project = Manager().loadProject(NAME)
    os.chdir(project.path)
    number = int(sys.argv[2])
    window = ProjectWindow(project.path)
    User(window, import_workflow if number == 0 else lambda user: run_protocol(user, number))
    window.show()


def stage(number):
    """A part in a process of its own; returns 1 if it failed."""
    return int(subprocess.run([sys.executable, __file__, FOLDER, str(number)], check=False).returncode != 0)


if __name__ == "__main__":
    main()
