"""The server side of the local sandbox, run by a bare interpreter outside the trainer.

It imports the standard library only, and nothing of gtpo outside this folder: the server starts it as the
top-level package `_child`, so that no line of gtpo or of torch is ever loaded next to untrusted code.
"""
