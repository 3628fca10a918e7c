"""A training run as data: everything that decides which weights come out. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

import msgspec

from vggdeploy.bundle.checkpoint import Checkpoint, read_checkpoint
from vggdeploy.data.folder import is_folder
from vggdeploy.data.sources import default_preprocess, get_dataset
from vggdeploy.data.specs import DatasetSpec
from vggdeploy.errors import UsageError, unknown_name
from vggdeploy.records import Record
from vggdeploy.spec import CUSTOM, ModelSpec, PreprocessSpec, at_width, parse_blocks, split_arch

Optimizer = Literal["sgd", "adamw", "muon"]
Schedule = Literal["cosine", "step", "one-cycle", "constant"]
Keep = Literal["best", "last"]
Fresh = Literal["auto", "nothing", "head", "classifier"]
TrainingPrecision = Literal["auto", "fp32", "bf16", "fp16"]
Augmentation = Literal["flip", "crop", "shift", "rotate", "colour"]

AUGMENTATIONS: tuple[Augmentation, ...] = get_args(Augmentation)
CUSTOM_NAMES = (CUSTOM, f"{CUSTOM}_bn")
LIKE_INIT = "init"  # as an architecture: the network, and the preprocessing, of the checkpoint that init names
NETWORK = ("blocks", "width", "hidden", "dropout", "image_size", "channels")
NO_FREEZE, ALL_FEATURES = "none", "features"


class Recipe(Record, frozen=True, kw_only=True):
    """Network, data, and how it is trained. The same recipe gives the same weights; docs/reference/recipe.md has it all.

    Without ``normalise`` the network sees pixels from 0 to 1 as they are; without ``hold_out`` it trains on the validation
    images, too, and is validated on the test images, which then may decide nothing.
    ``channels`` 0 are the data set's; ``per_class`` 0 takes every training image, ``max_images`` 0 every image of every
    split; ``max_steps``, ``clip``, ``patience`` and ``unfreeze_every`` are off at 0; ``lr_features`` and ``lr_rest`` (of
    biases and batch norms, and with Muon of linear layers) are ``lr`` where they are not given. ``warmup`` is the share of all
    steps in which the learning rate rises to ``lr``; then it follows ``schedule``. ``precision`` is that of the forward
    and backward pass; weights are FP32 always. With ``arch`` ``"init"`` the network is that of the checkpoint ``init``.
    With ``distill`` the network also learns from the answers of that checkpoint, its teacher (see
    `vggdeploy.train.distill`): ``temperature`` softens them, and they weigh ``distill_weight``, the labels the rest.
    ``quantisation_aware`` trains with the rounding of INT8 (see `vggdeploy.train.quantisation`); with ``keep_zeros`` weights
    that begin as 0 stay 0.
    """

    dataset: str = "digits"
    per_class: int = 0
    max_images: int = 0
    augment: tuple[Augmentation, ...] = ()
    normalise: bool = True
    hold_out: bool = True
    arch: str = "vgg11_bn"
    blocks: str = ""
    width: float = 1.0
    hidden: int = 4096
    dropout: float = 0.5
    image_size: int = 32
    channels: int = 0
    init: str = ""
    fresh: Fresh = "auto"
    freeze: str = NO_FREEZE
    unfreeze_every: int = 0
    epochs: int = 6
    max_steps: int = 0
    batch_size: int = 64
    optimizer: Optimizer = "sgd"
    lr: float = 0.05
    lr_features: float | None = None
    lr_rest: float | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    warmup: float = 0.2
    step_every: int = 2
    step_factor: float = 0.1
    label_smoothing: float = 0.1
    distill: str = ""
    temperature: float = 4.0
    distill_weight: float = 0.9
    quantisation_aware: bool = False
    keep_zeros: bool = False
    clip: float = 0.0
    keep: Keep = "best"
    patience: int = 0
    precision: TrainingPrecision = "auto"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for value, kind, known in (
            (self.optimizer, "optimiser", get_args(Optimizer)),
            (self.schedule, "schedule", get_args(Schedule)),
            (self.keep, "epoch to keep", get_args(Keep)),
            (self.fresh, "part to keep fresh", get_args(Fresh)),
            (self.precision, "training precision", get_args(TrainingPrecision)),
            *((kind, "augmentation", AUGMENTATIONS) for kind in self.augment),
        ):
            if value not in known:
                raise unknown_name(kind, value, known)
        for holds, cause, hint in (*self._ranges(), *self._transfer()):
            if not holds:
                raise UsageError(cause, hint)
        # An unknown data set or architecture, or a size that does not fit, is found here. A folder is not looked into:
        # a recipe can be read where its images are not.
        if self.arch == LIKE_INIT:  # nor at the checkpoint
            if not is_folder(self.dataset):
                get_dataset(self.dataset)
        elif is_folder(self.dataset):
            self._network(self.channels or 3, 2)
        else:
            self.model_spec()
            self.preprocess()

    def _ranges(self) -> Iterable[tuple[bool, str, str]]:
        def positive(value: float) -> bool:
            return math.isfinite(value) and value > 0

        def share(value: float, what: str) -> tuple[bool, str, str]:
            return 0 <= value < 1, f"{what} {value}", "give a number from 0 up to, not including, 1"

        yield self.epochs >= 1, f"{self.epochs} epochs", "give at least 1"
        yield self.batch_size >= 2, f"a batch of {self.batch_size} images", "give at least 2: batch norm needs them"
        yield positive(self.lr), f"learning rate {self.lr}", "give a number above 0, such as 0.05"
        yield (
            self.lr_features is None or positive(self.lr_features),
            f"learning rate {self.lr_features} of the features",
            "give a number above 0, such as 0.005; --freeze features keeps them as they are",
        )
        yield (
            self.lr_rest is None or positive(self.lr_rest),
            f"learning rate {self.lr_rest} of biases and batch norms",
            "give a number above 0, such as 0.05",
        )
        yield (
            self.optimizer != "muon" or not self.keep_zeros,
            "Muon turns every weight of a matrix: zeros would not stay",
            "keep zeros with --optimizer sgd or adamw",
        )
        yield share(self.momentum, "momentum")
        yield (
            math.isfinite(self.weight_decay) and self.weight_decay >= 0,
            f"weight decay {self.weight_decay}",
            "give 0 or more, such as 0.0005",
        )
        yield share(self.warmup, "warm-up")
        yield share(self.label_smoothing, "label smoothing")
        yield self.step_every >= 1, f"a step every {self.step_every} epochs", "give at least 1"
        yield 0 < self.step_factor < 1, f"step factor {self.step_factor}", "give a number between 0 and 1, such as 0.1"
        yield math.isfinite(self.clip) and self.clip >= 0, f"clip {self.clip}", "give the largest norm, or 0 for none"
        yield (
            self.hold_out or (self.keep == "last" and not self.patience),
            "without images held out, the test images would choose the epoch",
            "keep the last epoch: --keep last --patience 0, or leave --no-hold-out out",
        )
        yield self.patience >= 0, f"patience {self.patience}", "give a number of epochs, or 0 for never"
        yield self.per_class >= 0, f"{self.per_class} images a class", "give a number of images, or 0 for all"
        yield self.max_images >= 0, f"at most {self.max_images} images", "give a number of images, or 0 for all"
        yield self.max_steps >= 0, f"at most {self.max_steps} steps", "give a number of steps, or 0 for all epochs"
        yield self.channels in (0, 1, 3), f"{self.channels} input channels", "give 1 (grey), 3 (RGB) or 0 (the data's)"
        yield len(set(self.augment)) == len(self.augment), f"augment {','.join(self.augment)}", "name each only once"
        yield 0 <= self.seed < 2**32, f"seed {self.seed}", "give a whole number from 0 to 4294967295"
        yield positive(self.temperature), f"temperature {self.temperature}", "give a number above 0, such as 4"
        yield (
            0 < self.distill_weight <= 1,
            f"weight {self.distill_weight} of the teacher",
            "give a number above 0, at most 1, such as 0.9",
        )
        custom = self.arch in CUSTOM_NAMES
        yield (
            custom or not self.blocks,
            f"blocks {self.blocks} contradict the architecture {self.arch}",
            f"with blocks the architecture is {' or '.join(CUSTOM_NAMES)}: leave --arch out",
        )
        yield bool(self.blocks) or not custom, f"the architecture {self.arch} has no blocks", "add --blocks 1x64,1x128"
        like = self.arch == LIKE_INIT
        yield bool(self.init) or not like, "the architecture init names no network", "add --init CHECKPOINT"
        defaults = {field.name: field.default for field in msgspec.structs.fields(type(self))} if like else {}
        other = [name for name in NETWORK if like and getattr(self, name) != defaults[name]]
        yield (
            not other,
            f"{' and '.join(other)} would change the network of {self.init}",
            "with the architecture init it stays as it is: leave them out",
        )

    def _transfer(self) -> Iterable[tuple[bool, str, str]]:
        count = self.freeze.isdecimal() and len(self.freeze) <= 3
        yield (
            self.freeze in (NO_FREEZE, ALL_FEATURES) or count,
            f"freeze '{self.freeze}'",
            "give features, the number of convolutions to freeze, or none",
        )
        frozen = self.freeze not in (NO_FREEZE, "0")
        yield (
            bool(self.init) or not frozen,
            "frozen weights would stay random",
            "name what to start from: --init SOURCE",
        )
        yield (
            bool(self.init) or self.fresh == "auto",
            f"fresh {self.fresh} without weights to start from",
            "name them: --init SOURCE",
        )
        yield (
            self.unfreeze_every >= 0,
            f"unfreezing every {self.unfreeze_every} epochs",
            "give at least 1, or 0 for never",
        )
        yield frozen or not self.unfreeze_every, "nothing is frozen that could be unfrozen", "add --freeze features"

    @property
    def batch_norm(self) -> bool:
        return self.arch == CUSTOM_NAMES[1] or (self.arch != CUSTOM and split_arch(self.arch)[1])

    def _like(self) -> Checkpoint:
        return read_checkpoint(Path(self.init), check_weights=False)

    def model_spec(self, dataset: DatasetSpec | None = None) -> ModelSpec:
        """The network. Its classes are the data set's, and so are its channels unless the recipe says otherwise.

        Raises:
            DataError: the data set is a folder that is not here.
            CheckpointError: the architecture is that of ``init``, and it is no checkpoint.
        """
        dataset = dataset or get_dataset(self.dataset)
        spec = self._network(self.channels or dataset.channels, len(dataset.classes))
        if self.freeze.isdecimal() and int(self.freeze) > sum(map(len, spec.blocks)):
            raise UsageError(
                f"{spec.arch} has {sum(map(len, spec.blocks))} convolutions, not {self.freeze}", "--freeze features"
            )
        return spec

    def _network(self, channels: int, classes: int) -> ModelSpec:
        if self.arch == LIKE_INIT:
            return msgspec.structs.replace(self._like().spec, classes=classes)
        if not self.blocks:
            return ModelSpec.named(
                self.arch,
                width=self.width,
                in_channels=channels,
                classes=classes,
                image_size=self.image_size,
                hidden=self.hidden,
                dropout=self.dropout,
            )
        return ModelSpec(
            arch=CUSTOM,
            blocks=at_width(parse_blocks(self.blocks), self.width),
            batch_norm=self.batch_norm,
            width=self.width,
            in_channels=channels,
            classes=classes,
            image_size=self.image_size,
            hidden=(self.hidden, self.hidden),
            dropout=self.dropout,
        )

    def preprocess(self) -> PreprocessSpec:
        """The data set's preprocessing at the recipe's image size and channels."""
        if self.arch == LIKE_INIT:
            return self._like().preprocess
        found = default_preprocess(self.dataset, self.image_size, channels=self.channels)
        if self.normalise:
            return found
        return msgspec.structs.replace(found, mean=(0.0,) * found.channels, std=(1.0,) * found.channels)
