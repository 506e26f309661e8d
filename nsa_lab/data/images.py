"""A video as the images of its frames, as the released VideoNSA data has it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nsa_lab.data.errors import BadSampleError

REMEDY = "extract the frames again, or leave the row out (data.on_bad_sample=skip)"


@dataclass(frozen=True)
class Numbered:
    """`count` file names that differ by an ascending number alone: a line, where a data set has 10^8 names."""

    before: str
    first: int
    digits: int
    after: str
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> str:
        return f"{self.before}{self.first + range(self.count)[place]:0{self.digits}d}{self.after}"


@dataclass(frozen=True)
class FrameFiles:
    """At least one image file in `folder`, each a frame of one video, in order."""

    folder: Path
    names: Numbered | tuple[str, ...]

    @classmethod
    def of(cls, folder: Path, names: Sequence[str]) -> "FrameFiles":
        return cls(folder, _numbered(names) or tuple(names))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, place: int) -> Path:
        return self.folder / self.names[place]

    def __str__(self) -> str:
        return f"{self[0]} to {self.names[-1]} ({len(self)} images)"

    @property
    def name(self) -> str:
        return self[0].name


Video = Path | FrameFiles


def first_file(video: Video) -> Path:
    """The video's file, or the image of its first frame."""
    return video if isinstance(video, Path) else video[0]


def _numbered(names: Sequence[str]) -> Numbered | None:
    found = re.fullmatch(r"(.*?)(\d+)(\D*)", names[0], re.DOTALL)
    if found is None:
        return None
    before, number, after = found.groups()
    line = Numbered(before, int(number), len(number), after, len(names))
    return line if all(line[place] == name for place, name in enumerate(names)) else None


def read_images(files: FrameFiles, places: np.ndarray, transform: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The frames [F, 3, H, W] uint8 at `places` [F], each transformed ([1, 3, H, W] to [1, 3, H', W']).

    Raises BadSampleError where one cannot be read, or is not as large as the first.
    """
    frames: list[Tensor] = []
    for place in places.tolist():
        image = read_image(files[place])
        frames.append(transform(image) if transform else image)
        if frames[-1].shape != frames[0].shape:
            raise BadSampleError(f"image {files[place]} has another size than {files[int(places[0])]}; {REMEDY}")
    return torch.cat(frames)


def read_image(file: Path) -> Tensor:
    """[1, 3, H, W] uint8. Raises BadSampleError."""
    try:
        with Image.open(file) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadSampleError(f"image {file} cannot be read: {error}; {REMEDY}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]
