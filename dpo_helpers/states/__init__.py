"""Final hidden states: token tries, tree attention, extraction, and their statistics."""

from .attention import forward, tree_attention
from .extract import hidden_states
from .statistics import Geometry, geometry, knn_label_agreement, probe, umap_2d
from .token_trie import BLOCK, TokenTrie, attention_blocks, build_trie, pack, shared_length
