"""How one block becomes one key and one value. A new compressor is one file and one line here."""

from dataclasses import dataclass

from nsa_lab.attention.compressors.base import Compressor, mean_of_blocks
from nsa_lab.attention.compressors.mean import MeanCompressor
from nsa_lab.attention.compressors.mlp import MLPCompressor
from nsa_lab.plugin import chosen

COMPRESSORS: dict[str, type[Compressor]] = {
    "mean": MeanCompressor,
    "mlp": MLPCompressor,
}


@chosen(kind=COMPRESSORS)
@dataclass
class CompressorConfig:
    """How one block becomes one key and one value."""

    kind: str = "mean"


__all__ = ["COMPRESSORS", "Compressor", "CompressorConfig", "mean_of_blocks"]
