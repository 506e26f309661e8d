import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, Qwen2Tokenizer

from nsa_lab.data.tokenizer import MAX_VOCABULARY, NEEDED_TOKENS, SPECIAL_TOKENS, _offline_folder, load_tokenizer
from nsa_lab.errors import NsaLabError
from nsa_lab.tasks.words import WORDS


@pytest.mark.parametrize("form", ["{}", " {}"])
def test_every_word_is_one_token(tokenizer, form):
    for word in WORDS:
        assert len(tokenizer.encode(form.format(word))) == 1, word


def test_special_tokens(tokenizer):
    ids = [tokenizer.encode(token) for token in SPECIAL_TOKENS]
    assert all(len(piece) == 1 for piece in ids)
    assert len({piece[0] for piece in ids}) == len(SPECIAL_TOKENS)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.encode("".join(NEEDED_TOKENS)) == [tokenizer.convert_tokens_to_ids(t) for t in NEEDED_TOKENS]


def test_small_and_lossless(tokenizer):
    assert len(tokenizer) < MAX_VOCABULARY
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1
    for text in ("What colour was the flash?", "Zürich, 12:30 \n\t naïve 東京 🙂"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_round_trip(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(again, Qwen2Tokenizer)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.chat_template == tokenizer.chat_template
    text = "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Which came first, red or blue?<|im_end|>\n"
    assert again.encode(text) == tokenizer.encode(text)
    assert load_tokenizer(str(tmp_path), tmp_path / "unused").get_vocab() == tokenizer.get_vocab()


BUILD = """
import sys
from pathlib import Path
from nsa_lab.data.tokenizer import _offline_folder
print(_offline_folder(Path(sys.argv[1])))
"""


@pytest.mark.slow
def test_parallel_first_use_and_same_result_in_every_process(tmp_path):
    shared = tmp_path / "shared"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BUILD, str(shared)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(2)
    ]
    outputs = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]
    assert [path.name for path in shared.iterdir()] == [os.path.basename(outputs[0])]
    folders = outputs[0], _offline_folder(tmp_path / "other")  # this process hashes in a third way
    one, other = (Path(folder, "tokenizer.json").read_text() for folder in folders)
    assert one == other


def test_absent_tokenizer(tmp_path):
    with pytest.raises(NsaLabError, match=r"cannot be loaded: .*set data.tokenizer"):
        load_tokenizer(str(tmp_path / "none"), tmp_path)


def test_tokenizer_without_video_tokens(tmp_path):
    Qwen2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[]).save_pretrained(tmp_path / "bare")
    with pytest.raises(NsaLabError, match=r"has no <\|im_start\|>.*must be a Qwen2.5-VL tokenizer"):
        load_tokenizer(str(tmp_path / "bare"), tmp_path)
