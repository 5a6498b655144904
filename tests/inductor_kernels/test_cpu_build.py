"""Compiling operators through Inductor's code cache: what goes wrong, and what changes the key."""

import pytest
import torch
from torch._inductor import config as inductor_config

from torchqx.errors import UnsupportedError
from torchqx.inductor_kernels.cpu_build import has_compiler, load_operators

pytestmark = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")

HEADER = "#include <torch/csrc/stable/library.h>\nconstexpr int64_t kAnswer = {};\n"
OPERATOR = """
int64_t answer(int64_t) {{ return kAnswer; }}
STABLE_TORCH_LIBRARY({name}, m) {{ m.def("answer(int x) -> int"); }}
STABLE_TORCH_LIBRARY_IMPL({name}, CompositeExplicitAutograd, m) {{ m.impl("answer", TORCH_BOX(&answer)); }}
"""


def test_a_changed_header_is_compiled_again(tmp_path):
    header, source = tmp_path / "part.h", tmp_path / "part.cpp"
    for answer in (41, 42):
        name = f"torchqx_test_{answer}"
        header.write_text(HEADER.format(answer))
        source.write_text(OPERATOR.format(name=name))
        load_operators.cache_clear()
        load_operators((header, source))
        assert getattr(torch.ops, name).answer(0) == answer


def test_a_compiler_error_names_the_file_and_the_remedy(tmp_path):
    source = tmp_path / "broken.cpp"
    source.write_text("int f( {")
    with pytest.raises(UnsupportedError, match=r"(?s)broken.cpp.*C\+\+20 compiler"):
        load_operators((source,))


def test_no_compiler_is_noticed():
    has_compiler.cache_clear()
    try:
        with inductor_config.patch({"cpp.cxx": ("no-such-compiler",)}):
            assert not has_compiler()
    finally:
        has_compiler.cache_clear()
    assert has_compiler()
