"""Checkpoints of the examples in PyTorch."""

import io
import os

import torch


def write_checkpoint(path, content):
    """Write {"options": dict, "history": list, "backend": dict}; a crash leaves the old file or the new."""
    part = path.with_suffix(".part")
    save(content, part)
    os.replace(part, path)


def read_checkpoint(path):
    """What `write_checkpoint` wrote; a ValueError for any other file."""
    raw = path.read_bytes()
    try:
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        kinds = {name: type(value) for name, value in content.items()}
    except Exception as error:  # a file of any content can make unpickling fail in any way
        raise ValueError(f"{path} is not a checkpoint of this program") from error
    if kinds != {"options": dict, "history": list, "backend": dict}:
        raise ValueError(f"{path} is not a checkpoint of this program")
    return content


def save(content, path):
    """`torch.save` reports a full disk as a RuntimeError without the path; this way it is an OSError with it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(buffer.getvalue())
