import os

import pytest

from nsa_lab.data.errors import BadSampleError
from nsa_lab.data.video import read_clip

NAMES = [
    "12:30.mp4",
    "http:x.mp4",
    "file:x.mp4",
    "concat:a|b.mp4",
    "a%20b.mp4",
    "#1?.mp4",
    "clip%03d.mp4",
    "ü – 視頻.mp4",
    "-i.mp4",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("relative", [False, True])
def test_a_file_is_opened_whatever_its_name(make_video, tmp_path, monkeypatch, name, relative):
    path = make_video()
    path.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(read_clip(type(path)(name) if relative else tmp_path / name, 2.0, 8).frames) == 8


SCRIPTS = {
    "ffconcat": "ffconcat version 1.0\nfile clip.mp4\n",
    "playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:2,\nclip.mp4\n#EXT-X-ENDLIST\n",
    "session": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "manifest": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="x"></MPD>\n',
}


@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.ffconcat", "list.sdp"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_no_video(make_video, tmp_path, name, script):
    make_video()
    (tmp_path / name).write_text(SCRIPTS[script])
    with pytest.raises(BadSampleError, match=r"list\..* cannot be read: .*; re-encode"):
        read_clip(tmp_path / name, 2.0, 8)


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(BadSampleError, match="not a regular file; point"):
        read_clip(tmp_path / "pipe.mp4", 2.0, 8)
