import torch
from torch.fx import Graph

from torchqx.fx_passes.stored import store
from torchqx.inductor_kernels.stored import STORED


def test_all_readers_read_the_mark_and_the_mark_the_node():
    graph = Graph()
    x = graph.placeholder("x")
    root = graph.call_function(torch.rsqrt, (x,))
    root.meta["example_value"] = value = torch.ones(3)
    readers = [graph.call_function(torch.mul, (x, root)), graph.call_function(torch.add, (root, root))]
    graph.output((root, *readers))

    store(root)

    (mark,) = root.users
    assert mark.target is STORED
    assert mark.args == (root,)
    assert mark.meta["example_value"] is value
    assert readers[0].args == (x, mark)
    assert readers[1].args == (mark, mark)
    assert graph.output_node().args[0] == (mark, *readers)
    graph.lint()
