// Unsent answers, stored in this browser until the server confirms them. One storage entry per request.

import { requestJson, Refused } from "./api.js";

// localStorage, or a replacement in memory if the browser blocks it.
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
  #onResult;
  #sending = false;
  #count = 0;
  #last = 0;

  // `onResult(entry, reply, refusal)` is called for each entry that was confirmed or refused.
  constructor(folder, onResult) {
    this.#prefix = `tdmr1.${folder}.outbox.`;
    this.#onResult = onResult;
  }

  // Store a request, and return its key. Entry names sort by time. The key in the body lets the server recognize a
  // repeated request.
  add(path, body) {
    this.#last = Math.max(this.#last, Date.now()); // keeps the order if the clock is set back
    const order = `${String(this.#last).padStart(15, "0")}.${String(this.#count++).padStart(6, "0")}`;
    const key = randomId();
    storage.setItem(`${this.#prefix}${order}.${key}`, JSON.stringify({ path, body: { ...body, key } }));
    return key;
  }

  // The unsent entries, oldest first, including those of other tabs of this browser.
  entries() {
    const names = [];
    for (let i = 0; i < storage.length; i++) {
      if (storage.key(i)?.startsWith(this.#prefix)) names.push(storage.key(i));
    }
    return names.sort().map((name) => ({ name, ...this.read(name, storage.getItem(name)) }));
  }

  // The entry for a name and value of the storage; null if it is not an entry of this outbox.
  read(name, value) {
    return name?.startsWith(this.#prefix) && value ? JSON.parse(value) : null;
  }

  // Send the entries in order until none is left or the connection is lost. Tabs take turns if the browser supports
  // locks; otherwise an entry may be sent twice, and the server ignores the second request because of its key.
  async send() {
    if (this.#sending) return;
    this.#sending = true;
    try {
      const withLock = navigator.locks ? (work) => navigator.locks.request(this.#prefix, work) : (work) => work();
      await withLock(async () => {
        for (let entry; (entry = this.entries()[0]); ) {
          let reply = null, refusal = null;
          try {
            reply = await requestJson(entry.path, entry.body);
          } catch (error) {
            if (!(error instanceof Refused && error.final)) return;
            refusal = error;
          }
          storage.removeItem(entry.name);
          this.#onResult(entry, reply, refusal);
        }
      });
    } finally {
      this.#sending = false;
    }
  }
}
