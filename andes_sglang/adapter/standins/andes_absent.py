"""Modules that can be imported, subclassed and used as decorators, and that refuse to do any work.

They stand in for packages (triton, torchvision) that SGLang imports everywhere and never calls on a CPU.
"""

import importlib.abc
import importlib.machinery
import sys
import types


class _AnyName(type):
    """A class every public attribute of which exists, as its own dotted name (enough for enumerations)."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class AbsentModule(types.ModuleType):
    """Any attribute exists: a class where the name is capitalised, otherwise another absent module."""

    __path__: list[str] = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name[:1].isupper():
            value = _AnyName(name, (), {"__module__": self.__name__, "__init__": _accept})
        else:
            value = AbsentModule(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value

    def __call__(self, *args, **kwargs):
        """As a decorator, with or without arguments, hand the function back as a kernel that cannot be launched."""
        if len(args) == 1 and not kwargs and callable(args[0]):
            return AbsentKernel(args[0])
        if args and not all(isinstance(a, (int, str, float, list, tuple, dict, types.ModuleType)) for a in args):
            raise RuntimeError(f"{self.__name__} is not installed; this code path needs it")
        return lambda function: AbsentKernel(function) if callable(function) else function

    def __mro_entries__(self, bases):
        return ()


class AbsentKernel:
    """A decorated kernel: it can be referred to, not launched."""

    def __init__(self, function):
        self.fn = function
        self.__name__ = getattr(function, "__name__", "kernel")
        self.__doc__ = getattr(function, "__doc__", None)

    def __call__(self, *args, **kwargs):
        raise RuntimeError(f"kernel {self.__name__} needs a package that is not installed on this CPU machine")

    def __getitem__(self, grid):
        return self


def _accept(self, *args, **kwargs):
    self.args, self.kwargs = args, kwargs


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, package):
        self.prefix = package + "."

    def find_spec(self, fullname, path=None, target=None):
        if fullname.startswith(self.prefix):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return AbsentModule(spec.name)

    def exec_module(self, module):
        parent, _, name = module.__name__.rpartition(".")
        setattr(sys.modules[parent], name, module)


def stand_in(package, **attributes):
    """Make the module called ``package``, already in ``sys.modules``, and everything below it importable."""
    module = sys.modules[package]
    module.__class__ = AbsentModule
    for name, value in attributes.items():
        setattr(module, name, value)
    sys.meta_path.insert(0, _Finder(package))
