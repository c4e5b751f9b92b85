"""Makes conversations of scenes. `scenes.py` describes them."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from .conversation import Conversation, Kind, Question, Style, Turn
from .distinct import Distinct
from .messages import acknowledgement, ended, typed
from .ordinary import ordinary_messages_for
from .questions import Encode, assistant_says, limited, pieces_of
from .scenes import Message, Scene, scenes_on
from .settings import SpeechSettings
from .split import on_side
from .wording import article, fill, is_sentence, named


@dataclass(eq=False)
class _Told:
    """A value that was told: how it was told first, and what told it last, with the name of the wording."""

    style: Style
    kind: Kind
    turn: Turn
    wording: str


@dataclass(eq=False)
class _Story:
    """A scene with its values, told up to one of its messages in a block of turns."""

    scene: Scene
    blanks: dict[str, str] = field(default_factory=dict)
    told: dict[str, _Told] = field(default_factory=dict)
    block: list[Turn] = field(default_factory=list)

    def can_say(self, template: str) -> bool:
        """Whether a template only names values that were told."""
        return set(named(template)) <= {*self.told, "old"}

    def sayable(self, lines: Iterable[str], name: str) -> list[str]:
        """The lines about a value that name told values only, and none but this one that was told anew."""
        anew = {each for each, told in self.told.items() if told.kind == "update"} - {name}
        return [line for line in lines if self.can_say(line) and anew.isdisjoint(named(line))]

    def phrase(self, name: str) -> str:
        """Return a value with the article that it has where it is told ("a barber")."""
        value = self.blanks[name]
        [line] = (each.tell[0] for each in self.scene.messages if name in each.new)
        return f"{article(value)} {value}" if f"{{a_{name}}}" in line else value

    def absence(self, name: str) -> str:
        """Return the use of the reply that a value was not told; the assistant has some of a scene's values to tell."""
        own = any(each.wish and name in each.new for each in self.scene.messages)
        return "absent_own" if own else "absent"


