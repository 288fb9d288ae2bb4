"""Parts of a model that share parameters: which they are, and their objectives as one.

Two experts on one feature network can't be moved one after another, since what raises one's evidence may lower the
other's: shared parameters climb the sum.
"""

from collections.abc import Callable, Sequence
from typing import Any

import gpytorch
import torch
from torch import Tensor


def sharing_groups(parts: Sequence[torch.nn.Module]) -> list[list[int]]:
    """Group parts so that those with a learned parameter in common, directly or through others, are together.

    Returns:
        Positions in `parts`, each once; groups in the order of their first member.
    """
    groups: list[tuple[set[int], list[int]]] = []
    for i, part in enumerate(parts):
        own = {id(parameter) for parameter in part.parameters() if parameter.requires_grad}
        touched = [group for group in groups if group[0] & own]
        if not touched:
            groups.append((own, [i]))
            continue
        first = touched[0]
        for group in touched[1:]:
            first[0].update(group[0])
            first[1].extend(group[1])
            groups.remove(group)
        first[0].update(own)
        first[1].append(i)
    return [sorted(members) for _, members in groups]


class Together(gpytorch.Module):
    """Several parts as one module, whose objective is the sum of theirs.

    Args:
        parts: modules.
        objectives: for each part a function of it to a scalar.
    """

    def __init__(self, parts: Sequence[torch.nn.Module], objectives: Sequence[Callable[[Any], Tensor]]) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(parts)
        self._objectives = list(objectives)

    def objective(self) -> Tensor:
        """The sum, a scalar."""
        values = [objective(part) for objective, part in zip(self._objectives, self.parts, strict=True)]
        return torch.stack([value.reshape(()) for value in values]).sum()
