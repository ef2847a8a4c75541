# SPDX-License-Identifier: GPL-3.0-or-later
"""Analyze Results: matplotlib windows, and ChimeraX where it is installed; they work while a protocol runs."""

import csv
import glob
import os
import webbrowser

import mrcfile
import numpy as np
import pyworkflow.protocol.params as params
from pwem.viewers import ChimeraView, EmPlotter
from pwem.viewers.viewer_localres import chimeraInstalled
from pwem.wizards import ColorScaleWizardBase
from pyworkflow.viewer import DESKTOP_TKINTER, ProtocolViewer

from sparsecv.protocols import (
    SparseCvProtCtfRefine,
    SparseCvProtModelFsc,
    SparseCvProtNonUniform,
    SparseCvProtNuFilter,
    SparseCvProtPostprocess,
    SparseCvProtRefine,
)
from sparsecv.protocols.base import FSC_COLUMNS, STATUS
from sparsecv.protocols.protocol_ctf_refine import DEFOCUS_PICTURE, NUMBERS
from sparsecv.protocols.protocol_model_fsc import FSC_COLUMNS as MODEL_COLUMNS
from sparsecv.star import read_star
from sparsecv.viewers import plots

SLICE_AXES = ["z", "y", "x"]
SIZE, SQUARE, FLAT = (9, 6.5), (8.5, 7.5), (11, 5)  # of windows, inches: curves, four panels, two panels
MOST_SHOWN = 20000  # particles in a plot of single ones


class SparseCvViewer(ProtocolViewer):
    """What all viewers share."""

    _environments = [DESKTOP_TKINTER]
    _targets = []

    @classmethod
    def getClassLabel(cls, prependPackageName=True):
        """The label as it is: Scipion does not tell viewers which plugin they are of."""
        return cls._label

    # ------------------------------------------------------------------------------------------------ what is there
    def _path(self, name):
        return self.protocol._getExtraPath(name)

    def _has(self, name):
        return os.path.exists(self._path(name))

    def _map(self, name):
        """Density (z, y, x) and pixel size of a map of the protocol."""
        with mrcfile.open(self._path(name), permissive=True) as opened:
            return np.array(opened.data, dtype=np.float32), float(opened.voxel_size.x)

    def _curves(self, name, table, columns):
        rows = read_star(self._path(name))[table][1:]
        frequency = [float(row["rlnResolution"]) for row in rows]
        found = [(column, label) for column, label in columns if column in rows[0]]
        return [(label, frequency, [float(row[column]) for row in rows]) for column, label in found]

    # ------------------------------------------------------------------------------------------------------- windows
    def _window(self, draw, *arguments, size=SIZE, **more):
        """A window with what a function of ``plots`` draws."""
        plotter = EmPlotter(x=1, y=1, windowTitle=self._label)
        figure = plotter.getFigure() if hasattr(plotter, "getFigure") else plotter.figure
        figure.clear()
        figure.set_size_inches(*size)
        draw(figure, *arguments, **more)
        return [plotter]

    def _absent(self, what):
        return [self.errorMessage("%s is not there yet: look again when the protocol has come further." % what,
                                  title="Nothing to show")]  # fmt: skip

    def _picture(self, pattern, what):
        """The newest of the engine's own pictures."""
        import matplotlib.image

        found = sorted(glob.glob(self._path(pattern)))
        if not found:
            return self._absent(what)
        image = matplotlib.image.imread(found[-1])

        def draw(figure):
            axes = figure.add_subplot(111)
            figure.subplots_adjust(0, 0, 1, 1)
            axes.imshow(image)
            axes.axis("off")

        wide = min(FLAT[0], SQUARE[1] * image.shape[1] / image.shape[0])
        return self._window(draw, size=(wide, wide * image.shape[0] / image.shape[1]))

    def _script(self, name):
        """Open a script of the engine in ChimeraX."""
        if not chimeraInstalled():
            return [self.errorMessage("ChimeraX is not installed (scipion-em-chimera).", title="No ChimeraX")]
        if not self._has(name):
            return self._absent(name)
        return [ChimeraView(os.path.abspath(self._path(name)))]

    def _page(self, name):
        """Open a page of the engine in the browser."""
        if not self._has(name):
            return self._absent("The page")
        webbrowser.open("file://" + os.path.abspath(self._path(name)))
        return []

    def _maps(self):
        """What can be sliced: (words, name of the file)."""
        return self.MAPS

    def _showSlices(self, param=None):
        words, name = self._maps()[self.mapName.get()]
        if not self._has(name):
            return self._absent(name)
        density, pixel_size = self._map(name)
        return self._window(plots.draw_slices, density, pixel_size, axis=SLICE_AXES[self.sliceAxis.get()],
                            title="%s, %s" % (words, name), size=SQUARE)  # fmt: skip

    # -------------------------------------------------------------------------------------------------------- forms
    def _defineSlices(self, group):
        files = ["*%s*: extra/%s" % pair for pair in self._maps()]
        group.addParam("mapName", params.EnumParam, choices=[words for words, _ in self._maps()], default=0,
                       label="Map", help="\n".join(files))  # fmt: skip
        group.addParam("sliceAxis", params.EnumParam, choices=SLICE_AXES, default=0, label="Slices across",
                       display=params.EnumParam.DISPLAY_HLIST,
                       help="The axis that they are perpendicular to. Four are shown, between 30 and 70 % of the box.")
        group.addParam("doShowSlices", params.LabelParam, label="Show slices")

    def _defineBandLimit(self, form, name):
        group = form.addGroup("Band limits")
        low, high = 0.0, 1.0
        if self._has(name):
            limits, _ = self._map(name)
            # outwards to what can be read in a field of the form
            low, high = np.floor(10 * limits.min()) / 10, np.ceil(10 * limits.max()) / 10
        ColorScaleWizardBase.defineColorScaleParams(group, defaultHighest=float(high), defaultLowest=float(low),
                                                    defaultColorMap="viridis_r")  # fmt: skip
        group.addParam("doShowBandLimit", params.LabelParam, label="Show slices coloured by band limits")
        group.addParam("doShowHistogram", params.LabelParam, label="Show their histogram")
        group.addParam("doShowChimera", params.LabelParam, label="Show them in ChimeraX")
        return group

    def _bandLimit(self, map_name, name):
        if not (self._has(map_name) and self._has(name)):
            return self._absent("The map of band limits")
        density, pixel_size = self._map(map_name)
        return self._window(plots.draw_slices, density, pixel_size, axis=SLICE_AXES[self.sliceAxis.get()],
                            colouring=self._map(name)[0], scale=(self.lowest.get(), self.highest.get()),
                            colour_map=self.colorMap.get() or "viridis_r", title="Local band limits",
                            label="band limit (Å)", size=SQUARE)  # fmt: skip

    def _histogram(self, names, title="Band limits"):
        found = {label: self._map(name)[0] for label, name in names.items() if self._has(name)}
        if not found:
            return self._absent("The map of band limits")
        finer = {label: values[values < values.max()] for label, values in found.items()}
        shown = {label: part if part.size else found[label] for label, part in finer.items()}
        return self._window(plots.draw_histogram, shown, title + ", where finer than the coarsest")


