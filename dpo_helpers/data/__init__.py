"""Persona statements, HH-RLHF dialogues, and preference data of the reader's own."""

from .sets import (
    HUB,
    PERSONA_KEYS,
    Behavior,
    at_hand,
    behaviors,
    checked,
    load_behavior,
    load_pairs,
    online,
    pair,
    read_jsonl,
    source,
    split,
)
