"""The tables of the documents, and how a number is written there: from the committed records alone."""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from statistics import mean, stdev

from ..config import BUNDLED, PROFILES, get_profile
from ..evaluation import accuracy_interval, compare, from_digits
from ..records import count_labelled, find_rivals

NO_RECORD, NO_VALUE, NO_TEST = "not run yet", "not measured", "no paired test yet"
ROBERTA_BASE, BASE = "roberta-base", "roberta-mini"  # the two shapes of the benchmark; the second is the bundled base
FORMS: dict[str, Callable] = {
    "minutes": lambda seconds: f"{seconds / 60:.1f}",
    "GiB": lambda mib: f"{mib / 1024:.1f}",
    "points": lambda share: f"{100 * share:+.2f}",
    "millions": lambda count: f"{count / 1e6:,.1f}",  # also bytes as MB
}
# Not measured by this project: model, accuracy, test rows, trained parameters, labelled rows. README has the sources.
PUBLISHED = (
    ("*published:* roberta-base, LoRA at rank 1 on query and value ¹", 0.9337, 7600, "630,532", "120,000"),
    ("*published:* the same, at its end ¹", 0.9403, 7600, "630,532", "120,000"),
    ("*reported:* roberta-base, recipe of `original` ²", 0.9055, 4000, "630,532", "38,400"),
)


def find_value(records: dict, name: str, form: str | None = None) -> str:
    """The number at `name` in the records, keys joined by dots, as a document shows it."""
    record, *keys = name.split(".")
    if not records.get(record):
        return NO_RECORD
    value = records[record]
    for key in keys:
        try:
            value = value[int(key) if isinstance(value, list) else key]
        except (KeyError, IndexError):
            return NO_VALUE
    return NO_VALUE if value is None else _format(value, form)


def _format(value, form: str | None) -> str:
    if isinstance(value, list):
        return " to ".join(_format(end, form) for end in value)
    if form in FORMS:
        return FORMS[form](value)
    return format(value, form or {int: ",", float: ".4f"}.get(type(value), ""))


def make_results(records: dict) -> Iterable[tuple[str, ...]]:
    """Every model on its test split, by data set: ours, linear ones, and figures published by others."""
    head = "model", "accuracy", "95 % interval", "over seeds", "trained parameters", "labelled rows"
    yield *head, "minus linear, all rows", "minus linear, same rows"
    for bundled, title in ((True, "bundled corpus"), (False, "AG News")):
        profiles = [name for name in PROFILES if (get_profile(name).dataset == BUNDLED) == bundled]
        yield (f"**{title}**, {find_value(records, f'{profiles[0]}.test.examples')} test rows",)
        for name in profiles:
            yield from _describe_profile(name, records)
        yield from _describe_linear_models(profiles, records)
    for title, accuracy, rows, *sizes in PUBLISHED:
        yield title, f"{accuracy:.4f}", _interval(accuracy, rows), "", *sizes


def _describe_profile(profile: str, records: dict) -> Iterable[tuple[str, ...]]:
    """Its committed run; other recipes that a study scored on test rows, without the linear model on the rows seen, since
    some saw others; and what else was done with its base, on the same rows and steps. Of each the first seed."""
    rivals = find_rivals(profile, records)["arms"]
    compared = rivals.get("LoRA", {}).get("runs", [])
    linear = records.get("baselines", {}).get(profile, {})
    if test := records.get(profile, {}).get("test"):
        run, seeds = records[profile], records.get(f"{profile}-seeds", {}).get("runs", [])
        its = {"trained_parameters": run["parameters"]["trainable"], "labelled_rows": count_labelled(run)}
        its |= {f"test_{key}": value for key, value in test.items()}
        yield _describe(f"`{profile}`", its, max(seeds, compared, key=len), linear)
    else:
        yield f"`{profile}`", find_value(records, f"{profile}.test")
    for study in (part.get("variants", {}) for part in records.values() if part.get("profile") == profile):
        for arm, found in [*study.items()][1:]:  # the first is the profile itself
            runs = found.get("runs", [{}])
            if "test_predictions" in runs[0]:
                yield _describe(f"`{profile}`, {arm}", runs[0], runs, linear)[:-1]
    for arm, found in rivals.items():
        if arm != "LoRA":
            first = found["runs"][0] | {"labelled_rows": compared[0]["labelled_rows"]}
            yield _describe(f"its base, {arm}", first, found["runs"], linear)


