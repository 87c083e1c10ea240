#!/usr/bin/env bash
# Scores a PNG image on a reward server, with curl: `TDMR1_REWARD_TOKEN=… bash client.sh URL IMAGE.png PROMPT`.
set -euo pipefail
url=$1 image=$(base64 < "$2" | tr -d '\n') prompt=$3

# A JSON text: backslashes and quotes are escaped. The prompt must not contain line breaks or tabs.
prompt=${prompt//\\/\\\\}
prompt=${prompt//\"/\\\"}

# printf is part of the shell: neither the token nor the image becomes an argument of a program.
answer=$(
  printf '{"protocol": 1, "batch": {"images": ["%s"], "prompts": ["%s"], "metadata": [{}], "group_ids": [0],
           "image_ids": [0], "context": {"run_folder": null, "iteration": 0, "seed": 0}}}' "$image" "$prompt" |
    curl --silent --show-error --max-time 300 --data-binary @- --header "Content-Type: application/json" \
      --header @<(printf 'Authorization: Bearer %s' "$TDMR1_REWARD_TOKEN") --write-out '\n%{http_code}' "$url/score"
)
status=${answer##*$'\n'} answer=${answer%$'\n'*}
if [ "$status" != 200 ]; then
  echo "status $status: $answer" >&2
  exit 1
fi
[[ $answer =~ \"scores\":\ *\[\ *([^],\ ]*) ]] # the first score
echo "${BASH_REMATCH[1]}"
