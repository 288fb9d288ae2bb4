"""Regression with a mixture of GP experts, front door."""

import warnings
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from gpmoe.distributions import Predictive
from gpmoe.errors import GPMoEWarning, InputError
from gpmoe.estimators.arrays import Scaling, checked_inputs, checked_targets
from gpmoe.estimators.checked_arguments import expect_count, expect_kernel
from gpmoe.estimators.exact_mixture_parts import exact_from_parts, exact_to_parts, settle
from gpmoe.estimators.gp_regressor import GPRegressor
from gpmoe.estimators.memory import expect_memory
from gpmoe.estimators.number_of_experts import expect_enough_rows, most_experts
from gpmoe.estimators.probabilistic_regressor import ProbabilisticRegressor
from gpmoe.estimators.sparse_mixture_parts import sparse_from_parts, sparse_to_parts
from gpmoe.estimators.stored_arguments import gate_from_parts, gate_to_parts, stored_seed
from gpmoe.gates import Gate
from gpmoe.inference.fit_sparse_mixture import fit_sparse_mixture
from gpmoe.inference.hard_em import fit_hard, fit_hard_quietly, fit_hard_sparse, sparse_from_exact
from gpmoe.inference.report import FitReport
from gpmoe.inference.solver import Cholesky
from gpmoe.inference.vbem import choose_n_experts, fit_mixture
from gpmoe.models.expert_kinds import EXPERTS, make_expert
from gpmoe.models.heteroscedastic_gp import HeteroscedasticGP
from gpmoe.models.mixture_of_experts import MixtureOfExperts
from gpmoe.models.sparse_mixture_of_experts import SparseMixtureOfExperts

Array = NDArray[np.float64]


_INFERENCES = ("vbem", "svi", "hard")
_RIVAL_ROWS = 500  # up to which "auto" tries one heteroscedastic GP: there it adds about half to the time
_EXACT_SHARE = 2000  # rows an expert up to which hard EM has exact experts
_START_ROWS = 500  # random rows an expert, and
_LEAST_START_ROWS = 1000  # altogether at least, on which hard EM finds where minibatches start


