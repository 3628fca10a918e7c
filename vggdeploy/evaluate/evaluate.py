"""How well a checkpoint or a variant classifies a split of a data set: evaluation mode, no gradients, any backend."""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vggdeploy.bundle.store import now
from vggdeploy.data.loaders import Images, open_split
from vggdeploy.data.specs import check_split, match_classes
from vggdeploy.errors import DataError, UsageError, counted
from vggdeploy.evaluate.scores import Scores, macro
from vggdeploy.evaluate.targets import open_model
from vggdeploy.records.evaluation import EvaluationReport
from vggdeploy.runtime.sessions import in_order
from vggdeploy.types import Device, OnProgress, Steps, silent
from vggdeploy.verify.prove import tool_versions

_AHEAD = 2  # batches that are prepared while the session runs one


@dataclass(frozen=True)
class EvaluateOptions:
    """Which split is classified, and by what.

    Attributes:
        dataset: a data set's name, or ``folder:PATH``. Default: the one that the model was trained on.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        samples: only the first so many images, which are a random sample. Default: all.
        data_dir: see `vggdeploy.data.loaders.open_split`.
        backend, variant: of a bundle; default the variant that `vggdeploy.load` takes.
        device: default the backend's own.
        threads: CPU threads; default every core that this process may use.
    """

    dataset: str = ""
    split: str = "test"
    samples: int | None = None
    data_dir: Path | None = None
    backend: str = "auto"
    variant: str | None = None
    device: Device | None = None
    threads: int | None = None


def evaluate(
    path: str | os.PathLike[str],
    options: EvaluateOptions = EvaluateOptions(),
    *,
    on_progress: OnProgress = silent,
) -> EvaluationReport:
    """Classify a split, a batch at a time, and count. Prepared images of a few batches are in memory, never all.

    Args:
        path: a checkpoint, or a bundle.
        on_progress: called with the share of the images that are classified, and what is being done.

    Raises:
        UsageError: the data set's classes are not as many as the model's; a bundle without class scores; no samples.
        DataError: no data set is known for this model, or it cannot be found or read.
        VggdeployError: as `vggdeploy.evaluate.targets.open_model`.
    """
    split = options.split
    check_split(split)
    if options.samples is not None and options.samples < 1:
        raise UsageError(f"--samples is {options.samples}", "give at least 1")
    with open_model(
        Path(path), backend=options.backend, variant=options.variant, device=options.device, threads=options.threads
    ) as model:
        name = options.dataset or model.dataset
        if not name:
            raise DataError("no data set is known for this model", "name one: --dataset digits")
        on_progress(0.0, f"reading {name} ({split})")
        data: Images = open_split(name, split, model.preprocess, data_dir=options.data_dir, memory=0)
        data = data.take(np.arange(len(data))[: options.samples])
        if not len(data):
            raise DataError(f"{data.name} has no {split} images", "name another split: --split test")
        labels, note = match_classes(
            data.labels, data.classes, model.labels, model.spec.classes, data=data.name, option="--dataset"
        )
        scores = Scores(model.spec.classes)
        steps = Steps(on_progress, len(labels), f"classifying {counted(len(labels), 'image')}")
        started = time.perf_counter()
        positions = (range(len(labels))[start : start + model.batch] for start in range(0, len(labels), model.batch))
        with closing(in_order(data.batch, map(np.array, positions), ahead=_AHEAD)) as prepared:
            for part, images in prepared:
                scores.update(model.run(images.result()), labels[part])
                steps.advance(len(part))
        seconds = time.perf_counter() - started
    classes = scores.class_scores(model.labels or data.classes)
    return EvaluationReport(
        target=str(path),
        variant=model.variant,
        backend=model.backend,
        device=model.device,
        sha256=model.sha256,
        dataset=data.name,
        split=split,
        accuracy=scores.accuracy,
        top5=scores.top5,
        loss=scores.loss,
        calibration_error=scores.calibration_error,
        balanced_accuracy=macro([c.recall for c in classes]),
        macro_f1=macro([c.f1 for c in classes if c.images]),
        classes=classes,
        confusion=scores.confusion(),
        confused=scores.confused(),
        notes=(note,) if note else (),
        seconds=round(seconds, 3),
        created=now(),
        tools=tool_versions(),
    )