class SparseCvRefineViewer(SparseCvViewer):
    """Of both refinements."""

    _targets = [SparseCvProtRefine, SparseCvProtNonUniform]
    _label = "viewer sparsecv refinement"
    MAPS = [("map of both halves", "run_class001.mrc"), ("sharpened map", "postprocess.mrc"),
            ("map by the prior", "run_class001_regularised.mrc"), ("half map 1", "run_half1_class001_unfil.mrc"),
            ("half map 2", "run_half2_class001_unfil.mrc"), ("mask", "postprocess_mask.mrc")]  # fmt: skip
    LIMITS = {"both": "run_bandlimit.mrc", "half 1": "run_half1_bandlimit.mrc", "half 2": "run_half2_bandlimit.mrc"}

    def _maps(self):
        more = [("locally filtered map", "run_locally_filtered.mrc")]
        return self.MAPS + (more if isinstance(self.protocol, SparseCvProtNonUniform) else [])

    def _defineParams(self, form):
        form.addSection(label="Results")
        form.addParam("doShowPage", params.LabelParam, label="Open the whole report in the browser", default=True)
        group = form.addGroup("Iterations")
        group.addParam("doShowHistory", params.LabelParam, label="Show resolution and changes of poses")
        group.addParam("doShowPrior", params.LabelParam, label="Show the prior by iteration")
        group.addParam("doShowLastFsc", params.LabelParam, label="Show the FSC of the last iteration")
        group.addParam("doShowLastSlices", params.LabelParam, label="Show the references of the last iteration")
        group = form.addGroup("Result")
        group.addParam("doShowFsc", params.LabelParam, label="Show all FSC curves")
        group.addParam("doShowAngles", params.LabelParam, label="Show the angular distribution")
        group.addParam("doShowMaps", params.LabelParam, label="Show map, half maps and mask in ChimeraX")
        self._defineSlices(group)
        if isinstance(self.protocol, SparseCvProtNonUniform):
            group = self._defineBandLimit(form, "run_bandlimit.mrc")
            group.addParam("doShowDifference", params.LabelParam, label="Show how the halves' band limits differ")

    def _getVisualizeDict(self):
        return {
            "doShowPage": lambda _: self._page("report.html"),
            "doShowHistory": self._showHistory, "doShowPrior": self._showPrior,
            "doShowLastFsc": lambda _: self._picture("run_it*_fsc.png", "An iteration"),
            "doShowLastSlices": lambda _: self._picture("run_it*_slices.png", "An iteration"),
            "doShowFsc": self._showFsc, "doShowAngles": self._showAngles,
            "doShowSlices": self._showSlices,
            "doShowBandLimit": lambda _: self._bandLimit("run_locally_filtered.mrc", "run_bandlimit.mrc"),
            "doShowHistogram": lambda _: self._histogram(self.LIMITS),
            "doShowDifference": self._showDifference,
            "doShowMaps": lambda _: self._script("run.cxc"),
            "doShowChimera": lambda _: self._script("run_bandlimit.cxc"),
        }  # fmt: skip

    def _showHistory(self, param=None):
        history = self.protocol._readJson(STATUS).get("history")
        return self._window(plots.draw_history, history) if history else self._absent("An iteration")

    def _showPrior(self, param=None):
        history = self.protocol._readJson(STATUS).get("history", [])
        if not plots.prior_rows(history):
            return self._absent("What the prior has chosen")
        return self._window(plots.draw_prior, history)

    def _showFsc(self, param=None):
        if not self._has("postprocess.star"):
            return self._absent("The final FSC")
        return self._window(plots.draw_fsc, self._curves("postprocess.star", "fsc", FSC_COLUMNS))

    def _showAngles(self, param=None):
        if not hasattr(self.protocol, "outputParticles"):
            return self._picture("run_it*_angles.png", "The angular distribution")
        matrices = [p.getTransform().getMatrix().copy() for p in self.protocol.outputParticles.iterItems()]
        return self._window(plots.draw_directions, matrices)

    def _showDifference(self, param=None):
        names = ("run_half1_bandlimit.mrc", "run_half2_bandlimit.mrc", "run_class001.mrc")
        if not all(self._has(name) for name in names):
            return self._absent("The maps of band limits of the halves")
        (first, pixel_size), (second, _), (density, _) = (self._map(name) for name in names)
        return self._window(plots.draw_slices, density, pixel_size, axis=SLICE_AXES[self.sliceAxis.get()],
                            colouring=np.log2(first / second), scale=(-2, 2), colour_map="coolwarm",
                            title="Band limits of half 1 over those of half 2",
                            label="log2 of their ratio", size=SQUARE)  # fmt: skip


