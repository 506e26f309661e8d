"""From video files and annotations to packed batches in Qwen2.5-VL's form."""

from nsa_lab.data.annotations import Samples, read_annotations
from nsa_lab.data.collate import pack
from nsa_lab.data.dataset import Example, VideoDataset
from nsa_lab.data.errors import BadSampleError
from nsa_lab.data.lengths import measured
from nsa_lab.data.rows import Sample, Turn
from nsa_lab.data.sources import file_samples, load_samples, task_samples
from nsa_lab.data.tokenizer import load_tokenizer

__all__ = [
    "BadSampleError",
    "Example",
    "Sample",
    "Samples",
    "Turn",
    "VideoDataset",
    "file_samples",
    "load_samples",
    "load_tokenizer",
    "measured",
    "pack",
    "read_annotations",
    "task_samples",
]
