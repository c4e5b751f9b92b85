"""Special tokens in replies that clients send back."""

import pytest

from mlx_deltamem.serving.exchange import Sampling


@pytest.mark.parametrize("memory", ["anna", None])
def test_a_reply_with_a_special_token_is_known_when_it_comes_back(running, memory):
    server = running()
    token = server.engine.tokenizer.encode("<|im_start|>", add_special_tokens=False)
    assert len(token) == 1
    sampling = Sampling(logit_bias={token[0]: 100.0})
    reply, _ = server.ask("My word is jade.", memory=memory, max_tokens=2, sampling=sampling)
    assert reply == "<|im_start|>" * 2
    _, done = server.ask("My word is jade.", reply, "What is it?", memory=memory)
    assert done.revision == 2 and 0 < done.read_tokens < done.prompt_tokens
