# SPDX-License-Identifier: GPL-3.0-or-later
"""What the viewers draw, on any matplotlib figure: no window, no Scipion object, so that it can be tested anywhere.

Colours are those of Okabe & Ito with a wine red, and the maps cividis and viridis: they can be told apart with any
colour vision. There are as many as the validation has curves.
"""

import numpy as np

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#882255")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 1)), "-", (0, (8, 2)))
THRESHOLDS = (0.5, 0.143)
AXES = {"z": (0, "x", "y"), "y": (1, "x", "z"), "x": (2, "y", "z")}
FEW_PANELS = 8
FINER = 24


def crossing(frequency, curve, threshold):
    """Return the resolution (A) where a curve first falls through a threshold after it was above, and a word for it.

    Returns
    -------
    tuple
        Resolution or None, and text: "4.21 Å", "above to 3.2 Å" (no crossing before the end), "never above".
    """
    frequency, curve = np.asarray(frequency, dtype=float), np.asarray(curve, dtype=float)
    above = np.flatnonzero(curve >= threshold)
    if len(above) == 0 or len(curve) < 2:
        return None, "never above"
    below = np.flatnonzero(~(curve[above[0] :] >= threshold)) + above[0]
    if len(below) == 0:
        return None, "above to %.2f Å" % (1 / frequency[-1])
    k = int(below[0])
    part = (curve[k - 1] - threshold) / max(curve[k - 1] - curve[k], 1e-12)
    resolution = 1 / (frequency[k - 1] + part * (frequency[k] - frequency[k - 1]))
    return resolution, "%.2f Å" % resolution


def draw_fsc(figure, curves, title="Fourier shell correlation"):
    """Draw curves (label, frequencies in 1/A, values) with both thresholds, and where each falls through them."""
    axes = figure.add_subplot(111)
    for number, (label, frequency, values) in enumerate(curves):
        if "random" not in label and "ceiling" not in label:
            at = ["%s at %g" % (crossing(frequency, values, threshold)[1], threshold) for threshold in THRESHOLDS]
            label = "%s: %s" % (label, ", ".join(at))
        axes.plot(frequency, values, color=COLOURS[number % len(COLOURS)], linestyle=STYLES[number % len(STYLES)],
                  linewidth=2.2 if number == 0 else 1.4, label=label)  # fmt: skip
    for threshold in THRESHOLDS:
        axes.axhline(threshold, color="0.5", linewidth=0.8, linestyle=(0, (4, 3)))
    axes.axhline(0, color="0.75", linewidth=0.8)
    last = max(np.max(frequency) for _, frequency, _ in curves)
    axes.set_xlim(0, last)
    axes.set_ylim(min(-0.1, min(np.min(values) for _, _, values in curves) - 0.03), 1.05)
    ticks = [t for t in axes.get_xticks() if 0 < t <= last]
    axes.set_xticks(ticks)
    axes.set_xticklabels(["%.2f\n%.1f Å" % (t, 1 / t) for t in ticks])
    axes.set_xlabel("spatial frequency (1/Å), resolution")
    axes.set_ylabel("correlation")
    axes.grid(color="0.92", linewidth=0.6)
    axes.legend(fontsize=8, framealpha=0.9)
    axes.set_title(title)


