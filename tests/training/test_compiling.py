"""Whether MLX compiles a training step."""

import mlx.core as mx

from mlx_deltamem.training.compiling import compiled_where_faster


def traces(times: int) -> int:
    """How often MLX calls a compiled function that it is given to call `times` times."""
    calls = []

    @mx.compile
    def doubled(x: mx.array) -> mx.array:
        calls.append(x)
        return x * 2

    for _ in range(times):
        mx.eval(doubled(mx.array([1.0, 2.0])))
    return len(calls)


def test_a_step_is_not_compiled_on_a_cpu(monkeypatch):
    monkeypatch.delenv("MLX_DISABLE_COMPILE", raising=False)
    with compiled_where_faster():
        within = traces(3)
    assert within == (1 if mx.default_device() == mx.gpu else 3)
    assert traces(3) == 1


def test_a_choice_of_the_user_stands(monkeypatch):
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")
    mx.disable_compile()
    try:
        with compiled_where_faster():
            assert traces(3) == 3
        assert traces(3) == 3
    finally:
        mx.enable_compile()
