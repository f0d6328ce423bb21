"""`tellapart serve` as a process of its own, under load: how fast it is, and what it withstands.

    python bench/serve.py ../shared/data/cats_dogs [overhead throughput poisson overload answers swaps slow] [--n N] [--swaps N]

Without names, all of them. The model is trained by the command on the folder; images are its photos as JPEG files of about
100 kB. LOAD GENERATOR AND SERVER SHARE THE PROCESSORS (two, where bench/results/serve.csv was measured), so every figure is
the server's and the client's together. Throughput's closed loop is wrk's (apt install wrk); one client alone is Python's own
http.client; all else is aiohttp's client (pip install aiohttp), whose Poisson arrivals follow a schedule fixed beforehand:
latency counts from the scheduled moment, so that a client that falls behind makes figures worse, not better.
"""

import argparse
import asyncio
import collections
import csv
import http.client
import io
import json
import shutil
import statistics
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import aiohttp
import numpy as np
from PIL import Image

from floor import measure_floor
from serve_kit import CLIENTS, Bench, Client, memory_mib, percentile, rival, tellapart
from tellapart.imaging.preprocess import load_input
from tellapart.inference.engine import OpenVINOEngine, best_precision, compile_model, iter_outputs
from tellapart.inference.model import ModelFile, read_model
from tellapart.inference.predict import VERDICT_OUTPUTS
from train import RESULTS, save

POISSON_S, OVERLOAD_S, SLOW_S = 60, 20, 10


async def with_client(bench: Bench, work) -> None:
    """Run a bench with a fresh server and a client."""
    connector = aiohttp.TCPConnector(limit=0)
    with tellapart(bench.model) as (url, pid):
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(30)) as session:
            await work(bench, Client(session, url, pid, bench.images))


def overhead(bench: Bench) -> None:
    """One client: the server against the same decoding and engine called directly, taking turns."""
    file = read_model(bench.model)
    spec = file.card.preprocess
    compiled = compile_model(
        file.onnx_bytes,
        input_size_px=spec.input_size_px,
        batch_size=1,
        precision=best_precision(),
        outputs=VERDICT_OUTPUTS,
    )
    request = compiled.create_infer_request()

    def direct() -> float:
        seconds = []
        for data in bench.images * 2:
            began = time.perf_counter()
            request.infer({0: load_input(data, spec)[None]})
            seconds.append(time.perf_counter() - began)
        return percentile(seconds, 50)

    def asked(line: http.client.HTTPConnection) -> float:
        seconds = []
        for data in bench.images * 2:
            began = time.perf_counter()
            line.request("POST", "/predict", data)
            line.getresponse().read()
            seconds.append(time.perf_counter() - began)
        return percentile(seconds, 50)

    with tellapart(bench.model) as (url, _):
        line = http.client.HTTPConnection(url.removeprefix("http://"))
        asked(line), direct()
        runs = [(direct(), asked(line)) for _ in range(5)]
    alone, served = (list(column) for column in zip(*runs, strict=True))
    n = 5 * 2 * len(bench.images)
    more = statistics.median(b - a for a, b in zip(alone, served, strict=True))
    bench.row("decode + engine called directly, p50", statistics.median(alone), "ms", n)
    bench.row("one client, p50 (median of 5 rounds)", statistics.median(served), "ms", n)
    bench.row("overhead, p50 (median of 5 rounds)", more, "ms", n, "<= 3", more <= 3)


