"""The house keeps its shape: imports go down, each field has its room, functions and files stay
small."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / "dino").rglob("*.py"))
SCRIPTS = sorted(ROOT.glob("*.py"))
CODE = [*PACKAGE, *SCRIPTS]

WORDS = {
    "errors",
    "cache",
    "constants",
    "files",
    "checkpoint",
    "config",
    "golden",
    "plain_pickle",
    "presets",
    "stored",
    "stored_optimizer",
}  # they may import one another
LEVELS = {
    **dict.fromkeys(WORDS, 0),
    **dict.fromkeys(("data", "models", "devices"), 1),
    "runtime": 2,
    "weights": 3,
    **dict.fromkeys(("training", "evaluation", "visualization", "doctor"), 4),
    "verify": 5,  # asks the doctor, and nothing asks it
    "api": 5,
    "cli": 6,
}
SHIM = 7  # an older name of a command (see `is_shim`), wherever it lies

LONGEST_FUNCTION = 60
LONGEST_MODULE = 300
LONGEST_SCRIPT = 100


@cache
def read(path):
    return path.read_text(encoding="utf-8")


@cache
def tree_of(path):
    return ast.parse(read(path))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def room_of(path):
    """`dino/data/crops.py` -> data; `dino/files.py` -> files; a script has none."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "dino" and len(parts) > 1 else None


def is_shim(path):
    """Whether a module holds nothing but a docstring and the start of one command of `dino.cli`."""
    return all(starts_a_command(part) for part in tree_of(path).body[1:])


def starts_a_command(part):
    """An import of the command, of `exit_code` or of sys, or the guard that calls them."""
    if isinstance(part, ast.Import):
        return ast.unparse(part) == "import sys"
    if isinstance(part, ast.ImportFrom):
        return bool(re.fullmatch(r"from dino\.cli\.\w+ import \w+", ast.unparse(part)))
    guard = r"if __name__ == '__main__':\s+sys\.exit\(exit_code\(\w+\)\)"
    return isinstance(part, ast.If) and bool(re.fullmatch(guard, ast.unparse(part)))


def level_of(path):
    return SHIM if is_shim(path) else LEVELS.get(room_of(path), -1)


@cache
def imported(path):
    """Every imported module of a file with its line, `from a import b` as a.b."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} imports relatively"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def rooms_imported(path):
    """Rooms of this project that a file imports, with the line."""
    return [
        (module.split(".")[1], line)
        for module, line in imported(path)
        if module.startswith("dino.") and module != "dino.__version__"
    ]


def is_within(module, *owners):
    return any(module == owner or module.startswith(f"{owner}.") for owner in owners)


def offenders(*owners, rooms, files=CODE):
    """Imports of the named libraries outside of the named rooms."""
    return [
        f"{name_of(path)}:{line} imports {module}"
        for path in files
        if room_of(path) not in rooms
        for module, line in imported(path)
        if is_within(module, *owners)
    ]


def test_every_room_has_a_level():
    known = {room_of(path) for path in PACKAGE if not is_shim(path)} - {"__init__"}
    assert known <= LEVELS.keys()


def test_imports_go_down_and_never_sideways():
    wrong = []
    for path in PACKAGE:
        room = room_of(path)
        for other, line in rooms_imported(path) if room != "__init__" else ():
            below = LEVELS.get(other, SHIM) < level_of(path)
            if not (below or other == room or (room in WORDS and other in WORDS)):
                wrong.append(f"{name_of(path)}:{line} imports {other}")
    assert wrong == []


def test_nothing_in_the_package_imports_a_script_or_an_older_name():
    scripts = [path.stem for path in SCRIPTS]
    older = [module_of(path) for path in PACKAGE if is_shim(path) and path.stem != "__init__"]
    wrong = [
        (path, line)
        for path in PACKAGE
        for name, line in imported(path)
        if is_within(name, *scripts, *older)
    ]
    assert [f"{name_of(path)}:{line}" for path, line in wrong] == []


@pytest.mark.parametrize(
    ("more", "passes"),
    [
        ("", True),
        ("from dino.cli.session import open_session as exit_code", False),
        ("from dino.data.check import main", False),
        ("import torch", False),
        ("LIMIT = 3", False),
        ("if __name__ == '__main__':\n    main()", False),
    ],
)
def test_an_older_name_of_a_command_is_known_by_what_it_holds(more, passes, tmp_path):
    path = tmp_path / "older.py"
    path.write_text(f"{(ROOT / 'dino/data/check.py').read_text()}\n{more}\n")
    assert is_shim(path) is passes


def module_of(path):
    """`dino/data/crops.py` -> dino.data.crops."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph():
    """Module -> the modules of this package it imports, wherever in the file."""
    known = {module_of(path) for path in PACKAGE}
    return {
        module_of(path): {
            target if target in known else target.rpartition(".")[0]
            for target, _ in imported(path)
            if target in known or target.rpartition(".")[0] in known
        }
        - {module_of(path), "dino"}
        for path in PACKAGE
    }


def test_modules_import_each_other_in_no_circle():
    graph, finished = import_graph(), set()
    while True:
        free = {module for module, needs in graph.items() if needs <= finished} - finished
        if not free:
            break
        finished |= free
    assert sorted(graph.keys() - finished) == []


