#!/usr/bin/env bash
# From nothing to answers, on made-up data: set-up, data, training with evaluation, export, three questions.
#
#   scripts/run_local.sh [twhin] [section.key=value ...]        a graph; the nearest neighbours of three names
#   scripts/run_local.sh light_ranker [section.key=value ...]   clicks; the scores of three requests
#
# What is done already is skipped. Arguments go to run.py: scripts/run_local.sh training.num_epochs=3
set -euo pipefail
here=$(dirname -- "$0")
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"
cd "$(repo_root)"

train() { # train PROJECT ARGUMENT...: its run.py with its local config
  local project=$1
  shift
  # The address is named because torchrun would otherwise look up this machine's own name, and hang where nobody knows it.
  torchrun --standalone --local_addr 127.0.0.1 "projects/$project/run.py" --config "projects/$project/configs/local.yaml" "$@"
}

save_dir_of() { # save_dir_of PROJECT
  sed -n 's/^ *save_dir: *//p' "projects/$1/configs/local.yaml" | tr -d "\"'"
}

walk_twhin() {
  local edges=data/sample/edges.tsv graph=data/sample/graph save_dir model node
  save_dir=$(save_dir_of twhin)
  model=$save_dir/model

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
  train twhin "$@"

  heading "export"
  if [ -f "$model/model.json" ] && [ -z "$(find "$save_dir" -path "$model" -prune -o -name COMMIT.json -newer "$model/model.json" -print)" ]; then
    echo "$model is there and newer than every checkpoint"
  else
    tml twhin export --config projects/twhin/configs/local.yaml --out "$model" --overwrite
  fi

  heading "look-ups"
  for relation in follow fav retweet; do
    # The left end of the relation's first edge, such as user:u17.
    node=$(awk -F '\t' -v relation="$relation" '$2 == relation { print $1; exit }' "$edges")
    echo "tml twhin neighbors $model --table ${node%%:*} --id ${node#*:} --relation $relation -k 5"
    tml twhin neighbors "$model" --table "${node%%:*}" --id "${node#*:}" --relation "$relation" -k 5
  done
}

walk_light_ranker() {
  local clicks=data/sample/clicks rows=data/sample/ranker model user
  model=$(save_dir_of light_ranker)/export

  heading "sample clicks"
  tml light-ranker sample-clicks --out "$clicks"
  tml light-ranker prepare --features "$clicks/features.yaml" --out "$rows" \
    --train "$clicks/train" --valid "$clicks/valid" --test "$clicks/test"

  heading "calibration, training, evaluation and export"
  train light_ranker "$@"

  heading "scores"
  for user in u3 u17 nobody; do
    echo "tml light-ranker score $model, user $user:"
    tml light-ranker score "$model" <<REQUEST
{"user": {"user_id": "$user", "country": "country2", "age": 31, "interests": ["topic1", "topic5"]},
 "candidates": [{"item_id": 1000003, "author": "a57", "topics": ["topic1", "topic9"], "item_age_hours": 3.5, "quality": 0.4},
                {"item_id": 1000010, "author": "a12", "topics": ["topic2"], "item_age_hours": 90},
                {"item_id": 5, "topics": []}],
 "top_k": 2}
REQUEST
  done
}

project=twhin
case ${1:-} in
  twhin | light_ranker)
    project=$1
    shift
    ;;
esac

heading "set-up"
scripts/setup.sh
use_venv
"walk_$project" "$@"