def throughput(bench: Bench) -> None:
    """Eight clients: images a second of the server, the floor, and rivals, in one run."""
    file = read_model(bench.model)
    side = file.card.preprocess.input_size_px
    if side != 224:
        print(f"the floor and rivals run at 224 px, the model at {side}")
    engine = OpenVINOEngine(file.onnx_bytes, input_size_px=side, outputs=VERDICT_OUTPUTS)
    floors, directs, served, total = [], [], [], 0
    with tellapart(bench.model) as (url, _):
        bench.wrk(url, CLIENTS, 3)
        for _ in range(3):
            found = measure_floor(bench.photos, repeats=1)
            floors.append(found["images"] / found["floor_seconds"])
            began = time.perf_counter()
            answers = sum(1 for _ in iter_outputs(engine, file.card.preprocess, bench.images * 3))
            directs.append(answers / (time.perf_counter() - began))
            rate, _, count = bench.wrk(url, CLIENTS)
            served.append(rate)
            total += count
    floor, direct, rate = (statistics.median(x) for x in (floors, directs, served))
    bench.row("floor (bench/floor.py)", floor, "images/s", 3 * len(bench.images))
    bench.row("decode + engine called directly (iter_outputs)", direct, "images/s", 9 * len(bench.images))
    bench.row("tellapart serve, 8 clients", rate, "images/s", total)
    bench.row("share of decode + engine called directly", rate / direct, "", total, ">= 0.8", rate / direct >= 0.8)
    bench.row("share of floor (bench/floor.py)", rate / floor, "", total, ">= 0.8", rate / floor >= 0.8)
    for kind in ("fastapi", "litserve"):
        with rival(kind) as url:
            if url is None:
                print(f"left out: {kind} cannot be started here")
                continue
            bench.wrk(url, CLIENTS, 3, form=kind == "litserve")
            rate, _, count = bench.wrk(url, CLIENTS, form=kind == "litserve")
            bench.row(f"{kind} + eager PyTorch, same backbone, 8 clients", rate, "images/s", count)


async def poisson(bench: Bench, client: Client) -> None:
    """Open loop at 80 % of capacity."""
    capacity = await client.capacity()
    answers = await asyncio.gather(*await client.opened(0.8 * capacity, POISSON_S))
    seconds = [took for status, took in answers if status == 200]
    bad, p50, p99 = len(answers) - len(seconds), percentile(seconds, 50), percentile(seconds, 99)
    print(collections.Counter(status for status, _ in answers))
    bench.row("capacity of server and this client, 8 at a time", capacity, "images/s", int(8 * capacity))
    bench.row(f"errors at 0.8 of capacity for {POISSON_S} s", bad, "", len(answers), "0", bad == 0)
    bench.row("p50", p50, "ms", len(seconds))
    bench.row("p99", p99, "ms", len(seconds))
    bench.row("p99 / p50", p99 / p50, "", len(seconds), "<= 5", p99 <= 5 * p50)
    bench.row("sent late by this client, p99", percentile(client.lags, 99), "ms", len(client.lags))


async def overload(bench: Bench, client: Client) -> None:
    """Three times as much as it can do, then whether and when it is itself again."""
    capacity = await client.capacity()
    quiet = percentile([took for _, took in await client.closed(1, 3)], 50)
    before = memory_mib(client.pid)
    tasks = await client.opened(3 * capacity, OVERLOAD_S)
    ended = time.perf_counter()
    good, back = 0, 0.0
    while good < 10 and back < 60:  # answers in a row that are as fast as before
        status, took = await client.ask()
        good = good + 1 if status == 200 and took * 1e3 <= 2 * quiet else 0
        back = time.perf_counter() - ended
    answers = await asyncio.gather(*tasks)
    after = memory_mib(client.pid)
    took_by = collections.defaultdict(list)
    for status, took in answers:
        took_by[status].append(took)
    print({status: len(found) for status, found in took_by.items()})
    good = len(took_by[200]) / OVERLOAD_S / capacity
    refused, n = took_by[503], len(answers)
    other = n - len(took_by[200]) - len(refused)
    bench.row("capacity of server and this client, 8 at a time", capacity, "images/s", int(8 * capacity))
    bench.row("goodput at 3x capacity, share of capacity", good, "", n, ">= 0.9", good >= 0.9)
    bench.row("refusals, p50", percentile(refused, 50), "ms", len(refused))
    p99 = percentile(refused, 99)
    bench.row("refusals, p99", p99, "ms", len(refused), "<= 50", p99 <= 50)
    bench.row("neither answered nor refused", other, "", n, "0", other == 0)
    bench.row("recovery: until 10 answers in a row within 2x of before", back, "s", 1, "<= 5", back <= 5)
    bench.row("memory growth of all its processes", after - before, "MiB", 1, "< 64", after - before < 64)


