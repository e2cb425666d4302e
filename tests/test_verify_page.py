"""The page that shows a verification: what is on it, what is not, and that it needs nothing else."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from datetime import datetime, timezone
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from llama_convert.findings import Finding
from llama_convert.verification.html_report import render_page
from llama_convert.verification.report import Check, CheckReport, FileIdentity, Status, VerifyReport

WHEN = datetime(2026, 11, 21, 7, 11, tzinfo=timezone.utc)
EVIL = "<script>alert('x')</script> & <b>"
VOID = {"meta", "link", "br"}

TITLES = {
    "values": ["Size of the values of each kind of tensor"],
    "weights": ["Relative difference of each tensor"],
    "logits": ["Difference of each layer", "KL divergence of the predictions"],
}
"""What the plots of each level are called."""
THRESHOLD = {
    "embedding": 0.0,
    "probe": 1e-4,
    "divergence": 1e-3,
    "max_kl": 1e-6,
    "max_head_difference": 0.02,
    "reason": "Half-way between right and wrong.",
}
KINDS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "input_layernorm")


def names(layers: int) -> list[str]:
    inside = [f"model.layers.{layer}.{kind}.weight" for layer in range(layers) for kind in KINDS]
    return ["model.embed_tokens.weight", *inside, "lm_head.weight"]


def tensors(layers: int, differences: dict[int, float] | None = None) -> list[dict[str, Any]]:
    return [
        {
            "tensor": name,
            "elements": 4096,
            "different": 12 if difference else 0,
            "max_difference": difference,
            "relative_difference": difference,
        }
        for index, name in enumerate(names(layers))
        for difference in [(differences or {}).get(index, 0.0)]
    ]


def compared(value: float = 1e-7, n_layers: int = 3, **of_the_last_layer: float) -> dict[str, Any]:
    """What two models that were run have of measures, every figure being ``value``."""
    same = {"divergence": value, "local": value, "probe": value}
    rows = [{"layer": layer, **same} for layer in range(n_layers)]
    rows[-1] |= of_the_last_layer
    single = ("embedding", "head", "max_head_difference", "max_kl", "mean_kl", "max_logit_difference")
    return {
        "layers": rows,
        **dict.fromkeys(single, value),
        "kl": [value] * 3,
        "positions": [0, 1, 2],
        "top1_agreement": 1.0,
        "threshold": THRESHOLD,
    }


def measures(value: float = 1e-7) -> dict[str, dict[str, Any]]:
    """What each level has of measures, every figure being ``value``."""
    return {
        "values": {"norms": [{"tensor": name, "rms": value} for name in names(2)]},
        "weights": {"tensors": tensors(2, {3: value})},
        "logits": compared(value),
    }


def level(name: str = "logits", status: Status = Status.PASS, **more: Any) -> CheckReport:
    return CheckReport(Check(name), status, **{"summary": "as it should be", **more})


def report(*levels: CheckReport, **more: Any) -> VerifyReport:
    return VerifyReport(
        **{
            "path": Path("out"),
            "format": "huggingface",
            "source": Path("in"),
            "source_format": "meta",
            "release": "Llama 3.1 8B",
            "checks": list(levels),
            **more,
        }
    )


@pytest.fixture
def page() -> Any:
    """Renders a report's page."""
    return lambda of: render_page(of, when=WHEN).decode()


