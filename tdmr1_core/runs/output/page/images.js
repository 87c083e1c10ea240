"use strict";
/* Images of a report: grids with a slider, pairs before and after, the best and the worst image of groups. */

const Images = (() => {
  const SMALL = 200;
  let files = [];

  /* Make an element with attributes, properties and children. Texts never become markup. */
  function make(tag, settings = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(settings)) {
      if (value == null || value === false) continue;
      if (name === "class") element.className = value;
      else if (name in element && name !== "list") element[name] = value;
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child != null));
    return element;
  }

  /* An address for the content of an image. A page that a server sends may show no data URLs, so it is a blob. */
  function addressOf(number) {
    const bytes = Uint8Array.from(atob(files[number]), (letter) => letter.charCodeAt(0));
    return URL.createObjectURL(new Blob([bytes], { type: "image/webp" }));
  }

  function place(image, placed) {
    const former = image.src;
    image.src = addressOf(placed.image);
    if (former.startsWith("blob:")) URL.revokeObjectURL(former);
    image.width = placed.width;
    image.height = placed.height;
    image.classList.toggle("pixels", placed.width < SMALL);
    return image;
  }

  const scoresText = (scores) =>
    Object.entries(scores).map(([name, value]) => `${name} ${Charts.format(value)}`).join(", ");

  /* The grid of one iteration at a time, and the mean score of each row of it. */
  function grids(data, label) {
    const last = data.frames.length - 1, image = make("img", { alt: "" });
    const output = make("output"), means = make("div");
    const slider = make("input", { type: "range", min: 0, max: last, step: 1, value: last, "aria-label": `Iteration of the grid${label}` });
    const show = () => {
      const frame = data.frames[slider.value];
      place(image, frame);
      image.alt = `Image grid after iteration ${frame.step}: a row for each prompt`;
      output.textContent = `iteration ${frame.step} (grid ${Number(slider.value) + 1} of ${data.frames.length})`;
      slider.setAttribute("aria-valuetext", output.textContent);
      const rewards = Object.keys(frame.scores);
      means.replaceChildren(...(data.prompts.length ? [Page.table({
        caption: `Rows from top to bottom${rewards.length ? ", with the mean score of their images" : ""}`,
        columns: ["prompt", ...rewards],
        rows: data.prompts.map((prompt, row) => [prompt, ...rewards.map((name) => Charts.format(frame.scores[name][row]))]),
      })] : []));
    };
    slider.addEventListener("input", show);
    show();
    const shown = data.all > data.frames.length ? ` ${data.frames.length} of ${data.all} grids are in this report.` : "";
    return make("figure", { class: "grids" },
      make("figcaption", {}, make("h3", {}, "Image grids over time"),
        make("p", { class: "note" }, `The same prompts and noises at every iteration.${shown}`)),
      last > 0 ? make("div", { class: "slider" }, slider, output) : make("p", {}, output), image, means);
  }

  function side(title, placed, scores) {
    const image = place(make("img", { alt: title, loading: "lazy" }), placed);
    return make("figure", {}, image, make("figcaption", {}, make("strong", {}, title), make("br"), scoresText(scores)));
  }

  function card(title, ...sides) {
    return make("div", { class: "card" }, make("p", {}, title), make("div", { class: "two" }, ...sides));
  }

  function pairs(data) {
    const [first] = data;
    const heading = make("h3", {}, "Before and after");
    if (first.whole) return make("div", {}, heading, place(make("img", { alt: "Images of the same prompts and noises: before on the left, after on the right" }), first.whole));
    return make("div", {}, heading, make("p", { class: "note" }, "The same prompt and noise at both iterations."),
      make("div", { class: "cards" }, ...data.map((pair) => card(pair.prompt,
        ...["before", "after"].map((word) => side(`${word}, iteration ${pair[word].step}`, pair[word], pair[word].scores))))));
  }

  function groups(data) {
    return make("div", {}, make("h3", {}, "Best and worst image of a group"),
      make("p", { class: "note" }, "In each iteration shown, the group whose rewards differ most: this difference is what the run learns from."),
      make("div", { class: "cards" }, ...data.map((group) => card(
        `Iteration ${group.step}: ${group.prompt} (${group.rewards.length} images, rewards ${Charts.format(Math.min(...group.rewards))} to ${Charts.format(Math.max(...group.rewards))})`,
        ...["best", "worst"].map((word) => side(word, group[word], group[word].scores))))));
  }

  /* All images of one run. `named` is whether the page shows several runs. */
  function ofRun(data, named) {
    return make("div", {}, named ? make("p", {}, make("strong", {}, data.run)) : null,
      data.grids && grids(data.grids, named ? ` of ${data.run}` : ""),
      data.pairs.length ? pairs(data.pairs) : null, data.groups.length ? groups(data.groups) : null);
  }

  return { make, ofRun, use: (content) => { files = content; } };
})();
