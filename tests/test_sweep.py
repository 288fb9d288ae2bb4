"""Loops and sweeps: failures, several processes, killed ones, resuming, the command line."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState

from gpmoe.bo.loop import AskTell, maximise, minimise
from gpmoe.bo.parameters import Categorical, Float
from gpmoe.bo.space import Configuration, Space
from gpmoe.bo.sweep import counted, sweep
from gpmoe.cli import main
from gpmoe.errors import InputError

optuna.logging.set_verbosity(optuna.logging.ERROR)

SPACE = Space({"x": Float(0, 3), "kind": Categorical(["a", "b"])})
SPACE_TOML = (
    '[parameters]\nx = {type = "float", low = 0, high = 3}\nkind = {type = "categorical", choices = ["a", "b"]}\n'
)
OBJECTIVE = "import time\ndef train(c):\n    time.sleep(0.05)\n    return (c['x'] - 1) ** 2 + (c['kind'] == 'b')\n"


def bowl(configuration: Configuration) -> float:
    return (configuration["x"] - 1) ** 2 + (configuration["kind"] == "b")


def test_a_minimum_and_a_maximum_are_found() -> None:
    assert minimise(bowl, SPACE, 15, seed=0).value < 1e-3
    best = maximise(bowl, SPACE, 15, seed=0)
    assert best.configuration == {"x": pytest.approx(3), "kind": "b"}


def test_batches_are_told_in_any_order() -> None:
    loop = AskTell(SPACE, seed=0)
    batch = loop.ask(3)
    for number in reversed(batch):
        loop.tell(number, None if number == 1 else bowl(batch[number]))
    assert loop.best().value == min(bowl(batch[0]), bowl(batch[2]))
    with pytest.raises(InputError, match="no trial 1 under way"):
        loop.tell(1, 0.0)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "1", True, [1.0, 2.0], (1,), np.ones(2), torch.ones(2)])
def test_what_is_not_one_finite_number_fails_the_trial(value: Any) -> None:
    with pytest.raises(InputError, match="must return one finite number"):
        minimise(lambda c: value, SPACE, 1)


def test_one_element_tensors_are_numbers() -> None:
    assert minimise(lambda c: torch.tensor([2.0]), SPACE, 1).value == 2


def test_an_error_is_kept_with_its_trial_and_the_sweep_goes_on() -> None:
    def raises(c: Configuration) -> float:
        if c["kind"] == "b":
            raise RuntimeError("no b here")
        return bowl(c)

    study = sweep(raises, SPACE, 12, storage="sqlite://", seed=0)
    failed = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert failed
    assert all("no b here" in trial.user_attrs["error"] for trial in failed)
    assert len(failed) < 6


def test_an_interrupt_leaves_nothing_half_told(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/s.db"
    calls = []

    def interrupted(c: Configuration) -> float:
        calls.append(c)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return bowl(c)

    with pytest.raises(KeyboardInterrupt):
        sweep(interrupted, SPACE, 5, storage=storage)
    study = optuna.load_study(storage=storage, study_name="sweep")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2 + [TrialState.FAIL]
    with pytest.raises(InputError, match="resume it"):
        sweep(bowl, SPACE, 5, storage=storage)
    study = sweep(bowl, SPACE, 5, storage=storage, resume=True)
    assert counted(study) == 5


def test_a_report_can_prune() -> None:
    def objective(c: Configuration, trial: optuna.Trial) -> float:
        trial.report(bowl(c), 1)
        if trial.number == 1:
            raise optuna.TrialPruned
        return bowl(c)

    study = sweep(objective, SPACE, 3, storage="sqlite://")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]


def test_two_processes_share_a_sweep_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("objective.py").write_text(OBJECTIVE)
    Path("space.toml").write_text(SPACE_TOML)
    words = ["sweep", "objective.py:train", "--space", "space.toml", "--trials", "8"]
    assert main([*words, "--workers", "2"]) == 0
    assert "8 complete" in capsys.readouterr().out
    assert main(words) == 2
    assert "resume it" in capsys.readouterr().err
    assert main(["sweep", "objective.py:nothing", "--space", "space.toml"]) == 2
    study = optuna.load_study(storage="sqlite:///sweep.db", study_name="sweep")
    assert sorted(trial.number for trial in study.trials) == list(range(8))


@pytest.mark.slow
def test_a_killed_worker_loses_no_trial(tmp_path: Path) -> None:
    (tmp_path / "objective.py").write_text(OBJECTIVE.replace("0.05", "0.3"))
    (tmp_path / "space.toml").write_text(SPACE_TOML)
    words = ["sweep", "objective.py:train", "--space", "space.toml", "--trials", "20", "--resume"]
    command = [sys.executable, "-c", f"import gpmoe.cli, sys; sys.exit(gpmoe.cli.main({words}))"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    for wait in (8.0, 11.0, 14.0):
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
        time.sleep(wait)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, cwd=tmp_path, env=environment)
    assert done.returncode == 0
    study = optuna.load_study(storage=f"sqlite:///{tmp_path}/sweep.db", study_name="sweep")
    assert counted(study) == 20
    assert TrialState.RUNNING not in [trial.state for trial in study.trials]
