"""The HTML reports of `verify` and `inspect`: content, safety of hostile text, reproducible bytes."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama_convert.conversion.convert import convert
from llama_convert.findings import Finding, RootCause
from llama_convert.html_report import (
    RunInfo,
    current_run,
    inspect_command,
    render_comparison,
    render_inspection,
    render_verification,
    verify_command,
)
from llama_convert.html_report.number_format import format_number, format_percent, format_seconds
from llama_convert.html_report.visible_text import visible, visible_token
from llama_convert.inspection.records import (
    Comparison,
    Conversion,
    DtypeCount,
    File,
    Inspection,
    Mismatch,
    Parameters,
    Release,
    Tensor,
    Tokenizer,
    ValueDifference,
    WeightGroup,
)
from llama_convert.inspection.stats import Histogram, Stats
from llama_convert.verification.options import VerifyOptions
from llama_convert.verification.report import Check, CheckReport, FileIdentity, Status, VerifyReport
from llama_convert.verification.verify import verify
from tests.peers import ROOT
from tests.run import llama_convert

FIXTURE = ROOT / "fixtures/llama3.1-mp2"
EVIL = "<script>alert('x')</script> & <b>"
VOID = {"meta", "link", "br"}

KINDS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
    "mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm",
)  # fmt: skip
OUTSIDE = ("model.embed_tokens", "model.norm", "lm_head")
THRESHOLD = {
    "embedding": 0.0,
    "probe": 1e-4,
    "divergence": 1e-3,
    "max_kl": 1e-6,
    "max_head_difference": 0.02,
    "reason": "sums of 4096 terms in float32",
}
TITLES = {
    "values": ["Values: root mean square by layer and kind"],
    "weights": ["Weights: relative error by layer and kind"],
    "logits": ["Per-layer relative error", "KL divergence per position"],
}
"""Sections with a figure, by check."""
RUN = RunInfo(
    command="llama-convert verify out --source in",
    date=datetime(2026, 11, 21, 7, 11, tzinfo=timezone.utc),
    versions={"llama-convert": "1.2", "Python": "3.11.7", "torch": "2.13.0"},
    platform="Linux-6.18-x86_64",
    checksums={"out/llama-convert.json": "79e3"},
    device="cuda:0 (NVIDIA H100)",
    compute_dtype="fp32",
)


def names(layers: int) -> list[str]:
    inside = [f"model.layers.{layer}.{kind}" for layer in range(layers) for kind in KINDS]
    return [f"{name}.weight" for name in (OUTSIDE[0], *inside, *OUTSIDE[1:])]


def tensors(layers: int, differences: dict[str, float] | None = None) -> list[dict[str, Any]]:
    return [
        {
            "tensor": name,
            "elements": 4096,
            "different": 12 if name in (differences or {}) else 0,
            "max_difference": (differences or {}).get(name, 0.0),
            "relative_difference": (differences or {}).get(name, 0.0),
        }
        for name in names(layers)
    ]


def compared(value: float = 1e-7, n_layers: int = 3, **of_the_last_layer: float) -> dict[str, Any]:
    """Measures of two models that were run, every figure being ``value``."""
    rows = [dict.fromkeys(("divergence", "local", "probe"), value) | {"layer": n} for n in range(n_layers)]
    rows[-1] |= of_the_last_layer
    single = ("embedding", "head", "max_head_difference", "max_kl", "mean_kl", "max_logit_difference")
    return {
        "layers": rows,
        **dict.fromkeys(single, value),
        "kl": [value] * 3,
        "positions": [0, 7, 131_071],
        "predictions": [
            prediction(1, "<s>", 5, " fox", 5, " fox"),
            prediction(2, " the\n", 5, " fox", 6, " dog"),
            prediction(3, "\u202e", 5, " fox", 5, " fox"),
        ],
        "top1_agreement": 1.0,
        "threshold": THRESHOLD,
    }


def prediction(token: int, text: str, source: int, one: str, output: int, other: str) -> dict[str, Any]:
    texts = {"token_text": text, "source_top1_text": one, "output_top1_text": other}
    return {"token": token, "source_top1": source, "output_top1": output, **texts}


def measures(value: float = 1e-7) -> dict[str, dict[str, Any]]:
    """The measures of each check, every figure being ``value``."""
    return {
        "values": {"norms": [{"tensor": name, "rms": value} for name in names(2)]},
        "weights": {"tensors": tensors(2, {names(2)[3]: value})},
        "logits": compared(value),
    }


def check(name: str = "logits", status: Status = Status.PASS, **more: Any) -> CheckReport:
    return CheckReport(Check(name), status, **{"summary": "as it should be", **more})


def report(*checks: CheckReport, **more: Any) -> VerifyReport:
    return VerifyReport(
        **{
            "path": Path("out"),
            "format": "huggingface",
            "source": Path("in"),
            "source_format": "meta",
            "release": "Llama 3.1 8B",
            "checks": list(checks),
            **more,
        }
    )


def everything(value: float = 1e-7) -> VerifyReport:
    """A report with all that a page can show."""
    given = measures(value)
    perplexity = {"bits_per_byte": value, "perplexity": value, "limit": 1.5}
    error = Finding("CODE", "a message", "file.safetensors", "a.tensor", "this", "that", "do something")
    return report(
        check("structure", findings=[Finding("A", "a warning", severity="warning")]),
        check("values", measures=given["values"]),
        check("weights", Status.FAIL, measures=given["weights"], findings=[error]),
        check("tokenizer", Status.SKIPPED),
        check("logits", measures={**given["logits"], **perplexity}),
        files=[FileIdentity("tokenizer.json", 9_085_657, "official", "as published", "sha256", "79e3")],
        completions={"source": "Once upon", "output": "Once in"},
    )


def page(result: VerifyReport | Inspection | Comparison, run: RunInfo | None = None) -> str:
    if isinstance(result, VerifyReport):
        return render_verification(result, run).decode()
    if isinstance(result, Inspection):
        return render_inspection(result, run).decode()
    return render_comparison(result, run).decode()


def stats(**more: Any) -> Stats:
    numbers = {"min": -0.25, "max": 0.125, "absmax": 0.25, "p999": 0.2, "mean": 0.001, "std": 0.02}
    fields = {
        "elements": 4,
        "nan": 0,
        "inf": 0,
        "zeros": 1,
        "near_zero": 2,
        "histogram": Histogram((-1.0, 1.0), (4,)),
    }
    return Stats(**{**fields, **numbers, **more})


NO_STATS = {
    "min": None,
    "max": None,
    "absmax": None,
    "p999": None,
    "mean": None,
    "std": None,
    "histogram": None,
}


def tensor(name: str, of: Stats | None = None) -> Tensor:
    return Tensor(name, None, name, (4, 1), "bfloat16", 8, ("model.safetensors",), of)


def inspection(**more: Any) -> Inspection:
    """An inspection with all that a page can show except statistics."""
    fields: dict[str, Any] = {
        "path": Path("models/llama-3.1-8b"),
        "format": "huggingface",
        "single_file": False,
        "release": Release("Llama 3.1 8B", "3.1", "8B", ("rope_theta 500000",), ("Llama Guard 3",)),
        "config": {"dim": 4096, "n_layers": 2, "rope_scaling": {"factor": 8.0}, "tied": False},
        "raw_config": None,
        "ranks": 4,
        "kv_repeats": 2,
        "parameters": Parameters(8_030_261_248, 525_336_576, 6_979_588_096, 218_112_128, 4096, 7, 3, True),
        "dtypes": (DtypeCount("bfloat16", 291, 16_060_522_496),),
        "kinds": (
            *(WeightGroup(f"{name}.weight", 1, (9, 9), "bfloat16", 0, 1) for name in OUTSIDE),
            *(
                WeightGroup(f"model.layers.{{layer}}.{kind}.weight", 2, (9,), "bfloat16", 0, 2)
                for kind in KINDS
            ),
        ),
        "files": (File("model.safetensors", 5_000_000_000, "weights", 291),),
        "bytes": 5_000_000_000,
        "tokenizer": Tokenizer("tokenizer.json", "tiktoken", 128_256, 256),
        "checksums": ("llama-convert.json",),
        "shared": (("lm_head.weight", "model.embed_tokens.weight"),),
        "conversion": Conversion({"x": 1}, 16_000_000_000, "bfloat16", 128 << 20),
        "findings": (Finding("ODD", "a warning", severity="warning"),),
        "tensors": (),
    }
    return Inspection(**{**fields, **more})


EMPTY = {
    "release": None, "config": None, "ranks": None, "kv_repeats": None, "dtypes": (), "kinds": (),
    "files": (), "bytes": 0, "tokenizer": None, "checksums": (), "shared": (), "conversion": None,
    "findings": (), "parameters": Parameters(0, 0, 0, None, 0, 0, 0, False),
}  # fmt: skip


def measured(layers: int = 2, **more: Any) -> Inspection:
    return inspection(tensors=tuple(tensor(name, stats(**more)) for name in names(layers)))


def comparison(**more: Any) -> Comparison:
    """A comparison with every kind of difference."""
    fields: dict[str, Any] = {
        "a": inspection(path="a"),
        "b": inspection(path="b"),
        "config": (Mismatch("norm_eps", 1e-5, 1e-6),),
        "only_in_a": ("left.weight",),
        "only_in_b": (),
        "shapes": (Mismatch("model.norm.weight", (9,), (8,)),),
        "dtypes": (Mismatch("lm_head.weight", "float16", "bfloat16"),),
        "tokenizer": (Mismatch("words", 5, 6),),
        "values": (ValueDifference(names(2)[3], 9, 2, 0.5, 1e-4, 1e-3, 0.9),),
        "compared": 20,
        "findings": (),
    }
    return Comparison(**{**fields, **more})


PAGES = {
    "verification": everything,
    "inspection": inspection,
    "statistics": measured,
    "comparison": comparison,
}


class Elements(HTMLParser):
    """Every element of a page, having seen that each is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.folded = ""
        """Text that is shown after unfolding, summaries aside."""
        self.marked: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "details" in self._open and "summary" not in self._open:
            self.folded += data
        if self._open and self._open[-1] == "mark":
            self.marked.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of every element of a kind."""
        return [attributes for name, attributes in self.seen if name == tag]


def words(text: str) -> str:
    """What a reader sees, style sheet included, on one line."""
    return " ".join(Elements(text).text.split())


def assert_in_order(text: str, expected: str) -> None:
    position = 0
    for word in re.split(r"\s*\|", expected):
        assert word in text[position:], word
        position = text.index(word, position) + len(word)


def section(text: str, title: str) -> str:
    """The HTML of one section."""
    found = re.search(rf"<section[^>]*>\s*<h2[^>]*>{re.escape(title)}</h2>(.*?)</section>", text, re.DOTALL)
    assert found, title
    return found[1]


def headings(text: str) -> list[str]:
    return re.findall("<h2[^>]*>(.*?)</h2>", text)


def cells(text: str) -> dict[str, str]:
    """The color class of every cell of a heat map, by its tooltip's tensor."""
    found = re.findall(r'<rect[^>]* class="(\w+)"><title>(.*?): .*?</title>', text)
    return {name: color for color, name in found}


