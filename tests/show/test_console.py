"""The console: texts of strangers, narrow terminals, and terminals without Unicode."""

import io

import pytest

from mlx_deltamem.show.console import Console
from mlx_deltamem.show.tables import by_layer, columns, difference_table, facts, message, print_tables

EVIL = "\x1b[2J\x9b\u202e[bold]x[/bold][/no][link=http://a]b[/link]:smile:"
SHOWN = "\\x1b[2J\\x9b\\u202e[bold]x[/bold][/no][link=http://a]b[/link]:smile:"


def printed(*renderables: object, encoding: str = "utf-8", width: int = 400) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    console = Console(file=file, width=width, force_terminal=True)
    for renderable in renderables:
        console.print(renderable)
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def test_texts_in_tables_are_shown_as_they_are():
    table = columns("title \x07", "heading [/no]", "\x1b", texts=(0, 1))
    table.add_row(EVIL, EVIL)
    tables = [
        facts(EVIL, {EVIL: EVIL}),
        table,
        difference_table("t", {EVIL: (EVIL, [EVIL])}),
        *by_layer("t", {EVIL: {0: 1.0}}),
        message(EVIL, EVIL),
    ]
    shown = printed(*tables)
    assert not set("\x07\x9b\u202e") & set(shown)
    assert "\x1b[2J" not in shown and "\x1b]" not in shown
    assert shown.count(SHOWN) == 3 + 2 + 3 + 1 + 2
    assert "title \\x07" in shown and "heading [/no]" in shown


def test_columns_stay_in_line():
    table = columns("t", "name", "number", texts=(0,))
    for name in ("\x1b", "δ", "plain"):
        table.add_row(name, "1")
    for encoding in ("utf-8", "ascii"):
        lines = printed(table, encoding=encoding).splitlines()[-3:]
        assert len({line.rstrip()[-1] for line in lines}) == 1
        assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize("columns_", ["0", "1", "3"])
def test_narrow_terminals(monkeypatch, capsys, columns_):
    monkeypatch.setenv("COLUMNS", columns_)
    monkeypatch.setenv("LINES", "0")
    print_tables([facts("Facts", {"name": "value"})])
    shown = capsys.readouterr().out
    assert "name" in shown and "value" in shown


def test_ascii_terminals(capsys):
    shown = printed(columns("δ", "β"), encoding="ascii")
    assert "\\u03b4" in shown and "\\u03b2" in shown and "\\u2500" not in shown
