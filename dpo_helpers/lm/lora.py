"""LoRA (Hu et al., 2021): training adds a low-rank change to some matrices, and nothing else.

A matrix W becomes W + (α/r) B A, with A (r, d_in) and B (d_out, r), while W itself is frozen. At
initialization B is 0, so the model does not change. In training, dropout is applied to A's input.
"""

from ..errors import InputError, first_line
from .models import Model

# Appendix C: r, α, dropout, and "the query and value weights".
RANK, ALPHA, DROPOUT, MATRICES = 8, 32, 0.05, ("q_proj", "v_proj")


def add(model: Model, seed: int, dropout: float = DROPOUT) -> Model:
    """Add adapters to the network, in place, and freeze all else. A is drawn with ``seed``.

    Raises InputError if the network has no matrices of these names.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, target_modules=list(MATRICES)
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model.network)
        except ValueError as error:
            raise InputError(
                f"model {model.name}: no adapter can be added ({first_line(error)}); choose a "
                f"model whose matrices are named {' and '.join(MATRICES)}"
            ) from None
    model.network.eval()
    return model


def merge(model: Model) -> Model:
    """Add the trained changes to the matrices themselves, in place, and remove the adapters.

    The result is a plain network. All of its parameters can be trained.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.network.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(model.network.get_submodule(parent), attribute, layer.get_base_layer())
    del model.network.peft_config
    model.network.requires_grad_(True)
    return model