def _describe(title: str, run: dict, seeds: list[dict], linear: dict) -> tuple[str, ...]:
    """A run, its like with other `seeds`, and the linear models beside it: fitted on all rows, and on those seen."""
    predictions = run.get("test_predictions", "")
    fits = (linear.get(rows, {}).get("predictions") for rows in ("all_rows", "rows_seen"))
    everything, same = (_compare(predictions, fit, linear.get("labels"), seeds=seeds) for fit in fits)
    interval = _interval(run["test_accuracy"], run.get("test_examples") or len(predictions))
    spread = _spread(seeds, "test_accuracy") if len(seeds) > 1 else ""
    sizes = (f"{run[key]:,}" for key in ("trained_parameters", "labelled_rows"))
    # A run whose batches hold all rows has one such model.
    same = "the same" if same == everything != NO_TEST else same
    return title, f"{run['test_accuracy']:.4f}", interval, spread, *sizes, everything, same


def _interval(accuracy: float, rows: int) -> str:
    low, high = accuracy_interval(round(accuracy * rows), rows)
    return f"{low:.3f}–{high:.3f}"


def _spread(runs: list[dict], key: str) -> str:
    values = [run[key] for run in runs]
    return f"{mean(values):.4f} ± {stdev(values):.4f} ({len(values)})" if len(values) > 1 else f"{values[0]:.4f} (1)"


def _compare(*by_row: str | None, seeds: Iterable[dict] = ()) -> str:
    """The difference of accuracy, in points, between two models, paired row by row: a digit a row of each, and the labels.
    Where not all of the first model's `seeds` give its verdict, the one that most of them give."""
    if not all(by_row):
        return NO_TEST
    found, *others = (
        compare(*map(from_digits, (predictions, *by_row[1:])))
        for predictions in (by_row[0], *(run["test_predictions"] for run in seeds if "test_predictions" in run))
    )
    votes = Counter(each["verdict"] for each in others)
    most = "".join(f"; {count}/{len(others)} seeds {verdict}" for verdict, count in votes.most_common(1))
    return f"{found['verdict']}: {_points(found)}{most if votes.keys() - {found['verdict']} else ''}"


def _points(found: dict) -> str:
    middle, low, high = (f"{100 * value:+.2f}" for value in (found["difference"], *found["interval"]))
    return f"{middle} ({low} to {high})"


def _in_percent(middle: float, deviation: float) -> str:
    return f"{100 * middle:.2f} ± {100 * deviation:.2f}"


def _describe_linear_models(profiles: list[str], records: dict) -> Iterable[tuple[str, ...]]:
    fits, baselines = {}, records.get("baselines", {})
    for name, linear in ((name, baselines[name]) for name in profiles if name in baselines):
        chosen, everything = linear["chosen"], linear["all_rows"]
        title = f"TF-IDF of {chosen['features']}, {chosen['model']}"
        fits[title, everything["train_rows"]] = everything  # profiles with the same data share it
        if name in records and "rows_seen" in linear and linear["rows_seen"]["train_rows"] < everything["train_rows"]:
            fits[f"the same, on the rows of `{name}`", name] = linear["rows_seen"]
    for (title, _), fit in fits.items():
        interval = _interval(fit["accuracy"], len(fit["predictions"]))
        yield title, f"{fit['accuracy']:.4f}", interval, "", "", f"{fit['train_rows']:,}"


def make_training_speed(part: str, records: dict) -> Iterable[tuple[str, ...]]:
    """Steps of every pipeline, for both shapes."""
    memory_and_padding = "its peak memory, GiB", "its processed / real tokens"
    yield "pipeline", "roberta-base, examples/s", *memory_and_padding, "bundled base, examples/s"
    rows = records.get(part, {}).get("rows", [])
    small = {row["pipeline"]: f"{row['examples_per_second']:.0f}" for row in rows if row["model"] == BASE}
    for row in (row for row in rows if row["model"] == ROBERTA_BASE):
        name, rate, memory = row["pipeline"], f"{row['examples_per_second']:.2f}", row["peak_memory_mib"]
        memory = FORMS["GiB"](memory) if memory else NO_VALUE  # Linux alone can
        yield f"`{name}`", rate, memory, f"{row['padding']:.2f}", small[name]


