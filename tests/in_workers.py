"""A program of `test_inference`: a `Classifier` in forked, spawned and joblib's workers, and in sixteen threads.

`python in_workers.py CHECKPOINT PRECISION WAY [WAY ...]` predicts with two threads, then in workers, and compares.
"""

import multiprocessing
import pickle
import sys
import threading

import numpy as np

TEXTS = [f"{word} " * 12 for word in ["oil", "goal", "chip", "vote", "bank", "coach", "virus", "moon"]] * 8


def predict_here(classifier):
    return classifier.predict_probabilities(TEXTS)


def predict_inherited(_):
    return predict_here(CLASSIFIER)


def predict_pickled(data):
    return predict_here(pickle.loads(data))


def in_fork():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(predict_inherited, range(4))


def in_spawn():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(predict_pickled, [pickle.dumps(CLASSIFIER)])


def in_joblib():
    import joblib

    return joblib.Parallel(n_jobs=2)(joblib.delayed(predict_here)(CLASSIFIER) for _ in range(2))


def in_threads():
    fresh = pickle.loads(pickle.dumps(CLASSIFIER))  # one whose tokenizer was never told how long a text may be
    start, found = threading.Barrier(16), []

    def one(part):
        start.wait()
        for _ in range(5):
            found.append((part, fresh.predict_probabilities(TEXTS[part : part + 9])))

    threads = [threading.Thread(target=one, args=(part,)) for part in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80, len(found)
    for part, rows in found:
        np.testing.assert_allclose(rows, WANTED[part : part + 9], atol=1e-5)
    return []


if __name__ == "__main__":
    import torch

    from lora_helpers.inference import Classifier

    torch.set_num_threads(2)
    CLASSIFIER = Classifier.from_checkpoint(sys.argv[1], precision=sys.argv[2])
    WANTED = predict_here(CLASSIFIER)
    for way in sys.argv[3:]:
        for rows in globals()[f"in_{way}"]():
            np.testing.assert_allclose(rows, WANTED, atol=1e-5)
        print(way, "as wanted", flush=True)
