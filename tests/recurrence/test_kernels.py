"""The fused kernels without a GPU: run on the host, compiled for CUDA, and as the text that MLX gives to Metal."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_deltamem.recurrence.definition import delta_scan_reference
from mlx_deltamem.recurrence.fused import FusedEngine
from mlx_deltamem.recurrence.kernels import build
from mlx_deltamem.recurrence.kernels.build import Kernel
from mlx_deltamem.recurrence.kernels.history import history_scan
from mlx_deltamem.recurrence.ops import OpsEngine
from mlx_deltamem.recurrence.scan import delta_scan
from mlx_deltamem.recurrence.variant import Variant
from tests.conftest import distance
from tests.gpu_text import Use, cuda_text, metal_text
from tests.recurrence import nvrtc
from tests.recurrence.host_kernels import SANITIZE, needs_compiler
from tests.recurrence.kernel_cases import CASES, STANDARD, Case, by_definition, make_arrays, tolerance, with_garbage


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("kernels_on_host")
def test_the_fused_engine_is_the_recurrence(case):
    for length in case.lengths:
        projected, bias, state, mask = make_arrays(case, length)
        reads, new_state, constant = by_definition(case, projected, bias, state, mask)
        engine, raw = FusedEngine(case.variant), with_garbage(projected, mask)
        found, found_state = engine.scan(raw, bias, state, mask)
        assert found.dtype == case.dtype and found_state.dtype == mx.float32
        assert distance(found, reads) <= tolerance(case.dtype, reads)
        assert distance(found_state, new_state) <= tolerance(mx.float32, new_state)
        found = engine.read(raw, state, mask)
        assert distance(found, constant) <= tolerance(case.dtype, constant)
        if mask is not None:
            assert not mx.where(mask[..., None], 0, found).any()


@needs_compiler
@pytest.mark.usefixtures("kernels_on_host")
def test_queries_and_keys_of_zero_are_not_divided_by_zero():
    engine = FusedEngine(STANDARD)
    reads, state = engine.scan(mx.zeros((1, 3, 32)), mx.zeros(8), mx.ones((1, 1, 8, 8)))
    assert not reads.any()
    assert distance(state, mx.full((1, 1, 8, 8), 0.125)) <= 1e-6


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("size", [1e-7, 5e-7, 1.5e-6, 5e-6])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.usefixtures("kernels_on_host")
def test_vectors_are_divided_by_their_norm_or_by_the_floor(size, length):
    direction = np.array([3.0, 4.0, 0, 0, 0, 0, 0, 0], np.float32) / 5
    unit = direction * np.float32(min(1.0, size / 1e-6))
    values = np.arange(8, dtype=np.float32)
    token = np.concatenate([direction * size, direction * size, values, np.zeros(8, np.float32)])
    state = np.full((8, 8), 0.5, np.float32)
    projected = mx.array(np.broadcast_to(token, (1, length, 32)))
    expected, reads = state, []
    for _ in range(length):
        reads.append(expected @ unit)
        expected = 0.5 * expected + np.outer(0.5 * (values - expected @ unit), unit)
    for engine in (FusedEngine(STANDARD), OpsEngine(STANDARD)):
        found, new_state = engine.scan(projected, mx.zeros(8), mx.array(state)[None, None])
        assert distance(found[0], mx.array(np.stack(reads))) <= 1e-5
        assert distance(new_state[0, 0], mx.array(expected)) <= 1e-5


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("rank", [1, 8, 64])
@pytest.mark.usefixtures("kernels_on_host")
def test_the_history_scan_is_the_recurrence(rank):
    state = mx.random.normal((2, 3, rank, rank))
    queries, keys, written, keep, erase = (mx.random.normal((2, 20, 3, rank)) * 0.3 for _ in range(5))
    reads, end, history = history_scan(state, queries, keys, written, keep, erase)
    tokens = (queries, keys, written, keep, erase, mx.ones_like(written))
    expected, expected_end = delta_scan_reference(state, *tokens)
    assert distance(reads, expected) <= 1e-5 * max(1, mx.abs(expected).max().item())
    assert distance(end, expected_end) <= 1e-5 * max(1, mx.abs(expected_end).max().item())
    _, middle = delta_scan_reference(state, *(x[:, :7] for x in tokens))
    assert distance(history[:, 7], middle) <= 1e-5 * max(1, mx.abs(middle).max().item())
    fused, _ = delta_scan(state, *tokens)
    assert mx.array_equal(fused, reads)


@pytest.fixture
def uses(monkeypatch: pytest.MonkeyPatch) -> list[Use]:
    """Record the uses of kernels instead of running them."""
    noted: list[Use] = []

    def note(kernel: Kernel, _: str) -> Callable[..., list[mx.array]]:
        def run(inputs, template, grid, output_shapes, output_dtypes, **_):
            outputs = tuple(zip(output_shapes, output_dtypes, strict=True))
            noted.append(Use(kernel, tuple((x.shape, x.dtype) for x in inputs), template, outputs, grid[0]))
            return [mx.zeros(shape, dtype) for shape, dtype in outputs]

        return run

    monkeypatch.setattr(build, "launch", note)
    return noted


def use_all(case: Case) -> None:
    """Use every kernel of the engine for a case."""
    for length in (1, 100):
        projected, bias, state, mask = make_arrays(case, length)
        FusedEngine(case.variant).scan(projected, bias, state, mask)
        FusedEngine(case.variant).read(projected, state, mask)


def use_history() -> None:
    """Use the kernels of training."""
    state, tokens = mx.zeros((1, 2, 4, 4)), [mx.zeros((1, 3, 2, 4))] * 5
    mx.vjp(lambda *arrays: history_scan(*arrays)[:2], [state, *tokens], [tokens[0], state])


FEW_CASES = [
    Case(STANDARD, mx.bfloat16),
    Case(Variant(64, 1, False, True, True, "lambda_outside"), mx.float16),
    Case(Variant(2, 3, True, False, False, "no_lambda"), masked=True),
]


# Tests that run every kernel.
_SANITIZED = "bfloat16-mask or (history_scan_is_the_recurrence and 8)"


@needs_compiler
@pytest.mark.slow
def test_memory_and_arithmetic_are_sound():
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip("g++ is here without its sanitizers")
    # The libraries must be loaded at the start of a process. Python itself leaks some memory.
    settings = {SANITIZE: "1", "LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, "-m", "pytest", "-qs", "-p", "no:cacheprovider", "-k", _SANITIZED, __file__]
    result = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.skipif(nvrtc.missing() is not None, reason=f"needs the PyPI package {nvrtc.missing()}")
def test_cuda_compiles_them(uses):
    use_all(FEW_CASES[0])
    use_history()
    for case in FEW_CASES[1:]:
        FusedEngine(case.variant).scan(*make_arrays(case, 1))
    # The result does not depend on the number of tokens and rows.
    for use in {cuda_text(use)[0]: use for use in uses}.values():
        name, text = cuda_text(use)
        assert f".entry _ZN3mlx4core2cu{len(name.rpartition('::')[2])}" in nvrtc.to_ptx(text, name)


@pytest.mark.slow
@pytest.mark.skipif(nvrtc.missing() is not None, reason=f"needs the PyPI package {nvrtc.missing()}")
def test_cuda_reports_an_error_in_a_kernel(uses):
    use_all(FEW_CASES[0])
    name, text = cuda_text(uses[0])
    with pytest.raises(ValueError, match=r"kernel\.cu.*error.*nothing_of_this_name"):
        nvrtc.to_ptx(text.replace("float current[RANK];", "float current[nothing_of_this_name];"), name)


def test_the_text_for_metal_is_what_mlx_writes(uses, tmp_path, capfd):
    for case in FEW_CASES:
        use_all(case)
    use_history()
    for number, use in enumerate(dict.fromkeys(uses)):
        assert mlx_text(use, tmp_path / f"{number}.mlxfn", capfd) == metal_text(use)[1]


def mlx_text(use: Use, path, capfd) -> str:
    """The text that MLX writes for Metal. Without a GPU, MLX writes it when it exports a function."""

    def function(x: mx.array) -> mx.array:
        launch = mx.fast.metal_kernel(
            name=use.kernel.name,
            input_names=use.kernel.inputs,
            output_names=use.kernel.outputs,
            source=use.kernel.body,
            header=use.kernel.header,
        )
        return launch(
            inputs=[mx.zeros(shape, dtype) for shape, dtype in use.inputs],
            template=use.template,
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
            output_shapes=[shape for shape, _ in use.outputs],
            output_dtypes=[dtype for _, dtype in use.outputs],
            verbose=True,
        )[0]

    try:
        mx.export_function(str(path), function, mx.zeros(1))
    except RuntimeError as error:
        pytest.skip(f"this MLX does not write kernels without a GPU: {error}")
    return re.search(r"```\n(.*)```", capfd.readouterr().out, re.DOTALL)[1].removesuffix("\n")


@pytest.mark.parametrize("file", ["tokens", "starts", "history"])
def test_the_sources_keep_to_what_metal_and_cuda_share(file):
    body = re.sub(r"//.*", "", Kernel(file, (), ()).body)
    # MLX gives Metal the argument only if the source names it.
    assert "thread_position_in_grid" in body
    # In Metal, pointers to locals and helpers with pointers need address spaces; it has no lambdas and no doubles.
    for missing in (
        r"\bdouble\b",
        r"\bauto\b",
        r"(?<!&)&(?!&)",
        r"\b(float|int|unsigned|size_t|char)\s*\*",
        r"\[[&=]\]",
    ):
        assert not re.search(missing, body), missing
    assert not re.search(r"\d\.\d*(?![\df])", body)
    # MLX adds arguments for words in the source that begin with the name of an input.
    assert set(re.findall(r"\w+_(?:strides|ndim)\b", body)) == set()


def test_a_kernel_is_named_after_its_whole_text():
    one = Kernel("tokens", (), (), (("DELTA_TASK", 0),))
    assert one.name == Kernel("tokens", (), (), (("DELTA_TASK", 0),)).name
    assert one.name != Kernel("tokens", (), (), (("DELTA_TASK", 1),)).name
    assert one.name != Kernel("starts", (), (), (("DELTA_TASK", 0),)).name


def test_the_dtype_is_in_the_template(uses):
    names = set()
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        use_all(Case(STANDARD, dtype))
        names |= {cuda_text(use)[0] for use in uses if use.kernel.file == "tokens"}
        uses.clear()
    assert len(names) == 3 * 4
