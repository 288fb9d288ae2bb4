"""A sweep: many trials by several processes on one storage, which can be stopped and taken up again."""

import importlib.util
import multiprocessing
import signal
import sys
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import TrialState

from gpmoe.bo.lease import REAPED, reap
from gpmoe.bo.sampler import GPMoESampler
from gpmoe.bo.space import Space
from gpmoe.bo.trial_run import Objective, run_trial
from gpmoe.errors import InputError


def sweep(
    objective: Objective | str,
    space: Space,
    n_trials: int,
    *,
    storage: str = "sqlite:///sweep.db",
    name: str = "sweep",
    maximise: bool = False,
    workers: int = 1,
    resume: bool = False,
    seed: int | None = None,
) -> optuna.Study:
    """Run trials until a study has so many, and return the study.

    A trial that raises or returns no finite number is failed, with its traceback in the user attribute ``error``.
    Trials of processes that died are failed and don't count.

    Args:
        objective: a function of a configuration (see `run_trial`), or where it stands: ``"file.py:function"``. With
            several workers a function must be importable by name.
        space: what is searched; the storage keeps it, and refuses another one.
        n_trials: how many trials the study has in the end, those of earlier calls counted in.
        storage: an Optuna storage URL.
        name: of the study.
        maximise: whether larger values are better.
        workers: how many processes; 1 runs in this one.
        resume: whether the study may have trials already.
        seed: fixes the suggestions of a sweep by one worker.

    Raises:
        InputError: if the study exists and `resume` is False, or has another space or direction; or if all trials
            of some workers die.

    Example:
        >>> from gpmoe.bo import Float, Space, sweep
        >>> study = sweep(lambda c: (c["x"] - 1) ** 2, Space({"x": Float(0, 3)}), 8, storage="sqlite://", seed=0)
        >>> len(study.trials)
        8
    """
    if n_trials < 1 or workers < 1:
        raise InputError(f"`n_trials` and `workers` must be at least 1; got {n_trials} and {workers}.")
    if workers > 1 and storage in ("sqlite://", "sqlite:///:memory:"):
        raise InputError(f"several workers need a storage that they share; got {storage}.")
    if workers == 1:
        function = load_objective(objective) if isinstance(objective, str) else objective
        study = _open(space, storage, name, maximise, resume, seed)
        while counted(study) < n_trials:
            run_trial(study, function, space)
        return study
    study = _open(space, storage, name, maximise, resume, seed)
    while (missing := n_trials - counted(study)) > 0:
        before = counted(study)
        _run_workers(objective, space, storage, name, min(workers, missing), missing)
        reap(study)
        if counted(study) == before:
            raise InputError("all workers died before they finished a trial; run with one worker to see why.")
    return study


def counted(study: optuna.Study) -> int:
    """How many trials of a study have ended by themselves: completed, pruned, or failed by their objective."""
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return sum(REAPED not in trial.system_attrs for trial in ended)


def load_objective(place: str) -> Objective:
    """The function at ``file.py:function``.

    Raises:
        InputError: if there is no such file, or no such function in it.
    """
    file, colon, function = place.rpartition(":")
    path = Path(file)
    if not colon or path.suffix != ".py" or not path.is_file():
        raise InputError(f"an objective stands at file.py:function; found no file {file or place!r}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} can't be imported.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    found = getattr(module, function, None)
    if not callable(found):
        raise InputError(f"{path} has no function `{function}`.")
    return found


def _open(space: Space, storage: str, name: str, maximise: bool, resume: bool, seed: int | None) -> optuna.Study:
    """The study of a sweep, made if it is not there."""
    direction: Literal["maximize", "minimize"] = "maximize" if maximise else "minimize"
    known = name in optuna.get_all_study_names(storage) if storage != "sqlite://" else False
    if known and not resume:
        raise InputError(f"there is a study `{name}` in {storage} already; resume it, or take another name.")
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction=direction,
        load_if_exists=True,
        sampler=GPMoESampler(seed, space=space),
    )
    if study.direction.name.lower() != direction:
        raise InputError(f"study `{name}` is to {study.direction.name.lower()}; got {direction}.")
    space.bind(study)
    reap(study)
    return study


def _run_workers(objective: Objective | str, space: Space, storage: str, name: str, workers: int, tickets: int) -> None:
    """Start processes that share a number of trials, and wait for them; an interrupt is passed on to them."""
    context = multiprocessing.get_context("spawn")
    left = context.Value("i", tickets)
    arguments = (objective, space, storage, name, left)
    processes = [context.Process(target=_work, args=arguments) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    except KeyboardInterrupt:
        for process in processes:
            process.join(1.0)  # a terminal interrupts the whole group by itself
        for process in processes:
            process.terminate()
            process.join()
        raise


def _work(objective: Objective | str, space: Space, storage: str, name: str, left: Any) -> None:
    """What a worker does: trials, as long as there are tickets."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    function = load_objective(objective) if isinstance(objective, str) else objective
    study = optuna.load_study(storage=storage, study_name=name, sampler=GPMoESampler(space=space))
    try:
        while True:
            with left.get_lock():
                if left.value <= 0:
                    return
                left.value -= 1
            run_trial(study, function, space)
    except KeyboardInterrupt:
        return
