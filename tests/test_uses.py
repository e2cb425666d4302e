"""The uses that the documentation of Llama shows, each tried on what was converted: it must speak its text.

Pipelines, a token for padding, 4-bit weights, torch.compile, fine-tuning; and the way back.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llama_convert import ConvertOptions, convert, verify
from llama_convert.errors import InputError
from llama_convert.verification.report import Status
from tests.peers import ROOT, Peer
from tests.test_forward_meta_code import ROUNDING_OF_A_TEXT_BY_HEART

NAMES = ["llama2-mp2", "llama3.1-mp2", "llama3.2-tied"]
each_fixture = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def users() -> Iterator[Peer]:
    """transformers 5.x with bitsandbytes, peft and trl"""
    peer = Peer("uses/site-packages", "transformers-5")
    yield peer
    peer.close()


def converted(name: str, folder: Path, **options: Any) -> tuple[Path, dict[str, Any]]:
    """A fixture in Hugging Face's layout, and what it should say."""
    convert(ROOT / "fixtures" / name, folder, ConvertOptions(strict=True, **options))
    return folder, json.loads((ROOT / "fixtures" / name / "expected.json").read_text(encoding="utf-8"))


def run(peer: Peer, code: str, **arguments: Any) -> Any:
    """In one thread: two that share such small matrices take ten times as long where other tests run."""
    threads = peer.run("import torch; result = torch.get_num_threads(); torch.set_num_threads(1)")
    try:
        return peer.run(code, **arguments)
    finally:
        peer.run("import torch; torch.set_num_threads(threads)", threads=threads)


# Pipelines.

PIPELINE = """
from transformers import pipeline
generator = pipeline("text-generation", folder)
ids = generator(prompt, do_sample=False, max_new_tokens=300, return_tensors=True)[0]["generated_token_ids"]
text = generator(prompt, do_sample=False, max_new_tokens=300)[0]["generated_text"]
result = ids, text
"""


@each_fixture
@pytest.mark.parametrize("version", ["transformers4", "transformers5"])
def test_a_pipeline_recites(tmp_path: Path, request: pytest.FixtureRequest, version: str, name: str) -> None:
    """To the end of the text and no further: the folder says which word ends it."""
    folder, expected = converted(name, tmp_path / "out")
    peer: Peer = request.getfixturevalue(version)
    ids, text = run(peer, PIPELINE, folder=folder, prompt=expected["prompt"])
    assert ids == expected["greedy_ids"]
    whole = expected["text"]
    if version == "transformers5" and name == "llama2-mp2":
        # Its pipeline decodes the new words by themselves, and sentencepiece's lose a space at the beginning.
        whole = expected["prompt"] + whole.removeprefix(expected["prompt"]).removeprefix(" ")
    assert text == whole


CHAT = """
from transformers import pipeline
generator = pipeline("text-generation", folder)
tokenizer, model = generator.tokenizer, generator.model
messages = [{"role": "user", "content": "Trust me"}]
answer = generator(messages, do_sample=False, max_new_tokens=12)[0]["generated_text"]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
start = inputs["input_ids"].shape[1]
said = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, start:]
result = {
    "answer": answer,
    "said": tokenizer.decode(said, skip_special_tokens=True),
    "prompt": [tokenizer.decode([word]) for word in inputs["input_ids"][0].tolist()],
}
"""


