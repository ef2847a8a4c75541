# SPDX-License-Identifier: GPL-3.0-or-later
"""The wizards in real forms: their dialogs open, and what is chosen there stands in the form. Needs Xvfb."""

import os
import shutil
import subprocess
import unittest

from sparsecv.tests.project import SparseCvTest


@unittest.skipUnless(shutil.which("Xvfb"), "Xvfb is not installed")
class TestSparseCvWizards(SparseCvTest):
    """A screen that nobody sees, and a form with particles and a map."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        from pyworkflow.gui import Window

        reading, writing = os.pipe()
        cls.screen = subprocess.Popen(["Xvfb", "-displayfd", str(writing), "-screen", "0", "1280x1024x24"],
                                      pass_fds=[writing], stderr=subprocess.DEVNULL)  # fmt: skip
        os.close(writing)
        with os.fdopen(reading) as number:
            cls.before, os.environ["DISPLAY"] = os.environ.get("DISPLAY"), ":" + number.readline().strip()
        cls.window = Window("wizards")
        cls.window.root.update()

    @classmethod
    def tearDownClass(cls):
        cls.window.root.destroy()
        cls.screen.terminate()
        cls.screen.wait()
        os.environ.pop("DISPLAY")
        if cls.before is not None:
            os.environ["DISPLAY"] = cls.before
        super().tearDownClass()

    def form(self, of, **values):
        from pyworkflow.gui.form import FormWindow

        form = FormWindow("form", of, lambda *arguments, **more: "", self.window, **values)
        form.root.update()
        return form

    def walk(self, widget):
        for child in widget.winfo_children():
            yield child
            yield from self.walk(child)

    def chosen(self, form, name, button="Select", then=lambda dialog: None):
        """Show the wizard of a parameter, do something in its dialog, press a button; returns the form's value."""
        from pyworkflow.gui.dialog import Dialog

        said = []

        def press():
            dialogs = [one for one in self.walk(form.root) if isinstance(one, Dialog)]
            try:
                for dialog in dialogs:
                    then(dialog)
                    title = dialog.title()
                    next(one for one in self.walk(dialog)
                         if one.winfo_class() == "Button" and one.cget("text").strip() == button).invoke()
                    said.append(title)
            finally:
                for dialog in dialogs:
                    if dialog.winfo_exists():
                        dialog.destroy()  # else the test would wait forever

        form.root.after(1500, press)
        form.wizards[name]().show(form)
        self.assertEqual(len(said), 1)
        return form.protocol.getAttributeValue(name), form.widgetDict[name].get()

    def test_symmetry_filter_and_diameter(self):
        made = self.refinement(initialLowPass=35, particleDiameter=0)
        form = self.form(made)

        def third(dialog):
            dialog.tree.selection_set(dialog.tree.get_children()[2])

        self.assertEqual(self.chosen(form, "symmetry", then=third)[1], "C3")
        step = 2 * 48 * 4 / 1000  # of the slider, in A
        self.assertAlmostEqual(float(self.chosen(form, "initialLowPass")[1]), 35, delta=step)
        moved = self.chosen(form, "initialLowPass", then=lambda dialog: dialog.hfSlider.slider.set(60))
        self.assertAlmostEqual(float(moved[1]), 60, delta=step)
        radius = float(self.chosen(form, "particleDiameter")[1]) / 2
        self.assertAlmostEqual(radius, 0.45 * 48 * 4, delta=4)  # the dialog has whole pixels

    def test_without_particles_and_map(self):
        """A sentence instead of a dialog."""
        made = self.refinement()
        made.inputParticles.set(None)
        made.referenceVolume.set(None)
        form = self.form(made)
        before = made.initialLowPass.get(), made.particleDiameter.get()
        for name in ("initialLowPass", "particleDiameter"):
            self.chosen(form, name, button="OK")
        self.assertEqual((made.initialLowPass.get(), made.particleDiameter.get()), before)
