"""Hyperparameters learned with the weights, in one run, through a model of how the weights answer them.

    min over φ of     E_ε L_T(w_φ(r + σ ε), r + σ ε)                            training step, two of every three
    min over r, σ of  E_ε L_V(w_φ(r + σ ε)) - τ Σ_h log(σ_h √(2πe))             validation step, one of every three

| symbol | name in code | shape |
|---|---|---|
| r, unconstrained hyperparameters | `raw` | (h,) |
| σ = log(1 + exp(s)), how far they are perturbed | `scale`, `raw_scale` | (h,) |
| φ, parameters of layers of `hyper_layers` and others | `model.parameters()` | |
| τ, worth of a nat of entropy of the perturbations | `entropy_weight` | |
| L_T, L_V | `training_loss`, `validation_loss` | scalars |

The layers learn the best response where perturbations reach, so wide ones make the response crude and narrow ones make
it local and slow to learn: the validation loss narrows them as far as it suffers, the entropy keeps them from zero.

Source: MacKay, Vicol, Lorraine, Duvenaud and Grosse (2019), Self-Tuning Networks, eq. 8 and 13-15, algorithm 1.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from gpmoe.bo.offline.hyper_ranges import HyperDraw, HyperRange
from gpmoe.errors import InputError, NonFiniteError, ShapeError

Data = tuple[Tensor, ...]
Loss = Callable[..., Tensor]

_TRAINING_STEPS, _CYCLE = 2, 3  # of every three steps, two train


@dataclass(frozen=True)
class TuningReport:
    """What a run of self-tuning found.

    Attributes:
        values: each hyperparameter at the end, in the caller's units.
        scales: σ of each at the end, on the unconstrained scale.
        value_trace: values after each validation step, by name.
        training_trace, validation_trace: the loss of each step of the two kinds, without the entropy.
    """

    values: dict[str, float]
    scales: dict[str, float]
    value_trace: dict[str, list[float]]
    training_trace: list[float]
    validation_trace: list[float]


class SelfTuner:
    """Learns weights by a training loss and hyperparameters by a validation loss, by turns.

    A loss is called with a minibatch and a `HyperDraw` of as many rows, and returns the mean over rows:
    ``loss(X, y, hyper)``. The model reads ``hyper.raw``; the loss reads values by name. What a hyperparameter does to
    the training alone (a penalty, dropout, noise on inputs) belongs into the training loss and not into the other.

    Args:
        model: any module whose layers take ``hyper.raw``; it is trained in place.
        ranges: each hyperparameter's range and start, by name, in the order of the columns of ``hyper.raw``.
        entropy_weight: τ; 1e-3 is for losses of about one. Where scales fall below a fifth, the response drowns in the
            noise of minibatches and values stop short of the optimum: raise it.
        scale: σ at the start.
        seed: of minibatches and perturbations.

    Raises:
        InputError: for no hyperparameter, a negative weight or a scale that is not positive.

    Example:
        >>> import torch
        >>> from gpmoe.bo.offline.hyper_layers import HyperLinear
        >>> from gpmoe.bo.offline.hyper_ranges import HalfLine
        >>> generator = torch.Generator().manual_seed(0)
        >>> X = torch.randn(60, 5, dtype=torch.float64, generator=generator)
        >>> y = X[:, 0] + torch.randn(60, dtype=torch.float64, generator=generator)
        >>> layer = HyperLinear(5, 1, n_hyper=1)
        >>> def error(X, y, hyper):
        ...     return (layer(X, hyper.raw).squeeze(-1) - y).square().mean()
        >>> def ridge(X, y, hyper):
        ...     weights, _ = layer.best_response(hyper.raw)
        ...     return error(X, y, hyper) + (hyper["penalty"] * weights.square().sum((-2, -1))).mean()
        >>> tuner = SelfTuner(layer, {"penalty": HalfLine(1.0)})
        >>> report = tuner.fit(ridge, error, (X[:40], y[:40]), (X[40:], y[40:]), n_steps=300)
        >>> 0 < report.values["penalty"] < 1
        True
    """

    def __init__(
        self,
        model: Module,
        ranges: Mapping[str, HyperRange],
        *,
        entropy_weight: float = 1e-3,
        scale: float = 0.5,
        seed: int = 0,
    ) -> None:
        if not ranges:
            raise InputError("there is no hyperparameter to tune: `ranges` is empty.")
        if not (entropy_weight >= 0 and scale > 0):
            raise InputError(f"need entropy_weight >= 0 and scale > 0; got {entropy_weight} and {scale}.")
        like = next(model.parameters())
        self.model, self.ranges, self.entropy_weight = model, dict(ranges), entropy_weight
        self.raw = Parameter(like.new_tensor([r.raw(r.start) for r in ranges.values()]))
        self.raw_scale = Parameter(torch.full_like(self.raw.data, scale + math.log(-math.expm1(-scale))))
        self.generator = torch.Generator(like.device).manual_seed(seed)

    @property
    def scale(self) -> Tensor:
        """σ, ``(h,)``."""
        return torch.nn.functional.softplus(self.raw_scale)

    @property
    def values(self) -> dict[str, float]:
        """Each hyperparameter now, in the caller's units."""
        at = zip(self.ranges.items(), self.raw.detach(), strict=True)
        return {name: float(where.value(raw)) for (name, where), raw in at}

    def fit(
        self,
        training_loss: Loss,
        validation_loss: Loss,
        training: Data,
        validation: Data,
        *,
        n_steps: int = 3000,
        n_warm_up: int = 100,
        batch_size: int = 128,
        learning_rate: float = 0.01,
        hyper_rate: float = 0.01,
    ) -> TuningReport:
        """Take steps of both kinds; all rates fall to zero along half a cosine.

        Args:
            training_loss, validation_loss: of a minibatch and a `HyperDraw`, a scalar each.
            training, validation: tensors whose first dimensions agree, passed on in minibatches.
            n_steps: of both kinds together.
            n_warm_up: training steps before the first validation step.
            batch_size: rows of a minibatch, drawn without replacement, or all if there are fewer.
            learning_rate, hyper_rate: of Adam on φ, and on r and s.

        Raises:
            ShapeError: if rows differ or there are none.
            InputError: for fewer than three steps after the warm-up.
            NonFiniteError: when a loss is no longer finite.
        """
        rows = _rows("training", training), _rows("validation", validation)
        if n_steps < n_warm_up + _CYCLE:
            raise InputError(f"`n_steps` must be at least n_warm_up + {_CYCLE} = {n_warm_up + _CYCLE}; got {n_steps}.")
        weights = torch.optim.Adam(self.model.parameters(), lr=learning_rate)
        hyper = torch.optim.Adam([self.raw, self.raw_scale], lr=hyper_rate)
        training_trace: list[float] = []
        validation_trace: list[float] = []
        value_trace: dict[str, list[float]] = {name: [] for name in self.ranges}
        for step in range(n_steps):
            along = 0.5 * (1 + math.cos(math.pi * step / n_steps))
            weights.param_groups[0]["lr"], hyper.param_groups[0]["lr"] = along * learning_rate, along * hyper_rate
            if step < n_warm_up or (step - n_warm_up) % _CYCLE < _TRAINING_STEPS:
                batch = self._minibatch(training, rows[0], batch_size)
                training_trace.append(self.training_step(training_loss, batch, weights))
            else:
                batch = self._minibatch(validation, rows[1], batch_size)
                validation_trace.append(self.validation_step(validation_loss, batch, hyper))
                for name, value in self.values.items():
                    value_trace[name].append(value)
        scales = dict(zip(self.ranges, self.scale.tolist(), strict=True))
        return TuningReport(self.values, scales, value_trace, training_trace, validation_trace)

    def training_step(self, loss: Loss, batch: Data, optimiser: torch.optim.Optimizer) -> float:
        """One step of the weights under perturbed hyperparameters, which stay as they are; the loss before it."""
        optimiser.zero_grad()
        with torch.no_grad():
            raw = self._perturbed(len(batch[0]))
        value = _finite(loss(*batch, HyperDraw(self.ranges, raw)), "training", self.values)
        value.backward()
        optimiser.step()
        return float(value.detach())

    def validation_step(self, loss: Loss, batch: Data, optimiser: torch.optim.Optimizer) -> float:
        """One step of hyperparameters and scales through the response of the weights; the loss before it."""
        optimiser.zero_grad()
        value = _finite(loss(*batch, HyperDraw(self.ranges, self._perturbed(len(batch[0])))), "validation", self.values)
        objective = value - self.entropy_weight * self.entropy()
        self.raw.grad, self.raw_scale.grad = torch.autograd.grad(objective, [self.raw, self.raw_scale])
        optimiser.step()
        return float(value.detach())

    def entropy(self) -> Tensor:
        """Σ_h log(σ_h √(2πe)), nats."""
        return (self.scale * math.sqrt(2 * math.pi * math.e)).log().sum()

    def _perturbed(self, n: int) -> Tensor:
        """r + σ ε, ``(n, h)``."""
        noise = torch.randn(n, len(self.raw), dtype=self.raw.dtype, device=self.raw.device, generator=self.generator)
        return self.raw + self.scale * noise

    def _minibatch(self, data: Data, rows: int, size: int) -> Data:
        if rows <= size:
            return data
        picked = torch.randperm(rows, device=self.raw.device, generator=self.generator)[:size]
        return tuple(part[picked] for part in data)


def _rows(name: str, data: Data) -> int:
    sizes = {len(part) for part in data}
    if len(sizes) != 1 or sizes == {0}:
        raise ShapeError(f"the tensors of `{name}` must have equally many rows, at least one; got {sorted(sizes)}.")
    return sizes.pop()


def _finite(loss: Tensor, kind: str, values: dict[str, float]) -> Tensor:
    if not bool(loss.isfinite()):
        raise NonFiniteError(
            f"the {kind} loss is {float(loss.detach())} at {values}. Usual causes: a learning rate that is too "
            "large; a hyperparameter that left the range where the model works (use an Interval)."
        )
    return loss