class TestEveryPage:
    @pytest.mark.parametrize("value", [1e-7, 0.0, 1.0, 1.7e308, 5e-324, math.nan, math.inf])
    @pytest.mark.parametrize("name", PAGES)
    def test_one_well_formed_file_without_references(self, name: str, value: float) -> None:
        result = {
            "verification": lambda: everything(value),
            "inspection": inspection,
            "statistics": lambda: measured(std=value, max=value),
            "comparison": lambda: comparison(
                values=(ValueDifference(names(2)[3], 9, 2, value, value, value, value),)
            ),
        }[name]()
        text = page(result, RUN)
        elements = Elements(text)
        assert not re.search(r"https?://|<script|@import|url\(|javascript:", text)
        assert not any("src" in attributes or "style" in attributes for _, attributes in elements.seen)
        assert not any(key.startswith("on") for _, attributes in elements.seen for key in attributes)
        assert [attributes.get("href") for attributes in elements.all("link")] == ["data:,"]
        ids = [attributes["id"] for _, attributes in elements.seen if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert "default-src 'none'" in text
        assert {attributes["aria-labelledby"] for attributes in elements.all("section")} == set(ids)
        classes = set(" ".join(str(a.get("class", "")) for _, a in elements.seen).split())
        assert not {each for each in classes if each.startswith("heat")} - {f"heat{n}" for n in range(9)}
        for attribute in ("x", "y", "cx", "cy", "width", "height", "d", "points", "viewBox"):
            geometry = " ".join(re.findall(rf' {attribute}="(.*?)"', text))
            assert not re.search("nan|inf", geometry)

    @pytest.mark.parametrize("name", PAGES)
    def test_accessible(self, name: str) -> None:
        text = page(PAGES[name](), RUN)  # type: ignore[operator]
        elements = Elements(text)
        assert elements.all("html") == [{"lang": "en"}]
        pictures = elements.all("svg")
        assert all(p.get("aria-hidden") or (p["role"] == "img" and p["aria-label"]) for p in pictures)
        assert all(attributes.get("scope") for attributes in elements.all("th"))
        for attributes in elements.all("div"):
            if attributes.get("class") == "scroll":
                assert attributes["tabindex"] == "0"
                assert attributes["aria-label"]
        levels = [int(tag[1]) for tag, _ in elements.seen if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
        assert len(elements.all("details")) == len(elements.all("summary"))

    def test_dark_mode(self) -> None:
        text = page(everything())
        assert 'name="color-scheme" content="light dark"' in text
        light, dark = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
        assert re.search(r"@media screen and \(prefers-color-scheme: dark\) \{\s*:root \{", text)
        declared = set(re.findall(r"(--[\w-]+):", light))
        colors = {name for name in declared if name not in ("--sans", "--mono")}
        assert set(re.findall(r"(--[\w-]+):", dark)) == colors
        assert set(re.findall(r"var\((--[\w-]+)\)", text)) <= declared

    @pytest.mark.parametrize("name", PAGES)
    def test_the_same_result_gives_the_same_bytes(self, name: str) -> None:
        program = (
            "import hashlib, sys; sys.path.insert(0, '.')\n"
            "from tests.test_html_report import PAGES, RUN, page\n"
            f"print(hashlib.sha256(page(PAGES[{name!r}](), RUN).encode()).hexdigest())"
        )
        for seed in ("1", "2"):
            environment = {**os.environ, "PYTHONHASHSEED": seed}
            run = [sys.executable, "-c", program]
            done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
            assert done.stdout.strip() == hashlib.sha256(page(PAGES[name](), RUN).encode()).hexdigest()  # type: ignore[operator]

    @pytest.mark.parametrize("name", PAGES)
    def test_no_run_no_section(self, name: str) -> None:
        assert "Reproduce" not in headings(page(PAGES[name]()))  # type: ignore[operator]
        assert headings(page(PAGES[name](), RUN))[-1] == "Reproduce"  # type: ignore[operator]

    def test_it_is_imported_only_to_write_a_page(self) -> None:
        program = """
import sys
import llama_convert.cli.verify, llama_convert.cli.inspect, llama_convert.cli.report_file
import llama_convert.verification.verify, llama_convert.inspection.inspect
assert not {"jinja2", "llama_convert.html_report"} & set(sys.modules)
import llama_convert.html_report
assert not {"torch", "matplotlib"} & set(sys.modules)
"""
        subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


class TestHostileText:
    def hostile(self, text: str) -> Iterator[str]:
        """Every page with a text in every place that a checkpoint decides."""
        finding = Finding(text, text, text, text, text, text, text)
        warning = replace(finding, severity="warning")
        row = {**tensors(1)[0], "tensor": text, "different": 1}
        logits = compared() | {"predictions": [prediction(1, text, 2, text, 3, text)] * 3}
        logits["threshold"] = {**THRESHOLD, text: 1.0, "reason": text}
        yield page(
            report(
                check(summary=text, details=text, findings=[finding, warning], measures=logits),
                check("values", measures={"norms": [{"tensor": f"{text}{n}", "rms": 1.0} for n in range(2)]}),
                check("weights", measures={"tensors": [row, {**row, "tensor": f"layers.0.{text}.weight"}]}),
                path=Path(text),
                source=Path(text),
                format=text,
                source_format=text,
                release=text,
                files=[FileIdentity(text, 1, text, text, text, text, text)],
                completions={"source": f"a{text}", "output": f"b{text}", text: text},
            ),
            RunInfo(text, RUN.date, {text: text}, text, {text: text}, text, text),
        )
        one = inspection(
            path=text,
            format=text,
            release=Release(text, text, text, (text,), (text,)),
            config={text: {text: text}},
            dtypes=(DtypeCount(text, 1, 1),),
            kinds=(WeightGroup(text, 1, (1,), text, None, 1),),
            files=(File(text, 1, text, 1),),
            tokenizer=Tokenizer(text, text, 1, 1),
            checksums=(text,),
            shared=((text, text),),
            conversion=Conversion({text: 1}, 1, text, 1),
            findings=(finding, warning),
            tensors=(replace(tensor(text, stats()), dtype=text),),
        )
        yield page(one)
        yield page(replace(one, config=None, raw_config={text: [text]}, tensors=(tensor(text),)))
        differing = (Mismatch(text, text, text),)
        yield page(
            comparison(
                a=one,
                b=one,
                config=differing,
                only_in_a=(text,),
                only_in_b=(f"{text}.",),
                shapes=differing,
                dtypes=differing,
                tokenizer=differing,
                values=(ValueDifference(text, 1, 1, 1.0, 1.0, 1.0, 1.0),),
                findings=(finding,),
            )
        )

    def test_markup(self) -> None:
        for text in self.hostile(EVIL):
            assert not re.search(r"<script|<b>|& ", text)
            assert unescape(text).count(EVIL) >= 9
            Elements(text)

    @pytest.mark.parametrize(
        "text",
        [
            "\u202e", "\u202a", "\u2066", "\u2069", "\u200f", "\u061c",  # bidi
            "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u180e",  # zero width
            "\0", "\x07", "\t", "\r", "\x1b[31m", "\x7f", "\x85", "\x9b",  # C0 and C1
            "\u2028", "\u2029", "\u00a0", "\u3000",  # separators
            "\ud800", "\ue000", "\U000e0041", "\U0010ffff",  # surrogate, private use, tag, unassigned
            "\u034f", "\u115f", "\u2800", "\u3164", "\ufe0f", "\uffa0", "\U0001d159", "\U000e0100",
        ],
    )  # fmt: skip
    def test_invisible_characters(self, text: str) -> None:
        escape = unescape(text[0].encode("unicode_escape").decode())
        for html in self.hostile(f"a{text}z"):
            assert text not in html
            assert escape in html
        assert visible(text[0]) == escape

    @given(text=st.text())
    @example("\u202e\u2066\x00\r\u3164")
    def test_any_text(self, text: str) -> None:
        for html in self.hostile(text):
            assert html.replace("\n", "").isprintable()
            Elements(html)

    def test_all_scripts_stay_readable(self) -> None:
        text = "你好,世界 👋\n  مرحبا بالعالم\n\nПривет עברית"
        html = page(report(check(), completions={"output": text}, path=Path("caf\udce9")))
        assert f'<blockquote dir="auto">{text}</blockquote>' in html
        assert r"caf\udce9" in html

    def test_text_of_one_direction_is_isolated(self) -> None:
        rule = re.search(r"([^}]*)\{ unicode-bidi: isolate; \}", page(everything()))
        assert rule
        assert {"code", "dd", "td", "th"} <= set(re.split(r"[\s,]+", rule[1]))

    def test_secrets_of_urls(self) -> None:
        url = "https://me:hunter2@host/models/x?token=hunter2"
        for html in self.hostile(url):
            assert "hunter2" not in html
            assert "host/models/x" in html

    def test_a_token_is_one_line_in_quotes(self) -> None:
        assert visible_token(" a\n\u202e") == r'" a\n\u202e"'


class TestVerification:
    @pytest.mark.parametrize(
        ("checks", "verdict"),
        [
            ([check("structure"), check("weights")], "PASS 2 of 2 checks passed: structure and weights."),
            (
                [check(findings=[Finding("A", "hm", severity="warning")])],
                "PASS 1 of 1 check passed: logits. 1 warning.",
            ),
            (
                [check("structure"), check("weights", Status.SKIPPED), check("logits", Status.SKIPPED)],
                "PASS 1 of 1 check passed: structure. Skipped: weights and logits.",
            ),
            ([check("structure", Status.SKIPPED)], "INCOMPLETE No check ran."),
            ([], "INCOMPLETE No check ran."),
            ([check("structure", Status.FAIL), check("weights")], "FAIL 1 of 2 checks failed: structure."),
        ],
    )
    def test_title_and_verdict(self, checks: list[CheckReport], verdict: str) -> None:
        text = page(report(*checks))
        title = "Verification report: out vs in"
        assert f"{title} {verdict}" in words(text)
        assert f"<title>{verdict.split()[0]} · {title}</title>" in text

    def test_title_without_source(self) -> None:
        text = page(report(check(), source=None, source_format=None, path=Path("a/llama-3.1-8b")))
        assert "<h1>Verification report: llama-3.1-8b</h1>" in text
        assert "none: the output is verified by itself" in text

    def test_all_of_a_report(self) -> None:
        assert_in_order(
            words(page(everything(), RUN)),
            """Verification report: out vs in|FAIL|1 of 4 checks failed: weights. Skipped: tokenizer.
            |Output|out (Hugging Face format)|Source|in (Meta format)|Release|Llama 3.1 8B
            |Findings|Root causes (1)|error|weights|CODE|a message|a.tensor|file.safetensors|do something
            |this|that|Warnings (1)|a warning
            |Checks|structure|✓ pass|values|weights|✕ fail|tokenizer|– skipped|logits
            |Key figures|Top-1 agreement|100%|Max KL divergence|10⁻⁷
            |Weights: relative error|1 of 21 tensors differ|Per-layer relative error|KL divergence per
            |position|Values: root mean square|Completions|source|Once upon|output|Once in
            |Official checksums|1 official|tokenizer.json|as published|79e3|9.1 MB
            |Limits|One layer or the LM head|10⁻⁴|10⁻⁷|within|LM head alone|0.02
            |Bits per byte|1.5|Reason: sums of 4096 terms|Reproduce""",
        )

    @pytest.mark.parametrize("status", [Status.PASS, Status.FAIL])
    def test_a_failure_leads_with_findings_a_pass_with_checks(self, status: Status) -> None:
        findings = [Finding("A", "a", severity="warning" if status is Status.PASS else "error")]
        first = headings(page(report(check(status=status, findings=findings))))[:2]
        assert first == (["Checks", "Findings"] if status is Status.PASS else ["Findings", "Checks"])

    def test_errors_come_before_warnings(self) -> None:
        findings = [
            [Finding("A", "first warning", severity="warning"), Finding("B", "first error")],
            [Finding("C", "second error"), Finding("D", "second warning", severity="warning")],
        ]
        text = page(report(check("structure", findings=findings[0]), check("weights", findings=findings[1])))
        found = re.findall("(?:first|second) (?:error|warning)", text)
        assert found == ["first error", "second error", "first warning", "second warning"]

    def test_what_a_root_cause_explains_is_folded_below_it(self) -> None:
        other = Finding("OTHER", "another error")
        root = Finding("ROOT", "the root cause", "f.pth", "a.weight", "0.25", "0.5", "a hint")
        cause = RootCause("logits", root.code, root.message, root.tensor)
        effect = Finding("EFFECT", "an effect", explained_by=cause)
        lost = Finding("LOST", "explained by something unknown", explained_by=replace(cause, check="weights"))
        text = page(report(check(status=Status.FAIL, findings=[effect, other, root, lost])))
        elements = Elements(section(text, "Findings"))
        assert "Root causes (2)" in elements.text
        assert all(word in elements.folded for word in ("an effect", "0.25", "0.5", "something unknown"))
        shown = ("the root cause", "a.weight", "f.pth", "a hint", "another error", "not listed (1)")
        assert not any(word in elements.folded for word in shown)
        assert_in_order(
            elements.text, "another error|the root cause|Evidence: 1 finding|an effect|not listed|unknown"
        )

    @pytest.mark.parametrize("name", TITLES)
    def test_a_figure_exists_if_and_only_if_its_measures_do(self, name: str) -> None:
        text = page(report(check(name, measures=measures()[name])))
        assert [title for title in headings(text) if "<svg" in section(text, title)] == TITLES[name]
        assert text.count("<figure>") == len(TITLES[name])

    @pytest.mark.parametrize(
        "empty",
        [
            {},
            {"tensors": [], "layers": [], "kl": [], "norms": []},
            {"tokens": 128_256, "files": 4, "dtype": "bfloat16"},
        ],
    )
    def test_measures_that_do_not_exist_leave_no_trace(self, empty: dict[str, Any]) -> None:
        text = page(report(*(check(name.value, measures=empty) for name in Check)))
        assert headings(text) == ["Checks"]
        assert "<svg" not in text

    def test_checks_may_count_what_others_list(self) -> None:
        counts = [check("structure", measures={"tensors": 291}), check("tokenizer", measures={"kl": 3})]
        assert "<svg" not in page(report(*counts))

    @pytest.mark.parametrize(
        ("agreement", "shown"), [(1.0, "100%"), (0.9999999, "99.99%"), (0.5, "50%"), (0.0, "0%")]
    )
    def test_only_full_agreement_is_100_percent(self, agreement: float, shown: str) -> None:
        assert f"<dd>{shown}</dd>" in page(report(check(measures={"top1_agreement": agreement})))

    def test_limits(self) -> None:
        text = section(page(report(check(measures={**compared(), "head": math.nan}))), "Limits")
        assert_in_order(
            words(text), "One layer or the LM head|10⁻⁴|NaN|✕ exceeded|All layers|10⁻³|10⁻⁷|✓ within"
        )

    def test_details_are_folded(self) -> None:
        text = page(report(check("structure"), check(details="64 tokens on cpu")))
        assert "logits 64 tokens on cpu" in " ".join(Elements(section(text, "Checks")).folded.split())

    def test_official_checksums_are_folded(self) -> None:
        files = [
            FileIdentity(
                "tokenizer.model",
                2_183_982,
                "official",
                "is official",
                "sha256",
                "82e9",
                "Llama 3.1; sources",
            ),
            FileIdentity("params.json", 220, "unofficial", "has the size of params.json"),
        ]
        elements = Elements(section(page(report(check(), files=files)), "Official checksums"))
        assert "2 files: 1 official, 1 unofficial" in elements.text
        assert "2 files" not in elements.folded
        folded = " ".join(elements.folded.split())
        assert_in_order(
            folded,
            "tokenizer.model|✓ official|is official; Llama 3.1; sources|sha256 82e9|2.2 MB|≠",
        )


class TestHeatMap:
    @pytest.mark.parametrize("layers", [1, 2, 126, 300])
    def test_a_cell_for_each_tensor_within_the_figure(self, layers: int) -> None:
        text = section(
            page(report(check("weights", measures={"tensors": tensors(layers)}))), TITLES["weights"][0]
        )
        assert cells(text) == dict.fromkeys(names(layers), "zero")
        rectangles = [
            [float(value) for value in found]
            for found in re.findall(r'<rect x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)"', text)
        ]
        height = float(re.findall(r'viewBox="0 0 880 (\S+)"', text)[0])
        assert all(x >= 0 and x + width <= 880 and y + h <= height for x, y, width, h in rectangles)
        assert min(width for _, _, width, _ in rectangles) > 2
        ends = sorted((y, x, x + width) for x, y, width, _ in rectangles)
        assert all(a[0] != b[0] or a[2] <= b[1] + 0.02 for a, b in itertools.pairwise(ends))
        shown = re.findall("<text.*?>(.*?)</text>", text)
        assert [label for label in shown if label in ("embed_tokens", "norm", "lm_head")]
        assert {kind.rpartition(".")[2] for kind in KINDS} < set(shown)
        assert {"layer", "0"} < set(shown)
        height = re.findall(r'y="(\S+)" class="end soft">layer<', text)[0]
        numbers = [int(label) for label in re.findall(rf'y="{height}" class="middle soft">(\d+)<', text)]
        assert max(numbers) >= layers * 0.8 - 1
        assert f"All {9 * layers + 3:,} tensors are identical." in text

    def test_places(self) -> None:
        """Layers from left to right, kinds from top to bottom, other tensors below."""
        text = page(report(check("weights", measures={"tensors": tensors(3)})))
        found = re.findall(r'<rect x="(.*?)" y="(.*?)" .*?<title>(.*?): ', text)
        place = {name.removesuffix(".weight"): (float(x), float(y)) for x, y, name in found}
        for layer in range(3):
            column = [place[f"model.layers.{layer}.{kind}"] for kind in KINDS]
            assert len({x for x, _ in column}) == 1
            assert [y for _, y in column] == sorted({y for _, y in column})
        row = [place[f"model.layers.{layer}.{KINDS[0]}"] for layer in range(3)]
        assert row == sorted(row)
        lowest = max(y for name, (_, y) in place.items() if ".layers." in name)
        assert all(place[name][1] > lowest for name in OUTSIDE)

    def test_the_color_is_the_order_of_magnitude(self) -> None:
        every = names(2)
        values = [1e-300, 2e-7, 2e-6, 2e-5, 2e-4, 2e-3, 0.02, 0.2, 2.0, 1e300, 0.0, math.nan, math.inf]
        differences = dict(zip(every, values, strict=False))
        text = page(report(check("weights", measures={"tensors": tensors(2, differences)})))
        found = cells(text)
        colors = [*(f"heat{n}" for n in range(9)), "heat8", "heat0", "nan", "nan"]
        assert [found[name] for name in every[: len(values)]] == colors
        assert {found[name] for name in every[len(values) :]} == {"zero"}
        assert text.count('class="cross"') == 3  # two cells and the legend
        shown = re.findall("<text.*?>(.*?)</text>", text)
        assert {"identical", "NaN, ∞", "10⁻⁷", "10⁻¹", "1"} < set(shown)
        assert "13 of 21 tensors differ. NaN or infinite: 2." in text
        assert "relative error 0.02, max difference 0.02, 12 of 4,096 elements differ</title>" in text

    def test_the_legend_has_only_what_occurs(self) -> None:
        shown = page(report(check("weights", measures={"tensors": tensors(1)})))
        assert ">identical</text>" in shown
        assert "NaN" not in shown
        different = tensors(1, dict.fromkeys(names(1), 1.0))
        assert ">identical</text>" not in page(report(check("weights", measures={"tensors": different})))

    def test_the_worst_are_listed_first(self) -> None:
        every = names(120)
        differences = {name: 1e-9 * (n + 1) for n, name in enumerate(every[:300])} | {every[300]: math.nan}
        text = section(
            page(report(check("weights", measures={"tensors": tensors(120, differences)}))),
            TITLES["weights"][0],
        )
        rows = re.findall(r'<th scope="row".*?<code>(.*?)</code>', text)
        assert rows == [every[n] for n in range(300, 44, -1)]
        assert "Tensors that differ (top 256 of 301 by error)" in text
        assert "Tensors that differ" not in Elements(text).folded

    @pytest.mark.parametrize(
        ("prefix", "label"),
        [("layers.3.attention.wq.weight", "wq"), ("model.layers.3.mlp.up_proj.bias", "mlp.up_proj.bias")],
    )
    def test_labels(self, prefix: str, label: str) -> None:
        rows = [{**tensors(1)[0], "tensor": name} for name in (prefix, "model.layers.3.other.bias")]
        text = page(report(check("weights", measures={"tensors": rows})))
        assert f">{label}</text>" in text
        assert ">3</text>" in text

    def test_hostile_names_are_bounded(self) -> None:
        every = [f"layers.{n}.a" for n in range(600)] + [
            f"layers.{'9' * 5000}.a",
            "layers.٣.a",
            "layers.007.a",
        ]
        every += [f"layers.0.{n}{'x' * 500}" for n in range(3000)] + [f"y{n}" for n in range(3000)]
        every += ["layers.999999.b", "layers.0.a"]
        rows = [{**tensors(1)[0], "tensor": name} for name in every]
        text = section(page(report(check("weights", measures={"tensors": rows}))), TITLES["weights"][0])
        assert len(cells(text)) < 1000
        assert "Not drawn: " in text
        drawn = [name for name in cells(text) if name.endswith(".a")]
        assert [name for name in drawn if len(name) < 13 and name != "layers.٣.a"] == [
            *(f"layers.{n}.a" for n in range(512)),
            "layers.007.a",
        ]
        assert all(len(label) <= 32 for label in re.findall("<text.*?>(.*?)</text>", text))

    def test_of_two_tensors_in_one_place_the_worse_is_shown(self) -> None:
        name = names(1)[1]
        rows = [{**tensors(1, {name: value})[1], "different": int(value > 0)} for value in (0.0, 1e-3, 1e-5)]
        assert cells(page(report(check("weights", measures={"tensors": rows})))) == {name: "heat5"}

    @pytest.mark.parametrize("values", [(0.02, 0.02), (1e-300, 1e300), (5e-324, 1.7e308), (0.0, 0.0)])
    def test_values_are_scaled_to_their_range(self, values: tuple[float, float]) -> None:
        norms = [{"tensor": f"layers.{n}.a", "rms": value} for n, value in enumerate(values)]
        found = cells(page(report(check("values", measures={"norms": norms}))))
        colors = {0.0: ["zero", "zero"], 0.02: ["heat4", "heat4"]}.get(values[0], ["heat0", "heat8"])
        assert list(found.values()) == colors


class TestLinePlots:
    @pytest.mark.parametrize("name", ["local", "probe"])
    def test_the_first_layer_above_the_limit_is_marked(self, name: str) -> None:
        text = section(
            page(report(check(measures=compared(1e-7, 38, **{name: 0.03})))), "Per-layer relative error"
        )
        assert "Layer 37 is the first above the limit." in text
        assert re.search(r'<text class="end band"[^>]*>layer 37</text>', text)
        assert text.count('class="band"') == 1
        assert "limit for a layer alone, 10⁻⁴" in text

    def test_rounding_that_accumulates_marks_no_layer(self) -> None:
        text = page(report(check(measures=compared(1e-7, 80, divergence=0.03))))
        assert "No layer is above the limit." in text
        assert "layer 79</text>" not in text
        assert_in_order(words(section(text, "Limits")), "All layers together|10⁻³|0.03|✕ exceeded")

    def test_layers_above_the_limit_are_counted(self) -> None:
        logits = compared(1e-7, 3) | {"layers": compared(0.5, 2)["layers"]}
        assert "Layer 0 is the first above the limit. 2 of 2 layers are." in page(
            report(check(measures=logits))
        )

    @pytest.mark.parametrize("n", [1, 2, 126])
    def test_each_series_has_a_line_and_a_name(self, n: int) -> None:
        text = section(page(report(check(measures=compared(2e-7, n)))), "Per-layer relative error")
        for name, style in (
            ("end to end", "first"),
            ("layer alone, text", "second"),
            ("layer alone, random vectors", "third"),
        ):
            assert f"</svg>{name}</li>" in text
            points = re.findall(rf'<polyline class="line {style}" points="(.*?)"', text)
            assert [len(line.split()) for line in points] == [n]
            assert text.count(f"layer {n - 1}, {name}: 2 × 10⁻⁷</title>") == 1
        places = [float(x) for x in re.findall(r"([\d.]+),[\d.]+", text.partition("<polyline")[2])]
        assert all(68 <= x <= 868 for x in places)
        assert text.count('class="limit"') == 2  # line and legend

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_values_that_are_no_numbers(self, value: float) -> None:
        logits = compared(1e-7, 3)
        logits["layers"][1]["probe"] = value
        logits["kl"] = [value] * 3
        text = page(report(check(measures=logits)))
        layers, kl = section(text, TITLES["logits"][0]), section(text, TITLES["logits"][1])
        assert "Layer 1 is the first above the limit." in layers or value < 0
        assert "NaN or infinite: 1." in layers
        assert layers.count('class="nonfinite"') == 1
        assert len(re.findall('<polyline class="line third"', layers)) == 2
        assert "NaN or infinite: 3." in kl
        assert kl.count('class="nonfinite"') == 3
        for part in (layers, kl):
            labels = re.findall(r'y="(\S+)" class="end soft">(.*?)</text>', part)
            (top,) = (float(y) for y, label in labels if label == "NaN, ∞")
            assert min(float(y) for y, label in labels if label != "NaN, ∞") >= top + 20
        assert "<polyline" not in kl

    def test_zero_has_a_row(self) -> None:
        text = section(page(report(check(measures=compared(0.0)))), "KL divergence per position")
        ((_, height),) = {
            (x, y) for x, y in re.findall(r'<text x="(\S+)" y="(\S+)" class="end soft">0</text>', text)
        }
        ((points),) = re.findall('<polyline[^>]*points="(.*?)"', text)
        assert {point.partition(",")[2] for point in points.split()} == {height}

    def test_positions_with_their_tokens(self) -> None:
        logits = compared() | {"kl": [1e-9, 0.25, 1e-8]}
        text = section(page(report(check(measures=logits))), "KL divergence per position")
        assert "Max: 0.25 nats at position 7." in text
        assert re.search(r"<title>position 131,071, token .*?202e.*? \(3\): 10⁻⁸</title>", text)
        folded = " ".join(Elements(text).folded.split())
        assert_in_order(
            folded,
            'Position|Token|KL (nats)|Top-1 source|Top-1 output|0|"<s>" (1)|10⁻⁹|✓ same|7|" the\\n" (2)|0.25'
            '|" fox" (5)|" dog" (6)|✕ differs|131,071|"\\u202e" (3)|10⁻⁸|✓ same',
        )
        assert "limit, 10⁻⁶" in text

    def test_tokens_without_text(self) -> None:
        logits = compared() | {"predictions": [{"token": 11, "source_top1": 12, "output_top1": 13}] * 3}
        folded = Elements(section(page(report(check(measures=logits))), TITLES["logits"][1])).folded
        assert {"11", "12", "13", "differs"} < set(folded.split())

    def test_positions_without_predictions(self) -> None:
        logits = compared()
        del logits["predictions"]
        text = section(page(report(check(measures=logits))), TITLES["logits"][1])
        assert "Top-1" not in text
        assert "131,071" in Elements(text).folded

    def test_of_many_positions_the_worst_are_listed_in_order(self) -> None:
        n = 4096
        logits = compared() | {"kl": [1e-9 * (i + 1) for i in range(n)], "positions": list(range(n))}
        logits["predictions"] = [logits["predictions"][0]] * n
        html = page(report(check(measures=logits)))
        text = section(html, TITLES["logits"][1])
        rows = re.findall(r'<th scope="row" class="number">(.*?)</th>', text)
        assert rows == [f"{position:,}" for position in range(n - 256, n)]
        assert "top 256 of 4,096 by error" in text
        assert len(html) < 400_000


class TestCompletions:
    @pytest.mark.parametrize(
        ("source", "output", "marked", "note"),
        [
            ("one big cat", "one big dog", ["cat", "dog"], "after 8 characters"),
            ("one big cat", "one bad cat", ["ig", "ad"], "after 5 characters"),
            ("x cat\nb", "y cat", ["x", "y"], "after 0 characters"),
            ("one", "one cat", ["(end)", " cat"], "after 3 characters"),
            ("a b", "a", [" b", "(end)"], "after 1 character."),
            ("", "cat", ["(end)", "cat"], "after 0 characters"),
            ("same", "same", [], "identical"),
        ],
    )
    def test_the_first_difference_is_marked(
        self, source: str, output: str, marked: list[str], note: str
    ) -> None:
        completions = {"output": output, "source": source}
        elements = Elements(section(page(report(check(), completions=completions)), "Completions"))
        assert elements.marked == marked
        assert note in elements.text
        quoted = re.findall(
            r"<blockquote[^>]*>(.*?)</blockquote>", page(report(check(), completions=completions)), re.DOTALL
        )
        texts = [re.sub("<mark>\\(end\\)</mark>|</?mark>", "", text) for text in quoted]
        assert texts == [source, output]

    def test_one_alone(self) -> None:
        elements = Elements(section(page(report(check(), completions={"output": "a cat"})), "Completions"))
        assert elements.marked == []
        assert "a cat" in elements.text
        assert "difference" not in elements.text


class TestReproduce:
    def test_the_section(self) -> None:
        text = section(page(everything(), RUN), "Reproduce")
        assert "<code>llama-convert verify out --source in</code>" in text
        assert_in_order(
            words(text),
            "Date|2026-11-21 07:11 UTC|llama-convert 1.2, Python 3.11.7, torch 2.13.0|Linux-6.18-x86_64"
            "|cuda:0 (NVIDIA H100)|fp32|SHA-256 of out/llama-convert.json|79e3",
        )

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({}, ""),
            ({"checks": (Check.VALUES, Check.LOGITS)}, " --check values,logits"),
            ({"device": "cuda:1", "dtype": "bf16"}, " --device cuda:1 --dtype bf16"),
            ({"n_positions": 9, "checksums": True}, " --positions 9 --checksums"),
            ({"checksums": False}, " --no-checksums"),
            ({"prompt": "it's; rm", "max_new_tokens": 3}, """ --prompt 'it'"'"'s; rm' --max-new-tokens 3"""),
            ({"llama_version": "3.1", "tokenizer": Path("a b")}, " --llama-version 3.1 --tokenizer 'a b'"),
        ],
    )
    def test_the_command_of_a_verification(self, options: dict[str, Any], words: str) -> None:
        asked = VerifyOptions(**options)
        source = "https://me:hunter2@host/a b?token=hunter2"
        found = verify_command(report(path=Path("x $y"), source=source), asked)
        assert found == f"llama-convert verify 'x $y' --source 'https://host/a b'{words}"
        assert verify_command(report(source=None), asked) == f"llama-convert verify out{words}"

    def test_all_options_are_in_the_command(self) -> None:
        """A new option must not be forgotten."""
        values: dict[str, Any] = {
            "checks": (Check.VALUES,),
            "n_positions": 9,
            "max_new_tokens": 9,
            "checksums": True,
        }
        for name in VerifyOptions.__dataclass_fields__:
            options = VerifyOptions(**{name: values.get(name, "x")})
            assert verify_command(report(), options) != verify_command(report(), VerifyOptions()), name

    @pytest.mark.parametrize(
        ("tensors", "stats", "words"), [(None, False, ""), ("*.wq.*", True, " --tensors '*.wq.*' --stats")]
    )
    def test_the_command_of_an_inspection(self, tensors: str | None, stats: bool, words: str) -> None:
        one = inspection(path="a b")
        assert inspect_command(one, tensors=tensors, stats=stats) == f"llama-convert inspect 'a b'{words}"
        both = inspect_command(comparison(), tensors=tensors, stats=stats)
        assert both == f"llama-convert inspect a b{words}"

    def test_this_machine(self, tmp_path: Path) -> None:
        for name in ("out", "in"):
            (tmp_path / name).mkdir()
        (tmp_path / "out/llama-convert.json").write_bytes(b"{}")
        (tmp_path / "in/checklist.chk").write_bytes(b"abc")
        result = report(check(), path=tmp_path / "out", source=tmp_path / "in")
        run = current_run(result, "x", VerifyOptions(device="cpu", dtype="bf16"))
        assert run.versions.keys() == {"llama-convert", "Python", "torch"}
        assert run.versions["Python"] == sys.version.split()[0]
        assert (run.device, run.compute_dtype) == ("cpu", "bf16")
        assert run.platform
        assert run.date.tzinfo
        assert run.checksums == {
            str(tmp_path / "out/llama-convert.json"): hashlib.sha256(b"{}").hexdigest(),
            str(tmp_path / "in/checklist.chk"): hashlib.sha256(b"abc").hexdigest(),
        }
        for name, folder in (("a", "out"), ("b", "in")):
            one = comparison(**{name: inspection(path=str(tmp_path / folder))})
            assert len(current_run(one, "x").checksums) == 1
        assert len(current_run(inspection(path=str(tmp_path / "in")), "x").checksums) == 1

    def test_no_forward_pass_no_device(self) -> None:
        for checks in ([check("weights")], [check(status=Status.SKIPPED)]):
            run = current_run(report(*checks), "x", VerifyOptions())
            assert (run.device, run.compute_dtype) == (None, None)
            assert "Device" not in page(report(), run)


