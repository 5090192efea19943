"""What must not leave with a model: local paths, tokens, names of users and machines.

`scrub` takes them out of what a run recorded about itself; `find_leaks` reads files that are about to
leave and names what it still finds. Relative paths, Hub ids and URLs stay.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

SECRET, USER, HOST = "<secret>", "<user>", "<host>"
TOKENS = re.compile(
    r"\b(?:(?:hf_|api_org_|gh[opsur]_)[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
    r"|sk-(?=[\w-]*\d)[\w-]{20,}|xox[abp]-[\w-]{10,}|AKIA[A-Z0-9]{16}|AIza[\w-]{10,})"
)
"""As they are issued: long enough to be none of the names in code, such as hf_hub_download."""
CREDENTIALS_IN_URL = re.compile(r"(?<=://)[^/\s@]+@")
POSIX_PATH = re.compile(
    r"""(?<![^\s"'`=:;,(\[{|])(?:file://)?(?:~(?=/)|/[^\s"'<>|:;,()\[\]{}/]+)(?:/[^\s"'<>|:;,()\[\]{}/]*)*"""
)
WINDOWS_PATH = re.compile(r"""(?<!\w)[A-Za-z]:\\[^\s"'<>|;,]*""")
SECRET_NAME = re.compile(
    r"(?:^|_)(?:token|password|passwd|passphrase|secret|(?:api|secret|access|private|wandb)_?key|credentials?|pat)$",
    re.I,
)
COMMON_NAMES = {
    *("root", "user", "users", "ubuntu", "admin", "runner", "nobody", "localhost", "home"),
    *("test", "train", "dev", "demo", "data", "model"),
}
"""Names that give nobody away."""
SMALLEST_SECRET = 8
TEXT_ENDINGS = {".json", ".yaml", ".yml", ".md", ".txt", ".py", ".jinja", ".svg", ""}


