"""Every figure of a report, calculated from the answers by plain definitions, scikit-learn and scipy.

Nothing here calls the code under test but for the bootstrap's weights: drawn once, what is done with them is done again here.
"""

from fractions import Fraction

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, binomtest, norm
from sklearn import metrics as sk

from tellapart.evaluation.bootstrap import Resamples, fixed_order

Z = norm.ppf(0.975)
NONE = (None, None, None)


def wilson(hits, n):
    if not n:
        return NONE
    found = binomtest(int(hits), int(n)).proportion_ci(0.95, method="wilson")
    return hits / n, found.low, found.high


def exact(hits, n):
    found = binomtest(int(hits), int(n)).proportion_ci(0.95, method="exact")
    return hits / n, found.low, found.high


def wilson_of_share(share, n):
    """Wilson's interval as the two shares whose score test has just 5 %."""

    def gap(truth):
        return (share - truth) ** 2 - Z**2 * truth * (1 - truth) / n

    low = 0.0 if share == 0 else brentq(gap, 0, share)
    high = 1.0 if share == 1 else brentq(gap, share, 1)
    return share, low, high


def newcombe(area, positives, negatives):
    more = (positives + negatives) / 2 - 1

    def gap(truth):
        variance = truth * (1 - truth) * (1 + more * ((1 - truth) / (2 - truth) + truth / (1 + truth)))
        return (area - truth) ** 2 - Z**2 * variance / (positives * negatives)

    return area, 0.0 if area == 0 else brentq(gap, 0, area), 1.0 if area == 1 else brentq(gap, area, 1)


def f1_of(hits, there, said):
    share, low, high = wilson(hits, there + said - hits)
    return tuple(2 * end / (1 + end) for end in (share, low, high))


def beta_range(n, rate):
    """Where the rate of false alarms of one threshold lies: the k-th smallest of n + 1 scores."""
    k = max(1, int(Fraction(n + 1) * Fraction(str(rate))))
    return beta.ppf(0.025, k, n + 1 - k), beta.ppf(0.975, k, n + 1 - k)


def ends(values, pivotal=False):
    low, high = np.percentile(values[1:], [2.5, 97.5])
    if pivotal:
        low, high = max(0.0, 2 * values[0] - high), 2 * values[0] - low
    return values[0], min(low, values[0]), max(high, values[0])


