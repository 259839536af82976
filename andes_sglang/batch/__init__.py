"""``andes batch``: a file of requests through the batch API of a gateway, or of any server that has OpenAI's."""
