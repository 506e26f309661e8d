"""A video file, opened as a file and as nothing else: no protocol, no playlist, no script that names other files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av

from nsa_lab.data.errors import BadSampleError

REMEDY = "re-encode the file, or leave it out (data.on_bad_sample=skip)"
# FFmpeg's names of the containers that hold their own frames. Scripts and playlists (concat, hls, dash, image2, ...)
# open what they name and are not among them.
FORMATS = ("mov", "matroska", "avi", "mpegts", "mpeg", "gif", "flv", "asf", "ogg", "mxf", "nut", "ivf", "rm", "dv")
TITLES = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
"""That a title in an old encoding spoils nothing; PyAV 19 sees to it by itself, and knows no such argument."""
OPTIONS = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}


@contextmanager
def video_file(path: Path) -> Iterator[tuple["av.container.InputContainer", "av.VideoStream"]]:
    """The opened file and its first video stream, with PyAV's errors told as BadSampleError."""
    try:
        with _opened(path) as container:
            if not container.streams.video:
                raise BadSampleError(f"{path} has no video stream; point the row to a video file")
            yield container, container.streams.video[0]
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise BadSampleError(f"video {path} cannot be read: {reason}; {REMEDY}") from error


def _opened(path: Path) -> "av.container.InputContainer":
    if path.exists() and not path.is_file() and not path.is_dir():
        raise BadSampleError(f"video {path} cannot be read: not a regular file; point the row to a video file")
    try:
        # Without "file:" FFmpeg takes what stands before a colon for a protocol. PyAV 15 crashes on options of streams
        # that a container (mpeg, flv) tells late; these are of the container alone.
        return av.open(f"file:{path}", container_options=OPTIONS, **TITLES)
    except av.FFmpegError as error:
        if not isinstance(error, ValueError):  # which PyAV has called ArgumentError since 16
            raise
        raise BadSampleError(
            f"video {path} cannot be read: no container of frames ({', '.join(FORMATS)}), or a damaged one; {REMEDY}"
        ) from error
