"""One trial: ask for a configuration, call the objective, tell what came of it, whatever that was."""

import inspect
import math
import traceback
from collections.abc import Callable
from typing import Any, TypeAlias

from optuna import Study, TrialPruned
from optuna.trial import Trial, TrialState

from gpmoe.bo.lease import REAPED, renewed
from gpmoe.bo.space import Configuration, Space
from gpmoe.errors import InputError

Objective: TypeAlias = Callable[..., Any]

ERROR = "error"  # user attribute of a failed trial: the end of its traceback
_LONGEST = 2000


def run_trial(study: Study, objective: Objective, space: Space, *, lease_seconds: float = 3600.0) -> Trial:
    """Run one trial of a study to its end.

    The objective is called with the configuration, and with Optuna's trial if it takes a second argument, to report
    intermediate values and to be pruned. A trial fails if the objective raises, or returns anything but one finite
    number; why stands in the trial's user attribute ``error``. If the process is interrupted, it fails the trial first.

    Args:
        study: with a sampler of this package.
        objective: a function of the configuration, and perhaps of the trial.
        space: what is searched.
        lease_seconds: how long the trial counts as alive without news.
    """
    trial = study.ask()
    try:
        configuration = space.suggest(trial)
        with renewed(study, study._storage.get_trial(trial._trial_id), lease_seconds):
            value = number(_call(objective, configuration, trial))
    except TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
    except Exception as error:  # whatever an objective raises is a result of the sweep
        trial.set_user_attr(ERROR, "".join(traceback.format_exception(error))[-_LONGEST:])
        study.tell(trial, state=TrialState.FAIL)
    except BaseException:
        study._storage.set_trial_system_attr(trial._trial_id, REAPED, "interrupted")
        study.tell(trial, state=TrialState.FAIL)
        raise
    else:
        study.tell(trial, value)
    return trial


def number(value: Any) -> float:
    """What an objective returned, as one finite number; arrays and tensors of one element will do.

    Raises:
        InputError: for anything else.
    """
    if isinstance(value, str | bytes | bool) or value is None:
        raise InputError(f"the objective must return one finite number; got {value!r}.")
    try:
        one = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"the objective must return one finite number; got {value!r}.") from None
    if not math.isfinite(one):
        raise InputError(f"the objective must return one finite number; got {one}.")
    return one


def _call(objective: Objective, configuration: Configuration, trial: Trial) -> Any:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wanted = [p for p in inspect.signature(objective).parameters.values() if p.kind in positional]
    takes_trial = len(wanted) > 1 and wanted[1].default is inspect.Parameter.empty
    return objective(configuration, trial) if takes_trial else objective(configuration)
