// Answers on their way: kept in this browser, one entry each, until the server says that it has them.

import { ask, Refused } from "./api.js";

// localStorage, or memory where a browser has none to give.
export const storage = (() => {
  try {
    localStorage.setItem("tdmr1.try", "");
    localStorage.removeItem("tdmr1.try");
    return localStorage;
  } catch {
    const map = new Map();
    return {
      get length() { return map.size; },
      key: (index) => [...map.keys()][index] ?? null,
      getItem: (key) => map.get(key) ?? null,
      setItem: (key, value) => map.set(key, value),
      removeItem: (key) => map.delete(key),
    };
  }
})();

export function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Outbox {
  #prefix;
  #heard;
  #sending = false;
  #count = 0;
  #last = 0;

  // `heard(entry, reply, refusal)` is told what became of each entry.
  constructor(place, heard) {
    this.#prefix = `tdmr1.${place}.outbox.`;
    this.#heard = heard;
  }

  // Keep a request; the entry's name sorts by time, and its body gets a key that makes it one request if sent twice.
  add(path, body) {
    this.#last = Math.max(this.#last, Date.now()); // a clock that is set back changes no order
    const order = `${String(this.#last).padStart(15, "0")}.${String(this.#count++).padStart(6, "0")}`;
    const key = randomId();
    storage.setItem(`${this.#prefix}${order}.${key}`, JSON.stringify({ path, body: { ...body, key } }));
  }

  // What waits, oldest first. Other tabs of this browser share it.
  entries() {
    const names = [];
    for (let i = 0; i < storage.length; i++) {
      if (storage.key(i)?.startsWith(this.#prefix)) names.push(storage.key(i));
    }
    return names.sort().map((name) => ({ name, ...this.read(name, storage.getItem(name)) }));
  }

  // The entry of a name and value of the storage; null if it isn't one of ours.
  read(name, value) {
    return name?.startsWith(this.#prefix) && value ? JSON.parse(value) : null;
  }

  // Send what waits, in order, until there is nothing left or no connection. Two tabs take turns where they can; where
  // they can't, the keys make what is sent twice count once.
  async send() {
    if (this.#sending) return;
    this.#sending = true;
    try {
      const alone = navigator.locks ? (work) => navigator.locks.request(this.#prefix, work) : (work) => work();
      await alone(async () => {
        for (let entry; (entry = this.entries()[0]); ) {
          let reply = null, refusal = null;
          try {
            reply = await ask(entry.path, entry.body);
          } catch (error) {
            if (!(error instanceof Refused && error.final)) return;
            refusal = error;
          }
          storage.removeItem(entry.name);
          this.#heard(entry, reply, refusal);
        }
      });
    } finally {
      this.#sending = false;
    }
  }
}
