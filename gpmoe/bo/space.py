"""The search space of an optimisation: parameters, conditions and constraints, and its forms elsewhere."""

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gpmoe.bo.parameters import Categorical, Fixed, Float, Int, Ordinal, Parameter, Value
from gpmoe.errors import InputError

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution

Configuration: TypeAlias = dict[str, Any]

STORED = "gpmoe:space"  # user attribute of a study that holds its space
_KINDS: dict[str, type[Parameter]] = {
    "float": Float,
    "int": Int,
    "categorical": Categorical,
    "ordinal": Ordinal,
    "fixed": Fixed,
}


@dataclass(frozen=True)
class LinearConstraint:
    """sum of coefficient times value <= upper, over the active parameters it names.

    Args:
        coefficients: one for each number that takes part.
        upper: the bound.

    Example:
        >>> LinearConstraint({"a": 1.0, "b": 1.0}, 1.0)({"a": 0.5, "b": 0.6})
        False
    """

    coefficients: Mapping[str, float]
    upper: float

    def __call__(self, configuration: Mapping[str, Any]) -> bool:
        """Whether a configuration obeys it."""
        return sum(c * configuration.get(name, 0.0) for name, c in self.coefficients.items()) <= self.upper


Constraint: TypeAlias = LinearConstraint | Callable[[Configuration], bool]