class ByHand:
    """The figures of one set of answers.

    Args:
        labels: (N,) classes, or (N, K) of 0 and 1.
        probs: (N, K) float32, as the model file gives them.
        thresholds: K, for several labels.
    """

    def __init__(self, labels, probs, thresholds=()):
        order = fixed_order(labels, probs)
        self.several = labels.ndim == 2
        self.labels, self.probs32 = labels[order], probs[order]
        self.probs = self.probs32.astype(np.float64)
        self.n, self.k = probs.shape
        self.there = self.labels.astype(bool) if self.several else self.labels[:, None] == np.arange(self.k)
        if self.several:
            self.said = self.probs32 >= np.asarray(thresholds)
            self.right = (self.said == self.there).all(axis=1)
            self.confidence = np.min(np.where(self.said, self.probs32, 1 - self.probs32), axis=1)
        else:
            self.said = self.probs32.argmax(axis=1)[:, None] == np.arange(self.k)
            self.right = (self.said & self.there).any(axis=1)
            self.confidence = self.probs32.max(axis=1)
        drawn = Resamples.draw(self.n, self.k)
        self.weights, self.missed, self.claimed = drawn.weights, drawn.missed, drawn.claimed

    # one number each

    def accuracy(self):
        return wilson(self.right.sum(), self.n)

    exact_match = accuracy

    def balanced_accuracy(self):
        """Zou and Donner 2008: the squared distances to the ends add up."""
        parts = np.array(
            [wilson((self.said & self.there)[:, k].sum(), n) for k, n in enumerate(self.there.sum(axis=0))]
        )
        value, low, high = parts.T
        below, above = (np.sqrt(((value - end) ** 2).sum()) / self.k for end in (low, high))
        return value.mean(), value.mean() - below, value.mean() + above

    def _tables(self):
        """Weighted hits, images and answers of each class, (K, 1 + B); the made-up image is no hit."""
        hits = np.array([self.weights[(self.there & self.said)[:, k]].sum(axis=0) for k in range(self.k)])
        there = np.array([self.weights[self.there[:, k]].sum(axis=0) for k in range(self.k)]) + self.missed
        said = np.array([self.weights[self.said[:, k]].sum(axis=0) for k in range(self.k)]) + self.claimed
        return hits, there, said

    def macro_f1(self):
        hits, there, said = self._tables()
        return ends(
            np.mean(2 / (there / hits + said / hits), axis=0)
        )  # the harmonic mean of hits/there and hits/said

    def micro_f1(self):
        hits, there, said = (part.sum(axis=0) for part in self._tables())
        return ends(2 * hits / (there + said))

    def kappa(self):
        hits, there, said = self._tables()
        n = self.weights.sum(axis=0) + self.missed.sum(axis=0)
        agreed = hits.sum(axis=0) / n
        by_chance = ((there / n) * (said / n)).sum(axis=0)
        return ends(1 - (1 - agreed) / (1 - by_chance))

    def _areas(self, k):
        """Pair by pair: the chance that an image of the class comes first; and the precision at the place of each."""
        mine, others = self.there[:, k], ~self.there[:, k]
        scores = self.probs32[:, k]
        wins = np.sign(scores[mine][:, None] - scores[others][None]) / 2 + 0.5
        of_mine, of_others = self.weights[mine], self.weights[others]
        positives, negatives = of_mine.sum(axis=0), of_others.sum(axis=0)
        missed, claimed = self.missed[k], self.claimed[k]  # comes last; comes first
        roc = (of_mine * (wins @ of_others)).sum(axis=0) / ((positives + missed) * (negatives + claimed))
        before = (scores[mine][:, None] <= scores[None]).astype(float)
        precision = (before[:, mine] @ of_mine) / (before @ self.weights + claimed)
        at_last = (positives + missed) / (positives + negatives + missed + claimed)
        pr = ((of_mine * precision).sum(axis=0) + missed * at_last) / (positives + missed)
        return roc, pr

    def auroc(self):
        return ends(np.mean([self._areas(k)[0] for k in range(self.k)], axis=0))

    def auprc(self):
        return ends(np.mean([self._areas(k)[1] for k in range(self.k)], axis=0))

    map = auprc

    def _mean(self, of_images):
        return ends((of_images[:, None] * self.weights).sum(axis=0) / self.weights.sum(axis=0))

    def log_loss(self):
        if self.several:
            return self._mean(-np.log(np.where(self.there, self.probs, 1 - self.probs32)).mean(axis=1))
        return self._mean(-np.log(self.probs[self.there]))

    def brier(self):
        squared = (self.probs - self.there) ** 2
        return self._mean(squared.mean(axis=1) if self.several else squared.sum(axis=1))

    def hamming_loss(self):
        """The made-up image has two wrong pairs."""
        made_up = self.missed.sum(axis=0)
        wrong = (self.weights * (self.there != self.said).mean(axis=1)[:, None]).sum(axis=0)
        return ends((wrong + 2 * made_up / self.k) / (self.weights.sum(axis=0) + made_up))

    def _claims(self):
        """What was claimed, whether it came true, and the image it is about."""
        if self.several:
            return self.probs32.ravel(), self.there.ravel(), np.arange(self.n).repeat(self.k)
        return self.confidence, self.right, np.arange(self.n)

    def bins(self):
        """Rows of each bin: cut after equal counts, the smallest first; equal probabilities are never cut apart."""
        claimed = self._claims()[0]
        m = len(claimed)
        order = np.argsort(claimed, kind="stable")
        count = min(15, max(1, m // 10))
        found, start = [], 0
        for b in range(1, count + 1):
            stop = b * m // count
            while 0 < stop < m and claimed[order[stop]] == claimed[order[stop - 1]]:
                stop -= 1
            if stop > start:
                found.append(order[start:stop])
                start = stop
        return found

    def ece(self):
        claimed, came_true, image = self._claims()
        gaps = came_true - claimed.astype(np.float64)
        total = self.weights[image].sum(axis=0)
        of_bins = np.array([(gaps[rows][:, None] * self.weights[image[rows]]).sum(axis=0) for rows in self.bins()])
        value, low, high = ends(np.abs(of_bins).sum(axis=0) / total, pivotal=True)
        noise = np.abs(of_bins / total - of_bins[:, :1] / total[0]).sum(axis=0)
        return value, 0.0 if np.percentile(noise[1:], 97.5) >= value else low, high

    def aurc(self):
        areas = np.zeros(self.weights.shape[1])
        for confidence in np.unique(self.confidence):
            answered = self.confidence >= confidence
            risk = self.weights[answered & ~self.right].sum(axis=0) / self.weights[answered].sum(axis=0)
            areas += risk * self.weights[self.confidence == confidence].sum(axis=0)
        return ends(areas / self.weights.sum(axis=0))

    # tables

    def top_k(self, k):
        return wilson(round(sk.top_k_accuracy_score(self.labels, self.probs, k=k) * self.n), self.n)

    def of_class(self, k):
        """Numbers of one class; average precision and AUROC are scikit-learn's."""
        there, said = self.there[:, k], self.said[:, k]
        hits = (there & said).sum()
        precision = sk.average_precision_score(there, self.probs[:, k])
        area = sk.roc_auc_score(there, self.probs[:, k])
        return {
            "n": there.sum(),
            "recall": wilson(hits, there.sum()),
            "precision": wilson(hits, said.sum()),
            "f1": f1_of(hits, there.sum(), said.sum()),
            "auroc": newcombe(area, there.sum(), self.n - there.sum()),
            "average precision": wilson_of_share(precision, there.sum()),
        }

    def confusion(self):
        return sk.confusion_matrix(self.labels, self.probs32.argmax(axis=1), labels=range(self.k))

    def mistakes(self):
        """True class, answer, how often, of how many; the most frequent first, then by name."""
        matrix = self.confusion()
        return [
            (i, j, matrix[i, j], matrix[i].sum())
            for i in range(self.k)
            for j in range(self.k)
            if i != j and matrix[i, j]
        ]

    def reliability(self):
        """Mean claim, images, and how often it came true, bin by bin."""
        claimed, came_true, _ = self._claims()
        return [
            (claimed[rows].astype(np.float64).mean(), len(rows), wilson(came_true[rows].sum(), len(rows)))
            for rows in self.bins()
        ]

    def selective(self):
        """Share answered, the least sure of them, and accuracy; by twentieths."""
        found = {}
        for step in range(1, 21):
            least = np.sort(self.confidence)[::-1][int(np.ceil(self.n * step / 20)) - 1]
            answered = self.confidence >= least
            found[least] = (answered.mean(), least, wilson(self.right[answered].sum(), answered.sum()))
        return list(found.values())

    def coverage(self, min_probs):
        """Covered, mean size, sets of one class, empty sets."""
        sets = self.probs32 >= np.asarray(min_probs)
        if self.several:
            held = np.where(self.there, self.probs32, 1 - self.probs32) >= np.asarray(min_probs)
        else:
            held = (sets & self.there).any(axis=1)
        sizes = sets.sum(axis=1)
        return exact(held.sum(), held.size), sizes.mean(), (sizes == 1).sum(), (sizes == 0).sum()

    def bands(self, k, limits):
        """Images, share of all, share of them that are of the class, and share of the class; from the top down."""
        found, above = [], np.zeros(self.n, bool)
        for limit in limits:
            inside = (
                ~above
                if limit == 0
                else (self.probs[:, k] >= limit) & ~above
                if limit is not None
                else above & ~above
            )
            above |= inside
            there = self.there[:, k]
            hits = (inside & there).sum()
            found.append(
                (inside.sum(), wilson(inside.sum(), self.n), wilson(hits, inside.sum()), wilson(hits, there.sum()))
            )
        return found
