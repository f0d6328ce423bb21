"""What trust costs: time to train, time to predict, size of the file; run through bench/trust.py.

``tellapart train`` runs in processes of its own, with nothing cached, taking turns with the same less familiarity, the page, and
all metrics but accuracy. It is left out by patching in the child: the product has no switch for it.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from tellapart.inference.engine import BATCH_SIZE, OpenVINOEngine
from tellapart.inference.model import read_model

WITHOUT = """
import numpy as np
from tellapart import pipeline
from tellapart.evaluation.familiarity import Familiarity, FittedFamiliarity, Gaussian
from tellapart.inference import model
from tellapart.report import run_folder
from tellapart.training import probe

def no_familiarity(embeddings, logits, fold):
    nothing = Gaussian(mean=np.zeros(1), axes=np.zeros((1, 1)), variances=np.ones(1), rest=1.0)
    unknown = Unknown(gaussian=nothing, distance=(0.0, 1.0), length=(0.0, 1.0), logit=(0.0, 1.0))
    return FittedFamiliarity(score=unknown, distances=np.zeros(len(embeddings)), lengths=np.zeros(len(embeddings)))

class Unknown(Familiarity):
    def score(self, embeddings, logits):
        return np.zeros(len(embeddings))

    def combine(self, distances, lengths, logits):
        return np.zeros(len(distances))

def no_nodes(whole, score):
    graph = whole.graph
    zero = model.numpy_helper.from_array(np.zeros(1, np.float32), "no_familiarity")
    graph.initializer.append(zero)
    graph.node.append(model.helper.make_node("ReduceMean", ["logits"], ["some"], axes=[1], keepdims=0))
    graph.node.append(model.helper.make_node("Mul", ["some", "no_familiarity"], ["familiarity"]))
    graph.output.append(model.helper.make_tensor_value_info("familiarity", model.TensorProto.FLOAT, ["N"]))

def accuracy_only(part, answers, card):
    predicted = np.array([answers[path]["probs"].argmax() for path in part.paths])
    share = float((predicted == part.labels).mean())
    return {"n": len(part), "headline": ["accuracy"], "accuracy": {"value": share, "low": share, "high": share}}

probe.fit_familiarity = no_familiarity
model.add_familiarity = no_nodes
pipeline.measure_answers = accuracy_only
run_folder.present = lambda *arguments, **more: b""
run_folder.render_model_card = lambda *arguments, **more: ""
"""
TRAIN = """
import sys
import tellapart
tellapart.train(sys.argv[1], out=sys.argv[2])
"""


def train_seconds(folder: Path, *, trust: bool) -> tuple[float, float]:
    """Wall and processor seconds of a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        code = ("" if trust else WITHOUT) + TRAIN
        environment = {**os.environ, "TELLAPART_CACHE": f"{scratch}/cache"}
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", code, str(folder), f"{scratch}/run"], env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"training ended with status {status}")
        return time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def measure_training(folder: Path, repeats: int) -> list[dict]:
    """Processor time is the one to believe where other programs run beside it."""
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for i in range(repeats):
        for trust in (True, False) if i % 2 else (False, True):
            found[trust].append(train_seconds(folder, trust=trust))
            print("train", "with" if trust else "without", found[trust][-1], flush=True)
    (wall, busy), (plain_wall, plain_busy) = (tuple(zip(*found[trust], strict=True)) for trust in (True, False))
    return [
        row("train, wall seconds", wall, plain_wall, wanted="at most 1.15"),
        row("train, processor seconds", busy, plain_busy, wanted="at most 1.15"),
    ]


def row(what: str, with_it: Sequence[float], without: Sequence[float], wanted: str) -> dict:
    ratios = [one / other for one, other in zip(with_it, without, strict=True)]
    return {
        "what": what,
        "n": len(with_it),
        "with": round(statistics.median(with_it), 4),
        "without": round(statistics.median(without), 4),
        "ratio": round(statistics.median(with_it) / statistics.median(without), 3),
        "ratios_of_pairs": f"{np.quantile(ratios, 0.25):.3f} to {np.quantile(ratios, 0.75):.3f}",
        "wanted": wanted,
    }


def without_familiarity(content: bytes) -> bytes:
    """The graph less the output and its nodes."""
    model = onnx.load_model_from_string(content)
    graph = model.graph
    kept = [node for node in graph.node if not node.name.startswith("familiarity_")]
    constants = [each for each in graph.initializer if not each.name.startswith("familiarity.")]
    outputs = [each for each in graph.output if each.name != "familiarity"]
    for field, values in ((graph.node, kept), (graph.initializer, constants), (graph.output, outputs)):
        del field[:]
        field.extend(values)
    return model.SerializeToString()


def measure_file(folder: Path, repeats: int = 400) -> list[dict]:
    """Two engines on the same batch of photos, taking turns; and the size of both files."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-c", TRAIN, str(folder), f"{scratch}/run"], check=True)
        model = read_model(f"{scratch}/run/model.onnx")
    side = model.card.preprocess.input_size_px
    plain = without_familiarity(model.onnx_bytes)
    full = OpenVINOEngine(model.onnx_bytes, input_size_px=side, outputs=("probs", "familiarity"))
    less = OpenVINOEngine(plain, input_size_px=side, outputs=("probs",))
    images = np.random.default_rng(0).integers(0, 256, (BATCH_SIZE, side, side, 3)).astype(np.uint8)
    taken: dict[bool, list[float]] = {True: [], False: []}
    for i in range(2 * repeats):
        with_it = i % 4 in (1, 2)  # each goes first as often as the other
        start = time.process_time()
        (full if with_it else less).run(images)
        taken[with_it].append((time.process_time() - start) * 1_000 / BATCH_SIZE)
    print("engine", statistics.median(taken[True]), statistics.median(taken[False]), flush=True)
    sizes = len(model.onnx_bytes) / 1e6, len(plain) / 1e6
    return [
        row("engine, processor milliseconds an image", taken[True], taken[False], wanted="at most 1.05"),
        row("file, megabytes", [sizes[0]], [sizes[1]], wanted="at most 8 more"),
    ]


def measure_cost(folder: Path, repeats: int) -> list[dict]:
    return [*measure_file(folder), *measure_training(folder, repeats)]
