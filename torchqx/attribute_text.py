"""Quantizers and rotations as the text in which storage tensors and checkpoints carry them."""

import json
from dataclasses import asdict

from torchqx.errors import CheckpointError
from torchqx.quantizers import AffineQuantizer
from torchqx.rotations import Hadamard


def encode_quantizer(quantizer: AffineQuantizer) -> str:
    """An AffineQuantizer as JSON text."""
    return json.dumps(asdict(quantizer), separators=(",", ":"))


def decode_quantizer(text: str) -> AffineQuantizer:
    """The inverse of :func:`encode_quantizer`. Raises CheckpointError for text that is not one."""
    try:
        return AffineQuantizer(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise CheckpointError("not a quantizer", where=text[:60], remedy="save the checkpoint again.") from error


def encode_rotation(rotation: Hadamard | None) -> str:
    """A rotation as JSON text; empty for none."""
    return "" if rotation is None else json.dumps(rotation.to_json(), separators=(",", ":"))


def decode_rotation(text: str) -> Hadamard | None:
    """The inverse of :func:`encode_rotation`. Raises CheckpointError for text that is not one."""
    try:
        return Hadamard(**json.loads(text)) if text else None
    except (TypeError, ValueError) as error:
        raise CheckpointError("not a rotation", where=str(text)[:60], remedy="save the checkpoint again.") from error
