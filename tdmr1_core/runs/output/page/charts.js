"use strict";
/* Charts of a report, drawn by uPlot. All charts share the shown iterations and the smoothing. */

const Charts = (() => {
  const COLORS = 8, DASHES = [[], [8, 4], [2, 3]], FLAT = 1e-3, DRAG = 6;
  const drawn = new Set(), waiting = new Set();
  const shared = { range: null, smoothing: 0, full: [0, 1], marks: [] };
  let changed = () => {};

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const color = (index) => style(`--c${index % COLORS}`);

  /* A number for people: four significant digits, without an exponent where that is readable. */
  function format(value) {
    if (value == null) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-4 || size >= 1e7)) return value.toExponential(2);
    return String(Number(value.toPrecision(size >= 1000 ? 6 : 4)));
  }

  /* The range of the vertical axis. A curve that is nearly flat keeps a range that shows it as flat. */
  function rangeOf(min, max, kind) {
    if (min == null || max == null) return [0, 1];
    if (kind === "fraction") return [0, max > 0 ? Math.min(1.02, max * 1.12) : 1];
    if (kind === "positive" && min >= 0) return [0, max > 0 ? max * 1.08 : 1];
    const size = Math.max(Math.abs(min), Math.abs(max));
    let pad = (max - min) * 0.06;
    if (max - min <= size * FLAT) pad = Math.max(pad, size * 0.05);
    if (size === 0) pad = 0.5;
    return [min - pad, max + pad];
  }

  /* The exponential mean of the values so far, without the bias of its start. Missing values stay missing. */
  function smooth(values, strength) {
    if (!strength) return values;
    let sum = 0, weight = 0;
    return values.map((value) => {
      if (value == null) return value;
      sum = sum * strength + value * (1 - strength);
      weight = weight * strength + (1 - strength);
      return sum / weight;
    });
  }

  /* The index of the nearest value of a series that has one. */
  function nearest(plot, series, index) {
    const values = plot.data[series];
    for (let distance = 0; distance < values.length; distance++) {
      if (values[index - distance] != null) return index - distance;
      if (values[index + distance] != null) return index + distance;
    }
    return index;
  }

  function ticks(plot, splits, axis, space, step) {
    let digits = 0;
    while (digits < 7 && Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) > 1e-6) digits++;
    return splits.map((value) => {
      if (value == null) return "";
      const size = Math.abs(value);
      return size !== 0 && (size >= 1e6 || digits > 5) ? value.toExponential(1) : value.toFixed(digits);
    });
  }

  class Chart {
    constructor(data) {
      this.data = data;
      this.plot = null;
      this.hidden = new Set();
      this.figure = document.createElement("figure");
      this.figure.className = "chart";
      this.host = document.createElement("div");
      this.host.className = "plot";
      this.host.tabIndex = 0;
      this.host.setAttribute("role", "img");
      this.tip = document.createElement("div");
      this.tip.className = "tip";
      this.tip.hidden = true;
      this.legend = document.createElement("ul");
      this.legend.className = "legend";
      const caption = document.createElement("figcaption"), title = document.createElement("h3");
      title.textContent = data.title;
      caption.append(title);
      if (data.note) {
        const note = document.createElement("p");
        note.className = "note";
        note.textContent = data.note;
        caption.append(note);
      }
      this.figure.append(caption, this.legend, this.host);
      this.host.addEventListener("keydown", (event) => this.move(event));
      this.host.addEventListener("blur", () => this.hide());
      this.describe();
      waiting.add(this);
      seen.observe(this.figure);
    }

    get key() { return Chart.keyOf(this.data); }

    static keyOf(data) {
      return JSON.stringify([data.section, data.title, data.series.map((each) => [each.run, each.name, each.sparse, !!each.e])]);
    }

    /* The text of the chart for those who do not see it, and its legend. */
    describe() {
      const parts = this.data.series.map((each) => {
        const last = each.y.length - 1, low = Math.min(...each.y), high = Math.max(...each.y);
        return `${each.name}: ${format(each.y[0])} at iteration ${each.x[0]}, ${format(each.y[last])} at iteration ` +
          `${each.x[last]}, from ${format(low)} to ${format(high)}`;
      });
      this.host.setAttribute("aria-label", `Line chart of ${this.data.title}. ${parts.join(". ")}. Arrow keys read values.`);
      if (this.data.series.length < 2) return;
      this.legend.replaceChildren(...this.data.series.map((each, index) => {
        const item = document.createElement("li"), button = document.createElement("button"), swatch = document.createElement("span");
        button.type = "button";
        button.setAttribute("aria-pressed", String(!this.hidden.has(index)));
        swatch.className = "swatch";
        swatch.style.color = `var(--c${this.colorOf(index) % COLORS})`;
        button.append(swatch, each.name);
        button.addEventListener("click", () => this.toggle(index, button));
        item.append(button);
        return item;
      }));
    }

    colorOf(index) { return this.data.byRun ? this.data.series[index].run : index; }

    toggle(index, button) {
      const hide = !this.hidden.has(index);
      this.hidden[hide ? "add" : "delete"](index);
      button.setAttribute("aria-pressed", String(!hide));
      this.parts.forEach((part, number) => {
        if (part.index === index) this.plot?.setSeries(number + 1, { show: this.shows(part) });
      });
    }

    shows(part) { return !this.hidden.has(part.index) && (part.kind !== "raw" || shared.smoothing > 0); }

    /* What uPlot draws: for each curve its line, the raw line behind a smoothed one, and the ends of its spread. */
    get parts() {
      return this.data.series.flatMap((each, index) =>
        ["line", ...(each.sparse ? [] : ["raw"]), ...(each.e ? ["low", "high"] : [])].map((kind) => ({ index, kind })));
    }

    values() {
      const columns = this.data.series.map((each) => {
        const strength = each.sparse ? 0 : shared.smoothing;
        /* Of a thinned curve, the means of its ranges are smoothed: its points are only minima and maxima. */
        const [y, e] = strength ? [each.m ?? each.y, each.em ?? each.e] : [each.y, each.e];
        const line = smooth(y, strength), spread = e && smooth(e, strength);
        const ends = spread ? [line.map((value, i) => value - spread[i]), line.map((value, i) => value + spread[i])] : [];
        return [each.x, line, ...(each.sparse ? [] : [each.y]), ...ends];
      });
      return columns.length === 1 ? columns[0] : uPlot.join(columns);
    }

    options() {
      const ink = () => style("--muted"), grid = { stroke: () => style("--line"), width: 1 };
      const font = "12px system-ui, sans-serif";
      const series = this.parts.map((part) => this.seriesOf(part));
      const bands = [];
      this.parts.forEach((part, number) => {
        if (part.kind === "high" && !this.data.series[part.index].sparse)
          bands.push({ series: [number + 1, number], fill: () => `${color(this.colorOf(part.index))}2e` });
      });
      return {
        width: Math.max(200, this.host.clientWidth),
        height: this.host.clientHeight,
        legend: { show: false },
        scales: {
          x: { time: false, range: (plot, min, max) => (min === max ? [min - 1, max + 1] : [min, max]) },
          y: { range: (plot, min, max) => rangeOf(min, max, this.data.range) },
        },
        axes: [
          { stroke: ink, grid, ticks: grid, font, label: "iteration", labelFont: font, labelSize: 18, size: 30, space: 60,
            incrs: [1, 2, 5].flatMap((n) => [n, n * 10, n * 100, n * 1e3, n * 1e4, n * 1e5]).sort((a, b) => a - b) },
          { stroke: ink, grid, ticks: grid, font, label: this.data.axis, labelFont: font, labelSize: 18, values: ticks,
            size: (plot, values) => 22 + 7 * Math.max(1, ...(values ?? []).map((value) => value.length)) },
        ],
        series: [{}, ...series],
        bands,
        cursor: {
          y: false,
          sync: { key: "report", setSeries: false, scales: ["x", null], filters: { pub: (type) => !/^(mousedown|mouseup|dblclick)$/.test(type) } },
          drag: { x: true, y: false, setScale: false, dist: DRAG },
          dataIdx: nearest,
          points: { size: 7 },
          bind: { dblclick: () => () => setRange(null) },
        },
        hooks: {
          setSelect: [(plot) => this.zoom(plot)],
          setCursor: [(plot) => this.show(plot)],
          draw: [(plot) => this.drawMarks(plot)],
        },
      };
    }

    seriesOf(part) {
      const { index, kind } = part, curve = this.data.series[index], stroke = () => color(this.colorOf(index));
      const show = this.shows(part);
      if (kind === "low" || kind === "high")
        return { show, stroke: "transparent", width: 0, spanGaps: true, points: { show: false } };
      if (kind === "raw")
        return { show, stroke: () => `${color(this.colorOf(index))}59`, width: 1, spanGaps: true, points: { show: false } };
      const dash = this.data.byRun ? DASHES[Math.floor(curve.run / COLORS) % DASHES.length] : [];
      const few = curve.sparse || curve.x.length < 3;
      return { show, label: curve.name, stroke, width: 1.75, dash, spanGaps: true, points: { show: few, size: 6, fill: stroke } };
    }

    draw() {
      waiting.delete(this);
      if (this.plot || !this.host.isConnected) return;
      this.plot = new uPlot(this.options(), this.values(), this.host);
      this.plot.over.append(this.tip);
      this.plot.over.addEventListener("mouseleave", () => this.hide());
      drawn.add(this);
      sizes.observe(this.host);
      this.applyRange();
    }

    applyRange() {
      const [min, max] = shared.range ?? shared.full, margin = shared.range ? 0 : (max - min) * 0.012;
      this.plot.setScale("x", { min: min - margin, max: max + margin });
    }

    redraw() { this.plot?.redraw(false, true); }

    /* New values of the same curves, as a running training writes them. The shown iterations stay. */
    update(data) {
      this.data = data;
      this.describe();
      this.refresh();
    }

    refresh() {
      if (!this.plot) return;
      this.plot.setData(this.values(), false);
      this.parts.forEach((part, number) => this.plot.setSeries(number + 1, { show: this.shows(part) }));
      this.applyRange();
    }

    remove() {
      waiting.delete(this);
      drawn.delete(this);
      seen.unobserve(this.figure);
      sizes.unobserve(this.host);
      this.plot?.destroy();
      this.figure.remove();
    }

    zoom(plot) {
      const { left, width } = plot.select;
      if (width >= DRAG) setRange([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")]);
      if (width) plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    }

    show(plot) {
      const { left, idx } = plot.cursor;
      const active = plot.over.matches(":hover") || document.activeElement === this.host;
      if (!active || idx == null || left == null || left < 0) return this.hide();
      const heading = document.createElement("strong");
      heading.textContent = `iteration ${plot.data[0][idx]}`;
      const lines = this.parts.flatMap((part, number) => {
        if (part.kind !== "line" || this.hidden.has(part.index)) return [];
        const curve = this.data.series[part.index], at = plot.cursor.idxs?.[number + 1] ?? idx;
        const middle = plot.data[number + 1][at];
        const low = curve.e ? plot.data[number + (curve.sparse ? 2 : 3)][at] : null;
        const line = document.createElement("div"), swatch = document.createElement("span");
        swatch.className = "swatch";
        swatch.style.color = `var(--c${this.colorOf(part.index) % COLORS})`;
        line.append(swatch, `${curve.name} ${format(middle)}${low == null ? "" : ` ± ${format(middle - low)}`}`);
        return [line];
      });
      this.tip.replaceChildren(heading, ...lines);
      this.tip.hidden = false;
      const room = plot.over.clientWidth, right = left > room / 2;
      this.tip.style.left = right ? "auto" : `${left + 12}px`;
      this.tip.style.right = right ? `${room - left + 12}px` : "auto";
    }

    hide() { this.tip.hidden = true; }

    /* Arrow keys move the reading line from point to point. */
    move(event) {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") return this.hide();
      if (!step || !this.plot) return;
      event.preventDefault();
      const { data, cursor, scales } = this.plot, last = data[0].length - 1;
      const from = cursor.idx ?? (step > 0 ? -1 : last + 1);
      let index = Math.max(0, Math.min(last, from + step));
      while (data[0][index] < scales.x.min && index < last) index++;
      while (data[0][index] > scales.x.max && index > 0) index--;
      this.plot.setCursor({ left: this.plot.valToPos(data[0][index], "x"), top: 10 });
      this.host.setAttribute("aria-description", this.tip.innerText);
    }

    /* Intervals of single points, and lines at alarms and continuations of the runs. */
    drawMarks(plot) {
      const { ctx, bbox } = plot, ratio = devicePixelRatio;
      ctx.save();
      ctx.beginPath();
      ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
      ctx.clip();
      ctx.lineWidth = ratio;
      for (const mark of shared.marks) {
        const x = plot.valToPos(mark.step, "x", true);
        ctx.strokeStyle = style(mark.alarm ? "--bad" : "--muted");
        ctx.setLineDash(mark.alarm ? [6 * ratio, 3 * ratio] : [2 * ratio, 3 * ratio]);
        line(ctx, x, bbox.top, x, bbox.top + bbox.height);
      }
      ctx.setLineDash([]);
      this.parts.forEach((part, number) => {
        const curve = this.data.series[part.index];
        if (part.kind !== "line" || !curve.sparse || !curve.e || this.hidden.has(part.index)) return;
        ctx.strokeStyle = color(this.colorOf(part.index));
        ctx.lineWidth = 1.5 * ratio;
        curve.x.forEach((step, i) => {
          const x = plot.valToPos(step, "x", true);
          const [top, bottom] = [curve.y[i] + curve.e[i], curve.y[i] - curve.e[i]].map((value) => plot.valToPos(value, "y", true));
          line(ctx, x, top, x, bottom);
          for (const y of [top, bottom]) line(ctx, x - 3 * ratio, y, x + 3 * ratio, y);
        });
      });
      ctx.restore();
    }
  }

  function line(ctx, x0, y0, x1, y1) {
    ctx.beginPath();
    ctx.moveTo(x0, y0);
    ctx.lineTo(x1, y1);
    ctx.stroke();
  }

  const byFigure = new WeakMap(), byHost = new WeakMap();
  const seen = new IntersectionObserver(
    (entries) => entries.forEach((entry) => entry.isIntersecting && byFigure.get(entry.target)?.draw()),
    { rootMargin: "600px" },
  );
  const sizes = new ResizeObserver((entries) => entries.forEach(({ target }) => {
    const { plot } = byHost.get(target) ?? {};
    if (plot && target.clientWidth && target.clientWidth !== plot.width)
      plot.setSize({ width: Math.max(200, target.clientWidth), height: target.clientHeight });
  }));

  function create(data) {
    const chart = new Chart(data);
    byFigure.set(chart.figure, chart);
    byHost.set(chart.host, chart);
    return chart;
  }

  /* Show the iterations [from, to] in all charts; null for all. */
  function setRange(range) {
    const [first, last] = shared.full;
    const kept = range && [Math.max(first, range[0]), Math.min(last, range[1])];
    shared.range = kept && kept[1] > kept[0] && (kept[0] > first || kept[1] < last) ? kept : null;
    drawn.forEach((chart) => chart.applyRange());
    changed(shared.range, shared.full);
  }

  function setSmoothing(strength) {
    shared.smoothing = strength;
    drawn.forEach((chart) => chart.refresh());
  }

  /* The iterations of all charts, and the marks at alarms and continuations. */
  function setExtent(charts, marks) {
    let [first, last] = [Infinity, -Infinity];
    for (const chart of charts)
      for (const { x } of chart.series) [first, last] = [Math.min(first, x[0]), Math.max(last, x[x.length - 1])];
    if (!Number.isFinite(first)) [first, last] = [0, 1];
    shared.full = first === last ? [first - 1, last + 1] : [first, last];
    shared.marks = marks;
    setRange(shared.range);
  }

  function drawAll() {
    [...waiting].forEach((chart) => chart.draw());
    drawn.forEach((chart) => chart.redraw());
  }

  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("print");
    drawAll();
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("print");
    drawAll();
  });
  for (const query of ["print", "(prefers-color-scheme: dark)"]) matchMedia(query).addEventListener("change", drawAll);

  return {
    create, setRange, setSmoothing, setExtent, format, drawn,
    keyOf: Chart.keyOf,
    onRange: (listener) => { changed = listener; },
    state: shared,
    rangeOf, smooth,
  };
})();
