#!/usr/bin/env bash
# From X-rays to the paper's table, every stage for real.
#
#   bash reproduce.sh            phantom X-rays in ./workspace; about 8 minutes on 2 cores after installation
#   bash reproduce.sh tiny       the same on 64-pixel phantoms, in about a minute
#   bash reproduce.sh long       the same networks, larger and trained for longer, 240 test patients; half an hour
#   bash reproduce.sh paper      the paper's settings, on the data that the environment variables name, after doctor.py
#                                (CHEXSEG_CKPT=<classifier checkpoint>; without it one is trained)
#   bash reproduce.sh tables     then the paper's other tables too, three seeds of each network; of the preset that is named
#                                beside it. --only TABLE, --seeds, --encoder_weights, --style: see paper_tables.py --help
#   --workspace DIR              everything under DIR instead of ./workspace
#   --seed N                     another phantom than the default one, in a folder seed_N of its own
#   --processes N                heavy stages under torchrun in N processes, one for each GPU (fewer, where batches are small)
#
# Killed and run again, it goes on where it was. PYTHON=/path/to/python uses that interpreter and installs nothing.
set -euo pipefail
if ((BASH_VERSINFO[0] < 4)); then
  echo "reproduce.sh: error: bash $BASH_VERSION is older than 4 (macOS: brew install bash)" >&2
  exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

preset=default workspace= processes=1 seed= tables=() words=() # the last two: for paper_tables.py
while [ $# -gt 0 ]; do
  case $1 in
    default | tiny | long | paper) preset=$1 ;;
    tables) tables+=(--style light) ;;
    --only | --seeds | --budgets | --encoder_weights | --style)
      option=$1
      while [ $# -gt 1 ] && [[ "$2" != --* ]]; do words+=("$2"); shift; done
      tables+=("$option" "${words[@]}") words=() ;;
    --workspace) workspace=${2:?--workspace needs a folder}; shift ;;
    --workspace=*) workspace=${1#*=} ;;
    --seed) seed=${2:?--seed needs a number}; shift ;;
    --processes) processes=${2:?--processes needs a number}; shift ;;
    -h | --help) sed -n '2,16s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "reproduce.sh: error: unknown argument '$1'; see bash reproduce.sh --help" >&2; exit 2 ;;
  esac
  shift
done
workspace=${workspace:-$here/workspace}
[ "$preset" = default ] || [ "$preset" = paper ] || workspace=$workspace/$preset
[ -z "$seed" ] || workspace=$workspace/seed_$seed
mkdir -p "$workspace" && workspace=$(cd "$workspace" && pwd)

