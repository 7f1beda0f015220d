"""Runs a module of ours once another package has been imported, in whichever order the two are."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def after_import(package: str, ours: str) -> None:
    """Import `ours` now if `package` is there already, else right after its first import."""
    if package in sys.modules:
        import_module(ours)
    else:
        sys.meta_path.insert(0, _Finder(package, ours))


class _Finder(MetaPathFinder):
    """Wraps the loader of one package until that package has been imported; look-ups alone change nothing."""

    def __init__(self, package: str, ours: str) -> None:
        self.package = package
        self.ours = ours
        self.looking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The package's own spec with our loader around its own."""
        if fullname != self.package or self.looking:
            return None
        self.looking = True
        try:
            spec = find_spec(fullname)
        finally:
            self.looking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(Loader):
    """A package's own loader, followed by our import."""

    def __init__(self, own: Loader, finder: _Finder) -> None:
        self.own = own
        self.finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the package's loader does."""
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Load the package, then ours."""
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        if module.__spec__ is not None:
            module.__spec__.loader = self.own
        module.__loader__ = self.own
        self.own.exec_module(module)
        import_module(self.finder.ours)
