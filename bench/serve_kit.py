"""What bench/serve.py shares: servers as processes, load from wrk and aiohttp, and rows."""

import asyncio
import gc
import io
import itertools
import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import numpy as np
from PIL import Image

from train import command

CLIENTS, WRK_S = 8, 8
LUA = """
local bodies = {}
for i = 1, COUNT do
  local file = io.open("FOLDER/" .. i .. ".jpg", "rb")
  bodies[i] = HEAD .. file:read("*all") .. TAIL
  file:close() -- wrk has no room for connections beside many open files
end
local i = 0
request = function() i = i % #bodies + 1; return wrk.format("POST", "/predict", {["Content-Type"] = "TYPE"}, bodies[i]) end
done = function(s, l, _)
  local e = s.errors
  local bad = e.connect + e.read + e.write + e.status + e.timeout
  print(string.format("RESULT %d %d %f %f %f", s.requests, bad, s.duration / 1e6, l:percentile(50) / 1e3, l:percentile(99) / 1e3))
end
"""


class Bench:
    """What the benches share: a model, photos, and the rows they print."""

    def __init__(self, source: Path, scratch: Path, n: int, swaps: int) -> None:
        self.scratch, self.n, self.swaps, self.rows, self.name = scratch, n, swaps, [], ""
        arguments = [command(), "train", str(source), "--out", str(scratch / "run"), "-q"]
        subprocess.run(arguments, check=True)
        self.model = scratch / "run/model.onnx"
        self.photos = scratch / "photos"
        self.photos.mkdir()
        paths = sorted(path for path in source.rglob("*.jpg") if "test" in path.parts)[:200]
        self.images = [jpeg(path) for path in paths]
        for number, data in enumerate(self.images, 1):
            (self.photos / f"{number}.jpg").write_bytes(data)
        print(f"{len(paths)} photos of {statistics.mean(map(len, self.images)) / 1000:.0f} kB")

    def row(self, figure: str, value: float, unit: str, n: int, target: str = "", met: bool | None = None) -> None:
        said = {None: "", True: "yes", False: "NO"}[met]
        row = {"bench": self.name, "figure": figure, "value": round(value, 3), "unit": unit}
        self.rows.append({**row, "target": target, "met": said, "n": n})
        aim = f"   target {target}: {said}" if target else ""
        print(f"{self.name:10} {figure:58} {value:10.3f} {unit:9} n {n}{aim}", flush=True)

    def wrk(self, url: str, clients: int, seconds: int = WRK_S, *, form: bool = False) -> tuple[float, float, int]:
        """Requests a second, median milliseconds and number of requests, in a closed loop."""
        head = '--b\r\nContent-Disposition: form-data; name="file"; filename="x.jpg"\r\n\r\n' if form else ""
        script = LUA.replace("COUNT", str(len(self.images))).replace("FOLDER", str(self.photos))
        script = script.replace("HEAD", json.dumps(head)).replace(
            "TAIL", json.dumps("\r\n--b--\r\n" if form else "")
        )
        script = script.replace("TYPE", "multipart/form-data; boundary=b" if form else "image/jpeg")
        (self.scratch / "wrk.lua").write_text(script)
        arguments = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "-s", str(self.scratch / "wrk.lua"), url]
        output = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
        requests, bad, took, p50, _ = (float(x) for x in re.search(r"RESULT (.+)", output)[1].split())
        if bad:
            raise SystemExit(f"{bad:.0f} of {requests:.0f} requests to {url} failed")
        return requests / took, p50, int(requests)


def jpeg(path: Path, most: int = 105_000) -> bytes:
    """A photo as a JPEG file of about 100 kB."""
    with Image.open(path) as opened:
        photo = opened.convert("RGB").resize((800, 600))
    for quality in (95, 92, 88, 84, 80, 75, 70, 60, 50):
        file = io.BytesIO()
        photo.save(file, "JPEG", quality=quality)
        if file.tell() <= most:
            break
    return file.getvalue()


@contextmanager
def process(arguments: list[str]):
    """A server, ended with SIGTERM."""
    server = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    try:
        yield server
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


@contextmanager
def tellapart(model: Path):
    """The address of `tellapart serve`, and its process number."""
    with process([command(), "serve", str(model), "--port", "0", "-q"]) as server:
        yield re.search(r"http://[^/\s]+", server.stdout.readline())[0], server.pid


def answers(url: str) -> bool:
    """Whether a server is there and ready: LitServe listens before its model does, and says 503 until then."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError as error:
        return error.code != 503
    except OSError:
        return False
    return True


@contextmanager
def rival(kind: str):
    """The address of another server; None where it cannot start."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with process([sys.executable, str(Path(__file__).with_name("rival_serve.py")), kind, str(port)]) as server:
        while server.poll() is None and not answers(f"http://127.0.0.1:{port}/health"):
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}" if server.poll() is None else None


def memory_mib(pid: int) -> float:
    """Of a process and those it started, shared memory shared out."""
    total = int(re.search(r"\nPss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text())[1]) / 1024
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += sum(memory_mib(int(child)) for child in (task / "children").read_text().split())
    return total


def percentile(seconds: list[float], q: float) -> float:
    """In milliseconds."""
    return float(np.percentile(seconds, q)) * 1e3 if seconds else float("nan")


class Client:
    """Asks; each answer is its status, or the name of what went wrong, and the seconds since ``began``."""

    def __init__(self, session: aiohttp.ClientSession, url: str, pid: int, images: list[bytes]) -> None:
        self.session, self.url, self.pid = session, url, pid
        self.lags: list[float] = []
        self.next_image = itertools.cycle(images).__next__

    async def ask(self, began: float | None = None) -> tuple[int | str, float]:
        began = began or time.perf_counter()
        try:
            async with self.session.post(f"{self.url}/predict", data=self.next_image()) as answer:
                await answer.read()
                return answer.status, time.perf_counter() - began
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return type(error).__name__, time.perf_counter() - began

    async def closed(self, clients: int, seconds: float) -> list[tuple[int | str, float]]:
        """A number of clients, each asking as soon as it is answered."""
        end, answers = time.perf_counter() + seconds, []

        async def one() -> None:
            while time.perf_counter() < end:
                answers.append(await self.ask())

        await asyncio.gather(*(one() for _ in range(clients)))
        return answers

    async def opened(self, rate: float, seconds: float) -> list[asyncio.Task]:
        """Poisson arrivals, whatever becomes of those before them; returns at the last arrival.

        What was loaded before is kept from the garbage collection, whose pauses would count as the server's. How late requests
        were sent all the same is in ``lags``, in seconds.
        """
        gc.collect()
        gc.freeze()
        self.lags = []
        arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / rate, int(rate * seconds)))
        start, tasks = time.perf_counter(), []
        for moment in start + arrivals:
            await asyncio.sleep(max(0.0, moment - time.perf_counter()))
            self.lags.append(time.perf_counter() - moment)
            tasks.append(asyncio.create_task(self.ask(moment)))
        return tasks

    async def capacity(self, seconds: float = 8) -> float:
        """Images a second at 8 clients of this kind, after a warm-up."""
        await self.closed(CLIENTS, 3)
        return sum(status == 200 for status, _ in await self.closed(CLIENTS, seconds)) / seconds
