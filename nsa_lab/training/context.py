"""The group of processes that share each sample of a training."""

from torch import distributed as dist

from nsa_lab.model import VideoNSAForConditionalGeneration
from nsa_lab.model.context_parallel import ContextGroup
from nsa_lab.training.launch import TIMEOUT
from nsa_lab.training.ranks import Ranks


def context_group(model: VideoNSAForConditionalGeneration, ranks: Ranks) -> ContextGroup:
    """The `ranks.context` neighbouring processes that this one shares samples with; every process must ask once."""
    group, _ = dist.new_subgroups(ranks.context, timeout=TIMEOUT)
    return ContextGroup(ranks.place, ranks.context, group, model.model.language_model.query_tile)