if [ -z "${PYTHON:-}" ]; then
  PYTHON=$here/.venv/bin/python
  if ! cmp -s "$here/pyproject.toml" "$here/.venv/installed" && ! cmp -s "$here/pyproject.toml" "$here/.venv/installed-dev"; then
    [ -x "$PYTHON" ] || python3 -m venv "$here/.venv"
    echo "Installing CheXseg into .venv (some minutes, 6 GB with PyTorch)"
    (cd "$here" && "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt)
    cp "$here/pyproject.toml" "$here/.venv/installed"
  fi
fi

cores=$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1) # the second is macOS's
workers=$((cores > 1 ? 2 : 0)) readers=
# ---- Settings -------------------------------------------------------------------------------------------------------
# All networks but the weak ones see the same number of images: epochs x --epoch_len, over teacher and student together.
# Of few validation images the best epoch is a matter of luck: with one cycle of the learning rate the last one is kept.
# `size` is the classifier's and the maps', `side` the segmentation networks'.
case $preset in
  tiny)
    phantom="--preset tiny" size=64 side=64 network=resnet10w32 encoder=resnet10w32 expert=10
    classifier="--num_epochs 3 --batch_size 16 --lr 2e-3 --augment --one_cycle --keep_epoch last"
    maps= irnet="--num_epochs 1 --radius 3" pseudo="--radius 2" subset=20 workers=0
    common="--lr 1e-3 --one_cycle --augment --keep_epoch last" decoder="--decoder_channels 64"
    weak="--num_epochs 2" epochs="--num_epochs 4 --epoch_len 20" # 80 draws
    teacher="--num_epochs 2 --epoch_len 20" student="--num_epochs 2 --epoch_len 20" ;;
  default | long)
    phantom="--num_train 700 --num_valid 120 --num_test 120" size=160 side=96 expert=60
    network=resnet10w32 encoder=resnet10w32
    classifier="--num_epochs 12 --batch_size 16 --lr 2e-3 --augment --one_cycle --keep_epoch last --output_stride 16"
    maps="--map_scales 1 1.5 --map_mirror True"
    irnet="--num_epochs 1 --radius 5" pseudo="--radius 3" subset=100
    common="--lr 2e-3 --one_cycle --augment --keep_epoch last" decoder="--decoder_channels 64"
    weak="--num_epochs 1" epochs="--num_epochs 13 --epoch_len 640" # 8320 draws
    teacher="--num_epochs 10 --epoch_len 416" student="--num_epochs 10 --epoch_len 416 --lr 1e-3"
    if [ "$preset" = long ]; then
      phantom="--num_train 700 --num_valid 120 --num_test 240" side=112 decoder="--decoder_channels 128"
      classifier=${classifier/--num_epochs 12/--num_epochs 14}
      epochs="--num_epochs 28 --epoch_len 640" # 17920 draws
      teacher="--num_epochs 14 --epoch_len 640" student="--num_epochs 14 --epoch_len 640 --lr 1e-3"
    fi ;;
  paper)
    phantom= size=320 side=320 network=resnet18 encoder=resnet18 expert=147
    classifier="--num_epochs 3 --batch_size 16 --lr 1e-4 --weights imagenet --augment"
    maps= irnet="--num_epochs 5" pseudo= subset=100
    common="--lr 1e-4" decoder= weak="--num_epochs 20"
    epochs="--num_epochs 20 --epoch_len 247 --valid_common_pathologies True" # 4940 draws: 20 epochs of 147 + 100 images
    teacher="--num_epochs 10 --epoch_len 247 --valid_common_pathologies True" student="--num_epochs 10 --epoch_len 247 --valid_common_pathologies True"
    workers=$cores readers="--num_workers $workers" ;;
esac

if [ "$preset" = paper ]; then
  : "${CHEXPERT_DATA_DIR:?}" "${OBJ_EFFICIENCY_BASE_PATH:?}" "${TEST_SEG_LABELS_GT_BASE_PATH:?}"
  mkdir -p "$OBJ_EFFICIENCY_BASE_PATH"
else
  export CHEXPERT_DATA_DIR=$workspace/data
  export OBJ_EFFICIENCY_BASE_PATH=$workspace/base
  export TEST_SEG_LABELS_GT_BASE_PATH=$workspace/data/labels
  mkdir -p "$CHEXPERT_DATA_DIR" "$OBJ_EFFICIENCY_BASE_PATH" "$TEST_SEG_LABELS_GT_BASE_PATH"
fi
base=$OBJ_EFFICIENCY_BASE_PATH truth=$TEST_SEG_LABELS_GT_BASE_PATH report=$workspace/report steps=$workspace/report/.steps
mkdir -p "$steps"
rm -f "$steps"/{failed,*.done}

# ranks COMMAND...: how many processes can share it. An epoch is cut into even batches, of half --batch_size at least, and
# each process of a training needs an image of each.
ranks() {
  local batch=$((2 * processes))
  case $1 in
    */train.py | */train_irnet.py) batch=16 ;;
    */segmentation_train.py | */segmentation_distillation.py) batch=8 ;;
  esac
  [[ " $* " != *" --batch_size 4 "* ]] || batch=4
  echo $((processes < batch / 2 ? processes : batch / 2))
}

# step NAME COMMAND...: print the command, run it, keep its time (the longest, where a run was taken up again).
step() {
  local name=$1 started seconds longest runner=("$PYTHON")
  shift
  if [ "$processes" -gt 1 ] && grep -q "add_run_options\|RunOptions" "$1"; then
    runner=("$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$(ranks "$@")")
  fi
  [ ! -e "$steps/failed" ] || return 1 # the other lane has said why
  printf '\n== %s\n$ python' "$name"
  printf ' %q' "${@/#$here\//}"
  echo
  started=$(date +%s.%N)
  launch "${runner[@]}" "$@" || { touch "$steps/failed"; return 1; }
  seconds=$(echo "$started $(date +%s.%N)" | awk '{printf "%.1f", $2 - $1}')
  echo "== $name: $seconds s"
  longest=$(cat "$steps/$name" 2>/dev/null || echo 0)
  echo "$seconds $longest" | awk '{print ($1 > $2) ? $1 : $2}' >"$steps/$name"
  grep -qsx "$name" "$steps/order" || echo "$name" >>"$steps/order"
  touch "$steps/$name.done"
  { echo stage,seconds; while read -r name; do echo "$name,$(cat "$steps/$name")"; done <"$steps/order"; } >"$steps/csv.$BASHPID"
  mv "$steps/csv.$BASHPID" "$report/timings.csv"
}

