// The labelling page: gets items from the server and sends answers through the outbox.

import { folderId, imageElement, keepImages, readToken, Refused, requestJson } from "./api.js";
import { Outbox, randomId, storage } from "./outbox.js";
import * as view from "./view.js";

const POLL = 2000; // milliseconds between two requests for the state
const AHEAD = 6; // images that are loaded before they are needed
const STALE = 45_000; // milliseconds after which the next items are requested again, since other people may have judged them
const GUARD = 300; // milliseconds without input after the image changed by itself: a key was meant for the image before
const WORDS = { like: "liked", dislike: "disliked", skip: "skipped" };

readToken();
const outbox = new Outbox(folderId(), onResult);
const me = { id: storage.getItem("tdmr1.person") ?? randomId(), name: storage.getItem("tdmr1.name") ?? "" };
storage.setItem("tdmr1.person", me.id);

let offers = []; // the items that this person may judge, in order; the first item, or its group, is shown
let answered = new Set(outbox.entries().map((entry) => entry.body.item)); // items that are not shown again
let marks = new Map(); // item → like or dislike, for the group that is shown
let steps = []; // number of answers of each past action, for undo
let side = storage.getItem("tdmr1.side") === "1";
let state = null, clock = 0; // the state from the server, and server clock minus local clock in milliseconds
const unseen = new Map(); // key → what an answer (1) or undo (-1) adds to the count, and when it was confirmed, until the state contains it
for (const { path, body } of outbox.entries()) count(body.key, path === "undo" ? -1 : 1);
let online = true, refused = "", filling = false, wanted = null;
let requestedAt = 0, guardedUntil = 0;

// ---- the counter ----

function count(key, value) {
  unseen.set(key, { value, confirmed: null });
}

function unseenCount() {
  return [...unseen.values()].reduce((sum, { value }) => sum + value, 0);
}

// Forget the answers that a state contains: those that were confirmed before it was read.
function forgetSeen(read) {
  for (const [key, { confirmed }] of unseen) {
    if (confirmed !== null && confirmed <= read) unseen.delete(key);
  }
}

// ---- the shown image or group ----

function current() {
  const [first] = offers;
  if (!first) return [];
  return side ? offers.filter((offer) => offer.round === first.round && offer.group === first.group) : [first];
}

function render() {
  const batch = current();
  const elements = batch.map((offer) => imageElement(offer.hash, render));
  for (const offer of offers) imageElement(offer.hash, render);
  keepImages(new Set(offers.map((offer) => offer.hash)));
  if (refused) view.showNotice("This link does not work", refused);
  else if (batch.length) view.showImages(batch, elements, { side, marks, onPick: pick });
  else view.showNotice(...emptyNotice());
  const marked = batch.filter((offer) => marks.has(offer.item)).length;
  view.showButtons({ side, marked, count: batch.length, usable: batch.length > 0 && elements.every(Boolean) });
  view.showWaiting(outbox.entries().length, online);
  if (state) view.showCount(state, unseenCount());
}

function emptyNotice() {
  if (!state) return online ? ["One moment", "The images are loading."] : ["No connection", "Is tdmr1 still running? This page tries again every two seconds."];
  if (!state.round) return ["Nothing to judge right now", state.message || "New images appear here automatically."];
  if (view.remaining(state, unseenCount())) return ["One moment", "Others are judging the last images. Images that they do not judge appear here."];
  return ["Thank you, that is all", state.message || "You have judged all images. Press z to change your last answer."];
}

// ---- answering ----

function judge(answer) {
  const batch = current();
  if (!batch.length || Date.now() < guardedUntil || !batch.every((offer) => imageElement(offer.hash, render))) return;
  for (const offer of batch) {
    const { item, round } = offer;
    const key = outbox.add("answers", { item, round, person: me.id, name: me.name, answer: marks.get(item) ?? answer });
    count(key, 1);
    answered.add(item);
  }
  steps.push(batch.length);
  offers = offers.filter((offer) => !batch.includes(offer));
  marks.clear();
  view.press(answer);
  view.announce(batch.length > 1 ? `${batch.length} images answered` : WORDS[answer]);
  render();
  send();
  if (offers.length < 3 || (side && offers.length <= current().length) || Date.now() - requestedAt > STALE) fill();
}

function undo() {
  const last = steps.pop() ?? 1;
  for (let i = 0; i < last; i++) count(outbox.add("undo", { person: me.id }), -1);
  view.press("undo");
  render();
  send();
}

function pick(index) {
  const offer = current()[index];
  if (!side || !offer) return;
  const next = { undefined: "like", like: "dislike" }[marks.get(offer.item)];
  if (next) marks.set(offer.item, next);
  else marks.delete(offer.item);
  view.announce(`image ${index + 1} ${WORDS[next] ?? "not marked"}`);
  render();
}

function toggleSide() {
  if (!offers.length) return;
  side = !side;
  storage.setItem("tdmr1.side", side ? "1" : "0");
  marks.clear();
  render();
  fill(true);
}

async function send() {
  await outbox.send();
  render();
}

