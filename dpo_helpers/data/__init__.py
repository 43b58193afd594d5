"""Persona statements, HH-RLHF dialogues, and preference data of the reader's own."""

from .dialogues import divide_dialogue, load_pairs
from .files import read_jsonl
from .hub import HUB, at_hand, checked_name, online, source
from .persona import PERSONA_KEYS, Behavior, behaviors, load_behavior, split
