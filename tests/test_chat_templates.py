"""The chat templates against Meta's code and published prompts, as transformers 4 and 5 render them."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from llama_convert.errors import UsageError
from llama_convert.tokenizers import (
    CHAT_TEMPLATES,
    TokenizerOptions,
    chat_template,
    convert_tokenizer,
    open_tokenizer,
)
from tests.peers import ROOT, Peer, PeerError
from tests.test_tokenizers import pieces

Message = dict[str, Any]

RENDER = """
import transformers
loaded = vars(transformers).setdefault("loaded", {})
if folder not in loaded:
    loaded[folder] = transformers.AutoTokenizer.from_pretrained(folder)
tokenizer = loaded[folder]
text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
result = [text, ids]
"""

META = """
from llama_models.datatypes import RawMessage
from llama_models.llama3.chat_format import ChatFormat
from llama_models.llama3.tokenizer import Tokenizer
chat = ChatFormat(Tokenizer.get_instance())
result = chat.encode_dialog_prompt([RawMessage(**message) for message in messages]).tokens
"""


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


CONVERSATIONS = [
    [user("Hi")],
    [system("Be brief."), user("Hi")],
    [user("Hi"), assistant("Hello!"), user("Wer bist du? 👩‍👩‍👧‍👦\n\n  indented")],
    [system("a\n\nb"), user("1234567"), assistant("(8)"), user("<s> it's\t."), assistant("…"), user("?")],
    [system("Be brief."), user("Hi"), assistant("Hello!")],
]


class Chat:
    """A converted tokenizer with one of the templates, in one of the two transformers."""

    def __init__(self, transformers: Peer, source: Path, folder: Path, template: str) -> None:
        options = TokenizerOptions(instruct=True, chat_template=chat_template(template))
        convert_tokenizer(open_tokenizer(source), folder, options)
        self._transformers, self._folder = transformers, str(folder)

    def render(self, messages: list[Message], **options: Any) -> tuple[str, list[int]]:
        options = {"add_generation_prompt": True} | options
        text, ids = self._transformers.run(RENDER, folder=self._folder, messages=messages, options=options)
        return text, ids

    def text(self, messages: list[Message], **options: Any) -> str:
        return self.render(messages, **options)[0]


@pytest.fixture(scope="module")
def bytes_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The least tokenizer of Llama 3's kind, for tests that look at the text alone"""
    path = tmp_path_factory.mktemp("bytes-only") / "tokenizer.model"
    path.write_bytes(b"".join(b"%s %d\n" % (b64encode(bytes([n])), n) for n in range(256)))
    return path