// The result of an outbox entry: the reply of the server, or its refusal.
function onResult({ path, body }, reply, refusal) {
  online = true;
  if (refusal || (path === "undo" && !reply.undone)) unseen.delete(body.key);
  else if (unseen.has(body.key)) unseen.get(body.key).confirmed = Date.now();
  if (refusal) {
    answered.delete(body.item);
    view.toast(`An answer was refused: ${refusal.message}`);
  } else if (path === "undo" && reply.undone) {
    answered.delete(reply.undone.item);
    offers = [reply.undone, ...offers.filter((offer) => offer.item !== reply.undone.item)];
    view.announce("undone");
  } else if (path === "undo") {
    view.toast("There is nothing to undo");
  }
  render();
}

// Another tab of this browser answered an item: remove it here.
addEventListener("storage", (event) => {
  const item = outbox.read(event.key, event.newValue)?.body.item;
  if (item === undefined) return;
  answered.add(item);
  replaceOffers(offers.filter((offer) => offer.item !== item));
});

// ---- requests to the server ----

// Replace the offers. If this changes the shown image, input is ignored for a moment.
function replaceOffers(fresh) {
  const before = current()[0]?.item;
  offers = fresh;
  if (before !== undefined && current()[0]?.item !== before) guardedUntil = Date.now() + GUARD;
  render();
}

// Request the next items. The shown items stay, unless `all` is true.
async function fill(all = false) {
  if (filling) {
    wanted ||= all;
    return;
  }
  filling = true;
  try {
    const limit = Math.min(64, AHEAD + current().length + outbox.entries().length);
    const query = new URLSearchParams({ person: me.id, limit, groups: side ? 1 : 0 });
    const received = await requestJson(`items?${query}`);
    requestedAt = Date.now();
    const kept = all ? [] : current();
    const held = new Set(kept.map((offer) => offer.item));
    replaceOffers([...kept, ...received.filter((offer) => !answered.has(offer.item) && !held.has(offer.item))]);
  } catch (error) {
    lost(error);
  } finally {
    filling = false;
  }
  const again = wanted;
  wanted = null;
  if (again !== null) await fill(again);
}

async function poll() {
  try {
    const sent = Date.now();
    const fresh = await requestJson(`state?${new URLSearchParams({ person: me.id, name: me.name })}`);
    clock = fresh.time * 1000 - (sent + Date.now()) / 2;
    forgetSeen(fresh.read * 1000 - clock);
    const changed = String(fresh.rounds) !== String(state?.rounds);
    state = fresh;
    online = true;
    refused = "";
    view.showState(state, me);
    if (outbox.entries().length) send();
    if (changed) {
      replaceOffers(offers.filter((offer) => state.rounds.includes(offer.round)));
      await fill(true);
    } else if (!offers.length && state.remaining) await fill();
  } catch (error) {
    lost(error);
  }
  render();
  setTimeout(poll, POLL);
}

function lost(error) {
  if (error instanceof Refused && error.status === 401) refused = "Its token is missing or wrong. Open the complete link that tdmr1 printed, including the part after the #.";
  else online = false;
}

function tick() {
  const deadline = state?.round?.deadline ?? null;
  view.showCountdown(deadline === null ? null : deadline - (Date.now() + clock) / 1000);
}

// ---- keys, clicks and touch ----

const actions = {
  like: () => judge("like"),
  dislike: () => judge("dislike"),
  skip: () => judge("skip"),
  undo,
  side: toggleSide,
};
const KEYS = { ArrowLeft: "dislike", ArrowRight: "like", " ": "skip", z: "undo", g: "side" };
const help = document.getElementById("help");

addEventListener("keydown", (event) => {
  const focused = event.target instanceof HTMLButtonElement && (event.key === " " || event.key === "Enter");
  if (help.open || focused || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "?") help.showModal();
  else if (side && key >= "1" && key <= "9") pick(Number(key) - 1);
  else if (side && key === "Enter") judge("skip");
  else if (KEYS[key]) actions[KEYS[key]]();
  else return;
  event.preventDefault();
});

for (const [id, action] of Object.entries(actions)) {
  document.getElementById(id).addEventListener("click", (event) => {
    action();
    if (event.detail) event.currentTarget.blur(); // after a click or touch, the space bar must mean skip instead of pressing this button again
  });
}

document.getElementById("help-open").addEventListener("click", () => help.showModal());
const nameField = document.getElementById("name");
nameField.value = me.name;
nameField.addEventListener("change", () => {
  me.name = nameField.value.trim();
  storage.setItem("tdmr1.name", me.name);
});

const SWIPE = 60; // pixels
let start = null;
const stage = document.getElementById("stage");
stage.addEventListener("touchstart", (event) => {
  start = event.touches.length === 1 && !side ? event.touches[0] : null;
}, { passive: true });
stage.addEventListener("touchend", (event) => {
  if (!start) return;
  const right = event.changedTouches[0].clientX - start.clientX, down = event.changedTouches[0].clientY - start.clientY;
  start = null;
  if (Math.abs(right) > SWIPE && Math.abs(right) > 2 * Math.abs(down)) judge(right > 0 ? "like" : "dislike");
}, { passive: true });

addEventListener("hashchange", () => location.reload());
addEventListener("online", send);
setInterval(tick, 1000);
render();
poll();
