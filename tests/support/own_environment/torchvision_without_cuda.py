"""Makes the torchvision of PyPI, which is built for CUDA, importable with a torch without CUDA.

Its library cannot be loaded there, and its Python code then uses operators that are not defined. A `.pth` file imports
this module at start-up, also in subprocesses; it does nothing until torchvision is imported.
"""

import importlib.abc
import importlib.machinery
import sys
from pathlib import Path


class _Loader(importlib.abc.Loader):
    def __init__(self, loader, folder):
        self._loader = loader
        self._folder = folder

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        works = _library_loads(self._folder)
        if not works:
            _define_operators()
        self._loader.exec_module(module)
        if not works:
            module.extension._has_ops = lambda: True


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None and spec.origin is not None:
            spec.loader = _Loader(spec.loader, Path(spec.origin).parent)
        return spec


def _library_loads(folder):
    import torch

    try:
        for library in folder.glob("_C*.so"):
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return True


def _define_operators():
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", _nms, "CPU")
    _define_operators.kept = library  # the operators exist as long as this object


def _nms(boxes, scores, threshold):
    """Greedy non-maximum suppression: boxes (N, 4) as x1, y1, x2, y2 to the indices of the kept ones, best first."""
    import torch

    order = scores.argsort(descending=True, stable=True)
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        upper = torch.maximum(boxes[best, :2], boxes[rest, :2])
        lower = torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = (lower - upper).clamp(min=0).prod(dim=1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        order = rest[shared / (areas[best] + areas[rest] - shared) <= threshold]
    return torch.stack(kept) if kept else order


sys.meta_path.insert(0, _Finder())