class Storyteller:
    """Makes one conversation of one or more scenes.

    Args:
        rng: The source of random choices.
        settings: The settings of the conversation. `facts` is the number of values that may be asked for, at least 1;
            the last message may bring some more.
        encode: A tokenizer's function, to count the tokens of values.

    Raises:
        ValueError: No scene is left on the sides of the split.
    """

    def __init__(self, rng: random.Random, settings: SpeechSettings, encode: Encode | None):
        self._rng, self._settings, self._encode = rng, settings, encode
        self._side = settings.split.wordings
        self._scenes = scenes_on(settings.split.relations, self._side)
        if not self._scenes:
            raise ValueError("no scene is on these sides of the split; set scenes to 0")
        self._distinct = Distinct()

    def conversation(self) -> Conversation:
        """Make the conversation."""
        stories = self._stories()
        blocks = [story.block for story in stories]
        for story in stories:
            self._add_later(story, blocks)
        self._add_ordinary(blocks)
        turns = tuple(turn for block in blocks for turn in block)
        questions = [each for story in stories for each in self._questions(story, turns)]
        questions = [*limited(self._rng, self._settings, questions), *self._absent(stories)]
        self._rng.shuffle(questions)
        return Conversation(turns, tuple(questions))

    def _stories(self) -> list[_Story]:
        """Tell scenes until there are enough values."""
        wanted = max(1, self._rng.randint(*self._settings.facts))
        stories: list[_Story] = []
        for scene in self._rng.sample(self._scenes, len(self._scenes)):
            if wanted <= 0:
                break
            if any(scene.questions & other.scene.questions for other in stories):
                # A question would have two answers.
                continue
            story = _Story(scene)
            if not all(self._draw(story, name) for name in scene.kinds):
                continue
            messages, asked = scene.told_on(self._side), scene.asked_on(self._side)
            counts = [sum(name in asked for name in message.new) for message in messages]
            least = next(number for number, count in enumerate(counts, start=1) if count)
            told = []
            for message, count in zip(messages[: self._rng.randint(least, len(messages))], counts, strict=False):
                if wanted <= 0:
                    break
                told.append(message)
                wanted -= count
            story.block += [self._tell(story, group) for group in self._joined(told)]
            stories.append(story)
        return stories

    def _joined(self, messages: Iterable[Message]) -> list[list[Message]]:
        """Group the messages of a scene: those of a group are sent as one."""
        groups: list[list[Message]] = []
        for message in messages:
            by_assistant = message.wish or (groups and groups[-1][-1].wish)
            if groups and not by_assistant and self._rng.random() < self._settings.two_facts:
                groups[-1].append(message)
            else:
                groups.append([message])
        return groups

    def _draw(self, story: _Story, name: str, anew: bool = False) -> bool:
        """Give a value that overlaps no other of the conversation, and no question of its scene; False if none is."""
        side = self._settings.split.values if name in story.scene.ask else "train"
        value = self._distinct.draw(
            lambda: story.scene.draw(self._rng, name, self._settings.libraries), side, story.scene.asked
        )
        if value is None:
            return False
        if anew:
            story.blanks["old"] = story.blanks[name]
        story.blanks[name] = value
        return True

    def _tell(self, story: _Story, messages: list[Message]) -> Turn:
        """Tell the values of these messages in one turn. A message of the assistant is alone."""
        scene = story.scene
        templates = [self._rng.choice(on_side(message.tell, self._side)) for message in messages]
        wordings = tuple(scene.wording_id("tell", template) for template in templates)
        if wishes := messages[0].wish:
            wish = fill(typed(self._rng, self._settings, self._rng.choice(wishes)), story.blanks)
            turn = Turn(wish, fill(templates[0], story.blanks), "assistant", (scene.name,), wordings)
        else:
            text = fill(self._typed_as_one(templates), story.blanks)
            turn = Turn(text, acknowledgement(self._rng, self._settings), "told", (scene.name,), wordings)
        several = sum(name in scene.ask for message in messages for name in message.new) > 1
        how: Literal["assistant", "two_facts"] | None = "assistant" if wishes else "two_facts" if several else None
        for message, wording in zip(messages, wordings, strict=True):
            story.told |= {name: _Told(how or "plain", how or "fact", turn, wording) for name in message.new}
        return turn

    def _typed_as_one(self, templates: list[str]) -> str:
        """Join the wordings of messages that are sent as one. If one is typed without capitals, all are."""
        text = " ".join([*map(ended, templates[:-1]), templates[-1]])
        return typed(self._rng, self._settings, text, lower=not all(map(is_sentence, templates)))

    def _add_later(self, story: _Story, blocks: list[list[Turn]]) -> None:
        """Give some of a story's values anew, anywhere after the story."""
        scene = story.scene
        first = next(place for place, block in enumerate(blocks) if block is story.block)
        for name, lines in scene.later.items():
            # The message may stand before one that tells another value anew.
            found = story.sayable(on_side(lines, self._side), name)
            if not found or self._rng.random() >= self._settings.updates:
                continue
            if self._draw(story, name, anew=True):
                template = self._rng.choice(found)
                text = fill(typed(self._rng, self._settings, template), story.blanks)
                wordings = (scene.wording_id("later", template),)
                reply = acknowledgement(self._rng, self._settings)
                turn = Turn(text, reply, "update", (scene.name,), wordings)
                blocks.insert(self._rng.randint(first + 1, len(blocks)), [turn])
                story.told[name] = _Told(story.told[name].style, "update", turn, wordings[0])

    def _add_ordinary(self, blocks: list[list[Turn]]) -> None:
        """Insert ordinary turns before, between and after the blocks."""
        between, after = self._rng.randint(*self._settings.ordinary), self._rng.randint(*self._settings.gap)
        for number, message in enumerate(ordinary_messages_for(self._rng, between + after)):
            place = self._rng.randint(0, len(blocks)) if number < between else len(blocks)
            blocks.insert(place, [Turn(message, None, "ordinary")])

    def _questions(self, story: _Story, turns: tuple[Turn, ...]) -> list[Question]:
        """The questions about the told values of a story."""
        found = []
        for name, told in story.told.items():
            # A value that was told anew may not have this one any more.
            lines = story.sayable(on_side(story.scene.ask.get(name, ()), self._side), name)
            for template in self._rng.sample(lines, min(len(lines), self._settings.asked)):
                says = "answer_own" if told.style == "assistant" and told.kind != "update" else "answer"
                answer = assistant_says(says, value=story.phrase(name))
                found.append(self._question(story, name, template, answer, told, turns))
        return found

    def _absent(self, stories: list[_Story]) -> list[Question]:
        """Questions about values of the same scenes that were not told, and about what these scenes never tell."""
        found: list[tuple[_Story, str, str]] = []
        for story in stories:
            untold = {name: lines for name, lines in story.scene.ask.items() if name not in story.told}
            for name, lines in (*untold.items(), ("", story.scene.never)):
                found += ((story, name, line) for line in on_side(lines, self._side) if story.can_say(line))
        count = min(len(found), self._rng.randint(*self._settings.absent))
        return [
            self._question(story, name, template, assistant_says(story.absence(name)), None, ())
            for story, name, template in self._rng.sample(found, count)
        ]

    def _question(
        self, story: _Story, name: str, template: str, answer: str, told: _Told | None, turns: tuple[Turn, ...]
    ) -> Question:
        scene, value = story.scene, story.blanks[name] if told else None
        turn = next(place for place, each in enumerate(turns) if each is told.turn) if told else None
        alike = [other for other in story.told if other != name and scene.kinds[other] == scene.kinds.get(name)]
        return Question(
            text=fill(typed(self._rng, self._settings, template), story.blanks),
            answer=answer,
            value=value,
            kind=told.kind if told else "absent",
            relation=scene.name,
            theme=scene.theme,
            subject=name,
            value_kind=scene.kinds.get(name, ""),
            told_in=told.wording if told else "",
            asked_in=scene.wording_id("ask", template),
            style=told.style if told else None,
            sibling=bool(alike) if told else True,
            turn=turn,
            distance=None if turn is None else len(turns) - turn,
            pieces=pieces_of(value, self._encode),
        )
