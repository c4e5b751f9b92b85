"""The options of an upload, for mlx_deltamem.upload and mlx_deltamem.convert."""

import argparse


def add_upload_options(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Add `--upload-repo` and the options that belong to it."""
    parser.add_argument("--upload-repo", required=required, help="The Hub repo (USER/NAME) to upload the adapter to.")
    parser.add_argument("--private", action="store_true", help="Make the repo private, if it is new.")
    parser.add_argument("--base-model", help="For the model card: the Hub repo of the model that the adapter is for.")
    parser.add_argument("--license", help="For the model card: the adapter's licence, by its name on the Hub.")
    parser.add_argument(
        "--yes",
        action="store_true",
        help="Overwrite a repo for another model, with other contents, or changed on the Hub, without a question.",
    )
