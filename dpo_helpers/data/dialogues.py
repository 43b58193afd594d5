"""HH-RLHF: pairs of dialogues that share their beginning."""

from typing import TYPE_CHECKING

from ..errors import InputError
from ..files import content_keyed
from .files import read_jsonl
from .hub import checked_name, from_hub, locate

if TYPE_CHECKING:
    import datasets


@content_keyed
def load_pairs(
    data: str = "sample", subset: str = "harmless-base", split: str = "test"
) -> "datasets.Dataset":
    """HH-RLHF preference pairs, with columns prompt, chosen and rejected (``divide_dialogue``).

    Raises InputError for an unknown subset or split, an unreadable file, and a malformed line.
    """
    import datasets

    file = f"{checked_name(subset, 'subset')}/{checked_name(split, 'split')}.jsonl"
    folder = locate("hh-rlhf", data)
    if folder is None:
        path = from_hub("hh-rlhf", f"{file}.gz")
    else:
        path, packed = (folder / "hh-rlhf" / name for name in (file, f"{file}.gz"))
        path = packed if packed.exists() else path
    return datasets.Dataset.from_list(read_jsonl(path, ("chosen", "rejected"), divide_dialogue))


def divide_dialogue(row: dict, where: str) -> dict[str, str]:
    """The prompt of two dialogues, up to and including the last ``Assistant:`` that both share.

    Returns prompt, chosen and rejected; the responses are what follows the prompt.
    Raises InputError, which names ``where``, if the dialogues share no prompt.
    """
    chosen, rejected, mark = row["chosen"], row["rejected"], "\n\nAssistant:"
    start = chosen.rfind(mark)
    while start >= 0 and not rejected.startswith(chosen[: start + len(mark)]):
        start = chosen.rfind(mark, 0, start)
    if start < 0:
        raise InputError(
            f"{where}: chosen and rejected share no prompt that ends in 'Assistant:'; fix or "
            "remove the line"
        )
    cut = start + len(mark)
    return {"prompt": chosen[:cut], "chosen": chosen[cut:], "rejected": rejected[cut:]}
