"""Embeddings: each computed once, whatever happens in between."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import PREPROCESS, tiny_backbone

from tellapart.imaging.preprocess import load_input
from tellapart.inference import embed
from tellapart.inference.embed import embed_files
from tellapart.records import Preprocess
from tellapart.storage import cache_folder, read_checked, sha256, write_checked

N = 30


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TELLAPART_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def files(photos):
    """Paths of 30 pictures by content hash."""
    return {sha256(path.read_bytes()): str(path) for path in sorted(photos.rglob("*.*g"))[: 2 * N : 2]}


@pytest.fixture
def computed(monkeypatch):
    """Paths whose embedding was computed rather than taken from the cache, in order."""
    paths = []
    iter_outputs = embed.iter_outputs

    def noted(engine, preprocess, sources):
        def note():
            for source in sources:
                paths.append(source)
                yield source

        return iter_outputs(engine, preprocess, note())

    monkeypatch.setattr(embed, "iter_outputs", noted)
    return paths


def run(files, **options):
    found = embed_files(
        files, options.pop("backbone", tiny_backbone()), options.pop("preprocess", PREPROCESS), **options
    )
    assert found.thumbnails.keys() == found.embeddings.keys()
    return found.embeddings, found.errors


def some(files, start, stop):
    return dict(itertools.islice(files.items(), start, stop))


def equal(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


def shards(kind="embeddings"):
    return sorted((cache_folder() / kind).rglob("*.npz.checked"))


def expected_embedding(path):
    return load_input(path, PREPROCESS).mean(axis=(0, 1))


def test_the_numbers_are_each_images_own(files, computed):
    embeddings, errors = run(files)
    assert len(files) == N
    assert errors == {}
    assert embeddings.keys() == files.keys()
    assert computed == list(files.values())
    for content, path in files.items():
        assert embeddings[content].dtype == np.float32
        assert embeddings[content] == pytest.approx(expected_embedding(path), rel=0.02, abs=1)  # bf16 at worst


def test_the_second_call_computes_nothing(files, monkeypatch):
    first, _ = run(files)
    monkeypatch.setattr(embed, "iter_outputs", lambda *_: pytest.fail("computed"))
    monkeypatch.setattr(embed, "OpenVINOEngine", lambda *_, **__: pytest.fail("compiled"))
    second, errors = run(files)
    assert errors == {}
    assert equal(first, second)


def test_the_cache_goes_by_content_not_by_name(files, tmp_path, monkeypatch):
    first, _ = run(files)
    monkeypatch.setattr(embed, "iter_outputs", lambda *_: pytest.fail("computed"))
    renamed = {content: str(tmp_path / f"elsewhere{i}.png") for i, content in enumerate(reversed(files))}
    second, _ = run(renamed)
    assert equal(first, second)


def test_only_new_images_are_computed(files, computed):
    first, _ = run(some(files, 0, 20))
    computed.clear()
    both, _ = run(files)
    assert computed == list(files.values())[20:]
    assert equal({content: both[content] for content in first}, first)
    assert both.keys() == files.keys()


def test_images_that_are_not_wanted_stay_in_the_cache(files, computed):
    run(files)
    computed.clear()
    few, _ = run(some(files, 5, 8))
    assert few.keys() == some(files, 5, 8).keys()
    run(files)
    assert computed == []


@pytest.mark.parametrize(
    "options",
    [
        {"preprocess": Preprocess(input_size_px=24)},
        {"preprocess": Preprocess(input_size_px=16, resize="crop")},
        {"preprocess": Preprocess(input_size_px=16, interpolation="bicubic")},
    ],
    ids=str,
)
def test_other_settings_do_not_share_embeddings(files, computed, options):
    run(files)
    computed.clear()
    run(files, **options)
    assert computed == list(files.values())


def test_another_decoder_does_not_share_embeddings(files, computed, monkeypatch):
    run(files)
    computed.clear()
    monkeypatch.setattr(embed, "DECODE_REVISION", "another")
    run(files)
    assert computed == list(files.values())


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda _content: b"",
        lambda content: content[:-40] + bytes([content[-40] ^ 4]) + content[-39:],
        lambda content: content[32:],
    ],
    ids=["cut", "halved", "empty", "bit flipped", "without checksum"],
)
@pytest.mark.parametrize("kind", ["embeddings", "thumbnails"])
def test_a_damaged_shard_is_computed_again(files, computed, kind, damage):
    first, _ = run(some(files, 0, 10))
    (shard,) = shards(kind)
    rest, _ = run(some(files, 10, N))
    shard.write_bytes(damage(shard.read_bytes()))
    computed.clear()
    again, errors = run(files)
    assert computed == list(files.values())[:10]
    assert errors == {}
    assert equal(again, first | rest)
    computed.clear()
    run(files)
    assert computed == []


@pytest.mark.parametrize("content", [b"", b"whole, but no npz"])
def test_a_whole_file_that_is_no_shard_is_computed_again(files, computed, content):
    first, _ = run(files)
    (shard,) = shards()
    write_checked(shard, content)
    computed.clear()
    again, _ = run(files)
    assert computed == list(files.values())
    assert equal(first, again)


@pytest.mark.parametrize("shard_images", [2, 7, 2_000])
@pytest.mark.parametrize("done_before", [1, 5, N])
def test_an_interruption_keeps_what_was_done(files, computed, monkeypatch, shard_images, done_before):
    monkeypatch.setattr(embed, "_SHARD_IMAGES", shard_images)

    def interrupt(_stage, done, _total):
        if done == done_before:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(files, progress=interrupt)
    assert all(read_checked(shard) is not None for shard in shards())
    computed.clear()
    embeddings, errors = run(files)
    assert computed == list(files.values())[done_before:]
    assert errors == {}
    for content, path in files.items():
        assert embeddings[content] == pytest.approx(expected_embedding(path), rel=0.02, abs=1)


def test_an_interruption_before_the_first_leaves_nothing_broken(files, computed):
    def interrupt(_stage, _done, _total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(files, progress=interrupt)
    assert shards() == []
    assert run(files)[0].keys() == files.keys()
    assert computed == list(files.values())


def test_many_shards(files, computed, monkeypatch):
    whole, _ = run(files)
    (shard,) = shards()
    shard.unlink()
    monkeypatch.setattr(embed, "_SHARD_IMAGES", 4)
    parts, _ = run(files)
    assert len(shards()) == -(-N // 4)
    assert equal(whole, parts)
    computed.clear()
    assert equal(run(files)[0], whole)
    assert computed == []


def test_undecodable_files_come_back_as_errors(files, computed, tmp_path):
    picture = Image.fromarray(np.full((200, 200, 3), 90, np.uint8))
    picture.save(tmp_path / "cut.png")
    cut = (tmp_path / "cut.png").read_bytes()[:60]
    (tmp_path / "cut.png").write_bytes(cut)
    bad = {sha256(cut): str(tmp_path / "cut.png"), sha256(b"gone"): str(tmp_path / "gone.png")}
    mixed = some(files, 0, 3) | some(bad, 0, 1) | some(files, 3, 9) | some(bad, 1, 2)
    embeddings, errors = run(mixed)
    assert {content: error.code for content, error in errors.items()} == {
        sha256(cut): "truncated-image",
        sha256(b"gone"): "file-not-found",
    }
    assert embeddings.keys() == some(files, 0, 9).keys()
    for content, embedding in embeddings.items():
        assert embedding == pytest.approx(expected_embedding(files[content]), rel=0.02, abs=1)
    computed.clear()
    again, errors_again = run(mixed)
    assert computed == list(bad.values())  # the others are in the cache, an error is not
    assert errors_again.keys() == errors.keys()
    assert equal(embeddings, again)


def test_only_undecodable_files(tmp_path):
    (tmp_path / "words.png").write_bytes(b"words")
    embeddings, errors = run({sha256(b"words"): str(tmp_path / "words.png")})
    assert embeddings == {}
    assert [error.code for error in errors.values()] == ["not-an-image"]
    assert shards() == []


def test_progress_counts_every_image_once(files, tmp_path):
    (tmp_path / "words.png").write_bytes(b"words")
    mixed = files | {sha256(b"words"): str(tmp_path / "words.png")}
    calls = []
    run(mixed, progress=lambda *call: calls.append(call))
    assert calls == [("features", done, N + 1) for done in range(N + 2)]
    calls.clear()
    run(mixed, progress=lambda *call: calls.append(call))
    assert calls == [("features", N, N + 1), ("features", N + 1, N + 1)]


def test_no_files():
    assert run({}) == ({}, {})


def test_a_signal_after_an_engine_was_freed_in_another_thread_is_survived():
    """OpenVINO's plugin would leave the main thread a freed stack for its signal handlers."""
    script = """
import signal, sys, threading
sys.path.insert(0, sys.argv[1])
from tiny import tiny_model
from tellapart.inference.predict import Classifier
kept = [Classifier(tiny_model())]
signal.signal(signal.SIGINT, lambda *_: print("handled", flush=True))
thread = threading.Thread(target=kept.clear)
thread.start()
thread.join()
signal.raise_signal(signal.SIGINT)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "handled"), done.stderr
