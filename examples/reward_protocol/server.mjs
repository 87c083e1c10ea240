// A reward server for Node 18 or newer, without packages: `TDMR1_REWARD_TOKEN=… node server.mjs PORT`.
// The score of an image is its mean brightness, 0 to 1.

import { createHash, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";
import { inflateSync } from "node:zlib";

const TOKEN = process.env.TDMR1_REWARD_TOKEN;
const MAX_BODY = 64 * 1024 * 1024;
const MAX_PIXELS = 1 << 24;
const INFO = { protocol: 1, name: "brightness", batch_size: 32, max_body: MAX_BODY, score_range: "0 to 1" };
const SIGNATURE = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);

// The five filters of PNG predict a byte from its neighbours: left, above, and the upper left corner.
const FILTERS = [
  () => 0,
  (left) => left,
  (left, up) => up,
  (left, up) => (left + up) >> 1,
  (left, up, corner) => {
    const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
    return a <= b && a <= c ? left : b <= c ? up : corner;
  },
];

class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// The bytes of an 8-bit RGB PNG image, row by row: red, green, blue, 0 to 255.
function decodePng(file) {
  if (!file.subarray(0, 8).equals(SIGNATURE)) throw new Error("it is not a PNG file");
  const data = [];
  let header;
  for (let at = 8; at + 8 <= file.length; ) {
    const length = file.readUInt32BE(at);
    const chunk = file.subarray(at + 8, at + 8 + length);
    const type = file.toString("latin1", at + 4, at + 8);
    if (type === "IHDR") header = chunk;
    if (type === "IDAT") data.push(chunk);
    at += length + 12; // length, type and checksum
  }
  const [width, height] = [header.readUInt32BE(0), header.readUInt32BE(4)];
  const [depth, colour, , , interlaced] = header.subarray(8);
  if (depth !== 8 || colour !== 2 || interlaced) throw new Error("it is not 8-bit RGB without interlacing");
  if (width * height > MAX_PIXELS) throw new Error(`it has more than ${MAX_PIXELS} pixels`);
  const stride = 3 * width;
  const filtered = inflateSync(Buffer.concat(data), { maxOutputLength: height * (stride + 1) });
  if (filtered.length !== height * (stride + 1)) throw new Error("it is not complete");
  const pixels = Buffer.alloc(height * stride);
  for (let y = 0; y < height; y++) {
    const predict = FILTERS[filtered[y * (stride + 1)]];
    for (let x = 0; x < stride; x++) {
      const i = y * stride + x;
      const left = x >= 3 ? pixels[i - 3] : 0;
      const up = y > 0 ? pixels[i - stride] : 0;
      const corner = x >= 3 && y > 0 ? pixels[i - stride - 3] : 0;
      pixels[i] = filtered[y * (stride + 1) + 1 + x] + predict(left, up, corner); // modulo 256
    }
  }
  return pixels;
}

function brightness(text) {
  let pixels;
  try {
    pixels = decodePng(Buffer.from(text, "base64"));
  } catch (error) {
    throw new Refusal(422, `an image cannot be read: ${error.message}`);
  }
  let sum = 0;
  for (const value of pixels) sum += value;
  return sum / pixels.length / 255;
}

async function readBody(request) {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size <= MAX_BODY) chunks.push(chunk);
  }
  if (size > MAX_BODY) throw new Refusal(413, `the request is larger than ${MAX_BODY} bytes`);
  return Buffer.concat(chunks).toString();
}

function checkToken(request) {
  const hash = (text) => createHash("sha256").update(text).digest();
  const given = request.headers.authorization ?? "";
  if (!timingSafeEqual(hash(given), hash(`Bearer ${TOKEN}`))) throw new Refusal(401, "the request has no valid token");
}

async function answerTo(request) {
  const route = `${request.method} ${request.url}`;
  const body = await readBody(request);
  if (route === "GET /health") return { status: "ok" };
  if (route !== "GET /info" && route !== "POST /score") throw new Refusal(404, `there is no ${route}`);
  checkToken(request);
  if (route === "GET /info") return INFO;
  let document;
  try {
    document = JSON.parse(body);
  } catch {
    throw new Refusal(400, "the request is not JSON");
  }
  if (document?.protocol !== 1) throw new Refusal(400, "this server needs protocol version 1");
  if (!Array.isArray(document.batch?.images)) throw new Refusal(422, "the request has no list of images");
  return { protocol: 1, scores: document.batch.images.map(brightness) };
}

const server = createServer(async (request, response) => {
  let [status, document] = [200, null];
  try {
    document = await answerTo(request);
  } catch (error) {
    status = error instanceof Refusal ? error.status : 500;
    document = { error: error.message };
  }
  response.writeHead(status, { "Content-Type": "application/json" });
  response.end(JSON.stringify(document));
});

if (!TOKEN) throw new Error("set TDMR1_REWARD_TOKEN");
server.listen(Number(process.argv[2]), "127.0.0.1", () => {
  console.log(`serving brightness at http://127.0.0.1:${server.address().port}/brightness`);
});
