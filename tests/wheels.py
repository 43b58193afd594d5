"""A small model as a package registry has it: a wheel with a GGUF file."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np


def wheel(folder: Path, content: bytes) -> str:
    """Put a wheel with ``content`` as its GGUF file into a folder; its sha256."""
    path, info = folder / "dpo_fake-1.0-py3-none-any.whl", "dpo_fake-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("dpo_fake/model.gguf", content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: dpo-fake\nVersion: 1.0")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def gguf_file(path: Path, wide: int = 4096) -> bytes:
    """A Llama of one layer in 16 bit, its MLP ``wide``: twice as large once converted to 32 bit."""
    import gguf

    words = ["<s>", "</s>", "Yes", "No", "Y", "e", "s", "N", "o", "Ye"]
    d = 16
    shapes = {
        "token_embd": (len(words), d),
        "output_norm": (d,),
        **{f"blk.0.attn_{part}": (d, d) for part in ("q", "k", "v", "output")},
        **{f"blk.0.{part}_norm": (d,) for part in ("attn", "ffn")},
        **{f"blk.0.ffn_{part}": (wide, d) for part in ("gate", "up")},
        "blk.0.ffn_down": (d, wide),
    }
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(d)
    writer.add_block_count(1)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(d // 2)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3, 3] + [1] * (len(words) - 2))
    writer.add_token_merges(["Y e", "Ye s", "N o"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    draw = np.random.default_rng(0)
    for name, shape in shapes.items():
        kind = np.float16 if len(shape) > 1 else np.float32
        writer.add_tensor(f"{name}.weight", draw.normal(size=shape).astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()
