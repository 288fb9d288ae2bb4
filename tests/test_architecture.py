"""The shape of the package: imports point down, every public name is explained, importing changes nothing."""

import ast
import functools
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import gpmoe

PACKAGE = Path(gpmoe.__file__).parent
LAYERS = [
    "errors",
    "shapes",
    "distributions",
    "metrics",
    "data",
    "linalg",
    "kernels",
    "features",
    "gates",
    "models",
    "inference",
    "bo",
    "early_warning",
    "io",
    "estimators",
    "plotting",
    "testing",
    "table",
    "demo",
    "cli",
]


def package_files() -> list[tuple[Path, str]]:
    """Each file below a layer, with the layer; ``gpmoe/__init__.py`` stands above all."""
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]
    return [(path, path.relative_to(PACKAGE).parts[0].removesuffix(".py")) for path in files]


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a file imports anywhere, in functions and for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names = [alias.name for alias in node.names]
            yield from ([f"gpmoe.{name}" for name in names] if node.module == "gpmoe" else [node.module or ""])


def imported_layers(path: Path) -> set[str]:
    modules = imported_modules(ast.parse(path.read_text(encoding="utf-8")))
    return {name.split(".")[1] for name in modules if name.startswith("gpmoe.")} - {"__version__"}


def test_every_part_of_the_package_has_a_layer() -> None:
    assert {layer for _, layer in package_files()} <= set(LAYERS)


def test_imports_point_down() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}: {here} -> {there}"
        for path, here in package_files()
        for there in imported_layers(path)
        if there not in LAYERS or LAYERS.index(there) > LAYERS.index(here)
    ]
    assert not wrong


def test_optimisation_and_early_warning_do_not_know_each_other() -> None:
    apart = {"bo", "early_warning"}
    assert not [path for path, here in package_files() if here in apart and imported_layers(path) & apart - {here}]


def test_only_the_solver_touches_the_settings_of_gpytorch() -> None:
    wrong = [
        str(path.relative_to(PACKAGE))
        for path, _ in package_files()
        if any(
            name.split(".")[:2] in (["gpytorch", "settings"], ["linear_operator", "settings"])
            for name in dotted_names(ast.parse(path.read_text(encoding="utf-8")))
        )
    ]
    assert set(wrong) <= {"inference/solver.py"}


def dotted_names(tree: ast.AST) -> Iterator[str]:
    """Modules imported, ``a.b`` for ``from a import b``, and attributes ``a.b.c`` written out."""
    yield from imported_modules(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unexplained(module: ModuleType) -> Iterator[str]:
    """Public functions, classes and methods that a module defines without a docstring, own or inherited."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value):
            methods = [key for key, member in vars(value).items() if inspect.isroutine(member) or is_property(member)]
            public = [getattr(value, key) for key in methods if not key.startswith("_")]
            yield from (f"{value.__qualname__}.{member}" for member in public if inspect.getdoc(member) is None)
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__doc__ is None:
            yield f"{module.__name__}.{name}"


def is_property(member: object) -> bool:
    return isinstance(member, (property, functools.cached_property))


def test_every_public_name_has_a_docstring() -> None:
    names = [name for _, name, _ in pkgutil.walk_packages([str(PACKAGE)], "gpmoe.")]
    modules = [importlib.import_module(name) for name in ["gpmoe", *names]]
    assert not [module.__name__ for module in modules if not module.__doc__]
    assert not [name for module in modules for name in unexplained(module)]


def test_every_public_name_can_be_had() -> None:
    for name in dir(gpmoe):
        assert getattr(gpmoe, name) is not None
    for name in gpmoe.__all__:
        assert name in dir(gpmoe)


def test_packages_export_what_they_say() -> None:
    for path in PACKAGE.glob("*/__init__.py"):
        module = importlib.import_module(f"gpmoe.{path.parent.name}")
        assert module.__all__ == sorted(module.__all__), path
        assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'GPClassifier'.*GPRegressor"):
        gpmoe.GPClassifier  # noqa: B018


def test_no_file_has_an_empty_name() -> None:
    banned = {"utils.py", "helpers.py", "base.py", "misc.py", "common.py"}
    assert not [path for path in PACKAGE.rglob("*.py") if path.name in banned]


def printed_by(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]  # some libraries print as they are imported


def test_importing_costs_little_more_than_importing_torch() -> None:
    code = "import torch, time; start = time.perf_counter(); import gpmoe; print(time.perf_counter() - start)"
    assert any(float(printed_by(code)) < 0.3 for _ in range(3))  # thrice, since other processes run beside


WATCH = """
import json, os, random, sys, warnings
import numpy, torch, torch.distributions
{first}

def of_settings():
    return {{f"{{module}}.{{name}}.{{key}}": repr(value) for module in ("gpytorch.settings", "linear_operator.settings")
            if module in sys.modules for name, setting in vars(sys.modules[module]).items()
            if isinstance(setting, type) for key, value in vars(setting).items() if not key.startswith("__")
            and not callable(value) and not isinstance(value, (classmethod, staticmethod, property))}}

def of_distributions():
    return {{f"{{name}}.{{key}}": id(value) for name, cls in vars(torch.distributions).items()
            if isinstance(cls, type) for key, value in vars(cls).items()}}

def state():
    return {{
        "dtype": str(torch.get_default_dtype()), "threads": torch.get_num_threads(),
        "interop": torch.get_num_interop_threads(), "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch random": torch.get_rng_state().tolist(), "random": repr(random.getstate()),
        "numpy random": repr(numpy.random.get_state()), "numpy errors": numpy.geterr(),
        "environment": dict(os.environ), "warnings": repr(warnings.filters), **of_settings(), **of_distributions(),
    }}

modules, before = set(sys.modules), state()
{then}
after = state()
changed = [key for key in {{**before, **after}} if before.get(key) != after.get(key)]
print(json.dumps({{"changed": changed, "loaded": sorted(name for name in set(sys.modules) - modules)}}))
"""


def changes(first: str, then: str) -> dict[str, list[str]]:
    """What the second statement changes of the process, and the modules that it loads, after the first."""
    found: dict[str, list[str]] = json.loads(printed_by(WATCH.format(first=first, then=then)))
    return found


@pytest.mark.parametrize("first", ["", "import gpytorch, linear_operator"], ids=["bare", "after GPyTorch"])
def test_importing_changes_no_global_state(first: str) -> None:
    found = changes(first, "import gpmoe")
    assert found["changed"] == []
    heavy = {"botorch", "pyro", "pykeops", "optuna", "matplotlib", "numba", "polars", "typer", "scipy", "sklearn"}
    assert not heavy & set(found["loaded"])


def test_the_watch_on_global_state_sees_what_other_libraries_change() -> None:
    found = changes("", "import pyro; torch.set_default_dtype(torch.float64)")
    assert "dtype" in found["changed"]
    assert "HalfCauchy.log_prob" in found["changed"]  # Pyro patches torch.distributions
    found = changes("import gpytorch", "import botorch")
    assert [key for key in found["changed"] if ".settings." in key]  # BoTorch sets solver defaults