@pytest.fixture(scope="module")
def llama2(
    transformers: Peer, llama2_tokenizer_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Chat:
    return Chat(transformers, llama2_tokenizer_model, tmp_path_factory.mktemp("llama2"), "llama2")


@pytest.fixture(scope="module")
def llama3(
    transformers: Peer, llama3_tokenizer_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Chat:
    return Chat(transformers, llama3_tokenizer_model, tmp_path_factory.mktemp("llama3"), "llama3")


@pytest.fixture
def llama31(transformers: Peer, bytes_only: Path, tmp_path: Path) -> Chat:
    return Chat(transformers, bytes_only, tmp_path, "llama3.1")


@pytest.fixture
def llama32(transformers: Peer, bytes_only: Path, tmp_path: Path) -> Chat:
    return Chat(transformers, bytes_only, tmp_path, "llama3.2")


@pytest.fixture(params=["llama3.1", "llama3.2"])
def tool_user(request: pytest.FixtureRequest, transformers: Peer, bytes_only: Path, tmp_path: Path) -> Chat:
    return Chat(transformers, bytes_only, tmp_path, request.param)


def test_the_table_lists_the_folder() -> None:
    folder = ROOT / "llama_convert/tokenizers/templates"
    assert {path.stem for path in folder.glob("*.jinja")} == set(CHAT_TEMPLATES)
    with pytest.raises(UsageError, match="Unknown chat template 'llama9'"):
        chat_template("llama9")


# ------------------------------------------------------------------------------ Llama 2 and Code Llama


def meta_llama2(path: Path, messages: list[Message]) -> list[int]:
    """Meta's `llama: generation.py: chat_completion`: each exchange is encoded for itself."""
    encode = sentencepiece.SentencePieceProcessor(model_file=str(path)).encode
    if messages[0]["role"] == "system":
        folded = f"<<SYS>>\n{messages[0]['content']}\n<</SYS>>\n\n{messages[1]['content']}"
        messages = [user(folded), *messages[2:]]
    texts = [message["content"].strip() for message in messages]
    ids: list[int] = []
    for question, answer in zip(texts[::2], texts[1::2], strict=False):
        ids += [1, *encode(f"[INST] {question} [/INST] {answer} "), 2]
    return [*ids, 1, *encode(f"[INST] {texts[-1]} [/INST]")] if len(texts) % 2 else ids


def without_names(messages: list[Message]) -> list[Message]:
    """The name of a special token within a message is a token to transformers and text to Meta's code."""
    return [message | {"content": message["content"].replace("<s>", "s")} for message in messages]


@pytest.mark.parametrize("number", range(len(CONVERSATIONS)))
def test_llama2_is_meta(number: int, llama2: Chat, llama2_tokenizer_model: Path) -> None:
    messages = without_names(CONVERSATIONS[number])
    _, ids = llama2.render(messages)
    assert ids == meta_llama2(llama2_tokenizer_model, messages)


def test_llama2_text(llama2: Chat) -> None:
    messages = [system("S"), user(" U1 "), assistant(" A1 "), user("U2")]
    assert llama2.text(messages) == (
        "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\n U1 [/INST] A1 </s><s>[INST] U2 [/INST]"
    )


@pytest.mark.parametrize(
    "messages",
    [
        [assistant("I begin")],
        [user("one"), user("two")],
        [user("one"), system("late"), user("two")],
        [user("one"), {"role": "tool", "content": "1"}],
    ],
)
@pytest.mark.parametrize("template", ["llama2", "codellama-70b"])
def test_roles_alternate(
    template: str, messages: list[Message], transformers: Peer, stories260k: Path, tmp_path: Path
) -> None:
    chat = Chat(transformers, stories260k / "tokenizer.model", tmp_path, template)
    with pytest.raises(PeerError, match="Roles must alternate"):
        chat.render(messages)


def meta_code_llama_70b(path: Path, messages: list[Message]) -> list[int]:
    """Meta's `codellama: generation.py: dialog_prompt_tokens`: headers and texts are encoded apart."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    encode, step = processor.encode, processor.piece_to_id("<step>")
    messages = messages if messages[0]["role"] == "system" else [system(""), *messages]
    ids = [1]
    for message in messages:
        text = message["content"]
        ids += encode(f" Source: {message['role']}")
        ids += [*(encode("\n\n " + text.strip()) if text else []), step]
    return ids + encode(" Source: assistant\nDestination: user") + encode("\n\n ")


@pytest.mark.parametrize("number", range(4))
def test_code_llama_70b_is_meta(
    number: int, transformers: Peer, llama2_tokenizer_model: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source.model"
    source.write_bytes(llama2_tokenizer_model.read_bytes() + pieces(["<step>"], -1e9))
    messages = without_names(CONVERSATIONS[number])
    chat = Chat(transformers, source, tmp_path, "codellama-70b")
    text, ids = chat.render(messages)
    assert ids == meta_code_llama_70b(source, messages)
    assert text.endswith("<step> Source: assistant\nDestination: user \n\n ")
    assert chat.text(messages, add_generation_prompt=False).endswith("<step>")


# --------------------------------------------------------------------------------------------- Llama 3


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_llama3_is_meta(messages: list[Message], llama3: Chat, meta_code: Peer) -> None:
    expected = meta_code.run(META, messages=messages)
    header = [128006, 78191, 128007, 271]
    assert expected[-4:] == header
    assert llama3.render(messages)[1] == expected
    assert llama3.render(messages, add_generation_prompt=False)[1] == expected[:-4]


TURN = re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n(.*?)<\|(eot|eom)_id\|>", re.DOTALL)


def published(name: str) -> list[str]:
    """The prompts in one of Meta's descriptions of the format, without the space around them."""
    text = (ROOT / ".peers/meta/llama_models" / name).read_text()
    blocks = re.findall(r"Input Prompt Format\n```\n(.*?)```", text, re.DOTALL)
    return [block.strip() for block in blocks if "<|start_header_id|>" in block]


@pytest.mark.parametrize("name", ["llama3_1/prompt_format.md", "llama3_2/text_prompt_format.md"])
def test_llama3_has_metas_format(name: str, llama3: Chat) -> None:
    """Turn by turn; Meta's examples have a line's end here and there that templates strip."""
    prompts = published(name)
    assert len(prompts) >= 5
    for prompt in prompts:
        turns = [{"role": role, "content": text} for role, text, _ in TURN.findall(prompt)]
        stripped = TURN.sub(
            lambda turn: turn[0].replace(turn[2] + "<|", turn[2].strip() + "<|"), prompt
        ).replace("<|eom_id|>", "<|eot_id|>")
        stripped = re.sub(r"(<\|end_header_id\|>\n\n)\s+", r"\1", stripped + "\n\n")
        assert llama3.text(turns) == stripped


# -------------------------------------------------------------------------------- Llama 3.1, 3.2, 3.3

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather – <now> & 'here'",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
DATED = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


def calls(name: str, **arguments: Any) -> Message:
    return {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def test_llama31_plain(llama31: Chat) -> None:
    begin, end = "<|begin_of_text|>" + HEADER.format("system"), "<|eot_id|>"
    question = HEADER.format("user") + "Hi" + end
    assert llama31.text([user(" Hi ")]) == begin + DATED + end + question + HEADER.format("assistant")
    assert (
        llama31.text([system(" S "), user("Hi")], date_string="1 Jan 2025", add_generation_prompt=False)
        == begin + DATED.replace("26 Jul 2024", "1 Jan 2025") + "S" + end + question
    )


def test_llama32_date(llama32: Chat) -> None:
    before = datetime.now()
    text = llama32.text([user("Hi")])
    days = {f"Today Date: {day:%d %b %Y}\n" for day in (before, datetime.now())} | {
        "Today Date: 26 Jul 2024\n"
    }
    assert any(day in text for day in days)
    assert "Today Date: 1 Jan 2025\n\n<|eot_id|>" in llama32.text([user("Hi")], date_string="1 Jan 2025")


def test_tools_in_the_user_turn(tool_user: Chat) -> None:
    text = tool_user.text([system("S"), user("Hi")], tools=[WEATHER, WEATHER], date_string="26 Jul 2024")
    listed = json.dumps(WEATHER, indent=4, ensure_ascii=False) + "\n\n"
    assert text == (
        f"<|begin_of_text|>{HEADER.format('system')}Environment: ipython\n{DATED}S<|eot_id|>"
        f"{HEADER.format('user')}Given the following functions, please respond with a JSON for a function "
        "call with its proper arguments that best answers the given prompt.\n\n"
        'Respond in the format {"name": function name, "parameters": dictionary of argument name and its '
        f"value}}.Do not use variables.\n\n{listed}{listed}Hi<|eot_id|>{HEADER.format('assistant')}"
    )


def test_tools_in_the_system_turn(tool_user: Chat) -> None:
    options = {"tools": [WEATHER], "tools_in_user_message": False, "date_string": "26 Jul 2024"}
    text = tool_user.text([system("S"), user("Hi")], **options)
    listed = json.dumps(WEATHER, indent=4, ensure_ascii=False) + "\n\n"
    assert text == (
        f"<|begin_of_text|>{HEADER.format('system')}Environment: ipython\n{DATED}"
        "You have access to the following functions. To call a function, please respond with JSON for a "
        'function call.Respond in the format {"name": function name, "parameters": dictionary of argument '
        f"name and its value}}.Do not use variables.\n\n{listed}S<|eot_id|>"
        f"{HEADER.format('user')}Hi<|eot_id|>{HEADER.format('assistant')}"
    )


@pytest.mark.parametrize("role", ["tool", "ipython"])
def test_tool_call_and_result(role: str, tool_user: Chat) -> None:
    for call in (CALL, CALL["function"]):
        turns = [user("?"), {"role": "assistant", "tool_calls": [call]}, {"role": role, "content": "25 °C"}]
        assert tool_user.text([*turns, assistant("Warm.")], tools=[WEATHER]).endswith(
            "?<|eot_id|>"
            + HEADER.format("assistant")
            + '{"name": "weather", "parameters": {"city": "Zürich", "days": 2}}<|eot_id|>'
            + f"{HEADER.format('ipython')}25 °C<|eot_id|>"
            + f"{HEADER.format('assistant')}Warm.<|eot_id|>{HEADER.format('assistant')}"
        )
    turns = [user("?"), {"role": role, "content": {"°C": [25, None]}}]
    assert tool_user.text(turns).endswith(
        HEADER.format("ipython") + '{"°C": [25, null]}<|eot_id|>' + HEADER.format("assistant")
    )


def test_what_a_model_cannot_do(tool_user: Chat) -> None:
    with pytest.raises(PeerError, match="one tool call at a time"):
        tool_user.render([user("?"), {"role": "assistant", "tool_calls": [CALL, CALL]}])
    with pytest.raises(PeerError, match="there is none"):
        tool_user.render([system("S")], tools=[WEATHER])


def test_builtin_tools_have_metas_format(llama31: Chat) -> None:
    """Meta's example of a search, but for an empty line after the tools that its first edition had."""
    prompt = next(prompt for prompt in published("llama3_1/prompt_format.md") if "1oz gold" in prompt)
    messages = [
        system("You are a helpful assistant."),
        user("Search the web for the latest price of 1oz gold?"),
    ]
    tools = ["brave_search", "wolfram_alpha"]
    text = llama31.text(messages, builtin_tools=tools, date_string="21 September 2024")
    assert lines(text) == lines(prompt.replace("assistant.\n<|eot_id|>", "assistant.<|eot_id|>"))


def test_builtin_call_has_metas_format(llama31: Chat) -> None:
    """Meta's full interaction, from the question on."""
    prompt = next(prompt for prompt in published("llama3_1/prompt_format.md") if "100th decimal" in prompt)
    (output,) = (text for role, text, _ in TURN.findall(prompt) if role == "ipython")
    messages = [
        user("What is the 100th decimal of pi?"),
        calls("wolfram_alpha", query="100th decimal of pi"),
        {"role": "ipython", "content": output},
    ]
    text = llama31.text(messages, builtin_tools=["brave_search", "wolfram_alpha"])
    begin = HEADER.format("user")
    assert text[text.index(begin) :] == prompt[prompt.index(begin) :] + "\n\n"


def test_code_interpreter(llama31: Chat) -> None:
    code = "print(7 % 2)\n"
    text = llama31.text([user("?"), calls("code_interpreter", code=code)], builtin_tools=["code_interpreter"])
    assert f"Environment: ipython\n{DATED}<|eot_id|>" in text
    assert f"{HEADER.format('assistant')}<|python_tag|>{code}<|eom_id|>" in text
