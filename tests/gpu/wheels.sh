#!/bin/sh
# Gathers the wheels that `dis train` needs beyond torch, numpy and jaxtyping, for a GPU machine without a network:
# sh tests/gpu/wheels.sh [FOLDER], by default tests/gpu/wheels. For Python 3.12 on x86-64 Linux; under 50 MB.
set -eu
folder=${1:-$(dirname "$0")/wheels}
mkdir -p "$folder"
rm -f "$folder"/*.whl
python3 -m pip download --quiet --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 --abi abi3 \
    --abi none --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --platform manylinux1_x86_64 --dest "$folder" \
    "pydantic>=2.8" "typer>=0.29" "rich>=13.7" "tomli-w>=1.0" "safetensors>=0.5" "pillow>=10.3" \
    "filelock>=3.13" "platformdirs>=4.0" tqdm
size=$(du -sm "$folder" | cut -f1)
echo "$(ls "$folder" | wc -l) wheels, $size MB, in $folder"
[ "$size" -lt 50 ]
