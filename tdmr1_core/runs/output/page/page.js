"use strict";
/* Builds the page of a report from its data. A live page asks its server for new data and keeps zoom and positions. */

const Page = (() => {
  const { make } = Images;
  const SECTIONS = [
    ["overview", "Overview"], ["rewards", "Rewards"], ["evaluations", "Evaluations"], ["images", "Images"],
    ["training", "Training"], ["guard", "Guard"], ["cost", "Time and memory"], ["other", "Other metrics"],
    ["history", "Continuations"], ["skipped", "Skipped"], ["settings", "Settings"], ["environment", "Environment"],
  ];
  const LONG = 300, STRONG = 0.9;
  const POLL = 2000, RETRY = 5000, SHORT = 28;
  const charts = new Map();
  const blocks = new Map();

  /* A table; rows that differ are marked with a color and a sign. */
  function table({ columns, rows, caption, sign = "", marked = [], bold = [] }) {
    const strong = new Set(bold.map(([row, column]) => `${row},${column}`));
    const content = make("table", {},
      make("thead", {}, make("tr", {}, ...columns.map((column) => make("th", { scope: "col" }, column)))),
      make("tbody", {}, ...rows.map((cells, row) => make("tr", { class: marked.includes(row) ? "marked" : "" },
        ...cells.map((cell, column) => {
          const text = strong.has(`${row},${column}`) ? make("strong", {}, cell) : cell;
          if (column) return make("td", { class: cell.length > SHORT ? "" : "short" }, text);
          return make("th", { scope: "row" }, marked.includes(row) ? sign : "", text);
        })))));
    const scroll = make("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": caption || columns.join(", ") }, content);
    return make("div", {}, caption ? make("p", { class: "note" }, caption) : null, scroll);
  }

  function overview(run, index, several) {
    const box = make("div", { class: "run" }, several ? make("h3", {}, run.name) : null,
      make("dl", {}, ...run.facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])),
      ...run.links.map((link) => make("p", {},
        link.href ? make("a", { href: link.href }, link.text) : `${link.text}: `,
        link.href && link.command ? ": " : null,
        link.command ? make("code", {}, link.command) : link.href ? null : make("code", {}, link.path))),
      ...run.alarms.map((alarm) => make("p", { class: "alarm" }, `Guard alarm after iteration ${alarm.step}: ${alarm.text}`)));
    if (several) box.style.setProperty("--run", `var(--c${index % 8})`);
    return box;
  }

  /* The parts of a section other than its charts, as functions by name; each is built again only if its data change. */
  function partsOf(name, data) {
    const several = data.runs.length > 1, tables = data.tables[name] ?? [];
    if (name === "overview")
      return [["runs", data.runs, () => make("div", { class: "runs" }, ...data.runs.map((run, i) => overview(run, i, several)))]];
    if (name === "images") return data.images.map((images) => [images.run, images, () => Images.ofRun(images, several)]);
    const notes = {
      settings: several
        ? "A sign ≠ marks settings that differ between the runs. Bold values differ from the preset that is closest to the run."
        : "Bold values differ from the preset that is closest to the run.",
      environment: several ? "A sign ≠ marks what differs between the runs." : "",
    };
    const note = tables.length && notes[name] ? [["note", notes[name], () => make("p", { class: "note" }, notes[name])]] : [];
    return [...note, ...tables.map((each, number) => [`table ${number}`, each, () => table(each)])];
  }

  function section(name, title) {
    let found = document.getElementById(name);
    if (!found) {
      found = make("section", { id: name, "aria-labelledby": `${name}-title` }, make("h2", { id: `${name}-title` }, title),
        make("div", { class: "charts" }), make("div", { class: "parts" }));
      document.getElementById("main").append(found);
    }
    return found;
  }

  /* Put the parts into a section. A part whose data are the same stays as it is. */
  function fill(parent, name, parts) {
    parent.replaceChildren(...parts.map(([key, content, build]) => {
      const id = `${name}/${key}`, text = JSON.stringify(content), former = blocks.get(id);
      if (former?.text === text) return former.element;
      const kept = former?.element.querySelector(".slider input"), element = build(), slider = element.querySelector(".slider input");
      if (kept && slider && kept.value !== kept.max) {
        slider.value = kept.value;
        slider.dispatchEvent(new Event("input"));
      }
      blocks.set(id, { text, element });
      return element;
    }));
  }

  function fillCharts(parent, wanted) {
    const figures = wanted.map((data) => {
      const key = Charts.keyOf(data), chart = charts.get(key);
      if (chart) chart.update(data);
      else charts.set(key, Charts.create(data));
      return charts.get(key).figure;
    });
    if (figures.length !== parent.children.length || figures.some((figure, i) => parent.children[i] !== figure))
      parent.replaceChildren(...figures);
  }

  function render(data) {
    Images.use(data.files);
    document.title = data.title;
    document.getElementById("title").textContent = data.title;
    document.getElementById("written").textContent = `Report of ${data.written}`;
    const byRun = data.runs.length > 1;
    data.charts.forEach((chart) => { chart.byRun = byRun; });
    const marks = data.runs.flatMap((run) => [
      ...run.alarms.map((alarm) => ({ step: alarm.step, alarm: true })),
      ...run.continuations.map((step) => ({ step, alarm: false })),
    ]);
    const keys = new Set(data.charts.map(Charts.keyOf));
    for (const [key, chart] of charts) {
      if (!keys.has(key)) {
        chart.remove();
        charts.delete(key);
      }
    }
    const shown = [];
    for (const [name, title] of SECTIONS) {
      const wanted = data.charts.filter((chart) => chart.section === name), parts = partsOf(name, data);
      if (!wanted.length && !parts.length) {
        document.getElementById(name)?.remove();
        continue;
      }
      const found = section(name, title);
      fillCharts(found.querySelector(".charts"), wanted);
      fill(found.querySelector(".parts"), name, parts);
      document.getElementById("main").append(found);
      shown.push([name, title]);
    }
    Charts.setExtent(data.charts, marks);
    chooseSmoothing();
    const menu = make("ul", {}, ...shown.map(([name, title]) => make("li", {}, make("a", { href: `#${name}`, onclick: jump }, title))));
    document.getElementById("contents").replaceChildren(menu);
    document.getElementById("controls").hidden = !data.charts.length;
    if (marks.length) addLegendOfMarks(marks);
  }

  /* A long run begins with strong smoothing, because its noise would cover its course. */
  function chooseSmoothing() {
    const slider = document.getElementById("smoothing"), [first, last] = Charts.state.full;
    if (slider.dataset.chosen || last - first < LONG) return;
    slider.value = STRONG;
    slider.dispatchEvent(new Event("input"));
  }

  /* Go to a section. The address of a live page keeps its token, so that it can be loaded again. */
  function jump(event) {
    if (location.protocol === "file:") return;
    event.preventDefault();
    document.querySelector(event.target.getAttribute("href")).scrollIntoView();
  }

  function addLegendOfMarks(marks) {
    const words = [marks.some((mark) => mark.alarm) ? "Dashed red lines are guard alarms." : "",
      marks.some((mark) => !mark.alarm) ? "Dotted lines are continuations of a run." : ""];
    const note = document.getElementById("marks") ?? make("p", { id: "marks", class: "note" });
    note.textContent = words.join(" ").trim();
    document.querySelector("#rewards h2, #training h2")?.after(note);
  }

  function listen() {
    const [smoothing, value, from, to, reset] = ["smoothing", "smoothing-value", "from", "to", "reset"].map((id) => document.getElementById(id));
    smoothing.addEventListener("input", () => {
      smoothing.dataset.chosen = "true";
      value.textContent = smoothing.value;
      Charts.setSmoothing(Number(smoothing.value));
    });
    const typed = () => Charts.setRange([from, to].map((input, end) => (input.value === "" ? Charts.state.full[end] : Number(input.value))));
    from.addEventListener("change", typed);
    to.addEventListener("change", typed);
    reset.addEventListener("click", () => Charts.setRange(null));
    Charts.onRange((range, full) => {
      const [first, last] = range ?? full;
      from.value = Math.round(first);
      to.value = Math.round(last);
      reset.disabled = !range;
    });
  }

  /* Ask the server for new data, with the token from the address. */
  async function follow(token) {
    let version = "", written = "";
    const status = document.getElementById("written");
    for (;;) {
      let pause = POLL;
      try {
        const response = await fetch(`/api/data?version=${encodeURIComponent(version)}`, { headers: { Authorization: `Bearer ${token}` } });
        if (response.status === 401) {
          status.textContent = "This link does not work. Open the complete link that tdmr1 printed, including the part after the #.";
          return;
        }
        const answer = await response.json();
        if (!response.ok) throw new Error(answer.error);
        if (answer.data) {
          render(answer.data);
          written = status.textContent;
        }
        ({ version } = answer);
        status.textContent = written;
      } catch (error) {
        pause = RETRY;
        const reason = error instanceof TypeError ? "not connected" : error.message;
        status.textContent = `${written} (${reason})`.trim();
      }
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }

  function start() {
    listen();
    const data = JSON.parse(document.getElementById("data").textContent);
    if (data) render(data);
    else follow(location.hash.slice(1));
  }

  return { table, start };
})();

Page.start();
