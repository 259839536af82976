"""LangChain: expectations go out with every question of a chain, and a callback says what the reader of each answer got.

With an address it talks to that service: ``python langchain_callback.py http://127.0.0.1:8080/v1``. Without one it starts a
simulated engine behind a gateway.
"""

import sys
import time
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from openai import OpenAI
from stream_through_gateway import service

from andes_client import Reader, Timeline


class ReaderCallback(BaseCallbackHandler):
    """Prints what the reader of each answer got: one timeline a run, side by side."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader.told({})
        self._timelines: dict[UUID, Timeline] = {}

    def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: UUID, **options: Any) -> None:
        self._timelines[run_id] = Timeline(time.monotonic())

    def on_llm_new_token(self, token: Any, *, run_id: UUID, **options: Any) -> None:
        if token:  # the first and the last piece hold no text
            self._timelines[run_id].show(time.monotonic(), 1)

    def on_llm_end(self, response: Any, *, run_id: UUID, **options: Any) -> None:
        reader, usage = self._reader, response.generations[0][0].message.usage_metadata
        experience = self._timelines.pop(run_id).experience(
            first_token_s=reader.first_token_s, reading_speed=reader.reading_speed, tokens=usage["output_tokens"]
        )
        print(f"\n[{experience}]")


def ask(url: str, question: str) -> None:
    reader = Reader(reading_speed=12, first_token_s=0.5)
    model = ChatOpenAI(
        model=OpenAI(base_url=url, api_key="any").models.list().data[0].id,
        base_url=url,
        api_key="any",
        max_tokens=40,
        stream_usage=True,
        default_headers=reader.headers(),
        callbacks=[ReaderCallback(reader)],
    )
    chain = ChatPromptTemplate.from_template("Answer in one sentence. {question}") | model
    for piece in chain.stream({"question": question}):
        print(piece.content, end="", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        ask(sys.argv[1], "What is QoE?")
    else:
        with service() as address:
            ask(address, "What is QoE?")
