"""Whether the numbers can be trusted: calibration, coverage, and strange images, on real data.

    python bench/trust.py calibration ../shared/data [--seeds 10]
    python bench/trust.py coverage ../shared/data [--splits 100]
    python bench/trust.py familiarity ../shared/data
    python bench/trust.py cost ../shared/data [--repeats 7]

``calibration``: calibration error (adaptive bins) and log loss on test images, before (temperature 1) and after, held-out logits
made as ``tellapart train`` makes them: a tenth of the images, or cross-fitted where that would be under 50. Beside it, as
measurements only: bias-corrected temperature and vector scaling, and the one of all that is best in cross-validation on
the held-out logits.

``coverage``: a model, and held-out images dealt out anew into halves many times, one to fit temperature and thresholds on, one to
count on. With exchangeable images the number covered is beta-binomial. Beside our sets, which are least ambiguous (LAC), the
adaptive ones (APS, Romano et al. 2020) and the regularised (RAPS, Angelopoulos et al. 2021; k 1, lambda 0.1), both randomised.
``familiarity`` asks model files: one for cats and dogs, of ``probe`` and of ``cnn``, about digits, generated textures, noise,
patches of 24 px out of the photos and scenes. Then models for all classes but some, made on embeddings, are asked about those
left out, a dozen draws and more of each set. Beside each stands the largest probability of the same model. ``cost`` is in
bench/trust_cost.py.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.stats import betabinom, binom, t

from tellapart.data.split import MIN_CALIB_IMAGES
from tellapart.evaluation.conformal import smallest_prob
from tellapart.evaluation.reliability import adaptive_bins
from tellapart.evaluation.task import RULES
from train import save
from trust_cost import measure_cost
from trust_familiarity import measure_all_left_out, measure_familiarity
from trust_sets import ImageSet, cats_dogs, cifar, digits, fit, mean_log_loss, multilabel, probs_of

Scale = tuple[np.ndarray, np.ndarray]  # logits are multiplied by the first and moved by the second

CIFAR_TRAIN = (100, 500, 3_000)


def ece(logits: np.ndarray, labels: np.ndarray) -> float:
    probs = probs_of(logits, multilabel=labels.ndim == 2)
    if labels.ndim == 2:
        claimed, right = probs.ravel(), labels.ravel()
    else:
        claimed, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    gaps = np.bincount(adaptive_bins(claimed), weights=right - claimed)
    return float(np.abs(gaps).sum() / len(claimed))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> Scale:
    rules = RULES["multilabel" if labels.ndim == 2 else "classification"]
    temperature = rules.fit_temperature(logits.astype(np.float64), labels)
    return np.full(logits.shape[1], 1 / temperature), np.zeros(logits.shape[1])


def fit_scale(logits: np.ndarray, labels: np.ndarray, *, per_class: bool) -> Scale:
    """A bias for each class, and one factor or one for each; held near 1 and 0 as firmly as one more image would."""
    n, k = logits.shape
    truth = labels if labels.ndim == 2 else np.eye(k)[labels]
    logits = logits.astype(np.float64)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        factor, bias = values[:-k], values[-k:]
        scores = logits * factor + bias
        residual = (probs_of(scores, multilabel=labels.ndim == 2) - truth) / n
        by_factor = (residual * logits).sum(axis=0)
        away = np.concatenate([factor - 1, bias])
        gradient = np.concatenate([by_factor if per_class else [by_factor.sum()], residual.sum(axis=0)])
        pairs = k if labels.ndim == 2 else 1
        return mean_log_loss(scores, labels) * pairs + float(away @ away) / (2 * n), gradient + away / n

    start = np.concatenate([np.ones(k if per_class else 1), np.zeros(k)])
    found = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return np.broadcast_to(found[:-k], k), found[-k:]


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], Scale]] = {
    "none": lambda logits, _: (np.ones(logits.shape[1]), np.zeros(logits.shape[1])),
    "temperature": fit_temperature,
    "bias_corrected": lambda logits, labels: fit_scale(logits, labels, per_class=False),
    "vector": lambda logits, labels: fit_scale(logits, labels, per_class=True),
}


def scaled(scale: Scale, logits: np.ndarray) -> np.ndarray:
    return logits.astype(np.float64) * scale[0] + scale[1]


def best_in_folds(logits: np.ndarray, labels: np.ndarray, seed: int) -> str:
    fold = np.random.default_rng(seed).permutation(len(labels)) % 5
    losses = dict.fromkeys(METHODS, 0.0)
    for name, method in METHODS.items():
        for i in range(5):
            scale = method(logits[fold != i], labels[fold != i])
            rest = fold == i
            losses[name] += mean_log_loss(scaled(scale, logits[rest]), labels[rest]) * rest.sum()
    return min(losses, key=losses.__getitem__)


def draw(images: ImageSet, size: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from and to test on: the test folder, or a quarter."""
    order = np.random.default_rng(seed).permutation(len(images.labels))
    quarter = np.zeros(len(order), dtype=bool)
    quarter[order[: len(order) // 4]] = True
    test = images.test if images.test.any() else quarter
    learning = order[~test[order]][:size]
    return learning, np.flatnonzero(test)


def held_out(images: ImageSet, rows: np.ndarray, seed: int) -> tuple:
    """The head, and held-out logits and labels, as the recipe ``probe`` makes them."""
    calib = round(len(rows) / 10)
    if calib < MIN_CALIB_IMAGES:
        probe = fit(images.embeddings[rows], images.labels[rows], seed)
        return probe.head, probe.fold_logits, images.labels[rows[probe.fold_images]], "cross-fit"
    probe = fit(images.embeddings[rows[calib:]], images.labels[rows[calib:]], seed)
    rows = rows[:calib]
    return probe.head, probe.head.logits(images.embeddings[rows]), images.labels[rows], "calib"


def calibrate_once(images: ImageSet, size: int | None, seed: int) -> dict:
    learning, test = draw(images, size, seed)
    head, logits, labels, method = held_out(images, learning, seed)
    of_test, truth = head.logits(images.embeddings[test]), images.labels[test]
    row: dict = {"train": len(learning), "test": len(test), "held_out": len(labels), "method": method}
    for name, fitted in METHODS.items():
        said = scaled(fitted(logits, labels), of_test)
        row[f"ece {name}"], row[f"loss {name}"] = ece(said, truth), mean_log_loss(said, truth)
    row["chosen"] = best_in_folds(logits, labels, seed)
    row["ece chosen"], row["loss chosen"] = row[f"ece {row['chosen']}"], row[f"loss {row['chosen']}"]
    return row


def mean_interval(values: list[float]) -> str:
    """Mean with its 95 % interval over seeds (Student)."""
    margin = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.4f} ({np.mean(values) - margin:.4f} to {np.mean(values) + margin:.4f})"


def summarize(images: ImageSet, found: list[dict]) -> dict:
    row: dict = {"set": images.name, "seeds": len(found)}
    row |= {key: found[0][key] for key in ("train", "test", "held_out", "method")}
    for kind in ("ece", "loss"):
        for name in (*METHODS, "chosen"):
            row[f"{kind} {name}"] = mean_interval([each[f"{kind} {name}"] for each in found])
        gains = [each[f"{kind} temperature"] - each[f"{kind} none"] for each in found]
        row[f"{kind} change"] = mean_interval(gains)
    row["ece temperature max"] = round(max(each["ece temperature"] for each in found), 4)
    return row


def measure_calibration(data: Path, seeds: int) -> None:
    result = []
    sets = {cats_dogs: (200, 500, None), cifar: CIFAR_TRAIN, digits: (100, 500, None), multilabel: (200, None)}
    for load, sizes in sets.items():
        images = load(data)
        for size in sizes:
            result.append(summarize(images, [calibrate_once(images, size, seed) for seed in range(seeds)]))
            print(result[-1], flush=True)
    save("trust_calibration", result)


def ranked(probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, K) rank of each class, 0 the most probable, and the probability of those before it."""
    order = np.argsort(-probs, axis=1)
    ranks = np.argsort(order, axis=1)
    before = np.cumsum(np.take_along_axis(probs, order, axis=1), axis=1)
    return ranks, np.take_along_axis(before, ranks, axis=1) - probs


def strangeness(method: str, probs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, K) how little each class conforms."""
    if method == "LAC":
        return -probs
    ranks, before = ranked(probs)
    adaptive = before + rng.random((len(probs), 1)) * probs
    return adaptive if method == "APS" else adaptive + 0.1 * ranks


def sets_of(method: str, calib: np.ndarray, labels: np.ndarray, test: np.ndarray, coverage: float, seed: int):
    rng = np.random.default_rng(seed)
    of_truth = strangeness(method, calib, rng)[np.arange(len(labels)), labels]
    return strangeness(method, test, rng) <= -smallest_prob(-of_truth, coverage=coverage)


def measure_sets(images: ImageSet, method: str, coverage: float, splits: int) -> dict:
    learning, pool = draw(images, None, 0)
    if not images.test.any():
        learning, pool = np.split(np.random.default_rng(0).permutation(len(images.labels)), 2)
    head = fit(images.embeddings[learning], images.labels[learning], 0).head
    logits, labels = head.logits(images.embeddings[pool]).astype(np.float64), images.labels[pool]
    half, truths = len(pool) // 2, np.unique(labels)
    covered, sizes, by_class, single = [], [], [], []
    for seed in range(splits):
        calib, test = np.split(np.random.default_rng(1_000 + seed).permutation(len(pool)), [half])
        probs = probs_of(scaled(fit_temperature(logits[calib], labels[calib]), logits), multilabel=False)
        chosen = sets_of(method, probs[calib], labels[calib], probs[test], coverage, seed)
        held = chosen[np.arange(len(test)), labels[test]]
        covered.append(int(held.sum()))
        sizes.append(chosen.sum(axis=1).mean())
        single.append((chosen.sum(axis=1) == 1).mean())
        by_class.append([held[labels[test] == k].mean() for k in truths])
    misses = int(np.floor(round((half + 1) * (1 - coverage), 9))) - 1
    law = betabinom(len(pool) - half, half - misses, misses + 1)
    low, high = law.ppf([0.005, 0.995])
    by_chance = law.cdf(low - 1) + law.sf(high)
    return {
        "set": images.name,
        "method": method,
        "wanted": coverage,
        "calib": half,
        "test": len(pool) - half,
        "splits": splits,
        "covered": round(float(np.mean(covered)) / (len(pool) - half), 4),
        "expected": round(float(law.mean()) / (len(pool) - half), 4),
        "outside_99": int(((np.array(covered) < low) | (np.array(covered) > high)).sum()),
        "outside_99_by_chance_at_most": int(binom.ppf(0.99, splits, by_chance)),
        "mean_size": round(float(np.mean(sizes)), 3),
        "single": round(float(np.mean(single)), 3),
        "worst_class": round(float(np.mean(by_class, axis=0).min()), 4),
    }


def measure_coverage(data: Path, splits: int) -> None:
    result = []
    for load in (cifar, cats_dogs):
        images = load(data)
        for coverage in (0.9, 0.95):
            for method in ("LAC", "APS", "RAPS"):
                result.append(measure_sets(images, method, coverage, splits))
                print(result[-1], flush=True)
    save("trust_coverage", result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["calibration", "coverage", "familiarity", "cost"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    if options.what == "calibration":
        measure_calibration(options.data, options.seeds)
    elif options.what == "coverage":
        measure_coverage(options.data, options.splits)
    elif options.what == "familiarity":
        save("trust_familiarity", measure_familiarity(options.data))
        save("trust_left_out", measure_all_left_out(options.data))
    else:
        rows = measure_cost(options.data / "cats_dogs", options.repeats)
        save("trust_cost", rows)
        for row in rows:
            print(row)


if __name__ == "__main__":
    main()