def test_words_need_the_standard_library_yaml_numpy_and_torch_only():
    outside = ("torchvision", "timm", "PIL", "cv2", "av", "tqdm", "faiss", "tensorboard")
    assert offenders(*outside, rooms=LEVELS.keys() - WORDS, files=PACKAGE) == []
    quick = [
        path
        for path in PACKAGE
        if room_of(path) in {"errors", "files", "config"} or path.stem == "config"
    ]
    assert offenders("torch", "numpy", rooms=(), files=quick) == []


def vendor_words(path):
    """Lines of code (not of text) that use a vendor's module."""
    for module, line in imported(path):
        if is_within(module, "torch.cuda", "habana_frameworks", "poptorch", "torch.backends.cudnn"):
            yield f"{name_of(path)}:{line} imports {module}"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in {("torch", "cuda"), ("torch", "hpu")}:
                yield f"{name_of(path)}:{node.lineno} uses {node.value.id}.{node.attr}"


def test_vendor_modules_have_one_door():
    assert [
        line for path in CODE if room_of(path) != "devices" for line in vendor_words(path)
    ] == []


def test_the_work_never_asks_which_device_it_runs_on():
    kinds = {"cuda", "hpu", "ipu"}
    wrong = []
    for path in PACKAGE:
        if room_of(path) in {
            "devices",
            "cli",
        }:  # the command line asks a scheduler for one before any is open
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Compare):
                words = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                wrong += [
                    f"{name_of(path)}:{node.lineno} compares with {word!r}"
                    for word in words
                    if word in kinds
                ]
    assert wrong == []


def test_nothing_but_its_registration_knows_the_ipus_folder():
    folder = ROOT / "dino" / "devices" / "ipu"
    wrong = [
        f"{name_of(path)}:{line}"
        for path in CODE
        for module, line in imported(path)
        if is_within(module, "dino.devices.ipu") and folder not in path.parents
    ]
    assert {line.partition(":")[0] for line in wrong} == {"dino/devices/__init__.py"}


def test_image_libraries_live_in_data_and_visualization():
    owners = ("PIL", "cv2", "av", "torchvision.transforms", "torchvision.io")
    assert offenders(*owners, rooms=("data", "visualization"), files=PACKAGE) == []


def test_model_libraries_live_in_models():
    assert offenders("timm", rooms=("models",)) == []
    images = ("torchvision.transforms", "torchvision.io")
    wrong = [
        line
        for line in offenders("torchvision", rooms=("models",))
        if not any(word in line for word in images)
    ]
    assert wrong == []


def test_tensorboard_lives_in_runtime():
    assert offenders("tensorboard", "torch.utils.tensorboard", rooms=("runtime",)) == []


def functions(path):
    return [
        node
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_no_function_is_longer_than_a_screen():
    long = [
        f"{name_of(path)}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in CODE
        for node in functions(path)
        if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    ]
    assert long == []


def test_no_module_is_longer_than_300_lines():
    sizes = {name_of(path): len(read(path).splitlines()) for path in CODE}
    assert {name: size for name, size in sizes.items() if size > LONGEST_MODULE} == {}


def undocumented(body, prefix):
    """Public classes and functions without a docstring; methods of public classes too."""
    for node in body:
        if not isinstance(
            node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield f"{prefix}:{node.lineno} {node.name}"
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node.body, prefix)


def test_everything_public_says_what_it_does():
    assert [name_of(path) for path in CODE if ast.get_docstring(tree_of(path)) is None] == []
    assert [line for path in CODE for line in undocumented(tree_of(path).body, name_of(path))] == []


def test_the_package_does_not_print():
    wrong = [
        f"{name_of(path)}:{node.lineno}"
        for path in PACKAGE
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert wrong == []


def project_files():
    """What git tracks or would track; without git, what lies in the project's own folders."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0:
        return [
            ROOT / name
            for name in listed.stdout.decode().split("\0")
            if name and (ROOT / name).is_file()
        ]
    folders = [ROOT / name for name in ("dino", "tests", "tools", "configs", "docs", "benchmarks")]
    return [*CODE, *(path for folder in folders for path in folder.rglob("*") if path.is_file())]


FORBIDDEN = ["/" + "work/", "py" + "pi.org", "files.python" + "hosted"]


@pytest.mark.parametrize("word", FORBIDDEN)
def test_no_file_names_a_machine_or_a_package_registry(word):
    found = [name_of(path) for path in project_files() if word.encode() in path.read_bytes()]
    assert found == []


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_scripts_are_thin(path):
    assert len(read(path).splitlines()) <= LONGEST_SCRIPT
    assert not [node.name for node in tree_of(path).body if isinstance(node, ast.ClassDef)]


def test_no_named_tuple_is_generic():
    """Python 3.10 refuses the class where it is defined, and type checkers do not say so."""
    wrong = [
        f"{name_of(path)}:{node.lineno} {node.name}"
        for path in CODE
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
        and "NamedTuple" in (bases := " ".join(ast.unparse(base) for base in node.bases))
        and "Generic" in bases
    ]
    assert wrong == []


# More may be added if Python 3.10 can subscript them; logging.StreamHandler, for one, it cannot.
SUBSCRIPTED = {"Column", "Dataset", "Sampler", "Sequence", "list"}


def test_base_classes_are_subscripted_where_python_3_10_can():
    """It refuses others where the class is defined, and type checkers do not say so."""
    found = {
        ast.unparse(base.value)
        for path in CODE
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Subscript)
    }
    assert found <= SUBSCRIPTED
