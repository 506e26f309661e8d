import pytest

from nsa_lab.data.chat import encode_chat
from nsa_lab.data.errors import RESERVED, BadSampleError
from nsa_lab.data.rows import Turn

TURNS = [Turn("What colour was the flash?", "red"), Turn("Where was it?\n(one word)", "It was northwest. \U0001f642")]


def template_ids(tokenizer, turns, video_tokens, system):
    messages = [{"role": "system", "content": system}] if system is not None else []
    for number, turn in enumerate(turns):
        video = [] if number else [{"type": "video", "video": "clip.mp4"}]
        messages.append({"role": "user", "content": [*video, {"type": "text", "text": turn.question}]})
        messages.append({"role": "assistant", "content": turn.answer})
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return tokenizer.encode(text.replace("<|video_pad|>", "<|video_pad|>" * video_tokens))


@pytest.mark.parametrize("system", [None, "You are a helpful assistant.", "Answer in one word."])
@pytest.mark.parametrize("turns", [TURNS[:1], TURNS])
@pytest.mark.parametrize("video_tokens", [1, 54])
def test_equals_the_chat_template(tokenizer, system, turns, video_tokens):
    chat = encode_chat(turns, [video_tokens], tokenizer, system or "You are a helpful assistant.")
    assert chat.input_ids.tolist() == template_ids(tokenizer, turns, video_tokens, system)


def test_no_system_turn(tokenizer):
    chat = encode_chat(TURNS, [2], tokenizer, "")
    assert tokenizer.decode(chat.input_ids).startswith("<|im_start|>user\n<|vision_start|><|video_pad|><|video_pad|>")


def test_labels_on_answers_only(tokenizer):
    chat = encode_chat(TURNS, [3], tokenizer, "")
    labelled = chat.labels != -100
    assert (chat.labels[labelled] == chat.input_ids[labelled]).all()
    assert ((chat.answer_index >= 0) == labelled).all()
    for number, turn in enumerate(TURNS):
        assert tokenizer.decode(chat.input_ids[chat.answer_index == number]) == f"{turn.answer}<|im_end|>"


@pytest.mark.parametrize(
    "turn", [Turn("What is <|video_pad|>?", "red"), Turn("What?", "red<|im_end|>"), Turn("<|endoftext|>", "red")]
)
def test_reserved_tokens_in_text(tokenizer, turn):
    with pytest.raises(BadSampleError, match=r"reserved token .*; remove it") as error:
        encode_chat([turn], [1], tokenizer, "")
    assert error.value.kind == RESERVED