@dataclass(frozen=True)
class Space:
    """Parameters by name, under which choices they are active, and constraints between them.

    Args:
        parameters: `Float`, `Int`, `Categorical`, `Ordinal` or `Fixed` by name.
        constraints: linear ones, or any functions of a configuration that say whether it is allowed.

    Raises:
        InputError: if a condition names an unknown parent, a choice it does not have or a continuous parent, if
            conditions go in a circle, or if a linear constraint names what is no number.

    Example:
        >>> space = Space({
        ...     "kind": Categorical(["svm", "forest"]),
        ...     "C": Float(1e-3, 1e3, log=True, when={"kind": ["svm"]}),
        ...     "trees": Int(10, 500, log=True, when={"kind": ["forest"]}),
        ... })
        >>> space.active({"kind": "svm"})
        ['kind', 'C']
    """

    parameters: Mapping[str, Parameter]
    constraints: Sequence[Constraint] = ()

    def __post_init__(self) -> None:
        if not self.parameters:
            raise InputError("a space needs at least one parameter; got none.")
        for name, parameter in self.parameters.items():
            if not isinstance(parameter, Float | Int | Categorical | Ordinal | Fixed):
                raise InputError(
                    f"parameter `{name}` must be a Float, Int, Categorical, Ordinal or Fixed; got {parameter!r}."
                )
            for parent, choices in (parameter.when or {}).items():
                self._expect_parent(name, parent, choices)
        object.__setattr__(
            self, "parameters", {name: self.parameters[name] for name in _parents_first(self.parameters)}
        )
        for constraint in self.constraints:
            self._expect_constraint(constraint)

    def active(self, configuration: Mapping[str, Any]) -> list[str]:
        """Names of the parameters that are active under a configuration, parents first.

        Args:
            configuration: values of at least the parents.
        """
        active: list[str] = []
        for name, parameter in self.parameters.items():
            conditions = (parameter.when or {}).items()
            if all(parent in active and configuration.get(parent) in choices for parent, choices in conditions):
                active.append(name)
        return active

    def allows(self, configuration: Configuration) -> bool:
        """Whether a configuration obeys all constraints."""
        return all(bool(constraint(configuration)) for constraint in self.constraints)

    def check(self, configuration: Mapping[str, Any]) -> None:
        """Check that a configuration has the active parameters, and values that they take.

        Raises:
            InputError: naming the parameter.
        """
        wanted = self.active(configuration)
        if set(wanted) != set(configuration):
            raise InputError(f"the active parameters are {wanted}; got {sorted(configuration)}.")
        for name in wanted:
            try:
                self.parameters[name].to_unit(configuration[name])
            except InputError as error:
                raise InputError(f"parameter `{name}`: {error}") from None
        if not self.allows(dict(configuration)):
            raise InputError(f"{dict(configuration)} breaks a constraint of the space.")

    def suggest(self, trial: "Trial") -> Configuration:
        """Ask an Optuna trial for the active parameters.

        Returns:
            Their values by name.
        """
        distributions = self.to_optuna()
        configuration: Configuration = {}
        for name, parameter in self.parameters.items():
            if name in self.active(configuration | {name: None}):
                configuration[name] = trial._suggest(name, distributions[name])
                if isinstance(parameter, Fixed):
                    configuration[name] = parameter.value
        return configuration

    # Forms elsewhere

    def to_optuna(self) -> "dict[str, BaseDistribution]":
        """Optuna's distribution of each parameter; conditions and constraints have no form there."""
        return {name: to_distribution(parameter) for name, parameter in self.parameters.items()}

    @classmethod
    def from_optuna(cls, distributions: "Mapping[str, BaseDistribution]") -> "Space":
        """A space without conditions from Optuna's distributions."""
        return cls({name: from_distribution(distribution) for name, distribution in distributions.items()})

    def to_dict(self) -> dict[str, Any]:
        """A form of plain values, as in a TOML or JSON file.

        Raises:
            InputError: if a constraint is a function, which has no such form.
        """
        functions = [c for c in self.constraints if not isinstance(c, LinearConstraint)]
        if functions:
            raise InputError(f"a constraint that is a function can't be written down; got {functions[0]!r}.")
        written = {name: _parameter_to_dict(parameter) for name, parameter in self.parameters.items()}
        linear = [
            {"coefficients": dict(c.coefficients), "upper": c.upper}
            for c in self.constraints
            if isinstance(c, LinearConstraint)
        ]
        return {"parameters": written} | ({"constraints": linear} if linear else {})

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> "Space":
        """The space of a form that `to_dict` or a file gave.

        Each parameter has a ``type``, one of float, int, categorical, ordinal and fixed, and the fields of that kind.

        Raises:
            InputError: naming the entry that can't be used.
        """
        unknown = set(form) - {"parameters", "constraints"}
        if "parameters" not in form or unknown or not isinstance(form["parameters"], Mapping):
            raise InputError(f"a space has a table `parameters`, and perhaps `constraints`; got {sorted(form)}.")
        parameters = {name: _parameter_from_dict(name, entry) for name, entry in form["parameters"].items()}
        linear = []
        for entry in form.get("constraints", []):
            if set(entry) != {"coefficients", "upper"}:
                raise InputError(f"a constraint has `coefficients` and `upper`; got {sorted(entry)}.")
            linear.append(LinearConstraint(dict(entry["coefficients"]), float(entry["upper"])))
        return cls(parameters, tuple(linear))

    @classmethod
    def from_file(cls, path: str | Path) -> "Space":
        """Read a space from a .toml or .json file.

        Raises:
            InputError: if the file can't be read as a space.
        """
        path = Path(path)
        if path.suffix not in (".toml", ".json"):
            raise InputError(f"a space is a .toml or .json file; got {path.name}.")
        if not path.is_file():
            raise InputError(f"there is no file {path}.")
        try:
            text = path.read_text(encoding="utf-8")
            form = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        try:
            return cls.from_dict(form)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def bind(self, study: "Study") -> None:
        """Keep the space in a study, or check that it is the one that the study keeps.

        A space with functions among its constraints is kept without them.

        Raises:
            InputError: if the study was made with another space, or its trials don't fit this one.
        """
        linear = tuple(c for c in self.constraints if isinstance(c, LinearConstraint))
        form = json.loads(json.dumps(Space(self.parameters, linear).to_dict()))
        stored = study.user_attrs.get(STORED)
        if stored is None:
            self._expect_trials(study)
            study.set_user_attr(STORED, form)
        elif stored != form:
            raise InputError(
                f"study `{study.study_name}` was made with another space; {_difference(stored, form)} "
                "Use the stored space, or another study name."
            )

    def _expect_trials(self, study: "Study") -> None:
        distributions = self.to_optuna()
        for trial in study.get_trials(deepcopy=False):
            for name, distribution in trial.distributions.items():
                if name not in distributions or distributions[name] != distribution:
                    wanted = distributions.get(name, "no such parameter")
                    raise InputError(
                        f"trial {trial.number} of study `{study.study_name}` has `{name}` from {distribution}, "
                        f"the space has {wanted}. Use another study name."
                    )

    def _expect_parent(self, name: str, parent: str, choices: Sequence[Value]) -> None:
        found = self.parameters.get(parent)
        if found is None:
            raise InputError(f"parameter `{name}` depends on `{parent}`, which is not in the space.")
        if found.levels is None:
            raise InputError(f"parameter `{name}` depends on `{parent}`, which is continuous; conditions need choices.")
        if isinstance(choices, str) or not isinstance(choices, Sequence) or not choices:
            raise InputError(f"parameter `{name}`: the choices of `{parent}` must be a list; got {choices!r}.")
        for choice in choices:
            try:
                found.to_unit(choice)
            except InputError as error:
                raise InputError(f"parameter `{name}` depends on `{parent}`: {error}") from None

    def _expect_constraint(self, constraint: Constraint) -> None:
        if not isinstance(constraint, LinearConstraint):
            if not callable(constraint):
                raise InputError(f"a constraint is a LinearConstraint or a function; got {constraint!r}.")
            return
        for name in constraint.coefficients:
            if not isinstance(self.parameters.get(name), Float | Int):
                raise InputError(f"a linear constraint is about numbers; `{name}` is {self.parameters.get(name)!r}.")


