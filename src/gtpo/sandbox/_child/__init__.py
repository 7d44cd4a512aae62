"""The server side of the local sandbox, run by a bare interpreter outside the trainer.

It imports only the standard library, and nothing of gtpo outside this folder: the server starts it as the
top-level package `_child`, so that no code of gtpo or torch is loaded in the same process as untrusted code.
"""
