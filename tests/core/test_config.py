import json
from dataclasses import fields

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_deltamem import DeltaMemConfig
from mlx_deltamem.core.config import OWN_FIELDS
from mlx_deltamem.options.rule import shown
from tests.conftest import GOLDENS

FOLDERS = sorted((GOLDENS / "adapters").iterdir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_file_of_the_reference_is_read_and_written_with_the_same_fields(folder):
    path = folder / "delta_mem_config.json"
    config = DeltaMemConfig.load(path)
    theirs = json.loads(path.read_text())
    ours = json.loads(config.to_json())
    assert ours.items() <= theirs.items()
    assert ours.keys() == {field.name for field in fields(DeltaMemConfig)} - set(OWN_FIELDS)
    assert DeltaMemConfig.from_dict(ours) == config


def test_missing_fields_take_the_references_defaults():
    config = DeltaMemConfig.from_dict({})
    assert (config.rank, config.alpha, config.beta_bias_init, config.online_gain) == (8, 16.0, -1.5, 0.05)
    assert config.delta_heads == ("q", "k", "v", "o")
    assert config.target_modules == ("self_attn",)
    assert config == DeltaMemConfig()


@pytest.mark.parametrize("none", ["none", [], (), "", ["none"]])
def test_heads_may_be_none(none):
    assert DeltaMemConfig(delta_heads=none).delta_heads == ()


def test_heads_are_in_one_order():
    assert DeltaMemConfig(delta_heads=["o", "q"]) == DeltaMemConfig(delta_heads=("q", "o"))


def test_inert_fields_are_dropped():
    assert DeltaMemConfig.from_dict({"latent_memory_slots": 9, "memory_reader_read_only": False}) == DeltaMemConfig()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("rank", 0, "a whole number from 1 to 1,024"),
        ("rank", 1025, "a whole number from 1 to 1,024"),
        ("num_state_heads", 1_000_000, "a whole number from 1 to 1,024"),
        ("rank", "8", "a whole number from 1 to 1,024"),
        ("rank", True, "a whole number from 1 to 1,024"),
        ("rank", 8.0, "a whole number from 1 to 1,024"),
        ("base_slice_ref_width", 0, "a whole number from 1 to 2**31 - 1"),
        ("alpha", float("nan"), "a number from -3.4e+38 to 3.4e+38"),
        ("alpha", "16", "a number from -3.4e+38 to 3.4e+38"),
        ("normalize_qk", 1, "true or false"),
        ("state_update_mode", "fancy", "standard or lambda_outside or no_lambda"),
        ("output_init", None, "zero or random or base_slice or base_slice_fixed"),
        ("memory_write_granularity", "word", "token or message_mean or sentence_mean"),
        ("target_modules", [], "one or more different values, each the name of a module without dots"),
        ("target_modules", "self_attn", "the name of a module without dots"),
        ("target_modules", ["model.self_attn"], "the name of a module without dots"),
        ("target_layers", [1, 1], "any number of different values, each a whole number from 0 to 2**31 - 1"),
        ("target_layers", [-1], "any number of different values, each a whole number from 0 to 2**31 - 1"),
        ("target_layers", [[0]], "any number of different values, each a whole number from 0 to 2**31 - 1"),
        ("delta_heads", ["q", "x"], "q or k or v or o"),
        ("delta_heads", "qo", "q or k or v or o"),
        ("delta_heads", 3, "q or k or v or o"),
        ("delta_o_rmsnorm_eps", 0, "a number above 0, at most 3.4e+38"),
        ("delta_scale_granularity", "token", "layer or head"),
        ("delta_scale_parameterization", "rank_over_alpha", "alpha_over_rank"),
        ("delta_scale_init", 2.0, "below delta_scale_max"),
        ("num_memory_partitions", 2, "only 1"),
        ("num_memory_partitions", True, "only 1"),
        ("latent_memory_layers", [1], "only []"),
        ("tie_memory_partition_read_write", 0, "only False"),
        ("alpha", 1e39, "a number from -3.4e+38 to 3.4e+38"),
        ("alpha", 10**400, "a number from -3.4e+38 to 3.4e+38"),
        ("target_modules", ["self_attn", "self_attn"], "different values"),
        ("rnak", 8, "a δ-mem config has no field of this name"),
    ],
)
def test_an_error_names_the_value_and_the_allowed_values(name, value, allowed):
    with pytest.raises(ValueError, match="δ-mem config") as error:
        DeltaMemConfig.from_dict({name: value})
    message = str(error.value)
    assert f"{name} is {shown(value)}" in message
    assert allowed in message
    assert "\n" not in message


def test_all_bad_fields_are_named_at_once():
    with pytest.raises(ValueError, match="δ-mem config") as error:
        DeltaMemConfig.from_dict({"rank": -1, "alpha": None, "colour": "red", "slot_read_top_k": 4})
    assert all(name in str(error.value) for name in ("rank", "alpha", "colour", "slot_read_top_k"))


@pytest.mark.parametrize("text", ["", "[1]", "{", '"x"', "null", "\x00", "[" * 100_000, '{"rank": 1e999}'])
def test_a_file_without_a_config_is_refused(tmp_path, text):
    path = tmp_path / "delta_mem_config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"delta_mem_config\.json"):
        DeltaMemConfig.load(path)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "c.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not UTF-8"):
        DeltaMemConfig.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        DeltaMemConfig.load(tmp_path / "nothing.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def test_a_field_that_the_reference_lacks_is_written_only_if_it_is_true():
    assert "read_gate" not in json.loads(DeltaMemConfig().to_json())
    gated = DeltaMemConfig(read_gate=True)
    assert json.loads(gated.to_json())["read_gate"] is True
    assert DeltaMemConfig.from_dict(json.loads(gated.to_json())) == gated


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([field.name for field in fields(DeltaMemConfig)]), json_values, max_size=6))
def test_any_values_give_a_config_or_a_value_error(values):
    try:
        config = DeltaMemConfig.from_dict(values)
    except ValueError:
        return
    assert DeltaMemConfig.from_dict(json.loads(config.to_json())) == config
