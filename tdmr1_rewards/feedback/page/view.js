// Draws the page. It does not use the server.

const find = (id) => document.getElementById(id);
const stage = find("stage");
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
const SMALLEST_CELL = 132; // pixels; if the cells would be smaller, the group scrolls
const GAP = 12;
const LARGEST_PIXEL = 20; // largest enlargement factor of a small image

let shown = []; // elements of the shown images
let drawn = ""; // key of the last drawing, to skip redrawing

// Show one image, or a group with its marks. `elements` has null for an image that is still loading.
export function showImages(offers, elements, { side, marks, onPick }) {
  const wanted = JSON.stringify([side, offers.map(({ item }, index) => [item, marks.get(item), Boolean(elements[index])])]);
  if (wanted === drawn) return;
  drawn = wanted;
  const focused = [...stage.children].indexOf(document.activeElement);
  const fresh = elements.filter((element) => element && !shown.includes(element));
  const cells = offers.map((offer, index) => (side ? card(offer, index, elements[index], marks, onPick) : frame(offer, elements[index])));
  stage.classList.toggle("side", side);
  stage.replaceChildren(...cells);
  cells[focused]?.focus();
  shown = elements.filter(Boolean);
  arrange();
  if (fresh.length && !reducedMotion.matches) {
    stage.animate([{ opacity: 0.4, transform: "scale(.985)" }, { opacity: 1, transform: "none" }], 120);
  }
  text("prompt", offers[0].prompt);
  find("prompt").hidden = !offers[0].prompt;
  find("question").hidden = false;
  stage.hidden = false;
  find("notice").hidden = true;
}

export function showNotice(title, words) {
  stage.hidden = find("prompt").hidden = find("question").hidden = true;
  stage.replaceChildren();
  shown = [];
  drawn = "";
  text("notice-title", title);
  text("notice-text", words);
  find("notice").hidden = false;
}

function frame(offer, element) {
  const box = document.createElement("figure");
  box.className = "frame";
  box.append(element ? scaled(element, offer.prompt) : spinner());
  return box;
}

const MARKS = { like: "liked", dislike: "disliked" };

function card(offer, index, element, marks, onPick) {
  const mark = marks.get(offer.item);
  const button = document.createElement("button");
  button.className = `frame card ${mark ?? ""}`;
  button.setAttribute("aria-label", `image ${index + 1}, ${MARKS[mark] ?? "not marked"}`);
  button.addEventListener("click", () => onPick(index));
  const badge = document.createElement("span");
  badge.className = "badge";
  badge.textContent = mark === "like" ? "♥" : mark === "dislike" ? "✕" : index + 1;
  const picture = element ? scaled(element, "") : spinner();
  if (picture.className === "picture") picture.append(badge); // on the image, which may be narrower than its cell
  button.append(picture);
  return button;
}

// The image in a box of its size; what stands for a missing image is returned as it is.
function scaled(element, alt) {
  if (!(element instanceof HTMLImageElement)) return element;
  element.alt = alt;
  element.draggable = false;
  const { naturalWidth: width, naturalHeight: height } = element;
  const small = Math.max(width, height) <= 128;
  element.classList.toggle("pixelated", small);
  const picture = document.createElement("span");
  picture.className = "picture";
  picture.style.setProperty("--ratio", width / height);
  picture.style.setProperty("--most", small ? `${width * LARGEST_PIXEL}px` : "100cqw");
  picture.append(element);
  return picture;
}

function spinner() {
  const turning = document.createElement("span");
  turning.className = "spinner";
  turning.setAttribute("role", "img");
  turning.setAttribute("aria-label", "the image is loading");
  return turning;
}

