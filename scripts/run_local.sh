#!/usr/bin/env bash
# From nothing to answers by name, on a made-up graph: set-up, data, training with evaluation, export, three look-ups.
# What is done already is skipped. Arguments go to run.py: scripts/run_local.sh training.num_epochs=3
set -euo pipefail
here=$(dirname -- "$0")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"
cd "$(repo_root)"

config=projects/twhin/configs/local.yaml
edges=data/sample/edges.tsv
graph=data/sample/graph
save_dir=$(sed -n 's/^ *save_dir: *//p' "$config" | tr -d "\"'")
model=$save_dir/model

heading "set-up"
scripts/setup.sh
use_venv

heading "sample graph"
if [ -f "$edges" ]; then
  echo "$edges is there"
else
  tml sample-graph --out "$(dirname "$edges")" --edges 200000 --communities 256
fi
if [ -f "$graph/config.yaml" ]; then
  echo "$graph is there"
else
  tml convert "$edges" --typed-ids : --out "$graph"
fi

heading "training and evaluation"
# The address is named because torchrun would otherwise look up this machine's own name, and hang where nobody knows it.
torchrun --standalone --local_addr 127.0.0.1 projects/twhin/run.py --config "$config" "$@"

heading "export"
if [ -f "$model/model.json" ] && [ -z "$(find "$save_dir" -path "$model" -prune -o -name COMMIT.json -newer "$model/model.json" -print)" ]; then
  echo "$model is there and newer than every checkpoint"
else
  tml twhin export --config "$config" --out "$model" --overwrite
fi

heading "look-ups"
for relation in follow fav retweet; do
  # The left end of the relation's first edge, such as user:u17.
  node=$(awk -F '\t' -v relation="$relation" '$2 == relation { print $1; exit }' "$edges")
  echo "tml twhin neighbors $model --table ${node%%:*} --id ${node#*:} --relation $relation -k 5"
  tml twhin neighbors "$model" --table "${node%%:*}" --id "${node#*:}" --relation "$relation" -k 5
done