def draw_slices(figure, density, pixel_size, axis="z", count=4, colouring=None, scale=None, colour_map="viridis_r",
                title="Slices", label="Å"):  # fmt: skip
    """Draw slices of a map in grey, or in the colours of another one, as bright as the density.

    Parameters
    ----------
    density, colouring : numpy.ndarray
        (z, y, x).
    scale : tuple
        Ends of the colours.
    """
    import matplotlib

    number, across, up = AXES[axis]
    density = np.moveaxis(density, number, 0)
    places = np.linspace(0.3, 0.7, count) * (len(density) - 1)
    low, high = np.percentile(density, (1, 99.8))
    side = [0, density.shape[2] * pixel_size, 0, density.shape[1] * pixel_size]
    columns = 2 if count > 1 else 1
    cells = figure.add_gridspec(-(-count // columns), columns + 1, width_ratios=[1.0] * columns + [0.05])
    grid = [figure.add_subplot(cells[k // columns, k % columns]) for k in range(count)]
    if colouring is not None:
        colouring = np.moveaxis(colouring, number, 0)
        ends = scale or (float(colouring.min()), float(colouring.max()))
        norm = matplotlib.colors.Normalize(ends[0], ends[1] if ends[1] > ends[0] else ends[0] + 1)
        colours = matplotlib.cm.get_cmap(colour_map) if hasattr(matplotlib.cm, "get_cmap") else (
            matplotlib.colormaps[colour_map])  # fmt: skip
    for axes, place in zip(grid, places.astype(int)):
        image = density[place]
        if colouring is None:
            axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", extent=side)
        else:
            light = 0.35 + 0.65 * np.clip((image - low) / max(high - low, 1e-12), 0, 1)
            axes.imshow(colours(norm(colouring[place]))[:, :, :3] * light[:, :, None], origin="lower", extent=side)
        axes.set_title("%s = %.0f Å" % (axis, place * pixel_size), fontsize=9)
        axes.set_xlabel("%s (Å)" % across, fontsize=8)
        axes.set_ylabel("%s (Å)" % up, fontsize=8)
        axes.tick_params(labelsize=7)
    if colouring is not None:
        figure.colorbar(matplotlib.cm.ScalarMappable(norm, colours), cax=figure.add_subplot(cells[:, -1]), label=label)
    figure.suptitle(title)


def draw_histogram(figure, values, title, xlabel="resolution (Å)"):
    """Draw the share of voxels by value, a step line for each label."""
    axes = figure.add_subplot(111)
    whole = np.concatenate([np.ravel(part) for part in values.values()])
    edges = np.linspace(whole.min(), max(whole.max(), whole.min() + 1e-3), 41)
    for number, (label, part) in enumerate(values.items()):
        counts, _ = np.histogram(part, bins=edges)
        shares = np.concatenate(([0], 100.0 * counts / max(counts.sum(), 1), [0]))
        axes.step(np.append(edges[0], edges), shares, where="post", label=label,
                  color=COLOURS[number % len(COLOURS)], linestyle=STYLES[number % len(STYLES)])  # fmt: skip
    axes.set_xlabel(xlabel)
    axes.set_ylabel("voxels (%)")
    axes.grid(color="0.92", linewidth=0.6)
    axes.legend(fontsize=9)
    axes.set_title(title)


def _logarithmic(axes):
    """Give an axis decades and plain numbers: within one decade matplotlib writes 2 x 10^0."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    narrow = high < 100 * low
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if narrow else (1,), numticks=20))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_history(figure, history):
    """Draw the resolution and the changes of poses of each iteration."""
    iterations = [row["iteration"] for row in history]
    top, bottom = figure.add_subplot(211), figure.add_subplot(212)
    for number, (name, label) in enumerate((("resolution_0143", "FSC 0.143"), ("resolution_05", "FSC 0.5"))):
        top.plot(iterations, [row.get(name) or np.nan for row in history], marker="o", markersize=4, label=label,
                 color=COLOURS[number], linestyle=STYLES[number])  # fmt: skip
    top.set_ylabel("resolution (Å)")
    for number, (name, label) in enumerate((("turned_deg", "turned (degrees)"), ("moved_A", "moved (Å)"),
                                            ("spread_deg", "posterior spread (degrees)"))):  # fmt: skip
        bottom.plot(iterations, [row.get(name) if row.get(name) else np.nan for row in history], marker="o",
                    markersize=4, label=label, color=COLOURS[number], linestyle=STYLES[number])  # fmt: skip
    _logarithmic(bottom)
    bottom.set_xlabel("iteration")
    bottom.set_ylabel("median of the particles")
    for axes in (top, bottom):
        axes.grid(color="0.92", linewidth=0.6)
        axes.legend(fontsize=8)
        axes.set_xticks(iterations)
    figure.suptitle("Iterations")


def prior_rows(history):
    """Return (iteration, half, dictionary) of what the regulariser has said in each iteration."""
    found = []
    for row in history:
        said = row.get("regulariser")
        for half, part in enumerate(said if isinstance(said, list) else [], 1):
            if isinstance(part, dict):
                found.append((row["iteration"], half, part))
    return found


def draw_prior(figure, history):
    """Draw the strengths (kappas) of each half, or the share of voxels finer than the coarsest filter, by iteration.

    Returns
    -------
    bool
        Whether there was anything to be drawn.
    """
    rows = prior_rows(history)
    axes = figure.add_subplot(111)
    names = {"kappa_sparse": "sparsity", "kappa_variation": "total variation"}
    drawn = 0
    # halves often agree: a ring around a dot shows both
    marks = {1: {"marker": "o", "markersize": 5}, 2: {"marker": "o", "markersize": 11, "markerfacecolor": "none"}}
    for half, mark in marks.items():
        of_half = [(iteration, part) for iteration, number, part in rows if number == half]
        for number, (name, label) in enumerate(names.items()):
            points = [(iteration, part[name]) for iteration, part in of_half if isinstance(part.get(name), float)]
            if points:
                axes.plot(*zip(*points), color=COLOURS[number], linestyle=STYLES[half - 1],
                          label="%s, half %d" % (label, half), **mark)  # fmt: skip
                drawn += 1
        points = [(iteration, 100 * (1 - part["share"][0])) for iteration, part in of_half if part.get("share")]
        if points:
            axes.plot(*zip(*points), color=COLOURS[half - 1], linestyle=STYLES[half - 1],
                      label="half %d" % half, **mark)  # fmt: skip
            axes.set_ylabel("voxels finer than the coarsest filter (%)")
            drawn += 1
    if any(name in part for _, _, part in rows for name in names):
        axes.set_ylabel("kappa, in units of the noise")
        _logarithmic(axes)
    axes.set_xlabel("iteration")
    axes.set_xticks(sorted({iteration for iteration, _, _ in rows}))
    axes.grid(color="0.92", linewidth=0.6)
    if drawn:
        axes.legend(fontsize=8)
    axes.set_title("Prior")
    return drawn > 0


def draw_directions(figure, matrices):
    """Draw the density of view directions on the sphere; ``matrices`` are Scipion's, (n, 4, 4)."""
    beams = np.asarray(matrices)[:, :3, 2]  # third column of A^T: the beam in the frame of the map
    rows = int(np.clip(np.sqrt(len(beams) / 40), 6, 30))
    longitude = np.arctan2(beams[:, 1], beams[:, 0])
    counts, _, _ = np.histogram2d(np.clip(beams[:, 2], -1, 1), longitude, bins=(rows, 2 * rows),
                                  range=((-1, 1), (-np.pi, np.pi)))  # fmt: skip
    axes = figure.add_subplot(111, projection="mollweide")
    # each cell in many: those that are drawn have straight sides, which leave the outline of the sphere
    fine = np.repeat(np.repeat(counts / counts.mean(), FINER, axis=0), FINER, axis=1)
    shown = axes.pcolormesh(np.linspace(-np.pi, np.pi, fine.shape[1] + 1),
                            np.arcsin(np.linspace(-1, 1, fine.shape[0] + 1)), fine, cmap="cividis")  # fmt: skip
    axes.grid(color="white", linewidth=0.4, alpha=0.6)
    axes.set_xticklabels([])
    figure.colorbar(shown, ax=axes, shrink=0.7, label="density over uniform")
    empty = 100 * np.mean(counts == 0)
    axes.set_title("View directions of %d particles, %.0f %% of the sphere empty" % (len(beams), empty), pad=18)


def draw_residues(figure, rows):
    """Draw Q-score and correlation along each chain; of many chains the first eight."""
    chains = {}
    for row in rows:
        if row["polymer"] == "1":
            chains.setdefault(row["chain"], []).append(row)
    names = list(chains)[:FEW_PANELS]
    for number, name in enumerate(names):
        axes = figure.add_subplot(len(names), 1, number + 1)
        places = np.arange(len(chains[name]))
        for k, (column, label) in enumerate((("q_score", "Q-score"), ("cc", "correlation"))):
            axes.plot(places, [float(row[column] or "nan") for row in chains[name]], color=COLOURS[k],
                      linestyle=STYLES[k], linewidth=1.2, label=label)  # fmt: skip
        ticks = places[:: max(1, len(places) // 12)]
        axes.set_xticks(ticks)
        axes.set_xticklabels([chains[name][t]["residue"] for t in ticks], fontsize=7)
        axes.set_ylabel("chain %s" % name, fontsize=8)
        axes.set_ylim(top=1.02)
        axes.grid(color="0.92", linewidth=0.6)
        if number == 0:
            axes.legend(fontsize=8, ncol=2)
    if names:
        axes.set_xlabel("residue", fontsize=8)
    more = len(chains) - len(names)
    figure.suptitle("Residues" + (" (%d more chains in residues.csv)" % more if more > 0 else ""))


def draw_defoci(figure, pairs, micrograph=None, places=()):
    """Draw defoci after against before, A, and those of a micrograph's particles where they are in it.

    Parameters
    ----------
    pairs : list of tuple
        Mean defocus of each particle before and after.
    micrograph : str
        Name of the micrograph.
    places : list of tuple
        (x, y, defocus) of its particles, pixels and A; none: they have no coordinates.
    """
    from matplotlib.ticker import MaxNLocator

    before, after = np.array(pairs, dtype=float).T
    axes = figure.add_subplot(1, 2 if len(places) else 1, 1)
    axes.set_aspect("equal")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.grid(color="0.92", linewidth=0.6)
    ends = min(before.min(), after.min()), max(before.max(), after.max())
    axes.plot(ends, ends, color="0.6", linewidth=0.8)
    axes.plot(before, after, linestyle="", marker=".", markersize=3, color=COLOURS[0])
    axes.set_xlabel("mean defocus before (Å)")
    axes.set_ylabel("mean defocus after (Å)")
    axes.set_title("rms change %.0f Å" % np.sqrt(np.mean((after - before) ** 2)), fontsize=10)
    if len(places):
        x, y, defocus = np.array(places, dtype=float).T
        axes = figure.add_subplot(122)
        drawn = axes.scatter(x, y, c=defocus, s=16, cmap="viridis")
        figure.colorbar(drawn, ax=axes, label="mean defocus after (Å)", fraction=0.046, pad=0.04)
        axes.set_aspect("equal")
        axes.set_xlabel("x (pixels)")
        axes.set_ylabel("y (pixels)")
        axes.set_title("%s, %d particles" % (micrograph, len(places)), fontsize=10)
    figure.tight_layout()
