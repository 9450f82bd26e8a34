"""The bundled corpus is what its description promises."""

import csv
import re
from collections import Counter, defaultdict
from itertools import combinations

from lora_helpers.files.places import MINI_NEWS


def words(text):
    return re.findall(r"\w+", text.lower())


def runs(text, n):
    tokens = words(text)
    return {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}


def unlabelled():
    with (MINI_NEWS / "unlabelled.csv").open(encoding="utf-8", newline="") as stream:
        return [row["text"] for row in csv.DictReader(stream)]


def test_sizes_and_balance(bundled_rows):
    sizes = {"train": 210, "validation": 30, "test": 60}
    for split, size in sizes.items():
        assert Counter(label for label, _ in bundled_rows[split]) == dict.fromkeys(range(4), size)
    assert len(unlabelled()) == 100


def test_lengths_vary_between_15_and_60_words(bundled_rows):
    lengths = [len(text.split()) for rows in bundled_rows.values() for _, text in rows]
    assert min(lengths) >= 15 and max(lengths) <= 60
    assert sum(n < 25 for n in lengths) > 0.15 * len(lengths) < sum(n > 45 for n in lengths) * 1.2


def test_no_two_items_are_alike(bundled_rows):
    texts = [text for rows in bundled_rows.values() for _, text in rows] + unlabelled()
    trigrams, places = [runs(text, 3) for text in texts], defaultdict(list)
    for place, own in enumerate(trigrams):
        for trigram in own:
            places[trigram].append(place)
    shared = Counter(pair for found in places.values() for pair in combinations(found, 2))
    assert len(shared) > 100  # pairs that have a trigram in common; other pairs are not alike
    assert max(n / len(trigrams[a] | trigrams[b]) for (a, b), n in shared.items()) <= 0.5
    sentences = Counter(" ".join(words(s)) for text in texts for s in re.split(r"(?<=[.!?])\s+", text))
    assert [s for s, count in sentences.items() if count > 1 and s] == []


def test_no_item_repeats_ag_news(bundled_rows, ag_news_dir):
    own = set().union(*(runs(text, 8) for rows in bundled_rows.values() for _, text in rows))
    own |= set().union(*(runs(text, 8) for text in unlabelled()))
    for split in ("train", "test"):
        with (ag_news_dir / f"{split}.csv").open(encoding="utf-8", newline="") as stream:
            for _, title, description in csv.reader(stream):
                assert not own & runs(f"{title} {description}", 8)


def test_it_is_neither_trivial_nor_noise(bundled_rows):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    labels, texts = zip(*bundled_rows["train"], strict=True)
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000)).fit(texts, labels)
    labels, texts = zip(*bundled_rows["validation"], strict=True)  # nothing is chosen on the test split
    assert 0.65 <= model.score(texts, labels) <= 0.92
