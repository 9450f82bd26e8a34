"""What a run is: one frozen, validated `RunConfig`, and the profiles that the project promises. Nothing here loads torch,
so errors in a configuration cost no time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from functools import partial

from .errors import InputError, nearest
from .field_checks import BATCH_ORDERS, SCHEDULERS, require_valid, setting
from .files import places
from .files.places import AG_NEWS, BUNDLED, MPNET_BASE, ROBERTA_BASE, ROBERTA_MINI, is_folder_name, portable_name

ROBERTA_BASE_REVISION = "e2da8e2f811d1448a5b465c236feacd80ffbac7b"
MPNET_BASE_REVISION = "e8c3b32edf5434bc2275fc9bab85f82640a19130"
AG_NEWS_REVISION = "eb185aade064a813bc0b7f42de02595523103ca4"
PINNED = {ROBERTA_BASE: ROBERTA_BASE_REVISION, MPNET_BASE: MPNET_BASE_REVISION, AG_NEWS: AG_NEWS_REVISION}
LABELS = ("World", "Sports", "Business", "Sci/Tech")  # label 0-3; the CSV files say 1-4
PRECISIONS = ("float32", "bfloat16", "int8")  # of prediction

# A resumed run may differ in them: they change nothing that is computed, or only rows, whose fingerprints are compared.
MAY_DIFFER = {"report_to", "eval_batch_size", "committed_rows"}
YOUNGER = {"validation_share": 0.0}  # fields that records of older runs lack, and what these runs had
DRAWN_BY = ("validation_size", "split_seed", "stratified")  # without effect where a hash chooses the validation rows
SOURCES = {"base_model": "base_revision", "dataset": "dataset_revision"}  # what has a name, and its commit on the Hub

_data, _model, _lora = partial(setting, "data"), partial(setting, "model"), partial(setting, "LoRA")
_optimisation, _batches = partial(setting, "optimisation"), partial(setting, "batches and evaluation")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One fine-tuning run; the defaults are the recipe of a course project. Raises: as `require_valid`."""

    profile: str = setting("profile", "original", "name", "the profile that this run started from")

    dataset: str = _data(AG_NEWS, "name", 'Hub name, a folder with train.csv (and test.csv), or "bundled"')
    dataset_revision: str | None = _data(
        AG_NEWS_REVISION, "commit", "commit on the Hub; none for a folder", "40 hex digits"
    )
    committed_rows: bool = _data(False, "flag", "use only the AG News training rows that the committed runs had")
    validation_size: int = _data(640, "count", "drawn from train, unless the next field or the data decide", "rows")
    validation_share: float = _data(
        0.0, "share", "of train, by a hash of each text, validates; 0: `validation_size` rows are drawn", "share"
    )
    stratified: bool = _data(False, "flag", "validation rows that are drawn have the class shares of train")
    split_seed: int = _data(42, "seed", "draws the validation rows, the same ones whatever the run's seed")
    shuffled_labels: bool = _data(False, "flag", "training labels permuted (a negative control)")
    max_length: int = _data(512, "length", "longest example, special tokens included; the rest is cut off", "tokens")

    base_model: str = _model(ROBERTA_BASE, "name", "Hub name, or a folder (from here or from the repository)")
    base_revision: str | None = _model(ROBERTA_BASE_REVISION, "commit", "commit on the Hub, or none", "40 hex digits")
    base_dropout: float = _model(0.1, "share", "of all that the configuration of the base names", "probability")
    random_base: bool = _model(False, "flag", "same shape, random weights (a negative control, never a model to use)")

    lora_rank: int = _lora(2, "rank", "r: rows of A, columns of B")
    lora_alpha: float = _lora(4.0, "positive", "the update is scaled by alpha / r")
    lora_dropout: float = _lora(0.05, "share", "of the input of A", "probability")
    lora_targets: tuple[str, ...] = _lora(("query",), "names", "names of the linear layers that get an adapter")

    max_steps: int = _optimisation(2400, "count", "length of the run", "optimizer steps")
    learning_rate: float = _optimisation(5e-5, "positive", "at its peak")
    lr_scheduler_type: str = _optimisation("linear", "scheduler", f"after the warm-up: {', '.join(SCHEDULERS)}")
    warmup_steps: int = _optimisation(0, "not negative", "the rate rises from 0 during these", "optimizer steps")
    weight_decay: float = _optimisation(0.0, "not negative", "of AdamW")
    adam_beta1: float = _optimisation(0.9, "share", "decay of the first moment")
    adam_beta2: float = _optimisation(0.999, "share", "decay of the second moment")
    adam_epsilon: float = _optimisation(1e-8, "positive", "added to the root of the second moment")
    max_grad_norm: float = _optimisation(1.0, "positive", "gradients are clipped to it", "L2 norm")
    mixed_precision: bool = _optimisation(
        False, "flag", "bfloat16 autocast where it is faster (a GPU; some CPUs, for a large base); weights stay float32"
    )
    label_smoothing_factor: float = _optimisation(
        0.0, "share", "mass spread over all classes; the validation loss is smoothed too", "probability"
    )
    seed: int = _optimisation(42, "seed", "of weights, batch order and dropout")

    batch_size: int = _batches(16, "count", "of an optimizer step, over all processes", "examples")
    batch_order: str = _batches("random", "batch order", f"{' or '.join(BATCH_ORDERS)}, which pads less")
    eval_batch_size: int = _batches(64, "count", "a validation step, per process; x 4 in bfloat16 on a GPU", "examples")
    eval_steps: int = _batches(100, "count", "between two evaluations, and two rows of the log", "optimizer steps")
    save_steps: int = _batches(500, "count", "between two checkpoints; one more at the end", "optimizer steps")
    report_to: str = _batches("none", "name", 'a tracker that transformers knows, e.g. "tensorboard"')

    def __post_init__(self):
        if isinstance(self.lora_targets, list):  # as JSON gives it back
            object.__setattr__(self, "lora_targets", tuple(self.lora_targets))
        require_valid(self, "configuration", _at_odds)

    def to_dict(self) -> dict:
        """Plain values, as they go into JSON."""
        return asdict(self) | {"lora_targets": list(self.lora_targets)}

    def portable(self) -> RunConfig:
        """The same with folders named relative to the repository, as records and checkpoints store it."""
        return replace(self, base_model=portable_name(self.base_model), dataset=portable_name(self.dataset))

    def replace(self, **changes) -> RunConfig:
        """A copy with `changes`; a new base or data set gets its pinned commit, or none. InputError: unknown field."""
        names = [field.name for field in fields(self)]
        unknown = [f"unknown field {name!r}{nearest(name, names)}" for name in changes if name not in names]
        if unknown:
            raise InputError("configuration: " + "; ".join(unknown))
        if "validation_size" in changes:  # who asks for a number of rows gets it
            changes.setdefault("validation_share", 0.0)
        if changes.get("validation_share", self.validation_share) and (idle := sorted({*DRAWN_BY} & changes.keys())):
            raise InputError(f"{', '.join(idle)}: without effect beside validation_share, which must be 0 for it")
        for name, revision in SOURCES.items():
            if name in changes and changes[name] != getattr(self, name):  # the old commit does not apply
                changes.setdefault(revision, PINNED.get(places.full_name(str(changes[name]))))
        return replace(self, **changes)

    def differences(self, its: dict) -> dict[str, tuple]:
        """Fields that change the result and differ from another's `to_dict()`: name -> (mine, its); None where it has none."""
        mine, its = self.to_dict(), YOUNGER | its
        names = sorted((mine.keys() | its.keys()) - MAY_DIFFER)
        return {name: (mine.get(name), its.get(name)) for name in names if mine.get(name) != its.get(name)}