def to_distribution(parameter: Parameter) -> "BaseDistribution":
    """Optuna's form of a parameter; an ordinal becomes a categorical."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(parameter, Float):
        high = parameter.high
        if parameter.step is not None and parameter.levels is not None:  # Optuna warns where the last step ends short
            high = min(parameter.low + (parameter.levels - 1) * parameter.step, high)
        return FloatDistribution(parameter.low, high, log=parameter.log, step=parameter.step)
    if isinstance(parameter, Int):
        high = parameter.low + (parameter.levels - 1) * parameter.step
        return IntDistribution(parameter.low, high, log=parameter.log, step=parameter.step)
    return CategoricalDistribution(tuple(parameter.choices))


def from_distribution(distribution: "BaseDistribution") -> Parameter:
    """The parameter of an Optuna distribution.

    Raises:
        InputError: for a distribution that is neither of numbers nor of choices.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(distribution, FloatDistribution):
        return Float(distribution.low, distribution.high, log=distribution.log, step=distribution.step)
    if isinstance(distribution, IntDistribution):
        return Int(distribution.low, distribution.high, log=distribution.log, step=distribution.step)
    if isinstance(distribution, CategoricalDistribution):
        return Categorical(distribution.choices)
    raise InputError(f"expected a float, int or categorical distribution; got {distribution!r}.")


def _parents_first(parameters: Mapping[str, Parameter]) -> list[str]:
    """Names in their order, but each after those that it depends on."""
    order: list[str] = []
    waiting = list(parameters)
    while waiting:
        ready = [name for name in waiting if all(parent in order for parent in parameters[name].when or {})]
        if not ready:
            raise InputError(f"the conditions of {waiting} go in a circle.")
        order.append(ready[0])
        waiting.remove(ready[0])
    return order


def _parameter_to_dict(parameter: Parameter) -> dict[str, Any]:
    kind = next(word for word, kind in _KINDS.items() if type(parameter) is kind)
    entry: dict[str, Any] = {"type": kind}
    for field in fields(parameter):
        value = getattr(parameter, field.name)
        if field.name == "choices":
            entry["choices"] = list(value)
        elif field.name == "when":
            entry |= {} if value is None else {"when": {parent: list(choices) for parent, choices in value.items()}}
        elif field.name == "value" or value != field.default:
            entry[field.name] = value
    return entry


def _parameter_from_dict(name: str, entry: Any) -> Parameter:
    if not isinstance(entry, Mapping) or entry.get("type") not in _KINDS:
        kind = entry.get("type") if isinstance(entry, Mapping) else entry
        raise InputError(f"parameter `{name}`: `type` must be one of {', '.join(_KINDS)}; got {kind!r}.")
    kind = _KINDS[entry["type"]]
    given = {key: value for key, value in entry.items() if key != "type"}
    known = {field.name: field for field in fields(kind)}
    unknown = sorted(set(given) - set(known))
    missing = [key for key in ("low", "high", "choices", "value") if key in known and key not in given]
    if unknown or missing:
        what = f"knows no `{unknown[0]}`" if unknown else f"needs `{missing[0]}`"
        raise InputError(f"parameter `{name}`: type {entry['type']} {what}; its fields are {', '.join(known)}.")
    try:
        return kind(**given)
    except InputError as error:
        raise InputError(f"parameter `{name}`: {error}") from None


def _difference(stored: Mapping[str, Any], form: Mapping[str, Any]) -> str:
    before, now = stored["parameters"], form["parameters"]
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            return f"`{name}` is {before.get(name, 'absent')} there and {now.get(name, 'absent')} here."
    return "their constraints or the order of their parameters differ."
