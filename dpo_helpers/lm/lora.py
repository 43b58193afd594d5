"""LoRA (Hu et al., 2021): of some matrices a change of low rank is trained, and nothing else.

A matrix W becomes W + (α/r) B A, with A (r, d_in) and B (d_out, r); W itself stays. B is 0 at
first, so the model is at first unchanged. In training, what goes into A passes dropout.
"""

from ..errors import InputError, first_line
from .models import Model

# Appendix C: r, α, dropout, and "the query and value weights".
RANK, ALPHA, DROPOUT, MATRICES = 8, 32, 0.05, ("q_proj", "v_proj")


def add(model: Model, seed: int, dropout: float = DROPOUT) -> Model:
    """Give the network adapters, in place, and freeze all else; A is drawn from ``seed``.

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
                f"model {model.name}: takes no adapter ({first_line(error)}); choose a model whose "
                f"matrices are named {' and '.join(MATRICES)}"
            ) from None
    model.network.eval()
    return model


def merge(model: Model) -> Model:
    """Add what the adapters have learned to the matrices themselves, in place, and remove them.

    What is left is a plain network, all of whose parameters can be trained.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.network.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            above, _, own = name.rpartition(".")
            setattr(model.network.get_submodule(above), own, layer.get_base_layer())
    del model.network.peft_config
    model.network.requires_grad_(True)
    return model
