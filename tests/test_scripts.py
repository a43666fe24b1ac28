"""The commands as a newcomer starts them: help, no arguments, the demo's table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = (
    "main_dino.py",
    "eval_knn.py",
    "eval_linear.py",
    "extract_features.py",
    "eval_copy_detection.py",
    "eval_image_retrieval.py",
    "visualize_attention.py",
    "video_generation.py",
    "compute_segmentation_metrics.py",
    "run_with_submitit.py",
    "demo.py",
    "-m dino.data.check",
    "-m dino.data.pack",
    "-m dino.inspect",
    "-m dino.interop.paddle",
    "-m dino.interop.timm",
    "-m dino.interop.huggingface",
    "-m dino.interop.onnx",
    "-m dino.devices.align",
    "-m dino.verify",
    "-m dino.interop.ipu",
    "extract_weights.py",
)


def run_script(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_the_flags(script: str) -> None:
    result = run_script(*script.split(), "--help")
    assert result.returncode == 0 and "--config" in result.stdout, result.stderr


@pytest.mark.parametrize("script", ["main_dino.py", "eval_knn.py", "eval_linear.py"])
def test_without_data_path_it_ends_with_2_and_names_the_demo(script: str) -> None:
    result = run_script(script)
    assert result.returncode == 2
    assert "--data_path demo" in result.stderr + result.stdout and "Traceback" not in result.stderr


def test_the_demo_prints_three_scores_and_where_its_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import demo
    from dino.data import demo as embedded

    monkeypatch.setenv("DINO_CACHE_DIR", str(tmp_path))
    small = embedded.build_demo(embedded.DemoSpec(train_per_class=16, val_per_class=4), tmp_path)
    small.rename(tmp_path / embedded.DemoSpec().folder_name)
    demo.main(["--epochs", "1", "--num_workers", "0", "--output_dir", str(tmp_path / "run")])
    text = capsys.readouterr().out
    assert all(
        name in text
        for name in ("raw pixels", "untrained network", "trained teacher", "attention maps")
    )
    for name in ("checkpoint.pth", "tensorboard", "attention.png", "index.html"):
        assert (tmp_path / "run" / name).exists() and str(tmp_path / "run" / name) in text
