"""Finds the layers of a model, to split, remove or count them."""

from torch import nn


def layer_lists(root: nn.Module) -> dict[str, nn.ModuleList]:
    """Returns every outermost nn.ModuleList in `root` (or `root` itself), by name."""
    outermost: dict[str, nn.ModuleList] = {}
    for name, module in root.named_modules():
        in_another = any(not outer or name.startswith(f"{outer}.") for outer in outermost)
        if isinstance(module, nn.ModuleList) and not in_another:
            outermost[name] = module
    return outermost


def layers_of(root: nn.Module) -> list[nn.Module]:
    """Returns the children of every outermost nn.ModuleList."""
    return [layer for layers in layer_lists(root).values() for layer in layers]