class TestInspection:
    def test_all_of_an_inspection(self) -> None:
        assert_in_order(
            words(page(inspection(), RUN)),
            """Inspection report: llama-3.1-8b|OK|0 errors, 1 warning.|models/llama-3.1-8b|Llama 3.1 8B
            |rope_theta 500000|Llama Guard 3|Hugging Face format|4; each KV head is on 2 of them|8,030,261,248
            |bfloat16: 291 tensors, 16.1 GB|tiktoken, 128,256 tokens, 256 special (tokenizer.json)
            |llama-convert.json|1 file, 5.0 GB|16.0 GB of bfloat16 in 1 file, 128 MiB of memory
            |Config|dim|4096|rope_scaling|factor=8|tied|false
            |Parameters|Embedding|525,336,576|6,979,588,096 (218,112,128 each)|Final norm|4,096|LM head|7
            |Kinds of tensors|model.embed_tokens.weight|1|[9, 9]|bfloat16|dim 0
            |down_proj|2|[9]|dim 0, 2 copies
            |Shared storages|lm_head.weight, model.embed_tokens.weight|2
            |Files|model.safetensors|weights|291|5.0 GB|Findings|Warnings (1)|a warning|Reproduce""",
        )

    def test_errors_come_first(self) -> None:
        text = page(inspection(findings=(Finding("A", "an error"), Finding("B", "b", severity="warning"))))
        assert headings(text)[0] == "Findings"
        assert "ERRORS 1 error, 1 warning." in words(text)

    def test_an_empty_inspection(self) -> None:
        text = page(inspection(**EMPTY))
        assert headings(text) == ["Parameters"]
        assert "not recognized" in text
        assert headings(page(inspection(**EMPTY, raw_config={"x": None}))) == ["Config", "Parameters"]

    def test_tensors_without_statistics(self) -> None:
        text = page(inspection(tensors=tuple(map(tensor, names(1)))))
        assert "<svg" not in text
        folded = Elements(section(text, "Tensors")).folded
        assert all(name in folded for name in names(1))
        assert_in_order(folded, "[4, 1]|bfloat16|8 B|model.safetensors")

    @pytest.mark.parametrize("layers", [1, 2, 126])
    def test_statistics(self, layers: int) -> None:
        text = page(measured(layers))
        for title, value in (
            ("Standard deviation by layer and kind", "0.02"),
            ("Max magnitude by layer and kind", "0.25"),
        ):
            part = section(text, title)
            assert cells(part) == dict.fromkeys(names(layers), "heat4")
            assert part.count(f": {value}</title>") == 9 * layers + 3
        folded = Elements(section(text, "Statistics")).folded
        assert all(name in folded for name in names(layers))
        assert_in_order(
            " ".join(folded.split()),
            "Min|Max|Max magnitude|p99.9|Mean|Std|Near zero|NaN|Inf|[4, 1]|-0.25|0.125|0.25|0.2|10⁻³|0.02|"
            "50.00%|0|0",
        )

    def test_statistics_of_broken_tensors(self) -> None:
        listed = (
            tensor("layers.0.a", stats(nan=3, inf=1)),
            tensor("layers.0.b", stats(nan=4, **NO_STATS)),
            tensor("layers.0.c", stats(std=0.0, min=0.0, max=0.0, absmax=0.0)),
            tensor("layers.0.d"),
        )
        text = page(inspection(tensors=listed))
        part = section(text, "Max magnitude by layer and kind")
        assert cells(part) == {"layers.0.a": "heat4", "layers.0.b": "nan", "layers.0.c": "zero"}
        assert "layers.0.a: 0.25, 3 NaN, 1 Inf</title>" in part
        assert "layers.0.b: no finite element, 4 NaN</title>" in part
        assert "Tensors with NaN or infinite elements: 2." in part


