"""A program of your own in the simulated world: `pytest examples/apps/test_ask.py` in an environment with TinyLLM.

`ask` tries three times, and takes nothing from the model on trust. See docs/world.md.
"""

import asyncio

import httpx
import pytest
from hypothesis import given

from tinyllm.testing import OllamaServer
from tinyllm_strategies import worlds

COLOURS = {"blue", "grey"}


async def ask(question: str) -> str:
    """The model's answer if it is a colour; "unknown" after three tries without one."""
    for number in range(3):
        try:
            async with asyncio.timeout(10), httpx.AsyncClient() as client:
                body = {"model": "m", "prompt": question, "stream": False}
                answer = await client.post("http://llm:11434/api/generate", json=body)
                colour = answer.raise_for_status().json()["response"]
        except (TimeoutError, httpx.HTTPError, ValueError, LookupError, TypeError):
            await asyncio.sleep(2**number)
        else:
            if colour in COLOURS:
                return str(colour)
    return "unknown"


@pytest.mark.simulated
async def test_a_model_that_answers_is_believed(world):
    world.host("llm", OllamaServer(answers=["blue"]))

    assert await ask("What colour is the sky?") == "blue"
    assert world.now_ms == 0


@pytest.mark.simulated
@given(world=worlds(hosts=["llm"]))
async def test_whatever_goes_wrong_there_is_an_answer_in_the_end(world):
    world.host("llm", OllamaServer(drawn=["blue", "grey"]))

    assert await ask("What colour is the sky?") in {*COLOURS, "unknown"}