// Choose the number of columns that makes the cells of a group largest.
function arrange() {
  if (!stage.classList.contains("side")) return;
  const count = stage.childElementCount, { clientWidth: width, clientHeight: height } = stage;
  let columns = 1, best = 0;
  for (let tried = 1; tried <= count; tried++) {
    const cell = Math.min((width + GAP) / tried, (height + GAP) / Math.ceil(count / tried)) - GAP;
    if (cell > best) [columns, best] = [tried, cell];
  }
  if (best < SMALLEST_CELL) {
    columns = Math.min(count, Math.max(2, Math.floor((width + GAP) / (SMALLEST_CELL + GAP))));
    best = Math.floor((width + GAP) / columns) - GAP;
  }
  stage.style.setProperty("--columns", columns);
  stage.style.setProperty("--cell", `${Math.floor(best)}px`);
}
new ResizeObserver(arrange).observe(stage);

// `unseen` is the number of answers of this page that the state does not contain yet.
export function showCount(state, unseen) {
  const judges = state.round?.judges ?? 1;
  const done = judges > 1 ? state.done : Math.min(Math.max(state.done + unseen, 0), state.all); // with more judges, others must answer too
  find("progress").max = Math.max(state.all, 1);
  find("progress").value = done;
  const people = judges > 1 ? ` · ${judges} people each` : "";
  text("count", state.round ? `${done} of ${state.all} judged · ${remaining(state, unseen)} left for you${people}` : "");
}

// The number of images that this person can still judge.
export const remaining = (state, unseen) => Math.max(state.remaining - unseen, 0);

export function showState(state, me) {
  text("title", state.round?.title ?? "tdmr1 label");
  text("question-text", state.question);
  text("question-again", state.question);
  const { share, pairs, alpha } = state.agreement;
  chip("agreement", share === null ? "" : `${Math.round(share * 100)} % agree`);
  text("agreement-explained", share === null ? "" :
    `Of ${pairs} pairs of answers to the same image, ${Math.round(share * 100)} % are the same` +
    (alpha === null ? "." : ` (Krippendorff's α ${alpha.toFixed(2).replace("-", "−")}: 1 is full agreement, 0 is chance).`));
  const others = state.people.filter((name) => name && name !== me.name);
  chip("people", state.people.length > 1 ? `${state.people.length} people` : "");
  find("people").title = others.join(", ");
}

// Seconds left, or null for a round without a deadline.
export function showCountdown(seconds) {
  const left = Math.max(0, Math.ceil(seconds));
  const clock = left >= 60 ? `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}` : `${left} s`;
  chip("countdown", seconds === null ? "" : left ? `${clock} left` : "time is up");
  find("countdown").classList.toggle("warm", seconds !== null && left <= 30);
}

export function showWaiting(count, online) {
  const answers = count === 1 ? "1 answer" : `${count} answers`;
  chip("waiting", count ? `${answers} waiting to be sent` : online ? "" : "no connection");
}

export function showButtons({ side, marked, count, usable }) {
  const rest = marked ? " rest" : " all";
  for (const [id, word] of [["dislike", "Dislike"], ["skip", "Skip"], ["like", "Like"]]) {
    find(id).disabled = !usable;
    find(id).querySelector("span").textContent = side ? word + rest : word;
  }
  const send = side && count > 0 && marked === count;
  if (send) find("skip").querySelector("span").textContent = "Send";
  find("skip").classList.toggle("send", send);
  find("dislike").hidden = find("like").hidden = send;
  find("skip").querySelector("kbd").textContent = side ? "enter" : "space";
  find("side").setAttribute("aria-pressed", side);
  find("side").hidden = count === 0;
}

export function press(id) {
  if (!reducedMotion.matches) find(id).animate([{ filter: "brightness(1.5)" }, { filter: "none" }], 200);
}

// Text for screen readers.
export const announce = (words) => text("status", words);

let fading = 0;

// A text that is shown for five seconds.
export function toast(words) {
  text("toast", words);
  find("toast").hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => (find("toast").hidden = true), 5000);
}

function chip(id, words) {
  text(id, words);
  find(id).hidden = !words;
}

function text(id, words) {
  if (find(id).textContent !== words) find(id).textContent = words;
}
