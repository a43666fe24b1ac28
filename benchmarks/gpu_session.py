"""Everything that is to be checked and measured on a GPU, one command after the other, in one JSON file.

    python benchmarks/gpu_session.py [--output gpu_session.json] [--only NAME ...] [--patience 2]

Takes at most 50 minutes on one card; every command has a time limit, and the file is written after
each. Needs the packages of `make test`. `--device cpu` tries the command lines with tiny sizes
where there is no GPU; what needs one is then refused, and its line says so. The exit code is 1 if a
command failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
IMAGES = 256  # of noise, for the extraction of features
LARGEST = (512, 384, 256, 192, 128)  # images per step; the first that fits counts
TESTS = [
    f"tests/devices/test_{name}.py" for name in ("cuda", "cuda_dry", "cuda_step", "cuda_graph")
]
KEPT = 40  # last lines of a command that are kept


def list_commands(device: str, folder: str) -> dict[str, tuple[int, list[list[str]]]]:
    """Name -> time limit in seconds, and command lines, of which the first that works counts."""
    tiny = device == "cpu"
    on = ["--device", device]

    def step(*words: str, batches: tuple[int, ...] = (64,)) -> list[list[str]]:
        size = ["--arch", "vit_tiny", "--prototypes", "64", "--steps", "1"] if tiny else []
        size += ["--rounds", "1"] if tiny else ["--steps", "10"]
        lines = [["benchmarks/train_step.py", *on, "--precision", "bf16", *words]]
        sizes = (1,) if tiny else batches
        return [[*line, *size, "--batch", str(batch)] for line in lines for batch in sizes]

    extraction = ["--images", "2", "--batch", "2", "--rounds", "1"] if tiny else ["--batch", "256"]
    search = ["500", "50", "5"] if tiny else ["1281167", "50000", "20"]
    verify = ["-m", "dino.verify", *on, "--output_dir", folder]
    return {
        "tests": (600, [["-m", "pytest", "-q", "-rs", *TESTS]]),
        "verify": (700, [[*verify, "--size", "quick" if tiny else "full"]]),
        "launches": (120, [["benchmarks/cuda_launches.py"]]),
        "step": (240, step()),
        "step, largest batch": (600, step("--impl", "ours", batches=LARGEST)),
        "step, --compile": (600, step("--compile", "--impl", "ours")),
        "step, --cuda_graph": (240, step("--cuda_graph", "--impl", "ours")),
        "step, both": (600, step("--compile", "--cuda_graph", "--impl", "ours")),
        "step, ViT-B/16": (240, step("--arch", "vit_base")),
        "features": (
            300,
            [["benchmarks/feature_extraction.py", f"{folder}/images", *on, *extraction]],
        ),
        "k-NN search": (300, [["benchmarks/knn_search.py", *search, *on]]),
    }


def run(line: list[str], limit: float) -> dict[str, Any]:
    """Run one command line; the whole group of its processes ends with it."""
    began = time.monotonic()
    process = subprocess.Popen(
        [PYTHON, *line],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        text, late = process.communicate(timeout=limit)[0], False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, late = process.communicate()[0], True
    lines = text.splitlines()
    return {
        "command": " ".join(["python", *line]),
        "exit code": process.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "stopped at the limit": late,
        "figures": [json.loads(found) for found in lines if found.startswith("{")],
        "last lines": lines[-KEPT:],
    }


def draw_images(folder: Path) -> None:
    """Write photographs of noise."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = rng.integers(0, 256, (375, 500, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.jpg")


def main() -> int:
    """Run all of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--output", type=Path, default=Path("gpu_session.json"))
    parser.add_argument("--only", nargs="+", help="names of the commands to run")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on every time limit")
    words = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        draw_images(Path(folder) / "images")
        for name, (limit, lines) in list_commands(words.device, folder).items():
            if words.only and name not in words.only:
                continue
            found[name] = []
            for line in lines:
                found[name].append(run(line, limit * words.patience))
                if found[name][-1]["exit code"] == 0:
                    break
            report = Path(folder) / "verify_report.json"
            more = {"verify report": json.loads(report.read_text())} if report.exists() else {}
            words.output.write_text(json.dumps({"device": words.device, "runs": found, **more}))
            last = found[name][-1]
            print(f"{name:20} exit code {last['exit code']}, {last['seconds']} s", flush=True)
    return int(any(runs[-1]["exit code"] != 0 for runs in found.values()))


if __name__ == "__main__":
    sys.exit(main())
