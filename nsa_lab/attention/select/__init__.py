"""Who scores the blocks, and how scores become blocks. A new scorer or rule is one file and one line here."""

from nsa_lab.attention.choice import Rule, Scorer
from nsa_lab.attention.select.compression import CompressionScorer
from nsa_lab.attention.select.token_budget import TokenBudget
from nsa_lab.attention.select.top_n import TopN

SCORERS: dict[str, type[Scorer]] = {
    "compression": CompressionScorer,
}
RULES: dict[str, type[Rule]] = {
    "top_n": TopN,
    "token_budget": TokenBudget,
}

__all__ = ["RULES", "SCORERS", "CompressionScorer", "TokenBudget", "TopN"]
