#!/usr/bin/env bash
# All tests, in a virtual environment that is made if it is missing:   bash run_tests.sh [pytest options]
# PYTHON=/path/to/python uses that interpreter and installs nothing; TEST_PROCESSES says how many share the tests (2).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ -z "${PYTHON:-}" ]; then
  PYTHON=.venv/bin/python
  if ! cmp -s pyproject.toml .venv/installed-dev; then
    [ -x "$PYTHON" ] || python3 -m venv .venv
    echo "Installing CheXseg and its test tools into .venv (some minutes, 6 GB with PyTorch)"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-compile -e ".[dev]"
    cp pyproject.toml .venv/installed-dev
  fi
fi
# No variable of the user's may reach a test, and no test may reach wandb's servers.
unset CHEXPERT_DATA_DIR OBJ_EFFICIENCY_BASE_PATH TEST_SEG_LABELS_GT_BASE_PATH
export WANDB_MODE=disabled OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY=PASSIVE
exec "$PYTHON" -m pytest --numprocesses "${TEST_PROCESSES:-2}" --dist loadgroup "$@"
