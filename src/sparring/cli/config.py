"""``--config file.yaml`` and ``--print-config``: the same settings, read and written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparring.cli.settings import Settings
from sparring.cli.values import did_you_mean, plain

if TYPE_CHECKING:
    from cyclopts import App
    from cyclopts.argument import Argument, ArgumentCollection


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        FileNotFoundError, ValueError: one line that names the file and what is wrong with it.
    """
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"--config {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"--config {path}{where}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ValueError(f"--config {path}: expected lines of 'option: value', found a {type(document).__name__}")
    return {str(key): value for key, value in document.items()}


def apply(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """A cyclopts config source: fill in what the command line left open from the file named by ``--config``."""
    from cyclopts import Token

    by_name = {argument.name.lstrip("-"): argument for argument in arguments if argument.parse and argument.name != "*"}
    chosen = by_name.get("config")
    if chosen is None or not chosen.tokens:
        return
    path = Path(chosen.tokens[-1].value).expanduser()
    for key, value in read(path).items():
        name = key.replace("_", "-")
        argument = _find(name, by_name)
        if argument is None or name == "config":
            known = sorted(name.lower() for name in by_name if name != "config")
            raise ValueError(
                f"--config {path}: {' '.join(commands) or app.name[0]} has no option {key!r}."
                + (did_you_mean(name, known) or f" Known: {', '.join(known)}")
            )
        if argument.tokens or value is None:
            continue
        for index, text in enumerate(_texts(value, f"--config {path}: {key}")):
            argument.append(Token(keyword=f"--{name}", value=text, source=str(path), index=index))


def _find(name: str, by_name: dict[str, Argument]) -> Argument | None:
    # A positional argument's name is upper case in cyclopts ("IMAGES"), its key in a file is not.
    return by_name.get(name) or by_name.get(name.upper())


def _texts(value: Any, where: str) -> Iterator[str]:
    """The words that the same setting would have on the command line."""
    if isinstance(value, dict):
        yield from (f"{key}={_scalar(item, where)}" for key, item in value.items())
    elif isinstance(value, list):
        yield from (_scalar(item, where) for item in value)
    else:
        yield _scalar(value, where)


def _scalar(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float, str)):
        return str(value)
    raise ValueError(f"{where}: expected a number, a word or a list of them, found a {type(value).__name__}")


def text(settings: Settings, command: str) -> str:
    """The resolved settings as YAML that ``--config`` reads."""
    import yaml

    body = yaml.safe_dump(plain(settings.document()), sort_keys=False, allow_unicode=True, default_flow_style=None)
    return f"# sparring {command} --config THIS_FILE\n{body}"
