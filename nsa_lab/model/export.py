"""A model as a folder of Hugging Face's format: weights, config with the design, tokenizer, processors."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from nsa_lab.config import ExperimentConfig, to_yaml
from nsa_lab.data.pixels import CLIP_MEAN, CLIP_STD
from nsa_lab.errors import NsaLabError
from nsa_lab.files import whole, write_json, write_text, writing
from nsa_lab.layout import FRAMES_PER_PATCH, MERGE, PATCH
from nsa_lab.model.quiet import without_bars
from nsa_lab.model.video_nsa import VideoNSAForConditionalGeneration

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EXPERIMENT = "experiment.yaml"
"""The settings that the weights were trained with. Not config.yaml: the folder is one of weights, not a run."""
PROCESSOR = "Qwen2_5_VLProcessor"
CARD = """---
library_name: transformers
pipeline_tag: video-text-to-text
---
# {name}

Qwen2.5-VL with sparse attention to video, exported by nsa-lab. The class is nsa-lab's: no Auto class of transformers
takes these weights for a dense model. The design stands in `config.json` under `text_config.video_nsa`, the training's
settings in `{experiment}`.

```python
from nsa_lab.model import VideoNSAForConditionalGeneration

model = VideoNSAForConditionalGeneration.from_pretrained("{name}")
```

To ask it about a video: `nsa_lab.ask(nsa_lab.load_model("{name}"), ...)`. To train on: `model.path={name}`.
"""


def export_model(
    model: VideoNSAForConditionalGeneration, config: ExperimentConfig, tokenizer: Any, folder: Path, dtype: str
) -> None:
    """Write `model`, trained under `config`, to the new folder `folder`, its weights cast to `dtype` (of DTYPES).

    Raises NsaLabError where the folder exists, the dtype is unknown or the disk refuses.
    """
    refuse_taken(folder)
    if dtype not in DTYPES:
        raise NsaLabError(f"--dtype {dtype!r} is unknown; known: {', '.join(DTYPES)}")
    with writing(folder, "choose another folder"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole(folder) as unfinished:
            _save(model.to(DTYPES[dtype]), unfinished)
            tokenizer.save_pretrained(unfinished)
            for name, content in _processors(config).items():
                write_json(unfinished / name, content)
            write_text(unfinished / EXPERIMENT, to_yaml(config))
            write_text(unfinished / "README.md", CARD.format(name=folder.name, experiment=EXPERIMENT))


def _save(model: VideoNSAForConditionalGeneration, folder: Path) -> None:
    try:
        with without_bars():
            model.save_pretrained(folder)
    except SafetensorError as error:  # a full disk is no OSError there
        raise OSError(str(error)) from error


def refuse_taken(folder: Path) -> None:
    """Raise NsaLabError where `folder` exists, or a link that leads nowhere."""
    if folder.exists() or folder.is_symlink():
        raise NsaLabError(f"{folder} exists; name a new folder")


def _processors(config: ExperimentConfig) -> dict[str, dict[str, Any]]:
    """Qwen2.5-VL's image and video processors with the pixels a frame had in training; frames come sampled."""
    shared = {
        "processor_class": PROCESSOR,
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 3,
        "size": {"shortest_edge": config.data.min_pixels, "longest_edge": config.data.max_pixels},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "patch_size": PATCH,
        "temporal_patch_size": FRAMES_PER_PATCH,
        "merge_size": MERGE,
    }
    video = {"video_processor_type": "Qwen2VLVideoProcessor", "do_sample_frames": False}
    return {
        "preprocessor_config.json": shared | {"image_processor_type": "Qwen2VLImageProcessor"},
        "video_preprocessor_config.json": shared | video | {"max_frames": config.data.max_frames},
    }
