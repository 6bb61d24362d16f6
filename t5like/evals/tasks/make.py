"""The rule that the items of the built-in tasks are made by; tests see that the files are what it makes.

    python -m t5like.evals.tasks.make

Everything is written here or computed, so the files need no download and have no other licence than this
repository's. The first items of a file are for demonstrations (`Task.reserved`) and are never evaluated.
"""
import json
import pathlib
import random
from collections.abc import Callable, Iterable
from typing import Any

ITEMS = 200
RESERVED = 8
TEXTS = 40  # of tasks of whole texts
FOLDER = pathlib.Path(__file__).parent

WORDS = '''river lamp stone bread cloud chair music garden paper window silver horse apple bridge candle winter
  forest button letter mirror ladder island copper engine pocket basket violin marble ribbon thunder'''.split()
NAMES = 'Anna Tom Maria Paul Ruth Sam Clara Jack Ella Ben Nora Max'.split()
OBJECTS = 'lamp book key basket letter coat hammer violin map cup ribbon ticket'.split()

# Subject, its plural, and nouns that may stand between it and the verb.
NOUNS = ['key/keys', 'teacher/teachers', 'car/cars', 'story/stories', 'dog/dogs', 'window/windows', 'author/authors',
         'picture/pictures', 'child/children', 'machine/machines', 'farmer/farmers', 'ship/ships']
BETWEEN = ['near the {}', 'behind the {}', 'next to the {}', 'that was painted by the {}', 'with the {}', 'from the {}']
VERBS = [('is', 'are'), ('was', 'were'), ('has', 'have'), ('seems', 'seem'), ('does', 'do')]

# Python by lines; {a}, {b} are names. The last line is the one that is asked for.
SNIPPETS = '''
def add({a}, {b}):|    return {a} + {b}
def largest({a}, {b}):|    if {a} > {b}:|        return {a}|    return {b}
{a} = []|for {b} in range(10):|    {a}.append({b})
with open({a}) as {b}:|    text = {b}.read()
class Point:|    def __init__(self, {a}, {b}):|        self.{a} = {a}|        self.{b} = {b}
try:|    {a} = int({b})|except ValueError:|    {a} = 0
while {a} < {b}:|    {a} += 1
if {a} is None:|    {a} = {b}
import os|{a} = os.path.join({b}, 'data')|if not os.path.exists({a}):|    os.makedirs({a})
{a} = dict()|for key in {b}:|    {a}[key] = {b}[key]
def is_empty({a}):|    return len({a}) == 0
for {a}, {b} in enumerate(lines):|    print({a}, {b})
{a} = sorted({b})|first = {a}[0]
if not isinstance({a}, str):|    raise TypeError('{a} must be a string')
{a}, {b} = {b}, {a}|print({a}, {b})
def count({a}):|    {b} = 0|    for item in {a}:|        {b} += 1|    return {b}
import json|with open('{a}.json') as {b}:|    {a} = json.load({b})
{a} = {b}.split(',')|last = {a}[-1]
'''.strip().split('\n')
IDENTIFIERS = 'x y left right value total items names path handle source target rows data size index'.split()

# Before the gap, the word in it, after it, and words that do not belong there.
GAPS = [('for {a} ', 'in', ' {b}:\n    print({a})', 'is as if'),
        ('with open({a}) ', 'as', ' {b}:\n    text = {b}.read()', 'in is or'),
        ('if {a} ', 'is', ' None:\n    {a} = {b}', 'in as =='),
        ('import {a} ', 'as', ' {b}', 'in is from'),
        ('def ', '{a}', '({b}):\n    return {b}', 'class return import'),
        ('try:\n    {a} = {b}()\n', 'except', ' ValueError:\n    {a} = None', 'else finally if'),
        ('while ', 'True', ':\n    {a} = {b}()\n    if {a}:\n        break', 'None break pass'),
        ('{a} = {b} if {b} ', 'else', ' None', 'then or elif'),
        ('{a} = [{b} ', 'for', ' {b} in range(10)]', 'while if in'),
        ('def first(self, {a}):\n    ', 'return', ' {a}[0]', 'yield print self'),
        ('assert {a} ', '==', ' {b}, "they differ"', '= := =>'),
        ('if not {a}:\n    ', 'raise', ' ValueError("no {a}")', 'throw except return'),
        ('from {a} ', 'import', ' {b}', 'include as in'),
        ('class {a}:\n  def __init__(', 'self', ', {b}):\n    self.{b} = {b}', 'this cls None')]

