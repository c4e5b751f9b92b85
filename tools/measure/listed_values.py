"""How many answers are right whose value is in a list of the training data, and how many whose value is in none.

`python -m tools.measure.listed_values RUN` reads the records of a run of `mlx_deltamem.evaluate --recall-natural`. The
lists are those of `data recall`, the names and towns of the libraries of the extra `speech`, and the values that the
kinds and scenes of `data speech` have without slots. Codes, numbers and invented words are in none.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from mlx_deltamem.cli.command import command
from mlx_deltamem.cli.parser import Parser
from mlx_deltamem.evaluation.records import JsonLines, Record
from mlx_deltamem.evaluation.run import RECORDS_FILE
from mlx_deltamem.files.atomic import user_path
from mlx_deltamem.recall.vocabulary import value_lists
from mlx_deltamem.recall.vocabulary import values as listed
from mlx_deltamem.speech import libraries
from mlx_deltamem.speech.relations import relations
from mlx_deltamem.speech.scenes import scenes
from mlx_deltamem.speech.values import kinds
from tools.measure.retrieval import share


@command
def main() -> None:
    """Print the shares under each condition of the run."""
    parser = Parser(prog="python -m tools.measure.listed_values", description=__doc__)
    parser.add_argument("run", type=user_path, metavar="RUN", help="The folder of a run.")
    folder: Path = parser.parse_args().run
    records: JsonLines[Record] = JsonLines(folder / RECORDS_FILE)
    asked = [row for row in records.rows if row["task"] == "recall" and row["category"] != "absent"]
    if not asked:
        raise ValueError(f"{folder} has no records of recall; expected a run with --tasks recall --recall-natural")
    known = {value.casefold() for value in all_values()}
    for condition in dict.fromkeys(row["condition"] for row in asked):
        for name, wanted in (("in a list", True), ("in no list", False)):
            chosen = [
                row["scores"]["exact"]
                for row in asked
                if row["condition"] == condition
                and any(answer.casefold() in known for answer in row["golds"]) == wanted
            ]
            print(f"{condition}, the value is {name}: {_right(chosen)}")


def all_values() -> Iterator[str]:
    """Every value that is in a list."""
    for name in value_lists():
        yield from listed(name)
    for name in libraries.POOLS:
        yield from libraries.pool(name)
    for patterns in kinds().values():
        yield from patterns.fixed
    for relation in relations():
        yield from relation.patterns.fixed
    for scene in scenes():
        for patterns in scene.patterns.values():
            yield from patterns.fixed


def _right(scores: Sequence[float]) -> str:
    """The number of right answers, and their share."""
    return f"{sum(scores):.0f} of {len(scores)}, {share(scores)}" if scores else "no questions"


if __name__ == "__main__":
    main()
