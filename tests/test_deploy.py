"""What deploy/ holds fits itself, this package and the release table. Docker and a cluster are not
asked.

Their own linters were, by hand: hadolint 2.15 and kubernetes-validate 1.37, for Kubernetes 1.28,
1.31 and 1.37.
"""

import json
import re
from pathlib import Path

import pytest
import yaml

from dino.cli.options import parse
from dino.devices.hpu.software import TORCH_OF_RELEASE, read_release
from dino.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "deploy"


@pytest.fixture(scope="module")
def pod():
    """The pod that the Job starts."""
    job = yaml.safe_load((FOLDER / "job.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    return job["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod):
    [only] = pod["containers"]
    return only


@pytest.fixture(scope="module")
def instructions():
    """The Dockerfile's instructions: pairs of name and arguments."""
    lines = (FOLDER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#")).replace(
        "\\\n", " "
    )
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def read_files(text):
    """The requirement files that the first call of make_venv in a text installs."""
    words = re.search(r"tools/make_venv\.py \S+((?: +\S+\.txt)+)", text)
    return words[1].split()


def test_the_pod_gets_cards_as_the_vendors_plugin_gives_them(pod, container):
    assert pod["runtimeClassName"] == "habana"
    requests, limits = (container["resources"][kind] for kind in ("requests", "limits"))
    exact = [name for name in limits if "/" in name or name.startswith("hugepages-")]
    assert sorted(exact) == ["habana.ai/gaudi", "hugepages-2Mi"]
    assert all(requests[name] == limits[name] for name in exact), "Kubernetes overcommits neither"
    assert requests.keys() >= {"cpu", "memory"}, "huge pages are given only with one of them"


def test_a_process_a_card_starts_main_dino_with_flags_that_it_has(container):
    module, processes = container["command"][2:4]
    assert module == "torch.distributed.run"
    assert processes == f"--nproc_per_node={container['resources']['limits']['habana.ai/gaudi']}"
    script, *flags = container["args"]
    assert (ROOT / script).is_file()
    options = parse(TrainConfig, flags)
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    for path in (options.data.data_path, options.run.output_dir):
        assert any(path.startswith(f"{mount}/") for mount in mounts), path


def test_every_volume_is_mounted_and_shared_memory_is_one(pod, container):
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {
        mount["mountPath"]: volumes.pop(mount["name"]) for mount in container["volumeMounts"]
    }
    assert volumes == {}
    assert mounted["/dev/shm"]["emptyDir"]["medium"] == "Memory"


def test_a_pod_that_is_evicted_has_time_to_save_and_is_followed_by_another(pod):
    assert pod["terminationGracePeriodSeconds"] > 30, "torchrun alone waits so long"
    assert pod["restartPolicy"] == "Never"


def test_what_the_bridge_writes_goes_where_any_user_may_and_lists_are_taken(
    container, instructions
):
    job = {variable["name"]: variable["value"] for variable in container["env"]}
    image = dict(
        pair.split("=") for name, text in instructions if name == "ENV" for pair in text.split()
    )
    for variables in (job, image):
        assert all(variables[name].startswith("/tmp") for name in ("HABANA_LOGS", "TMPDIR"))


def test_the_image_starts_from_a_pair_that_the_vendor_built(instructions):
    defaults = dict(text.split("=") for name, text in instructions if name == "ARG")
    [base] = [text for name, text in instructions if name == "FROM"]
    assert set(re.findall(r"\$\{(\w+)\}", base)) == defaults.keys()
    assert read_release(defaults["TORCH"]) in TORCH_OF_RELEASE[read_release(defaults["RELEASE"])]


def test_the_image_installs_by_the_tool_that_leaves_torch_alone(instructions):
    runs = [text for name, text in instructions if name == "RUN"]
    assert not [text for text in runs if "pip" in text.replace("ensurepip", "")]
    [line] = [text for text in runs if "make_venv" in text]
    assert read_files(line) == read_files((ROOT / "Makefile").read_text(encoding="utf-8"))
    [command] = [json.loads(text) for name, text in instructions if name == "CMD"]
    [python] = [
        text.split("=")[1]
        for name, text in instructions
        if name == "ENV" and text.startswith("PYTHON=")
    ]
    assert command == [python, "-m", "dino.doctor"]
    assert python == f"{dict(instructions)['WORKDIR']}/.venv/bin/python"


def test_the_image_gets_all_that_it_needs():
    lines = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    admitted = [line[1:] for line in lines if line.startswith("!")]
    assert [pattern for pattern in admitted if not list(ROOT.glob(pattern))] == []
    assert {"dino", "tools/make_venv.py", "requirements*.txt", "*.py"} <= set(admitted)


def test_the_page_knows_the_codes_releases_and_a_safe_installation():
    page = (ROOT / "docs" / "gaudi.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (1\.\d+)(?:\.\d+)?(?:, older)? \| (2\.\d+)", page, flags=re.MULTILINE)
    found = {}
    for release, torch in rows:
        found.setdefault(read_release(release), []).append(read_release(torch))
    first_hour = page[page.index("## First hour") : page.index("## Software")]
    assert "$PYTHON -m pip install -r requirements.txt " in first_hour
    known = {
        release: list(torches)
        for release, torches in TORCH_OF_RELEASE.items()
        if release >= (1, 18)
    }
    assert found == known
