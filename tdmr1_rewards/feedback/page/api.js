// Access to the server: the token of the link, requests with the token, and images.

const TOKEN_KEY = "tdmr1.token";
let token = "";

// Read the token from the part of the URL after #, or from the session storage of this tab.
export function readToken() {
  token = location.hash.slice(1) || sessionStorage.getItem(TOKEN_KEY) || "";
  if (token) sessionStorage.setItem(TOKEN_KEY, token);
}

// A short hash of the token, and so of the feedback folder: answers to one folder must not be sent to another.
export function folderId() {
  let hash = 2166136261;
  for (const letter of token) hash = Math.imul(hash ^ letter.codePointAt(0), 16777619);
  return (hash >>> 0).toString(36);
}

// The server answered a request with an error. A lost connection raises other errors.
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  // Whether sending the same request again cannot succeed.
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
  const document = await response.json().catch(() => ({}));
  throw new Refused(response.status, document.error ?? response.statusText);
}

export const requestJson = async (path, body) => (await request(path, body)).json();

const images = new Map(); // hash → { element }, without element while it is loading

// The element of an image if it is loaded; otherwise null, and `onLoad` is called when it is.
export function imageElement(hash, onLoad) {
  const known = images.get(hash);
  if (known) return known.element ?? null;
  const entry = {};
  images.set(hash, entry);
  load(hash)
    .then((element) => {
      entry.element = element;
      onLoad();
    })
    .catch(() => images.delete(hash));
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
    missing.textContent = "This image is missing. Skip it.";
    return missing;
  }
}

// Release all images except these.
export function keepImages(hashes) {
  for (const [hash, { element }] of images) {
    if (element && !hashes.has(hash)) {
      if (element.src) URL.revokeObjectURL(element.src);
      images.delete(hash);
    }
  }
}
