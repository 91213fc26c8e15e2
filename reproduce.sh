#!/usr/bin/env bash
# From X-rays to the paper's table, every stage for real.
#
#   bash reproduce.sh            phantom X-rays in ./workspace; about 8 minutes on 2 cores after installation
#   bash reproduce.sh tiny       the same on 64-pixel phantoms, in some two minutes
#   bash reproduce.sh paper      the paper's settings, on the data that the environment variables name
#                                (CHEXSEG_CKPT=<classifier checkpoint>; without it one is trained)
#   --workspace DIR              everything under DIR instead of ./workspace
#
# Killed and run again, it goes on where it was. PYTHON=/path/to/python uses that interpreter and installs nothing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

preset=default workspace=
while [ $# -gt 0 ]; do
  case $1 in
    default | tiny | paper) preset=$1 ;;
    --workspace) workspace=${2:?--workspace needs a folder}; shift ;;
    --workspace=*) workspace=${1#*=} ;;
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "reproduce.sh: error: unknown argument '$1'; see bash reproduce.sh --help" >&2; exit 2 ;;
  esac
  shift
done
workspace=${workspace:-$here/workspace}
[ "$preset" = default ] || [ "$preset" = paper ] || workspace=$workspace/$preset
mkdir -p "$workspace" && workspace=$(cd "$workspace" && pwd)

if [ -z "${PYTHON:-}" ]; then
  PYTHON=$here/.venv/bin/python
  if ! cmp -s "$here/pyproject.toml" "$here/.venv/installed" && ! cmp -s "$here/pyproject.toml" "$here/.venv/installed-dev"; then
    [ -x "$PYTHON" ] || python3 -m venv "$here/.venv"
    echo "Installing CheXseg into .venv (some minutes, 6 GB with PyTorch)"
    (cd "$here" && "$PYTHON" -m pip install --quiet --disable-pip-version-check -r requirements.txt)
    cp "$here/pyproject.toml" "$here/.venv/installed"
  fi
fi

workers=$(( $(nproc 2>/dev/null || echo 2) > 1 ? 2 : 0 )) readers=
# ---- Settings -------------------------------------------------------------------------------------------------------
case $preset in
  tiny)
    phantom="--preset tiny" size=64 network=resnet10w32 encoder=resnet10w32 expert=10
    classifier="--num_epochs 3 --batch_size 16 --lr 2e-3 --augment --one_cycle"
    irnet="--num_epochs 1 --radius 3" pseudo="--radius 2" subset=20 workers=0
    common="--decoder_channels 64 --batch_size 8 --lr 1e-3 --one_cycle --augment"
    weak="--num_epochs 2" full="--num_epochs 4" semi="--num_epochs 2" ;;
  default)
    phantom="--num_train 700 --num_valid 120 --num_test 120" size=160 network=resnet10w32 encoder=resnet10w32 expert=60
    classifier="--num_epochs 11 --batch_size 16 --lr 2e-3 --augment --one_cycle"
    irnet="--num_epochs 1 --radius 5" pseudo="--radius 3" subset=100
    common="--decoder_channels 128 --batch_size 8 --lr 2e-3 --one_cycle --augment"
    weak="--num_epochs 1" full="--num_epochs 14" semi="--num_epochs 14" ;;
  paper)
    phantom= size=320 network=resnet18 encoder=resnet18 expert=147
    classifier="--num_epochs 3 --batch_size 16 --lr 1e-4 --weights imagenet --augment"
    irnet="--num_epochs 5" pseudo= subset=100
    common="--batch_size 8 --lr 1e-4" weak="--num_epochs 20"
    full="--num_epochs 20 --valid_common_pathologies True" semi="--num_epochs 20 --valid_common_pathologies True"
    workers=$(nproc) readers="--num_workers $workers" ;;
esac

if [ "$preset" = paper ]; then
  : "${CHEXPERT_DATA_DIR:?}" "${OBJ_EFFICIENCY_BASE_PATH:?}" "${TEST_SEG_LABELS_GT_BASE_PATH:?}"
