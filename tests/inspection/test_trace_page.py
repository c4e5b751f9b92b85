"""The page of a trace: its numbers are those of the trace, and no text of a file becomes markup."""

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from mlx_deltamem import load
from mlx_deltamem.inspection.trace import trace_text
from mlx_deltamem.inspection.trace_page import trace_page
from tests.command_line import assert_refused, run_command
from tests.conftest import adapter, backbone

EVIL = '</script><script>alert(1)</script> "quoted" \\ \u2028 \u202e <!--'


@pytest.fixture(scope="module")
def trace():
    model, tokenizer = load(backbone(), adapter=adapter())
    return trace_text(model, tokenizer, "The key hangs behind the clock.", lambda done, total: None)


def data_of(page: str) -> dict:
    (text,) = re.findall(r"JSON\.parse\((\".*\")\);$", page, re.MULTILINE)
    return json.loads(json.loads(text))


def test_the_numbers_are_those_of_the_trace(trace):
    data = data_of(trace_page(trace, "A note"))
    assert data["title"] == "A note"
    assert "".join(token["text"] for token in data["tokens"]) == "".join(trace.texts)
    assert data["layers"] == trace.layers
    for name, gates in (("write", trace.write), ("keep", trace.keep)):
        low, high = data[f"{name}Range"]
        steps = np.frombuffer(base64.b64decode(data[name]), "<u2").reshape(gates.shape)
        # Half a step of 65,535 between the smallest and the largest gate, and float32.
        assert np.abs(low + steps / 65535 * (high - low) - gates).max() <= (high - low) / 65535 / 2 + 1e-6
    assert np.allclose(data["norms"], trace.norms.mean(axis=0), rtol=1e-6)


def test_no_text_becomes_markup(trace):
    evil = replace(trace, texts=[EVIL] * len(trace.texts))
    page = trace_page(evil, EVIL)
    assert page.count("<script") == page.count("</script>") == 1
    assert "\u202e" not in page and "\u2028" not in page
    assert data_of(page)["tokens"][0]["text"] == EVIL.replace("\u2028", "\\u2028").replace("\u202e", "\\u202e")
    plain = trace_page(trace, "x")
    assert not re.search(r"(src|href)=|https?://|@import|url\(", plain)


def test_numbers_that_are_not_finite_are_drawn_as_others(trace):
    write = trace.write.copy()
    write[0, 0], write[0, 1] = np.nan, np.inf
    norms = np.full_like(trace.norms, np.nan)
    assert set(data_of(trace_page(replace(trace, write=write, norms=norms), "x"))["norms"]) == {0.0}


@pytest.mark.slow
def test_the_command_writes_a_page(tmp_path):
    (tmp_path / "note.txt").write_text("The key hangs behind the clock.")
    places = (adapter(), "--model", backbone(), "--plot", tmp_path / "note.html")
    result = run_command("inspect", *places, "--text", tmp_path / "note.txt")
    assert result.returncode == 0, result.stderr
    assert "reading note.txt" in data_of((tmp_path / "note.html").read_text(encoding="utf-8"))["title"]
    assert_refused(run_command("inspect", *places), "does not end in .png, .pdf, .svg")
