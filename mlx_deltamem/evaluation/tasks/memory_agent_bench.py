"""The task `mab`, MemoryAgentBench: questions about long contexts (facts 4.2).

Data: https://huggingface.co/datasets/ai-hyz/MemoryAgentBench.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from mlx_deltamem.evaluation.question import Question, user_message
from mlx_deltamem.evaluation.task import Backbone, Task
from mlx_deltamem.evaluation.tasks.answers import first_line, span_tokens, token_f1
from mlx_deltamem.evaluation.tasks.fitting import clip, fit, longest_prompt, prompt_tokens, sentence_chunks, text_tokens
from mlx_deltamem.evaluation.tasks.left_out import LeftOut
from mlx_deltamem.evaluation.tasks.mab_data import EXPECTED, REPO, SPLITS, ContextRow, find_source, load_rows
from mlx_deltamem.evaluation.tasks.movies import as_list, from_list, load_films, recall_at_5
from mlx_deltamem.files.fields import shown
from mlx_deltamem.options.option import option

_SHORT = (
    "Reply with a short entity, phrase, number, or sentence only.\n"
    "If the answer is not supported by {}, reply exactly: I don't know.\n\n"
)
# The wording of the published runs.
_CONTEXT = "Use only the memory context below to answer the question.\n" + _SHORT.format("the context")
# The wording of this project, for conditions without the context in the text.
_NO_CONTEXT = "Use only what you were told before to answer the question.\n" + _SHORT.format("it")
_QUESTION = "Question: {}\nAnswer:"
_PUBLISHED_CHARACTERS = 120_000
_FEWEST_CHARACTERS = 200
_SHOWN = 5


class UnknownFilmError(ValueError):
    """An answer is a film that the file of films does not have."""


@dataclass(frozen=True)
class MemoryAgentBench(Task):
    """Questions about contexts of up to 421k tokens: retrieval, learning, understanding and conflicting facts."""

    name: ClassVar[str] = "mab"
    title: ClassVar[str] = "MemoryAgentBench"
    source: ClassVar[str] = f"{REPO} on the Hugging Face Hub (MIT), or a file or folder of its rows"
    breakdowns: ClassVar[tuple[str, ...]] = ("source",)

    ingest: str = option(
        "clipped",
        "The text that the memory reads in conditions without the context in the prompt: the context as the prompt "
        "would have it (clipped), or the whole context, one chunk a turn (chunks).",
        ("clipped", "chunks"),
    )
    characters: int = option(
        _PUBLISHED_CHARACTERS,
        "The longest context in the text, in characters; the middle of a longer one is left out.",
        least=_FEWEST_CHARACTERS,
    )
    chunk_tokens: int = option(4096, "The longest chunk, in tokens; a chunk ends with a sentence.", least=1)
    splits: tuple[str, ...] = option(tuple(SPLITS), "The splits to ask about.", tuple(SPLITS))
    sources: tuple[str, ...] = option((), "Prefixes of the names of the sources to ask about.")

    @property
    def differences(self) -> tuple[str, ...]:
        always: tuple[str, ...] = (
            "The score is that of the published runs: a reply is right if it contains the answer, even within a word. "
            "Do not compare it with the benchmark's leaderboard, which uses other prompts and scores, and a language "
            "model as judge for LongMemEval and summaries.",
            "The context is shortened to the model's window once for all questions of a row. Published runs shortened "
            "it for each question.",
            "Blank lines do not count as recommended films, and a film keeps a number at the beginning of its name. In "
            "the published score, blank lines are films and such a number is lost.",
        )
        if self.characters != _PUBLISHED_CHARACTERS:
            always += (
                f"Published runs cut the context to {_PUBLISHED_CHARACTERS:,} characters, ours to {self.characters:,}.",
            )
        if self.ingest == "clipped":
            return always
        return (
            *always,
            "Published runs never read the context chunk by chunk. Ours ends chunks at the ends of sentences, as this "
            f"project finds them, after at most {self.chunk_tokens:,} tokens of the model, and adds no words of the "
            "benchmark to them.",
        )

    def questions(self, backbone: Backbone) -> Iterator[Question]:
        """See `Task`.

        Raises:
            FileNotFoundError: The data do not exist.
            ValueError: The data are damaged or of another kind, or a package that reads them is not installed.
        """
        left_out = LeftOut(str(self.data or REPO), EXPECTED)
        yield from left_out.told(self._questions(backbone, left_out))

    def _questions(self, backbone: Backbone, left_out: LeftOut) -> Iterator[Question]:
        index = 0
        for row in load_rows(self.data, self.splits, self.sources, left_out):
            prompts = [_QUESTION.format(question.text) for question in row.questions]
            context = self._fitted(row, prompts, backbone)
            told = sentence_chunks(row.context, self.chunk_tokens, partial(text_tokens, backbone))
            history = tuple(map(user_message, told if self.ingest == "chunks" else [context]))
            for asked, prompt in zip(row.questions, prompts, strict=True):
                try:
                    golds = self._golds(row, asked.answers)
                except UnknownFilmError as error:
                    left_out.add(f"{row.id}/{asked.number} has {error}")
                    continue
                yield Question(
                    id=f"{row.id}/{asked.number}",
                    group=row.id,
                    history=history,
                    question=_NO_CONTEXT + prompt,
                    golds=golds,
                    category=SPLITS[row.source.split],
                    max_tokens=row.source.max_tokens,
                    context=_CONTEXT + context,
                    preface=len(_CONTEXT),
                    question_with_context="\n\n" + prompt,
                    query=asked.text,
                    labels={"source": row.name},
                    index=index + asked.number,
                )
            # A question that cannot be asked keeps its place.
            index += row.count

    def score(self, question: Question, reply: str) -> Mapping[str, float]:
        """The score of the row's source: accuracy, the F1 of words, or the recall@5 of films."""
        metric = find_source(question.text_label("source")).metric
        if metric == "recall@5":
            return {"score": recall_at_5(reply, from_list(question.golds[0]), list(self._films().values()))}
        if metric == "f1":
            return {"score": _best_f1(reply, question.golds)}
        return {"score": float(any(_is_right(reply, gold) for gold in question.golds))}

    def _fitted(self, row: ContextRow, prompts: list[str], backbone: Backbone) -> str:
        """The context of a row, shortened for the prompt of its longest question."""
        context = clip(row.context, self.characters)
        if not prompts:
            return context
        last = "\n\n" + max(prompts, key=partial(text_tokens, backbone))

        def count(text: str) -> int:
            return prompt_tokens(backbone, [user_message(_CONTEXT + text + last)])

        longest = longest_prompt(backbone, [user_message(_CONTEXT + last)], row.source.max_tokens)
        return context if longest is None else fit(context, longest, count)

    def _golds(self, row: ContextRow, answers: tuple[str, ...]) -> tuple[str, ...]:
        if row.source.metric != "recall@5":
            return answers
        films = self._films()
        if unknown := [answer for answer in answers if answer not in films]:
            films_of_row = ", ".join(map(shown, unknown[:_SHOWN]))
            raise UnknownFilmError(f"the films {films_of_row}, which are not in entity2id.json; use files that match")
        return (as_list([films[answer] for answer in answers]),)

    def _films(self) -> Mapping[str, str]:
        data = self.data
        return load_films(data.parent if data and not data.is_dir() else data, REPO)


def _is_right(reply: str, gold: str) -> bool:
    """Whether a reply contains a gold answer, compared without articles and punctuation.

    The published rule also accepts a reply or a first line that equals the answer. Such a reply contains the answer, so
    this rule covers it.
    """
    said, wanted = " ".join(span_tokens(reply)), " ".join(span_tokens(gold))
    if not wanted:
        # The answer is nothing but articles, such as the choice "A".
        return first_line(reply).lower() == gold.lower()
    return wanted in said


def _best_f1(reply: str, golds: tuple[str, ...]) -> float:
    said = [span_tokens(text) for text in (reply, first_line(reply))]
    return max(token_f1(words, span_tokens(gold)) for words in said for gold in golds)