else
  export CHEXPERT_DATA_DIR=$workspace/data
  export OBJ_EFFICIENCY_BASE_PATH=$workspace/base
  export TEST_SEG_LABELS_GT_BASE_PATH=$workspace/data/labels
  mkdir -p "$CHEXPERT_DATA_DIR" "$OBJ_EFFICIENCY_BASE_PATH" "$TEST_SEG_LABELS_GT_BASE_PATH"
fi
base=$OBJ_EFFICIENCY_BASE_PATH truth=$TEST_SEG_LABELS_GT_BASE_PATH report=$workspace/report
mkdir -p "$report"

# step NAME COMMAND...: print the command, run it, keep its time (the longest, where a run was taken up again).
step() {
  local name=$1 started seconds
  shift
  printf '\n== %s\n$ python' "$name"
  printf ' %q' "${@/#$here\//}"
  echo
  started=$(date +%s.%N)
  "$PYTHON" "$@"
  seconds=$(echo "$started $(date +%s.%N)" | awk '{printf "%.1f", $2 - $1}')
  echo "== $name: $seconds s"
  touch "$report/.timings"
  awk -v n="$name" -v s="$seconds" -F, 'BEGIN {OFS = ","} $1 == n {if ($2 > s) s = $2; next} {print} END {print n, s}' \
    "$report/.timings" >"$report/.timings.new" && mv "$report/.timings.new" "$report/.timings"
  { echo stage,seconds; cat "$report/.timings"; } >"$report/timings.csv"
}

# ---- The pipeline ---------------------------------------------------------------------------------------------------
echo "Preset $preset, everything under $workspace"

# 0. X-rays and a classifier of them, where you have none.
ckpt=$(realpath -ms "${CHEXSEG_CKPT:-$base/models/$preset/classifier.ckpt}")
# shellcheck disable=SC2086  # the presets' options are lists of words
if [ "$preset" != paper ]; then
  step phantom "$here/make_synthetic_chexpert.py" --out_dir "$CHEXPERT_DATA_DIR" --gt_out "$truth" --num_workers $workers $phantom
fi
if [ -z "${CHEXSEG_CKPT:-}" ]; then
  step classifier "$here/train.py" --ckpt_path "$ckpt" --architecture $network --image_size $size $classifier $readers
fi

# 1. Saliency maps of the training set (for training) and of the test set (to look at).
run=$base/train_cams/$(basename "$(dirname "$ckpt")")_$(basename "$ckpt")
run_test=${run/train_cams/test_cams}
step saliency_maps "$here/test.py" --ckpt_path "$ckpt" --phase test --batch_size 16 --image_size $size \
  --save_dir_predictions "$base/train_cams" --save_cams True --save_train_cams True $readers
step test_saliency_maps "$here/test.py" --ckpt_path "$ckpt" --phase test --batch_size 16 --image_size $size \
  --save_dir_predictions "$base/test_cams" --save_cams True $readers

# 2. Masks: thresholded maps, and the radiologists' polygons.
step threshold_masks "$here/localization_eval/pred_segmentation.py" --phase train --map_dir "$run" \
  --method gradcam --model_type single $readers
annotations=$truth/gt_annotations_valid.json
[ -f "$annotations" ] || annotations=$truth/gt_annotations_val.json # CheXlocalize's own name
step expert_masks "$here/localization_eval/gt_segmentation.py" \
  --ann_path "$annotations" --output_path "$truth/valid_encoded.json"
step test_masks "$here/localization_eval/gt_segmentation.py" \
  --ann_path "$truth/gt_annotations_test.json" --output_path "$truth/test_encoded.json"
if [ -f "$truth/human_annotations_test.json" ]; then
  step radiologist_masks "$here/localization_eval/gt_segmentation.py" \
    --ann_path "$truth/human_annotations_test.json" --output_path "$truth/test_human_encoded.json"
fi

