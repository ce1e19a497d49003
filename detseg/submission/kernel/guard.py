"""Restrict a Python process to listed packages and cut its network, as for a notebook on Kaggle.

Standard library only: the source of this file runs in other environments, without detseg. Listed packages include the
packages that they require.
"""

import re
import sys
from importlib import metadata

_TOOLS = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "wheel")


class _OnlyListed:
    """A module finder that finds only allowed modules."""

    def __init__(self, finder, allowed):
        self._finder, self._allowed = finder, allowed

    def find_spec(self, name, path=None, target=None):
        # _sysconfigdata_...: a standard-library module whose name depends on the machine
        if path is None and name not in self._allowed and not name.startswith("_sysconfigdata"):
            return None
        return self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)


def allowed_modules(imports):
    """Return the names that can be imported if the packages `imports` and their requirements are installed."""
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
        if event == "socket.connect" and isinstance(arguments[1], (str, bytes)):  # Unix sockets, local to this machine
            return
        raise PermissionError(f"no network, as on Kaggle ({event})")


def install(imports, also=()):
    """imports: names of installed packages. also: additional modules."""
    allowed = {*sys.stdlib_module_names, *sys.builtin_module_names, *_TOOLS, *also, *sys.modules}
    allowed |= allowed_modules(imports)
    sys.meta_path[:] = [_OnlyListed(finder, allowed) for finder in sys.meta_path]
    sys.addaudithook(_refuse_network)