async def known_answers(client: Client, images: list[bytes]) -> dict[bytes, dict]:
    """Images and their answers, asked one by one on an idle server; only those whose answers differ from all others."""
    found = {}
    for data in images:
        async with client.session.post(f"{client.url}/predict?probs=true", data=data) as answer:
            found[data] = (await answer.json())["predictions"][0]
    seen = collections.Counter(json.dumps(row) for row in found.values())
    return {data: row for data, row in found.items() if seen[json.dumps(row)] == 1}


async def check_answers(client: Client, known: dict[bytes, dict], more, counts: collections.Counter) -> None:
    """Ask for one image, or four in a form, and count answers and what is wrong with them, while ``more()``."""
    rng, images = np.random.default_rng(id(asyncio.current_task()) % 2**32), list(known)
    while more():
        chosen = [images[i] for i in rng.integers(0, len(images), rng.choice([1, 4]))]
        form = aiohttp.FormData()
        for data in chosen:
            form.add_field("files", data, filename="")
        try:
            async with client.session.post(
                f"{client.url}/predict?probs=true", data=form if len(chosen) > 1 else chosen[0]
            ) as answer:
                said = (await answer.json())["predictions"] if answer.status == 200 else []
        except (aiohttp.ClientError, TimeoutError, OSError):
            said = []
        counts["failed"] += not said
        counts["answers"] += len(said)
        counts["wrong"] += sum(known[data] != row for data, row in zip(chosen, said, strict=False))
        counts["wrong"] += bool(said) and len(said) != len(chosen)


async def answers(bench: Bench, client: Client) -> None:
    """Known answers under load: whether any belongs to another image. Small images, so that many are under way."""
    small = [thumbnail(data) for data in bench.images]
    known, counts = await known_answers(client, small), collections.Counter()
    load = (check_answers(client, known, lambda: counts["answers"] < bench.n, counts) for _ in range(16))
    await asyncio.gather(*load)
    print(f"{len(known)} images with answers of their own", dict(counts))
    bench.row(
        "answers that belong to another image", counts["wrong"], "", counts["answers"], "0", not counts["wrong"]
    )
    bench.row("failed requests", counts["failed"], "", counts["answers"], "0", not counts["failed"])


def thumbnail(data: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).resize((160, 120)).save(file, "JPEG", quality=85)
    return file.getvalue()


def write_model(path: Path, model: ModelFile) -> None:
    """As training does: under another name first."""
    path.with_suffix(".part").write_bytes(model.onnx_bytes)
    path.with_suffix(".part").replace(path)