class MixtureOfExpertsRegressor(ProbabilisticRegressor):
    """Mixture of GP experts with a probabilistic gate, in the caller's units.

    Where noise, smoothness or scale change across the input space, one stationary GP compromises; a mixture gives
    each regime an expert and predicts with the whole mixture density.

    Args:
        n_experts: number of experts; "auto" adds experts, from one, as long as the approximate evidence rises, and up
            to 500 rows also tries a single `HeteroscedasticGP` in their place, for noise that changes gradually ("vbem"
            with GP experts of learned noise; beyond, its cubic cost outgrows the search for the number). Where `expert`
            lists kinds, "auto" is their number.
        expert: an unfitted `GPRegressor` whose kernel and noise each expert takes, or kinds of expert for "vbem": one
            name for all or a list with one for each, of "gp", "linear", "constant" (with learned noise), "null" (takes
            outliers), "heteroscedastic" and "student_t"; the default GP if None.
        gate: "softmax" (linear boundaries), "top_k" (each input to one expert), "activation", "annealed", "neural",
            "gp", "gp_softmax", "gp_probit" (two experts at most), "gaussian_mixture", "dirichlet_process" (prunes
            experts), "uncertainty_router", "constant", or a `gpmoe.gates.Gate` of `n_experts`.
        inference: "vbem", conjugate variational EM with exact experts, for thousands of rows; "svi", sparse experts
            from minibatches, for millions; "hard", which gives each point to one expert: exact experts
            up to 2,000 rows an expert, sparse ones beyond.
        n_inducing: inducing points of each sparse expert at most.
        max_iterations: how often "svi" sees each row; if None ten times, more often on fewer than 100,000 rows.
        random_state: fixes starts, random rows and minibatches.

    Attributes:
        model_: the fitted `MixtureOfExperts` or `SparseMixtureOfExperts`, whose posterior BoTorch can sample, in scaled
            units.
        report_: what the fit did and by which engine; its objective is the evidence bound, or hard EM's likelihood.
        n_experts_: number of experts fitted.
        responsibilities_: ``(n, k)``, probability that each expert made each training point.
        scaling_: between the caller's units and the model's.
        n_features_in_, feature_names_in_: of the training inputs.

    Example:
        >>> from gpmoe.data import load_motorcycle
        >>> X, y = load_motorcycle()
        >>> model = MixtureOfExpertsRegressor(n_experts=2, random_state=0).fit(X, y)
        >>> model.predict_gate_probs([[5.0], [30.0]]).argmax(axis=1).tolist() in ([0, 1], [1, 0])
        True
    """

    model_: MixtureOfExperts | SparseMixtureOfExperts

    def __init__(
        self,
        n_experts: int | str = "auto",
        expert: GPRegressor | str | Sequence[str] | None = None,
        gate: str | Gate = "softmax",
        inference: str = "vbem",
        random_state: Any = None,
        n_inducing: int = 128,
        max_iterations: int | None = None,
    ) -> None:
        self.n_experts = n_experts
        self.expert = expert
        self.gate = gate
        self.inference = inference
        self.random_state = random_state
        self.n_inducing = n_inducing
        self.max_iterations = max_iterations

    def fit(self, X: Any, y: Any) -> "MixtureOfExpertsRegressor":
        """Fit experts and gate, and condition on the data.

        Args:
            X: ``(n, d)``, array or frame.
            y: ``(n,)``.
        """
        self._check_arguments()
        inputs = checked_inputs(self, X, reset=True)
        targets = checked_targets(self, y, len(inputs))
        expert = self.expert if isinstance(self.expert, GPRegressor) else GPRegressor()
        expect_kernel(expert.kernel)
        solver = expert.solver
        if solver is not None and not isinstance(solver, Cholesky):
            raise InputError(f"the expert's `solver` must be None or Cholesky() in a mixture; got {solver!r}.")
        self.scaling_ = Scaling.learn(inputs, targets, expert.scale)
        seed = int(check_random_state(self.random_state).randint(2**31))
        if self.inference == "vbem":
            model, self.report_ = self._fit_vbem(expert, solver, inputs, targets, seed)
        elif self.inference == "svi":
            model, self.report_ = self._fit_svi(expert, inputs, targets, seed)
        else:
            model, self.report_ = self._fit_hard(expert, inputs, targets, seed)
        self._keep(model)
        if isinstance(model, MixtureOfExperts):
            settle(model)
        return self

    def _keep(self, model: MixtureOfExperts | SparseMixtureOfExperts) -> None:
        self.model_ = model.requires_grad_(False)
        self.n_experts_ = model.n_experts
        self.responsibilities_: Array = _responsibilities(model)

    def _fit_vbem(
        self, expert: GPRegressor, solver: Cholesky | None, inputs: Array, targets: Array, seed: int
    ) -> tuple[MixtureOfExperts, FitReport]:
        k = self._fixed_number()
        if k is None:
            expect_memory(len(inputs), matrices=4)
            return choose_n_experts(
                lambda k: self._model(k, expert, inputs, targets),
                solver=solver,
                seed=seed,
                most=most_experts(self.gate),
                rivals=self._rivals(expert, inputs, targets),
            )
        expect_memory(len(inputs), matrices=k)
        model = self._model(k, expert, inputs, targets)
        return model, fit_mixture(model, solver=solver, seed=seed)

    def _fit_svi(
        self, expert: GPRegressor, inputs: Array, targets: Array, seed: int
    ) -> tuple[SparseMixtureOfExperts, FitReport]:
        small = self._start(expert, inputs, targets, seed)
        model = self._sparse(small, inputs, targets, seed)
        return model, fit_sparse_mixture(model, epochs=self.max_iterations, seed=seed)

    def _fit_hard(
        self, expert: GPRegressor, inputs: Array, targets: Array, seed: int
    ) -> tuple[MixtureOfExperts | SparseMixtureOfExperts, FitReport]:
        k = self._number(expert, inputs, targets, seed)
        if len(inputs) <= _EXACT_SHARE * k:
            exact = self._model(k, expert, inputs, targets)
            return exact, fit_hard(exact, seed=seed)
        model = self._sparse(self._start(expert, inputs, targets, seed, k), inputs, targets, seed)
        return model, fit_hard_sparse(model)

    def _fixed_number(self) -> int | None:
        """How many experts the arguments ask for; None if the data choose."""
        if self.n_experts != "auto":
            return int(self.n_experts)
        return None if self.expert is None or isinstance(self.expert, (GPRegressor, str)) else len(self.expert)

    def _rivals(self, expert: GPRegressor, inputs: Array, targets: Array) -> list[MixtureOfExperts]:
        """One GP with input-dependent noise, where it takes the place of GPs with learned noise and is affordable."""
        if len(inputs) > _RIVAL_ROWS or expert.noise is not None or self.expert not in (None, "gp", expert):
            return []
        X, y = self.scaling_.inputs(inputs), self.scaling_.targets(targets)
        noisy = HeteroscedasticGP(X, y, kernel=deepcopy(expert.kernel))
        return [MixtureOfExperts(X, y, experts=[noisy])]

    def _number(self, expert: GPRegressor, inputs: Array, targets: Array, seed: int) -> int:
        """How many experts: as asked for, or as the evidence of some rows wants them."""
        k = self._fixed_number()
        if k is not None:
            return k
        rows = np.random.default_rng(seed).permutation(len(inputs))[:_START_ROWS]
        with warnings.catch_warnings():  # the search is for the number alone
            warnings.simplefilter("ignore", GPMoEWarning)
            model, _ = choose_n_experts(
                lambda k: self._model(k, expert, inputs[rows], targets[rows]), seed=seed, most=most_experts(self.gate)
            )
        return model.n_experts

    def _start(
        self, expert: GPRegressor, inputs: Array, targets: Array, seed: int, k: int | None = None
    ) -> MixtureOfExperts:
        """Exact experts, fitted by hard EM to random rows."""
        k = self._number(expert, inputs, targets, seed) if k is None else k
        expect_enough_rows(k, len(inputs))
        rows = np.random.default_rng(seed).permutation(len(inputs))[: max(_LEAST_START_ROWS, _START_ROWS * k)]
        model = self._model(k, expert, inputs[rows], targets[rows])
        fit_hard_quietly(model, seed=seed)
        return model

    def _sparse(self, small: MixtureOfExperts, inputs: Array, targets: Array, seed: int) -> SparseMixtureOfExperts:
        X, y = self.scaling_.inputs(inputs), self.scaling_.targets(targets)
        return sparse_from_exact(small, X, y, n_inducing=self.n_inducing, seed=seed)

    def _check_arguments(self) -> None:
        if self.inference not in _INFERENCES:
            raise InputError(f"`inference` must be 'vbem', 'svi' or 'hard'; got {self.inference!r}.")
        expect_count("n_experts", self.n_experts, "auto")
        expect_count("n_inducing", self.n_inducing)
        expect_count("max_iterations", self.max_iterations, None)
        self._check_kinds()
        if self._fixed_number() is None and not isinstance(self.gate, str):
            raise InputError("a `gate` object has a fixed number of experts: pass that number as `n_experts` too.")

    def _check_kinds(self) -> None:
        """What `expert` may be, where it is no `GPRegressor`."""
        if self.expert is None or isinstance(self.expert, GPRegressor):
            return
        single = isinstance(self.expert, str)
        names = list(self.expert) if isinstance(self.expert, (list, tuple)) else [self.expert]
        strange = [name for name in names if not isinstance(name, str) or name not in EXPERTS]
        if strange or not names:
            raise InputError(
                f"`expert` must be a GPRegressor, one of {', '.join(map(repr, EXPERTS))}, or a list of such names; got "
                f"{self.expert!r}."
            )
        if self.inference != "vbem" and names != ["gp"]:
            raise InputError(
                f"inference={self.inference!r} has Gaussian processes for experts: pass inference='vbem' for "
                f"expert={self.expert!r}."
            )
        if not single and self.n_experts not in ("auto", len(names)):
            raise InputError(
                f"`expert` names {len(names)} experts, one each; got n_experts={self.n_experts!r}. Leave `n_experts` "
                "'auto', or pass one name for all."
            )

    def _model(self, n_experts: int, expert: GPRegressor, inputs: Array, targets: Array) -> MixtureOfExperts:
        if expert.noise is not None and np.ndim(expert.noise):
            raise InputError("the expert's `noise` must be one number or None: each expert has one noise variance.")
        noise = self.scaling_.one_noise(expert.noise)
        expect_enough_rows(n_experts, len(inputs))
        X, y = self.scaling_.inputs(inputs), self.scaling_.targets(targets)
        if self.expert is not None and not isinstance(self.expert, GPRegressor):
            names = [self.expert] * n_experts if isinstance(self.expert, str) else self.expert
            kinds = [make_expert(name, X, y, n_experts) for name in names]
            return MixtureOfExperts(X, y, experts=kinds, gate=deepcopy(self.gate))
        return MixtureOfExperts(
            X,
            y,
            n_experts=n_experts,
            kernel=expert.kernel,
            noise=noise,
            gate=deepcopy(self.gate),
        )

    def predict_gate_probs(self, X: Any) -> Array:
        """Probability of each expert at each row of X ``(m, d)``, ``(m, k)``; rows sum to one."""
        inputs = self._inputs(X)
        with torch.no_grad():
            return cast(Array, self.model_.gate_probs(inputs).numpy())

    def predict_experts(self, X: Any) -> list[Predictive]:
        """Each expert's own p(y | data) at each row of X ``(m, d)``, noise included, in units of y.

        Weighted by `predict_gate_probs` they sum to `predict_dist`.
        """
        inputs = self._inputs(X)
        if isinstance(self.model_, SparseMixtureOfExperts):  # a component is an expert
            whole = self.predict_dist(X)
            moments = zip(whole.component_means.T, whole.component_variances.T, strict=True)
            return [Predictive.gaussian(*each) for each in moments]
        return [self.scaling_.predictive(each) for each in self.model_.expert_predictives(inputs)]

    def leave_one_out(self) -> Predictive:
        """p(y_i | all other training targets) for each i; see `MixtureOfExperts.leave_one_out`.

        Raises:
            InputError: if the experts are sparse, which keep no share of a single point.
        """
        check_is_fitted(self, "report_")
        if isinstance(self.model_, SparseMixtureOfExperts):
            raise InputError("`leave_one_out` needs exact experts: fit with inference='vbem', or hold out rows.")
        return self.scaling_.predictive(self.model_.leave_one_out())

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `io.Savable`."""
        (expert, of_expert), (gate, of_gate) = self._expert_to_parts(), gate_to_parts(self.gate)
        model = self.model_
        parts, tensors = sparse_to_parts(model) if isinstance(model, SparseMixtureOfExperts) else exact_to_parts(model)
        data = {
            "arguments": {
                "n_experts": self.n_experts if self.n_experts == "auto" else int(self.n_experts),
                "gate": gate,
                "inference": self.inference,
                "n_inducing": int(self.n_inducing),
                "max_iterations": None if self.max_iterations is None else int(self.max_iterations),
                "random_state": stored_seed(self.random_state),
            },
            "expert": expert,
            **parts,
        }
        return {**self._common_parts(), **data}, {**tensors, **of_expert, **of_gate}

    def _expert_to_parts(self) -> tuple[Any, dict[str, Tensor]]:
        if isinstance(self.expert, GPRegressor):
            return self.expert.arguments_to_parts()
        return (self.expert if self.expert is None or isinstance(self.expert, str) else list(self.expert)), {}

    @classmethod
    def from_parts(cls, data: dict[str, Any], tensors: dict[str, Tensor]) -> "MixtureOfExpertsRegressor":
        """See `io.Savable`."""
        expert = data["expert"]
        if isinstance(expert, dict):
            expert = GPRegressor.arguments_from_parts(expert, tensors)
        arguments = data["arguments"]
        estimator = cls(**{**arguments, "gate": gate_from_parts(arguments["gate"], tensors)}, expert=expert)
        estimator._restore_common(data, tensors)
        sparse = "likelihoods" in data
        estimator._keep(sparse_from_parts(data, tensors) if sparse else exact_from_parts(data, tensors))
        return estimator

    def _predictive(self, X: Tensor, *, include_noise: bool) -> Predictive:
        return self.model_.predictive(X, include_noise=include_noise)

    def _covariance(self, X: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model_.posterior(X, observation_noise=True).covariance

    def _draw(self, X: Tensor, n_samples: int, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            posterior = self.model_.posterior(X, observation_noise=True)
            base = torch.randn(n_samples, *posterior.base_sample_shape, generator=generator, dtype=X.dtype)
            return posterior.rsample_from_base_samples(torch.Size([n_samples]), base).squeeze(-1)


def _responsibilities(model: MixtureOfExperts | SparseMixtureOfExperts) -> Array:
    """Of the training points, ``(n, k)``."""
    if isinstance(model, MixtureOfExperts):
        return cast(Array, model.responsibilities.numpy())
    return cast(Array, model.responsibilities(model.X, model.y).numpy())