def make_prediction_speed(part: str, records: dict) -> Iterable[tuple[str, ...]]:
    """Rows a second of every way to predict, for both shapes."""
    yield "way to predict", "roberta-base, rows/s", "bundled base, rows/s"
    ways = records.get(part, {}).get("prediction", {ROBERTA_BASE: {}})
    for name in ways[ROBERTA_BASE]:
        yield f"`{name}`", *(f"{ways[model][name]['rows_per_second']:.1f}" for model in (ROBERTA_BASE, BASE))


def make_study(part: str, records: dict) -> Iterable[tuple[str, ...]]:
    """Arms of a study: accuracy on validation rows in %, and how far the first arm is ahead of each, paired by seed."""
    arms = records.get(part, {}).get("variants", {})
    yield "arm", "mean ± standard deviation", f"`{next(iter(arms), 'ours')}` minus it (95 % interval)"
    for name, arm in arms.items():
        ahead = _points(arm) if "difference" in arm else ""
        yield f"`{name}`", _in_percent(arm["mean"], arm["std"]), ahead


def make_gpu_batches(records: dict) -> Iterable[tuple[str, ...]]:
    """Examples a second and peak memory of a step on a GPU, by the rows of a batch."""
    kinds, rows = ("bfloat16", "float32"), records.get("gpu-batches", {}).get("rows", [])
    yield "rows", *(f"{kind}, {what}" for kind in kinds for what in ("examples/s", "GiB"))
    for size in dict.fromkeys(row["batch_size"] for row in rows):
        its = {row["arithmetic"]: row for row in rows if row["batch_size"] == size}
        pairs = ((its[kind]["examples_per_second"], its[kind]["peak_memory_mib"]) for kind in kinds)
        cells = ((f"{rate:,.0f}", FORMS["GiB"](memory)) for rate, memory in pairs)
        yield f"{size}", *chain.from_iterable(cells)


def make_rivals(profile: str, records: dict) -> Iterable[tuple[str, ...]]:
    """What LoRA adds to the head alone and lacks of full fine-tuning: means over seeds, and row by row at the first seed."""
    head = "trained", "learning rate", "validation accuracy", "test accuracy"
    yield *head, "weights of a checkpoint, MB", "LoRA minus it, on test rows"
    rivals = find_rivals(profile, records)
    for arm, found in rivals["arms"].items():
        first, ours = found["runs"][0], rivals["arms"]["LoRA"]["runs"][0]
        by_row = ours["test_predictions"], first["test_predictions"], rivals["labels"]["test"]
        means = (_spread(found["runs"], f"{part}_accuracy") for part in ("validation", "test"))
        size, paired = f"{4 * first['trained_parameters'] / 1e6:.1f}", "" if arm == "LoRA" else _compare(*by_row)
        yield arm, f"{first['learning_rate']:g}", *means, size, paired


def make_label_counts(records: dict) -> Iterable[tuple[str, ...]]:
    """LoRA beside a linear model by the number of labelled rows: test accuracy in %, and points between, paired by seed."""
    yield "labelled rows", "LoRA", "linear model", "LoRA minus it (95 % interval)"
    for size in records.get("label-counts", {}).get("sizes", ()):
        both = (_in_percent(arm["mean"], arm["std"]) for arm in size["arms"].values())
        yield f"{size['rows']:,}", *both, _points(size["arms"]["linear model"])


TABLES: dict[str, Callable[[dict], Iterable[tuple[str, ...]]]] = {
    "results-table": make_results,
    "training-speed-table": partial(make_training_speed, "bench"),
    "prediction-speed-table": partial(make_prediction_speed, "bench"),
    "training-speed-bfloat16-table": partial(make_training_speed, "bench-bfloat16"),
    "prediction-speed-bfloat16-table": partial(make_prediction_speed, "bench-bfloat16"),
    **{
        f"{part}-table": partial(make_study, part)
        for part in ("ablations", "places", "ranks", "learning-rates", "batch-sizes", "losses", "mpnet-studies")
    },
    "gpu-batches-table": make_gpu_batches,
    "label-counts-table": make_label_counts,
    "rivals-table": partial(make_rivals, "mini-agnews"),
    "mpnet-rivals-table": partial(make_rivals, "mpnet-base"),
}
