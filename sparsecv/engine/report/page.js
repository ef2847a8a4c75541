// Charts drawn from the numbers in the page, and a slider that moves pictures and charts through the iterations.
"use strict";
(() => {
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000"]; // Okabe & Ito
  const DASHES = ["", "7 4", "9 3 2 3", "2 3", "12 3", "5 2 1 2 1 2", "1 2"]; // tell lines apart without colour
  const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [560, 330, 62, 12, 12, 46];
  const SILENT_MINUTES = 30;
  const data = JSON.parse(document.getElementById("data").textContent);
  const drawn = [];

  function node(name, attributes, parent, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.appendChild(made);
    return made;
  }

  const digits = (value) => {
    if (!Number.isFinite(value)) return "-";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
    return String(Number(value.toPrecision(4)));
  };

  // Values at which an axis has a mark: 1, 2 or 5 times a power of ten; powers of ten on a logarithmic one.
  function marks(low, high, logarithmic) {
    const found = [];
    if (logarithmic && high - low < 0.7) return marks(10 ** low, 10 ** high, false).map(([at, text]) => [Math.log10(at), text]);
    if (logarithmic) {
      for (let power = Math.floor(low); power <= Math.ceil(high); power++) {
        for (const factor of high - low > 3 ? [1] : [1, 2, 5]) {
          const at = power + Math.log10(factor);
          if (at >= low - 1e-9 && at <= high + 1e-9) found.push([at, digits(10 ** at)]);
        }
      }
      return found;
    }
    const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n++) found.push([n * step, digits(n * step)]);
    return found;
  }

  // On an axis of spatial frequency, marks at round resolutions.
  function resolutionMarks(high) {
    const found = [];
    for (const size of [100, 50, 30, 20, 15, 12, 10, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.7, 2.4, 2.2, 2, 1.8, 1.6, 1.4, 1.2, 1]) {
      const last = found.length ? found[found.length - 1][0] : 0;
      if (1 / size <= high && 1 / size - last > 0.055 * high) found.push([1 / size, String(size)]);
    }
    return found;
  }

  class Chart {
    constructor(figure, spec) {
      this.spec = spec;
      this.figure = figure;
      this.frame = null;
      this.at = null; // index of the point that is read
      this.svg = node("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: "0",
        "aria-label": `${spec.caption} Left and right arrow keys read the values.` });
      this.legend = Object.assign(document.createElement("div"), { className: "legend" });
      this.read = Object.assign(document.createElement("div"), { className: "read" });
      this.read.setAttribute("aria-live", "polite");
      figure.prepend(this.svg, this.legend, this.read);
      this.svg.addEventListener("pointermove", (event) => this.point(event));
      this.svg.addEventListener("pointerleave", () => this.show(null));
      this.svg.addEventListener("keydown", (event) => this.key(event));
      this.draw();
    }

    value(y) { return this.spec.logarithmic ? (y > 0 ? Math.log10(y) : NaN) : y; }

    // Lines of the frame that is shown; without frames, all.
    current() { return this.spec.lines.filter((line) => line.frame === undefined || line.frame === this.frame); }

    ranges() {
      const xs = [], ys = [];
      for (const line of this.spec.others ? this.spec.lines : this.current()) {
        line.y.forEach((y, n) => {
          const value = y === null ? NaN : this.value(y);
          if (Number.isFinite(value) && line.x[n] !== null) { xs.push(line.x[n]); ys.push(value); }
        });
      }
      const least = (all) => all.reduce((a, b) => Math.min(a, b), Infinity);
      const most = (all) => all.reduce((a, b) => Math.max(a, b), -Infinity);
      let [left, right, low, high] = xs.length ? [least(xs), most(xs), least(ys), most(ys)] : [0, 1, 0, 1];
      if (this.spec.y_range) [low, high] = [Math.min(low, this.spec.y_range[0]), this.spec.y_range[1]];
      else {
        if (!this.spec.logarithmic && low > 0 && low < 0.7 * high) low = 0;
        const room = (high - low || Math.abs(high) || 1) * 0.06;
        high += room;
        if (low !== 0 || this.spec.logarithmic) low -= room;
      }
      if (this.spec.x_axis === "iteration") { left -= 0.5; right += 0.5; }
      if (this.spec.x_axis === "frequency") left = 0;
      if (right === left) right = left + 1;
      return [left, right, low, high];
    }

    draw() {
      const { spec, svg } = this, [left, right, low, high] = this.ranges();
      const X = (x) => LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT);
      const Y = (y) => HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM);
      Object.assign(this, { X, Y, left, right });
      svg.replaceChildren();
      let across = marks(left, right, false);
      if (spec.x_axis === "frequency") across = resolutionMarks(right);
      if (spec.x_axis === "iteration") across = across.filter(([at]) => Number.isInteger(at));
      for (const [at, text] of across) {
        node("line", { x1: X(at), x2: X(at), y1: TOP, y2: HEIGHT - BOTTOM, stroke: "#eee" }, svg);
        node("text", { x: X(at), y: HEIGHT - BOTTOM + 17, "text-anchor": "middle" }, svg, text);
      }
      for (const [at, text] of marks(low, high, spec.logarithmic)) {
        node("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: Y(at), y2: Y(at), stroke: "#eee" }, svg);
        node("text", { x: LEFT - 6, y: Y(at) + 4, "text-anchor": "end" }, svg, text);
      }
      for (const level of spec.thresholds || []) {
        node("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: Y(level), y2: Y(level), stroke: "#777", "stroke-dasharray": "4 3" }, svg);
        node("text", { x: WIDTH - RIGHT - 2, y: Y(level) - 4, "text-anchor": "end" }, svg, digits(level));
      }
      node("rect", { x: LEFT, y: TOP, width: WIDTH - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM, fill: "none", stroke: "#999" }, svg);
      node("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, svg, spec.x_label);
      const middle = (TOP + HEIGHT - BOTTOM) / 2;
      node("text", { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` }, svg, spec.y_label);
      const current = this.current();
      for (const line of spec.others ? spec.lines : []) {
        if (!current.includes(line)) this.line(line, { stroke: "#ccc", "stroke-width": 1 });
      }
      this.legend.replaceChildren();
      current.forEach((line, number) => {
        const look = { stroke: COLOURS[number % COLOURS.length], "stroke-width": 2.2, "stroke-dasharray": DASHES[number % DASHES.length] };
        this.line(line, look);
        const entry = document.createElement("span"), swatch = node("svg", { viewBox: "0 0 30 10", "aria-hidden": "true" });
        node("line", { x1: 0, x2: 30, y1: 5, y2: 5, ...look }, swatch);
        entry.append(swatch, line.label);
        this.legend.append(entry);
      });
      this.cursor = node("line", { y1: TOP, y2: HEIGHT - BOTTOM, stroke: "#333", visibility: "hidden" }, svg);
      this.show(this.at);
    }

    line(line, look) {
      let path = "", pen = "M";
      const points = [];
      line.y.forEach((y, n) => {
        const value = y === null ? NaN : this.value(y);
        if (!Number.isFinite(value)) { pen = "M"; return; }
        const place = `${this.X(line.x[n]).toFixed(1)} ${this.Y(value).toFixed(1)}`;
        path += `${pen}${place}`;
        points.push(place.split(" "));
        pen = "L";
      });
      node("path", { d: path, fill: "none", "stroke-linejoin": "round", ...look }, this.svg);
      if (points.length <= 40 && look.stroke !== "#ccc" && this.spec.x_axis === "iteration") {
        for (const [cx, cy] of points) node("circle", { cx, cy, r: 3, fill: look.stroke }, this.svg);
      }
    }

    point(event) {
      const box = this.svg.getBoundingClientRect(), current = this.current();
      if (!current.length) return;
      const x = this.left + ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (this.right - this.left);
      let best = 0;
      current[0].x.forEach((at, n) => { if (Math.abs(at - x) < Math.abs(current[0].x[best] - x)) best = n; });
      this.show(best);
    }

    key(event) {
      const last = (this.current()[0] || { x: [] }).x.length - 1;
      const to = { ArrowRight: (this.at ?? -1) + 1, ArrowLeft: (this.at ?? 1) - 1, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      this.show(Math.max(0, Math.min(last, to)));
    }

    // Put the values at a point under the chart, in words.
    show(at) {
      this.at = at;
      const current = this.current();
      if (at === null || !current.length || at >= current[0].x.length) {
        this.at = null;
        this.cursor.setAttribute("visibility", "hidden");
        this.read.textContent = "";
        return;
      }
      const x = current[0].x[at];
      const where = this.spec.x_axis === "frequency" ? (x > 0 ? `${digits(1 / x)} Å` : "infinity") : digits(x);
      const values = current.filter((line) => line.x[at] === x).map((line) => `${line.label} ${digits(line.y[at] ?? NaN)}`);
      this.read.textContent = `${where}: ${values.join(", ")}`;
      for (const side of ["x1", "x2"]) this.cursor.setAttribute(side, this.X(x));
      this.cursor.setAttribute("visibility", "visible");
    }

    move(frame) {
      this.frame = frame;
      if (this.spec.lines.some((line) => line.frame !== undefined)) this.draw();
    }
  }

  document.querySelectorAll("figure.chart").forEach((figure) => drawn.push(new Chart(figure, data.charts[Number(figure.dataset.chart)])));

  // A run that was killed cannot say so; one that goes on writes again.
  const silent = data.written === null ? 0 : Math.round((Date.now() / 1000 - data.written) / 60);
  if (silent >= SILENT_MINUTES) {
    const note = Object.assign(document.createElement("p"), { className: "warning" });
    note.textContent = `Nothing has been written for ${silent} minutes: an iteration may take long, or the run may have ended.`;
    document.querySelector("h1").after(note);
  }

  const slider = document.querySelector(".slider input");
  if (!slider) return;
  const frames = document.querySelectorAll("figure.frames"), output = document.querySelector(".slider output");
  const { positions, labels } = data.slider;
  // The newest picture that is not newer than the position: not every iteration has every picture.
  function move() {
    const frame = positions[slider.value];
    output.value = labels[slider.value];
    slider.setAttribute("aria-valuetext", labels[slider.value]);
    for (const figure of frames) {
      let chosen = null;
      for (const image of figure.querySelectorAll("img")) {
        image.hidden = true;
        if (chosen === null || Number(image.dataset.frame) <= frame) chosen = image;
      }
      if (chosen) chosen.hidden = false;
    }
    for (const chart of drawn) chart.move(frame);
  }
  slider.addEventListener("input", () => {
    history.replaceState(null, "", slider.value === slider.max ? "#" : `#iteration-${positions[slider.value]}`);
    move();
  });
  const asked = positions.indexOf(Number((location.hash.match(/^#iteration-(\d+)$/) || [])[1]));
  slider.value = asked >= 0 ? asked : slider.max; // where a reload of a running refinement finds it again
  move();
})();
