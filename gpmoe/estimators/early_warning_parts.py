"""What a file keeps of a fitted `EarlyWarningClassifier` beside what all classifiers of series have."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from gpmoe.early_warning.boosted_trees import BoostedTrees
from gpmoe.inference.report import FitReport
from gpmoe.models.mgp_adapter import MGPAdapter


def adapter_parts(adapter: MGPAdapter, report: FitReport) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Data and tensors of the GP."""
    return {"families": list(adapter.families), "report": asdict(report)}, module_tensors(adapter, "adapter")


def restored_adapter(
    data: dict[str, Any], tensors: dict[str, Tensor], n_channels: int, rank: int
) -> tuple[MGPAdapter, FitReport]:
    """The inverse of `adapter_parts`."""
    families = data["families"]
    adapter = MGPAdapter(n_channels, timescales=[1.0] * len(families), family=families, rank=rank)
    set_module_tensors(adapter, "adapter", tensors)
    return adapter.requires_grad_(False), FitReport.from_dict(data["report"])


def trees_parts(trees: list[BoostedTrees]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Data and tensors of trees, one ensemble a task."""
    tensors = {}
    for task, each in enumerate(trees):
        tensors[f"trees{task}.starts"] = torch.from_numpy(each.starts)
        tensors[f"trees{task}.nodes"] = torch.from_numpy(each.nodes)
    return {"baselines": [each.baseline for each in trees]}, tensors


def restored_trees(data: dict[str, Any], tensors: dict[str, Tensor]) -> list[BoostedTrees]:
    """The inverse of `trees_parts`."""
    return [
        BoostedTrees(float(baseline), tensors[f"trees{t}.starts"].numpy(), tensors[f"trees{t}.nodes"].numpy())
        for t, baseline in enumerate(data["baselines"])
    ]


def module_tensors(module: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    """Parameters and buffers under a prefix."""
    return {f"{prefix}.{name}": value.detach().clone() for name, value in module.state_dict().items()}


def set_module_tensors(module: torch.nn.Module, prefix: str, tensors: dict[str, Tensor]) -> None:
    """The inverse of `module_tensors`; torch checks names and shapes."""
    module.load_state_dict({name: tensors[f"{prefix}.{name}"] for name in module.state_dict()})