def scrub(value: Any) -> Any:
    """`value` (str, number, None, or dicts and lists of them) without anything private.

    An absolute path keeps its last component; a string, or a list of them, under a key such as `hub_token`
    or `password` becomes "<secret>", and so does anything that looks like a token or equals a secret of the
    environment; names of the user and of the machine become "<user>" and "<host>", but for keys and for the owner in
    a Hub id or URL.

    >>> scrub({"data_dir": "/home/ann/glue", "hub_token": "abc"})
    {'data_dir': 'glue', 'hub_token': '<secret>'}
    """
    if isinstance(value, dict):
        return {
            _scrub_key(k): _secret(v) if _is_secret_name(k) else scrub(v) for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [scrub(v) for v in value]
    if isinstance(value, Path):
        return scrub(str(value))
    if not isinstance(value, str):
        return value
    if os.path.isabs(value) or re.match(r"[A-Za-z]:\\", value):  # one path, spaces and all
        value = _last(re.split(r"[/\\]", value))
    return _scrub_text(value)


def scrub_command(arguments: Sequence[str]) -> str:
    """A command line without anything private: as `scrub`, argument by argument, so that a path with a
    space in it is one, and without the value of an option such as --hub_token."""
    shown, secret_follows = [], False
    for argument in arguments:
        option, separator, value = argument.partition("=")
        secret = _is_secret_name(option.lstrip("-"))
        if secret_follows:
            shown.append(SECRET)
        elif separator and (secret or option.startswith("-")):
            shown.append(f"{option}={SECRET if secret else scrub(value)}")
        else:
            shown.append(scrub(argument))
        secret_follows = secret and option.startswith("-") and not separator
    return " ".join(shown)


def find_leaks(folder: str | Path) -> list[str]:
    """One line for each private thing in the files of `folder`: file and kind, never the thing itself.

    All files are searched for tokens, text files for local paths too. A tokenizer's vocabulary is left
    out: it is made of the training text.
    """
    found = []
    secrets = [secret.encode() for secret in _secrets()]
    for file in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        name = file.relative_to(folder).as_posix()
        content = file.read_bytes()
        if any(secret in content for secret in secrets):
            found.append(f"{name}: a secret of the environment")
        if file.suffix not in TEXT_ENDINGS or file.name in ("tokenizer.json", "vocab.txt"):
            continue
        text = content.decode(errors="replace")
        if TOKENS.search(text) or CREDENTIALS_IN_URL.search(text):
            found.append(f"{name}: a token")
        if any(_as_pattern(place).search(text) for place in _local_places()):
            found.append(f"{name}: a path of this machine")
    return found


def _scrub_key(key: Any) -> Any:
    return _without_places(_without_secrets(key)) if isinstance(key, str) else key


def _scrub_text(text: str) -> str:
    text = _without_places(_without_secrets(text))
    for names, replacement in ((_users(), USER), (_hosts(), HOST)):
        for name in names:
            text = re.sub(rf"(?<![\w/-]){re.escape(name)}(?![\w-]|/\w)", replacement, text)
    return text


def _without_secrets(text: str) -> str:
    for secret in _secrets():
        text = text.replace(secret, SECRET)
    return CREDENTIALS_IN_URL.sub("", TOKENS.sub(SECRET, text))


def _without_places(text: str) -> str:
    """Each absolute path as its last component."""
    for place in _local_places():  # paths with spaces in them
        if (pattern := _as_pattern(place)).search(text):
            text = re.sub(pattern.pattern + r"(?=[/\\])", "~", text)
            text = pattern.sub(lambda _, name=Path(place).name: name, text)
    text = POSIX_PATH.sub(lambda m: _last(m[0].split("/")), text)
    return WINDOWS_PATH.sub(lambda m: _last(m[0].split("\\")), text)


def _as_pattern(place: str) -> re.Pattern[str]:
    """Matches the folder `place` and what is below it, not one whose name goes on; of a short one, /app, not the end of
    another path or of a URL, but what follows an escape, as in a string of JSON."""
    before = "" if place.count(os.sep) > 1 else r"(?:(?<![\w.~-])|(?<=\\[nrt]))"
    return re.compile(rf"{before}{re.escape(place)}(?![\w-])")


def _last(parts: Iterable[str]) -> str:
    return next((part for part in reversed(list(parts)) if part not in ("", "~", "file:")), "")


def _secret(value: Any) -> Any:
    """What stands under the name of a secret: text, or lists of it."""
    if isinstance(value, list | tuple):
        return [_secret(v) for v in value]
    return SECRET if value and isinstance(value, str) else scrub(value)


def _is_secret_name(key: Any) -> bool:
    return isinstance(key, str) and SECRET_NAME.search(key.replace("-", "_")) is not None


def _secrets() -> list[str]:
    values = [v for k, v in os.environ.items() if _is_secret_name(k)]
    values.append(get_token() or "")
    return sorted({v for v in values if len(v) >= SMALLEST_SECRET}, key=len, reverse=True)


def _local_places() -> list[str]:
    """Folders of this user, longest first; "/" is everybody's."""
    places = {str(Path.home()), os.getcwd(), os.environ.get("HF_HOME", "")}
    return sorted((p for p in places if Path(p).name), key=len, reverse=True)


def _users() -> list[str]:
    names = {os.environ.get(k, "") for k in ("USER", "LOGNAME", "USERNAME")} | {Path.home().name}
    with contextlib.suppress(KeyError, OSError):  # a container without an entry for its user
        names.add(getpass.getuser())
    return _telling(names)


def _hosts() -> list[str]:
    return _telling({socket.gethostname(), socket.gethostname().split(".")[0]})


def _telling(names: set[str]) -> list[str]:
    """The longest first: a host's name begins that of the host in its domain."""
    telling = {name for name in names if len(name) > 2 and name.lower() not in COMMON_NAMES}
    return sorted(telling, key=len, reverse=True)
