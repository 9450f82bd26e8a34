"""Names and formats of the numbers that README and model cards show, from the committed records. `report` writes them."""

from __future__ import annotations

import json

from ..files.places import CHECKPOINTS
from ..pretraining.run import RECORD as PRETRAINING_RECORD
from ..records import read_evidence, read_record, validation_rows

RELIABILITY = CHECKPOINTS / "reliability.json"  # written by `make drill`


def collect_values() -> dict[str, str]:
    """Every number by name, formatted as the documents show it."""
    evidence = read_evidence()
    values = {}
    for profile in ("mini", "mini-agnews"):
        values |= _run_values(profile, read_record(CHECKPOINTS / profile))
        seeds = evidence.get(f"{profile}-seeds")
        if seeds:
            values[f"{profile}-seeds"] = _mean_and_std(seeds)
            values[f"{profile}-seeds-count"] = str(len(seeds["runs"]))
        baseline = evidence["baselines"][profile]
        values[f"{profile}-baseline"] = f"{baseline['accuracy']:.4f}"
        values[f"{profile}-baseline-model"] = baseline["model"]
    values["shuffled-labels"] = _mean_and_std(evidence["shuffled-labels"])
    values["head-only"] = f"{evidence['head-only']['validation_accuracy']:.4f}"
    values["random-base"] = f"{evidence['random-base']['validation_accuracy']:.4f}"
    values["transfer"] = f"{evidence['transfer']['accuracy']:.4f}"
    speed, notebook = evidence["prediction-speed"], evidence.get("notebook")
    values["predict-rows"] = f"{speed['rows']:,}"
    values["predict-seconds"] = f"{speed['seconds']:.0f}"
    values["predict-rate"] = f"{speed['rows_per_second']:.0f}"
    values["billion-days"] = f"{1e9 / speed['rows_per_second'] / 86400:.0f}"
    values["tokenised-rows"] = f"{speed['tokenisation']['rows']:,}"
    values["tokenised-seconds"] = f"{speed['tokenisation']['seconds']:.1f}"
    if notebook:
        values["notebook-seconds"] = f"{notebook['seconds']:.0f}"
        values["notebook-memory"] = f"{notebook['peak_memory_mib'] / 1024:.1f}"
    benchmarks = _benchmark_values(evidence["bench"]) | _growth_values(evidence["growth"])
    return values | _base_values() | benchmarks | _ablation_values(evidence["ablations"]) | _reliability_values()


def _mean_and_std(seeds: dict) -> str:
    return f"{seeds['test_mean']:.4f} ± {seeds['test_std']:.4f}"


def _run_values(profile: str, record: dict) -> dict[str, str]:
    test, last = record["test"], validation_rows(record)[-1]
    low, high = test["interval"]
    padding = record["padding"]
    return {
        f"{profile}-{name}": value
        for name, value in {
            "accuracy": f"{test['accuracy']:.4f}",
            "interval": f"{low:.3f} to {high:.3f}",
            "macro-f1": f"{test['macro_f1']:.4f}",
            "ece": f"{test['calibration']['ece']:.3f}",
            "test-rows": f"{test['examples']:,}",
            "train-rows": f"{record['data']['rows']['train']:,}",
            "validation-rows": f"{record['data']['rows']['validation']:,}",
            "validation-accuracy": f"{last['eval_accuracy']:.4f}",
            "steps": f"{last['step']:,}",
            "minutes": f"{record['timing']['seconds'] / 60:.1f}",
            "memory": f"{record['timing']['peak_memory_mib']['process'] / 1024:.1f}",
            "trainable": f"{record['parameters']['trainable']:,}",
            "share": f"{100 * record['parameters']['trainable'] / record['parameters']['total']:.2f}",
            "lora": f"{record['parameters']['lora']:,}",
            "head": f"{record['parameters']['head']:,}",
            "best-step": f"{record['best_saved_step']:,}",
            "padding": f"{padding['length-grouped']:.2f}",
            "padding-random": f"{padding['random']:.2f}",
            "processor": str(record["environment"]["processor"]),
            "cores": str(record["environment"]["cores"]),
        }.items()
    }