class SparseCvMapViewer(SparseCvViewer):
    """Of post-processing and non-uniform filters."""

    _targets = [SparseCvProtPostprocess, SparseCvProtNuFilter]
    _label = "viewer sparsecv map"

    def _maps(self):
        if isinstance(self.protocol, SparseCvProtNuFilter):
            return [("sharpened and filtered map", "sharpened.mrc"), ("filtered map", "filtered.mrc"),
                    ("band limits (Å)", "bandlimit.mrc"), ("local resolution (Å)", "local_resolution.mrc")]
        return [("sharpened map", "postprocess.mrc"), ("sharpened map in the mask", "postprocess_masked.mrc"),
                ("mask", "postprocess_mask.mrc")]  # fmt: skip

    def _defineParams(self, form):
        form.addSection(label="Results")
        is_filter = isinstance(self.protocol, SparseCvProtNuFilter)
        if not is_filter:
            form.addParam("doShowFsc", params.LabelParam, label="Show all FSC curves", default=True)
        self._defineSlices(form.addGroup("Maps"))
        if is_filter:
            self._defineBandLimit(form, "bandlimit.mrc")

    def _getVisualizeDict(self):
        return {
            "doShowSlices": self._showSlices,
            "doShowFsc": self._showFsc,
            "doShowBandLimit": lambda _: self._bandLimit("sharpened.mrc", "bandlimit.mrc"),
            "doShowHistogram": lambda _: self._histogram({"band limit": "bandlimit.mrc",
                                                          "local resolution": "local_resolution.mrc"},
                                                         "Band limits and local resolution"),
            "doShowChimera": lambda _: self._script("bandlimit.cxc"),
        }  # fmt: skip

    def _showFsc(self, param=None):
        if not self._has("postprocess.star"):
            return self._absent("The FSC")
        return self._window(plots.draw_fsc, self._curves("postprocess.star", "fsc", FSC_COLUMNS))


