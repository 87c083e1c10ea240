// The server's side of things: the token of the link, requests that carry it, and pictures.

const KEPT = "tdmr1.token";
let token = "";

// Take the token from what follows the # in the link, or from this tab's memory.
export function readToken() {
  token = location.hash.slice(1) || sessionStorage.getItem(KEPT) || "";
  if (token) sessionStorage.setItem(KEPT, token);
}

// A short name for what the link leads to: what is kept here for one folder must never be sent to another.
export function place() {
  let hash = 2166136261;
  for (const letter of token) hash = Math.imul(hash ^ letter.codePointAt(0), 16777619);
  return (hash >>> 0).toString(36);
}

// The server understood a request and refused it; a lost connection is any other error.
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  // Whether sending the same again can't help.
  get final() {
    return this.status >= 400 && this.status < 500 && ![401, 408, 421, 429].includes(this.status);
  }
}

async function request(path, body) {
  const response = await fetch(`/api/${path}`, {
    method: body ? "POST" : "GET",
    headers: { Authorization: `Bearer ${token}`, ...(body && { "Content-Type": "application/json" }) },
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(15_000),
  });
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Refused(response.status, told.error ?? response.statusText);
}

export const ask = async (path, body) => (await request(path, body)).json();

const pictures = new Map(); // hash → { element, or a promise of it }

// The picture's element if it is here already; else null, and `arrived` is called when it is.
export function picture(hash, arrived) {
  const known = pictures.get(hash);
  if (known) return known.element ?? null;
  const entry = {};
  pictures.set(hash, entry);
  load(hash)
    .then((element) => {
      entry.element = element;
      arrived();
    })
    .catch(() => pictures.delete(hash));
  return null;
}

async function load(hash) {
  try {
    const element = new Image();
    element.src = URL.createObjectURL(await (await request(`images/${hash}`)).blob());
    await element.decode();
    return element;
  } catch (error) {
    if (!(error instanceof Refused && error.final)) throw error;
    const missing = document.createElement("p");
    missing.className = "missing";
    missing.textContent = "This picture is missing. Skip it.";
    return missing;
  }
}

// Forget all pictures but these.
export function keepPictures(hashes) {
  for (const [hash, { element }] of pictures) {
    if (element && !hashes.has(hash)) {
      if (element.src) URL.revokeObjectURL(element.src);
      pictures.delete(hash);
    }
  }
}