def _base_values() -> dict[str, str]:
    record = json.loads((CHECKPOINTS / "roberta-mini" / PRETRAINING_RECORD).read_text())
    loss = [row for row in record["log"] if "eval_masked_loss" in row][-1]
    size = sum(f.stat().st_size for f in (CHECKPOINTS / "roberta-mini").iterdir() if f.name != "README.md")
    return {
        "base-parameters": f"{record['parameters']:,}",
        "base-vocabulary": f"{record['config']['vocab_size']:,}",
        "base-steps": f"{record['config']['max_steps']:,}",
        "base-tokens": f"{record['tokens']['seen'] / 1e6:.1f}",
        "base-epochs": f"{record['tokens']['seen'] / record['tokens']['an_epoch']:.1f}",
        "base-minutes": f"{record['seconds'] / 60:.0f}",
        "base-loss": f"{loss['eval_masked_loss']:.2f}",
        "base-megabytes": f"{size / 1e6:.0f}",
        "base-rows": f"{record['data']['rows']:,}",
        "base-processor": str(record["environment"]["processor"]),
    }


def _benchmark_values(bench: dict) -> dict[str, str]:
    rows = {row["pipeline"]: row for row in bench["rows"] if row["model"] == "roberta-base"}
    mini = {row["pipeline"]: row for row in bench["rows"] if row["model"] == "roberta-mini"}
    rate = {name: row["examples_per_second"] for name, row in rows.items()}
    values = {
        "bench-processor": str(bench["environment"]["processor"]),
        "bench-ceiling": f"{bench['ceiling_gflops']:.0f}",
        "bench-over-original": f"{rate['ours'] / rate['original']:.1f}",
        "bench-over-default": f"{rate['ours'] / rate['trainer-default']:.1f}",
        "bench-share": f"{rows['ours']['ceiling_share']:.0%}".replace("%", " %"),
    }
    for model, trainer in bench["trainer"].items():
        values[f"bench-overhead-{model}"] = f"{100 * trainer['overhead']:.1f} %"
    for name, row in rows.items():
        values |= {
            f"bench-{name}-examples": f"{row['examples_per_second']:.2f}",
            f"bench-{name}-mini-examples": f"{mini[name]['examples_per_second']:.0f}",
            f"bench-{name}-tokens": f"{row['real_tokens_per_second']:.0f}",
            f"bench-{name}-padding": f"{row['padding']:.2f}",
            f"bench-{name}-gflops": f"{row['useful_gflops']:.0f}",
            f"bench-{name}-memory": _gib(row["peak_memory_mib"]),
        }
    values["predict-texts"] = str(bench["prediction"]["roberta-base"]["ours"]["rows"])
    for model, ways in bench["prediction"].items():
        values |= {f"predict-{model}-{name}": f"{way['rows_per_second']:.1f}" for name, way in ways.items()}
    return values


def _gib(mib: float | None) -> str:
    return "not measured" if mib is None else f"{mib / 1024:.1f}"  # Linux alone can


def _growth_values(growth: dict) -> dict[str, str]:
    streamed = {row["size"]: row["peak_memory_mib"] for row in growth["predicted_rows"]}
    few, many = 10_000, max(streamed)
    return {
        "stream-rows": f"{many:,}",
        "stream-few": f"{few:,}",
        "stream-memory": f"{streamed[many] - streamed[few]:.0f}" if streamed[many] else "not measured",
    }


def _ablation_values(ablations: dict) -> dict[str, str]:
    """Accuracies in %, differences (ours minus the variant) in points."""
    values = {"ablation-seeds": str(len(ablations["seeds"]))}
    for name, variant in ablations["variants"].items():
        values[f"ablation-{name}"] = f"{100 * variant['mean']:.2f} ± {100 * variant['std']:.2f}"
        if "difference" in variant:
            low, high = (f"{100 * end:+.2f}" for end in variant["interval"])
            values[f"ablation-{name}-difference"] = f"{100 * variant['difference']:+.2f} ({low} to {high})"
    return values


def _reliability_values() -> dict[str, str]:
    """What `make drill` has counted."""
    record = json.loads(RELIABILITY.read_text())
    stops, counts = record["stops"], record["counts"]
    return {
        "kills": str(stops["kills"]),
        "kills-writing": str(stops["places"]["writing"]),
        "kills-evaluation": str(stops["places"]["evaluation"]),
        "kills-mismatches": str(stops["mismatches"]),
        "damaged-files": str(counts["damaged files noticed"]),
        "bad-inputs": str(counts["bad inputs tried"]),
        "property-examples": f"{counts['property examples run']:,}",
        "hub-megabytes": f"{record['hub']['bytes'] / 1e6:,.0f}",
    }
