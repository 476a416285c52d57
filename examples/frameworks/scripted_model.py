"""A stand-in for a language model: a local server that speaks the protocols of OpenAI and Anthropic.

It follows a script instead of thinking, so that agents can be run without a key, without a network and with
the same outcome every time. It speaks ``/v1/chat/completions``, ``/v1/responses`` and ``/v1/messages``,
streamed (in one piece) or not.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Say:
    """The model says something."""

    text: str


@dataclass(frozen=True)
class Call:
    """The model calls the tool whose name ends with `tool`; clients put prefixes before names."""

    tool: str
    arguments: dict[str, Any]


Turn = Say | Call


@dataclass
class Conversation:
    """What a request says: the tools that there are, and everything but the model's own words, as text.

    turn: how often the model has spoken. heard: what came since it first did, tools' results above all.
    namespaces: of tools that are in one.
    """

    tools: list[str]
    task: str
    turn: int
    heard: list[str]
    namespaces: dict[str, str] = field(default_factory=dict)

    def tool(self, ending: str) -> str | None:
        """The name of the tool that ends like this."""
        return next((name for name in self.tools if name.endswith(ending)), None)


Script = Callable[[Conversation], Turn]


@dataclass
class Model:
    """Where the server is, and the requests that it got."""

    url: str
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """Variables by which the clients of OpenAI and Anthropic find it."""
        return {
            "OPENAI_BASE_URL": f"{self.url}/v1",
            "OPENAI_API_KEY": "not-needed",
            "ANTHROPIC_BASE_URL": self.url,
            "ANTHROPIC_API_KEY": "not-needed",
            "MODEL": "scripted",
        }


@contextmanager
def serve(script: Script) -> Iterator[Model]:
    """Serve on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            path = self.path.partition("?")[0]
            protocol = _PROTOCOLS.get(path)
            if protocol is None:
                self._send("application/json", json.dumps({"input_tokens": 1}), 404)
                return
            model.requests.append((path, body))
            understand, answer = protocol
            conversation = understand(body)
            self._send(*answer(script(conversation), conversation, bool(body.get("stream"))))

        def _send(self, kind: str, text: str, status: int = 200) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    model = Model(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield model
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _text(content: Any) -> str:
    """All text of a message, of whichever protocol."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        return "\n".join(_text(content[name]) for name in ("text", "content", "output") if name in content)
    return "\n".join(_text(part) for part in content or ())


def _conversation(tools: list[str], messages: list[tuple[bool, str]]) -> Conversation:
    """From messages as pairs: whether the model said it, and its text."""
    turns = 0
    task: list[str] = []
    heard: list[str] = []
    after_own = False
    for own, text in messages:
        if own:
            turns += not after_own
        else:
            (heard if turns else task).append(text)
        after_own = own
    return Conversation(tools, "\n".join(task), turns, heard)


def _from_chat(body: dict[str, Any]) -> Conversation:
    tools = [tool["function"]["name"] for tool in body.get("tools", ())]
    messages = [(m["role"] == "assistant", _text(m.get("content"))) for m in body["messages"]]
    return _conversation(tools, messages)


def _from_responses(body: dict[str, Any]) -> Conversation:
    spaces = [tool for tool in body.get("tools", ()) if tool["type"] == "namespace"]
    namespaces = {tool["name"]: space["name"] for space in spaces for tool in space["tools"]}
    tools = [tool["name"] for tool in body.get("tools", ()) if tool["type"] == "function"] + list(namespaces)
    given = body["input"]
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    messages = [
        (item.get("role") == "assistant" or item.get("type") == "function_call", _text(item))
        for item in given
    ]
    return replace(_conversation(tools, messages), namespaces=namespaces)


def _from_messages(body: dict[str, Any]) -> Conversation:
    tools = [tool["name"] for tool in body.get("tools", ())]
    messages = [(m["role"] == "assistant", _text(m.get("content"))) for m in body["messages"]]
    return _conversation(tools, messages)


Answer = tuple[str, str]


def _events(events: list[dict[str, Any]], *, named: bool) -> Answer:
    lines = [(f"event: {e['type']}\n" if named else "") + f"data: {json.dumps(e)}\n\n" for e in events]
    return "text/event-stream", "".join(lines)


def _as_chat(turn: Turn, conversation: Conversation, stream: bool) -> Answer:
    name = "delta" if stream else "message"
    message: dict[str, Any] = {"role": "assistant", "content": turn.text if isinstance(turn, Say) else None}
    if isinstance(turn, Call):
        function = {
            "name": conversation.tool(turn.tool) or turn.tool,
            "arguments": json.dumps(turn.arguments),
        }
        message["tool_calls"] = [
            {"index": 0, "id": f"call_{conversation.turn}", "type": "function", "function": function}
        ]
    finish = "stop" if isinstance(turn, Say) else "tool_calls"
    answer = {
        "id": f"answer_{conversation.turn}",
        "object": "chat.completion.chunk" if stream else "chat.completion",
        "created": 1,
        "model": "scripted",
        "choices": [{"index": 0, name: message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }
    if stream:
        return "text/event-stream", f"data: {json.dumps(answer)}\n\ndata: [DONE]\n\n"
    return "application/json", json.dumps(answer)


def _as_responses(turn: Turn, conversation: Conversation, stream: bool) -> Answer:
    number = conversation.turn
    if isinstance(turn, Say):
        content = [{"type": "output_text", "text": turn.text, "annotations": []}]
        item: dict[str, Any] = {
            "type": "message",
            "id": f"msg_{number}",
            "role": "assistant",
            "status": "completed",
            "content": content,
        }
    else:
        item = {
            "type": "function_call",
            "id": f"fc_{number}",
            "call_id": f"call_{number}",
            "name": conversation.tool(turn.tool) or turn.tool,
            "arguments": json.dumps(turn.arguments),
            "status": "completed",
        }
        if item["name"] in conversation.namespaces:
            item["namespace"] = conversation.namespaces[item["name"]]
    answer = {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": "scripted",
        "output": [item],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 10,
            "output_tokens": 5,
            "total_tokens": 15,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        },
    }
    if not stream:
        return "application/json", json.dumps(answer)
    begun = {**answer, "status": "in_progress", "output": []}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": answer},
    ]
    return _events([{**e, "sequence_number": n} for n, e in enumerate(events)], named=True)


def _as_messages(turn: Turn, conversation: Conversation, stream: bool) -> Answer:
    number = conversation.turn
    if isinstance(turn, Say):
        block: dict[str, Any] = {"type": "text", "text": turn.text}
        empty: dict[str, Any] = {"type": "text", "text": ""}
        delta: dict[str, Any] = {"type": "text_delta", "text": turn.text}
    else:
        name = conversation.tool(turn.tool) or turn.tool
        block = {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": turn.arguments}
        empty = {**block, "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(turn.arguments)}
    message: dict[str, Any] = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": "scripted",
        "content": [block],
        "stop_reason": "end_turn" if isinstance(turn, Say) else "tool_use",
        "stop_sequence": None,
        "usage": {"input_tokens": 10, "output_tokens": 5},
    }
    if not stream:
        return "application/json", json.dumps(message)
    begun = {**message, "content": [], "stop_reason": None}
    ended = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    return _events(
        [
            {"type": "message_start", "message": begun},
            {"type": "content_block_start", "index": 0, "content_block": empty},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": ended, "usage": {"output_tokens": 5}},
            {"type": "message_stop"},
        ],
        named=True,
    )


_PROTOCOLS = {
    "/v1/chat/completions": (_from_chat, _as_chat),
    "/v1/responses": (_from_responses, _as_responses),
    "/v1/messages": (_from_messages, _as_messages),
}
