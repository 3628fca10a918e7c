"""Loss and accuracy of a network on a split: evaluation mode, no gradients, FP32."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vggdeploy.data.loaders import Images
from vggdeploy.train.feed import ahead, load
from vggdeploy.train.processes import ALONE, Processes

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy, and the share of images whose largest logit is the label's."""

    loss: float
    accuracy: float


def evaluate(
    network: nn.Module,
    data: Images,
    *,
    device: torch.device,
    batch_size: int = EVALUATION_BATCH,
    processes: Processes = ALONE,
) -> Score:
    """Score ``network`` (``uint8 [N, H, W, C]`` → a tuple whose first output is the logits) on every image of ``data``.

    Several processes share the work; each gets the whole score. The network comes back in the mode it was in.
    """
    modes = [(module, module.training) for module in network.modules()]  # frozen parts have a mode of their own
    network.eval()
    places = np.arange(processes.rank, len(data), processes.count)
    cuts = [places[at : at + batch_size] for at in range(0, len(places), batch_size)]
    loss, hits = 0.0, 0.0
    try:
        with torch.inference_mode(), closing(ahead(load(data, cut, device) for cut in cuts)) as batches:  # type: ignore[type-var]
            for images, labels in batches:
                logits = network(images)[0]
                loss += functional.cross_entropy(logits, labels, reduction="sum").item()
                hits += int((logits.argmax(dim=1) == labels).sum())
    finally:
        for module, training in modes:
            module.training = training
    loss, hits = processes.total(loss, hits)
    return Score(loss / len(data), hits / len(data))
