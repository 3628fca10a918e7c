"""Loss and accuracy of a network on a split: evaluation mode, no gradients, FP32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from vggdeploy.data.loaders import ImageSet

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy, and the share of images whose largest logit is the label's."""

    loss: float
    accuracy: float


def evaluate(network: nn.Module, data: ImageSet, *, device: torch.device, batch_size: int = EVALUATION_BATCH) -> Score:
    """Score ``network`` (``uint8 [N, H, W, C]`` → a tuple whose first output is the logits) on every image of ``data``.

    The network comes back in the mode it was in.
    """
    training = network.training
    network.eval()
    loss, hits = 0.0, 0
    try:
        with torch.inference_mode():
            for start in range(0, len(data), batch_size):
                images = torch.from_numpy(data.images[start : start + batch_size]).to(device)
                labels = torch.from_numpy(data.labels[start : start + batch_size]).to(device)
                logits = network(images)[0]
                loss += functional.cross_entropy(logits, labels, reduction="sum").item()
                hits += int((logits.argmax(dim=1) == labels).sum())
    finally:
        network.train(training)
    return Score(loss / len(data), hits / len(data))
