"""Scores a PNG image on a reward server: `TDMR1_REWARD_TOKEN=… python client.py URL IMAGE.png PROMPT`."""

import base64
import os
import sys
from pathlib import Path

import requests

url, path, prompt = sys.argv[1:]
batch = {
    "images": [base64.b64encode(Path(path).read_bytes()).decode()],
    "prompts": [prompt],
    "metadata": [{}],
    "group_ids": [0],
    "image_ids": [0],
    "context": {"run_folder": None, "iteration": 0, "seed": 0},
}
headers = {"Authorization": f"Bearer {os.environ['TDMR1_REWARD_TOKEN']}"}
response = requests.post(f"{url}/score", json={"protocol": 1, "batch": batch}, headers=headers, timeout=300)
if response.status_code != 200:
    sys.exit(f"status {response.status_code}: {response.text}")
print(response.json()["scores"][0])