SENTENCES = '''The rain stopped before noon, and the streets were dry again by the evening.
She put the kettle on the stove and waited for the water to boil.
Nobody had opened the old house since the family moved to the coast.
A map is useful only when you know where on it you are.
The children counted the boats in the harbour until it was too dark to see them.
He wrote three letters that winter and sent none of them.
If the bridge is closed, the bus takes the longer road through the forest.
They planted two rows of beans behind the fence and one of onions.
The clock in the hall was always seven minutes late, and everyone knew it.
When the lights went out, the orchestra played on without a mistake.
Most of the water in the valley comes from snow that melts in spring.
You can repair the chair, but it will take longer than making a new one.
My grandmother kept her recipes in a tin box under the bed.
The train was full, so we stood by the window and watched the fields.
Copper is softer than iron and was worked much earlier.
After the storm the fishermen mended their nets on the beach.
The teacher asked a question that none of us could answer.
Bread that is baked slowly keeps fresh for several days.
From the top of the tower one could see both rivers and the sea beyond.
He had learned the poem by heart, but he forgot the last line.
The library closes at six, except on Thursdays, when it stays open until nine.
A dog slept in the middle of the road as if there were no cars in the world.
The two sisters looked alike, but only one of them could sing.
It takes about an hour to walk around the lake if you do not stop.
The museum bought the painting without knowing who had made it.
In the last week of the harvest everybody in the village works in the fields.
The letter arrived ten years late, and it was still good news.
Birds that winter in the south leave when the nights grow cold.
They agreed on the price quickly and argued about the colour for an hour.
The engine made a noise that only the old mechanic understood.'''.split('\n')

OPENING = '([{'
CLOSING = ')]}'

UNITS = '''zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
  seventeen eighteen nineteen'''.split()
TENS = '- - twenty thirty forty fifty sixty seventy eighty ninety'.split()

Item = dict[str, Any]


