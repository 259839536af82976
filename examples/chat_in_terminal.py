"""A chat in the terminal: text at the speed of reading, and what its reader got after every answer.

With an address it talks to that service: ``python chat_in_terminal.py http://127.0.0.1:8080/v1``. Without one it asks two
questions of a simulated engine behind a gateway, which it starts itself.
"""

import sys

from stream_through_gateway import service

from andes_client import AndesClient, InterruptedAnswerError


def chat(url: str, questions: list[str] | None = None) -> None:
    """questions: instead of the keyboard's."""
    client = AndesClient(base_url=url, api_key="any")
    model = client.openai.models.list().data[0].id
    messages: list[dict[str, str]] = []
    asked = iter(questions) if questions else iter(lambda: input("\nyou: "), "")
    for question in asked:
        messages.append({"role": "user", "content": question})
        print(f"\nyou: {question}\n\nmodel: ", end="") if questions else print("\nmodel: ", end="")
        answer = client.stream(
            messages,
            model=model,
            reading_speed=12,
            pace=True,
            max_tokens=40,
            on_wait=lambda seconds, reason: print(f"[{reason}; again in {seconds:.0f} s]"),
        )
        try:
            for text in answer:
                print(text, end="", flush=True)
        except InterruptedAnswerError as error:
            print(f"\n[{error}]")
        messages.append({"role": "assistant", "content": answer.text})
        print(f"\n\n[{answer.experience}]")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        chat(sys.argv[1])
    else:
        with service() as url:
            chat(url, ["Tell me more.", "And then?"])
