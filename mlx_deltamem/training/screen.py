"""What a run says on the screen beside mlx-lm's own lines."""

from mlx_lm.cli_ui import make_console


def tell(text: str) -> None:
    """Print a line below one of mlx-lm's; brackets in it are rich's markup."""
    make_console().print(f"          [ui.muted]{text}[/ui.muted]")