class TestComparison:
    def test_all_of_a_comparison(self) -> None:
        text = page(comparison(), RUN)
        assert_in_order(
            words(text),
            """Comparison report: a vs b|DIFFERENT
            |1 hyper-parameter, 1 tensor name, 1 shape, 1 dtype, 1 tokenizer property
            |and the values of 1 tensor
            |A|a|B|b
            |Config|norm_eps|1e-05|1e-06|Tokenizer|words|5|6|Shapes|model.norm.weight|[9]|[8]
            |Dtypes|lm_head.weight|float16|bfloat16|Tensor names|1 tensor in only one of them|left.weight|A
            |Weights: relative error by layer and kind|1 of 20 tensors differ
            |Findings|warning · A|warning · B|Both checkpoints|Llama 3.1 8B|Reproduce""",
        )

    def test_equal_tensors_are_drawn_too(self) -> None:
        found = cells(page(comparison()))
        assert set(found) == {*names(2)} - {"model.norm.weight"}
        assert found[names(2)[3]] == "heat5"
        assert list(found.values()).count("zero") == 19

    def test_only_different_tensors_are_drawn_if_the_others_have_no_names(self) -> None:
        text = page(comparison(compared=70))
        assert cells(text) == {names(2)[3]: "heat5"}
        assert "1 of 70 tensors differ." in text

    def test_without_values(self) -> None:
        assert "<svg" not in page(comparison(values=(), compared=None))

    @pytest.mark.parametrize(
        ("more", "verdict"),
        [
            ({}, "SAME The headers match. Values were not compared: add --stats."),
            ({"compared": 21}, "SAME The headers and the values of 21 tensors match."),
            (
                {"findings": (Finding("A", "x"),)},
                "INCOMPLETE No difference found, but not everything could be compared.",
            ),
        ],
    )
    def test_the_same(self, more: dict[str, Any], verdict: str) -> None:
        nothing = dict.fromkeys(("config", "only_in_a", "shapes", "dtypes", "tokenizer", "values"), ())
        text = page(comparison(**{**nothing, "compared": None, **more}))
        assert verdict in words(text)
        assert ("identical" in text) == ("compared" in more)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("html") / "out"
    convert(FIXTURE, out)
    return out


