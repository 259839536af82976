"""The batch API, as OpenAI defines it: files, batches, and their requests run on what readers leave over.

All state lies in one directory that several gateways may share; a batch is run by the one that holds its lock.
"""