# launch PYTHON SCRIPT...: run it; by the lane's preloaded Python, where there is one.
launch() {
  if [ -z "$server" ]; then
    "$@"
    return
  fi
  local status
  printf '%s\0' $(($# - 1)) "${@:2}" >&"$to"
  read -r status <&"$from" && return "$status"
}

# preload: a Python that has imported what most stages need, and forks for each (chexseg/runtime/preloaded.py). Where all
# may be finished it would cost more than it saves.
server=
preload() {
  [ ! -e "$report/table.md" ] || return 0
  exec {output}>&1
  coproc SERVER { exec "$PYTHON" -m chexseg.runtime.preloaded torch segmentation_models_pytorch cv2 h5py 3>&1 >&"$output"; }
  server=$SERVER_PID to=${SERVER[1]} from=${SERVER[0]}
}

# lanes "FUNCTION..." "FUNCTION...": each lane on a core of its own. With the paper's settings, which fill a machine, and on a
# single core: the first function of each lane, then the second. A lane that fails stops the other before its next step;
# a signal ends both.
lanes() {
  local lane name running=() status=0
  if [ "$preset" = paper ] || [ "$cores" -lt 2 ]; then
    for name in ${1%% *} ${2%% *} ${1#"${1%% *}"} ${2#"${2%% *}"}; do $name; done
    return
  fi
  set -m # a process group for each lane: left to themselves, they would outlive this script, and hear no Ctrl-C
  trap 'for lane in "${running[@]}"; do kill -TERM -- "-$lane" 2>/dev/null || true; done; wait; exit 143' INT TERM HUP
  for lane in "$@"; do
    (set +m; export OMP_NUM_THREADS=1; { preload; for name in $lane; do $name; done; } 2>&1 |
      sed -u "s/^/[${lane%% *}] /") </dev/null &
    running+=($!)
  done
  set +m
  for lane in "${running[@]}"; do
    wait "$lane" || status=1
  done
  trap - INT TERM HUP
  return $status
}

# await STEP: until the other lane has done it.
await() {
  until [ -e "$steps/$1.done" ]; do
    [ ! -e "$steps/failed" ] || return 1
    sleep 0.3
  done
}

# ---- The pipeline ---------------------------------------------------------------------------------------------------
echo "Preset $preset, everything under $workspace"
ckpt=$("$PYTHON" -c "import os, sys; print(os.path.abspath(sys.argv[1]))" "${CHEXSEG_CKPT:-$base/models/$preset/classifier.ckpt}")
name=$(basename "$(dirname "$ckpt")")_$(basename "$ckpt")
run=$base/train_cams/$name run_test=$base/test_cams/$name run_valid=$base/valid_cams/$name
rest=$truth/valid_encoded_rest.json # the experts' validation images
trials=$base/seg_trials

# What stands in the way of days of work is said before they begin; afterwards the disk has less room than all needs.
asked="$CHEXPERT_DATA_DIR $base $truth $ckpt"
if [ "$preset" = paper ] && [ "$(cat "$steps/doctor" 2>/dev/null)" != "$asked" ]; then
  "$PYTHON" "$here/doctor.py" ${CHEXSEG_CKPT:+--ckpt_path "$ckpt"} --encoder $encoder --image_size $size \
    --expert_len $expert --subset_len $subset
  echo "$asked" >"$steps/doctor"
fi

# 0. X-rays and a classifier of them, where you have none.
# shellcheck disable=SC2086  # the presets' options are lists of words
if [ "$preset" != paper ]; then
  step phantom "$here/make_synthetic_chexpert.py" --out_dir "$CHEXPERT_DATA_DIR" --gt_out "$truth" --num_workers $workers $phantom ${seed:+--seed $seed}
fi
if [ -z "${CHEXSEG_CKPT:-}" ]; then
  step classifier "$here/train.py" --ckpt_path "$ckpt" --architecture $network --image_size $size $classifier $readers
fi

# The experts' masks, from their polygons; their images are split for training and validation.
expert_masks() {
  local annotations=$truth/gt_annotations_valid.json
  [ -f "$annotations" ] || annotations=$truth/gt_annotations_val.json # CheXlocalize's own name
  step expert_masks "$here/localization_eval/gt_segmentation.py" \
    --ann_path "$annotations" --output_path "$truth/valid_encoded.json"
  step test_masks "$here/localization_eval/gt_segmentation.py" \
    --ann_path "$truth/gt_annotations_test.json" --output_path "$truth/test_encoded.json"
  if [ -f "$truth/human_annotations_test.json" ]; then
    step radiologist_masks "$here/localization_eval/gt_segmentation.py" \
      --ann_path "$truth/human_annotations_test.json" --output_path "$truth/test_human_encoded.json"
  fi
  step expert_split "$here/create_train_set_subsets.py" --masks_path "$truth/valid_encoded.json" --subset_len $expert \
    --rest_path "$rest"
}

# 6. A network by NAME and its options. Thresholds, and with the paper's settings the epoch, are chosen on the experts'
# validation images.
train() {
  step "train_$1" "$here/segmentation_train.py" --save_dir "$trials" --experiment_name "$1" --eval_masks_path "$rest" \
    --architecture DeepLabV3Plus --encoder $encoder --encoder_weights_type CheXpert --encoder_weights "$ckpt" \
    --image_size $side $decoder $common $readers "${@:2}"
}

# 6. Ours: experts' masks with the better loss (and smaller batches: more steps for the same draws), and CheXseg+, half of
# whose draws train a teacher, and half a student on what the teacher makes of the films that have labels only.
experts() {
  expert_masks
  local masks=(--train_set valid --train_masks_path "$truth/valid_encoded_$expert.json")
  local plus="--loss bce_dice --batch_size 4"
  train full_plus "${masks[@]}" $plus $epochs
  train teacher "${masks[@]}" $plus $teacher
  step train_chexseg_plus "$here/segmentation_distillation.py" --save_dir "$trials" --experiment_name chexseg_plus \
    --teacher_path "$trials/teacher/best_model.pth" --from_teacher True \
    --expert_masks_path "$truth/valid_encoded_$expert.json" --eval_masks_path "$rest" --strong_labels_weight 0.5 \
    --targets masks --gate labels --expert_sizes 20 80 --floor 0.02 --balance 0.5 --paste 0.5 $plus $common $student $readers
  # Maps of the test set, to look at, and of the experts' images, to measure.
  step test_saliency_maps "$here/test.py" --ckpt_path "$ckpt" --phase test --batch_size 16 --image_size $size $maps \
    --save_dir_predictions "$base/test_cams" --save_cams True $readers
  step valid_saliency_maps "$here/test.py" --ckpt_path "$ckpt" --phase valid --batch_size 16 --image_size $size $maps \
    --save_dir_predictions "$base/valid_cams" --save_cams True $readers
}

# 1. to 5. Pseudo masks of the training set: saliency maps, masks by a threshold, relation labels by a dense CRF, a network
# that finds boundaries, masks by a random walk that stops at them. 6. The paper's networks.
walk=best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth
pseudo() {
  step saliency_maps "$here/test.py" --ckpt_path "$ckpt" --phase test --batch_size 16 --image_size $size $maps \
    --save_dir_predictions "$base/train_cams" --save_cams True --save_train_cams True $readers
  step threshold_masks "$here/localization_eval/pred_segmentation.py" --phase train --map_dir "$run" \
    --method gradcam --model_type single $readers
  step hdf5 "$here/IRNet/convert_to_hdf5.py" --map_dir "$run" --image_size $size $readers
  step relation_labels "$here/IRNet/cam_to_ir_label_hdf5.py" --map_dir "$run" --num_workers $workers
  step irnet "$here/IRNet/train_irnet.py" --map_dir "$run" --backbone_weights "$ckpt" --lr 0.01 --weight_decay 0.0 \
    $irnet $readers
  step pseudo_masks "$here/make_pseudo_seg_labels.py" --irn_pseudo_labels_save_dir "$run" --irn_best_model_name $walk \
    --irn_is_training True $pseudo $readers
  step pseudo_subset "$here/create_train_set_subsets.py" --map_dir "$run" --subset_len $subset --pseudo_labels_type irnet
  await expert_split
  train full --train_set valid --train_masks_path "$truth/valid_encoded_$expert.json" $epochs
  train weak_cam --train_masks_path "$run/pseudo_seg_labels_encoded_cams.json" $weak
  train weak_irnet --train_masks_path "$run/pseudo_seg_labels_encoded_irnet.json" $weak
  train chexseg --ss_expert_annotations_masks_path "$truth/valid_encoded_$expert.json" \
    --ss_dnn_generated_masks_path "$run/pseudo_seg_labels_irnet_${subset}_cxrs.json" \
    --semi_supervised True --weighted True --strong_labels_weight 0.9 $epochs
}

# 4. How good each kind of pseudo mask is, on the experts' validation images; the test set's pseudo masks, to look at.
quality() {
  step teacher_masks "$here/segmentation_test.py" --model_path "$trials/teacher/best_model.pth" --allow_leak True \
    --test_masks_path "$rest" --output_path "$trials/teacher/valid_masks.json" $readers
  step thresholds "$here/localization_eval/tune_thresholds.py" --map_dir "$run_valid" --only_positive True \
    --gt_path "$truth/valid_encoded_$expert.json"
  await irnet
  step quality "$here/pseudo_label_quality.py" --gt_path "$rest" --map_dir "$run_valid" \
    --threshold_path "$run_valid/thresholds.csv" --boundary_net $walk --source teacher="$trials/teacher/valid_masks.json" --output_dir "$report"
  step test_pseudo_masks "$here/make_pseudo_seg_labels.py" --irn_pseudo_labels_save_dir "$run_test" \
    --irn_best_model_name $walk --irn_is_training False --image_size $size --gate probability $pseudo $readers
}

# shellcheck disable=SC2086
lanes "experts quality" "pseudo"

# 7. The networks' masks of the test set.
models=() masks=() rows=()
for name in weak_cam weak_irnet full chexseg full_plus chexseg_plus; do
  models+=("$trials/$name/best_model.pth") masks+=("$trials/$name/test_masks.json")
  rows+=(--method "$name=$trials/$name/test_masks.json")
done
# shellcheck disable=SC2086
step test_masks_of_methods "$here/segmentation_test.py" --test_masks_path "$truth/test_encoded.json" $readers \
  --model_path "${models[@]}" --output_path "${masks[@]}"

# 8. Tables, the sheet, and the page that shows every film.
[ ! -f "$truth/test_human_encoded.json" ] || rows+=(--human "$truth/test_human_encoded.json")
step table "$here/make_tables.py" --ground_truth "$truth/test_encoded.json" --output_dir "$report" "${rows[@]}" \
  --maps "$run_test" --pseudo "$run_test/pseudo_seg_labels_encoded_irnet.json"

echo
cat "$report/table.md"
awk -F, 'NR > 1 {s += $2} END {printf "\nAll stages, one after the other: %d min %02d s. ", s / 60, s % 60}' "$report/timings.csv"
echo "Report: $report/index.html, table.md, table.csv, quality.csv, paired.csv, timings.csv, sheet.png"
[ ${#tables[@]} -gt 0 ] || exit 0

# 8. The paper's other tables. Their networks are listed in chexseg/segmentation/experiments.py.
tables=("$here/paper_tables.py" --output_dir "$workspace/tables" --trials "$trials" --map_dir "$run" --ckpt_path "$ckpt"
  --expert $expert --subset $subset --network="$common $readers" --shape="--encoder $encoder --image_size $side $decoder"
  --draws="$epochs" --teacher="$teacher" --student="$student" --readers="$readers"
  --timings "$workspace/tables/timings.csv" "$report/timings.csv" "${tables[@]}")
report=$workspace/tables steps=$workspace/tables/.steps
mkdir -p "$steps"
rm -f "$steps"/{failed,*.done}
"$PYTHON" "${tables[@]}" --plan "$steps/plan"
lane_1() { source "$steps/plan/$phase.1"; }
lane_2() { source "$steps/plan/$phase.2"; }
for phase in prepare networks students tests; do
  lanes lane_1 lane_2
done
step paper_tables "${tables[@]}"