class SparseCvCtfViewer(SparseCvViewer):
    """Of CTF refinements."""

    _targets = [SparseCvProtCtfRefine]
    _label = "viewer sparsecv CTF"

    def _groups(self):
        """Names of the optics groups that have a picture, and the pictures."""
        groups = self.protocol._readJson(NUMBERS).get("optics_groups", [])
        named = [(group["name"], "aberrations_optics%d.png" % group["number"]) for group in groups]
        return [(name, picture) for name, picture in named if self._has(picture)]

    def _defineParams(self, form):
        form.addSection(label="Results")
        form.addParam("doShowDefocus", params.LabelParam, label="Show the changes of defocus", default=True)
        form.addParam("doShowMap", params.LabelParam, label="Show defoci before and after, and across a micrograph")
        names = [name for name, _ in self._groups()]
        if names:
            group = form.addGroup("Aberrations")
            group.addParam("opticsGroup", params.EnumParam, choices=names, default=0, label="Optics group")
            group.addParam("doShowAberrations", params.LabelParam, label="Show its phases, measured and fitted")

    def _getVisualizeDict(self):
        return {"doShowDefocus": lambda _: self._picture(DEFOCUS_PICTURE, "The changes of defocus"),
                "doShowMap": self._showMap, "doShowAberrations": self._showAberrations}  # fmt: skip

    def _showMap(self, param=None):
        if not hasattr(self.protocol, "outputParticles"):
            return self._absent("The result")
        after, places = {}, {}
        for particle in self.protocol.outputParticles.iterItems(limit=MOST_SHOWN):
            after[particle.getObjId()] = mean_defocus(particle)
            coordinate = particle.getCoordinate()
            if coordinate is not None:
                place = coordinate.getPosition() + (mean_defocus(particle),)
                places.setdefault(coordinate.getMicName(), []).append(place)
        pairs = [(mean_defocus(particle), after[particle.getObjId()])
                 for particle in self.protocol.inputParticles.get().iterItems(limit=MOST_SHOWN)
                 if particle.getObjId() in after]  # fmt: skip
        most = max(places, key=lambda name: len(places[name]), default=None)
        return self._window(plots.draw_defoci, pairs, most, places.get(most, ()), size=FLAT)

    def _showAberrations(self, param=None):
        groups = self._groups()
        if not groups:
            return self._absent("A picture of aberrations")
        return self._picture(groups[self.opticsGroup.get()][1], "A picture of aberrations")


def mean_defocus(particle):
    """Mean defocus of a particle, A."""
    return (particle.getCTF().getDefocusU() + particle.getCTF().getDefocusV()) / 2


class SparseCvModelViewer(SparseCvViewer):
    """Of the validation against a model."""

    _targets = [SparseCvProtModelFsc]
    _label = "viewer sparsecv model"
    MAPS = [("map", "validate_map.mrc"), ("density of the model", "validate_model.mrc"), ("mask", "validate_mask.mrc")]

    def _defineParams(self, form):
        form.addSection(label="Results")
        form.addParam("doShowFsc", params.LabelParam, label="Show the curves of map against model", default=True)
        form.addParam("doShowResidues", params.LabelParam, label="Show the scores of residues")
        form.addParam("doShowPage", params.LabelParam, label="Open the page with everything in a browser")
        form.addParam("doShowChimera", params.LabelParam, label="Show the model coloured by Q-score in ChimeraX")
        self._defineSlices(form.addGroup("Maps"))

    def _getVisualizeDict(self):
        return {
            "doShowFsc": self._showFsc, "doShowResidues": self._showResidues,
            "doShowPage": lambda _: self._page("validate.html"),
            "doShowChimera": lambda _: self._script("scores.cxc"),
            "doShowSlices": self._showSlices,
        }  # fmt: skip

    def _showFsc(self, param=None):
        if not self._has("model_fsc.star"):
            return self._absent("The result")
        curves = self._curves("model_fsc.star", "model_fsc", MODEL_COLUMNS)
        return self._window(plots.draw_fsc, curves, title="Map against model")

    def _showResidues(self, param=None):
        if not self._has("residues.csv"):
            return self._absent("The result")
        with open(self._path("residues.csv"), newline="") as table:
            rows = list(csv.DictReader(table))
        if not any(row["polymer"] == "1" for row in rows):
            return [self.errorMessage("The model has no residues of a polymer.", title="Nothing to show")]
        return self._window(plots.draw_residues, rows)