class Elements(HTMLParser):
    """Every element of a page, having seen that each was closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
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


def words(text: str) -> str:
    """What a reader of the page sees, style sheet and all, on one line."""
    return " ".join(Elements(text).text.split())


def everything(value: float = 1e-7) -> VerifyReport:
    """A report with all that a page can show."""
    given = measures(value)
    speech = {"bits_per_byte": value, "perplexity": value, "limit": 1.5}
    fault = Finding("CODE", "a message", "file.safetensors", "a.tensor", "this", "that", "do something")
    return report(
        level("structure"),
        level("values", measures=given["values"]),
        level("weights", Status.FAIL, measures=given["weights"], findings=[fault]),
        level("tokenizer", Status.SKIPPED),
        level("logits", measures={**given["logits"], **speech}),
        files=[FileIdentity("tokenizer.json", 9_085_657, "official", "as published", "sha256", "79e3")],
        completions={"source": "Once upon", "output": "a time"},
    )


@pytest.mark.parametrize("value", [1e-7, 0.0, 1.0, 1e300, 5e-324, math.nan, math.inf])
def test_it_needs_nothing_else_and_is_well_formed(page: Any, value: float) -> None:
    text = page(everything(value))
    elements = Elements(text)
    assert not re.search(r"https?://|<script|@import|url\((?!#)", text)
    assert {tag for tag, attributes in elements.seen if "src" in attributes} == set()
    assert all(str(a["href"]) == "data:," for tag, a in elements.seen if tag == "link")
    ids = [attributes["id"] for _, attributes in elements.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)
    assert {left or right for left, right in references} <= set(ids)
    assert not re.search(r"#00000\d", text)  # every colour is one that the style sheet knows


def test_it_can_be_read_aloud(page: Any) -> None:
    elements = Elements(page(everything()))
    pictures = [attributes for tag, attributes in elements.seen if tag == "svg"]
    assert len(pictures) == 2 * sum(map(len, TITLES.values()))
    assert all(picture["role"] == "img" and picture["aria-label"] for picture in pictures)
    assert all(attributes.get("scope") for tag, attributes in elements.seen if tag == "th")


def test_all_of_a_report_is_on_it(page: Any) -> None:
    seen = words(page(everything()))
    order = """FAIL|1 of 5 levels failed: weights. Not looked at: tokenizer.|Verified (huggingface layout)|out
        |Against (meta layout)|in|Llama 3.1 8B|2026-11-21 07:11 UTC|llama-convert 0.|Levels|structure|✓ pass
        |values|weights|✕ fail|tokenizer|– not run|logits|Findings|error|CODE|a message|file.safetensors
        |a.tensor|this|that|do something|Measures|100 %|largest logit difference, LM head alone|10⁻⁷
        |Recognised files|tokenizer.json|✓ official|as published|79e3|9.1 MB|What it says|source|Once upon
        |output|a time|Thresholds|Of logits|a layer or the LM head alone|10⁻⁴|10⁻⁷
        |largest logit difference, LM head alone|0.02|10⁻⁷|bits per byte|1.5|10⁻⁷
        |Half-way between right and wrong."""
    position = seen.index("Verification")
    for word in re.split(r"\s*\|", order):
        position = seen.index(word, position) + len(word)


@pytest.mark.parametrize(
    ("levels", "verdict"),
    [
        ([level("structure"), level("weights")], "PASS Nothing is wrong with structure and weights."),
        (
            [level(findings=[Finding("A", "hm", severity="warning")])],
            "PASS Nothing is wrong with logits. 1 warning.",
        ),
        (
            [level("structure"), level("weights", Status.SKIPPED), level("logits", Status.SKIPPED)],
            "PASS Nothing is wrong with structure. Not looked at: weights and logits.",
        ),
        ([level("structure", Status.SKIPPED)], "incomplete Nothing was looked at."),
        ([], "incomplete Nothing was looked at."),
        ([level("structure", Status.FAIL)], "FAIL 1 of 1 levels failed: structure."),
    ],
)
def test_the_verdict(page: Any, levels: list[CheckReport], verdict: str) -> None:
    text = page(report(*levels))
    assert f"Verification {verdict}" in words(text)
    assert f"<title>{verdict.split()[0]} · out</title>" in text


def test_errors_come_before_warnings(page: Any) -> None:
    findings = [
        [Finding("A", "first warning", severity="warning"), Finding("B", "first error")],
        [Finding("C", "second error"), Finding("D", "second warning", severity="warning")],
    ]
    text = page(report(level("structure", findings=findings[0]), level("weights", findings=findings[1])))
    assert re.findall("(?:first|second) (?:error|warning)", text) == [
        "first error",
        "second error",
        "first warning",
        "second warning",
    ]


@pytest.mark.parametrize("name", TITLES)
def test_a_plot_is_there_if_and_only_if_its_measures_are(page: Any, name: str) -> None:
    text = page(report(level(name, measures=measures()[name])))
    assert re.findall("<figure.*?<h3>(.*?)</h3>", text, re.DOTALL) == TITLES[name]


@pytest.mark.parametrize(
    "empty",
    [
        {},
        {"tensors": [], "layers": [], "kl": [], "norms": []},
        {"tokens": 128_256, "files": 4, "dtype": "bfloat16"},
    ],
)
def test_measures_that_are_not_there_leave_no_trace(page: Any, empty: dict[str, Any]) -> None:
    text = page(report(*(level(name.value, measures=empty) for name in Check)))
    assert "<svg" not in text
    assert "Measures" not in text
    assert "Thresholds" not in text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_said(page: Any, value: float) -> None:
    text = page(everything(value))
    for title in itertools.chain(*TITLES.values()):
        assert f'aria-label="{title}. ' in text
        assert re.search(rf'aria-label="{title}\. [^"]*NaN or infinite: \d+', text)
    assert text.count(">NaN, ∞</text>") >= 8


def test_the_differing_tensors_are_counted_and_the_worst_named(page: Any) -> None:
    differences = {1: 1e-3, 2: 2e-3, 3: math.nan, 5: 1e-9, 6: 0.5, 7: 1e-5, 8: 1e-8}
    text = page(report(level("weights", Status.FAIL, measures={"tensors": tensors(2, differences)})))
    assert "7 of 10 tensors differ. NaN or infinite: 1" in text
    worst = re.findall(r"<li><code>(.*?)</code>", text)
    assert worst == [names(2)[index] for index in (3, 6, 2, 1, 7)]
    assert "relative difference 0.5; largest 0.5; 12 of 4,096 values differ" in text
    assert all(f'">{number}</text>' in text for number in range(1, 6))


def test_identical_tensors_are_said_to_be(page: Any) -> None:
    assert "All 10 tensors are identical." in page(report(level("weights", measures={"tensors": tensors(2)})))


@pytest.mark.parametrize("count", [1, 299])
def test_any_number_of_tensors_fits(page: Any, count: int) -> None:
    differences = {index: 10 ** -(2 + index % 5) for index in range(1200)}
    norms = [{"tensor": name, "rms": 0.02} for name in names(count)]
    values = level("values", measures={"norms": norms})
    text = page(report(values, level("weights", measures={"tensors": tensors(count, differences)})))
    assert len(text.encode()) < 2_000_000
    assert f"{4 * count + 2:,} of {4 * count + 2:,} tensors differ." in text


@pytest.mark.parametrize("name", ["local", "probe"])
def test_the_first_layer_above_its_limit_is_marked(page: Any, name: str) -> None:
    wrong = page(report(level(measures=compared(1e-7, 38, **{name: 0.03}))))
    assert "Layer 37 is the first above its limit." in wrong
    assert wrong.count(">layer 37</text>") == 2
    assert re.search(r"a layer or the LM head alone</th>.*10⁻⁴</td>.*0.03</td>", wrong)


def test_rounding_that_is_amplified_is_no_layer_s_fault(page: Any) -> None:
    text = page(report(level(measures=compared(1e-7, 80, divergence=0.03))))
    assert "No layer is above its limit." in text
    assert re.search(r"the layers together</th>.*10⁻³</td>.*0.03</td>", text)


def test_the_lm_head_is_held_against_the_limit_of_a_layer(page: Any) -> None:
    text = page(report(level(measures={**compared(), "head": math.nan})))
    assert re.search(r"a layer or the LM head alone</th>.*10⁻⁴</td>.*NaN</td>", text)


@pytest.mark.parametrize("name", ["divergence", "local", "probe"])
def test_each_measure_of_the_layers_is_a_line_with_a_name(page: Any, name: str) -> None:
    assert page(report(level(measures=compared()))).count(f">{name}</text>") >= 2


@pytest.mark.parametrize(("agreement", "said"), [(1.0, "100 %"), (0.9999999, "99.99 %"), (0.5, "50 %")])
def test_only_full_agreement_is_100_percent(page: Any, agreement: float, said: str) -> None:
    assert f"<dd>{said}</dd>" in page(report(level(measures={"top1_agreement": agreement})))


def test_texts_are_escaped_wherever_they_come_from(page: Any) -> None:
    finding = Finding(*(f"{EVIL}{field}" for field in range(7)))
    evil = report(
        level(
            summary=EVIL,
            findings=[finding],
            measures={"threshold": {EVIL: 1.0, "reason": EVIL}, EVIL: 1.0},
        ),
        level("values", measures={"norms": [{"tensor": name, "rms": 1.0} for name in (EVIL, "$x^2$ & y")]}),
        level("weights", measures={"tensors": [{**tensors(1, {0: 1.0})[0], "tensor": EVIL}]}),
        path=Path(EVIL),
        source=Path(EVIL),
        format=EVIL,
        source_format=EVIL,
        release=EVIL,
        files=[FileIdentity(EVIL, 1, EVIL, EVIL, EVIL, EVIL)],
        completions={EVIL: EVIL},
    )
    text = page(evil)
    assert not re.search(r"<script|<b>|& ", text)
    assert unescape(text).count("<script>alert('x')</script>") >= 20
    assert "$x^2$ &amp; y</text>" in text


def test_words_of_all_languages_come_through(page: Any, tmp_path: Path) -> None:
    said = "你好,世界 👋\n  مرحبا بالعالم\n\nПривет"
    text = page(report(level(), completions={"output": said}, path=Path("caf\udce9")))
    assert f'<blockquote dir="auto">{said}</blockquote>' in text
    assert r"caf\udce9" in text


def test_the_same_report_gives_the_same_page(page: Any) -> None:
    import matplotlib

    first = page(everything())
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "svg.fonttype": "path"}):
        assert page(everything()) == first
        assert matplotlib.rcParams["lines.linewidth"] == 9


def test_matplotlib_is_there_only_while_a_page_is_written() -> None:
    program = """
import sys
from pathlib import Path
import llama_convert.cli.verify, llama_convert.verification.verify
assert not {"matplotlib", "llama_convert.verification.html_report"} & set(sys.modules)
from llama_convert.verification.html_report import render_page
from llama_convert.verification.report import *
level = CheckReport(Check.LOGITS, Status.PASS, "", measures={"bits_per_byte": 0.7, "limit": 1.5})
page = render_page(VerifyReport(Path("out"), "meta", None, None, None, [level]))
assert b"no source" in page
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_levels_may_count_what_others_list(page: Any) -> None:
    text = page(report(level("structure", measures={"tensors": 291}), level("tokenizer", measures={"kl": 3})))
    assert "<svg" not in text
