from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image
from safetensors import safe_open

from dis_cli.data.decode import center_crop

ORACLE = Path(__file__).parent / "data" / "center_crop.safetensors"
# recorded with this Pillow; another may round a level differently
TOLERANCE = 0 if PIL.__version__ == "13.0.0" else 1

with safe_open(ORACLE, "np") as file:
    ARRAYS = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
CASES = sorted(name.removeprefix("in_") for name in ARRAYS if name.startswith("in_"))


@pytest.mark.parametrize("case", CASES)
def test_center_crop_equals_the_reference(case):
    expected = ARRAYS[f"out_{case}"]
    cropped = np.asarray(center_crop(Image.fromarray(ARRAYS[f"in_{case}"]), expected.shape[0]))
    assert cropped.shape == expected.shape
    assert np.abs(cropped.astype(int) - expected).max() <= TOLERANCE