def get_profile(name: str, **changes) -> RunConfig:
    """The profile called `name`, with `changes` to its fields. Raises: InputError: no such profile or field, or a bad value."""
    if name not in PROFILES:
        hint = f" (it is called {RENAMED[name]!r} now)" if name in RENAMED else nearest(str(name), PROFILES)
        raise InputError(f"unknown profile {name!r}{hint}; there are {', '.join(PROFILES)}")
    return PROFILES[name].replace(**changes)


def describe_fields(config) -> list[dict[str, str]]:
    """What stands in a configuration: group, field, value, unit and help of each; values as `parse_field` reads them."""
    rows = []
    for each in fields(config):
        value = getattr(config, each.name)
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        text = text.lower() if isinstance(value, bool | None) else text
        about = {name: each.metadata[name] for name in ("unit", "help")}
        rows.append({"group": each.metadata["group"], "field": each.name, "value": text, **about})
    return rows


def _at_odds(config: RunConfig) -> list[str]:
    """Violations that take two fields to see."""
    problems = []
    if config.save_steps % config.eval_steps:
        wanted = f"a multiple of eval_steps ({config.eval_steps}), so that a resumed run logs what an unbroken one logs"
        problems.append(f"save_steps is {config.save_steps}, wanted {wanted}")
    for name, revision in SOURCES.items():
        value = getattr(config, name)
        if value != BUNDLED and getattr(config, revision) is None and not is_folder_name(value):
            problems.append(f"{name} {value!r} is no folder here, and a Hub name needs {revision} (a commit)")
    return problems


_MINI = RunConfig(
    profile="mini", base_model=ROBERTA_MINI, base_revision=None, base_dropout=0.0,
    dataset=BUNDLED, dataset_revision=None, validation_size=120, stratified=True, max_length=128,
    learning_rate=1e-3, warmup_steps=20, mixed_precision=True, batch_order="length-grouped",
    max_steps=300, eval_steps=20, save_steps=100,
)  # fmt: skip
_ROBERTA_BASE = RunConfig(
    profile="roberta-base", base_dropout=0.0, validation_size=2000, stratified=True, max_length=256,
    learning_rate=5e-4, warmup_steps=100, mixed_precision=True, batch_order="length-grouped",
)  # fmt: skip

PROFILES = {
    # The notebook's default: everything in the repository, no network, about a minute on two CPU cores.
    "mini": _MINI,
    # The same small base on real AG News; its five checkpoints are committed.
    "mini-agnews": _MINI.replace(
        profile="mini-agnews", dataset=AG_NEWS, dataset_revision=AG_NEWS_REVISION, validation_share=0.08,
        learning_rate=2e-3, warmup_steps=100, batch_size=32, max_steps=2400, eval_steps=250, save_steps=500,
    ),
    # The recipe of a course project, number by number (the defaults above).
    "original": RunConfig(),
    # The same trainable parameters and steps with our recipe.
    "roberta-base": _ROBERTA_BASE,
    # Our recipe on another encoder of roberta-base's width and depth, whose adapters and head are as many numbers.
    "mpnet-base": _ROBERTA_BASE.replace(
        profile="mpnet-base", base_model=MPNET_BASE, base_revision=MPNET_BASE_REVISION, lora_targets=("q",),
        learning_rate=2e-3,  # of those that `evidence mpnet-rates` tried
        eval_steps=250,  # on two cores, 2,000 rows take as long as 70 steps
    ),
}  # fmt: skip
RENAMED = {"full": "roberta-base"}  # in this field "full" is full fine-tuning