# 3. IRNet: relation labels from the maps by a dense CRF, and a network that finds boundaries.
step hdf5 "$here/IRNet/convert_to_hdf5.py" --map_dir "$run" --image_size $size $readers
step relation_labels "$here/IRNet/cam_to_ir_label_hdf5.py" --map_dir "$run" --num_workers $workers
step irnet "$here/IRNet/train_irnet.py" --map_dir "$run" --backbone_weights "$ckpt" --lr 0.01 --weight_decay 0.0 $irnet $readers

# 4. Pseudo masks by a random walk that stops at boundaries.
step pseudo_masks "$here/make_pseudo_seg_labels.py" --irn_pseudo_labels_save_dir "$run" \
  --irn_best_model_name best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth --irn_is_training True $pseudo $readers

step test_pseudo_masks "$here/make_pseudo_seg_labels.py" --irn_pseudo_labels_save_dir "$run_test" \
  --irn_best_model_name best_ir_model_hdf5_lr_0.01_weight_decay_0.0.pth --irn_is_training False \
  --image_size $size --gate probability $pseudo $readers

# 5. Subsets: the experts' images for training and validation, and the pseudo masks that go with them in CheXseg.
rest=$truth/valid_encoded_rest.json
step expert_split "$here/create_train_set_subsets.py" --masks_path "$truth/valid_encoded.json" --subset_len $expert \
  --rest_path "$rest"
step pseudo_subset "$here/create_train_set_subsets.py" --map_dir "$run" --subset_len $subset --pseudo_labels_type irnet

# 6. The four methods. Epochs and thresholds are chosen on the experts' validation images.
trials=$base/seg_trials
network_options="--architecture DeepLabV3Plus --encoder $encoder --encoder_weights_type CheXpert --image_size $size $common $readers"
weak_on() {
  step "train_weak_$1" "$here/segmentation_train.py" --save_dir "$trials" --experiment_name "weak_$1" \
    --train_masks_path "$run/pseudo_seg_labels_encoded_$2.json" --eval_masks_path "$rest" \
    --encoder_weights "$ckpt" $network_options $weak
}
weak_on cam cams
weak_on irnet irnet
step train_full "$here/segmentation_train.py" --save_dir "$trials" --experiment_name full --train_set valid \
  --train_masks_path "$truth/valid_encoded_$expert.json" --eval_masks_path "$rest" \
  --encoder_weights "$ckpt" $network_options $full
step train_chexseg "$here/segmentation_train.py" --save_dir "$trials" --experiment_name chexseg \
  --ss_expert_annotations_masks_path "$truth/valid_encoded_$expert.json" \
  --ss_dnn_generated_masks_path "$run/pseudo_seg_labels_irnet_${subset}_cxrs.json" --eval_masks_path "$rest" \
  --encoder_weights "$ckpt" $network_options \
  --semi_supervised True --weighted True --strong_labels_weight 0.9 $semi

# 7. Their masks of the test set.
step test_masks_of_methods "$here/segmentation_test.py" $readers --test_masks_path "$truth/test_encoded.json" \
  --model_path "$trials"/{weak_cam,weak_irnet,full,chexseg}/best_model.pth \
  --output_path "$trials"/{weak_cam,weak_irnet,full,chexseg}/test_masks.json

# 8. The table, the sheet and the page.
human=()
[ ! -f "$truth/test_human_encoded.json" ] || human=(--human "$truth/test_human_encoded.json")
step table "$here/make_tables.py" --ground_truth "$truth/test_encoded.json" --output_dir "$report" \
  --method weak_cam="$trials/weak_cam/test_masks.json" --method weak_irnet="$trials/weak_irnet/test_masks.json" \
  --method full="$trials/full/test_masks.json" --method chexseg="$trials/chexseg/test_masks.json" \
  "${human[@]}" --maps "$run_test" --pseudo IRNet="$run_test/pseudo_seg_labels_encoded_irnet.json" \
  --pseudo Grad-CAM="$run_test/pseudo_seg_labels_encoded_cams.json"

echo
cat "$report/table.md"
awk -F, 'NR > 1 {s += $2} END {printf "\nAll stages: %d min %02d s. ", s / 60, s % 60}' "$report/timings.csv"
echo "Report: $report/index.html (open it in a browser), table.md, table.csv, timings.csv, sheet.png"
