"""A FastAPI application that streams an answer on to a browser at the speed of reading, and says what its reader got.

``uvicorn serve_an_application:app`` with ``MODEL_URL`` set serves it. Run as a script it starts a simulated engine behind a
gateway, asks the application once and prints the events that a browser would get.
"""

import os
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from stream_through_gateway import service

from andes_client import AsyncAndesClient

app = FastAPI()


@app.get("/ask")
async def ask(question: str) -> StreamingResponse:
    client = AsyncAndesClient(base_url=os.environ["MODEL_URL"], api_key="any")
    model = (await client.openai.models.list()).data[0].id
    answer = await client.stream(question, model=model, klass="reading", pace=True, max_tokens=8)

    async def events() -> AsyncIterator[str]:
        async with answer:  # a browser that leaves ends the answer at the engine too
            async for text in answer:
                yield f"event: text\ndata: {text}\n\n"
            yield f"event: experience\ndata: {answer.experience}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


if __name__ == "__main__":
    with service() as url:
        os.environ["MODEL_URL"] = url
        print(TestClient(app).get("/ask", params={"question": "Tell me more."}).text)
