"""The group of processes that share each sample of a training."""

import math

from torch import distributed as dist

from nsa_lab.model import VideoNSAForConditionalGeneration
from nsa_lab.model.context_parallel import ContextGroup
from nsa_lab.training.launch import TIMEOUT
from nsa_lab.training.ranks import Ranks


def context_group(model: VideoNSAForConditionalGeneration, ranks: Ranks) -> ContextGroup:
    """The `ranks.context` neighbouring processes that this one shares samples with; every process must ask once."""
    group, _ = dist.new_subgroups(ranks.context, timeout=TIMEOUT)
    tile = math.lcm(*(attention.method.query_tile for attention in model.attentions()))
    return ContextGroup(ranks.place, ranks.context, group, tile)
