"""Why torch has no GPU."""

import pytest

from dino.doctor.cuda import check_cuda

CASES = [
    ({"available": True, "cuda": "12.8"}, None, {}, None),
    ({"cuda": None}, "0, H200", {}, "built without CUDA"),
    ({"cuda": "12.8"}, "0, H200", {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES=''"),
    ({"cuda": "12.8"}, "0, H200", {}, "too old for CUDA 12.8"),
    ({"cuda": "12.8"}, None, {}, "nvidia-smi is missing or fails"),
]


@pytest.mark.parametrize(("probe", "smi", "environment", "cause"), CASES)
def test_why_torch_has_no_gpu(probe, smi, environment, cause):
    found = check_cuda(probe, smi, environment)
    assert (not found) if cause is None else (cause in found[0].cause and found[0].blocking)
