// Scores a PNG image on a reward server, with Node 18 or newer:
// `TDMR1_REWARD_TOKEN=… node client.mjs URL IMAGE.png PROMPT`

import { readFileSync } from "node:fs";

const [url, path, prompt] = process.argv.slice(2);
const batch = {
  images: [readFileSync(path).toString("base64")],
  prompts: [prompt],
  metadata: [{}],
  group_ids: [0],
  image_ids: [0],
  context: { run_folder: null, iteration: 0, seed: 0 },
};
const response = await fetch(`${url}/score`, {
  method: "POST",
  headers: { Authorization: `Bearer ${process.env.TDMR1_REWARD_TOKEN}`, "Content-Type": "application/json" },
  body: JSON.stringify({ protocol: 1, batch }),
});
if (response.status !== 200) {
  console.error(`status ${response.status}: ${await response.text()}`);
  process.exit(1);
}
console.log((await response.json()).scores[0]);