def test_a_pipeline_chats(tmp_path: Path, transformers: Peer) -> None:
    """What is said makes no sense: the fixture has never seen a chat. But it is asked as a chat model is."""
    folder, _ = converted("llama3.1-mp2", tmp_path / "out", instruct=True)
    answer = run(transformers, CHAT, folder=folder)
    question = {"role": "user", "content": "Trust me"}
    assert answer["said"]
    assert answer["answer"] == [question, {"role": "assistant", "content": answer["said"]}]
    prompt = answer["prompt"]
    marks = [word for word in prompt if word.startswith("<|")]
    turn = ["<|start_header_id|>", "<|end_header_id|>"]
    assert marks == ["<|begin_of_text|>", *turn, "<|eot_id|>", *turn, "<|eot_id|>", *turn]
    assert "".join(prompt).endswith(
        "<|start_header_id|>user<|end_header_id|>\n\nTrust me<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


# A token for padding.

PADDED = """
from transformers import AutoModelForCausalLM, AutoTokenizer

def go_on(model, tokenizer, prompts):
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    outputs = model.generate(**inputs, do_sample=False, max_new_tokens=30)
    return inputs["input_ids"].tolist(), outputs[:, inputs["input_ids"].shape[1]:].tolist()

tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(folder).float()
before = tokenizer.pad_token, len(tokenizer)
tokenizer.add_special_tokens({"pad_token": "<pad>"})
model.resize_token_embeddings(len(tokenizer))
model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
# Its row is a random one.  4.45's are longer than the fixtures' own, so that it would be the likeliest word.
for part in (model.get_input_embeddings(), model.get_output_embeddings()):
    part.weight.data[tokenizer.pad_token_id] = 0
inputs, together = go_on(model, tokenizer, prompts)
alone = [go_on(model, tokenizer, [prompt])[1][0] for prompt in prompts]

model.save_pretrained(saved)
tokenizer.save_pretrained(saved)
model, info = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(saved)
result = {
    "before": before,
    "inputs": inputs,
    "together": together,
    "alone": alone,
    "again": go_on(model, tokenizer, prompts),
    "problems": {key: [str(item) for item in value] for key, value in info.items() if value},
    "pad": [tokenizer.pad_token, tokenizer.pad_token_id, model.config.pad_token_id],
    "rows": [len(model.get_input_embeddings().weight), len(model.lm_head.weight), model.config.vocab_size],
    "tied": model.lm_head.weight is model.get_input_embeddings().weight,
}
"""


@each_fixture
def test_a_padding_token_is_added(tmp_path: Path, transformers: Peer, name: str) -> None:
    folder, expected = converted(name, tmp_path / "out")
    text, ids, n_prompt_tokens = expected["text"], expected["greedy_ids"], len(expected["prompt_ids"])
    longer = text[: text.index(" ", 100)]
    answer = run(
        transformers, PADDED, folder=folder, saved=tmp_path / "saved", prompts=[expected["prompt"], longer]
    )
    pad, size = answer["before"]
    assert pad is None
    short, long = answer["inputs"]
    padding = [size] * (len(long) - n_prompt_tokens)
    assert len(padding) > 10
    assert short == padding + ids[:n_prompt_tokens]
    assert long == ids[: len(long)]
    assert answer["together"] == answer["alone"]
    assert answer["together"] == [
        ids[n_prompt_tokens : n_prompt_tokens + 30],
        ids[len(long) : len(long) + 30],
    ]
    assert answer["problems"] == {}
    assert answer["again"] == [answer["inputs"], answer["together"]]
    assert answer["pad"] == ["<pad>", size, size]
    assert answer["rows"] == [size + 1] * 3
    assert answer["tied"] == (name == "llama3.2-tied")


# 4-bit weights.

FOUR_BITS = """
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantised)
four_bits = [name for name, module in model.named_modules() if isinstance(module, Linear4bit)]
tokens = torch.tensor([ids])
with torch.no_grad():
    words = model(tokens[:, :-1]).logits[0, start - 1:].argmax(-1)
said = model.generate(tokens[:, :start], do_sample=False, max_new_tokens=20)[0, start:].tolist()
model.save_pretrained(saved)
result = {"share": (words == tokens[0, start:]).float().mean().item(), "said": said, "four_bits": four_bits}
"""


@pytest.mark.parametrize("name", ["llama2-mp2", "llama3.2-tied"])
def test_four_bits(tmp_path: Path, users: Peer, name: str) -> None:
    """Not llama3.1-mp2: its MLP is 224 wide, and on some CPUs bitsandbytes takes nothing but multiples of 64.

    Every release's widths are such multiples.
    """
    folder, expected = converted(name, tmp_path / "out")
    ids, start = expected["greedy_ids"], len(expected["prompt_ids"])
    answer = run(users, FOUR_BITS, folder=folder, saved=tmp_path / "saved", ids=ids, start=start)
    assert len(answer["four_bits"]) == 7 * 2
    # Four bits cost the smallest models some words of their text; a wrong conversion leaves a third.
    assert answer["share"] > 0.7
    assert len(answer["said"]) == 20
    assert answer["said"][0] == ids[start]

    shutil.copy(folder / "tokenizer.json", tmp_path / "saved")
    with pytest.raises(InputError, match="quantized"):
        convert(tmp_path / "saved", tmp_path / "back", ConvertOptions(to="meta"))


# torch.compile.

COMPILED = """
import os
import torch
os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM
torch._dynamo.reset()
counters.clear()
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
tokens = torch.tensor([ids])
with torch.no_grad():
    eager = model(tokens).logits
    compiled = torch.compile(model)(tokens).logits
result = {
    "difference": ((eager - compiled).abs().max() / eager.abs().max()).item(),
    "graphs": counters["stats"]["unique_graphs"],
    "breaks": dict(counters["graph_break"]),
}
"""


def why_not_compile() -> str:
    """What torch.compile lacks here, if anything."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler, {compiler}"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Python's headers are not installed"
    return ""


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not_compile()), reason=why_not_compile())
@each_fixture
def test_torch_compile(tmp_path: Path, transformers5: Peer, name: str) -> None:
    folder, expected = converted(name, tmp_path / "out")
    answer = run(transformers5, COMPILED, folder=folder, ids=expected["greedy_ids"], cache=tmp_path / "cache")
    assert answer["graphs"] == 1
    assert answer["breaks"] == {}
    assert answer["difference"] < ROUNDING_OF_A_TEXT_BY_HEART


# Fine-tuning.

FINE_TUNED = """
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

trainer = SFTTrainer(
    model=folder,
    args=SFTConfig(
        output_dir=scratch, max_steps=1, learning_rate=1e-2, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True, seed=1,
    ),
    train_dataset=Dataset.from_list([example]),
    peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
)
adapter = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
before = {name: weight.detach().clone() for name, weight in adapter.items()}
words = [row["input_ids"] for row in trainer.train_dataset]
loss = trainer.train().training_loss
result = {
    "loss": loss,
    "words": words,
    "moved": sorted(name for name, weight in adapter.items() if not torch.equal(weight, before[name])),
    "adapter": sorted(adapter),
}
trainer.model.merge_and_unload().save_pretrained(saved)
trainer.processing_class.save_pretrained(saved)
"""


@each_fixture
def test_fine_tuning_and_the_way_back(tmp_path: Path, users: Peer, name: str) -> None:
    """One step of LoRA; what peft and transformers 5 write of it is read, and goes back to Meta's layout."""
    instruct = name == "llama3.1-mp2"
    folder, expected = converted(name, tmp_path / "out", instruct=instruct)
    example: dict[str, Any] = {"text": expected["text"]}
    if instruct:
        turns = [("user", expected["prompt"]), ("assistant", expected["text"])]
        example = {"messages": [{"role": role, "content": content} for role, content in turns]}
    saved, back = tmp_path / "saved", tmp_path / "back"
    answer = run(users, FINE_TUNED, folder=folder, scratch=tmp_path / "scratch", saved=saved, example=example)

    if instruct:
        assert math.isfinite(answer["loss"])
    else:
        # Begun and ended as the model knows its text, there is hardly a thing to be learnt.
        assert answer["words"] == [expected["greedy_ids"]]
        assert 0 < answer["loss"] < 0.1
    # The first step moves one side alone, as the other begins at zero.
    assert answer["moved"] == [weight for weight in answer["adapter"] if "lora_B" in weight]
    assert len(answer["moved"]) == 7 * json.loads((folder / "config.json").read_text())["num_hidden_layers"]

    # transformers 5 saves no tokenizer.model beside a tokenizer of sentencepiece.
    original = ROOT / "fixtures" / name
    options = ConvertOptions(to="meta", strict=True)
    if name == "llama2-mp2":
        options = replace(options, tokenizer=original / "tokenizer.model")
    convert(saved, back, options)
    assert (back / "tokenizer.model").read_bytes() == (original / "tokenizer.model").read_bytes()
    report = verify(back, saved)
    assert {level.check.value: level.status for level in report.checks} == dict.fromkeys(
        ["structure", "values", "weights", "tokenizer", "logits"], Status.PASS
    )
    # It was the merged one: the one it began with is told from it.
    assert not verify(back, folder).ok
