"""How much attention a design spends: the paper's figure, and exact counts.

A key read by two branches counts twice, as in the paper.
"""

from nsa_lab.config.schema import AttentionConfig


def paper_ratio(attention: AttentionConfig, length: int) -> float:
    """2K / (L - 1) over L video tokens, K = block_count * block_size (or token_budget) + window (VideoNSA, section 4).

    Compressed keys are not counted, and neither is the ramp at the start of the video: short videos give more than
    1. Dense attention is 1. At L = 128,000, 64 x 32 blocks and a window of 256 give 3.600%.
    """
    if attention.mode == "dense":
        return 1.0
    return 2 * attended_tokens(attention) / max(length - 1, 1)


def attended_tokens(attention: AttentionConfig) -> int:
    """K: the tokens a late query reads in the selection and window branches."""
    selection, window = attention.branches.selection, attention.branches.window
    selected = selection.block_count * attention.partition.block_size
    if selection.token_budget is not None:
        selected = selection.token_budget
    return selected * selection.enabled + window.size * window.enabled


def attention_flops(keys: float, scored_keys: float, num_heads: int, head_dim: int) -> float:
    """Forward FLOPs of one query: q.k and p.v over `keys`, q.k alone over `scored_keys` (block scores)."""
    return num_heads * head_dim * (4 * keys + 2 * scored_keys)
