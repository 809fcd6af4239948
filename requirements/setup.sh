#!/usr/bin/env bash
# Make the virtual environment of one device, or do nothing where it is already what the requirement files say.
#
#   requirements/setup.sh cpu|cuda FOLDER
#
# PYTHON chooses the interpreter (3.11 to 3.13), PIP_ARGS goes to pip. Run by `make setup` from the repository's root.
set -euo pipefail

device=$1
venv=$2
warm_imports='
import torch, torchrec, torchrec.distributed.train_pipeline
import torch._dynamo, torch.distributed.checkpoint, torch.distributed.run, torch.export, torch.utils.tensorboard
import lightgbm, pandas, pyarrow.parquet, pydantic, pytest, rich.progress, scipy.stats, torchjd, torchx.cli, typer
import matplotlib.backends.backend_agg, matplotlib.backends.backend_svg, matplotlib.figure, optuna
'
read -r -a pip_args <<<"${PIP_ARGS:-}"

supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

choose_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Python 3.11, 3.12 or 3.13 is needed; found ${PYTHON:-python3}: $("${PYTHON:-python3}" --version 2>&1 || true)." \
        "Name one: make PYTHON=/path/to/python3.11 ..." >&2
    exit 1
}

# Files -> one line that changes with their content.
digest() {
    cat "$@" | cksum | tr ' ' '-'
}

# Stamp file, key -> is the step of this stamp already done?
done_before() {
    [[ -f $1 && $(<"$1") == "$2" ]]
}

if [[ $device != cpu && $device != cuda ]]; then
    echo "error: no device '$device'; choose DEVICE=cpu or DEVICE=cuda" >&2
    exit 1
fi
python=$(choose_python)
version=$(version_of "$python")

if [[ $(version_of "$venv/bin/python") != "$version" ]]; then
    echo "set-up: Python $version in $venv"
    "$python" -m venv --clear "$venv"
fi

# Stamps lie in the environment, so they go when it goes. A stamp is written last: a broken set-up starts again.
key="$device $version $(digest requirements/*.txt requirements/fbgemm-gpu-stub/pyproject.toml requirements/setup.sh)"
stamp=$venv/.stamp-requirements
if ! done_before "$stamp" "$key"; then
    echo "set-up: packages for $device (one to several minutes)"
    rm -f "$stamp"
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-compile ${pip_args[@]+"${pip_args[@]}"} \
        -r "requirements/$device.txt" -r requirements/dev.txt
    "$venv/bin/python" -m pip check
    # pip would compile all of torch, half a minute. Importing compiles what runs use, also where the shell says not to
    # write bytecode, and shows that torch and fbgemm fit.
    env -u PYTHONDONTWRITEBYTECODE "$venv/bin/python" -W ignore -c "$warm_imports"
    echo "$key" >"$stamp"
fi

key="$device $version $(digest pyproject.toml)"
stamp=$venv/.stamp-package
if ! done_before "$stamp" "$key"; then
    echo "set-up: torchrec_mtl, editable"
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --no-index -e .
    "$venv/bin/python" -m pip check
    echo "$key" >"$stamp"
fi
