"""Keeps a Python process to listed packages and without network, as a notebook on Kaggle is.

The standard library alone: the text of this file is run by other environments, where there is no detseg. Packages bring
the packages that they require.
"""

import re
import sys
from importlib import metadata

_TOOLS = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "wheel")


class _OnlyListed:
    """A finder of modules that finds no others than allowed ones."""

    def __init__(self, finder, allowed):
        self._finder, self._allowed = finder, allowed

    def find_spec(self, name, path=None, target=None):
        # _sysconfigdata_...: of the standard library, under a name of this machine
        if path is None and name not in self._allowed and not name.startswith("_sysconfigdata"):
            return None
        return self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)


def allowed_modules(imports):
    """The names that can be imported where packages with these names are there, with what they require."""
    names_of = {}
    for name, distributions in metadata.packages_distributions().items():
        for distribution in distributions:
            names_of.setdefault(_normal(distribution), set()).add(name)
    waiting = [distribution for distribution, names in names_of.items() if names & set(imports)]
    seen = set()
    while waiting:
        distribution = waiting.pop()
        if distribution in seen or distribution not in names_of:
            continue
        seen.add(distribution)
        for requirement in metadata.requires(distribution) or ():
            if "extra ==" not in requirement:
                waiting.append(_normal(re.match(r"[\w.-]+", requirement)[0]))
    return {name for distribution in seen for name in names_of[distribution]}


def _normal(distribution):
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _refuse_network(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        if event == "socket.connect" and isinstance(arguments[1], (str, bytes)):  # of this machine
            return
        raise PermissionError(f"there is no network here ({event})")


def install(imports, also=()):
    """imports: names of packages that are there; also: further modules."""
    allowed = {*sys.stdlib_module_names, *sys.builtin_module_names, *_TOOLS, *also, *sys.modules}
    allowed |= allowed_modules(imports)
    sys.meta_path[:] = [_OnlyListed(finder, allowed) for finder in sys.meta_path]
    sys.addaudithook(_refuse_network)