class TestCommands:
    def test_a_verification(self, converted: Path) -> None:
        """Everything that a page shows is in the measures of a real run."""
        options = VerifyOptions(prompt="Once upon a time", max_new_tokens=3)
        result = verify(converted, FIXTURE, options)
        text = page(result, current_run(result, verify_command(result, options), options))
        assert headings(text) == [
            "Checks", "Key figures", *TITLES["weights"], *TITLES["logits"], *TITLES["values"], "Completions",
            "Limits", "Reproduce",
        ]  # fmt: skip
        assert "All 30 tensors are identical." in text
        folded = Elements(section(text, TITLES["logits"][1])).folded
        assert len(re.findall("same", folded)) == 64
        assert len(re.findall(r'"[^"]+" \(\d+\)', folded)) > 150
        assert f"SHA-256 of {converted / 'llama-convert.json'}" in text
        assert "✕" not in text

    def test_predictions_match_the_model(self, converted: Path) -> None:
        (logits,) = verify(converted, FIXTURE, VerifyOptions(checks=(Check.LOGITS,))).checks
        rows = logits.measures["predictions"]
        assert len(rows) == len(logits.measures["kl"]) == 64
        assert "".join(row["token_text"] for row in rows[1:9]).strip()
        agreeing = sum(row["source_top1"] == row["output_top1"] for row in rows)
        assert agreeing / 64 == logits.measures["top1_agreement"]

    def test_inspect(self, converted: Path, tmp_path: Path) -> None:
        file = tmp_path / "report.html"
        done = llama_convert("inspect", converted, "--stats", "--report", file, "--json")
        assert done.exit_code == 0
        assert done.json["ok"]
        text = file.read_text()
        assert f"<code>llama-convert inspect {converted} --stats</code>" in text
        assert len(cells(section(text, "Standard deviation by layer and kind"))) == 30
        assert (
            llama_convert("inspect", converted, "--report", file).exit_code == 0
        )  # a report may be replaced
        assert "<svg" not in file.read_text()

    def test_inspect_two(self, converted: Path, tmp_path: Path) -> None:
        file = tmp_path / "report.html"
        done = llama_convert("inspect", FIXTURE, converted, "--stats", "--report", file)
        assert done.exit_code == 0
        text = file.read_text()
        assert "<h1>Comparison report: llama3.1-mp2 vs out</h1>" in text
        assert list(cells(text).values()) == ["zero"] * 30
        other = ROOT / "fixtures/llama2-mp2"
        assert llama_convert("inspect", other, converted, "--report", file).exit_code == 1
        assert "DIFFERENT" in file.read_text()

    @pytest.mark.parametrize("command", ["inspect", "verify"])
    def test_no_other_file_is_replaced(self, command: str, converted: Path, tmp_path: Path) -> None:
        file = tmp_path / "mine.html"
        file.write_text("<!DOCTYPE html><title>mine</title>")
        done = llama_convert(command, tmp_path / "nothing", "--report", file, "--json")
        assert (done.exit_code, done.json["code"]) == (5, "OUTPUT_EXISTS")
        assert file.read_text() == "<!DOCTYPE html><title>mine</title>"
        done = llama_convert(command, converted, "--report", tmp_path / "no/x.html", "--json")
        assert (done.exit_code, done.json["code"]) == (2, "BAD_REPORT")

    def test_another_s_report_is_replaced(self, converted: Path, tmp_path: Path) -> None:
        """That of `verify` by that of `inspect`."""
        shutil.copy(converted / "config.json", tmp_path)
        file = tmp_path / "report.html"
        assert llama_convert("verify", converted, "--check", "structure", "--report", file).exit_code == 0
        assert llama_convert("inspect", converted, "--report", file).exit_code == 0
        assert "Inspection report" in file.read_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.693147, "0.693"), (1.25e-7, "1.25 × 10⁻⁷"), (1e-7, "10⁻⁷"), (9.999e-4, "10⁻³"),
        (123456.0, "123,456"), (2e9, "2 × 10⁹"), (-0.5, "-0.5"), (math.nan, "NaN"), (math.inf, "∞"),
        (-math.inf, "−∞"), (5e-324, "4.94 × 10⁻³²⁴"),
    ],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert format_number(value) == text


def test_percentages_and_times() -> None:
    assert [format_percent(part) for part in (1.0, 0.99999, 0.1234)] == ["100%", "99.99%", "12.34%"]
    assert [format_seconds(value) for value in (0.041, 12.34, 200.4)] == ["0.04 s", "12.3 s", "3 min 20 s"]