async def swaps(bench: Bench, client: Client) -> None:
    """New versions of the model, with other bytes and the same answers, under load."""
    wanted = bench.swaps
    file = read_model(bench.model)
    other = file.with_card(replace(file.card, created="2026-01-01T00:00:00+00:00"))
    known, counts = await known_answers(client, [thumbnail(data) for data in bench.images]), collections.Counter()
    load = [
        asyncio.create_task(check_answers(client, known, lambda: counts["swaps"] < wanted, counts))
        for _ in range(2)
    ]
    first, began, memory = await version(client), time.perf_counter(), {}
    for number in range(wanted):
        write_model(bench.model, (other, file)[number % 2])
        was, waited = first, time.perf_counter()
        while first == was and time.perf_counter() - waited < 30:
            await asyncio.sleep(0.05)
            first = await version(client)
        counts["swaps"] += first != was
        if first == was:
            break
        if not (number + 1) % 20:  # at rest: while a version is compiled, there are two or three, some 80 MiB more
            await asyncio.sleep(2)
            memory[number + 1] = memory_mib(client.pid)
    each = (time.perf_counter() - began - 2 * len(memory)) / max(1, counts["swaps"])
    done, counts["swaps"] = counts["swaps"], wanted
    await asyncio.gather(*load)
    bad = counts["failed"] + counts["wrong"]
    bench.row("swaps under load", done, "", wanted, f"{wanted}", done == wanted)
    bench.row("failed requests or wrong answers meanwhile", bad, "", counts["answers"], "0", bad == 0)
    bench.row("a swap, until the new version answers", each, "s", done)
    print("MiB after so many swaps", {swap: round(mib) for swap, mib in memory.items()})
    if len(memory) > 2:
        middle, last = sorted(memory)[len(memory) // 2], max(memory)
        bench.row("memory, swap 20 to the last", memory[last] - memory[20], "MiB", last)
        bench.row(f"memory, swap {middle} to the last", memory[last] - memory[middle], "MiB", last)


async def version(client: Client) -> str:
    async with client.session.get(f"{client.url}/models") as answer:
        return (await answer.json())["models"][0]["version"]


async def slow(bench: Bench, client: Client) -> None:
    """A normal client beside 200 that send a byte a second, half of them of the headers, half of the body."""
    host, port = client.url.removeprefix("http://").split(":")
    begin = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
    starts = (begin + b"X: ", begin + b"Content-Length: 99999\r\n\r\n")

    async def trickle(start: bytes) -> None:
        while True:
            with suppress(OSError):
                _, line = await asyncio.open_connection(host, port)
                line.write(start)
                while not line.is_closing():
                    await line.drain()
                    await asyncio.sleep(1)
                    line.write(b"a")

    await client.closed(1, 3)
    alone, beside = [], []
    for _ in range(3):
        alone += await client.closed(1, SLOW_S)
        others = [asyncio.create_task(trickle(starts[i % 2])) for i in range(200)]
        await asyncio.sleep(1)
        beside += await client.closed(1, SLOW_S)
        for task in others:
            task.cancel()
        await asyncio.wait(others)
        await asyncio.sleep(1)
    bad = sum(status != 200 for status, _ in alone + beside)
    a, b = (percentile([took for _, took in found], 99) for found in (alone, beside))
    bench.row("a normal client's p99, alone", a, "ms", len(alone))
    bench.row("the same beside 200 slow sockets", b, "ms", len(beside))
    bench.row("ratio", b / a, "", len(beside), "<= 1.5", b <= 1.5 * a)
    bench.row("errors of the normal client", bad, "", len(alone + beside), "0", bad == 0)


BENCHES = {f.__name__: f for f in (overhead, throughput, poisson, overload, answers, swaps, slow)}


def keep(rows: list[dict], ran: set[str]) -> None:
    """Save, with the rows of benches that were not run this time as they are."""
    path = RESULTS / "serve.csv"
    with suppress(FileNotFoundError), path.open(newline="") as file:
        rows = [*rows, *(row for row in csv.DictReader(file) if row["bench"] not in ran)]
    save("serve", sorted(rows, key=lambda row: list(BENCHES).index(row["bench"])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("benches", nargs="*", metavar="BENCH", help=", ".join(BENCHES), default=list(BENCHES))
    parser.add_argument("--n", type=int, default=100_000, help="known answers")
    parser.add_argument("--swaps", type=int, default=200, help="new versions of the model")
    options = parser.parse_args()
    if unknown := set(options.benches) - set(BENCHES):
        parser.error(f"no such bench: {', '.join(unknown)}")
    if not shutil.which("wrk"):
        raise SystemExit("the load generator is missing: apt install wrk")
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options.folder, Path(scratch), options.n, options.swaps)
        for name in options.benches:
            bench.name = name
            work = BENCHES[name]
            if asyncio.iscoroutinefunction(work):
                asyncio.run(with_client(bench, work))
            else:
                work(bench)
            keep(bench.rows, {row["bench"] for row in bench.rows})


if __name__ == "__main__":
    main()
