"""There and back, and nothing else is taken."""

import pytest

from torchqx.attribute_text import decode_quantizer, decode_rotation, encode_quantizer, encode_rotation
from torchqx.errors import CheckpointError
from torchqx.quantizers import AffineQuantizer
from torchqx.rotations import Hadamard


def test_rotations_as_text() -> None:
    for rotation in (None, Hadamard(12), Hadamard(576, 3)):
        assert decode_rotation(encode_rotation(rotation)) == rotation
    for text in ("x", "[]", '{"block":3}', '{"block":"8"}', '{"colour":1}', "3"):
        with pytest.raises(CheckpointError, match="not a rotation"):
            decode_rotation(text)


def test_quantizers_as_text() -> None:
    quantizer = AffineQuantizer(4, True, "group", 32, signed=True)
    assert decode_quantizer(encode_quantizer(quantizer)) == quantizer
    for text in ("", "[]x", '{"bits": 99}', '{"colour": 1}', "3"):
        with pytest.raises(CheckpointError, match="not a quantizer"):
            decode_quantizer(text)
