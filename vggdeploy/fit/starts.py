"""What the networks of a fit begin from: fresh weights, a teacher that is made narrower, or a backbone that was given."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vggdeploy.bundle.checkpoint import CHECKPOINT_NAME, Checkpoint, read_checkpoint
from vggdeploy.data.folder import same_pictures
from vggdeploy.data.loaders import Images
from vggdeploy.data.sources import default_preprocess
from vggdeploy.errors import CheckpointError, TargetError, UntoldError
from vggdeploy.fit.material import Material
from vggdeploy.model.foreign.facts import Head, InitReport
from vggdeploy.model.foreign.files import read_state_file
from vggdeploy.model.foreign.infer import spec_from_state
from vggdeploy.model.foreign.initial import load_initial_weights
from vggdeploy.model.foreign.layouts import recognise
from vggdeploy.model.foreign.published import is_published, published
from vggdeploy.model.vgg import VGG, new_vgg
from vggdeploy.model.weights import load_model
from vggdeploy.optimize.optimize import checkpoint_in
from vggdeploy.optimize.steps.activations import recalibrate
from vggdeploy.optimize.steps.structure import SCORED, SENSED
from vggdeploy.optimize.steps.widths import widths_of, with_widths
from vggdeploy.preprocess import normalise
from vggdeploy.records.fit import Shape, Start
from vggdeploy.search.goals import choose_widths
from vggdeploy.spec import CUSTOM, ModelSpec, PreprocessSpec
from vggdeploy.system.optional import installed
from vggdeploy.train.loop import preprocess_like

_KEEPS = 24  # shares of the teacher's multiply-accumulates that are looked at, each a step narrower
_LEAST_KEPT = 0.002
_HIDDEN = 0.6  # of that share, which fc6 and fc7 keep: small networks have their weights elsewhere
_BATCH = 64
_PHOTOGRAPH = 96  # pixels of pictures of unknown size, for a backbone


@dataclass
class Original:
    """The teacher as what is cut: which of its channels matter, and which layers can spare some, on training images alone."""

    checkpoint: Path
    material: Material
    _known: tuple[VGG, Any, Any] | None = field(default=None, repr=False)
    _known_specs: dict[int, ModelSpec] = field(default_factory=dict, repr=False)

    @property
    def preprocess(self) -> PreprocessSpec:
        return read_checkpoint(self.checkpoint, check_weights=False).preprocess

    def sized(self, target: float, cost: Callable[[ModelSpec], float]) -> ModelSpec:
        """The teacher at the widths whose ``cost`` is nearest to ``target``, as a ratio. What keeps more costs more."""
        at = bisect_left(range(_KEEPS), target, key=lambda place: cost(self._narrower(place)))
        near = {self._narrower(min(max(place, 0), _KEEPS - 1)) for place in (at - 1, at)}
        return min(near, key=lambda spec: abs(math.log(cost(spec) / target)))

    def cut(self, spec: ModelSpec) -> VGG:
        """The teacher with the best channels of each layer, as many as ``spec`` has."""
        from vggdeploy.optimize.steps.prune import prune  # late: Torch-Pruning

        model, scores, _ = self._measured()
        own, wanted = widths_of(model.spec), widths_of(spec)
        small = prune(model, {name: width for name, width in wanted.items() if width != own[name]}, scores)
        recalibrate(small, self._batches(SCORED))
        return small

    def _narrower(self, place: int) -> ModelSpec:
        """The teacher with one of `_KEEPS` shares of its multiply-accumulates, the last of them the whole."""
        if place not in self._known_specs:
            model, _, sensitivity = self._measured()
            keep = _LEAST_KEPT ** (1 - place / (_KEEPS - 1))
            try:
                widths = choose_widths(
                    model.spec, sensitivity, keep, max(_HIDDEN * keep, _LEAST_KEPT) if keep < 1 else 1.0
                )
                self._known_specs[place] = with_widths(model.spec, widths)
            except TargetError:  # the floor of its layers does not allow so little
                self._known_specs[place] = self._narrower(place + 1)
        return self._known_specs[place]

    def _measured(self) -> tuple[VGG, Any, Any]:
        from vggdeploy.optimize.steps.prune import measure_sensitivity, taylor_scores  # late: Torch-Pruning

        if self._known is None:
            model = load_model(self.checkpoint)
            scores = taylor_scores(model, self._batches(SCORED))
            self._known = model, scores, measure_sensitivity(model, scores, self._batches(SENSED))
        return self._known

    def _batches(self, count: int) -> Iterator[tuple[Any, Any]]:
        preprocess = self.preprocess
        images: Images = self.material.data(preprocess.crop, 0).train
        for at in range(0, min(count, len(images)), _BATCH):
            places = np.arange(at, min(at + _BATCH, count, len(images)))
            yield normalise(images.batch(places), preprocess), images.labels[places]


def why_not_cut(teacher: Path, material: Material) -> str:
    """Why a teacher's own weights may not begin a network of this fit; "" where they may.

    What was trained on validation or test images would win by having seen them. So its record has to say that it was trained
    on this data set as it is divided now, and the division has to be the one that judges.
    """
    about = read_checkpoint(teacher)
    training = about.training
    recipe, samples = training.get("recipe", {}), training.get("samples", {})
    if not installed("torch_pruning"):
        return "Torch-Pruning is not installed: pip install 'vggdeploy[optimize]'"
    if len(material.parts) > 1:
        return "with so few images all of them judge in turn, and it was trained on some"
    if about.dataset != material.name or recipe.get("dataset") != material.name or recipe.get("hold_out") is not True:
        return "its record does not say that it was trained without these validation and test images"
    if any(samples.get(split) != count for split, count in material.sizes.items()):
        return "it was trained when these images were divided otherwise, so that it may have seen those that judge"
    return ""


@dataclass
class Backbone:
    """Convolutions that were trained elsewhere, with a new head: the mean of each channel and one linear layer. ``told`` says
    what was loaded."""

    model: VGG
    preprocess: PreprocessSpec
    told: InitReport

    @classmethod
    def of(cls, source: str, material: Material) -> Backbone:
        """
        Args:
            source: a checkpoint or a bundle, ``torchvision:NAME``, or a ``.pth`` or ``.safetensors`` in a known layout.

        Raises:
            CheckpointError: it is missing or damaged, no VGG, of other channels, holds NaN, or was trained on these pictures.
            UsageError, DataError: an unknown name of weights, or torchvision's file cannot be downloaded.
        """
        given = _spec_of(source, material)
        spec = ModelSpec(
            arch=CUSTOM,
            blocks=given.blocks,
            conv_ranks=given.conv_ranks,
            batch_norm=given.batch_norm,
            in_channels=material.dataset.channels,
            classes=len(material.dataset.classes),
            image_size=_side(material, 2 ** len(given.blocks)),
            hidden=(),
            dropout=0.0,
            head_pool="avg",
        )
        model = new_vgg(spec)
        place = str(checkpoint_in(Path(source))) if Path(source).is_dir() else source
        told = load_initial_weights(place, model, keep_fresh="classifier")
        return cls(model, preprocess_like(default_preprocess(material.name, spec.image_size), told), told)

    def begun(self, seed: int) -> VGG:
        """With a fresh head."""
        found = new_vgg(self.model.spec, seed=seed)
        found.features.load_state_dict(self.model.features.state_dict())
        return found


def _spec_of(source: str, material: Material) -> ModelSpec:
    path = Path(source)
    if is_published(source):
        return published(source, arch=None).spec
    if path.is_dir():
        root = checkpoint_in(path)
        if not (root / CHECKPOINT_NAME).is_file():
            raise CheckpointError(
                f"{source} is no checkpoint", "give one, a bundle, torchvision:vgg11_bn or a file of weights"
            )
        about = read_checkpoint(root)
        if same_pictures(about.dataset, material.name):
            raise CheckpointError(
                f"{source} was trained on {material.name} itself, with images that judge here",
                f"let it teach, which also makes it narrower: --teacher {source}",
            )
        return about.spec
    if not path.exists():
        raise CheckpointError(
            f"{source} does not exist", "give a checkpoint, a bundle, torchvision:vgg11_bn or a file of weights"
        )
    found = recognise(read_state_file(path))
    try:
        # Its linear layers are not used, and whatever stood between the convolutions and them need not be known.
        return spec_from_state(replace(found, linears=(), head=Head()))
    except UntoldError as error:  # an export is told it, and its bundle knows it
        command = f"vggdeploy export {source} -o BUNDLE"
        raise CheckpointError(
            error.cause, f"tell export, whose bundle --init takes: {command} {error.option}"
        ) from error


def _side(material: Material, stride: int) -> int:
    """Pixels: the pictures' own size where it is known, in whole strides of the backbone."""
    return max(1, math.ceil((material.dataset.size or _PHOTOGRAPH) / stride)) * stride


