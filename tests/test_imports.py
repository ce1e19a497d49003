"""Imports go one way, and light parts stay light."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

DETSEG = Path(__file__).parent.parent / "detseg"
MODULES = sorted(DETSEG.rglob("*.py"))

# Each package imports only itself and those before it in this list, imports by name (`import_module`) included.
ORDER = (
    "version",
    "errors",
    "progress",
    "config",
    "structures",
    "files",
    "images",
    "coco",
    "data",
    "formats",
    "curation",
    "evaluation",
    "fusion",
    "models",
    "tuning",
    "report",
    "detectron2",
    "optim",
    "engines",
    "runs",
    "inference",
    "engine",
    "semi_supervised",
    "submission",
    "sweeps",
    "study",
    "cli",
)
NO_TORCH = ("errors", "config", "structures", "files", "evaluation", "fusion", "tuning", "submission", "report")
NO_IMAGES = ("errors", "config", "structures", "evaluation", "fusion")
TORCH = ("errors", "config", "structures", "evaluation", "fusion", "submission", "report", "semi_supervised")
NO_IMAGES = ("errors", "config", "structures", "evaluation", "fusion")
TORCH = ("torch", "torchvision")


def package_of(module: str) -> str:
    """detseg.models.rcnn.fpn -> models; detseg and detseg.__main__ -> themselves."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "detseg"


def module_name(path: Path) -> str:
    parts = path.relative_to(DETSEG.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, top_only: bool = False) -> list[tuple[int, str]]:
    """(line, module) of every import in a file, relative ones resolved; `from a import b` may name module a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    found = []
    for node in _statements(tree, top_only):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            found += [(node.lineno, _submodule(origin, alias.name)) for alias in node.names]
    return found


def _submodule(origin: str, name: str) -> str:
    path = DETSEG.parent.joinpath(*origin.split("."))
    is_module = path.joinpath(name).is_dir() or path.joinpath(f"{name}.py").is_file()
    return f"{origin}.{name}" if origin.startswith("detseg") and is_module else origin


def _statements(tree: ast.Module, top_only: bool) -> list[ast.AST]:
    """All nodes, or those that run when the module is imported: not in functions, not under TYPE_CHECKING."""
    if not top_only:
        return list(ast.walk(tree))
    pending: list[ast.AST] = list(tree.body)
    found: list[ast.AST] = []
    while pending:
        node = pending.pop()
        found.append(node)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
    return found


def names_in_text(path: Path) -> list[tuple[int, str]]:
    """(line, module) of every string that names a module of detseg, or the beginning of one, to be imported by name."""
    return [
        (node.lineno, node.value.split(":")[0].rstrip("."))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"detseg\.[a-z0-9_]+\.[a-z0-9_.]*(:\w+)?", node.value)
    ]


def test_every_package_has_its_place():
    packages = {path.name for path in DETSEG.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert not packages - set(ORDER), "say in ORDER what these packages may import"


@pytest.mark.parametrize("package", ORDER)
def test_imports_go_one_way(package: str):
    allowed = set(ORDER[: ORDER.index(package) + 1])
    wrong = [
        f"{path.relative_to(DETSEG.parent)}:{line} imports {imported}"
        for path in MODULES
        if package_of(module_name(path)) == package
        for line, imported in [*imports(path), *names_in_text(path)]
        if imported.startswith("detseg.") and package_of(imported) not in allowed
    ]
    assert not wrong, f"{package} may import {sorted(allowed)}:\n" + "\n".join(wrong)


def test_no_circle_of_files():
    """Files that import one another, inside of functions too, can only be understood together."""
    names = {module_name(path) for path in MODULES}
    graph = {module_name(path): {name for _, name in imports(path) if name in names} for path in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_its_own_package_imports_detectron2():
    wrong = [
        f"{path.relative_to(DETSEG.parent)}:{line}"
        for path in MODULES
        if not module_name(path).startswith(("detseg.detectron2", "detseg.engine.detectron2"))
        for line, imported in imports(path)
        if imported.split(".")[0] == "detectron2"
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", NO_TORCH)
def test_light_packages_never_import_torch(package: str):
    wrong = [
        f"{path.relative_to(DETSEG.parent)}:{line} imports {imported}"
        for path in MODULES
        if package_of(module_name(path)) == package
        for line, imported in imports(path)
        if imported.split(".")[0] in TORCH
    ]
    assert not wrong, "\n".join(wrong)


def test_commands_import_nothing_heavy_until_they_run():
    heavy = (*TORCH, "cv2", "albumentations", "matplotlib", "scipy")
    wrong = [
        f"{path.relative_to(DETSEG.parent)}:{line} imports {imported}"
        for path in MODULES
        if package_of(module_name(path)) in ("cli", "__main__", "detseg")
        for line, imported in imports(path, top_only=True)
        if imported.split(".")[0] in heavy
    ]
    assert not wrong, "\n".join(wrong)


def modules_loaded_by(modules: list[str]) -> set[str]:
    """Top-level names of everything that a fresh interpreter has loaded after importing `modules`."""
    program = "import importlib, sys\n"
    program += f"for name in {modules!r}: importlib.import_module(name)\n"
    program += "print('\\n'.join(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def modules_of(packages: tuple[str, ...]) -> list[str]:
    names = [module_name(path) for path in MODULES]
    return [
        "detseg",
        *[name for name in names if package_of(name) in packages and name.rsplit(".", 1)[-1] != "__main__"],
    ]


def test_importing_detseg_loads_next_to_nothing():
    loaded = modules_loaded_by(["detseg"])
    assert not loaded & {*TORCH, "cv2", "albumentations", "numpy", "yaml"}


def test_light_packages_load_no_torch():
    assert not modules_loaded_by(modules_of(NO_TORCH)) & {*TORCH, "albumentations"}


def test_lightest_packages_load_no_image_library():
    assert not modules_loaded_by(modules_of(NO_IMAGES)) & {*TORCH, "cv2", "albumentations", "PIL", "matplotlib"}


def test_the_command_line_starts_without_torch():
    assert not modules_loaded_by(modules_of(("cli",))) & {*TORCH, "cv2", "albumentations"}
