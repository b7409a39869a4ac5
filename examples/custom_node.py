"""A node type and a tool of one's own, in a graph written in Python. Run it: no model is needed.

    .venv/bin/python examples/custom_node.py "hello there"

A package makes its types known to the commands, too, with an entry point of group `tinyllm.nodes` for each, called like
the type: `acme.echo = "acme.nodes:EchoNode"`.
"""

from __future__ import annotations

import asyncio
import sys

from tinyllm import (
    BaseNode,
    ExecutionContext,
    Executor,
    GraphBuilder,
    Message,
    NodeConfig,
    NodeResult,
    TaskPayload,
    node_type,
    tool,
)


class EchoConfig(NodeConfig):
    """An echo repeats its content `times` times."""

    times: int = 2


@node_type("echo", config=EchoConfig)
class EchoNode(BaseNode):
    """Puts out the content it received, several times over."""

    async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
        config = self.config_as(EchoConfig)
        text = " ".join([message.payload.content or ""] * config.times)
        output = context.child_of(message, message.payload.replace(content=text))
        return NodeResult(success=True, output_messages=[output])


@tool
def vowels(text: str) -> dict[str, int]:
    """How often each vowel occurs in a text."""
    return {vowel: text.count(vowel) for vowel in "aeiou"}


async def main(question: str) -> None:
    graph = (
        GraphBuilder("echoes")
        .entry("start")
        .node("echo", "echo", times=3)
        .tool("count", "vowels", input_mapping={"text": "content"})
        .exit("end")
        .chain("start", "echo", "count", "end")
        .build()
    )
    executor = Executor(graph, tools=[vowels])
    async for event in executor.stream(TaskPayload(content=question), run_id="example"):
        print(f"{event.at_ms:8.3f} ms  {event.kind}  {event.node_id or ''}")
    result = await executor.execute(TaskPayload(content=question))
    print(result.status, result.structured)


if __name__ == "__main__":
    asyncio.run(main(" ".join(sys.argv[1:]) or "hello"))