@dataclass
class Starts:
    """Everything that a network can begin from. ``left_out`` says why the teacher is not made narrower, where one is given."""

    material: Material
    original: Original | None = None
    backbone: Backbone | None = None
    left_out: str = ""

    @classmethod
    def of(cls, material: Material, teacher: Path | None, init: str | None) -> Starts:
        """Errors: those of `Backbone.of`."""
        why = why_not_cut(teacher, material) if teacher else ""
        return cls(
            material,
            original=Original(teacher, material) if teacher and not why else None,
            backbone=Backbone.of(init, material) if init else None,
            left_out=why,
        )

    def network(self, shape: Shape, spec: ModelSpec, seed: int) -> tuple[VGG, Checkpoint]:
        """The network that a trial begins with, and the record of its checkpoint."""
        name = self.material.name
        model, preprocess = None, default_preprocess(name, spec.image_size)
        if shape.start is Start.PRUNED and self.original is not None:
            model, preprocess = self.original.cut(spec), self.original.preprocess
        elif shape.start in (Start.FROZEN, Start.TUNED) and self.backbone is not None:
            model, preprocess = self.backbone.begun(seed), self.backbone.preprocess
        model = model or new_vgg(spec, seed=seed)
        about = Checkpoint(spec=model.spec, preprocess=preprocess, labels=self.material.dataset.classes, dataset=name)
        return model, about
