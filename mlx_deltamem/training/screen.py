"""Print the lines that a run adds to those of mlx-lm's trainer."""

from mlx_lm.cli_ui import make_console


def tell(text: str) -> None:
    """Print a line below one of mlx-lm's; brackets in it are rich's markup."""
    make_console().print(f"          [ui.muted]{text}[/ui.muted]")