def in_words(n: int) -> str:
  """English for 0 to 999."""
  if n < 20:
    return UNITS[n]
  if n < 100:
    tens = TENS[n // 10]
    unit = n % 10
    return f'{tens}-{UNITS[unit]}' if unit else tens
  hundreds = f'{UNITS[n // 100]} hundred'
  rest = n % 100
  if not rest:
    return hundreds
  return f'{hundreds} and {in_words(rest)}'


def shuffled(rng: random.Random, right: str, wrong: Iterable[str]) -> Item:
  """dict(choices, answer): the right one among others, in random order."""
  choices = [right, *wrong]
  rng.shuffle(choices)
  return dict(choices=choices, answer=choices.index(right))


def arithmetic(rng: random.Random) -> Item:
  """A sum or a difference that is not negative."""
  a = rng.randint(0, 99)
  b = rng.randint(0, 99)
  sign = rng.choice('+-')
  if sign == '+':
    return dict(question=f'{a} + {b} =', answer=str(a + b))
  larger = max(a, b)
  smaller = min(a, b)
  return dict(question=f'{larger} - {smaller} =', answer=str(larger - smaller))


def copying(rng: random.Random) -> Item:
  """Words to repeat."""
  count = rng.randint(2, 6)
  return dict(words=' '.join(rng.sample(WORDS, count)))


def spelling(rng: random.Random) -> Item:
  """A number and its words."""
  n = rng.randint(0, 999)
  return dict(number=n, words=in_words(n))


def agreement(rng: random.Random) -> Item:
  """A subject whose verb is of its number, though a noun of the other number stands between them."""
  subject, other = rng.sample(NOUNS, 2)
  is_plural = rng.random() < 0.5
  nearer_noun = _of_number(other, not is_plural)
  between = rng.choice(BETWEEN).format(nearer_noun)
  verbs = rng.choice(VERBS)
  noun = _of_number(subject, is_plural)
  return dict(subject=f'The {noun} {between}', choices=list(verbs), answer=int(is_plural))


def _of_number(noun: str, is_plural: bool) -> str:
  singular, _, plural = noun.partition('/')
  return plural if is_plural else singular


def brackets(rng: random.Random) -> Item:
  """Nested brackets: which of them closes first."""
  text = f'{rng.choice(IDENTIFIERS)} = {rng.choice(IDENTIFIERS)}'
  unclosed = []
  for _ in range(rng.randint(2, 5)):
    bracket = rng.choice(OPENING)
    # All are drawn, of which one is used: the files were made so.
    first = {'{': f"'{rng.choice(WORDS)}': ", '(': f'{rng.choice(IDENTIFIERS)}, ', '[': ''}
    text += bracket + first[bracket]
    unclosed.append(bracket)
  text += str(rng.randint(0, 99))
  for _ in range(rng.randint(0, len(unclosed) - 1)):
    text += CLOSING[OPENING.index(unclosed.pop())]
  return dict(code=text, choices=list(CLOSING), answer=OPENING.index(unclosed[-1]))


def snippet(rng: random.Random) -> list[str]:
  """The lines of a snippet."""
  a, b = rng.sample(IDENTIFIERS, 2)
  return _lines(rng.choice(SNIPPETS), a, b)


def _lines(text: str, a: str, b: str) -> list[str]:
  return [line.format(a=a, b=b) for line in text.split('|')]


def next_line(rng: random.Random) -> Item:
  """A snippet without its last line, which is among the last lines of others."""
  number = rng.randrange(len(SNIPPETS))
  a, b = rng.sample(IDENTIFIERS, 2)
  *lines, right = _lines(SNIPPETS[number], a, b)
  others = set()
  for text in SNIPPETS[:number] + SNIPPETS[number + 1:]:
    others.add(_lines(text, a, b)[-1])
  wrong = sorted(others - {right})
  return dict(code='\n'.join(lines), **shuffled(rng, right, rng.sample(wrong, 3)))


def gap(rng: random.Random) -> Item:
  """A word of code that is missing."""
  before, right, after, wrong = rng.choice(GAPS)
  a, b = rng.sample(IDENTIFIERS, 2)

  def fill(text: str) -> str:
    return text.replace('{a}', a).replace('{b}', b)

  return dict(before=fill(before), after=fill(after), **shuffled(rng, fill(right), wrong.split()))


def last_word(rng: random.Random) -> Item:
  """A text whose last word follows from what it says."""
  giver, taker = rng.sample(NAMES, 2)
  thing = rng.choice(OBJECTS)
  return rng.choice([
      dict(text=f'{giver} gave the {thing} to {taker}. {taker} said thank you to', word=giver),
      dict(text=f'{giver} gave the {thing} to {taker}. Now it belongs to', word=taker),
      dict(text=f'{giver} looked for the {thing}. At last {giver} found the', word=thing),
      dict(text=f'{giver} and {taker} had one {thing}. {giver} kept it, so there was none for', word=taker)])


def english(rng: random.Random) -> Item:
  """Three sentences."""
  return dict(text=' '.join(rng.sample(SENTENCES, 3)))


def code(rng: random.Random) -> Item:
  """Three snippets."""
  lines: list[str] = []
  for _ in range(3):
    lines += snippet(rng)
  return dict(text='\n'.join(lines) + '\n')


MAKERS: dict[str, Callable[[random.Random], Item]] = dict(
    arithmetic=arithmetic,
    copying=copying,
    spelling=spelling,
    agreement=agreement,
    brackets=brackets,
    next_line=next_line,
    gap=gap,
    last_word=last_word,
    english=english,
    code=code)


def items(name: str) -> list[Item]:
  """RESERVED + ITEMS items, no two alike; fewer where no more exist."""
  rng = random.Random(name)
  count = TEXTS if name in ('english', 'code') else RESERVED + ITEMS
  lines: dict[str, None] = {}
  for _ in range(100 * count):
    lines[_line(MAKERS[name](rng))] = None
    if len(lines) == count:
      break
  return list(map(json.loads, lines))


def _line(item: Item) -> str:
  return json.dumps(item, allow_nan=False)


def text_of(name: str) -> str:
  """What the file NAME.jsonl holds."""
  return ''.join(f'{_line(item)}\n' for item in items(name))


if __name__ == '__main__':
  for task in MAKERS:
    text = text_of(task)
    (FOLDER / f'{task}.jsonl').write_text(text)
    print(task, text.count('\n'))
