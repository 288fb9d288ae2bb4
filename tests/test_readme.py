"""The README's Python blocks run, and print what the block after each says."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:e[-+]?\d+)?")
MARK = "-- end of block --"


def python_blocks() -> list[tuple[str, str | None]]:
    """Each Python block with the text of an output block, ``text`` or unnamed, that follows it."""
    blocks = BLOCK.findall(README.read_text(encoding="utf-8"))
    followers = [*blocks[1:], ("", None)]
    return [
        (code, output if language in ("", "text") else None)
        for (kind, code), (language, output) in zip(blocks, followers, strict=True)
        if kind == "python"
    ]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each block prints; they run in one process in order, as a reader would type them."""
    script = f"print({MARK!r})\n".join(code for code, _ in python_blocks())
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path_factory.mktemp("readme"),
        env={**os.environ, "MPLBACKEND": "Agg", "KEOPS_VERBOSE": "0"},  # KeOps prints about missing GPUs
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split(MARK + "\n")


def test_the_readme_has_python_and_its_output() -> None:
    assert any(output for _, output in python_blocks())


def test_blocks_print_what_the_readme_says(printed: list[str]) -> None:
    """Words agree exactly and numbers to 2 %, since the last digits depend on the machine's LAPACK."""
    for (code, expected), output in zip(python_blocks(), printed, strict=True):
        if expected is not None:
            assert NUMBER.sub("#", output).split() == NUMBER.sub("#", expected).split(), code
            numbers = zip(NUMBER.findall(output), NUMBER.findall(expected), strict=True)
            wrong = [pair for pair in numbers if not math.isclose(*map(float, pair), rel_tol=0.02, abs_tol=1e-6)]
            assert not wrong, code


def test_links_within_the_readme_lead_to_files() -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", README.read_text(encoding="utf-8"))
    absent = [target for target in targets if "://" not in target and not (README.parent / target).exists()]
    assert not absent
